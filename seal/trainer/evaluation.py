"""Loss on rows held apart from training."""

import numpy as np
from tqdm import tqdm

from seal.trainer.step import RowModel

BATCH_ROWS = 1024


def row_means(losses: RowModel, rows: np.ndarray, note: str | None = None) -> np.ndarray:
    """Each row's mean loss, without gradients and without dropout.

    Args:
        losses: the engine and its dataset.
        rows: int64 [R], row numbers of the dataset.
        note: title of a progress bar on rank 0; None for no bar.

    Returns:
        float64 [R], nats a supervised token.
    """
    losses.engine.eval()
    means = np.empty(len(rows))
    hidden = note is None or not losses.strategy.is_rank_0()
    with tqdm(total=len(rows), unit="row", desc=note, disable=hidden or None) as bar:
        for start in range(0, len(rows), BATCH_ROWS):
            part = rows[start : start + BATCH_ROWS]
            nll = losses.forward(part).double().numpy()
            means[start : start + BATCH_ROWS] = nll / losses.dataset.supervised[part]
            bar.update(len(part))
    losses.engine.train()
    return means


def mean_loss(losses: RowModel, n_rows: int, per: str) -> float:
    """Mean loss over the dataset's first `n_rows` rows.

    Args:
        per: "token", the mean over all supervised tokens, or "row", the mean of row means.

    Returns:
        Nats a token.
    """
    means = row_means(losses, np.arange(n_rows))
    weights = losses.dataset.supervised[:n_rows] if per == "token" else None
    return float(np.average(means, weights=weights))
