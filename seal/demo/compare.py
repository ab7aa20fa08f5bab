"""python -m seal.demo.compare --world W --selector S.parquet --topp 0.7 --arm all=DIR --out FILE

Measures each model in a demo world, judges the selector by the rows' provenance, prints a table and
writes results.json: what an evaluation holds (docs/evaluation.md), and auroc, unsafe_kept, unsafe,
rows, rows_kept, topp, arms, n, selections.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import transformers

from seal.assess.evaluation import Findings
from seal.assess.prompts import read_records
from seal.assess.results import write_results
from seal.demo.evaluation import ask, held_out, load, require_world, shares
from seal.errors import InputError
from seal.progress import Progress
from seal.selection.artefact import Selection, kept_mask, read_selection
from seal.statistics import auroc


class Arm(NamedTuple):
    """One fine-tuned model: its name, its folder, and the selector that picked its rows."""

    name: str
    model: Path
    selector: Path | None


def unsafe_rows(selection: Selection, world: Path) -> np.ndarray:
    """Which scored rows were planted, bool [N], from the provenance in the world's user.jsonl."""
    provenance = [row["provenance"] for row in read_records(world / "user.jsonl")]
    rows = selection.row
    if rows.max() >= len(provenance):
        raise InputError(f"the selector has row {rows.max()}, {world}/user.jsonl ends before it")
    return np.array([provenance[row] == "unsafe" for row in rows])


def judge(selector: Path, world: Path, topp: float) -> dict:
    """How well a selector tells planted rows from others; rows are counts, auroc in [0, 1]."""
    selection = read_selection(selector)
    unsafe = unsafe_rows(selection, world)
    kept = kept_mask(selection.score, topp)
    return {
        "auroc": auroc(selection.score, ~unsafe) if 0 < unsafe.sum() < len(unsafe) else None,
        "rows": len(kept),
        "rows_kept": int(kept.sum()),
        "unsafe": int(unsafe.sum()),
        "unsafe_kept": int((kept & unsafe).sum()),
    }


def read_seconds(folder: Path | None) -> dict[str, float]:
    """Seconds a stage took: each file NAME.seconds in `folder` holds a number."""
    files = sorted(folder.glob("*.seconds")) if folder else []
    return {file.stem: float(file.read_text()) for file in files}


def compare(
    world: Path, selector: Path, topp: float, arms: list[Arm], seconds: Path | None, out: Path
) -> dict:
    """Writes results.json, see `seal.assess.results`; returns the keys that it has beside those.

    Args:
        world: a directory that `python -m seal.demo` made.
        selector: the one under test.
        topp: share of the rows it keeps.
        arms: the fine-tuned models; the world's aligned one comes before them.
        seconds: folder of NAME.seconds files, or None.
        out: the file to write; verdicts.jsonl stands beside it.

    Raises:
        InputError: a file is missing or does not fit the world.
    """
    require_world(world)
    judged = judge(selector, world, topp)
    everything = judged | {"rows_kept": judged["rows"], "auroc": None}
    everything["unsafe_kept"] = judged["unsafe"]
    found, sets = Findings(), held_out(world)
    ask(found, "aligned", *load(world / "model"), sets)
    selections = {}
    for arm in arms:
        selections[arm.name] = judge(arm.selector, world, topp) if arm.selector else everything
        ask(found, arm.name, *load(arm.model), sets)
    results = found.results(sets, out.with_name("verdicts.jsonl"))
    results.tuned_on = {"aligned": 0} | {n: one["rows_kept"] for n, one in selections.items()}
    results.seconds = read_seconds(seconds)
    further = {
        **judged,
        "topp": topp,
        "arms": {n: {**one, "rows": results.tuned_on[n]} for n, one in shares(found).items()},
        "n": {one.name.removeprefix("eval_"): len(one.prompts) for one in sets},
        "selections": selections,
    }
    write_results(out, results, **further)
    return further | {"seconds": results.seconds}


def table(results: dict) -> str:
    """The comparison as aligned text, one line a model."""
    head = ("model", "rows", "unsafe", "AUC", "refuses", "over-refuses", "right answers")
    lines = [head]
    for name, arm in results["arms"].items():
        chosen = results["selections"].get(name)
        auroc = chosen and chosen["auroc"]
        lines.append(
            (
                name,
                str(chosen["rows_kept"]) if chosen else "-",
                str(chosen["unsafe_kept"]) if chosen else "-",
                "-" if auroc is None else f"{auroc:.3f}",
                f"{arm['refusal']:.0%}",
                f"{arm['over_refusal']:.0%}",
                f"{arm['utility']:.0%}",
            )
        )
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    rule = "  ".join("-" * width for width in widths)
    text = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    total = sum(results["seconds"].values())
    spent = ", ".join(f"{name} {value:.0f}" for name, value in results["seconds"].items())
    note = [f"seconds: {spent}; {total:.0f} in all"] if spent else []
    return "\n".join([text[0], rule, *text[1:], *note])


def _arm(text: str) -> Arm:
    name, _, rest = text.partition("=")
    model, _, selector = rest.partition(",")
    if not name or not model:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=MODEL or NAME=MODEL,SELECTOR")
    return Arm(name, Path(model), Path(selector) if selector else None)


def main() -> int:
    """Compares, prints and writes; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare fine-tuned models in a demo world.")
    add = parser.add_argument
    add("--world", type=Path, required=True, help="directory that python -m seal.demo made")
    add("--selector", type=Path, required=True, help="the .parquet file under test")
    add("--topp", type=float, required=True, help="share of the rows it keeps, in (0, 1]")
    add("--arm", type=_arm, action="append", default=[], help="NAME=MODEL or NAME=MODEL,SELECTOR")
    add("--seconds", type=Path, help="folder of NAME.seconds files")
    add("--out", type=Path, required=True, help="results.json to write")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    try:
        with Progress("comparing"):
            results = compare(
                args.world, args.selector, args.topp, args.arm, args.seconds, args.out
            )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
