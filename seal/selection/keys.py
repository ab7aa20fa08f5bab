"""Finding rows by (id, occurrence): one sorted array of 20 bytes a row."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from seal.ids import id_bytes

if TYPE_CHECKING:
    import datasets

_BLOCK = 1 << 22  # rows looked up at a time, so the transient memory does not grow with N
_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)


def row_keys(rows: "datasets.Dataset") -> tuple[pa.ChunkedArray, np.ndarray]:
    """(ids, occurrences) of `load_rows`' rows: pyarrow string [N] and numpy int32 [N]."""
    table = rows.select_columns(["id", "occurrence"]).with_format("arrow")[:]
    return table["id"], table["occurrence"].to_numpy()


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
        index.extend(ids, occurrences)
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

    def first_duplicate(self) -> int | None:
        """The line that repeats an earlier line's (id, occurrence), or None."""
        found, lines = [np.empty((0, 4), np.uint8)], _bytes(self._lines)
        for start in range(0, len(self), _BLOCK):
            block = lines[start : start + _BLOCK + 1]
            same = (block[1:, :16] == block[:-1, :16]).all(axis=1)
            found.append(block[1:][same, 16:])
        repeated = np.concatenate(found).view(">u4")
        return int(repeated.min()) if len(repeated) else None

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
            lines = _bytes(self._lines)[place]
            equal = (lines[:, :16] == keys[order, :16]).all(axis=1)
            found[start + order[equal]] = lines[equal, 16:].copy().view(">u4").ravel()
        return found


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
