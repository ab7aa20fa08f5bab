"""Small statistics, each of them once: ranks, reliability, weights, and 95 % intervals."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy  # loads its parts when they are first used, so this module stays light
from numpy.typing import ArrayLike

CONFIDENCE = 0.95  # of every interval
ENDS = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]  # its quantiles


class Interval(NamedTuple):
    """A statistic of the whole sample with its percentile interval."""

    estimate: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """mean(a) - mean(b) over the same items, its interval, and a two-sided bootstrap p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Probability that a positive scores above a negative, ties counted one half.

    Args:
        scores: [N] real numbers, higher meaning "more likely positive".
        labels: [N] 0/1 or bool.

    Raises:
        ValueError: lengths differ, a score is not finite, or one of the two classes is absent.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(bool)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must be equal and flat")
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite")
    few, many = sorted((scores[labels], scores[~labels]), key=len)
    if not len(few):
        counts = int(labels.sum()), int((~labels).sum())
        raise ValueError("needs both classes, got {} positive and {} negative".format(*counts))
    few = np.sort(few)  # only the smaller class is sorted
    above = np.searchsorted(few, many, "left") + np.searchsorted(few, many, "right")
    area = float(above.mean() / (2 * len(few)))  # of the larger class
    return area if 2 * labels.sum() > len(labels) else 1 - area


def auroc_interval(area: float, positives: int, negatives: int) -> tuple[float, float]:
    """95 % interval of an AUROC; it has a width at 0 and 1 too, where a bootstrap has none.

    Source: Newcombe 2006 (Statistics in Medicine 25, 559), method 5: the score interval on the
        variance of Hanley and McNeil 1982 at the mean of the two sample sizes.
    """
    pairs, half = positives * negatives, (positives + negatives) / 2 - 1

    def excess(truth: float) -> float:
        spread = 1 + half * ((1 - truth) / (2 - truth) + truth / (1 + truth))
        return (truth - area) ** 2 - 1.96**2 * truth * (1 - truth) * spread / pairs

    low = 0.0 if area == 0 else scipy.optimize.brentq(excess, 0, min(area, 1 - 1e-12))
    return low, 1.0 if area == 1 else scipy.optimize.brentq(excess, max(area, 1e-12), 1)


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Rank correlation of [N] and [N], ties at their mean rank; None where one is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(scipy.stats.spearmanr(x, y).statistic)


def reliability(first: ArrayLike, second: ArrayLike) -> float | None:
    """How far a score repeats itself, from its two halves of each row: 1 all signal, 0 all noise.

    Args:
        first, second: [N] each, the same score from one half of what the whole is made from.

    Returns:
        Their rank correlation r, stepped up to the whole: 2 r / (1 + r); None where one is
        constant.

    Source: Spearman 1910, Brown 1910.
    """
    r = spearman(first, second)
    return r if r is None or r <= 0 else 2 * r / (1 + r)


def effective_rows(weights: ArrayLike) -> float:
    """Kish's effective sample size of weights [N]: N when uniform, 1 when one holds all."""
    weights = np.asarray(weights, np.float64)
    return float(weights.sum() ** 2 / np.square(weights).sum())


def entropy(weights: ArrayLike) -> float:
    """Entropy of weights [N] as shares, in nats: log N when uniform, 0 when one holds all."""
    return float(scipy.stats.entropy(np.asarray(weights, np.float64)))


