"""C1, C2 and T2 of the idealised model against simulation."""

import math

import numpy as np
import pytest
from ideal_model.dynamics import IdealModel, attention, simulate, step
from ideal_model.predictions import concentration, extreme_log_odds, local_gain, skew_growth, tail_spread
from scipy import stats
from theory_cases import ONE, TWO, skewed, tilted_variance

from sa_plugin.statistics import skewness

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
