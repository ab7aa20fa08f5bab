"""The format of the selection artefact and its laws: columns, metadata, and what is refused."""

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seal.errors import InputError
from seal.selection.keys import RowIndex

FORMAT = 1
METHODS = (
    "penalty",
    "penalty_gap",
    "safe_loss",
    "excess_loss",
    "relative_excess",
    "influence",
    "perplexity",
    "ifd",
    "dsir",
    "random",
    "unrolled",
    "published",
    "predicted",
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("occurrence", pa.int32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("logit", pa.float32()),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("visits", pa.int32(), nullable=False),
        pa.field("loss", pa.float32()),
    ]
)
MEAN_TOLERANCE = 1e-3  # float32 weights of 1e7 rows miss mean one by far less
_META_TYPES = {
    "method": str,
    "arguments": dict,
    "dataset": dict,
    "model": str | None,
    "tokenizer": str | None,
    "max_len": int | None,
    "seed": int | None,
    "versions": dict,
    "commit": str | None,
}
_DATASET_TYPES = {"fingerprint": str, "raw": int, "scored": int, "skipped": dict}


def read_meta(schema: pa.Schema) -> dict:
    """Checks columns and format version from the file's schema, before any column is read.

    Returns:
        the JSON under the metadata key `seal`.

    Raises:
        InputError: a column is missing or of another type, or the metadata is not ours.
    """
    for field in SCHEMA:
        if schema.names.count(field.name) != 1:
            raise InputError(f"column {field.name!r} is missing or repeated; found {schema.names}")
        found = schema.field(field.name).type
        if found != field.type:
            raise InputError(f"column {field.name!r} is {found}, must be {field.type}")
    try:
        meta = json.loads((schema.metadata or {})[b"seal"])
    except KeyError as error:
        raise InputError("no metadata under the key 'seal'; SEAL did not write it") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the metadata under the key 'seal' is not JSON: {error}") from error
    version = meta.get("format") if isinstance(meta, dict) else None
    if version != FORMAT:
        raise InputError(f"format version is {version!r}, this code reads {FORMAT}")
    return meta


def check_selection(table: pa.Table, meta: Mapping) -> RowIndex:
    """Checks every law of a selection whose columns are those of SCHEMA.

    Returns:
        the index by (id, occurrence), which the search for repeated rows has to build anyway.

    Raises:
        InputError: the first law that is broken, with the value that breaks it.
    """
    _check_filled(table)
    _check_meta(meta, table.num_rows)
    _check_numbers(table)
    index = RowIndex(table["id"], table["occurrence"].to_numpy())
    duplicate = index.first_duplicate()
    if duplicate is not None:
        raise InputError(
            f"line {duplicate} repeats id {table['id'][duplicate].as_py()} "
            f"with occurrence {table['occurrence'][duplicate].as_py()}"
        )
    return index


def _check_filled(table: pa.Table) -> None:
    if table.num_rows == 0:
        raise InputError("0 scored rows; a selection needs at least one")
    for field in SCHEMA:
        nulls = table[field.name].null_count
        if nulls and not field.nullable:
            raise InputError(f"column {field.name!r} has {nulls} nulls, must have none")


def _check_types(values: Mapping, types: Mapping, where: str) -> None:
    for name, kind in types.items():
        if name not in values:
            raise InputError(f"{where} lacks {name!r}; it needs {', '.join(types)}")
        value = values[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{where} has {name!r} = {value!r:.60}, of the wrong type")


def _check_meta(meta: Mapping, n: int) -> None:
    _check_types(meta, _META_TYPES, "metadata")
    if meta["method"] not in METHODS:
        raise InputError(f"unknown method {meta['method']!r:.60}; known: {', '.join(METHODS)}")
    dataset = meta["dataset"]
    _check_types(dataset, _DATASET_TYPES, "metadata 'dataset'")
    skipped = dataset["skipped"]
    _check_types(skipped, dict.fromkeys(skipped, int), "metadata 'skipped'")
    if dataset["scored"] != n:
        raise InputError(f"metadata counts {dataset['scored']} scored rows, the file has {n}")
    if min((0, *skipped.values())) < 0 or dataset["raw"] != n + sum(skipped.values()):
        raise InputError(
            f"raw rows ({dataset['raw']}) must be scored ({n}) plus skipped ({skipped})"
        )


def _check_numbers(table: pa.Table) -> None:
    for name in ("occurrence", "row", "visits", "weight"):
        least = pc.min(table[name]).as_py()
        if least < 0:
            raise InputError(f"column {name!r} has {least}, must not be negative")
    for field in SCHEMA:
        if pa.types.is_floating(field.type):
            values = table[field.name].drop_null().to_numpy()
            bad = np.count_nonzero(~np.isfinite(values))
            if bad:
                raise InputError(f"column {field.name!r} has {bad} NaN or infinite values")
    row = table["row"].to_numpy()
    if np.any(row[1:] <= row[:-1]):
        line = int(np.argmax(row[1:] <= row[:-1])) + 1
        raise InputError(f"column 'row' must ascend; line {line} has {row[line]}")
    mean = table["weight"].to_numpy().mean(dtype=np.float64)
    if abs(mean - 1) > MEAN_TOLERANCE:
        raise InputError(f"weights have mean {mean:g}, must have mean 1")
