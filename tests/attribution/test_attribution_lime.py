"""Laws of LIME: closed forms on a linear game, weighted ridge by hand, captum's surrogate."""

import numpy as np
import pytest
import torch
from attribution_toy import linear_game, random_game, smooth_game

from sa_plugin.attribution import bernoulli, enumerated, kernel, lime


def ridge_by_hand(z, v, weights, alpha):
    """Normal equations with an intercept that is not penalised."""
    design = np.concatenate([np.ones((len(z), 1)), z.astype(float)], axis=1)
    penalty = alpha * np.diag([0.0, *np.ones(z.shape[1])])
    gram = design.T @ (weights[:, None] * design) + penalty
    return np.linalg.solve(gram, design.T @ (weights[:, None] * v))[1:]


@pytest.mark.parametrize("width", [None, 0.25, 1.0])
def test_without_penalty_a_linear_game_gives_its_slopes(width):
    slopes, game = linear_game(9)
    z = bernoulli(9, 200, seed=0).coalitions
    np.testing.assert_allclose(lime(z, game(z), alpha=0.0, width=width), slopes, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 30.0])
def test_all_coalitions_of_a_linear_game_shrink_by_the_closed_form(alpha):
    """Columns are orthogonal with variance 1/4: w = slope N / 4 / (N / 4 + alpha)."""
    slopes, game = linear_game(7)
    z = enumerated(7).coalitions
    quarter = len(z) / 4
    expected = slopes * quarter / (quarter + alpha)
    np.testing.assert_allclose(lime(z, game(z), alpha=alpha, width=None), expected, atol=1e-9)


@pytest.mark.parametrize("width", [None, 0.25])
def test_equals_weighted_ridge_by_hand(width):
    game, z = random_game(8, n_objectives=3), bernoulli(8, 60, seed=1).coalitions
    weights = np.ones(60) if width is None else kernel(z, width)
    expected = ridge_by_hand(z, game(z), weights, 1.0)
    np.testing.assert_allclose(lime(z, game(z), width=width), expected, atol=1e-9)


def test_the_kernel():
    z = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    cosine = np.array([1.0, 1 / np.sqrt(4), 0.0])
    np.testing.assert_allclose(kernel(z, 0.5), np.exp(-((1 - cosine) ** 2) / 0.5))
    with pytest.raises(ValueError, match="width is 0"):
        kernel(z, 0.0)


def test_seeds_and_objectives_together():
    game = smooth_game(10)
    z = bernoulli(10, 100, seed=4).coalitions
    np.testing.assert_array_equal(z, bernoulli(10, 100, seed=4).coalitions)
    both = np.concatenate([game(z), 2 * game(z)], axis=1)
    together = lime(z, both)
    np.testing.assert_allclose(together[:, :1], lime(z, game(z)), atol=1e-12)
    np.testing.assert_allclose(together[:, 1], 2 * together[:, 0], atol=1e-12)


def test_captum_gives_the_same_slopes_of_the_same_coalitions():
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


def test_bad_input():
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
