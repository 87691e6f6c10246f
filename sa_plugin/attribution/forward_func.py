"""An objective of one sample as a function of the model's input, for captum and anything else.

`forward_func(host, objective, sample)` maps `[row, token, d_embed]` embeddings, or pixels
`[row, 3, height, width]`, to `[row]`; gradients flow, blocks above the objective's layer are never
computed, the sample's mask and positions ride along. captum's layer methods take TransformerLens
HookPoints as layers, such as `bridge.blocks[3].hook_out`.

`feature_mask` and `baseline` make tokens, or patches, the features of captum's perturbation
methods. Special tokens and padding belong to one further feature, whose baseline is the input
itself: perturbing it changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sa_plugin.attribution.engine import CoalitionGame, Readout, coalition_game
from sa_plugin.attribution.maskers import make_baseline, masked
from sa_plugin.attribution.players import patch_grid
from sa_plugin.differentiable import DifferentiableHost
from sa_plugin.host import Batch, Host, Site
from sa_plugin.samples import Sample


@dataclass(frozen=True, eq=False)
class ForwardFunc:
    """Input to objective; made by `forward_func`.

    Attributes:
        host: Of the sample.
        objective: What is computed.
        site: Where it reads.
        batch: The sample alone.
        inputs: Its embeddings or pixels, one row.
        player_of: The feature of each token, -1 for tokens that are none.
    """

    host: DifferentiableHost
    objective: Readout
    site: Site
    batch: Batch
    inputs: Float[Tensor, "one token_or_channel *rest"]
    player_of: Int[np.ndarray, " token"]

    def __repr__(self) -> str:
        return f"ForwardFunc({self.objective!r}, inputs {list(self.inputs.shape)})"

    def __call__(
        self, inputs: Float[Tensor, "row token_or_channel *rest"]
    ) -> Float[Tensor, " row"]:
        """The objective of each row.

        Args:
            inputs: Like `self.inputs`, any number of rows.
        """
        return self.objective(self.host.forward_from(inputs, self.batch, self.site))

    @property
    def feature_mask(self) -> Int[Tensor, "one token_or_channel *rest"]:
        """The feature of every input value, 0 to n - 1, and n for what is never perturbed."""
        of = np.where(self.player_of < 0, self.player_of.max() + 1, self.player_of)
        return spread(torch.from_numpy(of), self.inputs, self.batch)

    def baseline(
        self, how: str | Tensor | None = None
    ) -> Float[Tensor, "one token_or_channel *rest"]:
        """What a perturbed feature becomes; special tokens keep their own values.

        Args:
            how: See `maskers`; by default "mean" for texts, "zero" for images.
        """
        chosen = make_baseline(self.host, self.batch, self.inputs, how)
        return without_players(self.inputs, chosen, self.player_of, self.batch)


def forward_func(host: Host, objective: Readout, sample: Sample | str) -> ForwardFunc:
    """An objective as a function of the model's input.

    Args:
        host: A host with `input_values` and `forward_from`.
        objective: Made for this sample with this host.
        sample: The sample, or its text.

    Returns:
        The function; its `inputs` are the sample's own.

    Raises:
        TypeError: The host takes no embeddings.
        ValueError: The objective is of another sample or host.

    Example:
        >>> f = forward_func(host, objective, sample)  # doctest: +SKIP
        >>> captum.attr.Saliency(f).attribute(f.inputs).shape  # doctest: +SKIP
        torch.Size([1, 14, 768])
    """
    return function_of(coalition_game(host, sample, [objective]), 0)


def function_of(game: CoalitionGame, column: int) -> ForwardFunc:
    """One objective of a game as a function of the input."""
    return ForwardFunc(
        game.host, game.objectives[column], game.sites[column], game.batch, game.values,
        game.player_of,
    )  # fmt: skip


def without_players(
    values: Float[Tensor, "one token_or_channel *rest"],
    baseline: Float[Tensor, "one token_or_channel *rest"],
    player_of: Int[np.ndarray, " token"],
    batch: Batch,
) -> Float[Tensor, "one token_or_channel *rest"]:
    """The input of the empty coalition: the baseline, and the input where no player is."""
    keep = torch.from_numpy(player_of < 0)[None].to(values.device)
    if values.ndim == 3:
        return masked(values, baseline, keep)
    grid = patch_grid(batch.valid[0].cpu().numpy(), values.shape[2], values.shape[3])
    return masked(values, baseline, keep, grid)


def spread(
    of_token: Int[Tensor, " token"],
    values: Float[Tensor, "one token_or_channel *rest"],
    batch: Batch,
) -> Int[Tensor, "one token_or_channel *rest"]:
    """A number of each token, or patch, at all of its input values."""
    if values.ndim == 3:
        return of_token[None, :, None].expand(values.shape)
    grid = patch_grid(batch.valid[0].cpu().numpy(), values.shape[2], values.shape[3])
    plane = of_token[grid.n_special :].reshape(1, 1, grid.rows, grid.columns)
    pixels = plane.repeat_interleave(grid.side, 2).repeat_interleave(grid.side, 3)
    return pixels.expand(values.shape)
