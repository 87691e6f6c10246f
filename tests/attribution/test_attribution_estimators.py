"""Laws of coalitions and of LIME, KernelSHAP, RISE and SHAP-IQ: enumeration, closed forms, captum."""

from math import comb

import numpy as np
import pytest
import torch
from attribution_toy import interactions, linear_game, random_game, shapley_values, smooth_game

from sa_plugin.attribution import (
    bernoulli,
    deletion,
    enumerated,
    estimate,
    insertion,
    k_sii,
    kernel,
    kernel_shap,
    lime,
    plan_for,
    rise,
    shap_iq,
    shap_iq_pairs,
    shapley,
)


def inputs(plan, game):
    return plan.coalitions, plan.weights, game(plan.coalitions)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_all_coalitions_give_the_shapley_values(n):
    game, plan = random_game(n), enumerated(n)
    expected = shapley_values(game, n)
    np.testing.assert_allclose(kernel_shap(*inputs(plan, game)), expected, atol=1e-10)
    np.testing.assert_allclose(shap_iq(*inputs(plan, game)), expected, atol=1e-10)


@pytest.mark.parametrize("control", [True, False])
@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_all_coalitions_give_the_interactions(n, control):
    game, plan = random_game(n), enumerated(n)
    pairs = shap_iq_pairs(*inputs(plan, game), control=control)
    np.testing.assert_allclose(pairs, interactions(game, n), atol=1e-10)
    assert (pairs[np.arange(n), np.arange(n)] == 0).all()
    main = k_sii(shap_iq(*inputs(plan, game)), pairs)
    total = main.sum(0) + np.triu(pairs.transpose(2, 0, 1), 1).sum((1, 2))
    everything = np.ones((1, n), bool)
    np.testing.assert_allclose(total, (game(everything) - game(~everything))[0], atol=1e-10)


@pytest.mark.parametrize("budget", [40, 90, 200])
def test_sampled_values_of_a_linear_game_are_its_slopes(budget):
    slopes, game = linear_game(12)
    plan = shapley(12, budget, seed=1)
    assert len(plan.coalitions) <= budget
    np.testing.assert_allclose(kernel_shap(*inputs(plan, game)), slopes, atol=1e-10)
    assert np.abs(shap_iq_pairs(*inputs(plan, game))).max() < 1e-10


def test_sampled_values_add_up_and_approach_the_exact_ones():
    n, game = 12, smooth_game(12)
    exact = shapley_values(game, n)
    errors = {}
    for budget in (100, 1000):
        plans = [shapley(n, budget, seed=seed) for seed in range(20)]
        found = [kernel_shap(*inputs(plan, game)) for plan in plans]
        total = game(np.ones((1, n), bool)) - game(np.zeros((1, n), bool))
        for phi in found:
            np.testing.assert_allclose(phi.sum(0), total[0], atol=1e-12)
        errors[budget] = np.sqrt(np.mean([(phi - exact) ** 2 for phi in found]))
    assert errors[1000] < errors[100] / 2
    assert errors[1000] < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("budget", [16, 60, 150])
def test_the_sums_are_unbiased(budget):
    """Mean over seeds within four standard errors of the exact values, budgets of every kind."""
    n, game = 9, random_game(9, n_objectives=1)
    plans = [shapley(n, budget, seed=seed) for seed in range(300)]
    singles = np.array([shap_iq(*inputs(plan, game)) for plan in plans])
    pairs = np.array([shap_iq_pairs(*inputs(plan, game), control=False) for plan in plans])
    upper = np.triu_indices(n, 1)
    for drawn, exact in (
        (singles, shapley_values(game, n)),
        (pairs[:, upper[0], upper[1]], interactions(game, n)[upper]),
    ):
        error = drawn.std(0, ddof=1) / len(drawn) ** 0.5
        assert (np.abs(drawn.mean(0) - exact) < 4 * error + 1e-9).all()


def test_the_control_variate_cuts_the_noise_of_pairs():
    n, game = 9, smooth_game(9)
    exact = interactions(game, n)
    error = {}
    for control in (True, False):
        plans = [shapley(n, 200, seed=seed) for seed in range(5)]
        found = [shap_iq_pairs(*inputs(plan, game), control=control) for plan in plans]
        error[control] = np.sqrt(np.mean([(pairs - exact) ** 2 for pairs in found]))
    assert error[True] < error[False]


