"""MFABA, the sharp variant: gradients along an adversarial path (Zhu et al., AAAI 2024).

    p = softmax(f, rivals)_0,   x_{k+1} = x_k - step sign(dp/dx (x_k))
    importance_t = sum_k sum_d (x_k - x_{k+1})_td dp/dx_td (x_k)  >=  0

until f is no longer the highest of the K scores, or `n_steps` are done. It needs rivals, the same
kind of score for other concepts: the softmax of one score is 1 and has no gradient. As in the
authors' code for arXiv 2512.05038 one row of K concept scores is f and the path ends when the
highest changes, 50 steps of .001. Here `step` is a share of the range of the sample's input; pixels
are clamped to that range, embeddings are not. Special tokens do not move. Signs: p falls along the
path, so every share is positive, also of tokens that speak against f: steps along the sign make it
a sum of absolute gradients, as blind to tokens on which a cosine is flat as saliency (tested).

Refused, because the result would be noise: no rival; a start at which another score is the highest
(the path has no length); and a cosine among dot products (one softmax over two scales).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sa_plugin.attribution.engine import CoalitionGame, Readout
from sa_plugin.attribution.forward_func import spread
from sa_plugin.attribution.gradients import by_player, by_token, values_at
from sa_plugin.attribution.result import Explained
from sa_plugin.host import Site
from sa_plugin.objectives import Objective

N_STEPS = {"paper": 50, "fast": 10}


class Degenerate(ValueError):
    """MFABA has no path for this objective on this sample."""


def mfaba(
    game: CoalitionGame,
    *,
    rivals: CoalitionGame | None = None,
    n_steps: int = 50,
    step: float = 0.001,
) -> Explained:
    """MFABA of every objective of a game.

    Cost: a forward and a backward pass a step, for each objective.

    Args:
        game: Of one sample.
        rivals: A game of the same sample whose objectives are the other concepts' scores.
        n_steps: At most.
        step: Share of the input's range that a value moves in one step.

    Raises:
        Degenerate: No path, with the reason.
        ValueError: Steps that are not positive.
    """
    if rivals is None or not rivals.objectives:
        raise Degenerate(
            "mfaba needs rivals: with one score the softmax is 1 and its gradient 0. Give rivals=, "
            "objectives of other concepts on the same sample."
        )
    if n_steps < 1 or not step > 0:
        raise ValueError(f"n_steps is {n_steps}, step {step}: both must be positive.")
    maps, drops, lengths = [], [], []
    for objective, site in zip(game.objectives, game.sites, strict=True):
        _one_scale(objective, rivals.objectives)
        readouts = (objective, *rivals.objectives)
        total, drop, length = _path(game, readouts, (site, *rivals.sites), n_steps, step)
        maps.append(by_token(game, total[None])[0])
        drops.append(drop)
        lengths.append(length)
    notes = {"probability_drop": np.array(drops), "steps": np.array(lengths, dtype=np.float64)}
    return Explained(by_player(game, torch.stack(maps)), notes)


def _path(
    game: CoalitionGame,
    readouts: Sequence[Readout],
    sites: Sequence[Site],
    n_steps: int,
    step: float,
) -> tuple[Tensor, float, int]:
    """The summed shares of one objective, the fall of its probability and the steps taken."""
    x = game.values.float()
    low, high = x.amin(), x.amax()
    size = step * float(high - low)
    playing = torch.from_numpy((game.player_of >= 0).astype(np.int64))
    moves = spread(playing, game.values, game.batch).to(x.device).float()
    total, first = torch.zeros_like(x[0]), None
    for k in range(n_steps):
        p, slope, best = _probability(game, x, readouts, sites)
        if first is None:
            first = p
        if best != 0:
            if k == 0:
                raise Degenerate(
                    f"another concept's score is higher than that of {readouts[0]!r}: its "
                    "adversarial path has no length. Leave the sample out, or give other rivals."
                )
            return total, first - p, k
        after = x - size * moves * slope.sign()
        after = after.clamp(low, high) if x.ndim == 4 else after
        total = total + ((x - after) * slope)[0]
        x = after
    with torch.no_grad():
        last = values_at(game, x, readouts, sites)[:, 0].softmax(0)[0]
    return total, (first or 0.0) - float(last), n_steps


def _probability(
    game: CoalitionGame, x: Tensor, readouts: Sequence[Readout], sites: Sequence[Site]
) -> tuple[float, Tensor, int]:
    leaf = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        scores = values_at(game, leaf, readouts, sites)[:, 0]
        p = scores.softmax(0)[0]
    (slope,) = torch.autograd.grad(p, leaf)
    return float(p.detach()), slope.float(), int(scores.argmax())


def _one_scale(objective: Readout, rivals: Sequence[Readout]) -> None:
    scales = {_scale(one) for one in (objective, *rivals)} - {None}
    if len(scales) > 1:
        raise Degenerate(
            f"{objective!r} and its rivals mix cosines with dot products, of which one softmax "
            "means nothing: give rivals of the same kind, such as the same objective of other "
            "concepts with fallback='top_token'."
        )


def _scale(objective: Readout) -> str | None:
    if not isinstance(objective, Objective):
        return None
    if objective.name == "superactivator":
        return "cosine"
    known = objective.name in ("global", "superactivator_tokens")
    return objective.vectors.scoring if known else None
