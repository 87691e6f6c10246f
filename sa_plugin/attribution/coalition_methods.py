"""LIME, KernelSHAP, RISE and SHAP-IQ by name, on one game, with stated numbers of passes.

| preset | LIME, RISE | KernelSHAP | SHAP-IQ | passes of all four where draws nest |
|---|---|---|---|---|
| "paper" | 1000 | 500 | 512 | 1512, or 1000 + 4 a player |
| "fast" | 256 | 256 | 256 | 512, or 256 + 4 a player |

"paper" has the numbers in the code for arXiv 2512.05038, with one difference: KernelSHAP and
SHAP-IQ read at least 4 coalitions a player. For 256 patches the authors' 500 are 249 pairs, fewer
than the 255 that Shapley values take at least; shap's KernelExplainer can still answer by an L1
penalty, which we do not use. `n_coalitions` overrules both numbers.

With one seed LIME and RISE read the same coalitions, and SHAP-IQ's contain KernelSHAP's where both
enumerate the same sizes. Draws that repeat are read once.

How far to trust "paper": correlation with the Shapley values of a saturating game with pairs
(tests/attribution_toy.py, `smooth_game`), mean over five seeds:

| players | LIME | KernelSHAP | RISE | SHAP-IQ |
|---|---|---|---|---|
| 40 | .99 | 1.00 | .97 | .85 |
| 256 | .93 | .93 | .84 | .49 |

So for images SHAP-IQ's sum is mostly noise at such budgets: raise `n_coalitions`, or group patches
(`players.superpatches`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sa_plugin._names import require_known
from sa_plugin.attribution.coalitions import Plan, bernoulli, shapley
from sa_plugin.attribution.engine import CoalitionGame
from sa_plugin.attribution.kernel_shap import kernel_shap
from sa_plugin.attribution.lime import lime
from sa_plugin.attribution.rise import rise
from sa_plugin.attribution.shap_iq import shap_iq, shap_iq_pairs

COALITION_METHODS = ("lime", "kernel_shap", "rise", "shap_iq")
BERNOULLI = ("lime", "rise")
PER_PLAYER = 4


class Preset(NamedTuple):
    """How many coalitions each method may read."""

    lime: int
    kernel_shap: int
    rise: int
    shap_iq: int


PRESETS: Mapping[str, Preset] = {
    "paper": Preset(1000, 500, 1000, 512),
    "fast": Preset(256, 256, 256, 256),
}


def plan_for(
    method: str, n_players: int, *, preset: str = "paper", n_coalitions: int | None = None,
    seed: int = 0,
) -> Plan:  # fmt: skip
    """The coalitions a method reads.

    Args:
        method: One of `COALITION_METHODS`.
        n_players: Of the game.
        preset: "paper" or "fast".
        n_coalitions: Instead of the preset's.
        seed: Of the draws.

    Raises:
        ValueError: An unknown method or preset, or what `bernoulli` and `shapley` raise.
    """
    require_known("method", method, COALITION_METHODS)
    require_known("preset", preset, PRESETS)
    count = getattr(PRESETS[preset], method) if n_coalitions is None else n_coalitions
    if method in BERNOULLI:
        return bernoulli(n_players, count, seed=seed)
    least = PER_PLAYER * n_players if n_coalitions is None else 0
    return shapley(n_players, max(count, least), seed=seed)


def explain_coalitions(
    game: CoalitionGame, method: str, *, preset: str = "paper", n_coalitions: int | None = None,
    seed: int = 0, progress: bool = False, **options: Any,
) -> Float[np.ndarray, "player objective"]:  # fmt: skip
    """Importance of every player for every objective of a game.

    Cost: one pass for each coalition of the plan that the game does not know yet.

    Args:
        game: Of `coalition_game`.
        method: "lime", "kernel_shap", "rise" or "shap_iq".
        preset: "paper" or "fast".
        n_coalitions: Instead of the preset's.
        seed: Of the coalitions.
        progress: Show a bar.
        **options: Of the method's own function: `alpha` and `width` of `lime`, `order` of
            `shap_iq`.

    Raises:
        TypeError: The method has no such option.
        ValueError: An unknown name, or too few coalitions for so many players.

    Example:
        >>> game = coalition_game(host, sample, [f, g])  # doctest: +SKIP
        >>> explain_coalitions(game, "rise", preset="fast").shape  # doctest: +SKIP
        (14, 2)
    """
    plan = plan_for(method, game.n_players, preset=preset, n_coalitions=n_coalitions, seed=seed)
    return estimate(method, plan, game(plan.coalitions, progress=progress), **options)


def explain_pairs(
    game: CoalitionGame, *, preset: str = "paper", n_coalitions: int | None = None, seed: int = 0,
    progress: bool = False,
) -> Float[np.ndarray, "player player objective"]:  # fmt: skip
    """SHAP-IQ of order 2: the interaction of every pair of players for every objective of a game.

    Cost: none where the game knows the coalitions of "shap_iq" with the same settings.

    Args:
        game: Of `coalition_game`.
        preset: "paper" or "fast".
        n_coalitions: Instead of the preset's.
        seed: Of the coalitions.
        progress: Show a bar.

    Raises:
        ValueError: As `shap_iq_pairs`.

    Example:
        >>> explain_pairs(game).shape  # doctest: +SKIP
        (14, 14, 2)
    """
    plan = plan_for("shap_iq", game.n_players, preset=preset, n_coalitions=n_coalitions, seed=seed)
    return shap_iq_pairs(plan.coalitions, plan.weights, game(plan.coalitions, progress=progress))


def estimate(
    method: str, plan: Plan, values: Float[np.ndarray, "coalition objective"], **options: Any
) -> Float[np.ndarray, "player objective"]:
    """A method's importances from the values of its plan; see `explain_coalitions`."""
    require_known("method", method, COALITION_METHODS)
    if method in BERNOULLI:
        slopes: Callable[..., Any] = {"lime": lime, "rise": rise}[method]
        return np.asarray(slopes(plan.coalitions, values, **options))
    weighted: Callable[..., Any] = {"kernel_shap": kernel_shap, "shap_iq": shap_iq}[method]
    return np.asarray(weighted(plan.coalitions, plan.weights, values, **options))
