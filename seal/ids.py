"""Row ids: 32 hex digits in files, 16 bytes in memory (numpy V16)."""

from binascii import hexlify

import numpy as np
import pyarrow as pa

_BLOCK = 1 << 20  # ids converted at a time


def id_bytes(ids: np.ndarray | pa.Array | pa.ChunkedArray | list[str]) -> np.ndarray:
    """Strings of 32 hex digits as V16 [N]; V16 as it is."""
    if isinstance(ids, np.ndarray) and ids.dtype == "V16":
        return ids
    found = np.empty(len(ids), "V16")
    for start in range(0, len(ids), _BLOCK):
        block = np.asarray(ids[start : start + _BLOCK]).tolist()
        found[start : start + len(block)] = np.frombuffer(bytes.fromhex("".join(block)), "V16")
    return found


def id_text(ids: np.ndarray) -> pa.Array:
    """V16 [N] as strings of 32 hex digits."""
    digits = pa.py_buffer(hexlify(np.ascontiguousarray(ids)))
    ends = pa.py_buffer(np.arange(0, 32 * len(ids) + 1, 32))
    return pa.LargeStringArray.from_buffers(len(ids), ends, digits)
