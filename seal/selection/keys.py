"""Row identity as integers: ids to 128-bit words, and finding rows by (id, occurrence)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from seal.errors import InputError

if TYPE_CHECKING:
    import datasets

ID_LENGTH = 32
_BLOCK = 1 << 20  # rows converted at a time, so the transient memory does not grow with N
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so distinct occurrences of one id never collide


def _hex_pair_table() -> np.ndarray:
    """int16 [65536]: two ASCII bytes read as one uint16 -> their byte value, -1 if not hex."""
    table = np.full(1 << 16, -1, np.int16)
    pairs = [f"{value:02x}".encode() for value in range(256)]
    table[np.frombuffer(b"".join(pairs), np.uint16)] = np.arange(256)
    return table


_HEX_PAIRS = _hex_pair_table()


def row_keys(rows: "datasets.Dataset") -> tuple[pa.ChunkedArray, np.ndarray]:
    """(ids, occurrences) of `load_rows`' rows: pyarrow string [N] and numpy int32 [N]."""
    table = rows.select_columns(["id", "occurrence"]).with_format("arrow")[:]
    return table["id"], table["occurrence"].to_numpy()


def id_words(ids: Sequence[str] | np.ndarray | pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Turns ids, of 32 lower-case hex digits or of 16 bytes (V16), into numbers.

    Returns:
        uint64 [N, 2]: the first and the last 16 digits of each id.

    Raises:
        InputError: an id is null, has another length or another character.
    """
    if isinstance(ids, np.ndarray) and ids.dtype == "V16":
        return ids.view(">u8").reshape(-1, 2).astype(np.uint64)
    words = np.empty((len(ids), 2), np.uint64)
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        words[start : start + _BLOCK] = _block_words(block, start)
    return words


def _block_words(block, first: int) -> np.ndarray:
    try:
        block = block.combine_chunks() if isinstance(block, pa.ChunkedArray) else block
        block = block if isinstance(block, pa.Array) else pa.array(block, pa.string())
        block = block.cast(pa.string())
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"ids must be strings of {ID_LENGTH} hex digits: {error}") from error
    _, offsets, text = block.buffers()
    offsets = np.frombuffer(offsets, np.int32)[block.offset : block.offset + len(block) + 1]
    wrong = np.flatnonzero(np.diff(offsets) != ID_LENGTH)
    if len(wrong) == 0:
        digits = np.frombuffer(text, np.uint8)[offsets[0] : offsets[-1]]
        pairs = _HEX_PAIRS[digits.view(np.uint16)].reshape(len(block), ID_LENGTH // 2)
        wrong = np.flatnonzero((pairs < 0).any(axis=1)) if pairs.min() < 0 else wrong
    if len(wrong):
        raise InputError(
            f"line {first + wrong[0]} has id {block[int(wrong[0])].as_py()!r}; "
            f"an id is {ID_LENGTH} lower-case hex digits"
        )
    return pairs.astype(np.uint8).view(">u8")


def _mix(words: np.ndarray, occurrences: np.ndarray) -> np.ndarray:
    """uint64 [N]: ids are parts of a sha256, so one half of the id is already well mixed."""
    return words[:, 0] + occurrences.astype(np.uint64) * _MIX


class RowIndex:
    """Finds lines of a table by (id, occurrence), exactly, in O(log N) a look-up.

    Lines are sorted by one 64-bit mix of id and occurrence; candidates of equal mix are then
    compared in full, so a collision costs time and never an error.
    """

    def __init__(self, ids, occurrences: np.ndarray):
        """ids: N ids as `id_words` takes them; occurrences: int [N]."""
        self.words = id_words(ids)
        self.occurrences = np.asarray(occurrences).astype(np.uint32)
        mix = _mix(self.words, self.occurrences)
        self.order = np.argsort(mix)
        self.sorted_mix = mix[self.order]
        self.same_as_next = self.sorted_mix[1:] == self.sorted_mix[:-1]

    def __len__(self) -> int:
        return len(self.order)

    def first_duplicate(self) -> int | None:
        """The line that repeats an earlier line's (id, occurrence), or None."""
        if not self.same_as_next.any():
            return None
        tied = np.zeros(len(self), bool)
        tied[1:] |= self.same_as_next
        tied[:-1] |= self.same_as_next
        lines = self.order[tied]
        lines = lines[np.lexsort((lines, self.occurrences[lines], *self.words[lines].T))]
        words, occurrences = self.words[lines], self.occurrences[lines]
        same = (words[1:] == words[:-1]).all(axis=1) & (occurrences[1:] == occurrences[:-1])
        return int(lines[1:][same].min()) if same.any() else None

    def find(self, ids, occurrences: np.ndarray) -> np.ndarray:
        """Looks up M rows, given as in `__init__`.

        Returns:
            int64 [M]: the line of each row, -1 where there is none.
        """
        found = np.full(len(ids), -1, np.int64)
        for start in range(0, len(ids), _BLOCK):
            stop = min(start + _BLOCK, len(ids))
            words = id_words(ids[start:stop])
            found[start:stop] = self._find_block(words, occurrences[start:stop])
        return found

    def _find_block(self, words: np.ndarray, occurrences: np.ndarray) -> np.ndarray:
        occurrences = np.asarray(occurrences).astype(np.uint32)
        mix = _mix(words, occurrences)
        by_mix = np.argsort(mix)  # look up in sorted order: neighbours share cache lines
        place = np.empty(len(mix), np.int64)
        place[by_mix] = np.searchsorted(self.sorted_mix, mix[by_mix])
        found = np.full(len(mix), -1, np.int64)
        open_rows = np.arange(len(mix))
        while len(open_rows):
            inside = place[open_rows] < len(self)
            open_rows = open_rows[inside]
            open_rows = open_rows[self.sorted_mix[place[open_rows]] == mix[open_rows]]
            lines = self.order[place[open_rows]]
            equal = (self.words[lines] == words[open_rows]).all(axis=1)
            equal &= self.occurrences[lines] == occurrences[open_rows]
            found[open_rows[equal]] = lines[equal]
            open_rows = open_rows[~equal]
            place[open_rows] += 1
        return found
