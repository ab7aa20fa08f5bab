"""Write docs/flags.md: one table of every flag of the scripts, made from their parsers.

python docs/write_flags.py
"""

import argparse
import re
from pathlib import Path

from seal.cli import batch_inference, evaluate, flags

PAGE = Path(__file__).parent / "flags.md"
SCRIPTS = {
    "T": ("train_sft_selector.py", flags.selector_parser),
    "S": ("score_dataset.py", flags.score_parser),
    "F": ("train_sft.py", flags.sft_parser),
    "B": ("batch_inference.py", batch_inference.parser),
    "E": ("evaluate.py", evaluate.parser),
}


def page() -> str:
    """The page: which letter stands for which script, then a row a flag."""
    found: dict[str, tuple[argparse.Action, list[str]]] = {}
    for letter, (_, parser) in SCRIPTS.items():
        for action in parser()._actions:
            name = action.option_strings[-1]
            if name not in ("--help", "--local_rank"):
                found.setdefault(name, (action, []))[1].append(letter)
    letters = ", ".join(f"**{letter}** `{name}`" for letter, (name, _) in SCRIPTS.items())
    rows = [row(name, action, "".join(of)) for name, (action, of) in sorted(found.items())]
    head = f"# Every flag\n\n{letters}. Made by `python docs/write_flags.py`.\n\n"
    lines = ["| flag | of | default | meaning |", "|---|---|---|---|", *rows]
    return head + "\n".join(lines) + "\n"


def row(name: str, action: argparse.Action, where: str) -> str:
    """One flag; the default is the one its help names, else the parser's."""
    named = re.search(r" ?\(default (.*)\)$", action.help)
    text = action.help[: named.start()] if named else action.help
    default = "" if action.default in (None, False, [], "") else str(action.default)
    default = "required" if action.required else named[1] if named else default
    cells = (f"`{name}`", where, default.replace("\n", "\\n"), text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
