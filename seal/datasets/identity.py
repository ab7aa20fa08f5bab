"""What a row is called: the hash of its messages, and which copy of them it is."""

import hashlib
import json

import datasets
import numpy as np
import pyarrow as pa

# One encoder for all rows: `json.dumps` makes one a call where its arguments are not the defaults.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def row_id(messages: list[dict[str, str]]) -> str:
    """Names a conversation: the first 32 hex digits (128 bits) of a sha256.

    The hash is over the UTF-8 JSON of [[role, content], ...] without spaces, before any template
    or tokenizer, so a row keeps its name when the dataset is shuffled, extended, written in
    another schema or tokenised for another model.

    Examples:
        >>> row_id([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
        '99c87cbcecd18c3405b9f9d79fe1b3f8'
    """
    turns = [[message["role"], message["content"]] for message in messages]
    return hashlib.sha256(_encode(turns).encode()).hexdigest()[:32]


def occurrences(ids: pa.ChunkedArray) -> np.ndarray:
    """Numbers the copies of each id in row order: int32 [N], 0 for the first row with that id."""
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy()  # [N]
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    is_first = np.ones(len(codes), dtype=bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(is_first)
    copies = np.diff(np.append(starts, len(codes)))
    result = np.empty(len(codes), dtype=np.int32)
    result[order] = np.arange(len(codes)) - np.repeat(starts, copies)
    return result


def number_rows(rows: datasets.Dataset) -> datasets.Dataset:
    """Adds `occurrence` and `row` to `rows`, and names the whole by its ids in their order."""
    ids = rows.select_columns(["id"]).with_format("arrow")[:]["id"]
    digest = hashlib.sha256()
    for chunk in ids.chunks:
        digest.update("".join(chunk.to_pylist()).encode())
    name = digest.hexdigest()[:32]
    numbered = rows.add_column("occurrence", occurrences(ids), new_fingerprint=f"{name}-copies")
    return numbered.add_column("row", np.arange(len(rows)), new_fingerprint=name)
