"""Work done once: maps over datasets, kept on disk under a fingerprint of their content."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.table import MemoryMappedTable

from seal.files import atomic_path

SMALL = 2_000  # rows; below this, starting processes costs more than it saves


def cache_path(name: str) -> Path:
    """The file `name` in this package's folder of the `datasets` cache (`HF_DATASETS_CACHE`)."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "seal"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def fingerprint(*parts: object) -> str:
    """32 hex digits that name `parts` (anything `json` can write)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def mapped_table(name: str, make: Callable[[], pa.Table]) -> MemoryMappedTable:
    """The table `name` of the cache, mapped from disk; `make` is called where it is not there yet.

    Ranks of one machine share its memory. A table of one chunk a column is mapped as such, so that
    its numbers are numpy arrays without a copy.
    """
    target = cache_path(f"{name}.arrow")
    if not target.exists():
        table = make()
        with atomic_path(target) as tmp, pa.ipc.new_stream(str(tmp), table.schema) as stream:
            stream.write_table(table)
    return MemoryMappedTable.from_file(str(target))


def processes(n_rows: int) -> int:
    """How many processes to map `n_rows` with: 1 when small, else the usable cores, at most 8."""
    return 1 if n_rows < SMALL else min(len(os.sched_getaffinity(0)), 8)


def cached_map(
    rows: datasets.Dataset,
    function: Callable,
    *,
    fn_kwargs: dict,
    new_fingerprint: str,
    features: datasets.Features,
    num_proc: int | None,
    desc: str,
    batch_size: int = 1000,
) -> datasets.Dataset:
    """`rows.map` in batches, read back from disk when `new_fingerprint` has been mapped before.

    The caller computes the fingerprint, because the one `map` takes of a function that holds a
    tokenizer differs from call to call, so that its cache never hits
    (https://github.com/huggingface/trl/issues/6206).

    Args:
        function: (batch, indices, **fn_kwargs) -> batch; a function of a module, so that other
            processes can import it. Its result replaces the columns of `rows`.
        new_fingerprint: Names `rows`, `function` and `fn_kwargs`.
        num_proc: Processes; None chooses by the number of rows.
        batch_size: Rows that `function` gets at a time.
    """
    num_proc = num_proc or processes(len(rows))
    return rows.map(
        function,
        batched=True,
        batch_size=batch_size,
        with_indices=True,
        remove_columns=rows.column_names,
        fn_kwargs=fn_kwargs,
        features=features,
        num_proc=num_proc if num_proc > 1 else None,
        cache_file_name=str(cache_path(f"{new_fingerprint}.arrow")),
        new_fingerprint=new_fingerprint,
        desc=desc,
    )
