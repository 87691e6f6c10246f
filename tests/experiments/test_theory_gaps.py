"""T1 and the noise floor: gaps against quadrature, loops and hostile errors; common prefixes."""

import math
from itertools import pairwise

import numpy as np
import pytest
from ideal_model.dynamics import IdealModel, attention, simulate, step
from ideal_model.gaps import check_gaps, check_prefix_gaps, common_prefix_updates
from ideal_model.predictions import gap_factors, gaps_safe_from_noise, local_gain, noise_floor
from scipy import integrate, stats
from theory_cases import CAUSAL, ONE, TWO, skewed, step_by_loops, tilted_variance

# T1: gaps


@pytest.mark.parametrize("model", [ONE, TWO])
def test_gap_factor_is_the_mean_tilted_variance_and_the_ratio_of_gaps(model):
    a = np.random.default_rng(3).normal(size=7)
    after, factors = step_by_loops(a, model), gap_factors(a, model)
    for i in range(7):
        for j in range(i):
            expected = 1.0
            for beta, gamma in zip(model.beta, model.gamma, strict=True):
                area, _ = integrate.quad(lambda t: tilted_variance(a, t), beta * a[j], beta * a[i])
                expected += gamma * area / (a[i] - a[j])
            assert factors[i, j] == pytest.approx(expected, rel=1e-9)
            assert (after[i] - after[j]) / (a[i] - a[j]) == pytest.approx(expected, rel=1e-9)


def test_gap_factor_is_continuous_through_ties():
    a = np.array([-1.0, 0.3, 0.3, 0.3 + 1e-7, 0.3 + 1e-4, 2.0])
    factors = gap_factors(a, TWO)
    assert np.ptp(factors[1, 1:5]) < 1e-3
    assert factors[1, 2] == pytest.approx(local_gain(a, TWO)[1], rel=1e-12)
    np.testing.assert_array_equal(factors, factors.T)


def test_gaps_grow_from_any_start():
    rng = np.random.default_rng(5)
    for _ in range(20):
        model = IdealModel(tuple(rng.uniform(0.05, 3, 2)), tuple(rng.uniform(0.05, 2, 2)))
        trajectory = simulate(rng.standard_t(3, size=80), model, 6)
        for before, after in pairwise(trajectory.activations):
            check = check_gaps(before, after)
            assert (check.shrunk, check.flipped, check.kendall) == (0, 0, 1)
            assert gap_factors(before, model).min() >= 1 - 1e-9


def test_gap_check_is_all_pairs_and_kendalls_tau():
    rng = np.random.default_rng(0)
    before = rng.normal(size=40)
    after = before + rng.normal(size=40)
    ratios = [(after[i] - after[j]) / (before[i] - before[j]) for i in range(40) for j in range(i)]
    check = check_gaps(before, after)
    assert check.pairs == len(ratios) == 780
    assert check.smallest_ratio == pytest.approx(min(ratios))
    assert check.shrunk == pytest.approx(np.mean([r < 1 for r in ratios]))
    assert check.flipped == pytest.approx(np.mean([r < 0 for r in ratios]))
    assert check.kendall == pytest.approx(stats.kendalltau(before, after).statistic)


def test_ties_are_left_out():
    check = check_gaps(np.array([1.0, 1.0, 2.0]), np.array([5.0, 6.0, 9.0]))
    assert (check.pairs, check.left_out) == (2, 1)
    none = check_gaps(np.ones(3), np.ones(3))
    assert none.pairs == 0
    assert math.isnan(none.smallest_ratio)


# The causal mask


def test_a_causal_mask_shrinks_gaps_and_the_common_prefix_restores_them():
    shrunk, flipped, left_out = [], [], []
    for seed in range(4):
        a = simulate(skewed(seed), CAUSAL, 14).activations
        for before, after in pairwise(a):
            raw = check_gaps(before, after)
            shrunk.append(raw.shrunk)
            flipped.append(raw.flipped)
            writes = CAUSAL.gamma[0] * before[None]
            restored = check_prefix_gaps(before, attention(before, CAUSAL), writes)
            assert restored.shrunk == restored.flipped == 0
            assert restored.smallest_ratio >= 1 - 1e-6
            left_out.append(restored.left_out / (400 * 399 / 2))
    assert np.mean(shrunk) == pytest.approx(0.07, abs=0.01)
    assert np.mean(flipped) == pytest.approx(0.01, abs=0.003)
    assert np.mean(left_out) < 0.01