def bootstrap_ci(
    values: ArrayLike,
    statistic: Callable[[np.ndarray], float] = np.mean,
    n: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of `statistic` over the first axis of `values`.

    Args:
        values: [N] or [N, ...]; items are drawn whole, so two columns stay paired.
        statistic: Maps a resample of the same shape to one number. A resample on which it is
            undefined must give NaN and is left out of the percentiles.
        n: Resamples.
        seed: Seeds the draws; equal seeds give equal intervals.

    Raises:
        ValueError: `values` is empty or no resample gave a number.

    Examples:
        >>> bootstrap_ci([0, 1, 1, 1]).estimate
        0.75
    """
    values = np.asarray(values)
    if not len(values):
        raise ValueError("values is empty, a bootstrap needs at least one item")
    rng = np.random.default_rng(seed)
    draws = np.array(
        [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(n)],
        dtype=np.float64,
    )
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        raise ValueError(f"the statistic is undefined on all {n} resamples")
    low, high = np.quantile(draws, ENDS)
    return Interval(float(statistic(values)), float(low), float(high))


def paired_bootstrap(a: ArrayLike, b: ArrayLike, seed: int = 0, n: int = 2000) -> PairedDifference:
    """Bootstrap of the mean difference of two measurements of the same items.

    Args:
        a, b: [N] each, item i of both being the same prompt.
        seed: Seeds the draws.
        n: Resamples.

    Returns:
        The difference mean(a) - mean(b), its percentile interval (of 0/1 answers that all differ
        alike, the exact bound on pairs that would not), and
        p = 2 * (1 + min(#draws <= 0, #draws >= 0)) / (n + 1), at most 1.

    Raises:
        ValueError: the lengths differ or are zero.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 16.4 (shift and
        inversion of the percentile interval).
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"a {a.shape} and b {b.shape} must be flat, equal in length, not empty")
    gap = a - b
    rng = np.random.default_rng(seed)
    draws = np.array([gap[rng.integers(len(gap), size=len(gap))].mean() for _ in range(n)])
    low, high = np.quantile(draws, ENDS)
    if np.ptp(gap) == 0 and np.isin([a, b], (0, 1)).all():  # resampling sees no other pair
        bound = clopper_pearson(0, len(gap))[1]
        low, high = max(-1.0, low - bound), min(1.0, high + bound)
    extreme = 1 + min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return PairedDifference(
        float(gap.mean()), float(low), float(high), min(1.0, 2 * extreme / (n + 1))
    )


def clopper_pearson(k: int, n: int) -> tuple[float, float]:
    """Exact binomial interval for k successes of n; (0.0, 1.0) when n is 0.

    Raises:
        ValueError: not 0 <= k <= n.

    Source: Clopper and Pearson 1934.
    """
    if not 0 <= k <= n:
        raise ValueError(f"k must be in [0, n], got k={k}, n={n}")
    if n == 0:
        return 0.0, 1.0
    return tuple(map(float, scipy.stats.binomtest(k, n).proportion_ci(CONFIDENCE, "exact")))


def rogan_gladen(
    judged: ArrayLike,
    sensitivity: tuple[int, int],
    specificity: tuple[int, int],
    n: int = 2000,
    seed: int = 0,
) -> Interval:
    """The true rate behind an imperfect judge's, with the judge's own uncertainty in the interval.

    Args:
        judged: [N] 0/1 verdicts.
        sensitivity: (found, of) over the labelled positives.
        specificity: (left alone, of) over the labelled negatives.
        n: Bootstrap draws, of the verdicts and of both labelled samples.
        seed: Seeds the draws.

    Returns:
        (rate + specificity - 1) / (sensitivity + specificity - 1), cut to [0, 1].

    Raises:
        ValueError: `judged` or a labelled sample is empty, or the judge is no better than chance.

    Source: Rogan and Gladen 1978.
    """
    verdicts = np.asarray(judged, dtype=np.float64)
    if verdicts.ndim != 1 or not len(verdicts) or not sensitivity[1] or not specificity[1]:
        raise ValueError("needs verdicts, labelled positives and labelled negatives, at least one")
    rates = verdicts.mean(), sensitivity[0] / sensitivity[1], specificity[0] / specificity[1]
    if rates[1] + rates[2] <= 1:
        raise ValueError(f"sensitivity {rates[1]:.3f} + specificity {rates[2]:.3f} must exceed 1")
    rng = np.random.default_rng(seed)
    sizes = len(verdicts), sensitivity[1], specificity[1]
    rate, found, left = (rng.binomial(k, p, size=n) / k for k, p in zip(sizes, rates, strict=True))
    informative = found + left > 1  # elsewhere a draw says nothing about the rate
    rate, found, left = rate[informative], found[informative], left[informative]
    draws = np.clip((rate + left - 1) / (found + left - 1), 0, 1)
    low, high = np.quantile(draws, ENDS)
    estimate = float(np.clip((rates[0] + rates[2] - 1) / (rates[1] + rates[2] - 1), 0, 1))
    return Interval(estimate, float(low), float(high))
