"""Columns of document weights against a loop over copied samples."""

import inspect

import numpy as np
import pytest
from jaxtyping import config
from scipy import stats

from sa_plugin.statistics import (
    Resampling,
    bootstrap_mean,
    confusion,
    document_sums,
    f1,
    mean_over_concepts,
    resample_documents,
    resampled_confusion,
    resampled_sums,
)


@pytest.fixture
def as_shipped():
    """Users run without the shape checks of the tests: what they see are the library's errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(params=["left out", "bootstrapped"])
def columns(request):
    """Either kind of columns of some documents."""

    def made(documents, draws=60, seed=1):
        resamples = resample_documents(documents, Resampling(draws, seed))
        return resamples.bootstrapped if request.param == "bootstrapped" else resamples

    return made


def decisions(concepts=4, samples=90, documents=17, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random((concepts, samples)) < 0.4
    predicted = labels ^ (rng.random((concepts, samples)) < 0.2)
    return predicted, labels, rng.integers(documents, size=samples)


def test_each_document_is_left_out_once_behind_the_data():
    resamples = resample_documents(np.arange(30) % 7)
    assert resamples.weights[0].tolist() == [1] * 7
    assert np.array_equal(resamples.weights[1:], 1 - np.eye(7))


def test_many_documents_are_left_out_in_groups_of_one_size():
    documents = np.arange(1500) % 450
    resamples = resample_documents(documents)
    assert (resamples.n_documents, resamples.units, resamples.columns) == (450, 200, 201)
    for d in range(450):
        assert len(set(resamples.document[documents == d])) == 1
    sizes = np.bincount([resamples.document[d] for d in range(450)])
    assert set(sizes) == {2, 3}
    assert np.array_equal(resample_documents(documents).document, resamples.document)
    other = resample_documents(documents, Resampling(seed=1))
    assert not np.array_equal(other.document, resamples.document)
    # Groups of documents that all say their own: the interval is nearly that of 450 documents.
    x = np.random.default_rng(0).standard_normal(450)
    ours = bootstrap_mean(x, np.arange(450))
    exact = stats.t.interval(0.95, 449, x.mean(), stats.sem(x))
    assert ours.high - ours.low == pytest.approx(exact[1] - exact[0], rel=0.15)


def test_a_draw_takes_as_many_documents_as_there_are():
    resamples = resample_documents(np.arange(30) % 7, Resampling(draws=500, seed=3)).bootstrapped
    assert resamples.weights[0].tolist() == [1] * 7
    assert (resamples.weights.sum(axis=1) == 7).all()
    assert resamples.weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.2)
    again = resample_documents(np.arange(30) % 7, Resampling(draws=500, seed=3)).bootstrapped
    assert np.array_equal(again.weights, resamples.weights)


def test_draws_are_multinomial():
    weights = resample_documents(np.arange(5), Resampling(draws=20_000, seed=0)).bootstrapped.weights[1:]
    observed = np.bincount(weights[:, 0], minlength=6)
    expected = 20_000 * stats.binom.pmf(np.arange(6), 5, 0.2)
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    assert np.cov(weights.T)[0, 1] == pytest.approx(-0.2, abs=0.03)


def test_documents_may_be_names_in_any_order(columns):
    resamples = columns(np.array(["z", "a", "m", "a", "z"]))
    assert resamples.n_documents == 3
    for weights in resamples.sample_weights:
        assert weights[0] == weights[4]
        assert weights[1] == weights[3]


def test_confusion_of_every_column_is_that_of_the_copied_samples(columns):
    predicted, labels, documents = decisions()
    resamples = columns(documents)
    drawn = resampled_confusion(predicted, labels, resamples)
    for b, weights in enumerate(resamples.sample_weights):
        rows = np.repeat(np.arange(labels.shape[1]), weights)
        for fast, slow in zip(drawn, confusion(predicted[:, rows], labels[:, rows]), strict=True):
            assert np.array_equal(fast[:, b], slow)


def test_confusion_carries_leading_axes():
    predicted, labels, documents = decisions()
    resamples = resample_documents(documents)
    both = resampled_confusion(np.stack([predicted, ~predicted]), labels, resamples)
    for k, said in enumerate((predicted, ~predicted)):
        one = resampled_confusion(said, labels, resamples)
        assert all(np.array_equal(a[k], b) for a, b in zip(both, one, strict=True))


def drawn_f1(predicted, labels, resamples, average="weighted"):
    """Mean F1 over concepts in every column."""
    counts = resampled_confusion(predicted, labels, resamples)
    positives = (counts.tp + counts.fn).T
    values = np.where(positives > 0, f1(counts).T, np.nan)
    return resamples.drawn(mean_over_concepts(values, positives, average), "share")


def test_mean_f1_equals_a_loop_over_columns(columns):
    predicted, labels, documents = decisions()
    resamples = columns(documents)
    weighted, macro = [], []
    for weights in resamples.sample_weights:
        rows = np.repeat(np.arange(labels.shape[1]), weights)
        counts = confusion(predicted[:, rows], labels[:, rows])
        weighted.append(np.average(f1(counts), weights=labels[:, rows].sum(axis=1)))
        macro.append(f1(counts).mean())
    for average, each in (("weighted", weighted), ("macro", macro)):
        assert drawn_f1(predicted, labels, resamples, average).values == pytest.approx(each, abs=1e-12)
    counts = confusion(predicted, labels)
    expected = np.average(f1(counts), weights=labels.sum(axis=1))
    assert drawn_f1(predicted, labels, resamples).estimate == pytest.approx(expected)


def test_paired_differences_are_column_by_column():
    predicted, labels, documents = decisions()
    resamples = resample_documents(documents)
    ours = drawn_f1(predicted, labels, resamples)
    theirs = drawn_f1(np.ones_like(labels), labels, resamples)
    paired = ours - theirs
    assert np.array_equal(paired.values, ours.values - theirs.values)
    macro = drawn_f1(predicted, labels, resamples, "macro")
    same = macro - macro
    assert (same.estimate, same.excludes_zero) == (0, False)
    other = resample_documents((documents + 1) % 17)
    with pytest.raises(ValueError, match="needs the same, drawn from one Resamples"):
        ours - drawn_f1(predicted, labels, other)
    draws = resample_documents(documents, Resampling(draws=len(resamples.weights) - 1)).bootstrapped
    with pytest.raises(ValueError, match="needs the same, drawn from one Resamples"):
        ours - drawn_f1(predicted, labels, draws)
    with pytest.raises(ValueError, match="average 'mean' is unknown: use 'weighted' or 'macro'"):
        inspect.unwrap(mean_over_concepts)(np.ones(2), np.ones(2), "mean")


@pytest.mark.parametrize("documents", [7, 260])
def test_a_ratio_without_each_document_is_that_of_the_others(documents):
    rng = np.random.default_rng(2)
    home = rng.permutation(np.arange(documents).repeat(2))
    x, y = rng.gamma(1, size=len(home)), rng.gamma(3, size=len(home))
    resamples = resample_documents(home)
    ours = bootstrap_mean(x, resamples, per=y)
    for column, left in zip(ours.values[1:], range(resamples.units), strict=True):
        kept = resamples.document != left
        assert column == pytest.approx(x[kept].sum() / y[kept].sum())
    assert ours.estimate == pytest.approx(x.sum() / y.sum())


def test_clusters_widen_the_interval():
    rng = np.random.default_rng(4)
    documents = np.repeat(np.arange(20), 15)
    x = rng.standard_normal(20)[documents] + 0.1 * rng.standard_normal(300)
    clustered = bootstrap_mean(x, documents)
    naive = bootstrap_mean(x, np.arange(300))
    assert clustered.high - clustered.low > 2.5 * (naive.high - naive.low)


def test_sums_by_document_and_column(columns):
    rng = np.random.default_rng(6)
    values, documents = rng.standard_normal((2, 3, 40)), rng.integers(9, size=40)
    resamples = columns(documents)
    for d in range(resamples.units):
        expected = values[..., resamples.document == d].sum(axis=-1)
        assert document_sums(values, resamples)[..., d] == pytest.approx(expected)
    expected = np.einsum("abn,rn->abr", values, resamples.sample_weights)
    assert resampled_sums(values, resamples) == pytest.approx(expected)


def test_a_subset_may_miss_documents(columns):
    resamples = columns(np.arange(10))
    some = resamples.of(np.array([7, 2, 2]))
    expected = resamples.weights[:, [7, 2, 2]] @ np.array([1.0, 10, 100])
    assert resampled_sums(np.array([1.0, 10, 100]), some) == pytest.approx(expected)


def test_large_counts_stay_exact(columns):
    values = np.full(3, (1 << 24) + 1)
    resamples = columns(np.arange(3))
    expected = resamples.weights @ values
    assert np.array_equal(resampled_sums(values, resamples), expected)


def test_bad_arguments_say_what_was_expected(as_shipped):
    with pytest.raises(ValueError, match=r"9 samples come from 1 document: .* at least two"):
        resample_documents(np.zeros(9))
    with pytest.raises(ValueError, match="draws is 0"):
        resample_documents(np.arange(4), Resampling(draws=0))
    with pytest.raises(ValueError, match="5 samples in their last axis, the resamples 4"):
        resampled_sums(np.zeros(5), resample_documents(np.arange(4)))
