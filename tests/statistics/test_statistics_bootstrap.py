"""The cluster bootstrap against a loop over draws, and against scipy."""

import inspect

import numpy as np
import pytest
from jaxtyping import config
from scipy import stats

from sa_plugin.statistics import (
    Drawn,
    Resampling,
    bootstrap_mean,
    bootstrap_statistic,
    confusion,
    document_sums,
    f1,
    mean_over_concepts,
    percentile_bounds,
    resample_documents,
    resampled_confusion,
    resampled_quantiles,
    resampled_sums,
)


@pytest.fixture
def as_shipped():
    """Users run without the shape checks of the tests: what they see are the library's errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def decisions(concepts=4, samples=90, documents=17, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random((concepts, samples)) < 0.4
    predicted = labels ^ (rng.random((concepts, samples)) < 0.2)
    return predicted, labels, rng.integers(documents, size=samples)


def test_a_draw_takes_as_many_documents_as_there_are():
    resamples = resample_documents(np.arange(30) % 7, Resampling(draws=500, seed=3))
    assert (resamples.weights.sum(axis=1) == 7).all()
    assert resamples.weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.2)
    again = resample_documents(np.arange(30) % 7, Resampling(draws=500, seed=3))
    assert np.array_equal(again.weights, resamples.weights)


def test_weights_are_multinomial():
    weights = resample_documents(np.arange(5), Resampling(draws=20_000, seed=0)).weights
    observed = np.bincount(weights[:, 0], minlength=6)
    expected = 20_000 * stats.binom.pmf(np.arange(6), 5, 0.2)
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    assert np.cov(weights.T)[0, 1] == pytest.approx(-0.2, abs=0.03)


def test_documents_may_be_names_in_any_order():
    names = np.array(["z", "a", "m", "a", "z"])
    resamples = resample_documents(names, Resampling(draws=50))
    assert resamples.n_documents == 3
    for weights in resamples.sample_weights:
        assert weights[0] == weights[4]
        assert weights[1] == weights[3]


def test_confusion_of_every_draw_is_that_of_the_copied_samples():
    predicted, labels, documents = decisions()
    resamples = resample_documents(documents, Resampling(draws=60, seed=1))
    drawn = resampled_confusion(predicted, labels, resamples)
    for b, weights in enumerate(resamples.sample_weights):
        rows = np.repeat(np.arange(labels.shape[1]), weights)
        for fast, slow in zip(drawn, confusion(predicted[:, rows], labels[:, rows]), strict=True):
            assert np.array_equal(fast[:, b], slow)


def test_confusion_carries_leading_axes():
    predicted, labels, documents = decisions()
    resamples = resample_documents(documents, Resampling(draws=20))
    both = resampled_confusion(np.stack([predicted, ~predicted]), labels, resamples)
    for k, said in enumerate((predicted, ~predicted)):
        one = resampled_confusion(said, labels, resamples)
        assert all(np.array_equal(a[k], b) for a, b in zip(both, one, strict=True))


def drawn_f1(predicted, labels, resamples, average="weighted"):
    """Mean F1 over concepts, on the data and on every draw."""
    both = resamples.with_data()
    counts = resampled_confusion(predicted, labels, both)
    positives = (counts.tp + counts.fn).T
    values = np.where(positives > 0, f1(counts).T, np.nan)
    return resamples.drawn(mean_over_concepts(values, positives, average))


def test_mean_f1_equals_a_loop_over_draws():
    predicted, labels, documents = decisions()
    resamples = resample_documents(documents, Resampling(draws=80, seed=5))
    weighted, macro = [], []
    for weights in resamples.sample_weights:
        rows = np.repeat(np.arange(labels.shape[1]), weights)
        counts = confusion(predicted[:, rows], labels[:, rows])
        weighted.append(np.average(f1(counts), weights=labels[:, rows].sum(axis=1)))
        macro.append(f1(counts).mean())
    for average, each in (("weighted", weighted), ("macro", macro)):
        found = drawn_f1(predicted, labels, resamples, average)
        assert found.values[1:] == pytest.approx(each, abs=1e-12)
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(each, [0.025, 0.975])))
    counts = confusion(predicted, labels)
    weights = labels.sum(axis=1)
    assert drawn_f1(predicted, labels, resamples).estimate == pytest.approx(
        np.average(f1(counts), weights=weights)
    )


def test_paired_differences_use_the_same_draws():
    predicted, labels, documents = decisions()
    resamples = resample_documents(documents, Resampling(draws=300))
    ours = drawn_f1(predicted, labels, resamples)
    theirs = drawn_f1(np.ones_like(labels), labels, resamples)
    paired = ours - theirs
    assert paired.estimate == pytest.approx(ours.estimate - theirs.estimate)
    drawn = ours.values[1:] - theirs.values[1:]
    assert (paired.low, paired.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    same = drawn_f1(predicted, labels, resamples, "macro")
    assert ((same - same).estimate, (same - same).low, (same - same).excludes_zero) == (0, 0, False)
    other = resample_documents(documents, Resampling(draws=300, seed=9))
    with pytest.raises(ValueError, match="needs the same, drawn from one Resamples"):
        ours - drawn_f1(predicted, labels, other)
    with pytest.raises(ValueError, match="average 'mean' is unknown: use 'weighted' or 'macro'"):
        inspect.unwrap(mean_over_concepts)(np.ones(2), np.ones(2), "mean")


def scipy_interval(statistic, *data, paired=False):
    result = stats.bootstrap(
        data,
        statistic,
        n_resamples=20_000,
        method="percentile",
        paired=paired,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return result.confidence_interval.low, result.confidence_interval.high


def agree(ours, bounds):
    """Equal within the Monte-Carlo error of the two sets of draws."""
    tolerance = 0.05 * (bounds[1] - bounds[0])
    assert ours.low == pytest.approx(bounds[0], abs=tolerance)
    assert ours.high == pytest.approx(bounds[1], abs=tolerance)


def test_intervals_of_means_agree_with_scipy():
    x = np.random.default_rng(1).gamma(1, size=60)
    agree(bootstrap_mean(x, np.arange(60), resampling=Resampling(draws=20_000)), scipy_interval(np.mean, x))


def test_intervals_of_ratios_agree_with_scipy():
    rng = np.random.default_rng(2)
    x, y = rng.gamma(1, size=60), rng.gamma(3, size=60)

    def ratio(a, b, axis=-1):
        return a.sum(axis=axis) / b.sum(axis=axis)

    ours = bootstrap_mean(x, np.arange(60), per=y, resampling=Resampling(draws=20_000))
    agree(ours, scipy_interval(ratio, x, y, paired=True))


def test_intervals_of_f1_agree_with_scipy():
    predicted, labels, _ = decisions(concepts=1, samples=120)

    def f1_of(y, p, axis=-1):
        return 2 * (y & p).sum(axis=axis) / (y.sum(axis=axis) + p.sum(axis=axis))

    ours = drawn_f1(predicted, labels, resample_documents(np.arange(120), Resampling(draws=20_000)))
    agree(ours, scipy_interval(f1_of, labels[0], predicted[0], paired=True))


def test_intervals_of_medians_agree_with_scipy():
    x = np.random.default_rng(3).standard_normal(80)
    resamples = resample_documents(np.arange(80), Resampling(draws=20_000))
    drawn = resampled_quantiles(x, [0.5], resamples.with_data())[0]
    assert drawn[0] == np.median(x)
    agree(resamples.drawn(drawn), scipy_interval(np.median, x))


def test_clusters_widen_the_interval():
    rng = np.random.default_rng(4)
    documents = np.repeat(np.arange(20), 15)
    x = rng.standard_normal(20)[documents] + 0.1 * rng.standard_normal(300)
    clustered = bootstrap_mean(x, documents)
    naive = bootstrap_mean(x, np.arange(300))
    assert clustered.high - clustered.low > 2.5 * (naive.high - naive.low)


def test_any_function_of_sums():
    x = np.random.default_rng(5).standard_normal(50)
    values = np.stack([np.ones(50), x, x**2])

    def variance(s):
        return s[2] / s[0] - (s[1] / s[0]) ** 2

    ours = bootstrap_statistic(variance, values, np.arange(50), resampling=Resampling(draws=20_000))
    assert ours.estimate == pytest.approx(x.var())
    agree(ours, scipy_interval(np.var, x))


def test_sums_by_document_and_draw():
    rng = np.random.default_rng(6)
    values, documents = rng.standard_normal((2, 3, 40)), rng.integers(9, size=40)
    resamples = resample_documents(documents, Resampling(draws=30))
    for d in range(resamples.n_documents):
        expected = values[..., resamples.document == d].sum(axis=-1)
        assert document_sums(values, resamples)[..., d] == pytest.approx(expected)
    expected = np.einsum("abn,rn->abr", values, resamples.sample_weights)
    assert resampled_sums(values, resamples) == pytest.approx(expected)


def test_a_subset_may_miss_documents():
    resamples = resample_documents(np.arange(10), Resampling(draws=25))
    some = resamples.of(np.array([7, 2, 2]))
    expected = resamples.weights[:, [7, 2, 2]] @ np.array([1.0, 10, 100])
    assert resampled_sums(np.array([1.0, 10, 100]), some) == pytest.approx(expected)


def test_large_counts_stay_exact():
    values = np.full(3, (1 << 24) + 1)
    resamples = resample_documents(np.arange(3), Resampling(draws=10))
    expected = resamples.weights @ values
    assert np.array_equal(resampled_sums(values, resamples), expected)


def test_undefined_draws_are_left_out_and_counted():
    drawn = np.array([0.1, np.nan, 0.3, 0.2])
    found = Drawn(np.concatenate([[0.2], drawn]), {}, documents=5, level=0.5)
    assert repr(found) == "0.200 [0.150, 0.250] (50 %, 3 draws of 5 documents)"
    assert (found.low, found.high) == pytest.approx((0.15, 0.25))
    low, high = percentile_bounds(np.stack([drawn, np.full(4, np.nan)]), 0.5)
    assert low[0] == pytest.approx(0.15)
    assert np.isnan([low[1], high[1]]).all()


def test_zero_is_excluded_by_known_bounds_alone():
    assert Drawn(np.array([0.1, 0.05, 0.2]), {}).excludes_zero
    assert not Drawn(np.array([0.1, -0.1, 0.2]), {}).excludes_zero
    assert not Drawn(np.array([0.1, np.nan, np.nan]), {}).excludes_zero


def test_bad_arguments_say_what_was_expected(as_shipped):
    with pytest.raises(ValueError, match=r"9 samples come from 1 document: .* at least two"):
        resample_documents(np.zeros(9))
    with pytest.raises(ValueError, match="draws is 0"):
        resample_documents(np.arange(4), Resampling(draws=0))
    with pytest.raises(ValueError, match="level 95 must lie between 0 and 1"):
        percentile_bounds(np.zeros(4), 95)
    with pytest.raises(ValueError, match="5 samples in their last axis, the resamples 4"):
        resampled_sums(np.zeros(5), resample_documents(np.arange(4)))
