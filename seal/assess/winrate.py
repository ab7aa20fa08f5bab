"""What pairwise verdicts say beside their mean: order consistency, win rate at equal length."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from seal.assess.verdicts import Verdict
from seal.statistics import Interval, bootstrap_ci

RIDGE = 1e-4  # keeps the fit finite when every pair is won or length decides every pair


def order_consistency(verdicts: Sequence[Verdict]) -> float | None:
    """Share of scored pairs on which both orders agree; None when nothing was scored."""
    agreed = [v.consistent for v in verdicts if v.consistent is not None]
    return sum(agreed) / len(agreed) if agreed else None


def length_controlled(
    preferences: ArrayLike, lengths: ArrayLike, reference_lengths: ArrayLike, seed: int = 0
) -> Interval:
    """Win rate that the model would have if its answers were as long as the reference's.

    Fits P(win) = sigmoid(a + b * tanh(d / s)), d the difference of lengths and s its standard
    deviation, to the fractional preferences, and reports sigmoid(a). AlpacaEval's own estimate has
    a term for each of its 805 prompts besides, which cannot be had on other prompts; figures of
    the two are not to be compared.

    Args:
        preferences: [N] in [0, 1].
        lengths, reference_lengths: [N] characters.
        seed: Of the bootstrap behind the interval (400 refits).

    Source: Dubois et al. 2024, "Length-Controlled AlpacaEval", section 3, without the model and
        instruction terms.
    """
    gap = np.asarray(lengths, dtype=np.float64) - np.asarray(reference_lengths, dtype=np.float64)
    scale = gap.std()
    feature = np.tanh(gap / scale) if scale > 0 else np.zeros_like(gap)
    table = np.stack([np.asarray(preferences, dtype=np.float64), feature], axis=1)
    return bootstrap_ci(table, lambda rows: _at_equal_length(rows[:, 0], rows[:, 1]), 400, seed)


def _at_equal_length(target: np.ndarray, feature: np.ndarray) -> float:
    """sigmoid(a) of the logistic fit, by Newton's method on the ridge-penalised mean loss."""
    design = np.stack([np.ones_like(feature), feature], axis=1)
    ridge = RIDGE * np.eye(2)
    weight = np.zeros(2)
    for _ in range(50):
        chance = 1 / (1 + np.exp(-design @ weight))
        slope = design.T @ (chance - target) / len(target) + ridge @ weight
        curve = (design * (chance * (1 - chance))[:, None]).T @ design / len(target) + ridge
        step = np.linalg.solve(curve, slope)
        weight -= step * min(1.0, 4 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    return float(1 / (1 + math.exp(-weight[0])))
