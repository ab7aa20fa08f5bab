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
    "influence": 2,
}
MODEL_FREE = ("random", "dsir")


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
