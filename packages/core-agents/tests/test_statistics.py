"""Agreement, trials and comparisons against scikit-learn, statsmodels, krippendorff and closed forms."""

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from core_agents import statistics as ours
from core_agents.reference import statistics as reference
from hypothesis import given, settings
from hypothesis import strategies as st


def ratings(seed, n, raters, classes, missing=0.0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=(n, 1))
    given_ = np.where(rng.random((n, raters)) < 0.6, truth, rng.integers(classes, size=(n, raters))).astype(float)
    given_[rng.random(given_.shape) < missing] = np.nan
    return given_


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
@pytest.mark.parametrize("seed", range(20))
def test_cohen_equals_scikit_learn(seed, weights):
    metrics = pytest.importorskip("sklearn.metrics")
    a, b = ratings(seed, 3 + 20 * seed, 2, 2 + seed % 5).T
    if len({*a, *b}) > 1:
        expected = metrics.cohen_kappa_score(a, b, weights=weights)
        assert abs(ours.cohen_kappa(a, b, weights=weights).value - expected) < 1e-12


def test_cohen_of_three_raters_is_the_mean_of_the_pairs():
    metrics = pytest.importorskip("sklearn.metrics")
    given_ = ratings(1, 200, 3, 4)
    pairs = [metrics.cohen_kappa_score(given_[:, i], given_[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert abs(ours.agreement(given_, "cohen").value - np.mean(pairs)) < 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_fleiss_equals_statsmodels(seed):
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    given_ = ratings(seed, 4 + 10 * seed, 2 + seed % 6, 2 + seed % 4).astype(int)
    table, _ = inter_rater.aggregate_raters(given_)
    assert abs(ours.fleiss_kappa(given_).value - inter_rater.fleiss_kappa(table)) < 1e-12


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval", "ratio"])
@pytest.mark.parametrize("seed", range(10))
def test_alpha_equals_krippendorff(seed, level):
    krippendorff = pytest.importorskip("krippendorff")
    given_ = ratings(seed, 6 + 12 * seed, 2 + seed % 4, 3 + seed % 3, 0.2) * 1.5
    expected = krippendorff.alpha(reliability_data=given_.T, level_of_measurement=level)
    assert abs(ours.krippendorff_alpha(given_.T, level).value - expected) < 1e-12


def test_alpha_takes_words_with_gaps():
    given_ = [["a", "b", None, "a"], ["a", "b", "b", "b"], [None, "b", "b", "a"]]
    numbers = np.array([[np.nan if x is None else ord(x) for x in row] for row in given_])
    assert ours.krippendorff_alpha(given_).value == ours.krippendorff_alpha(numbers).value


@pytest.mark.parametrize("statistic", ["cohen", "fleiss", "krippendorff"])
def test_one_class_is_not_defined_and_says_so(statistic):
    with pytest.warns(RuntimeWarning, match="not defined"):
        estimate = ours.agreement(np.ones((9, 3), int), statistic, bootstrap=10)
    assert math.isnan(estimate.value)
    assert estimate.undefined == 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ours.agreement([[0, 0], [1, 1], [0, 0]], statistic).value == 1


def test_labels_apart_are_the_labels_alone():
    given_ = np.stack([ratings(s, 50, 3, 2) for s in range(4)], 1).astype(int)
    for statistic in ("cohen", "fleiss", "krippendorff"):
        apart = ours.agreement(given_, statistic, by_label=True, bootstrap=200, seed=3)
        for j in range(4):
            alone = ours.agreement(given_[:, j], statistic, bootstrap=200, seed=3)
            assert (apart.value[j], apart.low[j], apart.high[j]) == (alone.value, alone.low, alone.high)
        together = ours.agreement(given_, statistic).value
        assert abs(together - ours.agreement(given_.reshape(-1, 3), statistic).value) < 1e-12


def test_replicates_are_statistics_of_resampled_units():
    metrics = pytest.importorskip("sklearn.metrics")
    given_ = np.stack([ratings(s, 40, 2, 2) for s in range(3)], 1).astype(int)
    picks = ours.bootstrap_sums(np.eye(40), 50, seed=7).astype(int)
    values = []
    for times in picks:
        drawn = np.repeat(given_, times, 0).reshape(-1, 2)
        values.append(metrics.cohen_kappa_score(drawn[:, 0], drawn[:, 1]))
    estimate = ours.agreement(given_, "cohen", bootstrap=50, seed=7)
    assert np.abs(np.percentile(values, [2.5, 97.5]) - [estimate.low, estimate.high]).max() < 1e-12


def test_intervals_cover():
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        x = rng.normal(size=60)
        estimate = ours.mean(x, 500, 0.9, seed)
        inside += estimate.low <= 0 <= estimate.high
    assert 165 <= inside <= 195


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.data())
def test_pass_at_k_is_the_closed_form(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    any_ = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert ours.pass_at_k(n, c, k) == float(any_)
    assert ours.pass_hat_k([[n]], c, k)[0, 0] == float(Fraction(math.comb(c, k), math.comb(n, k)))
    product = 1.0 if n - c < k else 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1))
    assert abs(ours.pass_at_k(n, c, k) - product) < 1e-12


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("exact", "correction"), [(True, True), (False, True), (False, False)])
def test_mcnemar_equals_statsmodels(seed, exact, correction):
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 5 + 20 * seed)) < [[0.6], [0.5]]
    table = np.array([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]])
    if table[0, 1] + table[1, 0]:
        expected = tables.mcnemar(table, exact, correction)
        assert ours.mcnemar(a, b, exact, correction) == pytest.approx((expected.statistic, expected.pvalue), abs=1e-12)


