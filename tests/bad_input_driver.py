"""Calls the entry scripts with bad input, one case after another, in one process group.

    deepspeed --num_gpus 2 bad_input_driver.py CASES.json OUT

A case is {"name", "script": "selector" | "sft", "words": [...]}. It runs inside the empty folder
OUT/<name>/, where every default output would land. OUT/<name>.<rank>.json tells how it ended.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from seal.cli import flags as cli
from seal.cli import train_sft, train_sft_selector
from seal.errors import InputError, NonFiniteLoss
from seal.utils import entry

SCRIPTS = {
    "selector": (cli.selector_parser, train_sft_selector.train),
    "sft": (cli.sft_parser, train_sft.train),
}


def outcome(script: str, words: list[str]) -> dict:
    """What a run ended with: the exception's type and message."""
    parser, train = SCRIPTS[script]
    try:
        train(parser().parse_args(words))
    except (InputError, NonFiniteLoss) as error:
        return {"type": type(error).__name__, "message": str(error)}
    except Exception as error:  # a traceback for the user: the test says so
        return {"type": type(error).__name__, "message": repr(error)}
    return {"type": None, "message": "it ran"}


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
