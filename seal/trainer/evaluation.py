"""Loss on rows held apart from training."""

import numpy as np

from seal.trainer.step import RowLosses

BATCH_ROWS = 1024


def mean_loss(losses: RowLosses, n_rows: int, per: str) -> float:
    """Mean loss over rows, without gradients.

    Args:
        losses: the engine and its dataset.
        n_rows: how many of the dataset's first rows.
        per: "token", the mean over all supervised tokens, or "row", the mean of row means.

    Returns:
        Nats a token.
    """
    losses.engine.eval()
    total = count = 0.0
    for start in range(0, n_rows, BATCH_ROWS):
        part = np.arange(start, min(start + BATCH_ROWS, n_rows))
        nll = losses.forward(part).double().numpy()
        tokens = losses.dataset.supervised[part]
        total += float(nll.sum() if per == "token" else (nll / tokens).sum())
        count += float(tokens.sum() if per == "token" else len(part))
    losses.engine.train()
    return total / count
