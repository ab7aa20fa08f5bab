"""Laws of seal.statistics, against scipy and scikit-learn."""

import numpy as np
import pytest
from scipy.stats import bootstrap, norm
from sklearn.metrics import roc_auc_score

from seal.statistics import (
    auroc,
    auroc_interval,
    bootstrap_ci,
    clopper_pearson,
    effective_rows,
    entropy,
    paired_bootstrap,
    reliability,
    rogan_gladen,
    spearman,
)


@pytest.mark.parametrize("decimals", [8, 1, 0])  # 0: many ties
def test_auroc_equals_scikit_learn_with_and_without_ties(decimals):
    rng = np.random.default_rng(decimals)
    labels = rng.random(300) < 0.2
    scores = np.round(rng.normal(size=300) + labels, decimals)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)


def test_auroc_refuses_one_class_and_nan():
    with pytest.raises(ValueError, match="0 negative"):
        auroc([0.1, 0.2], [1, 1])
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        auroc([np.nan, 0.2], [0, 1])


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.3])  # AUROC 0.50, 0.76, 0.95
def test_auroc_interval_covers_about_as_often_as_it_says(shift):
    rng, truth, labels = np.random.default_rng(0), norm.cdf(shift / 2**0.5), np.arange(80) < 60
    hits = 0
    for _ in range(600):
        low, high = auroc_interval(auroc(rng.normal(shift * labels), labels), 60, 20)
        hits += low <= truth <= high
    assert 0.92 <= hits / 600 <= 0.98


def test_auroc_interval_has_a_width_at_the_ends():
    low, high = auroc_interval(1.0, 100, 5)
    assert 0.7 < low < 0.9 and high == 1
    assert auroc_interval(0.0, 5, 100) == pytest.approx((0, 1 - low))


def test_spearman_is_of_ranks_and_none_for_a_constant():
    x = np.random.default_rng(0).normal(size=50)
    assert spearman(x, np.exp(x)) == pytest.approx(1) and spearman(x, np.ones(50)) is None


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_reliability_of_two_halves_is_that_of_two_wholes(noise):
    rng = np.random.default_rng(1)
    truth = rng.normal(size=20_000)
    a, b, c, d = truth + rng.normal(scale=noise, size=(4, 20_000))
    assert reliability(a, b) == pytest.approx(spearman(a + b, c + d), abs=0.03)


def test_weights_all_equal_count_as_all_rows_and_one_alone_as_one():
    assert effective_rows(np.full(8, 0.1)) == pytest.approx(8)
    assert effective_rows([0, 0, 3.0]) == pytest.approx(1)
    assert entropy(np.full(8, 0.1)) == pytest.approx(np.log(8)) and entropy([0, 0, 3.0]) == 0


def test_clopper_pearson_of_nothing_says_nothing():
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert clopper_pearson(0, 10)[0] == 0 and clopper_pearson(10, 10)[1] == 1
    with pytest.raises(ValueError, match="k=3, n=2"):
        clopper_pearson(3, 2)


def test_bootstrap_ci_agrees_with_scipy():
    values = np.random.default_rng(1).exponential(size=400)
    ours = bootstrap_ci(values, np.mean, n=4000, seed=2)
    theirs = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=3)
    assert ours.estimate == values.mean()
    width = ours.high - ours.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.07 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.07 * width)


def test_bootstrap_ci_is_seeded_keeps_rows_whole_and_skips_undefined_resamples():
    rng = np.random.default_rng(0)
    labels = rng.random(60) < 0.1
    table = np.stack([rng.normal(size=60) + 2 * labels, labels], axis=1)

    def area(rows):
        return auroc(rows[:, 0], rows[:, 1]) if 0 < rows[:, 1].sum() < len(rows) else np.nan

    first = bootstrap_ci(table, area, n=300, seed=5)
    assert first == bootstrap_ci(table, area, n=300, seed=5)
    assert first != bootstrap_ci(table, area, n=300, seed=6)
    assert first.low <= first.estimate <= first.high <= 1
    with pytest.raises(ValueError, match="empty"):
        bootstrap_ci([])


def test_paired_bootstrap_is_antisymmetric_and_sees_pairing():
    rng = np.random.default_rng(0)
    item = rng.normal(scale=10, size=200)  # shared difficulty: only pairing removes it
    a, b = item + 0.5 + rng.normal(size=200), item + rng.normal(size=200)
    result, swapped = paired_bootstrap(a, b, seed=1), paired_bootstrap(b, a, seed=1)
    assert result.difference == pytest.approx((a - b).mean())
    assert 0 < result.low < result.difference < result.high and result.p_value < 0.01
    assert swapped.low == pytest.approx(-result.high) and swapped.p_value == result.p_value
    assert paired_bootstrap(a, a, seed=1) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="equal in length"):
        paired_bootstrap([1, 2], [1])


def test_paired_bootstrap_covers_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(150):
        gap = rng.normal(loc=0.3, size=60)
        interval = paired_bootstrap(gap, np.zeros(60), seed=trial, n=400)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.87 <= hits / 150 <= 0.99


def test_rogan_gladen_finds_the_true_rate_about_as_often_as_it_says():
    rng, truth, sensitivity, specificity = np.random.default_rng(0), 0.3, 0.75, 0.95
    hits = 0
    for seed in range(300):
        real = rng.random(200) < truth
        judged = np.where(real, rng.random(200) < sensitivity, rng.random(200) > specificity)
        found = rng.binomial(80, sensitivity), rng.binomial(370, specificity)
        interval = rogan_gladen(judged, (found[0], 80), (found[1], 370), n=500, seed=seed)
        hits += interval.low <= truth <= interval.high
    assert 0.92 <= hits / 300 <= 0.99
    perfect = rogan_gladen([1, 0, 0, 0], (10, 10), (10, 10))
    assert perfect.estimate == 0.25
    with pytest.raises(ValueError, match="must exceed 1"):
        rogan_gladen([1, 0], (5, 10), (5, 10))


def test_paired_answers_that_never_differ_still_have_an_interval():
    found = paired_bootstrap(np.ones(20), np.ones(20))
    bound = clopper_pearson(0, 20)[1]
    assert found == pytest.approx((0, -bound, bound, 1)) and 0.1 < bound < 0.2
    assert paired_bootstrap(np.ones(20), np.zeros(20))[:3] == pytest.approx((1, 1 - bound, 1))
