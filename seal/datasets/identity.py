"""What a row is called: the hash of its messages, and which copy of them it is."""

import hashlib
import json
from binascii import hexlify

import datasets
import numpy as np
import pyarrow as pa

from seal.datasets.cache import mapped_table
from seal.ids import RowIndex, id_bytes

# One encoder for all rows: `json.dumps` makes one a call where its arguments are not the defaults.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode


def row_id(messages: list[dict], tools: list | None = None) -> str:
    """Names a conversation: the first 32 hex digits (128 bits) of a sha256.

    The hash is over the UTF-8 JSON of [[role, content], ...] without spaces, before any template
    or tokenizer, so a row keeps its name when the dataset is shuffled, extended, written in
    another schema or tokenised for another model. What a message has beside role and content (a
    thought, tool calls) is the third item of its list, and tools follow the last message.

    Examples:
        >>> row_id([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
        '99c87cbcecd18c3405b9f9d79fe1b3f8'
    """
    turns: list = [[message["role"], message["content"]] for message in messages]
    for turn, message in zip(turns, messages, strict=True):
        if len(message) > 2:
            turn.append({key: message[key] for key in message if key not in ("role", "content")})
    if tools:
        turns.append({"tools": tools})
    return hashlib.sha256(_encode(turns).encode()).hexdigest()[:32]


def occurrences(ids: np.ndarray) -> np.ndarray:
    """Numbers the copies of each of `ids`, V16 [N], in row order: int32 [N], 0 for the first."""
    return RowIndex.of(ids, np.broadcast_to(np.int32(0), len(ids))).copies()


def row_keys(rows: datasets.Dataset) -> tuple[pa.ChunkedArray, np.ndarray]:
    """(ids, occurrences) of `load_rows`' rows: pyarrow string [N] and numpy int32 [N]."""
    table = rows.select_columns(["id", "occurrence"]).with_format("arrow")[:]
    return table["id"], table["occurrence"].to_numpy()


def number_rows(rows: datasets.Dataset) -> datasets.Dataset:
    """Adds `occurrence` and `row` to `rows`, and names the whole by its ids in their order.

    Both columns are written once and mapped from disk, so ranks of one machine share them.
    """

    def number() -> pa.Table:
        ids = id_bytes(rows.select_columns(["id"]).with_format("arrow")[:]["id"])
        digest = hashlib.sha256(hexlify(ids)).hexdigest()[:32]
        table = pa.table({"occurrence": occurrences(ids), "row": np.arange(len(ids))})
        return table.replace_schema_metadata({"name": digest})

    numbers = mapped_table(f"{rows._fingerprint}-numbers", number)
    both = datasets.concatenate_datasets([rows, datasets.Dataset(numbers)], axis=1)
    both._fingerprint = numbers.schema.metadata[b"name"].decode()
    return both
