"""The documents say what is: every command in them is known, and printed output is today's."""

import argparse
import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT

from seal.cli import batch_inference, evaluate
from seal.cli import flags as cli
from seal.command import SUBCOMMANDS, build_parser, main


def name_of(module) -> str:
    """The subcommand of a module."""
    return module.__name__.split(".")[-1].replace("_", "-")


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


@pytest.mark.parametrize("module", SUBCOMMANDS, ids=lambda m: name_of(m))
def test_every_subcommand_has_its_section_its_example_and_json(module):
    name = name_of(module)
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
    names = [name_of(module) for module in SUBCOMMANDS]
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


# --- commands that the documents name ---

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "benchmarks/README.md", ROOT / "ckpt/README.md"]
FOLDERS = [ROOT, ROOT / "examples", ROOT / "examples/scripts"]  # where the documents stand
PARSERS = {
    "train_sft_selector.py": cli.selector_parser,
    "train_sft.py": cli.sft_parser,
    "score_dataset.py": cli.score_parser,
    "batch_inference.py": batch_inference.parser,
    "evaluate.py": evaluate.parser,
}


def commands(page: Path) -> list[str]:
    """Commands in the shell blocks and in the text of a page, without variables and comments."""
    text = page.read_text().replace("\\\n", " ")
    fences = re.findall(r"```(?:bash|console)\n(.*?)```", text, flags=re.S)
    lines = [line for fence in fences for line in fence.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    found = []
    for line in lines:
        line = re.sub(r"<[^>]*>", "VALUE", line.removeprefix("$ "))
        line = re.sub(r"^(export |\w+=(\"[^\"]*\"|\S*) )*", "", line.strip())
        if re.match(r"(seal|deepspeed|srun|python|bash) \S", line):
            found.append(re.split(r"\s#|[;|]|&&", line)[0])
    return found


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


def check_command(command: str) -> None:
    """Fails where a program, a script or a flag is not there."""
    program, *words = shlex.split(command.replace("...", ""))
    scripts = [word for word in words if word.endswith((".py", ".sh"))]
    if program == "deepspeed" and scripts:
        words = words[words.index(scripts[0]) :]  # before it stand the launcher's own flags
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    if program == "seal":
        known = flags_of(build_parser())
        if not words[0].startswith("-"):
            subcommands = next(a for a in build_parser()._actions if a.metavar == "COMMAND")
            known = flags_of(subcommands.choices[words[0]])
    elif words[0] == "-m":
        assert importlib.util.find_spec(words[1]), command
        return
    elif not scripts:
        assert program == "deepspeed", command  # the launcher's own flags
        return
    for script in scripts:
        path = next(p for folder in FOLDERS if (p := folder / script).exists())
        launched = path.name
        if path.suffix == ".sh":
            launched = next(iter(re.findall(r"^launch (\w+\.py)", path.read_text(), re.M)), "")
        if launched in PARSERS:
            parser = PARSERS[launched]()
            known = flags_of(parser) | (known if program == "seal" else set())
        else:
            known = set(re.findall(r"--\w+", path.read_text()))
    assert given <= known, f"{command}: {sorted(given - known)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_in_the_documents_is_known(page):
    for command in commands(page):
        check_command(command)


def test_unknown_commands_are_found():
    for command in ("seal show --tops 3", "python train_sft.py --topq 1", "bash gone.sh"):
        with pytest.raises((AssertionError, StopIteration)):
            check_command(command)


# --- the site ---


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in ("index", "results/index", "reference/index"):
        assert (tmp_path / f"{page}.html").stat().st_size > 10_000
    loads = r'<(?:script|link|img|iframe)[^>]+(?:src|href)="?((?:https?:)?//[^">\s]+)'
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) >= 13
    assert not [found for page in pages for found in re.findall(loads, page.read_text())]
    assert "fonts.g" not in "".join(page.read_text() for page in pages)


def test_the_page_of_flags_is_what_the_parsers_say():
    sys.path.append(str(ROOT / "docs"))
    from write_flags import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(), "run: python docs/write_flags.py"
