"""The selection artefact: one Parquet file that holds a score for every scored row.

`docs/commands.md` and `ckpt/README.md` describe the format for a reader of the file.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seal.errors import InputError
from seal.files import atomic_path
from seal.ids import id_bytes, id_text
from seal.provenance import commit, versions
from seal.selection.format import FORMAT, SCHEMA, check_selection, read_meta
from seal.selection.keys import RowIndex

UNSCORED = ("error", "drop", "keep")


@dataclass(frozen=True)
class Selection:
    """A selector's lines in ascending `row`, as `read_selection` and `write_selection` check them.

    Attributes:
        table: the columns of SCHEMA, N lines.
        meta: the file metadata under the key `seal`.
        index: finds lines by (id, occurrence).
    """

    table: pa.Table
    meta: dict
    index: RowIndex

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> np.ndarray:
        """One column as numpy [N]; a null of `logit` or `loss` (not measured) becomes NaN."""
        return self.table[name].to_numpy()

    @property
    def id(self) -> np.ndarray:
        """object [N]: str of 32 hex digits. For many rows prefer `index`, which holds no str."""
        return self.column("id")

    @property
    def occurrence(self) -> np.ndarray:
        """int32 [N]: 0 for the first row with that id."""
        return self.column("occurrence")

    @property
    def row(self) -> np.ndarray:
        """int64 [N]: position in the dataset that was scored, ascending."""
        return self.column("row")

    @property
    def score(self) -> np.ndarray:
        """float32 [N]: higher = keep."""
        return self.column("score")

    @property
    def logit(self) -> np.ndarray:
        """float32 [N]: the trained logit, NaN where the method has none."""
        return self.column("logit")

    @property
    def weight(self) -> np.ndarray:
        """float32 [N]: mean one."""
        return self.column("weight")

    @property
    def visits(self) -> np.ndarray:
        """int32 [N]: times the row was seen."""
        return self.column("visits")

    @property
    def loss(self) -> np.ndarray:
        """float32 [N]: mean nats per response token seen, NaN where not measured."""
        return self.column("loss")


class Selected(NamedTuple):
    """What `select_rows` chose, and what it could not match."""

    indices: np.ndarray  # int64 [K]: selected dataset rows, ascending
    scored: int  # dataset rows that have a score
    unscored: int  # dataset rows that have none
    missing: int  # lines of the selector that are not in the dataset


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
        model, tokenizer, max_len (tokens), seed: for a method that has them.
    """
    dataset = {"fingerprint": fingerprint, "raw": int(raw), "skipped": dict(skipped or {})}
    return {
        "method": method,
        "arguments": dict(arguments or {}),
        "dataset": dataset,
        "model": model,
        "tokenizer": tokenizer,
        "max_len": max_len,
        "seed": seed,
    }


def make_selection(columns: Mapping, meta: Mapping) -> Selection:
    """Builds and checks a selection in memory; arguments as for `write_selection`."""
    n = len(columns["id"])
    defaults = {"weight": np.ones(n), "visits": np.zeros(n, np.int32)}
    unknown = set(columns) - set(SCHEMA.names)
    if unknown:
        raise InputError(f"unknown columns {sorted(unknown)}; an artefact has {SCHEMA.names}")
    arrays = []
    for field in SCHEMA:
        if field.name in columns:
            arrays.append(_to_arrow(field, columns[field.name]))
        elif field.name in defaults:
            arrays.append(_to_arrow(field, defaults[field.name]))
        elif field.nullable:
            arrays.append(pa.nulls(n, field.type))
        else:
            raise InputError(f"column {field.name!r} is missing; an artefact needs it")
    if len({len(array) for array in arrays}) != 1:
        lengths = {name: len(column) for name, column in columns.items()}
        raise InputError(f"columns differ in length: {lengths}")
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    row = table["row"].to_numpy()
    if np.any(row[1:] < row[:-1]):
        table = table.take(np.argsort(row, kind="stable"))
    meta = {**meta, "format": FORMAT, "versions": versions(), "commit": commit()}
    meta["dataset"] = {**meta["dataset"], "scored": n}
    table = _mean_one(table)
    meta = json.loads(json.dumps(meta))
    return Selection(table, meta, check_selection(table, meta))


def write_selection(path: str | os.PathLike, columns: Mapping, meta: Mapping) -> Selection:
    """Writes an artefact, whole or not at all.

    Args:
        path: the .parquet file.
        columns: name -> N values (list, numpy, CPU tensor, pyarrow). `id`, `occurrence`, `row`
            and `score` are needed; `logit` and `loss` default to null (NaN is stored as null),
            `weight` to 1 and `visits` to 0. Lines are stored in ascending `row`, and weights
            divided by their mean.
        meta: as `selection_meta` makes it.

    Raises:
        InputError: `read_selection` would refuse the result.
    """
    selection = make_selection(columns, meta)
    save_selection(path, selection)
    return selection


