"""Preparing rows: the published way against ours, and ours the second time.

    python benchmarks/data.py --rows 100000 --repeats 3 --out benchmarks/results/data.json

Published: a Python loop that tokenises each row's prompt once at the start, to count it
(prompts_s), and each row's text at every access (epoch_s for one epoch; the published runs take
three). Ours: reading, identities, masks and tokens of all rows, by several processes, into a cache,
once for all epochs. `again` is the second start, in a fresh process, which reads the cache. `ratio`
is for EPOCHS epochs, `ratio_one_epoch` for one. The last line is JSON, with every run.

    python benchmarks/data.py --ids 100000000 --ranks 8 --out benchmarks/results/ids.json

Memory of the ids of so many rows: every process maps them from disk and reads them all at once.
`memory_GB` is what the processes hold together, each shared page counted once (PSS).
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from step_measure import load_average
from step_world import TEMPLATE, pairs, synthetic_rows, train_tokenizer
from transformers import AutoTokenizer

from seal.datasets import load_rows, tokenize_rows
from seal.datasets.cache import mapped_table
from seal.datasets.sft_dataset import mapped_columns
from seal.provenance import commit, versions

MAX_LEN, EPOCHS = 512, 3


def main() -> None:
    """Measures the three, or (as a child) one start of ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="rows (default 100000)")
    parser.add_argument("--repeats", type=int, default=1, help="runs, each afresh (default 1)")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--ids", type=int, help="instead: memory of the ids of so many rows")
    parser.add_argument("--ranks", type=int, default=8, help="processes that read ids (default 8)")
    parser.add_argument("--start", type=Path, help="only prepare this folder's rows, once")
    args = parser.parse_args()
    if args.start:
        print(json.dumps(prepare(args.start)))
        return
    load = load_average()
    if args.ids:
        runs = [ids_of_ranks(args.ids, args.ranks)]
    else:
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


def ids_of_ranks(count: int, ranks: int) -> dict:
    """Memory of the ids of `count` rows in `ranks` processes that have all read them."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        datasets.config.HF_DATASETS_CACHE = folder
        mapped_table("ids", lambda: pa.table({"id": random_ids(count)}))
        spawn = multiprocessing.get_context("spawn")
        together, found = spawn.Barrier(ranks), spawn.Queue()
        start = time.perf_counter()
        given = (folder, together, found)
        readers = [spawn.Process(target=read_ids, args=given) for _ in range(ranks)]
        for reader in readers:
            reader.start()
        memory = [found.get() for _ in readers]
        for reader in readers:
            reader.join()
    return {
        "rows": count,
        "ranks": ranks,
        "seconds": round(time.perf_counter() - start, 1),
        "memory_GB": round(sum(memory) / 1e9, 2),
    }


def random_ids(count: int) -> pa.Array:
    """Ids in one chunk, as `tokenize_rows` keeps them."""
    values = np.random.default_rng(0).integers(0, 256, 16 * count, np.uint8)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(values)])


def read_ids(folder: str, together, found) -> None:
    """Reads all ids, and tells how many bytes of memory that took while every process has them."""
    datasets.config.HF_DATASETS_CACHE = folder
    before = own_memory()
    ids = mapped_columns(mapped_table("ids", None))["id"]
    assert ids.view(np.uint64).max() > 0
    together.wait()
    found.put(own_memory() - before)
    together.wait()


def own_memory() -> int:
    """Bytes of this process, of a page that several share its part (Linux)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


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
