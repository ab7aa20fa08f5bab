"""The documents say what is: every command in them is known, and printed output is today's."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from seal.command import SUBCOMMANDS, build_parser, main

ROOT = Path(__file__).resolve().parents[1]


def printed(*words: str) -> str:
    """What `seal WORDS` prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*words])
    return said.getvalue()


@pytest.mark.slow
def test_the_commands_page_is_what_the_commands_print():
    check = [sys.executable, ROOT / "docs/run_commands.py", "--check"]
    done = subprocess.run(check, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", SUBCOMMANDS, ids=lambda m: m.__name__.split(".")[-1])
def test_every_subcommand_has_its_section_its_example_and_json(module):
    name = module.__name__.split(".")[-1]
    assert f"\n## seal {name}\n" in (ROOT / "docs/commands.md").read_text()
    text = printed(name, "--help")
    assert module.EXAMPLE in text and module.__doc__.splitlines()[0] in text
    (command,) = re.findall(r"seal [^)#]*", module.EXAMPLE.replace("\\\n", " "))[:1]
    args = build_parser().parse_args(shlex.split(command)[1:])
    assert args.run is module.run and "json" in args


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_names_every_subcommand(shell):
    pytest.importorskip("shtab")
    script = printed("completion", shell)
    names = [module.__name__.split(".")[-1] for module in SUBCOMMANDS]
    assert not [name for name in names if name not in script]
    assert "--selector_tokenizer" in script


def test_bash_completes_a_subcommand():
    pytest.importorskip("shtab")
    code = "\n".join(
        [
            printed("completion", "bash"),
            "COMP_WORDS=(seal ex); COMP_CWORD=1; _shtab_seal; echo ${COMPREPLY[@]}",
        ]
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "export"
