"""AUROC, average precision and the start of the ROC curve against scikit-learn and loops, resampled too."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from sa_plugin.statistics import (
    Resampling,
    auroc,
    average_precision,
    resample_documents,
    resampled_auroc,
    resampled_average_precision,
    resampled_roc_start,
)


def scores_and_labels(n=200, columns=5, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((n, columns)).astype(np.float32)
    return (np.round(scores, 1) if ties else scores), rng.random((n, columns)) < 0.3


@pytest.mark.parametrize("ties", [True, False])
def test_columns_equal_scikit_learn(ties):
    scores, labels = scores_and_labels(ties=ties)
    for k, (s, y) in enumerate(zip(scores.T, labels.T, strict=True)):
        assert auroc(scores, labels)[k] == pytest.approx(roc_auc_score(y, s), abs=1e-12)
        expected = average_precision_score(y, s)
        assert average_precision(scores, labels)[k] == pytest.approx(expected, abs=1e-12)


def test_labels_broadcast_over_columns():
    scores, labels = scores_and_labels()
    one = labels[:, :1]
    assert np.array_equal(auroc(scores, one), auroc(scores, np.repeat(one, 5, axis=1)))


def test_an_empty_class_is_nan():
    scores, labels = scores_and_labels()
    labels[:, 0], labels[:, 1] = True, False
    for measure in (auroc, average_precision):
        assert np.array_equal(np.isnan(measure(scores, labels)), [True, True, False, False, False])


def test_monotone_maps_change_nothing():
    scores, labels = scores_and_labels(ties=False)
    assert np.array_equal(auroc(np.exp(scores), labels), auroc(scores, labels))


def test_nan_scores_are_refused():
    scores, labels = scores_and_labels()
    scores[0, 0] = np.nan
    with pytest.raises(ValueError, match="1 NaN and 0 Inf"):
        auroc(scores, labels)


@pytest.mark.parametrize("documents", [5, 60, 200])
def test_draws_equal_scikit_learn_on_copied_rows(documents):
    scores, labels = scores_and_labels()
    s, y = scores[:, 0], labels[:, 0]
    home = np.random.default_rng(1).integers(documents, size=len(s))
    resamples = resample_documents(home, Resampling(draws=40, seed=2)).bootstrapped
    areas = resampled_auroc(s, y, resamples)
    precisions = resampled_average_precision(s, y, resamples)
    for b, weights in enumerate(resamples.sample_weights):
        rows = np.repeat(np.arange(len(s)), weights)
        assert areas[b] == pytest.approx(roc_auc_score(y[rows], s[rows]), abs=1e-12)
        expected = average_precision_score(y[rows], s[rows])
        assert precisions[b] == pytest.approx(expected, abs=1e-12)


def test_both_ways_to_resample_auroc_agree():
    scores, labels = scores_and_labels()
    resamples = resample_documents(np.arange(200) % 23, Resampling(draws=100)).bootstrapped
    # Many documents without a row change nothing but the way that is taken.
    many = replace(resamples, weights=np.pad(resamples.weights, ((0, 0), (0, 200))))
    assert many.units**2 > 64 * len(scores) > resamples.units**2
    by_rows = resampled_auroc(scores[:, 0], labels[:, 0], many)
    assert resampled_auroc(scores[:, 0], labels[:, 0], resamples) == pytest.approx(by_rows, abs=1e-12)


def test_draws_without_a_class_are_nan():
    labels = np.array([True, False, False])
    scores = np.array([3.0, 2.0, 1.0])
    resamples = resample_documents(np.arange(3), Resampling(draws=200)).bootstrapped
    lacking = (resamples.weights[:, 0] == 0) | (resamples.weights[:, 0] == 3)
    for measure in (resampled_auroc, resampled_average_precision):
        assert np.array_equal(np.isnan(measure(scores, labels, resamples)), lacking)


def highest_tpr(scores, labels, rate):
    """Over every threshold, infinity among them, that at most so many negatives reach."""
    found = [0.0]
    for cut in set(scores.tolist()):
        fired = scores >= cut
        if (fired & ~labels).sum() <= rate * (~labels).sum() + 1e-9:
            found.append((fired & labels).sum() / labels.sum())
    return max(found)


@pytest.mark.parametrize("ties", [True, False])
def test_the_start_of_the_curve_equals_scikit_learn_and_every_threshold(ties):
    scores, labels = scores_and_labels(ties=ties)
    s, y = scores[:, 0] + y_lift(labels[:, 0]), labels[:, 0]
    resamples = resample_documents(np.arange(len(s)) % 23)
    rates = [0.0, 0.01, 0.05, 0.3, 1.0]
    start = resampled_roc_start(s, y, resamples, rates, 0.1)
    for b, weights in enumerate(resamples.sample_weights):
        kept = weights > 0
        assert start.area[b] == pytest.approx(roc_auc_score(y[kept], s[kept], max_fpr=0.1), abs=1e-12)
        for rate, tpr in zip(rates, start.tpr[:, b], strict=True):
            assert tpr == pytest.approx(highest_tpr(s[kept], y[kept], rate), abs=1e-12)


def y_lift(labels):
    return np.where(labels, 1.5, 0.0).astype(np.float32)


def test_the_start_of_the_curve_weighs_draws_as_copies():
    scores, labels = scores_and_labels()
    s, y = scores[:, 0], labels[:, 0]
    resamples = resample_documents(np.arange(200) % 23, Resampling(draws=30)).bootstrapped
    start = resampled_roc_start(s, y, resamples, [0.05], 0.1)
    for b, weights in enumerate(resamples.sample_weights):
        rows = np.repeat(np.arange(len(s)), weights)
        assert start.area[b] == pytest.approx(roc_auc_score(y[rows], s[rows], max_fpr=0.1), abs=1e-12)
        assert start.tpr[0, b] == pytest.approx(highest_tpr(s[rows], y[rows], 0.05), abs=1e-12)


def test_the_start_of_the_curve_without_a_class_is_nan():
    scores, labels = np.array([3.0, 2.0, 1.0]), np.array([True, False, False])
    resamples = resample_documents(np.arange(3))
    for y in (labels, ~labels):
        start = resampled_roc_start(scores, y, resamples, [0.5], 0.1)
        lacking = [False, True, False, False]
        assert np.array_equal(np.isnan(start.area), lacking)
        assert np.array_equal(np.isnan(start.tpr[0]), lacking)
