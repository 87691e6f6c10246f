"""Insertion and deletion: does the model agree with the order of importance?

Players are put into the empty input, or taken out of the full one, in equal blocks, the most
important first; after each block a yardstick q of the clean model reads the masked input.

    area = integral_0^1 q(share of players in, or taken out) d share      (trapezoid)

Insertion: higher is better. Deletion: lower. (Petsiuk et al. 2018; arXiv 2512.05038 reports areas,
without a protocol.) q is the same whatever objective made the order, see `yardsticks`. Areas depend
on the baseline that stands in for masked players, so only areas with one baseline compare. Ties in
importance are broken by position.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from sa_plugin.attribution.coalitions import deletion, insertion
from sa_plugin.attribution.engine import CoalitionGame

KINDS = ("insertion", "deletion")
N_STEPS = {"paper": 50, "fast": 12}


class Curves(NamedTuple):
    """Yardsticks along both orders.

    Attributes:
        share: Of the players in (insertion) or taken out (deletion).
        insertion: From the empty input.
        deletion: From the full one.
    """

    share: Float64[np.ndarray, " step"]
    insertion: Float[np.ndarray, "step yardstick"]
    deletion: Float[np.ndarray, "step yardstick"]


def curves(
    game: CoalitionGame, importance: Float[np.ndarray, " player"], *, n_steps: int = 50
) -> Curves:
    """Insertion and deletion curves of one order.

    Cost: `2 min(n_steps, players)` rows, of which the game may know some.

    Args:
        game: Its objectives are the yardsticks.
        importance: Of each player.
        n_steps: At most.

    Raises:
        ValueError: Another number of players than the game's, or importance that is not finite.
    """
    if len(importance) != game.n_players or not np.isfinite(importance).all():
        raise ValueError(
            f"{len(importance)} importances, finite: {bool(np.isfinite(importance).all())}; the "
            f"game has {game.n_players} players: give one finite number a player."
        )
    order = np.argsort(-importance, kind="stable")
    steps = min(n_steps, game.n_players)
    chosen = insertion(order, steps)
    found = game(np.concatenate([chosen, deletion(order, steps)]))
    share = chosen.mean(1, dtype=np.float64)
    return Curves(share, found[: steps + 1], found[steps + 1 :])


def area(
    share: Float[np.ndarray, " step"], curve: Float[np.ndarray, "step yardstick"]
) -> Float64[np.ndarray, " yardstick"]:
    """Area under each yardstick's curve.

    Example:
        >>> area(np.array([0.0, 0.5, 1.0]), np.array([[0.0], [1.0], [1.0]]))
        array([0.75])
    """
    return np.asarray(np.trapezoid(curve, share, axis=0), dtype=np.float64)


def on_grid(
    share: Float[np.ndarray, " step"],
    curve: Float[np.ndarray, " step"],
    grid: Float[np.ndarray, " point"],
) -> Float64[np.ndarray, " point"]:
    """A curve at common shares, so that samples of different lengths can be averaged."""
    return np.asarray(np.interp(grid, share, curve), dtype=np.float64)
