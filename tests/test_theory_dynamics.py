"""The idealised model against explicit loops, and each of its predictions against simulation."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import integrate, stats

from sa_plugin.statistics import skewness
from sa_plugin.theory import (
    IdealModel,
    attention,
    check_gaps,
    check_layers,
    check_prefix_gaps,
    common_prefix_updates,
    concentration,
    extreme_log_odds,
    gap_factors,
    gaps_safe_from_noise,
    layer_slopes,
    local_gain,
    noise_floor,
    simulate,
    skew_growth,
    step,
    tail_spread,
)

ONE = IdealModel((0.8,), (0.3,))
CAUSAL = IdealModel((0.8,), (0.3,), causal=True)
TWO = IdealModel((0.8, 0.3), (0.3, 0.5))


def skewed(seed=0, n=400, spread=0.5):
    """A centred gamma law of shape 9, skewness about .67."""
    x = np.random.default_rng(seed).gamma(9, size=n)
    return spread * (x - x.mean()) / x.std()


def step_by_loops(a, model):
    after = []
    for i in range(len(a)):
        seen = range(i + 1) if model.causal else range(len(a))
        total = a[i]
        for beta, gamma in zip(model.beta, model.gamma, strict=True):
            weights = [math.exp(beta * a[i] * a[j]) for j in seen]
            read = sum(w * a[j] for w, j in zip(weights, seen, strict=True))
            total += gamma * read / sum(weights)
        after.append(total)
    return np.array(after)


def tilted_variance(a, t):
    weights = np.exp(t * a) / np.exp(t * a).sum()
    return float(weights @ a**2 - (weights @ a) ** 2)


@pytest.fixture(scope="module")
def checks():
    """The trial of the notes: 400 tokens, beta .8, gamma .3, 14 layers."""
    return check_layers(simulate(skewed(), ONE, layers=14))


# The simulation


@pytest.mark.parametrize("model", [ONE, CAUSAL, TWO, IdealModel((0.8, 0.3), (0.3, 0.5), True)])
def test_a_step_is_its_definition(model):
    a = np.random.default_rng(1).normal(size=23)
    np.testing.assert_allclose(step(a, model), step_by_loops(a, model), rtol=1e-12)


def test_layers_are_steps():
    a = skewed(n=30)
    trajectory = simulate(a, TWO, layers=4)
    np.testing.assert_array_equal(trajectory.activations[0], a)
    for layer in range(4):
        a = step_by_loops(a, TWO)
        np.testing.assert_allclose(trajectory.activations[layer + 1], a, rtol=1e-11)


def test_token_order_changes_nothing_without_a_mask_and_something_with_one():
    a = skewed(n=60)
    order = np.random.default_rng(0).permutation(60)
    for model, same in [(ONE, True), (TWO, True), (CAUSAL, False)]:
        permuted = simulate(a[order], model, 5).activations
        assert np.allclose(permuted, simulate(a, model, 5).activations[:, order]) is same


def test_the_mirror_image_stays_one():
    a = skewed(n=60)
    np.testing.assert_allclose(
        simulate(-a, TWO, 6).activations, -simulate(a, TWO, 6).activations, rtol=1e-12
    )


def test_equal_heads_add_their_writes():
    a = skewed(n=40)
    two = IdealModel((0.8, 0.8), (0.1, 0.2))
    np.testing.assert_allclose(step(a, two), step(a, ONE), rtol=1e-12)


def test_errors_depend_on_the_seed_alone_and_stay_in_bounds():
    a = skewed(n=50)
    noisy = IdealModel((0.8,), (0.3,), write_error=0.01)
    one, other = simulate(a, noisy, 3, seed=1), simulate(a, noisy, 3, seed=2)
    np.testing.assert_array_equal(one.activations, simulate(a, noisy, 3, seed=1).activations)
    assert not np.array_equal(one.activations, other.activations)
    off = np.abs(one.activations[1] - step(a, ONE))
    assert 0 < off.max() <= 0.01


def test_large_activations_do_not_overflow():
    last = simulate(skewed(spread=50.0), ONE, 60).activations[-1]
    assert np.isfinite(last).all()


# The trial of the notes


def test_no_gap_shrinks(checks):
    assert min(c.smallest_gap_ratio for c in checks) >= 1 - 1e-6


def test_skew_rises_to_layer_7_and_then_falls(checks):
    skews = [c.skew for c in checks]
    assert int(np.argmax(skews)) == 7
    assert skews[0] == pytest.approx(0.62, abs=0.01)
    assert skews[7] == pytest.approx(1.38, abs=0.01)
    assert skews[13] == pytest.approx(-0.14, abs=0.01)
    assert all(c.skew_change > 0 for c in checks[:7])
    assert all(c.skew_change < 0 for c in checks[7:])


@pytest.mark.parametrize("seed", range(1, 6))
def test_skew_rises_and_falls_whatever_the_start(seed):
    skews = [skewness(a) for a in simulate(skewed(seed), ONE, 14).activations]
    peak = int(np.argmax(skews))
    assert 5 <= peak <= 8
    assert skews[peak] > 1.3 * skews[0]
    assert skews[13] < skews[0] - 0.4


def test_attention_goes_to_the_top_token(checks):
    on_top, entropy = [c.on_top for c in checks], [c.entropy for c in checks]
    assert (np.diff(on_top) > 0).all()
    assert (np.diff(entropy) < 0).all()
    assert on_top[0] == pytest.approx(0.005, abs=0.001)
    assert on_top[13] == pytest.approx(0.78, abs=0.01)
    assert entropy[0] == pytest.approx(5.97, abs=0.01)
    assert entropy[13] == pytest.approx(1.70, abs=0.01)


def test_the_tail_equalises_at_its_rate_late_and_not_early(checks):
    assert all(c.equalisation_predicted == pytest.approx(1 / 1.3) for c in checks)
    for check in checks[9:]:
        assert check.equalisation == pytest.approx(1 / 1.3, abs=2e-3)
    assert all(c.equalisation > 0.98 for c in checks[:6])


def test_predicted_skew_growth_is_good_early_and_void_late(checks):
    for check in checks[:5]:
        assert check.skew_change == pytest.approx(check.skew_predicted, rel=0.3)
    assert checks[8].skew_predicted > 0 > checks[8].skew_change


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


# C1: concentration


def test_log_odds_are_exact():
    a, pattern = skewed(n=30), attention(skewed(n=30), TWO)
    logs = np.log(pattern)
    for head, beta in enumerate(TWO.beta):
        for i in range(30):
            direct = logs[head, i][:, None] - logs[head, i][None]
            np.testing.assert_allclose(direct, beta * a[i] * (a[:, None] - a), atol=1e-12)
            best, second = np.sort(logs[head, i])[::-1][:2]
            assert extreme_log_odds(a, TWO)[head, i] == pytest.approx(best - second, abs=1e-12)


def test_log_odds_grow_with_every_layer():
    a = simulate(skewed(), ONE, 14).activations
    # A token's own sign may turn while the mean is written; those that start in a tail keep it.
    tails = np.abs(a[0]) > np.quantile(np.abs(a[0]), 0.5)
    odds = np.array([extreme_log_odds(row, ONE)[0][tails] for row in a])
    assert (np.sign(a[:, tails]) == np.sign(a[0, tails])).all()
    assert (np.diff(odds, axis=0) > 0).all()


def test_concentration_is_its_definition():
    a, pattern = skewed(n=25), attention(skewed(n=25), TWO)
    found = concentration(pattern, a)
    top = [pattern[h, i, a.argmax()] for h in range(2) for i in range(25) if a[i] > 0]
    bottom = [pattern[h, i, a.argmin()] for h in range(2) for i in range(25) if a[i] < 0]
    assert found.on_top == pytest.approx(np.mean(top))
    assert found.on_bottom == pytest.approx(np.mean(bottom))
    assert found.entropy == pytest.approx(stats.entropy(pattern, axis=-1).mean())
    even = concentration(np.full((1, 8, 8), 1 / 8), np.arange(8.0))
    assert even.entropy == pytest.approx(np.log(8))
    assert math.isnan(even.on_bottom)


# C2: equalisation


@pytest.mark.parametrize("gammas", [(0.1,), (0.3,), (1.0,), (0.2, 0.4)])
def test_a_concentrated_tail_equalises_at_one_over_one_plus_gamma(gammas):
    model = IdealModel((5.0,) * len(gammas), gammas)
    a = np.concatenate([np.linspace(-1, 1, 50), [8.0, 9.0, 10.0, 12.0]])
    for sign in (1, -1):
        spreads = [tail_spread(sign * row) for row in simulate(sign * a, model, 5).activations]
        ratios = np.divide(spreads[1:], spreads[:-1])
        np.testing.assert_allclose(ratios, 1 / (1 + sum(gammas)), rtol=1e-6)


def test_tail_spread_is_scale_free_and_undefined_without_a_positive_tail():
    a = skewed()
    assert tail_spread(7 * a) == pytest.approx(tail_spread(a), rel=1e-12)
    top = np.sort(a)[-20:-1]
    assert tail_spread(a, 0.05) == pytest.approx(np.mean([1 - x / a.max() for x in top]))
    assert math.isnan(tail_spread(-np.abs(a)))


# T2: skew and local gain


def random_law(rng):
    draw = [
        lambda: rng.gamma(rng.uniform(0.5, 9), size=300),
        lambda: rng.beta(rng.uniform(0.5, 3), rng.uniform(4, 9), size=300),
        lambda: np.where(rng.random(300) < 0.1, rng.normal(3, 1, 300), rng.normal(size=300)),
        lambda: rng.lognormal(0, 0.5, size=300),
    ]
    x = draw[rng.integers(4)]() * rng.choice([-1, 1])
    return (x - x.mean()) / x.std()


def test_small_beta_skew_grows_in_its_own_sign_at_the_predicted_rate():
    rng = np.random.default_rng(11)
    for _ in range(40):
        a = random_law(rng)
        heads = rng.integers(1, 4)
        gammas = tuple(rng.uniform(0.1, 1, heads))
        shares = rng.uniform(0.5, 1, heads)
        misses = []
        for beta in (4e-3, 1e-3):
            model = IdealModel(tuple(beta * shares), gammas)
            change, predicted = skewness(step(a, model)) - skewness(a), skew_growth(a, model)
            assert np.sign(change) == np.sign(predicted) == np.sign(skewness(a))
            misses.append(abs(change / predicted - 1))
        assert misses[1] < 0.02
        # Leading order: the relative miss falls with beta.
        assert misses[1] == pytest.approx(misses[0] / 4, rel=0.3, abs=1e-4)


def test_two_point_laws_keep_their_skew():
    a = np.array([0.0] * 7 + [1.0] * 3)
    assert skew_growth(a, ONE) == pytest.approx(0, abs=1e-12)
    assert skewness(step(a, ONE)) == pytest.approx(skewness(a), abs=1e-9)
    assert math.isnan(skew_growth(np.full(4, 0.1), ONE))


def test_local_gain_is_the_slope_of_the_map_and_favours_the_longer_tail():
    a = skewed()
    gain = local_gain(a, TWO)
    assert (gain > 1).all()
    for i in (0, int(a.argmax()), int(a.argmin())):
        expected = 1 + sum(
            b * g * tilted_variance(a, b * a[i]) for b, g in zip(TWO.beta, TWO.gamma, strict=True)
        )
        assert gain[i] == pytest.approx(expected, rel=1e-10)
    # Mirrored places of a centred law: the difference is 2 sum beta^2 gamma k3 a for small beta.
    x = 0.4
    a = np.append(a, [x, -x, -a.sum()])
    a -= a.mean()
    small = IdealModel((0.01,), (0.3,))
    right, left = local_gain(a, small)[np.abs(np.subtract.outer(a, [x, -x])).argmin(axis=0)]
    assert right - left == pytest.approx(2 * 0.01**2 * 0.3 * np.mean(a**3) * x, rel=0.02)


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


# Slopes


def test_slopes_are_their_definitions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = 0.7 * x + rng.normal(size=200) + 5
    found = layer_slopes(x, y)
    assert found.ols == pytest.approx(np.polyfit(x, y, 1)[0])
    axis = np.linalg.eigh(np.cov(x, y))[1][:, -1]
    assert found.orthogonal == pytest.approx(axis[1] / axis[0])
    assert found.deviation_ratio == pytest.approx(y.std() / x.std())
    assert layer_slopes(x, -y).orthogonal == pytest.approx(-found.orthogonal)
    # Deming's ratio is a change of unit.
    scaled = layer_slopes(x, y, noise_ratio=4.0).orthogonal
    assert scaled == pytest.approx(2 * layer_slopes(x, y / 2).orthogonal)


def test_ols_is_diluted_and_the_others_are_right_under_their_noise():
    rng = np.random.default_rng(1)
    signal = rng.normal(size=100_000)
    error, other = rng.normal(scale=0.6, size=(2, 100_000))
    equal = layer_slopes(signal + error, 1.2 * signal + other)
    assert equal.ols == pytest.approx(0.88, abs=0.01)
    assert equal.orthogonal == pytest.approx(1.2, abs=0.01)
    scaled = layer_slopes(signal + error, 1.2 * (signal + other))
    assert scaled.deviation_ratio == pytest.approx(1.2, abs=0.01)
    assert scaled.orthogonal > 1.22
    told = layer_slopes(signal + error, 1.2 * (signal + other), noise_ratio=1.44)
    assert told.orthogonal == pytest.approx(1.2, abs=0.01)


def test_without_noise_all_slopes_agree_whatever_the_offsets_of_samples():
    rng = np.random.default_rng(2)
    x, sample = rng.normal(size=90), np.repeat([7, 3, 5], 30)
    found = layer_slopes(x + sample, 1.3 * x - 20 * sample, sample=sample)
    for slope in (found.ols, found.orthogonal, found.deviation_ratio):
        assert slope == pytest.approx(1.3)
    assert (found.n_tokens, found.n_samples) == (90, 3)
    assert math.isnan(layer_slopes(np.ones(5), rng.normal(size=5)).orthogonal)


# Boundary


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: IdealModel((0.8,), (0.3, 0.1)), "1 beta and 2 gamma"),
        (lambda: IdealModel((), ()), "give one of each a head"),
        (lambda: IdealModel((0.8, -1.0), (0.3, 0.1)), r"beta\[1\] is -1.0: an aligned head"),
        (lambda: IdealModel((0.8,), (float("nan"),)), r"gamma\[0\] is nan"),
        (lambda: IdealModel((0.8,), (0.3,), False, -0.1), "logit_error is -0.1"),
        (lambda: simulate(skewed(), ONE, 0), "layers is 0: give at least 1"),
        (lambda: step(np.array([1.0]), ONE), "1 activations, 0 of them not finite"),
        (lambda: step(np.array([1.0, np.nan]), ONE), "2 activations, 1 of them not finite"),
        (lambda: step(skewed(), IdealModel((0.8,), (0.3,), False, 0.1)), "give a generator"),
        (lambda: gap_factors(skewed(), CAUSAL), "check_prefix_gaps"),
        (lambda: skew_growth(skewed(), CAUSAL), "the model is causal"),
        (lambda: check_layers(simulate(skewed(n=9), CAUSAL, 2)), "the model is causal"),
        (lambda: tail_spread(skewed(), 0.0), r"tail 0.0 must lie in \(0, 1\]"),
        (
            lambda: check_prefix_gaps(skewed(n=4), attention(skewed(n=4), ONE), np.ones((1, 4))),
            "attends to later tokens",
        ),
        (lambda: layer_slopes(np.ones(2), np.ones(2), noise_ratio=0.0), "noise_ratio is 0.0"),
        (lambda: layer_slopes(np.ones(2), np.array([1, np.inf])), "must be finite"),
    ],
)
def test_refusals_say_what_and_why(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_results_print_one_line(checks):
    trajectory = simulate(skewed(n=20), IdealModel((0.8, 0.3), (0.3, 0.5), True, 0.1, 0.2), 2)
    assert repr(trajectory) == (
        "Trajectory: 20 tokens through 2 layers of IdealModel: 2 heads, beta 0.8, 0.3, "
        "gamma 0.3, 0.5, causal, errors 0.1, 0.2"
    )
    a = skewed(n=20)
    results = [
        checks[0],
        check_gaps(a, step(a, ONE)),
        concentration(attention(a, ONE), a),
        layer_slopes(a, step(a, ONE)),
    ]
    for result in results:
        assert "\n" not in repr(result)
        assert repr(result).startswith(type(result).__name__)
