"""Row ids: 32 hex digits in files, 16 bytes in memory (numpy V16); rows found by them."""

import re
from binascii import Error, hexlify, unhexlify

import numpy as np
import pyarrow as pa

from seal.errors import InputError

_BLOCK = 1 << 20  # ids converted or looked up at a time
_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)


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


class RowIndex:
    """Finds lines by (id, occurrence) in O(log N).

    A line's key is its id, plus its occurrence times an odd constant: as ids are hashes, two keys
    agree as seldom as two ids do. Key and line stand side by side, highest byte first.

    Args:
        n: lines that `extend` will bring, below 2 ** 32.
    """

    def __init__(self, n: int):
        self._lines = np.empty(n, "S20")
        self._filled = 0

    @classmethod
    def of(cls, ids, occurrences: np.ndarray) -> "RowIndex":
        """The index of N ids, as `id_bytes` takes them, and int [N] occurrences."""
        index = cls(len(ids))
        for start in range(0, len(ids), _BLOCK):
            part = slice(start, start + _BLOCK)
            index.extend(ids[part], occurrences[part])
        index.sort()
        return index

    def __len__(self) -> int:
        return self._filled

    def extend(self, ids, occurrences: np.ndarray) -> None:
        """Adds the next lines."""
        keys = _keys(ids, occurrences)
        start, self._filled = self._filled, self._filled + len(keys)
        keys[:, 16:] = np.arange(start, self._filled).astype(">u4").view(np.uint8).reshape(-1, 4)
        _bytes(self._lines)[start : self._filled] = keys

    def sort(self) -> None:
        """Ends the adding of lines."""
        self._lines.sort()

    def copies(self) -> np.ndarray:
        """Numbers the lines of each key in their order: int32 [N], 0 for the first."""
        lines, again = _bytes(self._lines), [np.empty(0, np.int64)]
        for start in range(0, len(self), _BLOCK):
            block = lines[start : start + _BLOCK + 1, :16]
            again.append(start + 1 + np.flatnonzero((block[1:] == block[:-1]).all(axis=1)))
        again = np.concatenate(again)  # places whose key is that of the place before
        runs = np.flatnonzero(np.diff(again, prepend=-1) != 1)
        lengths = np.diff(np.append(runs, len(again)))
        found = np.zeros(len(self), np.int32)
        found[self._line(again)] = 1 + np.arange(len(again)) - np.repeat(runs, lengths)
        return found

    def find(self, ids, occurrences: np.ndarray) -> np.ndarray:
        """Looks up M rows, given as in `of`.

        Returns:
            int64 [M]: the line of each row, -1 where there is none.
        """
        found = np.full(len(ids), -1, np.int64)
        for start in range(0, len(ids) if len(self) else 0, _BLOCK):
            part = slice(start, start + _BLOCK)
            keys = _keys(ids[part], occurrences[part])
            asked = keys.view("S20").ravel()
            order = np.argsort(asked)  # neighbours in the search share cache lines
            place = np.minimum(np.searchsorted(self._lines, asked[order]), len(self) - 1)
            equal = (_bytes(self._lines)[place, :16] == keys[order, :16]).all(axis=1)
            found[start + order[equal]] = self._line(place[equal])
        return found

    def _line(self, places: np.ndarray) -> np.ndarray:
        return _bytes(self._lines)[places, 16:].copy().view(">u4").ravel()


def _bytes(lines: np.ndarray) -> np.ndarray:
    return lines.view(np.uint8).reshape(-1, 20)


def _keys(ids, occurrences: np.ndarray) -> np.ndarray:
    """uint8 [N, 20]: the key of each row, and four bytes of zero."""
    words = id_bytes(ids).view(">u8").reshape(-1, 2)
    copies = np.flatnonzero(occurrences)
    if len(copies):
        words = words.copy()
        words[copies] += np.asarray(occurrences)[copies, None].astype(np.uint64) * _ODD
    keys = np.zeros((len(words), 20), np.uint8)
    keys[:, :16] = words.view(np.uint8).reshape(-1, 16)
    return keys


def folds_of(ids: np.ndarray, folds: int) -> np.ndarray:
    """Fold of each row by its id, so that copies of a row fall together: V16 [N] to int64 [N]."""
    return ids.view(">u4").reshape(-1, 4)[:, 0].astype(np.int64) % folds
