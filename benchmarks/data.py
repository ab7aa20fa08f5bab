"""Preparing rows: the published way against ours, and ours the second time.

    python benchmarks/data.py --rows 100000 --repeats 3 --out benchmarks/results/data.json

Published: a Python loop that tokenises each row's prompt once at the start, to count it
(prompts_s), and each row's text at every access (epoch_s for one epoch; the published runs take
three). Ours: reading, identities, masks and tokens of all rows, by several processes, into a cache,
once for all epochs. `again` is the second start, in a fresh process, which reads the cache. `ratio`
is for EPOCHS epochs, `ratio_one_epoch` for one. The last line is JSON, with every run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from step_measure import load_average
from step_world import TEMPLATE, pairs, synthetic_rows, train_tokenizer
from transformers import AutoTokenizer

from seal.datasets import load_rows, tokenize_rows
from seal.provenance import commit, versions

MAX_LEN, EPOCHS = 512, 3


def main() -> None:
    """Measures the three, or (as a child) one start of ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="rows (default 100000)")
    parser.add_argument("--repeats", type=int, default=1, help="runs, each afresh (default 1)")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--start", type=Path, help="only prepare this folder's rows, once")
    args = parser.parse_args()
    if args.start:
        print(json.dumps(prepare(args.start)))
        return
    load = load_average()
    runs = [compare(args.rows) for _ in range(args.repeats)]
    record = {"command": " ".join(sys.argv), "commit": commit(), "versions": versions()}
    record |= {"processors": os.cpu_count(), "load": [load, load_average()], "runs": runs}
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


def compare(count: int) -> dict:
    """Seconds of the published way, of ours and of our second start, over new rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_rows(folder, count)
        prompts, epoch = published(folder)
        result = {"rows": count, "prompts_s": round(prompts, 1), "epoch_s": round(epoch, 1)}
        for start in ("ours_s", "again_s"):
            result[start] = child(folder)["seconds"]
    result["ratio"] = round((prompts + EPOCHS * epoch) / result["ours_s"], 2)
    result["ratio_one_epoch"] = round((prompts + epoch) / result["ours_s"], 2)
    return result


def make_rows(folder: Path, count: int) -> None:
    """Rows of the real rows' lengths, all different, and a tokenizer trained on them."""
    texts = list(pairs(synthetic_rows(folder, "mix")))
    train_tokenizer(text for pair in texts for text in pair).save_pretrained(folder / "tokenizer")
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as out:
        for number in range(count):
            prompt, response = texts[number % len(texts)]
            print(json.dumps({"prompt": f"{number} {prompt}", "response": response}), file=out)


def published(folder: Path) -> tuple[float, float]:
    """Seconds of counting the prompts, and of one epoch's tokenisation, row by row."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    settings = {"max_length": MAX_LEN, "truncation": True, "return_tensors": "pt"}
    start = time.perf_counter()
    rows = [json.loads(line) for line in open(folder / "rows.jsonl", encoding="utf-8")]
    for row in rows:
        tokenizer(TEMPLATE.format(row["prompt"]), **settings)
    middle = time.perf_counter()
    for row in rows:
        text = f"{TEMPLATE.format(row['prompt'])}{row['response']} {tokenizer.eos_token}"
        tokenizer(text, **settings)
    return middle - start, time.perf_counter() - middle


def prepare(folder: Path) -> dict:
    """Seconds of one start of ours, imports left out."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    start = time.perf_counter()
    rows = tokenize_rows(load_rows(str(folder / "rows.jsonl")), tokenizer, max_len=MAX_LEN)
    assert rows.raw == len(rows) + sum(rows.skipped.values())
    return {"seconds": round(time.perf_counter() - start, 2)}


def child(folder: Path) -> dict:
    """`prepare` in a fresh process, with a cache of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--start", str(folder)],
        env=os.environ | {"HF_DATASETS_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
