"""Time and memory of the selection artefact: write, read, join with a shuffled dataset, top-p.

    python benchmarks/artefact.py --rows 1000000 10000000 --out benchmarks/results/artefact.json

Each size runs in its own process; the last line of the output is JSON: n, wall seconds a phase,
CPU seconds of all of them, load of the machine, peak RSS in MB (the dataset's own ids included),
file size in MB, cores, commit.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from seal.provenance import commit, versions
from seal.selection.artefact import read_selection, select_rows, selection_meta, write_selection

_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def random_ids(n: int, rng: np.random.Generator) -> pa.StringArray:
    """n ids of 32 random hex digits, as one pyarrow array."""
    digest = rng.integers(0, 256, (n, 16), dtype=np.uint8)
    text = np.empty((n, 32), np.uint8)
    text[:, 0::2], text[:, 1::2] = _HEX[digest >> 4], _HEX[digest & 15]
    offsets = np.arange(0, 32 * n + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text))


def measure(n: int) -> dict:
    """Runs every phase once on n rows, in this process."""
    rng = np.random.default_rng(0)
    ids, occurrence = random_ids(n, rng), np.zeros(n, np.int32)
    columns = {"id": ids, "occurrence": occurrence, "row": np.arange(n)}
    columns["score"] = rng.standard_normal(n, np.float32)
    columns |= {"logit": columns["score"], "weight": np.exp(columns["score"])}
    columns |= {"visits": np.ones(n, np.int32), "loss": np.abs(columns["score"])}
    meta = selection_meta(method="random", fingerprint="benchmark", raw=n)
    seconds, cpu = {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "selector.parquet"
        start, cpu_start = time.perf_counter(), time.process_time()
        write_selection(path, columns, meta)
        seconds["write"] = time.perf_counter() - start
        cpu += time.process_time() - cpu_start
        size = path.stat().st_size / 1e6
        shuffled = ids.take(pa.array(rng.permutation(n)))
        del columns, ids
        start, cpu_start = time.perf_counter(), time.process_time()
        selection = read_selection(path)
        seconds["read"] = time.perf_counter() - start
        start = time.perf_counter()
        selected = select_rows(shuffled, occurrence, selection, 0.8)
        seconds["join and top-p"] = time.perf_counter() - start
        cpu += time.process_time() - cpu_start
    assert len(selected.indices) == round(0.8 * n)
    seconds["total"] = sum(seconds.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {
        "n": n,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "cpu_seconds": round(cpu, 2),
        "load": round(os.getloadavg()[0], 1),
        "peak_rss_mb": round(peak),
        "file_mb": round(size, 1),
        "cores": os.cpu_count(),
        "commit": commit(),
    }


def main() -> None:
    """Measures each size in a child, or (as a child) one size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="rows to measure")
    parser.add_argument("--out", type=Path, help="JSON file: the results with command and versions")
    args = parser.parse_args()
    if len(args.rows) == 1 and not args.out:
        print(json.dumps(measure(args.rows[0])))
        return
    results = []
    for n in args.rows:
        command = [sys.executable, __file__, "--rows", str(n)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    if args.out:
        record = {"command": " ".join(sys.argv), "versions": versions(), "results": results}
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
