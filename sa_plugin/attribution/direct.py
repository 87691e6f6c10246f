"""Direct alignment: no explainer at all, the objective of each token alone.

    importance_t = f(h, mask = {t}):  cos(x_t, u) for "superactivator",  s_t for "global"

The ninth explainer of arXiv 2512.05038 is named in none of its sources (eight are in the code); the
likeliest is this one, which the code does evaluate with both targets. Tokens that the objective
does not count (attention sinks) get 0.

It reads the objective's own layer, where a token's residual holds what attention brought there: a
high number says where the evidence is found, not which input tokens caused it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sa_plugin.attribution.engine import CoalitionGame, Readout
from sa_plugin.attribution.gradients import by_player, residuals
from sa_plugin.attribution.result import Explained
from sa_plugin.objectives import Objective

_ROWS = 64


def direct_alignment(game: CoalitionGame) -> Explained:
    """Direct alignment of every objective of a game.

    Cost: one forward pass for all objectives.

    Raises:
        TypeError: An objective is none of `sa_plugin.objective`.
        ValueError: An objective cannot be evaluated on single tokens.
    """
    with torch.no_grad():
        found = residuals(game, game.values, game.sites)
        maps = [
            _alone(objective, found[site])
            for objective, site in zip(game.objectives, game.sites, strict=True)
        ]
    return Explained(by_player(game, torch.stack(maps)), {})


def _alone(objective: Readout, resid: Tensor) -> Tensor:
    if not isinstance(objective, Objective):
        raise TypeError(
            f"{objective!r} is a {type(objective).__name__}: direct alignment evaluates an "
            "Objective with a mask of one token. Make it with sa_plugin.objective."
        )
    own = objective.mask[0].to(resid.device)
    tokens = own.nonzero()[:, 0]
    out = torch.zeros(resid.shape[1], device=resid.device)
    for start in range(0, len(tokens), _ROWS):
        part = tokens[start : start + _ROWS]
        one = torch.zeros(len(part), resid.shape[1], dtype=torch.bool, device=resid.device)
        one[torch.arange(len(part)), part] = True
        try:
            out[part] = objective(resid.expand(len(part), -1, -1), one)
        except ValueError as error:
            raise ValueError(
                f"objective {objective.name!r} has no value on one token alone ({error}): direct "
                "alignment is for means over tokens, such as 'superactivator' and 'global'."
            ) from error
    return out