@pytest.mark.parametrize("heads", [1, 2])
def test_prefix_updates_are_steps_over_the_prefix(heads):
    a = np.random.default_rng(2).normal(size=15)
    model = IdealModel(TWO.beta[:heads], TWO.gamma[:heads], causal=True)
    updates = common_prefix_updates(attention(a, model), np.outer(model.gamma, a))
    for i in range(15):
        for last in range(i + 1):
            expected = 0.0
            for beta, gamma in zip(model.beta, model.gamma, strict=True):
                weights = [math.exp(beta * a[i] * a[j]) for j in range(last + 1)]
                expected += gamma * np.average(a[: last + 1], weights=weights)
            assert updates[i, last] == pytest.approx(expected, rel=1e-10, abs=1e-14)
        assert np.isnan(updates[i, i + 1 :]).all()
    np.testing.assert_allclose(a + np.diag(updates), step(a, model), rtol=1e-12)


def test_prefix_gaps_of_a_pair_follow_t1_on_the_prefix():
    a = np.random.default_rng(4).normal(size=9)
    updates = common_prefix_updates(attention(a, CAUSAL), 0.3 * a[None])
    for i in range(9):
        for j in range(i):
            keys = a[: j + 1]
            area, _ = integrate.quad(lambda t: tilted_variance(keys, t), 0.8 * a[j], 0.8 * a[i])  # noqa: B023
            later = a[i] + updates[i, j] - a[j] - updates[j, j]
            assert later == pytest.approx(a[i] - a[j] + 0.3 * area, rel=1e-9)


def test_attention_below_the_number_format_is_left_out_not_guessed():
    a = np.array([-40.0, -30.0, 40.0])
    check = check_prefix_gaps(a, attention(a, CAUSAL), 0.3 * a[None])
    assert check.left_out == 2
    assert check.pairs == 1


def test_the_prefix_estimator_does_not_hide_a_shrinking_head():
    a = skewed(n=60)
    pattern = attention(a, CAUSAL)
    opposed = check_prefix_gaps(a, pattern, -0.3 * a[None])
    assert opposed.shrunk > 0.9


# Errors


def test_gaps_above_the_noise_floor_grow_whatever_the_errors():
    rng = np.random.default_rng(9)
    safe = grown = tried = 0
    for seed in range(60):
        a = skewed(seed, n=60, spread=1.0)
        model = IdealModel((0.8,), (0.5,), False, rng.uniform(0, 0.3), rng.uniform(0, 0.1))
        after = step(a, model, rng)
        gaps, later = np.subtract.outer(a, a), np.subtract.outer(after, after)
        sure, larger = gaps_safe_from_noise(a, model), later * np.sign(gaps) > np.abs(gaps)
        assert larger[sure].all()
        safe += sure.sum()
        grown += larger.sum()
        tried += sure.size - len(a)
    # Neither empty nor everything: the guarantee is tested, and not all gaps grow.
    assert 0.05 * tried < safe < 0.9 * tried
    assert safe < grown < tried


def test_the_noise_floor_holds_for_hostile_errors_and_is_tight():
    eta, gamma = 0.7, 0.5
    model = IdealModel((1e-9,), (gamma,), False, eta, 0.0)
    # Weights split so that an error of eta moves tanh(eta / 2), up for one token, down for the
    # other: the worst case of the bound.
    n = 100_000
    mass = 1 / (1 + math.exp(eta))
    keys = np.where(np.arange(n) < round(mass * n), 1.0, 0.0)
    weights = np.exp(np.where(keys == 1, eta, -eta))
    moved = weights @ keys / weights.sum() - keys.mean()
    assert moved == pytest.approx(math.tanh(eta / 2), abs=1e-4)
    assert noise_floor(keys, model) == pytest.approx(2 * gamma * moved, abs=1e-4)
    assert noise_floor(keys, model) < gamma * (math.exp(2 * eta) - 1)


def test_small_gaps_are_not_guaranteed():
    a = skewed()
    noisy = IdealModel((0.8,), (0.3,), write_error=0.05)
    after = step(a, noisy, np.random.default_rng(0))
    assert check_gaps(a, after).shrunk > 0
    assert not gaps_safe_from_noise(a, noisy).all()
