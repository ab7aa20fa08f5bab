"""Time and memory of the selection artefact at any number of rows, the model pass left out.

    python benchmarks/artefact.py --rows 10000000 100000000 --out benchmarks/results/artefact.json

Phases, each in a process of its own: the artefact is written; read, joined with the shuffled
dataset and cut at topp 0.8; two shards are merged; eight ranks hold the dataset's ids. The last
line of the output is JSON. Needs about 150 bytes of disk a row in --folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from seal.command import main as command
from seal.files import atomic_path
from seal.provenance import commit, versions
from seal.selection.artefact import read_selection, select_rows, selection_meta, write_selection
from seal.trainer.order import shuffled

BLOCK, RANKS = 1 << 20, 8


def ids_of(rows: np.ndarray) -> np.ndarray:
    """V16 [R]: a hash of each row number, as mixed as a row's own id."""
    words = rows.astype(np.uint64)[:, None] + np.array([1, 2**63], np.uint64)
    for shift, odd in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        words = (words ^ words >> np.uint64(shift)) * np.uint64(odd)
    return words.view("V16").ravel()


def make_world(folder: Path, n: int) -> None:
    """Writes the columns of a scored dataset as plain arrays, its ids also in shuffled order."""
    for name, order in (("ids", lambda rows: rows), ("shuffled", lambda r: shuffled(r, n, 0, 0))):
        with open(folder / name, "wb") as file:
            for start in range(0, n, BLOCK):
                file.write(ids_of(order(np.arange(start, min(start + BLOCK, n)))).tobytes())
    with open(folder / "score", "wb") as file:
        for start in range(0, n, BLOCK):
            score = np.random.default_rng(start).standard_normal(min(BLOCK, n - start), np.float32)
            file.write(score.tobytes())


def mapped(folder: Path, name: str, dtype: str) -> np.ndarray:
    """One of the arrays of `make_world`, mapped from disk as a dataset's own are."""
    return np.memmap(folder / name, dtype, "r")


def write(folder: Path, n: int, path: str = "all.parquet", start: int = 0) -> None:
    """Writes rows start to n as an artefact of all columns."""
    part = slice(start, n)
    score = mapped(folder, "score", "f4")[part]
    columns = {"id": mapped(folder, "ids", "V16")[part], "row": np.arange(n - start)}
    columns |= {"occurrence": np.zeros(n - start, np.int32), "score": score, "logit": score}
    columns |= {"weight": np.exp(score), "loss": np.abs(score)}
    meta = selection_meta(method="perplexity", fingerprint=f"{start}", raw=n - start)
    write_selection(folder / path, columns, meta)


def write_halves(folder: Path, n: int) -> None:
    """Writes the same rows as two parts."""
    write(folder, n // 2, "half_1.parquet")
    write(folder, n, "half_2.parquet", n // 2)


def merge(folder: Path, n: int) -> None:
    """Joins the two parts, as `seal merge-scores` does."""
    halves = [str(folder / f"half_{number}.parquet") for number in (1, 2)]
    assert command(["merge-scores", *halves, "--out", str(folder / "merged.parquet")]) == 0
    for path in halves:
        os.remove(path)


def join(folder: Path, n: int) -> dict:
    """Reads the artefact, joins the shuffled dataset and cuts; seconds of each."""
    start = time.perf_counter()
    selection = read_selection(folder / "all.parquet")
    read = time.perf_counter()
    ids = mapped(folder, "shuffled", "V16")
    selected = select_rows(ids, np.zeros(n, np.int32), selection, 0.8)
    assert len(selected.indices) == round(0.8 * n) and selected.scored == n
    return {"read": read - start, "join and cut": time.perf_counter() - read}


def ranks(folder: Path, n: int) -> dict:
    """Eight processes that have all ids in use; the memory of the machine that they take in all."""
    code = (
        "import numpy as np, sys; ids = np.memmap(sys.argv[1], 'V16', 'r');"
        "ids.view('u8').sum(); print(flush=True); input()"
    )
    words = [sys.executable, "-c", code, str(folder / "ids")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    running = [subprocess.Popen(words, **pipes) for _ in range(RANKS)]
    for process in running:
        process.stdout.readline()
    shares = [proportional_mb(process.pid, str(folder / "ids")) for process in running]
    for process in running:
        process.communicate(b"\n")
    return {"ids on 8 ranks, MB": round(sum(shares))}


def proportional_mb(pid: int, name: str) -> float:
    """A process's proportional share of the memory of one mapped file, in MB."""
    maps = Path(f"/proc/{pid}/smaps").read_text().split("VmFlags")
    found = [part for part in maps if name in part]
    return sum(int(part.split("\nPss:")[1].split()[0]) for part in found) / 1e3


class Memory:
    """The most memory this process held, anonymous and in all, sampled ten times a second."""

    def __init__(self):
        self.peak = {"RssAnon": 0, "VmRSS": 0}
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            for line in lines:
                name, _, value = line.partition(":")
                if name in self.peak:
                    self.peak[name] = max(self.peak[name], int(value.split()[0]))
            time.sleep(0.1)


PHASES = {
    "write": write,
    "join": join,
    "ranks": ranks,
    "write_halves": write_halves,
    "merge": merge,
}


def measure(phase: str, folder: Path, n: int) -> dict:
    """Runs one phase in this process."""
    memory, start, cpu = Memory(), time.perf_counter(), time.process_time()
    parts = PHASES[phase](folder, n) or {}
    seconds = time.perf_counter() - start
    return {
        **{name: round(value, 1) for name, value in parts.items()},
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "anonymous_mb": round(memory.peak["RssAnon"] / 1e3),
        "with_mapped_files_mb": round(memory.peak["VmRSS"] / 1e3),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Measures each size in children, or (as a child) one phase of one size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="rows to measure")
    parser.add_argument("--folder", default="/tmp", help="where the files are written, and removed")
    parser.add_argument("--phase", choices=PHASES, help="one phase, in a folder made before")
    parser.add_argument("--out", type=Path, help="JSON file: the results with command and versions")
    args = parser.parse_args()
    if args.phase:
        print(json.dumps(measure(args.phase, Path(args.folder), args.rows[0])))
        return
    results = []
    for n in args.rows:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            make_world(Path(folder), n)
            found = {"n": n, "commit": commit(), "cores": os.cpu_count()}
            for phase in PHASES:
                words = ["--rows", str(n), "--folder", folder, "--phase", phase]
                words = [sys.executable, __file__, *words]
                done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
                found[phase] = json.loads(done.stdout.splitlines()[-1])
            found["file_mb"] = round((Path(folder) / "all.parquet").stat().st_size / 1e6)
        results.append(found)
        print(json.dumps(found), flush=True)
    if args.out:
        record = {"command": " ".join(sys.argv), "versions": versions(), "results": results}
        with atomic_path(args.out) as tmp:
            tmp.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
