"""Who may import whom: walked over the source, and seen in a fresh interpreter."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "seal").rglob("*.py")) + sorted((ROOT / "examples").glob("*.py"))
EVERYBODY_S = {"seal", "errors", "files", "ids", "progress", "provenance", "statistics"}
# part -> the parts it may import; entry points (examples, command, demo) may import any.
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "ids": set(),
    "progress": set(),
    "provenance": set(),
    "models": set(),
    "datasets": set(),
    "utils": set(),
    "trainer": {"models", "datasets", "utils", "selection"},
    "selection": {"models", "datasets"},
    "statistics": set(),
    "assess": {"models", "datasets", "selection"},
    "report": {"models", "datasets", "selection", "assess"},
}
DISTRIBUTED = ("deepspeed", "torch.distributed")
STRATEGY = "seal/utils/strategy.py"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part(module: str) -> str:
    """seal.models.loss -> models; seal -> seal."""
    words = module.split(".")
    return words[1] if len(words) > 1 else words[0]


def own_part(path: Path) -> str:
    words = path.relative_to(ROOT).with_suffix("").parts
    return words[1] if words[0] == "seal" and words[1] != "__init__" else words[0]


def imported(path: Path) -> Iterator[str]:
    """Modules a file imports when it runs, anywhere in it; names for type checkers left out."""
    yield from _imported(ast.parse(path.read_text()))


def _imported(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from _imported(child)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_direction_of_imports(path):
    own = own_part(path)
    if own not in MAY_IMPORT:
        return
    allowed = MAY_IMPORT[own] | EVERYBODY_S | {own}
    modules = [module for module in imported(path) if module.split(".")[0] == "seal"]
    wrong = [m for m in modules if part(m) not in allowed and (ROOT / "seal" / part(m)).exists()]
    assert not wrong
    assert not [m for m in imported(path) if m.split(".")[0] == "examples"]


def test_every_part_has_its_rule():
    parts = {own_part(path) for path in SOURCES}
    assert set(MAY_IMPORT) <= parts
    assert parts - set(MAY_IMPORT) <= {"seal", "examples", "command", "demo", "__main__", "cli"}


def test_strategy_alone_imports_deepspeed_and_torch_distributed():
    importers = {
        name_of(path)
        for path in SOURCES
        if any(m == d or m.startswith(f"{d}.") for m in imported(path) for d in DISTRIBUTED)
    }
    assert importers == {STRATEGY}


def test_arguments_stay_in_the_entry_scripts():
    """`args` never leaves examples/ and cli/flags.py (commands parse their own)."""
    parts = ("trainer", "selection", "models", "datasets", "utils")
    holders = [
        name_of(path)
        for path in SOURCES
        if own_part(path) in parts and path.name != "__main__.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name | ast.arg)
        and (node.arg if isinstance(node, ast.arg) else node.id) == "args"
    ]
    assert not holders


def printed(code: str) -> str:
    """What a fresh interpreter prints."""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_reading_rows_loads_neither_torch_nor_transformers():
    code = (
        "import sys, seal.command.export, seal.selection.rows\n"
        "from seal.datasets import load_rows, read_raw, row_id\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    assert printed(code) == "[]"


def test_light_modules_load_nothing_heavy():
    code = (
        "import sys, seal.models.loss, seal.selection.artefact, seal.command\n"
        "heavy = {'deepspeed', 'wandb', 'flash_attn', 'tensorboard', 'openai'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    assert printed(code) == "[]"
