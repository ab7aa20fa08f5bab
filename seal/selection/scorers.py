"""Scores that need no model of ours, and the names of every one-pass method."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from seal.errors import InputError

# method -> what a row costs in forward passes, beside the epochs of tuning (3 a row and epoch)
ONE_PASS = {
    "random": 0,
    "dsir": 0,
    "perplexity": 1,
    "ifd": 2,
    "safe_loss": 1,
    "excess_loss": 2,
    "relative_excess": 2,
    "influence": 2,
}
MODEL_FREE = ("random", "dsir")


def tuned_rows(
    method: str, n_safe: int, n_user: int, *, folds: int, safe_ready: bool, rows_ready: bool
) -> tuple[int, int]:
    """(safe rows, user rows) that a method trains on in one epoch of its tuning.

    `safe_ready` and `rows_ready`: a model already tuned on them is given.
    """
    on_safe = method in ("safe_loss", "excess_loss", "relative_excess") and not safe_ready
    times = {"excess_loss": 1, "influence": 1, "relative_excess": folds - 1}.get(method, 0)
    return n_safe * on_safe, n_user * times * (not rows_ready)


CONTRAST_FLOOR = 0.1  # nats a token below which a loss is as good as learned


def relative_contrast(rows_loss: np.ndarray, safe_loss: np.ndarray) -> np.ndarray:
    """How much of a row's loss is explained by the user's rows and not by the safe set.

    `log((rows_loss + floor) / (safe_loss + floor))`: near 0 for a row that both models find easy
    and for one that both find hard, far below 0 for one that only the user's rows teach. The plain
    difference grows with how hard a row is, and so does its noise; the ratio does not.

    Args:
        rows_loss: float [N], nats a token under a model tuned on the user's rows, best one that
            has not seen the row itself.
        safe_loss: float [N], under a model tuned on the safe set.

    Returns:
        float [N], higher = keep.
    """
    return np.log((rows_loss + CONTRAST_FLOOR) / (safe_loss + CONTRAST_FLOOR))


def folds_of(ids: np.ndarray, folds: int) -> np.ndarray:
    """Fold of each row by its id, so that copies of a row fall together: str [N] to int64 [N]."""
    return np.array([int(row_id[:8], 16) % folds for row_id in ids], dtype=np.int64)


def random_scores(n_rows: int, seed: int) -> np.ndarray:
    """Uniform scores: float64 [n_rows] in [0, 1)."""
    return np.random.default_rng(seed).random(n_rows)


def dsir_scores(rows: Iterable[str], target: Iterable[str]) -> np.ndarray:
    """Log importance weight of each row under hashed n-gram models of the target and the rows.

    One process, no length floor and no resampling, so the result has no randomness.

    Source: Xie et al. 2023 (arXiv 2302.03169), through the package `data-selection`.

    Returns:
        float64 [N], higher = more like the target.

    Raises:
        InputError: the package is not installed.
    """
    try:
        from data_selection import HashedNgramDSIR
    except ImportError as error:
        raise InputError("--method dsir needs data-selection: pip install -e .[dsir]") from error
    with tempfile.TemporaryDirectory() as scratch:
        paths = []
        for name, texts in (("rows", rows), ("target", target)):
            path = Path(scratch) / f"{name}.jsonl"
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            paths.append([str(path)])
        dsir = HashedNgramDSIR(*paths, cache_dir=scratch, num_proc=1, min_example_length=0)
        dsir.fit_importance_estimator(num_tokens_to_fit="all")
        dsir.compute_importance_weights()
        return np.load(dsir.log_importance_weights_dir / "0.npy").astype(np.float64)
