"""Time and memory of `seal export`: JSON lines read for the first time, and read again.

    python benchmarks/export.py --rows 1000000

The last line of the output is JSON: n, format, for the first and the second run wall and CPU
seconds and the largest process's peak RSS in MB, the size of the data in MB, load, cores, commit.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from seal.datasets.identity import row_id
from seal.provenance import commit
from seal.selection.artefact import selection_meta, write_selection

WORDS = "river lamp stone garden window letter bridge cloud table harbour finds paints".split()


def make_data(folder: Path, n: int) -> None:
    """user.jsonl, n rows of about 400 characters, and its selector."""
    draw, ids = random.Random(0), []
    with open(folder / "user.jsonl", "w", encoding="utf-8") as file:
        for number in range(n):
            prompt = f"{number}: " + " ".join(draw.choices(WORDS, k=15))
            response = " ".join(draw.choices(WORDS, k=40))
            file.write(json.dumps({"prompt": prompt, "response": response, "n": number}) + "\n")
            turns = zip(("user", "assistant"), (prompt, response), strict=True)
            ids.append(row_id([{"role": role, "content": text} for role, text in turns]))
    columns = {"id": ids, "occurrence": np.zeros(n, np.int32), "row": np.arange(n)}
    columns["score"] = np.random.default_rng(0).standard_normal(n)
    meta = selection_meta(method="random", fingerprint="benchmark", raw=n)
    write_selection(folder / "mine.parquet", columns, meta)


def measure(folder: Path, form: str) -> dict:
    """One `seal export` as a process of its own."""
    command = [sys.executable, "-m", "seal", "export", "mine.parquet", "--dataset", "user.jsonl"]
    command += ["--topp", "0.8", "--format", form, "--out", "kept", "--overwrite", "--json"]
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as run:
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    assert run.returncode == 0
    return {
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_rss_mb": round(usage.ru_maxrss / 1e3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the dataset")
    parser.add_argument("--format", default="jsonl", help="as of seal export (default jsonl)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, args.rows)
        first, second = (measure(folder, args.format) for _ in range(2))
        size = (folder / "user.jsonl").stat().st_size / 1e6
    result = {"n": args.rows, "format": args.format, "first": first, "second": second}
    result |= {"data_mb": round(size), "load": round(os.getloadavg()[0], 1)}
    print(json.dumps(result | {"cores": os.cpu_count(), "commit": commit()}))


if __name__ == "__main__":
    main()