@pytest.mark.parametrize("n", [3, 4, 5, 9, 16, 40])
@pytest.mark.parametrize("budget", [4, 5, 12, 50, 333])
def test_plans_hold_the_whole_mass_in_distinct_coalitions(n, budget):
    plan = shapley(n, budget, seed=3)
    z, w = plan
    assert len(z) == len(w) == len(np.unique(z, axis=0)) <= budget
    assert z.sum(1)[:1] == 0
    inner = np.isfinite(w)
    assert inner.sum() == len(w) - 2
    total = sum((n - 1) / (t * (n - t)) for t in range(1, n))
    assert w[inner].sum() == pytest.approx(total)
    if 2**n > budget:
        # Drawn in pairs, enumerated in pairs: the complement of each is there at equal weight.
        weight = {row.tobytes(): k for row, k in zip(z, w, strict=True)}
        for row, k in zip(z, w, strict=True):
            assert weight[(~row).tobytes()] == pytest.approx(k)


def test_weights_of_repeated_draws_average_to_the_kernel():
    """At 5 players and 12 coalitions nothing is enumerated and many draws repeat."""
    every = enumerated(5)
    mean = dict.fromkeys((row.tobytes() for row in every.coalitions), 0.0)
    for seed in range(2000):
        plan = shapley(5, 12, seed=seed)
        for row, weight in zip(plan.coalitions, plan.weights, strict=True):
            mean[row.tobytes()] += weight / 2000
    for row, weight in zip(every.coalitions, every.weights, strict=True):
        assert mean[row.tobytes()] == pytest.approx(weight, rel=0.12)


def test_enumerated_sizes_have_the_kernel_itself():
    n, plan = 10, shapley(10, 200, seed=0)
    z, w = plan
    for t in (1, 9):
        assert (z.sum(1) == t).sum() == comb(n, t)
        np.testing.assert_allclose(w[z.sum(1) == t], (n - 1) / (comb(n, t) * t * (n - t)))
    everything = enumerated(4)
    assert len(np.unique(everything.coalitions, axis=0)) == 16
    np.testing.assert_array_equal(shapley(4, 16, seed=5).coalitions, everything.coalitions)


