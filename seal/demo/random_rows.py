"""python -m seal.demo.random_rows user.jsonl --seed 0 --out random.parquet

A selector that knows nothing: one uniform score a row. What any other has to beat.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from seal.datasets import load_rows
from seal.errors import InputError
from seal.selection.artefact import selection_meta, write_selection


def write_random(names: str, seed: int, out: Path) -> int:
    """Writes the artefact with seeded random scores for `names`; returns its number of rows."""
    rows = load_rows(names).with_format("numpy")
    columns = {
        "id": rows.with_format(None)["id"][:],
        "occurrence": rows["occurrence"][:],
        "row": rows["row"][:],
        "score": np.random.default_rng(seed).random(len(rows), dtype=np.float32),
    }
    meta = selection_meta(
        method="random",
        arguments={"names": names, "seed": seed},
        fingerprint=rows._fingerprint,
        raw=len(rows),
        skipped={},
        model=None,
        tokenizer=None,
        max_len=None,
        seed=seed,
    )
    write_selection(out, columns, meta)
    return len(rows)


def main() -> int:
    """Writes the file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("rows", help="files or hub names, comma-separated")
    parser.add_argument("--seed", type=int, default=0, help="of the scores (default 0)")
    parser.add_argument("--out", type=Path, required=True, help="the .parquet file to write")
    args = parser.parse_args()
    try:
        print(f"{write_random(args.rows, args.seed, args.out)} random scores in {args.out}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
