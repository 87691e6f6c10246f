"""Grad-CAM for tokens: channels weighted by their mean gradient over tokens.

    alpha_d = mean over players' tokens of df/dA_td,   importance_t = sum_d alpha_d A_td

(Selvaraju et al. 2017, tokens in place of pixels). captum's `LayerGradCam` takes tokens for
channels on `[batch, token, d]` and returns a map over dimensions. Signs are kept: no ReLU, no
scaling. The class token has no map and no part in alpha.

`A` is by default the residual that enters the objective's own block, so that gradients have passed
one block's attention. At the objective's own site the map is that of a linear readout. The residual
has a large mean that is no evidence: with `centre` (the default) the sample's mean over tokens is
taken off A, which changes every token's number by the same amount.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sa_plugin.attribution.engine import CoalitionGame
from sa_plugin.attribution.gradients import by_player, require_many_sites
from sa_plugin.attribution.result import Explained
from sa_plugin.host import Site


def grad_cam(game: CoalitionGame, *, site: Site | None = None, centre: bool = True) -> Explained:
    """Grad-CAM of every objective of a game.

    Cost: one forward pass for each distinct pair of sites, one backward pass an objective.

    Args:
        game: Of one sample.
        site: Whose activations are weighted; by default `resid_pre` of each objective's block.
        centre: Whether to take the mean over tokens off the activations.

    Raises:
        TypeError: The host cannot read several sites in one pass.
        ValueError: The objective does not depend on the site: it lies above.
    """
    host = require_many_sites(game, "grad_cam")
    playing = torch.from_numpy(game.player_of >= 0).to(game.values.device)
    maps: list[Tensor] = []
    for objective, at in zip(game.objectives, game.sites, strict=True):
        of = Site(at.layer, "resid_pre") if site is None else site
        leaf = game.values.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            found = host.forward_sites(leaf, game.batch, sorted({of, at}))
            value = objective(found[at]).sum()
        (slope,) = torch.autograd.grad(value, found[of], allow_unused=True)
        if slope is None:
            raise ValueError(
                f"{objective!r} does not depend on {of}: choose a site at or below "
                f"{at}, such as Site({at.layer}, 'resid_pre')."
            )
        a = found[of].detach().float()[0]
        a = a - a[playing].mean(0) if centre else a
        maps.append(a @ slope.float()[0, playing].mean(0))
    return Explained(by_player(game, torch.stack(maps)), {})
