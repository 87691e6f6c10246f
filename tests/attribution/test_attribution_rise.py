"""Laws of RISE: closed forms on a linear game, the definition as a loop."""

import numpy as np
import pytest
from attribution_toy import linear_game, random_game

from sa_plugin.attribution import bernoulli, enumerated, rise


def test_all_coalitions_of_a_linear_game_have_a_closed_form():
    """E[v | i in] = offset + slope_i + half of the other slopes."""
    slopes, game = linear_game(7)
    z = enumerated(7).coalitions
    offset = game(np.zeros((1, 7), bool))[0]
    expected = offset + slopes + (slopes.sum(0) - slopes) / 2
    np.testing.assert_allclose(rise(z, game(z)), expected, atol=1e-12)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_many_draws_approach_the_closed_form(keep):
    slopes, game = linear_game(6)
    z = bernoulli(6, 40_000, seed=0, keep=keep).coalitions
    offset = game(np.zeros((1, 6), bool))[0]
    expected = offset + slopes + keep * (slopes.sum(0) - slopes)
    np.testing.assert_allclose(rise(z, game(z)), expected, atol=0.05)


def test_equals_the_definition_as_a_loop():
    game, z = random_game(8), bernoulli(8, 50, seed=3).coalitions
    v = game(z)
    for player in range(8):
        expected = np.mean([value for row, value in zip(z, v, strict=True) if row[player]], axis=0)
        np.testing.assert_allclose(rise(z, v)[player], expected, atol=1e-12)


def test_order_of_coalitions_changes_nothing():
    game, z = random_game(8), bernoulli(8, 50, seed=3).coalitions
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_allclose(rise(z[order], game(z[order])), rise(z, game(z)), atol=1e-12)


def test_a_player_never_kept_is_refused():
    z = bernoulli(5, 30, seed=0).coalitions
    z[:, 1] = False
    with pytest.raises(ValueError, match="player 1 is masked in all 30 coalitions"):
        rise(z, np.ones((30, 1)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        rise(bernoulli(5, 30, seed=0).coalitions, np.full((30, 1), np.inf))
