"""The selection artefact: one Parquet file that holds a score for every scored row.

`docs/commands.md` and `ckpt/README.md` describe the format for a reader of the file. It is written,
checked, cut and joined in blocks: memory is about 20 bytes a line, the index of its ids.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seal.errors import InputError, known, said
from seal.files import atomic_path
from seal.ids import RowIndex, id_bytes, id_text
from seal.provenance import commit, versions
from seal.selection.format import FORMAT, REMEDY, SCHEMA, check_lines, check_meta, read_meta

UNSCORED = ("error", "drop", "keep")
BLOCK = 1 << 20  # lines held at a time


@dataclass(frozen=True)
class Selection:
    """A selector's lines in ascending `row`, checked; a column is read when it is asked for.

    Attributes:
        file: the columns of SCHEMA, N lines.
        meta: the file metadata under the key `seal`.
        index: finds lines by (id, occurrence).
        id: V16 [N], see `seal.ids`.
        occurrence: int32 [N], 0 for the first row with that id.
        row: int64 [N], position in the dataset that was scored, ascending.
        score: float32 [N], higher = keep.
        logit: float32 [N], the trained logit, NaN where the method has none.
        weight: float32 [N], mean one.
        visits: int32 [N], times the row was seen.
        loss: float32 [N], mean nats per response token seen, NaN where not measured.
    """

    file: pq.ParquetFile
    meta: dict
    index: RowIndex

    def __len__(self) -> int:
        return self.file.metadata.num_rows

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """One column in parts; a null of `logit` or `loss` (not measured) becomes NaN."""
        for batch in self.file.iter_batches(BLOCK, columns=[name]):
            values = batch[name]
            yield id_bytes(values) if name == "id" else values.to_numpy(zero_copy_only=False)

    def column(self, name: str) -> np.ndarray:
        """One column as numpy [N]."""
        return np.concatenate(list(self.blocks(name)))

    id = cached_property(lambda self: self.column("id"))
    occurrence = cached_property(lambda self: self.column("occurrence"))
    row = cached_property(lambda self: self.column("row"))
    score = cached_property(lambda self: self.column("score"))
    logit = cached_property(lambda self: self.column("logit"))
    weight = cached_property(lambda self: self.column("weight"))
    visits = cached_property(lambda self: self.column("visits"))
    loss = cached_property(lambda self: self.column("loss"))

    @property
    def table(self) -> pa.Table:
        """All columns of all lines."""
        return self.file.read(columns=SCHEMA.names).replace_schema_metadata(None)

    def lines(self, numbers: np.ndarray) -> list[dict]:
        """Some lines, int64 [R], each as column -> value."""
        found, start = {}, 0
        for batch in self.file.iter_batches(BLOCK, columns=SCHEMA.names):
            inside = numbers[(numbers >= start) & (numbers < start + len(batch))]
            found |= zip(inside.tolist(), batch.take(inside - start).to_pylist(), strict=True)
            start += len(batch)
        return [found[number] for number in numbers.tolist()]

    def kept(self, topp: float) -> np.ndarray:
        """bool [N]: the lines that `kept_mask` keeps, from scores read in blocks."""
        return _kept(lambda: self.blocks("score"), len(self), topp)


class Selected(NamedTuple):
    """What `select_rows` chose, and what it could not match."""

    mask: np.ndarray  # bool [M]: the selected dataset rows
    scored: int  # dataset rows that have a score
    unscored: int  # dataset rows that have none
    missing: int  # lines of the selector that are not in the dataset

    @property
    def indices(self) -> np.ndarray:
        """int64 [K]: the selected dataset rows, ascending."""
        return np.flatnonzero(self.mask)


def selection_meta(
    *,
    method: str,
    fingerprint: str,
    raw: int,
    arguments: Mapping | None = None,
    skipped: Mapping[str, int] | None = None,
    model: str | None = None,
    tokenizer: str | None = None,
    max_len: int | None = None,
    seed: int | None = None,
) -> dict:
    """The metadata of an artefact; `write_selection` adds format, scored count, versions, commit.

    Args:
        method: one of METHODS.
        fingerprint: of the dataset that was scored.
        raw: rows read, before any was skipped.
        arguments: every argument of the method, JSON values.
        skipped: reason -> rows that got no score for it.
        model, tokenizer, max_len (tokens), seed: for a method that has them. Of a local directory
            the name is kept: an artefact is shared.
    """
    dataset = {"fingerprint": fingerprint, "raw": int(raw), "skipped": dict(skipped or {})}
    return {
        "method": method,
        "arguments": dict(arguments or {}),
        "dataset": dataset,
        "model": _name(model),
        "tokenizer": _name(tokenizer),
        "max_len": max_len,
        "seed": seed,
    }


def _name(model: str | None) -> str | None:
    return Path(model).resolve().name if model and Path(model).exists() else model


def make_selection(columns: Mapping, meta: Mapping) -> Selection:
    """A selection in memory, checked; arguments as for `write_selection`."""
    sink = pa.BufferOutputStream()
    _write(sink, *_in_blocks(columns), meta)
    return _read(pa.BufferReader(sink.getvalue()))


def write_selection(path: str | os.PathLike, columns: Mapping, meta: Mapping) -> Selection:
    """Writes an artefact, whole or not at all.

    Args:
        path: the .parquet file.
        columns: name -> N values (list, numpy, CPU tensor, pyarrow; ids also as V16). `id`,
            `occurrence`, `row` and `score` are needed; `logit` and `loss` default to null (NaN is
            stored as null), `weight` to 1 and `visits` to 0. Lines are stored in ascending `row`,
            and weights divided by their mean.
        meta: as `selection_meta` makes it.

    Raises:
        InputError: `read_selection` would refuse the result.
    """
    return write_blocks(path, *_in_blocks(columns), meta)


def write_blocks(
    path: str | os.PathLike, n: int, blocks: Iterable[Mapping[str, np.ndarray]], meta: Mapping
) -> Selection:
    """Writes an artefact of n lines as `write_selection`; they come in parts, in order."""
    with atomic_path(path) as tmp:
        _write(tmp, n, blocks, meta)
        return _read(tmp)


def read_selection(path: str | os.PathLike) -> Selection:
    """Reads an artefact strictly: every line is checked once, in blocks.

    Raises:
        InputError: one line that says what is wrong: unreadable, a column or the metadata missing
            or of the wrong type, a format version this code does not know, scores that are not
            finite, negative rows, repeated (id, occurrence), bad ids, weights without mean one.
    """
    path = Path(path)
    if path.suffix == ".pt":
        raise InputError(f"{path} is a published selector: `seal convert` makes a .parquet of it")
    if path.is_dir():
        inside = ", ".join(sorted(found.name for found in path.glob("*.parquet"))) or "none"
        raise InputError(f"{path} is a folder; give a .parquet file (it holds: {inside:.200})")
    if not path.is_file():
        raise InputError(f"{path}: no such file; {REMEDY}")
    try:
        return _read(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise InputError(
            f"{path}: no selector: not a readable Parquet file ({said(error)}); {REMEDY}"
        ) from error


def _read(source) -> Selection:
    # without pre_buffer the compressed file is not held beside what is made of it
    file = pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)
    meta, n = read_meta(file.schema_arrow), file.metadata.num_rows
    check_meta(meta, n)
    index = check_lines(file.iter_batches(BLOCK, columns=SCHEMA.names), n)
    selection, repeated = Selection(file, meta, index), np.flatnonzero(index.copies())[:1]
    for line in selection.lines(repeated):
        raise InputError(
            f"line {repeated[0]} repeats id {line['id']} with occurrence {line['occurrence']}"
        )
    return selection


def _in_blocks(columns: Mapping) -> tuple[int, Iterator[dict[str, np.ndarray]]]:
    """How many lines the columns have, and the lines in ascending `row` and in parts."""
    columns = {
        name: id_bytes(values) if name == "id" else np.asarray(values)
        for name, values in columns.items()
    }
    for name in sorted({"id", "occurrence", "row", "score"} - columns.keys()):
        raise InputError(f"column {name!r} is missing; an artefact needs it")
    if unknown := sorted(columns.keys() - set(SCHEMA.names)):
        raise InputError(f"unknown columns {unknown}; an artefact has {SCHEMA.names}")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"columns differ in length: {lengths}")
    n, row = lengths["id"], columns["row"]
    order = None if np.all(row[1:] >= row[:-1]) else np.argsort(row, kind="stable")
    mean = columns["weight"].mean(dtype=np.float64) if "weight" in columns and n else 1.0

    def blocks() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, n, BLOCK):
            part = slice(start, start + BLOCK) if order is None else order[start : start + BLOCK]
            block = {name: values[part] for name, values in columns.items()}
            if "weight" in block and mean > 0:
                block["weight"] = block["weight"] / mean
            yield block

    return n, blocks()


def _write(sink, n: int, blocks: Iterable[Mapping[str, np.ndarray]], meta: Mapping) -> None:
    meta = {**meta, "format": FORMAT, "versions": versions(), "commit": commit()}
    meta["dataset"] = {**meta["dataset"], "scored": n}
    schema = SCHEMA.with_metadata({"seal": json.dumps(meta)})
    settings = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
    with pq.ParquetWriter(sink, schema, **settings) as writer:
        for block in blocks:
            arrays = [_to_arrow(field, block, len(block["id"])) for field in SCHEMA]
            writer.write_table(pa.table(arrays, schema=schema))


def _to_arrow(field: pa.Field, block: Mapping, size: int) -> pa.Array:
    """A column of `size` lines; one that is not given is null, or what stands for no weighting."""
    if field.name not in block:
        fill = {"weight": 1, "visits": 0}.get(field.name)
        return pa.repeat(pa.scalar(fill, field.type), size)
    values = block[field.name]
    if field.name == "id":
        return id_text(values).cast(field.type)
    if pa.types.is_floating(field.type):
        with np.errstate(over="ignore"):  # the check of finite values names what overflows
            values = values.astype(np.float32)
    try:
        return pa.array(values, field.type, from_pandas=field.nullable)
    except pa.ArrowInvalid as error:
        raise InputError(f"column {field.name!r} must be {field.type}: {error}") from error


def kept_mask(score: np.ndarray, topp: float) -> np.ndarray:
    """Marks the round(topp * N) highest scores; of equal scores the earlier rows are kept.

    Args:
        score: float [N], finite, in ascending row.
        topp: share to keep, in (0, 1]. The count is Python's round: halves go to even.

    Returns:
        bool [N].

    Raises:
        InputError: topp is out of range, or keeps nothing.
    """
    return _kept(lambda: [score], len(score), topp)


def _kept(blocks: Callable[[], Iterable[np.ndarray]], n: int, topp: float) -> np.ndarray:
    if not 0 < topp <= 1:
        raise InputError(f"topp must be in (0, 1], got {topp:g}; 0.8 keeps 80 %")
    count = round(topp * n)
    if count == 0:
        raise InputError(f"topp {topp:g} keeps none of {n} scored rows; raise it")
    bar, ties = _nth_highest(blocks, count)
    kept, start = np.empty(n, bool), 0
    for block in map(_sortable, blocks()):
        part = kept[start : start + len(block)]
        part[:] = block > bar
        tied = np.flatnonzero(block == bar)[:ties]
        part[tied] = True
        ties -= len(tied)
        start += len(block)
    return kept


def _nth_highest(blocks: Callable[[], Iterable[np.ndarray]], count: int) -> tuple[int, int]:
    """The count-th highest score, as `_sortable` writes it, and how many equal to it to keep.

    Its digits of 16 bits are found one after the other, by counting: exact, in a pass a digit.
    """
    bar, wanted = 0, count
    for shift in range(8 * next(iter(blocks())).itemsize, 0, -16):
        counts = np.zeros(1 << 16, np.int64)
        for block in map(_sortable, blocks()):
            like = block[block >> shift == bar]  # the first shift leaves 0 of every score
            counts += np.bincount((like >> (shift - 16)) & 0xFFFF, minlength=1 << 16)
        at_least = np.cumsum(counts[::-1])[::-1]
        digit = int(np.flatnonzero(at_least >= wanted)[-1])
        wanted -= int(at_least[digit] - counts[digit])
        bar = bar << 16 | digit
    return bar, wanted


def _sortable(score: np.ndarray) -> np.ndarray:
    """Unsigned integers in the order of float32 or float64 scores, equal where those are equal."""
    bits = (score + 0).view(f"u{score.itemsize}")  # -0.0 + 0 is 0.0
    sign = bits.dtype.type(1) << (8 * score.itemsize - 1)
    return np.where(bits & sign, ~bits, bits | sign)


def no_common_row(n: int, selection: Selection) -> InputError:
    """What to say where none of the n rows of a dataset has a score."""
    return InputError(
        f"none of the {n} dataset rows is among the selector's {len(selection)} rows; this is a "
        "selector for another dataset"
    )


def select_rows(
    ids, occurrences: np.ndarray, selection: Selection, topp: float, unscored: str = "error"
) -> Selected:
    """Picks the dataset rows that a selector keeps, whatever order they are in now.

    The kept set is decided on the selector's own lines; a dataset row is selected when its
    (id, occurrence) is in that set.

    Args:
        ids: M ids of the dataset (V16, strings in a list or of pyarrow), in dataset order.
        occurrences: int [M]; no pair of both occurs twice.
        topp: share of the selector's lines to keep, as in `kept_mask`.
        unscored: what to do with dataset rows without a score: `error`, `drop` or `keep`.

    Raises:
        InputError: topp out of range, no row in common, unscored rows under `error`, or nothing
            left to train on.
    """
    if unscored not in UNSCORED:
        raise InputError(f"unscored {unscored}: {known(unscored, UNSCORED)}")
    kept, n = selection.kept(topp), len(ids)
    scored, selected = np.empty(n, bool), np.empty(n, bool)
    for start in range(0, n, BLOCK):
        part = slice(start, start + BLOCK)
        lines = selection.index.find(ids[part], occurrences[part])
        scored[part] = lines >= 0
        selected[part] = np.where(lines >= 0, kept[lines], unscored == "keep")
    n_scored = int(scored.sum())
    n_unscored = n - n_scored
    if n_scored == 0:
        raise no_common_row(n, selection)
    if n_unscored and unscored == "error":
        first = int(np.argmin(scored))
        name = id_text(id_bytes(ids[first : first + 1]))[0]
        raise InputError(
            f"{n_unscored} of {n} dataset rows have no score, the first is row {first} "
            f"(id {name}); pass --unscored drop or --unscored keep"
        )
    if not selected.any():
        raise InputError(f"none of the {n} dataset rows is kept at topp {topp:g}; raise it")
    return Selected(selected, n_scored, n_unscored, missing=len(selection) - n_scored)