def save_selection(path: str | os.PathLike, selection: Selection) -> None:
    """Writes a selection that has been checked, whole or not at all."""
    table = selection.table.replace_schema_metadata({"seal": json.dumps(selection.meta)})
    with atomic_path(path) as tmp:
        pq.write_table(
            table, tmp, compression="zstd", use_dictionary=False, write_page_checksum=True
        )


def read_selection(path: str | os.PathLike) -> Selection:
    """Reads an artefact strictly; memory is about 110 bytes a line.

    Raises:
        InputError: one line that says what is wrong: unreadable, a column or the metadata missing
            or of the wrong type, a format version this code does not know, scores that are not
            finite, negative rows, repeated (id, occurrence), bad ids, weights without mean one.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the .parquet that selector training wrote")
    try:
        # without pre_buffer the compressed file is not held beside the table
        with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            meta = read_meta(file.schema_arrow)
            table = file.read(columns=SCHEMA.names).select(SCHEMA.names)
            table = table.replace_schema_metadata(None)
        return Selection(table, meta, check_selection(table, meta))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a readable Parquet file: {reason}") from error


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
    if not 0 < topp <= 1:
        raise InputError(f"topp must be in (0, 1], got {topp:g}; 0.8 keeps 80 %")
    n = len(score)
    count = round(topp * n)
    if count == 0:
        raise InputError(f"topp {topp:g} keeps none of {n} scored rows; raise it")
    threshold = np.partition(score, n - count)[n - count]
    kept = score > threshold
    ties = np.flatnonzero(score == threshold)
    kept[ties[: count - np.count_nonzero(kept)]] = True
    return kept


def select_rows(
    ids, occurrences: np.ndarray, selection: Selection, topp: float, unscored: str = "error"
) -> Selected:
    """Picks the dataset rows that a selector keeps, whatever order they are in now.

    The kept set is decided on the selector's own lines; a dataset row is selected when its
    (id, occurrence) is in that set.

    Args:
        ids: M ids of the dataset (numpy, list or pyarrow), in dataset order.
        occurrences: int [M].
        topp: share of the selector's lines to keep, as in `kept_mask`.
        unscored: what to do with dataset rows without a score: `error`, `drop` or `keep`.

    Raises:
        InputError: topp out of range, no row in common, unscored rows under `error`, or nothing
            left to train on.
    """
    if unscored not in UNSCORED:
        raise InputError(f"unscored must be one of {', '.join(UNSCORED)}, got {unscored!r}")
    kept = kept_mask(selection.score, topp)
    lines = selection.index.find(ids, occurrences)
    scored = lines >= 0
    n_scored, n_unscored = int(scored.sum()), int((~scored).sum())
    if n_scored == 0:
        raise InputError(
            f"none of the {len(lines)} dataset rows is among the selector's {len(selection)} rows; "
            "this is a selector for another dataset"
        )
    if n_unscored and unscored == "error":
        first = int(np.argmin(scored))
        name = id_text(id_bytes(ids[first : first + 1]))[0]
        raise InputError(
            f"{n_unscored} of {len(lines)} dataset rows have no score, the first is row {first} "
            f"(id {name}); pass --unscored drop or --unscored keep"
        )
    selected = np.where(scored, kept[lines], unscored == "keep")
    if not selected.any():
        raise InputError(
            f"none of the {len(lines)} dataset rows is kept at topp {topp:g}; raise it"
        )
    present = np.zeros(len(selection), bool)
    present[lines[scored]] = True
    missing = len(selection) - int(present.sum())
    return Selected(np.flatnonzero(selected), n_scored, n_unscored, missing)


def _to_arrow(field: pa.Field, values) -> pa.Array | pa.ChunkedArray:
    if field.name == "id":
        if isinstance(values, np.ndarray) and values.dtype == "V16":
            return id_text(values).cast(pa.string())
        return (
            values
            if isinstance(values, pa.Array | pa.ChunkedArray)
            else pa.array(values, pa.string())
        )
    values = np.asarray(values)
    if pa.types.is_floating(field.type):
        with np.errstate(over="ignore"):  # the check of finite values names what overflows
            values = values.astype(np.float32)
        return pa.array(values, field.type, from_pandas=field.nullable)
    try:
        return pa.array(values, field.type)
    except pa.ArrowInvalid as error:
        raise InputError(f"column {field.name!r} must be {field.type}: {error}") from error


def _mean_one(table: pa.Table) -> pa.Table:
    weight = table["weight"].to_numpy().astype(np.float64)
    mean = weight.mean() if len(weight) else 0.0
    if not (np.isfinite(mean) and mean > 0):
        return table  # the check says what is wrong
    place = SCHEMA.get_field_index("weight")
    weight = pa.array((weight / mean).astype(np.float32))
    return table.set_column(place, SCHEMA.field(place), weight)
