"""Row ids: 32 hex digits in files, 16 bytes in memory (numpy V16)."""

import re
from binascii import Error, hexlify, unhexlify

import numpy as np
import pyarrow as pa

from seal.errors import InputError

_BLOCK = 1 << 20  # ids converted at a time


def id_bytes(ids: np.ndarray | pa.Array | pa.ChunkedArray | list[str], first=0) -> np.ndarray:
    """Strings of 32 lower-case hex digits as V16 [N]; V16 as it is.

    Args:
        first: number of the first line, for a message.

    Raises:
        InputError: an id is null, has another length or another character.
    """
    if isinstance(ids, np.ndarray) and ids.dtype == "V16":
        return ids
    found = np.empty(len(ids), "V16")
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        try:
            block = block.combine_chunks() if isinstance(block, pa.ChunkedArray) else block
            digits = pa.array(block, pa.string()).cast(pa.binary(32))
            text = memoryview(digits.buffers()[1])[32 * digits.offset :][: 32 * len(digits)]
            found[start : start + len(block)] = np.frombuffer(unhexlify(text), "V16")
            if digits.null_count or hexlify(found[start : start + len(block)]) != bytes(text):
                raise ValueError
        except (pa.ArrowException, Error, TypeError, ValueError) as error:
            raise _refusal(block, first + start) from error
    return found


def _refusal(block, first: int) -> InputError:
    """Names the first id that is not one."""
    for line, value in enumerate(pa.array(block).to_pylist(), first):
        if not (isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value)):
            return InputError(f"line {line} has id {value!r}; an id is 32 lower-case hex digits")
    return InputError(f"ids must be strings of 32 hex digits, got {type(block).__name__}")


def id_text(ids: np.ndarray) -> pa.Array:
    """V16 [N] as strings of 32 hex digits."""
    digits = pa.py_buffer(hexlify(np.ascontiguousarray(ids)))
    ends = pa.py_buffer(np.arange(0, 32 * len(ids) + 1, 32))
    return pa.LargeStringArray.from_buffers(len(ids), ends, digits)
