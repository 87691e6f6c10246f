"""Saliency, input times gradient, SmoothGrad and occlusion, as captum computes them.

    saliency_t = sum_d |df/dx_td|                          input_x_gradient_t = sum_d x_td df/dx_td
    smooth_grad_t = sum_d |mean_k df/dx_td (x + e_k)|      occlusion_t = f(x) - f(x with t masked)

with e_k normal, its deviation `noise` times the range of the sample's input (Smilkov et al. 2017).
Saliency and SmoothGrad have no sign. In captum, SmoothGrad is `NoiseTunnel` round `Saliency` with
signed gradients; the absolute value is taken of their mean, as in the paper.

Gradients at the input itself are a poor guide to a cosine: it is flat along its own token, so the
better a token is aligned, the smaller its gradient, and on a planted concept these methods (and
FullGrad) rank the planted tokens last. Use a path or a perturbation with "superactivator".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sa_plugin._optional import require
from sa_plugin.attribution.engine import CoalitionGame
from sa_plugin.attribution.forward_func import ForwardFunc, function_of
from sa_plugin.attribution.gradients import by_player, by_token
from sa_plugin.attribution.players import patch_grid
from sa_plugin.attribution.result import Explained

N_SAMPLES = {"paper": 50, "fast": 10}


def saliency(game: CoalitionGame) -> Explained:
    """Absolute gradients. Cost: one forward and backward pass an objective."""
    attr = _captum()
    return _each(game, lambda f: attr.Saliency(f).attribute(_leaf(f), abs=True))


def input_x_gradient(game: CoalitionGame) -> Explained:
    """Input times gradient. Cost: one forward and backward pass an objective."""
    attr = _captum()
    return _each(game, lambda f: attr.InputXGradient(f).attribute(_leaf(f)))


def smooth_grad(
    game: CoalitionGame, *, n_samples: int = 50, noise: float = 0.15, seed: int = 0
) -> Explained:
    """Absolute mean gradient over noisy copies.

    Cost: `n_samples` rows forward and backward, for each objective.

    Args:
        game: Of one sample.
        n_samples: Noisy copies.
        noise: Deviation as a share of the input's range.
        seed: Of the noise; torch's global generator is left as it was.

    Raises:
        ValueError: No copies, or noise that is not positive.
    """
    if n_samples < 1 or not noise > 0:
        raise ValueError(f"n_samples is {n_samples}, noise {noise}: both must be positive.")
    attr = _captum()
    spread = noise * float(game.values.float().amax() - game.values.float().amin())
    rows = max(1, game.batch_tokens // len(game.player_of))

    def one(f: ForwardFunc) -> Tensor:
        # captum draws from the global generator.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tunnel = attr.NoiseTunnel(attr.Saliency(f))
            found: Tensor = tunnel.attribute(
                _leaf(f), nt_type="smoothgrad", nt_samples=n_samples, stdevs=spread,
                nt_samples_batch_size=min(rows, n_samples), abs=False,
            )  # fmt: skip
        return found.abs()

    return _each(game, one)


def occlusion(game: CoalitionGame, *, baseline: str | Tensor | None = None) -> Explained:
    """The fall of the objective when one player is replaced by the baseline.

    captum's `Occlusion` where players are single tokens or patches, its `FeatureAblation` where
    they are groups; a group's fall is divided among its input values and summed again.

    Cost: one row forward a token, patch or group, for each objective.

    Args:
        game: Of one sample.
        baseline: See `maskers`; by default the game's own.
    """
    attr = _captum()
    rows = max(1, game.batch_tokens // len(game.player_of))
    alone = game.n_players == int((game.player_of >= 0).sum())

    def one(f: ForwardFunc) -> Tensor:
        chosen = f.baseline(game.baseline if baseline is None else baseline).float()
        if not alone:
            mask = f.feature_mask
            fallen: Tensor = attr.FeatureAblation(f).attribute(
                f.inputs.float(), baselines=chosen, feature_mask=mask, perturbations_per_eval=rows
            )
            # captum gives every value of a feature, or a window, the effect of the whole.
            return fallen / mask.flatten().bincount()[mask]
        window = _window(game)
        found: Tensor = attr.Occlusion(f).attribute(
            f.inputs.float(), sliding_window_shapes=window, strides=window,
            baselines=chosen, perturbations_per_eval=rows,
        )  # fmt: skip
        return found / torch.tensor(window).prod()

    return _each(game, one)


def _window(game: CoalitionGame) -> tuple[int, ...]:
    if game.values.ndim == 3:
        return 1, game.values.shape[2]
    valid = game.batch.valid[0].cpu().numpy()
    side = patch_grid(valid, game.values.shape[2], game.values.shape[3]).side
    return game.values.shape[1], side, side


def _leaf(f: ForwardFunc) -> Tensor:
    return f.inputs.detach().float().clone().requires_grad_(True)


def _captum() -> Any:
    return require("captum.attr", "attribution")


def _each(game: CoalitionGame, one: Callable[[ForwardFunc], Tensor]) -> Explained:
    maps = [one(function_of(game, k)).detach()[0] for k in range(len(game.objectives))]
    return Explained(by_player(game, by_token(game, torch.stack(maps))), {})
