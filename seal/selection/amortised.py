"""Scores for rows a selector never saw: a linear head on the frozen model's mean hidden states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch

from seal.errors import InputError
from seal.files import atomic_path

if TYPE_CHECKING:
    from seal.datasets import SFTDataset
    from seal.models.actor import Actor

FOLDS = 5
FEWEST_ROWS = 50
PENALTIES = np.logspace(-1, 5, 13)
FEWEST_TOKENS = 8192  # of a forward pass; one row where a row is longer


class Head(NamedTuple):
    """A linear map from a row's states to its expected rank among the rows it was fitted on.

    Attributes:
        slope: float64 [F]; intercept: float.
        n: rows it was fitted on.
        spearman: rank correlation of predicted with given scores, on rows held out.
    """

    slope: np.ndarray
    intercept: float
    n: int
    spearman: float

    def predict(self, states: np.ndarray) -> np.ndarray:
        """float [N, F] to float64 [N]: about 0 for the lowest rank, 1 for the highest."""
        return states @ self.slope + self.intercept


def mean_states(actor: Actor, rows: SFTDataset) -> np.ndarray:
    """Last hidden states, averaged over a row's tokens and over its supervised positions.

    Args:
        actor: the frozen model, on the device it is to run on.

    Returns:
        float32 [N, 2 H].
    """
    order = np.argsort(rows.lengths, kind="stable")
    places = np.cumsum(rows.lengths[order]) // FEWEST_TOKENS
    device = next(actor.parameters()).device
    found = []
    for chunk in np.split(order, np.flatnonzero(np.diff(places)) + 1):
        batch = rows.batch(chunk).to(device)
        with torch.no_grad():
            hidden = actor(batch, layers=[actor.n_layers])[0].float()
        lengths = batch.cu_seqlens.diff()
        row_of_token = torch.arange(len(chunk), device=device).repeat_interleave(lengths)
        pooled = [
            _mean_by_row(hidden, row_of_token, len(chunk)),
            _mean_by_row(hidden[batch.positions], batch.segments, len(chunk)),
        ]
        found.append(torch.cat(pooled, dim=1).cpu().numpy())
    return np.concatenate(found)[np.argsort(order)]


def _mean_by_row(states: torch.Tensor, rows: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Mean of the states of each row: [T, H] with int64 [T] to [n_rows, H]."""
    sums = states.new_zeros(n_rows, states.shape[1]).index_add(0, rows, states)
    return sums / torch.bincount(rows, minlength=n_rows)[:, None]


def fit_head(states: np.ndarray, score: np.ndarray, ids: np.ndarray) -> Head:
    """Ridge regression of the scores' ranks; its penalty and its merit come from held-out rows.

    Args:
        states: float [N, F]; score: float [N].
        ids: V16 [N]; copies of a row are held out together.

    Raises:
        InputError: fewer than `FEWEST_ROWS` rows, equal scores, or scikit-learn missing.
    """
    if len(score) < FEWEST_ROWS or np.ptp(score) == 0:
        raise InputError(
            f"{len(score)} scored rows with {len(np.unique(score))} different scores: a head needs "
            f"at least {FEWEST_ROWS} rows that differ"
        )
    try:
        from sklearn.linear_model import RidgeCV
        from sklearn.model_selection import GroupKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise InputError("score-new needs scikit-learn: pip install -e .[study]") from error
    from scipy.stats import rankdata, spearmanr

    rank = (rankdata(score) - 1) / (len(score) - 1)
    groups = np.unique(ids, return_inverse=True)[1]
    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    held_out = cross_val_predict(model, states, rank, groups=groups, cv=GroupKFold(FOLDS))
    scaler, ridge = model.fit(states, rank)
    slope = ridge.coef_ / scaler.scale_
    intercept = float(ridge.intercept_ - scaler.mean_ @ slope)
    return Head(slope, intercept, len(score), float(spearmanr(held_out, rank).statistic))


def save_head(path: str | Path, head: Head, key: dict) -> None:
    """Writes a head as .npz; `key` says what it was fitted to."""
    with atomic_path(path) as tmp, open(tmp, "wb") as file:
        np.savez(file, key=json.dumps(key, sort_keys=True), **head._asdict())


def load_head(path: str | Path, key: dict) -> Head | None:
    """Reads a head that was fitted to `key`; None where there is none, or another one."""
    if not Path(path).is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != json.dumps(key, sort_keys=True):
                return None
            numbers = float(file["intercept"]), int(file["n"]), float(file["spearman"])
            return Head(file["slope"], *numbers)
    except (ValueError, KeyError, OSError, BadZipFile) as error:
        raise InputError(f"{path} is not a head that score-new wrote; remove it") from error
