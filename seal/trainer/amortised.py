"""Scores for rows a selector never saw: a linear head on hidden states, fitted to its scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from seal.errors import InputError
from seal.ids import folds_of
from seal.selection.representation import FOLDS, Head, ridge
from seal.trainer.step import pooled

if TYPE_CHECKING:
    from seal.datasets import SFTDataset
    from seal.models.actor import Actor

FEWEST_ROWS = 50
FEWEST_TOKENS = 8192  # of a forward pass; one row where a row is longer


def features(actor: Actor, rows: SFTDataset, layer: int) -> np.ndarray:
    """What a head sees of rows, `seal.selection.representation.States.features`: float32 [N, 3 H].

    Args:
        actor: the frozen model, on the device it is to run on.
    """
    order = np.argsort(rows.lengths, kind="stable")
    places = np.cumsum(rows.lengths[order]) // FEWEST_TOKENS
    device = next(actor.parameters()).device
    found = []
    for chunk in np.split(order, np.flatnonzero(np.diff(places)) + 1):
        batch = rows.batch(chunk).to(device)
        with torch.no_grad():
            states = pooled(actor(batch, layers=[layer]).float(), batch)
        found.append(states[0].flatten(1).cpu().numpy())
    return np.concatenate(found)[np.argsort(order)]


def fit_head(states: np.ndarray, score: np.ndarray, ids: np.ndarray) -> tuple[Head, dict]:
    """A head for the ranks of scores: about 0 for the lowest, 1 for the highest.

    Args:
        states: float [N, F]; score: float [N].
        ids: V16 [N]; copies of a row are held out together.

    Returns:
        The head, and its rank correlation on held-out rows: {"spearman", "n"}.

    Raises:
        InputError: fewer than `FEWEST_ROWS` rows, equal scores, or scikit-learn missing.
    """
    if len(score) < FEWEST_ROWS or np.ptp(score) == 0:
        raise InputError(
            f"{len(score)} scored rows with {len(np.unique(score))} different scores: a head needs "
            f"at least {FEWEST_ROWS} rows that differ"
        )
    from scipy.stats import rankdata, spearmanr

    rank = (rankdata(score) - 1) / (len(score) - 1)
    head, held_out = ridge(rank, states, folds_of(ids, FOLDS))
    return head, {"spearman": float(spearmanr(held_out, rank).statistic), "n": len(score)}