def test_seeds():
    for plan in (shapley, bernoulli):
        one, same, other = (plan(30, 100, seed=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one.coalitions, same.coalitions)
        assert not np.array_equal(one.coalitions[:90], other.coalitions[:90])
        longer = plan(30, 104, seed=1)
        assert {row.tobytes() for row in one.coalitions} <= {row.tobytes() for row in longer.coalitions}


def test_many_players_overflow_nothing():
    plan = shapley(1500, 64, seed=0)
    assert np.isfinite(plan.weights[2:]).all()
    with pytest.raises(ValueError, match="of the 1499 differences between 1500 players"):
        kernel_shap(*plan, plan.coalitions[:, :1].astype(float))


def test_insertion_and_deletion():
    order = np.array([3, 1, 0, 2])
    grown = insertion(order)
    np.testing.assert_array_equal(grown.sum(1), [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(grown[2], [False, True, False, True])
    np.testing.assert_array_equal(deletion(order), ~grown)
    many = insertion(np.arange(197), 50).sum(1)
    assert (many[0], many[-1], len(many)) == (0, 197, 51)
    assert set(np.diff(many)) == {3, 4}
    np.testing.assert_array_equal(insertion(np.arange(5), 2).sum(1), [0, 3, 5])
    assert len(insertion(np.arange(60))) == 51
    with pytest.raises(ValueError, match=r"\[0, 0, 1\] is no permutation of the 3 players"):
        insertion(np.array([0, 0, 1]))
    with pytest.raises(ValueError, match="n_steps is 5: give 1 to 4"):
        insertion(order, 5)


@pytest.mark.parametrize(
    ("method", "stated"), [("lime", 0.93), ("kernel_shap", 0.93), ("rise", 0.84), ("shap_iq", 0.49)]
)
def test_the_trust_that_is_stated(method, stated):
    """The table of `estimators` at 256 players, two of its seeds."""
    n, game = 256, smooth_game(256, 1)
    many = shapley(n, 12_000, seed=99)
    truth = kernel_shap(*inputs(many, game))[:, 0]
    found = []
    for seed in range(2):
        plan = plan_for(method, n, seed=seed)
        found.append(np.corrcoef(estimate(method, plan, game(plan.coalitions))[:, 0], truth)[0, 1])
    assert np.mean(found) == pytest.approx(stated, abs=0.08)


def test_shapley_values_refuse():
    _, game = linear_game(6)
    z, w, v = inputs(shapley(6, 30, seed=0), game)
    with pytest.raises(ValueError, match="the empty coalition is missing"):
        kernel_shap(z[1:], w[1:], v[1:])
    with pytest.raises(ValueError, match="the full coalition is missing"):
        shap_iq(np.delete(z, 1, 0), np.delete(w, 1), np.delete(v, 1, 0))
    with pytest.raises(ValueError, match="a row a coalition"):
        kernel_shap(z, w, v[1:])
    with pytest.raises(ValueError, match="weights for"):
        kernel_shap(z, w[1:], v)
    with pytest.raises(ValueError, match="must be positive and finite"):
        shap_iq(z, -w, v)
    with pytest.raises(ValueError, match="NaN or infinite"):
        shap_iq_pairs(z, w, np.full_like(v, np.nan))
    with pytest.raises(ValueError, match="raise the budget, to 4 n = 24 or more"):
        kernel_shap(z[:5], w[:5], v[:5])
    with pytest.raises(ValueError, match="player 0 is masked in all 1 coalitions"):
        shap_iq(z[:1], w[:1], v[:1])
    with pytest.raises(ValueError, match="1 player has no pairs"):
        shap_iq_pairs(z[:, :1], w, v)
    with pytest.raises(ValueError, match="budget is 3"):
        shapley(6, 3, seed=0)
    with pytest.raises(ValueError, match="21 players: all coalitions are listed for 1 to 20"):
        enumerated(21)
    with pytest.raises(ValueError, match="n_players is 0"):
        shapley(0, 10, seed=0)
    with pytest.raises(ValueError, match="keep is 1"):
        bernoulli(4, 3, seed=0, keep=1.0)
    with pytest.raises(ValueError, match=r"give pairs \[6, 6, 2\]"):
        k_sii(np.zeros((6, 2)), np.zeros((5, 5, 2)))


def test_shapiq_agrees():
    shapiq = pytest.importorskip("shapiq")
    n, game = 7, random_game(7, n_objectives=1)
    theirs = shapiq.ExactComputer(n_players=n, game=lambda z: game(np.atleast_2d(z))[:, 0])
    values, plan = theirs("SII", order=2), enumerated(n)
    ours = shap_iq_pairs(*inputs(plan, game))[:, :, 0]
    np.testing.assert_allclose(values.get_n_order_values(2), ours, atol=1e-9)
    main = k_sii(shap_iq(*inputs(plan, game)), ours[:, :, None])[:, 0]
    aggregated = theirs("k-SII", order=2)
    np.testing.assert_allclose(aggregated.get_n_order_values(1), main, atol=1e-9)


# LIME


def ridge_by_hand(z, v, weights, alpha):
    """Normal equations with an intercept that is not penalised."""
    design = np.concatenate([np.ones((len(z), 1)), z.astype(float)], axis=1)
    penalty = alpha * np.diag([0.0, *np.ones(z.shape[1])])
    gram = design.T @ (weights[:, None] * design) + penalty
    return np.linalg.solve(gram, design.T @ (weights[:, None] * v))[1:]


@pytest.mark.parametrize("width", [None, 0.25, 1.0])
def test_lime_without_penalty_a_linear_game_gives_its_slopes(width):
    slopes, game = linear_game(9)
    z = bernoulli(9, 200, seed=0).coalitions
    np.testing.assert_allclose(lime(z, game(z), alpha=0.0, width=width), slopes, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 30.0])
def test_lime_of_all_coalitions_of_a_linear_game_shrinks_by_the_closed_form(alpha):
    """Columns are orthogonal with variance 1/4: w = slope N / 4 / (N / 4 + alpha)."""
    slopes, game = linear_game(7)
    z = enumerated(7).coalitions
    quarter = len(z) / 4
    expected = slopes * quarter / (quarter + alpha)
    np.testing.assert_allclose(lime(z, game(z), alpha=alpha, width=None), expected, atol=1e-9)


@pytest.mark.parametrize("width", [None, 0.25])
def test_lime_equals_weighted_ridge_by_hand(width):
    game, z = random_game(8, n_objectives=3), bernoulli(8, 60, seed=1).coalitions
    weights = np.ones(60) if width is None else kernel(z, width)
    expected = ridge_by_hand(z, game(z), weights, 1.0)
    np.testing.assert_allclose(lime(z, game(z), width=width), expected, atol=1e-9)


def test_the_kernel_of_lime():
    z = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    cosine = np.array([1.0, 1 / np.sqrt(4), 0.0])
    np.testing.assert_allclose(kernel(z, 0.5), np.exp(-((1 - cosine) ** 2) / 0.5))
    with pytest.raises(ValueError, match="width is 0"):
        kernel(z, 0.0)


def test_lime_of_objectives_together():
    game = smooth_game(10)
    z = bernoulli(10, 100, seed=4).coalitions
    np.testing.assert_array_equal(z, bernoulli(10, 100, seed=4).coalitions)
    both = np.concatenate([game(z), 2 * game(z)], axis=1)
    together = lime(z, both)
    np.testing.assert_allclose(together[:, :1], lime(z, game(z)), atol=1e-12)
    np.testing.assert_allclose(together[:, 1], 2 * together[:, 0], atol=1e-12)


def test_captums_lime_gives_the_same_slopes_of_the_same_coalitions():
    pytest.importorskip("captum")
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import Lime

    game, plan = smooth_game(6), bernoulli(6, 80, seed=2)
    rows = iter(plan.coalitions)

    def forward(x):
        return torch.from_numpy(game(x.numpy() > 0.5)[:, 0])

    explainer = Lime(
        forward,
        interpretable_model=SkLearnRidge(alpha=1.0),
        similarity_func=lambda _x, _y, z, **_: torch.tensor(kernel(z.numpy() > 0, 0.25)),
        perturb_func=lambda _x, **_: torch.from_numpy(next(rows))[None].long(),
    )
    theirs = explainer.attribute(torch.ones(1, 6), n_samples=80)
    ours = lime(plan.coalitions, game(plan.coalitions))
    np.testing.assert_allclose(ours[:, 0], theirs[0], atol=1e-5)


def test_lime_refuses():
    _, game = linear_game(4)
    z = bernoulli(4, 40, seed=0).coalitions
    with pytest.raises(ValueError, match="alpha is -1"):
        lime(z, game(z), alpha=-1.0)
    with pytest.raises(ValueError, match="give a positive number, or None for no kernel"):
        lime(z, game(z), width=-0.1)
    with pytest.raises(ValueError, match="a row a coalition"):
        lime(z, game(z)[:-1])
    kept = z.copy()
    kept[:, 2] = True
    with pytest.raises(ValueError, match="player 2 is kept in all 40 coalitions"):
        lime(kept, game(kept))


# RISE


def test_rise_of_all_coalitions_of_a_linear_game_has_a_closed_form():
    """E[v | i in] = offset + slope_i + half of the other slopes."""
    slopes, game = linear_game(7)
    z = enumerated(7).coalitions
    offset = game(np.zeros((1, 7), bool))[0]
    expected = offset + slopes + (slopes.sum(0) - slopes) / 2
    np.testing.assert_allclose(rise(z, game(z)), expected, atol=1e-12)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_rise_of_many_draws_approaches_the_closed_form(keep):
    slopes, game = linear_game(6)
    z = bernoulli(6, 40_000, seed=0, keep=keep).coalitions
    offset = game(np.zeros((1, 6), bool))[0]
    expected = offset + slopes + keep * (slopes.sum(0) - slopes)
    np.testing.assert_allclose(rise(z, game(z)), expected, atol=0.05)


def test_rise_equals_the_definition_as_a_loop():
    game, z = random_game(8), bernoulli(8, 50, seed=3).coalitions
    v = game(z)
    for player in range(8):
        expected = np.mean([value for row, value in zip(z, v, strict=True) if row[player]], axis=0)
        np.testing.assert_allclose(rise(z, v)[player], expected, atol=1e-12)


def test_order_of_coalitions_changes_nothing():
    game, z = random_game(8), bernoulli(8, 50, seed=3).coalitions
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_allclose(rise(z[order], game(z[order])), rise(z, game(z)), atol=1e-12)


def test_rise_refuses_a_player_never_kept():
    z = bernoulli(5, 30, seed=0).coalitions
    z[:, 1] = False
    with pytest.raises(ValueError, match="player 1 is masked in all 30 coalitions"):
        rise(z, np.ones((30, 1)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        rise(bernoulli(5, 30, seed=0).coalitions, np.full((30, 1), np.inf))
