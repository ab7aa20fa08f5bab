"""What the evidence of a selector says of good ones and of noise.

    python benchmarks/evidence.py --pretrain MODEL --safe safe.jsonl --rows user.jsonl --work DIR \
        --flags "--apply_chat_template --lora_rank 16 --learning_rate 5e-4"

`relative_excess` is taken as asked, with the safe responses shuffled, and with four steps at 1e-5.
The last line is JSON: a record of each with reliability, moved and doubts.
"""

import argparse
import json
import random
import shlex
from pathlib import Path

from seal.cli import flags
from seal.cli.score_dataset import score
from seal.datasets import load_rows
from seal.selection.artefact import read_selection
from seal.selection.evidence import doubts


def shuffled(safe: str, into: Path) -> Path:
    """Writes the safe rows with their responses given to other prompts."""
    messages = [row["messages"] for row in load_rows(safe)]
    responses = [turns[-1] for turns in messages]
    random.Random(0).shuffle(responses)
    rows = [{"messages": [*turns[:-1], r]} for turns, r in zip(messages, responses, strict=True)]
    into.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return into


def main() -> None:
    """Scores in each way, prints a table and the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("pretrain", "safe", "rows"):
        parser.add_argument(f"--{name}", required=True, help="as of score_dataset.py")
    parser.add_argument("--work", type=Path, required=True, help="folder of the selectors")
    parser.add_argument("--flags", default="", help="more flags of score_dataset.py")
    parser.add_argument("--method", default="relative_excess", help="(default relative_excess)")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    noise = shuffled(args.safe, args.work / "shuffled.jsonl")
    few = max(1, len(load_rows(args.rows)) // 8)  # a fold of two in four steps
    ways = {
        "as asked": f"--dataset {args.safe}",
        "safe responses shuffled": f"--dataset {noise}",
        "four steps at 1e-5": f"--dataset {args.safe} --learning_rate 1e-5 "
        f"--micro_train_batch_size 1 --train_batch_size {few}",
    }
    records = []
    for way, words in ways.items():
        name = way.replace(" ", "_")
        common = f"--method {args.method} --pretrain {args.pretrain} --new_dataset {args.rows}"
        where = f"--selector_save_dir {args.work} --selector_name {name}"
        path = args.work / f"{name}.parquet"
        if not path.exists():
            words = shlex.split(f"{common} {args.flags} {where} {words}")
            score(flags.score_parser().parse_args(words))
        meta = read_selection(path).meta
        records.append({"way": way, **meta["evidence"], "doubts": doubts(meta)})
    print("| selector | reliability | warnings |\n|---|---|---|")
    for record in records:
        print(f"| {record['way']} | {record['reliability']:.2f} | {len(record['doubts'])} |")
    print(json.dumps(records))


if __name__ == "__main__":
    main()
