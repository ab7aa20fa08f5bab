"""Calls the entry scripts with bad input, one case after another, in one process group.

    deepspeed --num_gpus 2 bad_input_driver.py CASES.json OUT

A case is {"name", "script": one of SCRIPTS or "command", "words": [...]}. It runs inside the empty
folder OUT/<name>/, where every default output would land. OUT/<name>.<rank>.json tells how it
ended.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from seal.cli import flags as cli
from seal.cli import score_dataset, train_sft, train_sft_selector
from seal.command import main as command
from seal.errors import InputError, NonFiniteLoss
from seal.utils import entry

SCRIPTS = {
    "selector": (cli.selector_parser, train_sft_selector.train),
    "sft": (cli.sft_parser, train_sft.train),
    "score": (cli.score_parser, score_dataset.score),
}


def outcome(script: str, words: list[str]) -> dict:
    """What a run ended with: the exception's type and message."""
    try:
        if script == "command":
            run_command(words)
        else:
            parser, train = SCRIPTS[script]
            train(parser().parse_args(words))
    except (InputError, NonFiniteLoss) as error:
        return {"type": type(error).__name__, "message": str(error)}
    except Exception as error:  # a traceback for the user: the test says so
        return {"type": type(error).__name__, "message": repr(error)}
    return {"type": None, "message": "it ran"}


def run_command(words: list[str]) -> None:
    """Runs `seal` on some words; its line and status 2 become an InputError."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            status = command(words)
        except SystemExit as left:
            status = left.code
    lines = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    if status == 2 and len(lines) == 1:
        raise InputError(lines[0].removeprefix("error: "))


def main() -> None:
    """Runs the cases of a file."""
    cases, out = (Path(word) for word in sys.argv[-2:])
    for case in json.loads(cases.read_text()):
        folder = out / case["name"]
        folder.mkdir(exist_ok=True)
        os.chdir(folder)
        result = outcome(case["script"], case["words"])
        result["written"] = sorted(path.name for path in folder.rglob("*"))
        rank = os.environ.get("RANK", "0")
        (out / f"{case['name']}.{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    entry.run(main)
