"""The format of the selection artefact and its laws: columns, metadata, and what is refused."""

import json
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seal.errors import InputError
from seal.ids import RowIndex, id_bytes

FORMAT = 1
REMEDY = "give the .parquet that selector training wrote"
METHODS = (
    "penalty",
    "penalty_gap",
    "safe_loss",
    "excess_loss",
    "relative_excess",
    "influence",
    "knn",
    "probe",
    "larf",
    "shift",
    "subspace",
    "pu_probe",
    "token_excess",
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
            raise InputError(
                f"no selector: column {field.name!r} is missing or repeated; found {schema.names}; "
                f"{REMEDY}"
            )
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


def check_lines(batches: Iterable[pa.RecordBatch], n: int) -> RowIndex:
    """Checks every law of the lines of a selection, given in parts with the columns of SCHEMA.

    Returns:
        the index by (id, occurrence), whose search for repeated rows is the law that is left.

    Raises:
        InputError: the first law that is broken, with the value that breaks it.
    """
    if n == 0:
        raise InputError("0 scored rows; a selection needs at least one")
    index, last_row, weight = RowIndex(n), -1, 0.0
    for batch in batches:
        _check_numbers(batch)
        row = np.concatenate([[last_row], batch["row"].to_numpy()])
        if np.any(row[1:] <= row[:-1]):
            line = int(np.argmax(row[1:] <= row[:-1]))
            raise InputError(
                f"column 'row' must ascend; line {len(index) + line} has {row[line + 1]}"
            )
        last_row, weight = row[-1], weight + batch["weight"].to_numpy().sum(dtype=np.float64)
        index.extend(id_bytes(batch["id"], len(index)), batch["occurrence"].to_numpy())
    if abs(weight / n - 1) > MEAN_TOLERANCE:
        raise InputError(f"weights have mean {weight / n:g}, must have mean 1")
    index.sort()
    return index


def _check_types(values: Mapping, types: Mapping, where: str) -> None:
    for name, kind in types.items():
        if name not in values:
            raise InputError(f"{where} lacks {name!r}; it needs {', '.join(types)}")
        value = values[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{where} has {name!r} = {value!r:.60}, of the wrong type")


def check_meta(meta: Mapping, n: int) -> None:
    """Checks the metadata of a file of n lines.

    Raises:
        InputError: a key is missing or of the wrong type, or the counts do not add up.
    """
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


def _check_numbers(batch: pa.RecordBatch) -> None:
    for field in SCHEMA:
        values = batch[field.name]
        if values.null_count and not field.nullable:
            raise InputError(f"column {field.name!r} has {values.null_count} nulls, must have none")
        if field.name in ("occurrence", "row", "visits", "weight"):
            least = pc.min(values).as_py()
            if least < 0:
                raise InputError(f"column {field.name!r} has {least}, must not be negative")
        if pa.types.is_floating(field.type):
            bad = np.count_nonzero(~np.isfinite(values.drop_null().to_numpy()))
            if bad:
                raise InputError(f"column {field.name!r} has {bad} NaN or infinite values")
