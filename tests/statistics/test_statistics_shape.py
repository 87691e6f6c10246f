"""Skewness, L-skewness and resampled quantiles against scipy, numpy and direct formulas."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from sa_plugin.statistics import (
    Resampling,
    l_skewness,
    resample_documents,
    resampled_l_skewness,
    resampled_quantiles,
    skewness,
)


def l_skewness_by_definition(x):
    """Ratio of L-moments as means over all pairs and triples (Hosking 1990)."""
    l2 = np.mean([(max(p) - min(p)) / 2 for p in combinations(x, 2)])
    triples = [sorted(t) for t in combinations(x, 3)]
    return np.mean([(c - 2 * b + a) / 3 for a, b, c in triples]) / l2


@pytest.mark.parametrize("n", [3, 4, 9, 25])
def test_l_skewness_is_its_definition(n):
    rng = np.random.default_rng(n)
    for _ in range(10):
        x = rng.gamma(1, size=n)
        assert l_skewness(x) == pytest.approx(l_skewness_by_definition(x), abs=1e-10)


def test_l_skewness_of_known_laws():
    rng = np.random.default_rng(0)
    assert l_skewness(rng.exponential(size=200_000)) == pytest.approx(1 / 3, abs=0.01)
    assert l_skewness(rng.uniform(size=200_000)) == pytest.approx(0, abs=0.01)


def test_l_skewness_of_far_off_values_is_stable():
    x = np.random.default_rng(1).gamma(1, size=500)
    assert l_skewness(x + 1e6) == pytest.approx(l_skewness(x), abs=1e-6)
    assert l_skewness(-3 * x) == pytest.approx(-l_skewness(x), abs=1e-12)


def test_skewness_is_scipys():
    rng = np.random.default_rng(2)
    for scale in (1e-3, 1.0, 1e4):
        x = (rng.gamma(1, size=300) * scale + 10 * scale).astype(np.float32)
        assert skewness(x) == pytest.approx(stats.skew(x.astype(np.float64)), abs=1e-9)


@pytest.mark.parametrize("measure", [skewness, l_skewness])
def test_shape_of_a_constant_or_a_pair_is_undefined(measure):
    assert np.isnan(measure(np.full(9, 0.1, dtype=np.float32)))
    assert np.isnan(measure(np.array([1.0, 2.0])))


@pytest.mark.parametrize(("n", "documents"), [(6, 3), (63, 8), (64, 8), (65, 8), (700, 31)])
def test_draws_equal_copied_rows(n, documents):
    rng = np.random.default_rng(n)
    x = np.round(rng.gamma(2, size=n), 1).astype(np.float32)
    resamples = resample_documents(
        rng.permutation(np.arange(n) % documents), Resampling(draws=50, seed=1)
    ).bootstrapped
    q = [0.0, 0.3, 0.95, 0.995, 1.0]
    quantiles, shapes = resampled_quantiles(x, q, resamples), resampled_l_skewness(x, resamples)
    for b, weights in enumerate(resamples.sample_weights):
        rows = x[np.repeat(np.arange(n), weights)].astype(np.float64)
        assert np.array_equal(quantiles[:, b], np.quantile(rows, q))
        assert shapes[b] == pytest.approx(l_skewness(rows), abs=1e-10, nan_ok=True)


def test_draws_that_miss_every_row_are_nan():
    resamples = resample_documents(np.arange(4), Resampling(draws=300)).bootstrapped.of(np.array([2]))
    found = resampled_quantiles(np.array([5.0]), [0.5], resamples)[0]
    assert np.array_equal(np.isnan(found), resamples.weights[:, 2] == 0)
    assert (found[~np.isnan(found)] == 5).all()
    assert np.isnan(resampled_quantiles(np.zeros(0), [0.5], resamples.of(np.zeros(0, int)))).all()
