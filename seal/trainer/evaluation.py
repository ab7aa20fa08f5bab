"""Loss of rows without training on them."""

from collections.abc import Iterator, Sequence

import numpy as np

from seal.datasets import SFTDataset
from seal.errors import NonFiniteLoss
from seal.progress import Progress
from seal.trainer.step import RowModel

BATCH_ROWS = 1024  # between two reports of progress, at most
FEWEST_ROWS = 16  # of a rank: packs of fewer are not full
REPORTS = 20  # of a pass, at least
LOOKED_AT = 64  # rows of each set whose loss is taken before and after tuning, at most


def half_sums(model: RowModel, rows: np.ndarray, note: str = "evaluation") -> np.ndarray:
    """Loss of each row's even and of its odd supervised tokens, without dropout.

    Args:
        model: the engine and its dataset.
        rows: int64 [R], row numbers of the dataset.
        note: the pass, in the progress that is shown.

    Returns:
        float64 [R, 2], nats; the first supervised token is even.
    """
    model.engine.eval()
    sums = np.empty((len(rows), 2))
    with Progress(note, len(rows)) as work:
        for at in _parts(model, len(rows)):
            sums[at] = model.half_sums(rows[at]).double().numpy()
            tokens = model.dataset.supervised[rows[at]].sum()
            work.update(len(rows[at]), loss=sums[at].sum() / tokens)
    model.engine.train()
    return sums


def pooled_states(
    model: RowModel, rows: np.ndarray, layers: Sequence[int], note: str = "states"
) -> np.ndarray:
    """Pooled hidden states of rows, see `seal.trainer.step.pooled`, without dropout.

    Args:
        rows: int64 [R]; layers: rising, K of them; note: as in `half_sums`.

    Returns:
        float32 [R, K, 3, H].

    Raises:
        NonFiniteLoss: a state is not finite.
    """
    model.engine.eval()
    found = []
    with Progress(note, len(rows)) as work:
        for at in _parts(model, len(rows)):
            found.append(model.states(rows[at], layers).transpose(0, 1).numpy())
            work.update(len(rows[at]))
    model.engine.train()
    states = np.concatenate(found)
    bad = np.flatnonzero(~np.isfinite(states).all(axis=(1, 2, 3)))
    if len(bad):
        raise NonFiniteLoss(
            f"{note}: {len(bad)} of {len(rows)} rows have states that are not finite, the first is "
            f"row {model.dataset.row_numbers[rows[bad[0]]]}; look at the model and its precision"
        )
    return states


def _parts(model: RowModel, rows: int) -> Iterator[slice]:
    """Parts of `rows` rows, small enough to show progress and large enough to fill every rank."""
    size = max(FEWEST_ROWS * model.strategy.world_size, -(-rows // REPORTS))
    size = min(BATCH_ROWS, size)
    return (slice(start, start + size) for start in range(0, rows, size))


def half_means(sums: np.ndarray, tokens: np.ndarray, half: int | None = None) -> np.ndarray:
    """Means of what `half_sums` gives: float64 [R], nats a token.

    Args:
        sums: float64 [R, 2]; tokens: int64 [R], supervised tokens of each row.
        half: 0 for the even tokens, 1 for the odd ones, NaN where a row has none; None for all.
    """
    if half is None:
        return sums.sum(axis=1) / tokens
    count = (tokens + 1 - half) // 2
    return np.divide(sums[:, half], count, out=np.full(len(count), np.nan), where=count > 0)


def row_means(model: RowModel, rows: np.ndarray) -> np.ndarray:
    """Each row's mean loss: float64 [R], nats a supervised token; arguments as `half_sums`."""
    return half_means(half_sums(model, rows), model.dataset.supervised[rows])


def mean_loss(model: RowModel, per: str) -> float:
    """Mean loss over the model's rows.

    Args:
        per: "token", the mean over all supervised tokens, or "row", the mean of row means.

    Returns:
        Nats a token.
    """
    means = row_means(model, np.arange(len(model.dataset)))
    return float(np.average(means, weights=model.dataset.supervised if per == "token" else None))


class Moved:
    """How far tuning moves a model's loss on a sample of the safe rows and of the user's.

    Args:
        model: before it is tuned.
        safe, user: rows of both sets.
        seed: of the samples.
        swapped: look at safe responses behind each other's prompts too.
    """

    def __init__(
        self, model: RowModel, safe: SFTDataset, user: SFTDataset, seed: int, swapped: bool
    ):
        looked_at = {"safe": safe.sample(LOOKED_AT, seed), "rows": user.sample(LOOKED_AT, seed)}
        if swapped:
            looked_at["swapped"] = looked_at["safe"].swapped()
        self._models = {name: model.over(rows) for name, rows in looked_at.items()}
        self.rows = 2 * sum(map(len, looked_at.values()))  # that both looks pass
        self._before = self._look()

    def losses(self) -> dict[str, list[float]]:
        """Name of the set to its mean loss before and now, nats a token."""
        now = self._look()
        return {name: [before, now[name]] for name, before in self._before.items()}

    def _look(self) -> dict[str, float]:
        return {name: mean_loss(model, per="row") for name, model in self._models.items()}
