"""Quantiles and thresholds against numpy, to the bit."""

import warnings

import numpy as np
import pytest
from jaxtyping import config

from sa_plugin.statistics import (
    DELTAS,
    EmptyConceptWarning,
    FewTokensWarning,
    balanced_weights,
    quantiles,
    quantiles_sorted,
    tail_levels,
    tail_thresholds,
    tail_thresholds_cross,
    weighted_quantiles,
)

LEVELS = [0.0, 0.25, 0.5, 0.995, 1.0, *(1 - np.array(DELTAS))]


@pytest.fixture
def as_shipped():
    """Users run without the shape checks of the tests: what they see are the library's errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def case(rng, dtype=np.float32):
    n = int(rng.integers(1, 120))
    x = (rng.standard_normal(n) * 10.0 ** rng.integers(-4, 4)).astype(dtype)
    if rng.random() < 0.3:
        x = np.round(x.astype(np.float32), 1).astype(dtype)
    if rng.random() < 0.2:
        x[rng.random(n) < 0.5] = -0.0
    return x


def table(n=3000, layers=3, seed=0, shares=(0.05, 0.1, 0.3, 0.6)):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((n, layers, len(shares))).astype(np.float32)
    scores[::7] = np.round(scores[::7], 1)
    return scores, rng.random((n, len(shares))) < shares


def slow(scores, labels, deltas=DELTAS):
    """One `numpy.quantile` a concept, layer and delta."""
    out = np.full((len(deltas), *scores.shape[1:]), np.inf)
    for index in np.ndindex(scores.shape[1:]):
        values = scores[(labels[:, index[-1]], *index)].astype(np.float64)
        for d, delta in enumerate(deltas):
            if len(values):
                out[(d, *index)] = np.quantile(values, 1 - delta)
    return out


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_quantiles_are_numpys_to_the_bit(dtype):
    rng = np.random.default_rng(0)
    for _ in range(2000):
        x, q = case(rng, dtype), [*LEVELS, *rng.random(4)]
        assert np.array_equal(quantiles(x, q), np.quantile(x.astype(np.float64), q))


def test_sorted_quantiles_run_over_leading_axes():
    x = np.sort(np.random.default_rng(1).standard_normal((2, 3, 40)).astype(np.float32))
    expected = np.quantile(x.astype(np.float64), LEVELS, axis=-1)
    assert np.array_equal(quantiles_sorted(x, LEVELS), expected)


def test_thresholds_are_numpys_over_concepts_and_layers():
    scores, labels = table()
    assert np.array_equal(tail_thresholds(scores, labels), slow(scores, labels))
    assert np.array_equal(tail_thresholds(scores[:, 0], labels), slow(scores[:, 0], labels))


def test_thresholds_of_more_tokens_than_a_block_holds():
    scores, labels = table(n=90_000)
    assert np.array_equal(tail_thresholds(scores, labels), slow(scores, labels))


def test_cross_thresholds_pair_every_unit_with_every_concept():
    scores, labels = table()
    units = np.concatenate([scores, scores[..., :3] ** 2], axis=-1)
    cross = tail_thresholds_cross(units, labels, (0.05, 0.4))
    assert cross.shape == (2, 4, 3, 7)
    for c, layer, u in np.ndindex(4, 3, 7):
        values = units[labels[:, c], layer, u].astype(np.float64)
        assert np.array_equal(cross[:, c, layer, u], np.quantile(values, [0.95, 0.6]))


def test_cross_on_the_diagonal_is_the_supervised_threshold():
    scores, labels = table()
    cross, own = tail_thresholds_cross(scores, labels), tail_thresholds(scores, labels)
    for c in range(4):
        assert np.array_equal(cross[:, c, :, c], own[:, :, c])


def test_token_order_and_power_of_two_scales_change_nothing():
    scores, labels = table()
    order = np.random.default_rng(3).permutation(len(scores))
    whole = tail_thresholds(scores, labels)
    assert np.array_equal(tail_thresholds(scores[order], labels[order]), whole)
    assert np.array_equal(tail_thresholds(scores * 8, labels), whole * 8)


def test_a_share_delta_of_the_tokens_reaches_the_threshold():
    scores, labels = table(n=20_000)
    for d, delta in enumerate(DELTAS):
        values = scores[labels[:, 2], 0, 2]
        share = (values >= tail_thresholds(scores, labels)[d, 0, 2]).mean()
        assert abs(share - delta) < 2 / len(values) + 0.01


def test_balanced_weights_are_the_formula_of_the_module():
    rng = np.random.default_rng(2)
    for _ in range(50):
        n = int(rng.integers(2, 40))
        x, w = rng.standard_normal(n), rng.random(n) + 0.1
        order = np.argsort(x)
        p = [sum(w[order[:i]]) / (w.sum() - w[order[i]]) for i in range(n)]
        for q in (0.0, 0.3, 0.95, 1.0):
            k = max(i for i in range(n) if p[i] <= q + 1e-12)
            expected = x[order[k]]
            if k + 1 < n:
                t = (q - p[k]) / (p[k + 1] - p[k])
                expected += t * (x[order[k + 1]] - x[order[k]])
            assert weighted_quantiles(x, w, [q])[0] == pytest.approx(expected, abs=1e-9)


def test_balanced_weights_count_samples_not_tokens():
    scores = np.array([[9.0]] * 90 + [[1.0]] * 5 + [[2.0]] * 5, dtype=np.float32)
    labels, sample_of = np.ones((100, 1), dtype=bool), np.repeat([0, 1, 2], [90, 5, 5])
    assert balanced_weights(sample_of)[[0, 99]] == pytest.approx([1 / 90, 0.2])
    plain = tail_thresholds(scores, labels, [0.5])
    balanced = tail_thresholds(scores, labels, [0.5], weights="balanced", sample_of=sample_of)
    assert plain[0, 0] == 9
    assert balanced[0, 0] == pytest.approx(2, abs=0.2)


def test_balanced_equals_plain_with_one_token_a_sample():
    scores, labels = table()
    once = {"weights": "balanced", "sample_of": np.arange(len(scores))}
    plain = tail_thresholds(scores, labels)
    assert tail_thresholds(scores, labels, **once) == pytest.approx(plain, rel=1e-9)
    few = tail_thresholds_cross(scores, labels, (0.1,), **once)
    assert few == pytest.approx(tail_thresholds_cross(scores, labels, (0.1,)), rel=1e-9)


def test_too_few_tokens_is_a_named_warning():
    scores, labels = table()
    labels[:, 1] = False
    labels[:30, 1] = True
    with pytest.warns(FewTokensWarning, match=r"1 of 4 .*'b' has 30 \(delta 0.02 needs 50\)"):
        tail_thresholds(scores, labels, names=list("abcd"))


def test_enough_tokens_is_no_warning():
    scores, labels = table()
    labels[:, 1] = False
    labels[:50, 1] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tail_thresholds(scores, labels)


@pytest.mark.parametrize("thresholds", [tail_thresholds, tail_thresholds_cross])
def test_an_empty_concept_is_infinite_and_a_named_warning(thresholds):
    scores, labels = table()
    labels[:, 2] = False
    with pytest.warns(EmptyConceptWarning, match=r"no in-concept tokens for 'c': .* \+inf"):
        found = thresholds(scores, labels, names=list("abcd"))
    empty = found[..., 2] if thresholds is tail_thresholds else found[:, 2]
    assert np.isposinf(empty).all()
    assert not np.isnan(found).any()


@pytest.mark.parametrize("thresholds", [tail_thresholds, tail_thresholds_cross])
def test_nan_and_inf_are_refused_with_counts(thresholds):
    scores, labels = table()
    scores[5, 0, 0], scores[6, 1, 1], scores[7, 2, 2] = np.nan, np.inf, -np.inf
    with pytest.raises(ValueError, match=r"1 NaN and 2 Inf of 36000"):
        thresholds(scores, labels)
    with pytest.raises(ValueError, match=r"values hold 1 NaN and 0 Inf of 2"):
        quantiles(np.array([1.0, np.nan]), [0.5])


def test_bad_arguments_say_what_was_expected(as_shipped):
    scores, labels = table(n=20)
    with pytest.raises(ValueError, match=r"delta 0.0 is outside \(0, 1\]"):
        tail_thresholds(scores, labels, [0.1, 0.0])
    with pytest.raises(ValueError, match="one or more numbers"):
        tail_levels([])
    with pytest.raises(ValueError, match="3 columns for 4 concepts: use tail_thresholds_cross"):
        tail_thresholds(scores[..., :3], labels)
    with pytest.raises(ValueError, match="of the same tokens"):
        tail_thresholds(scores[:-1], labels)
    with pytest.raises(ValueError, match="balanced weights need sample_of"):
        tail_thresholds(scores, labels, weights="balanced")
    with pytest.raises(ValueError, match="at least one value"):
        quantiles(np.zeros(0, np.float32), [0.5])
    with pytest.raises(ValueError, match="not a number from 0 to 1"):
        quantiles(np.zeros(3, np.float32), [1.5])


def test_the_grid_is_the_papers():
    assert DELTAS == (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
