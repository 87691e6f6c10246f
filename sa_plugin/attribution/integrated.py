"""Integrated gradients on a straight path from a baseline (Sundararajan et al. 2017).

    importance_t = sum_d (x - x0)_td integral_0^1 df/dx_td (x0 + a (x - x0)) da
    sum_t importance_t = f(x) - f(x0)                                          (completeness)

by the trapezoid rule on `n_steps` intervals, 64 in the authors' code for arXiv 2512.05038. captum's
`riemann_trapezoid` is not used: its weights add up to (n - 1) / n. The baseline is the mean of the
sample's own embeddings or patches; zero embeddings are a bad one for models with RMSNorm, whose
x / rms is singular at zero. Special tokens stay as they are.

Notes: `completeness_error` = |sum - (f(x) - f(x0))|, and the difference itself. A large error says
that the path is too coarse, a small one says nothing about faithfulness.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sa_plugin.attribution.engine import CoalitionGame
from sa_plugin.attribution.forward_func import without_players
from sa_plugin.attribution.gradients import by_player, by_token, chunks, gradients
from sa_plugin.attribution.maskers import make_baseline
from sa_plugin.attribution.result import Explained

N_STEPS = {"paper": 64, "fast": 16}


def integrated_gradients(
    game: CoalitionGame, *, n_steps: int = 64, baseline: str | Tensor | None = "mean"
) -> Explained:
    """Integrated gradients of every objective of a game.

    Cost: `n_steps + 1` rows forward, and backward for each objective.

    Args:
        game: Of one sample.
        n_steps: Intervals.
        baseline: See `maskers`.

    Raises:
        ValueError: Fewer than one interval, or an unknown baseline.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}: give 1 interval at least, such as 64.")
    x = game.values.float()
    chosen = make_baseline(game.host, game.batch, game.values, baseline)
    start = without_players(game.values, chosen, game.player_of, game.batch).float()
    at = torch.linspace(0, 1, n_steps + 1, device=x.device)
    weights = torch.full_like(at, 1 / n_steps)
    weights[0] = weights[-1] = 0.5 / n_steps
    total = torch.zeros((), device=x.device)
    ends: list[Tensor] = []
    for part in chunks(game, n_steps + 1):
        rows = start + at[part].reshape(-1, *[1] * (x.ndim - 1)) * (x - start)
        values, slopes = gradients(game, rows)
        total = total + torch.einsum("r,or...->o...", weights[part], slopes)
        ends.append(values)
    values = torch.cat(ends, dim=1)
    importance = by_player(game, by_token(game, total * (x - start)))
    difference = (values[:, -1] - values[:, 0]).double().cpu().numpy()
    return Explained(
        importance,
        {
            "difference": difference,
            "completeness_error": abs(importance.sum(0) - difference),
        },
    )
