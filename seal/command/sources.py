"""Rows in the shape they had in their source; JSON lines are copied byte by byte."""

import array
import codecs
import datetime
import gzip
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pyarrow.compute as pc

from seal.errors import InputError

if TYPE_CHECKING:
    import datasets

_BATCH = 1000  # rows held as Python objects at a time


def source_lines(rows: "datasets.Dataset", indices: np.ndarray) -> Iterator[bytes]:
    """One line for each of `rows[indices]`, with all columns of its source.

    Args:
        rows: as `seal.datasets.load_rows` gives them; only `origin` and `origin_row` are used.
        indices: int64 [K], in the order of the output.

    Yields:
        the source's own bytes where the source is JSON lines, otherwise the record as JSON; each
        ends in one newline.
    """
    table = rows.select_columns(["origin", "origin_row"]).with_format("arrow")[:]
    origins = pc.dictionary_encode(table["origin"].combine_chunks())
    codes = origins.indices.to_numpy()[indices]
    numbers = table["origin_row"].to_numpy()[indices]
    lines = [
        _lines_of(name, numbers[codes == code])
        for code, name in enumerate(origins.dictionary.to_pylist())
    ]
    for code in codes.tolist():
        yield next(lines[code])


def _lines_of(name: str, numbers: np.ndarray) -> Iterator[bytes]:
    from seal.datasets import read_raw

    raw = read_raw(name)
    if _is_json_lines(Path(name)):
        with _plain_file(Path(name)) as file:
            yield from _copied_lines(name, file, numbers, len(raw))
    else:
        for batch in raw.select(numbers).iter(_BATCH):
            for values in zip(*batch.values(), strict=True):
                record = dict(zip(batch, values, strict=True))
                yield json.dumps(record, ensure_ascii=False, default=_to_json).encode() + b"\n"


def _is_json_lines(path: Path) -> bool:
    kind = path.name.removesuffix(".gz").lower()
    if not path.is_file() or not kind.endswith((".jsonl", ".json")):
        return False
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        first = next((line for line in file if line.strip()), b"")
    return kind.endswith(".jsonl") or first.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{"


def _plain_file(path: Path) -> BinaryIO:
    """The file open for random access, unpacked to a temporary one when it is gzipped."""
    if path.suffix != ".gz":
        return open(path, "rb")
    plain = tempfile.TemporaryFile()
    with gzip.open(path) as packed:
        shutil.copyfileobj(packed, plain, 1 << 20)
    return plain


def _copied_lines(name: str, file: BinaryIO, numbers: np.ndarray, n_rows: int) -> Iterator[bytes]:
    starts, position = array.array("q"), 0
    file.seek(0)
    for line in file:
        if not line.isspace():
            starts.append(position)
        position += len(line)
    if len(starts) != n_rows:
        raise InputError(f"{name}: {len(starts)} lines for {n_rows} rows, cannot copy lines")
    for number in numbers.tolist():
        file.seek(starts[number])
        line = file.readline()
        line = line.removeprefix(codecs.BOM_UTF8) if starts[number] == 0 else line
        yield line if line.endswith(b"\n") else line + b"\n"


def _to_json(value: object) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise InputError(f"a {type(value).__name__} has no JSON form; use --format messages")