def test_paired_bootstrap_sees_a_difference_and_none():
    rng = np.random.default_rng(0)
    a = rng.random(300)
    better = ours.paired_bootstrap(a, a + rng.normal(0.1, 0.2, 300))
    assert better.p_value < 0.01
    assert 0 < better.difference.low < better.difference.value < better.difference.high
    assert ours.paired_bootstrap(a, a).p_value == 1
    assert ours.paired_bootstrap(a, rng.permutation(a)).p_value > 0.05


@pytest.mark.parametrize("statistic", ["cohen", "fleiss", "krippendorff"])
@pytest.mark.parametrize("metric", ["nominal", "linear", "quadratic", "ordinal", "interval", "ratio"])
def test_every_statistic_equals_the_textbook(statistic, metric):
    given_ = np.stack([ratings(s, 30, 3, 4) for s in range(3)], 1).astype(np.int32)
    known = {"cohen": 3, "fleiss": 1, "krippendorff": 6}[statistic]
    names = ["nominal", "linear", "quadratic", "ordinal", "interval", "ratio"]
    if metric not in (names[:known] if statistic != "krippendorff" else ["nominal", *names[3:]]):
        with pytest.raises(ValueError, match="argument 'metric'"):
            ours.agreement(given_, statistic, metric)
        return
    width = {"fleiss": 6, "cohen": 48}.get(statistic, 16)
    made = {"ratings": given_, "classes": 4, "statistic": statistic, "tables": np.empty((30, 1, width))}
    summed = reference.agreement_tables(made)["tables"].sum(0)
    rest = {"values": np.arange(4.0), "raters": 3, "statistic": statistic, "metric": metric, "out": np.empty(1)}
    expected = reference.agreement({"tables": summed, **rest})["out"][0]
    assert abs(ours.agreement(given_, statistic, metric).value - expected) < 1e-12


def test_bad_input_names_the_argument():
    with pytest.raises(ValueError, match="argument 'ratings'"):
        ours.agreement([1, 2, 3])
    with pytest.raises(ValueError, match="argument 'ratings' must be in"):
        ours.agreement([[1, 2], [1, None]], "cohen")
    with pytest.raises(ValueError, match="argument 'statistic'"):
        ours.agreement([[1, 2], [1, 1]], "scott")
    with pytest.raises(ValueError, match="'raters' must be"):
        ours.agreement([[1], [2]], "fleiss")
    with pytest.raises(ValueError, match="argument 'y2'"):
        ours.cohen_kappa([1, 2], [1])
    with pytest.raises(ValueError, match="argument 'confidence'"):
        ours.mean([1.0, 2.0], 10, 95)
    with pytest.raises(ValueError, match="k = 4"):
        ours.pass_at_k(3, 1, 4)
    with pytest.raises(TypeError, match="integers"):
        ours.pass_at_k(3.0, 1, 2)
    with pytest.raises(ValueError, match="0 and 1"):
        ours.mcnemar([0, 2], [0, 1])
    with pytest.raises(ValueError, match="finite"):
        ours.mean([math.nan])
