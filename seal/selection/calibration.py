"""Canaries: rows known to be bad that are scored along, and the threshold they justify."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from seal.errors import InputError
from seal.selection.artefact import Selection, kept_mask
from seal.statistics import auroc, auroc_interval, clopper_pearson

if TYPE_CHECKING:
    from seal.datasets import SFTDataset

CURVE_POINTS = 101
MAX_CANARY_KEPT, CONFIDENCE = 0.05, 0.95  # of --topp auto, where nothing else is asked for


def draw_canaries(
    canaries: SFTDataset, safe: SFTDataset, user: SFTDataset, fraction: float, seed: int
) -> SFTDataset:
    """The canaries to score along with the user's rows.

    Canaries that already stand among the user's rows are left out; of the others at most
    `fraction * len(user)` are drawn.

    Raises:
        InputError: the fraction is out of range, a canary stands in the safe set, or none is left.
    """
    if not 0 < fraction < 1:
        raise InputError(f"--canary_fraction must be in (0, 1), got {fraction:g}")
    trusted = np.flatnonzero(np.isin(canaries.ids, safe.ids))
    if len(trusted):
        raise InputError(
            f"{len(trusted)} of {len(canaries)} canaries also stand in the safe set, the first is "
            f"row {canaries.row_numbers[trusted[0]]}; a row cannot be both"
        )
    new = np.flatnonzero(~np.isin(canaries.ids, user.ids))
    if len(new) == 0:
        raise InputError(f"all {len(canaries)} canaries stand among the user's rows; give others")
    return canaries.select(new).sample(max(1, int(fraction * len(user))), seed)


def calibrate(score: np.ndarray, canary_score: np.ndarray) -> dict:
    """What the canaries say about a score, for the artefact's metadata.

    Args:
        score: float [N] of the user's rows; canary_score: float [M] of the canaries.

    Returns:
        n (canaries), auroc of user rows against canaries with its 95 % interval, the
        curve [[share of rows kept, share of canaries dropped], ...], and the canaries' scores.
    """
    labels = np.repeat([True, False], [len(score), len(canary_score)])
    area = auroc(np.concatenate([score, canary_score]), labels)
    ranked, shares = np.sort(score), np.linspace(0, 1, CURVE_POINTS)
    cuts = np.quantile(ranked, 1 - shares[1:], method="lower")
    dropped = [1.0, *(float((canary_score < cut).mean()) for cut in cuts)]
    return {
        "n": len(canary_score),
        "auroc": area,
        "auroc_interval": list(auroc_interval(area, len(score), len(canary_score))),
        "curve": np.stack([shares, dropped], axis=1).tolist(),
        "canary_scores": np.sort(canary_score.astype(np.float64)).tolist(),
    }


def recall_at(selection: Selection, topp: float) -> dict:
    """How many canaries a threshold drops, with a 95 % Clopper-Pearson interval.

    Returns:
        threshold (score of the lowest row kept), recall, recall_interval; empty where the artefact
        has no canaries' scores.
    """
    canaries = np.array(selection.meta.get("calibration", {}).get("canary_scores", []))
    if len(canaries) == 0:
        return {}
    threshold = float(selection.score[kept_mask(selection.score, topp)].min())
    dropped = int((canaries < threshold).sum())
    return {
        "threshold": threshold,
        "recall": dropped / len(canaries),
        "recall_interval": list(clopper_pearson(dropped, len(canaries))),
    }


def share_kept(
    selection: Selection,
    topp: float | str,
    max_canary_kept: float = MAX_CANARY_KEPT,
    confidence: float = CONFIDENCE,
) -> float:
    """The share that `topp` stands for: itself, or for "auto" what the canaries justify.

    Raises:
        InputError: neither a number nor "auto", or as of `auto_topp`.
    """
    if topp == "auto":
        return auto_topp(selection, max_canary_kept, confidence)
    try:
        return float(topp)
    except ValueError as error:
        raise InputError(f"topp must be a share in (0, 1] or auto, got {topp!r}") from error


def auto_topp(selection: Selection, max_canary_kept: float, confidence: float) -> float:
    """A share to keep that the canaries justify.

    At most k canaries may be kept, where k is the largest count whose one-sided Clopper-Pearson
    bound stays within `max_canary_kept`. k depends on the number of canaries alone, so the bound
    holds for the threshold it leads to, and for every higher one. Rows of the canaries' kind
    outnumber the canaries, so the highest of them lie just above the highest canary: where the
    scores leave a clear stretch empty further up, the cut is there.

    Args:
        max_canary_kept: limit on the share of rows like the canaries that are kept, in (0, 1).
        confidence: of the bound, in (0, 1).

    Returns:
        topp in (0, 1].

    Raises:
        InputError: no canaries were scored, too few for the claim, the score does not tell them
            from the rows, or nothing is left to keep.
    """
    for name, value in (("max_canary_kept", max_canary_kept), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"--{name} must be in (0, 1), got {value:g}")
    if "calibration" not in selection.meta:
        raise InputError(
            "--topp auto needs canaries: score the rows with --canary_dataset, known-bad rows that "
            "are not among the anchors of --unsafe_dataset"
        )
    calibration = selection.meta["calibration"]
    low, high = calibration["auroc_interval"]
    if low <= 0.5:
        raise InputError(
            f"--topp auto: the score does not tell the canaries from the rows (AUROC "
            f"{calibration['auroc']:.3f}, 95 % interval {low:.3f} to {high:.3f} reaches 0.5); "
            "score again by another method or with longer tuning, or give --topp a number"
        )
    canaries = np.array(calibration["canary_scores"])  # ascending
    allowed = _allowed(len(canaries), max_canary_kept, confidence)
    if allowed < 0:
        needed = canaries_needed(max_canary_kept, confidence)
        raise InputError(
            f"{len(canaries)} canaries cannot show that at most {max_canary_kept:g} of their kind "
            f"is kept at confidence {confidence:g}: give at least {needed}, or "
            "raise --max_canary_kept"
        )
    bar = canaries[len(canaries) - 1 - allowed] if allowed < len(canaries) else -np.inf
    kept = int((selection.score > _clear_gap(selection.score, bar, canaries)).sum())
    if kept == 0:
        raise InputError("--topp auto would keep no row: the canaries score as high as every row")
    return kept / len(selection)


def canaries_needed(max_canary_kept: float, confidence: float) -> int:
    """Fewest canaries of which none kept shows that at most so large a share of their kind is."""
    return int(np.ceil(np.log(1 - confidence) / np.log(1 - max_canary_kept)))


def _clear_gap(score: np.ndarray, bar: float, canaries: np.ndarray) -> float:
    """Lower end of the widest stretch without a row between the bar and the median score.

    The bar itself where no stretch is wider than the canaries' interquartile range.
    """
    between = np.unique(score[(score > bar) & (score <= np.median(score))])
    ends = np.concatenate([[bar], between])
    low, high = np.quantile(canaries, [0.25, 0.75])
    if len(between) == 0 or np.diff(ends).max() <= high - low:
        return bar
    return ends[np.argmax(np.diff(ends))]


def _allowed(n: int, limit: float, confidence: float) -> int:
    """Largest k with a one-sided upper Clopper-Pearson bound within the limit; -1 for none."""
    from scipy.stats import beta

    k = np.arange(n)
    bounds = beta.ppf(confidence, k + 1, n - k)
    return int((bounds <= limit).sum()) - 1
