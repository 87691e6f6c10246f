"""Gradients of several objectives in one forward pass, and their sums by player.

Cost: one forward pass a chunk of rows, and one backward pass for each objective. Parameters may be
frozen or not; their `.grad` is never written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.attribution.engine import CoalitionGame, ManySites, Readout
from sa_plugin.attribution.players import patch_grid
from sa_plugin.host import Site

PlayerValues = Float[np.ndarray, "player objective"]


def residuals(
    game: CoalitionGame, rows: Tensor, sites: Sequence[Site]
) -> Mapping[Site, Float[Tensor, "row token d_model"]]:
    """Activations at some sites, with their graph."""
    distinct = sorted(set(sites))
    if len(distinct) > 1 and isinstance(game.host, ManySites):
        return game.host.forward_sites(rows, game.batch, distinct)
    return {site: game.host.forward_from(rows, game.batch, site) for site in distinct}


def require_many_sites(game: CoalitionGame, method: str) -> ManySites:
    """The host, if it reads several sites in one differentiable pass.

    Raises:
        TypeError: It does not.
    """
    if isinstance(game.host, ManySites):
        return game.host
    raise TypeError(
        f"{type(game.host).__name__} has no `forward_sites`, which {method} needs to reach "
        "activations inside the pass. Attach a TransformerLens bridge, or use another method."
    )


def values_at(
    game: CoalitionGame, rows: Tensor, readouts: Sequence[Readout], sites: Sequence[Site]
) -> Float[Tensor, "objective row"]:
    """Readouts of each row, with their graph."""
    found = residuals(game, rows, sites)
    return torch.stack([f(found[site]) for f, site in zip(readouts, sites, strict=True)])


def gradients(
    game: CoalitionGame, rows: Float[Tensor, "row token_or_channel *rest"]
) -> tuple[Float[Tensor, "objective row"], Float[Tensor, "objective row token_or_channel *rest"]]:
    """Every objective's value and gradient at each row; the caller chooses how many rows.

    Raises:
        ValueError: A gradient is not finite.
    """
    leaf = rows.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        values = values_at(game, leaf, game.objectives, game.sites)
    last = len(values) - 1
    found = torch.stack(
        [
            torch.autograd.grad(value.sum(), leaf, retain_graph=k < last)[0].float()
            for k, value in enumerate(values)
        ]
    )
    if not torch.isfinite(found).all():
        raise ValueError(
            f"a gradient of {game!r} is not finite: load the model in float32, or choose another "
            "baseline."
        )
    return values.detach(), found


def chunks(game: CoalitionGame, n: int) -> Iterator[slice]:
    """Parts of `n` rows that keep a pass within the game's number of tokens."""
    step = max(1, game.batch_tokens // len(game.player_of))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def by_token(
    game: CoalitionGame, maps: Float[Tensor, "objective token_or_channel *rest"]
) -> Float[Tensor, "objective token"]:
    """Sums of an input-shaped map over each token's dimensions, or each patch's pixels."""
    if game.values.ndim == 3:
        return maps.sum(-1)
    valid = game.batch.valid[0].cpu().numpy()
    grid = patch_grid(valid, game.values.shape[2], game.values.shape[3])
    cut = maps.sum(1).reshape(-1, grid.rows, grid.side, grid.columns, grid.side)
    patches = cut.sum((2, 4)).flatten(1)
    return torch.nn.functional.pad(patches, (grid.n_special, 0))


def by_player(game: CoalitionGame, maps: Float[Tensor, "objective token"]) -> PlayerValues:
    """Sums of a token map over each player's tokens; tokens of no player are left out."""
    out = np.zeros((game.n_players, len(maps)))
    playing = game.player_of >= 0
    np.add.at(out, game.player_of[playing], maps.double().cpu().numpy().T[playing])
    return out


def not_playing(game: CoalitionGame, maps: Float[Tensor, "objective token"]) -> Tensor:
    """What a token map gives to tokens of no player: special tokens, padding, a class token."""
    return maps[:, torch.from_numpy(game.player_of < 0).to(maps.device)].sum(1)
