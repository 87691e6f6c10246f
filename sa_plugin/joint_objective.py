"""Objectives of several samples as one metric of a batch, a row each.

    f(resid)_k = f_k(resid_k, the tokens of sample k)

Patching tools keep per-example values (`reduce="none"` of `transformer_lens.patching`) and take
intervals and p-values over the batch. Copies of one sample tell nothing about others: put samples
in the rows. Each row keeps its own target, mask and length, and rows do not touch.

What an interval over rows does not show: anything about samples unlike these; and those without a
SuperActivator are not among them (see `Objective.coverage` and `NoSuperActivator`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.objectives import Objective


@dataclass(frozen=True, eq=False)
class JointObjective:
    """One objective a row; made by `together`.

    Attributes:
        objectives: Of each row, all at one layer.
        tokens: Where each row's own tokens stand; the rest is padding.
    """

    objectives: tuple[Objective, ...]
    tokens: Bool[Tensor, "batch token"]

    def __repr__(self) -> str:
        first = self.objectives[0]
        return (
            f"JointObjective({len(self.objectives)} samples, {first.name!r}, {first.hook_name}, "
            f"{self.tokens.shape[1]} tokens)"
        )

    def __call__(self, resid: Float[Tensor, "batch token d_model"]) -> Float[Tensor, " batch"]:
        """The objective of each row, differentiable.

        Args:
            resid: Raw activations at `hook_name`, a row for each sample.

        Raises:
            ValueError: Another number of rows or tokens.
        """
        if resid.shape[:2] != self.tokens.shape:
            raise ValueError(
                f"resid has shape {tuple(resid.shape)}, the samples {tuple(self.tokens.shape)} "
                "[batch, token]: give one row for each sample, padded alike."
            )
        rows = zip(self.objectives, resid, self.tokens.to(resid.device), strict=True)
        return torch.cat([one(row[own][None]) for one, row, own in rows])

    def metric(self, resid: Float[Tensor, "batch token d_model"]) -> Float[Tensor, ""]:
        """The mean over the samples, a 0-d tensor."""
        return self(resid).mean()

    @property
    def layer(self) -> int:
        """Block index."""
        return self.objectives[0].layer

    @property
    def hook_name(self) -> str:
        """The library's own name of the place it reads."""
        return self.objectives[0].hook_name

    @property
    def mask(self) -> Bool[Tensor, "batch token"]:
        """Valid tokens of each row, false at padding."""
        mask = torch.zeros_like(self.tokens)
        for row, own, one in zip(mask, self.tokens, self.objectives, strict=True):
            row[own] = one.mask[0]
        return mask


def together(
    objectives: Sequence[Objective],
    attention_mask: Int[Tensor, "batch token"] | Bool[Tensor, "batch token"] | None = None,
) -> JointObjective:
    """Objectives of several samples as one metric of a batch.

    Args:
        objectives: One for each row, at one layer.
        attention_mask: Of the batch, which says where each row is padded; by default on the right.

    Returns:
        A metric of `[batch, token, d_model]`, for `prefix_view` and the tools it serves.

    Raises:
        ValueError: No objectives, objectives of several layers, or a mask that does not leave each
            sample its number of tokens.

    Example:
        >>> joint = together(objectives, mask)  # doctest: +SKIP
        >>> view = prefix_view(bridge, joint, attention_mask=mask)  # doctest: +SKIP
        >>> patching.get_act_patch_resid_pre(
        ...     view, corrupted, cache, joint, reduce="none", baseline=True)  # doctest: +SKIP
    """
    own = tuple(objectives)
    names = sorted({one.hook_name for one in own})
    if len(names) != 1:
        raise ValueError(
            f"objectives read {names or 'nothing'}: give at least one, and all at one place, since "
            "a batch is read at one."
        )
    lengths = torch.tensor([len(one.tail) for one in own])
    if attention_mask is None:
        tokens = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    else:
        tokens = attention_mask.bool().cpu()
    if len(tokens) != len(own) or not torch.equal(tokens.sum(1), lengths):
        raise ValueError(
            f"attention_mask has {tokens.sum(1).tolist()} tokens by row, the samples "
            f"{lengths.tolist()}: give the mask of these samples, in this order."
        )
    return JointObjective(own, tokens)
