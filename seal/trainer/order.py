"""Which rows a step sees: pure functions of seed and step, without a table of N places."""

import math
from collections.abc import Sequence

import numpy as np

_ROUNDS = 8
_ODD, _HALF = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93], np.uint64), np.uint64(32)


def shuffled(places: np.ndarray, n_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The rows at some places of a shuffle of `n_rows` rows, at a cost that N does not change.

    A Feistel network permutes the places of the nearest grid that holds N; what falls on a place
    past N is sent through it again until it does not (cycle walking): every row stands once.

    Args:
        places: int64 [R], each in [0, n_rows).
        n_rows: N.
        seed, epoch: name the shuffle.

    Returns:
        int64 [R].

    Source: Luby and Rackoff 1988; Black and Rogaway 2002 (cycle walking).
    """
    keys = np.random.default_rng([seed, epoch]).integers(2**64, size=_ROUNDS, dtype=np.uint64)
    rows = places.astype(np.uint64)
    open_places = np.arange(len(rows))
    while len(open_places):
        rows[open_places] = _permuted(rows[open_places], n_rows, keys)
        open_places = open_places[rows[open_places] >= n_rows]
    return rows.astype(np.int64)


def _permuted(places: np.ndarray, n_rows: int, keys: np.ndarray) -> np.ndarray:
    """A bijection of a grid: each round shifts one coordinate by a hash of the other."""
    width = math.isqrt(n_rows - 1) + 1
    sizes = np.array([width, -(-n_rows // width)], np.uint64)
    grid = [places % sizes[0], places // sizes[0]]
    for number, key in enumerate(keys):
        axis = number % 2
        mixed = (grid[1 - axis] + key) * _ODD[0]
        mixed = (mixed ^ mixed >> _HALF) * _ODD[1]
        grid[axis] = (grid[axis] + (mixed >> _HALF)) % sizes[axis]
    return grid[1] * sizes[0] + grid[0]


class EpochBatches(Sequence):
    """Row numbers of each global batch of an epoch: every row once, the last batch may be short.

    A pure function of (seed, epoch), the same on every rank and every world size: item k is
    int64 [batch_size], and there are ceil(n_rows / batch_size).
    """

    def __init__(self, n_rows: int, batch_size: int, seed: int, epoch: int):
        self.starts = range(0, n_rows, batch_size)
        self.shuffle = n_rows, seed, epoch

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> np.ndarray:
        start = self.starts[number]
        stop = min(start + self.starts.step, self.starts.stop)
        return shuffled(np.arange(start, stop), *self.shuffle)


def cycled_batch(n_rows: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The batch at `step` of an endless stream of shuffled passes over n_rows rows.

    A row can appear twice in a batch only where two passes meet, or when n_rows < batch_size.

    Returns:
        int64 [batch_size].
    """
    wanted = np.arange(step * batch_size, (step + 1) * batch_size)
    passes = wanted // n_rows
    return np.concatenate(
        [shuffled(wanted[passes == p] % n_rows, n_rows, seed, p) for p in np.unique(passes)]
    )
