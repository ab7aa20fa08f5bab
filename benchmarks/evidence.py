"""What the evidence of a selector says of good ones and of noise.

    python -m seal.demo --out runs/world
    python benchmarks/evidence.py --world runs/world --work runs/evidence --name demo

Each method scores the rows as asked, with the safe responses shuffled, and with four steps at 1e-5.
Known-bad rows are the anchors of scores over states, the canaries of the others. The records of a
name replace those in benchmarks/results/evidence.json; evidence.md is written beside it. The last
line is JSON.
"""

import argparse
import json
import random
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

from seal.cli import flags
from seal.cli.score_dataset import score
from seal.cli.train_sft_selector import train
from seal.datasets import load_rows
from seal.provenance import commit, versions
from seal.selection.artefact import read_selection
from seal.selection.evidence import doubts
from seal.statistics import auroc, auroc_interval
from seal.trainer.scorers import ANCHORED

RESULTS = Path(__file__).parent / "results"
LOOPS = ("penalty", "penalty_gap")
METHODS = (*LOOPS, "relative_excess", "excess_loss", "safe_loss", "influence", *ANCHORED)
WAYS = ("as asked", "safe responses shuffled", "four steps at 1e-5")
MICRO = 8
DEMO = f"--max_len 128 --train_batch_size 32 --micro_train_batch_size {MICRO} "
DEMO += "--lr_scheduler constant "
DEMO += "--learning_rate 5e-4 --zero_stage 0 --apply_chat_template --overwrite"
COLUMNS = "world | method | selector | reliability | held-out AUROC | loss moved | warned | "
COLUMNS += "warned without canaries | AUROC"


def shuffled(safe: Path, into: Path) -> Path:
    """Writes the safe rows with their responses given to other prompts."""
    messages = [row["messages"] for row in load_rows(str(safe))]
    responses = [turns[-1] for turns in messages]
    random.Random(0).shuffle(responses)
    rows = [{"messages": [*turns[:-1], r]} for turns, r in zip(messages, responses, strict=True)]
    into.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return into


def ways(world: Path, work: Path, method: str) -> dict[str, str]:
    """What is scored with, by the name of the way."""
    safe, n_rows = world / "safe.jsonl", len(load_rows(str(world / "user.jsonl")))
    few = f"--dataset {safe} --learning_rate 1e-5 --train_batch_size "
    batch = n_rows // (4 if method in LOOPS else 8) // MICRO * MICRO  # half of the rows tune a fold
    few += f"{batch} --max_epochs 1" if method in LOOPS else f"{batch}"
    found = {
        WAYS[0]: f"--dataset {safe}",
        WAYS[1]: f"--dataset {shuffled(safe, work / 'shuffled.jsonl')}",
    }
    return found if method in ANCHORED else found | {WAYS[2]: few}


def run(world: Path, work: Path, method: str, words: str) -> Path:
    """Scores in one way; returns the artefact's path."""
    words += f" --pretrain {world / 'model'} --new_dataset {world / 'user.jsonl'}"
    canaries = world / "canaries.jsonl"
    if method in LOOPS:
        words += f" --selector_estimator {method} --canary_dataset {canaries}"
        train(flags.selector_parser().parse_args(shlex.split(words)))
        (path,) = work.glob("*_softmax.parquet")
        return path
    anchors = "unsafe_dataset" if method in ANCHORED else "canary_dataset"
    words += f" --method {method} --{anchors} {canaries}"
    return score(flags.score_parser().parse_args(shlex.split(words)))


def record_of(path: Path, world: Path) -> dict:
    """The evidence of an artefact, and the truth beside it."""
    selection = read_selection(path)
    truth = [row["provenance"] for row in map(json.loads, (world / "user.jsonl").open())]
    good = np.array(truth)[selection.row] != "unsafe"
    area = auroc(selection.score, good)
    calibration, evidence = selection.meta.get("calibration"), selection.meta["evidence"]
    return {
        "reliability": evidence["reliability"],
        "moved": evidence["moved"],
        "held_out": {
            key: (evidence.get("anchors") or calibration)[key]
            for key in ("auroc", "auroc_interval")
        },
        "doubts": doubts(selection.meta),
        "doubts_without_canaries": doubts({"evidence": evidence}),
        "auroc": area,
        "auroc_interval": auroc_interval(area, int(good.sum()), int((~good).sum())),
        "rows": len(good),
        "unsafe_rows": int((~good).sum()),
    }


def table(records: list[dict]) -> str:
    """One Markdown row a selector."""
    lines = [f"| {COLUMNS} |", "|---" * 9 + "|"]
    for r in records:
        worth = "" if r["reliability"] is None else f"{r['reliability']:.2f}"
        cells = [r["world"], f"`{r['method']}`", r["way"], worth, _area(r["held_out"])]
        cells.append("; ".join(_step(name, losses) for name, losses in r["moved"].items()))
        cells += ["yes" if r[key] else "no" for key in ("doubts", "doubts_without_canaries")]
        cells.append(_area(r))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _area(record: dict) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(record["auroc"], *record["auroc_interval"])


def _step(name: str, losses: dict) -> str:
    before, after = losses["rows" if name[:4] in ("fold", "rows", "drif") else "safe"]
    return f"{name} {before:.2f} to {after:.2f}"


def write(records: list[dict]) -> None:
    """The records and their table."""
    (RESULTS / "evidence.json").write_text(json.dumps(records, indent=1) + "\n")
    sources = {f"`{r['command']}`, commit {(r['commit'] or '')[:7]}" for r in records}
    head = "# The evidence of good selectors and of noise\n\n" + "\n\n".join(sorted(sources))
    head += "\n\nOne seed a line; intervals of an AUROC are over the rows."
    (RESULTS / "evidence.md").write_text(f"{head}\n\n{table(records)}\n")


def main() -> None:
    """Scores in each way, prints the records and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", type=Path, required=True, help="folder of seal.demo")
    parser.add_argument("--work", type=Path, required=True, help="folder of the selectors")
    parser.add_argument("--name", required=True, help="of the world, in the table")
    parser.add_argument("--flags", default=DEMO, help=f"of the scripts (default {DEMO!r})")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="(default all)")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="(default all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    told = RESULTS / "evidence.json"
    known = json.loads(told.read_text()) if told.exists() else []
    made = {"command": shlex.join(["python", "benchmarks/evidence.py", *sys.argv[1:]])}
    made |= {"commit": commit(), "versions": versions()}
    for method in args.methods:
        for way, words in ways(args.world, args.work, method).items():
            if way not in args.ways:
                continue
            folder = args.work / method / way.replace(" ", "_")
            found = list(folder.glob("*.parquet")) and next(iter(folder.glob("*[!0-9].parquet")))
            where = f"--selector_save_dir {folder} --selector_name it"
            path = found or run(args.world, folder, method, f"{args.flags} {where} {words}")
            head = {"world": args.name, "method": method, "way": way}
            new = head | record_of(path, args.world) | made
            known = [r for r in known if head != {key: r[key] for key in head}] + [new]
            print(f"{method}, {way}: {new['doubts']}", flush=True)
            write(known)
    print(json.dumps(known))


if __name__ == "__main__":
    main()
