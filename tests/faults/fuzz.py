"""Mutated files through the readers, in this process: taken, or refused in one line; nothing else.

python tests/faults/fuzz.py ROUNDS [SEED]    ROUNDS artefacts and as many data files
"""

import csv
import gzip
import io
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from seal.datasets import load_rows
from seal.errors import InputError
from seal.selection.artefact import read_selection, selection_meta, write_selection
from seal.selection.load import load_selection

SWEEP = 500  # rounds between two clean-ups of the cache
STRANGE = [None, True, -1, 2**70, 1e308, "", "\x00", "\ud800", "é" * 3000]
STRANGE += [[], {}, [[[]]], {"a": []}]
ROWS = [{"prompt": f"What is {n}?", "response": f"It is {n * n}."} for n in range(6)]
TURNS = [
    {"messages": [{"role": r, "content": f"{r} {n}"} for r in ("user", "assistant")]}
    for n in range(4)
]


def seeds(folder: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Sound artefacts and sound data files: name -> bytes."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    table, sheet = io.BytesIO(), io.StringIO()
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    writer = csv.DictWriter(sheet, ["prompt", "response"])
    writer.writeheader()
    writer.writerows(ROWS)
    data = {
        "rows.jsonl": lines,
        "turns.jsonl": "".join(json.dumps(row) + "\n" for row in TURNS).encode(),
        "rows.json": json.dumps(ROWS).encode(),
        "rows.csv": sheet.getvalue().encode(),
        "rows.parquet": table.getvalue(),
        "rows.jsonl.gz": gzip.compress(lines),
    }
    count = 20
    columns = {
        "id": [np.random.default_rng(n).bytes(16).hex() for n in range(count)],
        "occurrence": np.zeros(count, np.int32),
        "row": np.arange(count),
        "score": np.linspace(-1, 1, count),
    }
    meta = selection_meta(method="random", fingerprint="0", raw=count)
    write_selection(folder / "seed.parquet", columns, meta)
    torch.save(torch.linspace(-1, 1, count), folder / "seed.pt")
    artefacts = {name: (folder / name).read_bytes() for name in ("seed.parquet", "seed.pt")}
    return artefacts, data


def flip(content: bytes, rng: random.Random) -> bytes:
    """A few bits the other way round."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    """The beginning only."""
    return content[: rng.randrange(len(content))]


def splice(content: bytes, rng: random.Random) -> bytes:
    """Bytes from nowhere, or from elsewhere in the file, in the middle."""
    at, start = rng.randrange(len(content)), rng.randrange(len(content))
    piece = rng.choice([rng.randbytes(rng.randint(1, 64)), content[start : start + 64]])
    return content[:at] + piece + content[at + rng.choice([0, len(piece)]) :]


def retype(content: bytes, rng: random.Random) -> bytes:
    """A JSON value, or a whole record, replaced by one of another kind; else `splice`."""
    try:
        records = [json.loads(line) for line in content.decode().splitlines()]
    except ValueError:
        return splice(content, rng)
    holder = records
    while rng.random() < 0.8:
        inner = holder[_key(holder, rng)]
        if not isinstance(inner, list | dict) or not inner:
            break
        holder = inner
    holder[_key(holder, rng)] = rng.choice(STRANGE)
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _key(holder: list | dict, rng: random.Random):
    return rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))


MUTATIONS = (flip, cut, splice, retype)


def read_data(path: Path) -> None:
    """Every row of a data file."""
    load_rows(str(path))[:]


def read_artefact(path: Path) -> None:
    """A selector of either kind; a bare tensor goes as far as its logits."""
    if path.suffix == ".parquet":
        assert np.isfinite(read_selection(path).score).all()
    else:
        load_selection(str(path), rows=None, tokenizer=None, max_len=8, input_template="{}")


def survives(reader: Callable[[Path], None], path: Path, content: bytes) -> bool:
    """Whether a reader takes a file or refuses it in one line."""
    path.write_bytes(content)
    try:
        reader(path)
    except InputError as error:
        return "\n" not in str(error).strip()
    except Exception:
        traceback.print_exc()
        return False
    return True


def fuzz(rounds: int, seed: int = 0) -> tuple[int, int]:
    """Mutates `rounds` artefacts and as many data files.

    Returns:
        (files read, files that ended in anything but a result or an InputError).
    """
    rng, crashes = random.Random(seed), 0
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        kinds = list(zip((read_artefact, read_data), seeds(folder), strict=True))
        for number in range(rounds):
            for reader, sound in kinds:
                name = rng.choice(list(sound))
                content = rng.choice(MUTATIONS)(sound[name], rng)
                if not survives(reader, folder / f"{number}.{name}", content):
                    crashes += 1
                    print(f"round {number}, seed {seed}: {name}", file=sys.stderr)
                (folder / f"{number}.{name}").unlink()
            if number % SWEEP == SWEEP - 1:
                shutil.rmtree(folder / "cache", ignore_errors=True)
    return 2 * rounds, crashes


if __name__ == "__main__":
    print(json.dumps(dict(zip(("fuzzed", "crashes"), fuzz(*map(int, sys.argv[1:])), strict=True))))
