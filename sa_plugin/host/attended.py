"""What the heads of a block attend to, seen in the pass that runs: values and visible keys.

The mask is taken from what the block hands to its attention module (additive, -inf or the format's
lowest number where a key is hidden, or boolean), because patterns cannot tell a hidden key from one
whose weight underflows, and are often known only after z. No mask at all means all keys, or, in a
causal model, those up to the query.

The pattern, whenever the library shows it, must be zero on every key said to be hidden, and some
query must attend to every key said to be visible; if not, the mask was misread and the pass is
refused. An adapter calls `see_mask`, `see_value` and `see_pattern` from hooks of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin.host.protocol import Attended


class AttendedReader:
    """Collects one block's values and mask in each pass.

    Args:
        layer: Block.
        causal: Whether queries see no later key.
        n_heads: Query heads.
    """

    def __init__(self, layer: int, causal: bool, n_heads: int) -> None:
        self.layer, self.causal, self.n_heads = layer, causal, n_heads
        self.value: Tensor | None = None
        self.mask: Tensor | None = None
        self.visible: Tensor | None = None

    def see_mask(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A pass reaches the attention module, which is called with these arguments."""
        self.value = self.visible = None
        # A mask has the keys on its last axis, and a batch and a head axis before the queries.
        given = [kwargs.get("attention_mask"), *args[1:]]
        masks = [m for m in given if isinstance(m, Tensor) and m.ndim == 4]
        self.mask = masks[0] if masks else None

    def see_value(self, value: Tensor) -> None:
        """Value vectors `[batch, key, head, d_head]`, one a query head or a group of them."""
        self.value = value

    def see_pattern(self, pattern: Tensor) -> None:
        """The pattern must have the zeros of the mask and no key without weight.

        Raises:
            RuntimeError: It has not.
        """
        visible = self._visible(pattern.shape[-2:], pattern.device)
        visible = visible.expand(len(pattern), -1, -1)
        # A query that sees nothing is padding; what its softmax makes of that means nothing.
        weight = pattern.detach().abs().amax(1) * visible.any(-1, keepdim=True)
        leak = float(weight.masked_fill(visible, 0.0).max())
        if leak > 0:
            raise RuntimeError(
                f"block {self.layer} attends with weight {leak:.2g} to a key that its mask hides: "
                "the mask was misread, so uniform attention is not defined. This architecture "
                "needs an adapter of its own."
            )
        if (visible.any(1) & ~weight.any(1)).any():
            raise RuntimeError(
                f"no query of block {self.layer} attends to some key that is said to be visible: "
                "it is padding, say. In runs of your own give ablation_hooks(attention_mask=...)."
            )

    def attended(self, z: Tensor) -> Attended:
        """Values and visible keys of the pass that runs.

        Raises:
            RuntimeError: The values were not seen before z, or are not one for each key.
        """
        if self.value is None or self.value.ndim != 4 or self.n_heads % self.value.shape[2]:
            shape = None if self.value is None else tuple(self.value.shape)
            raise RuntimeError(
                f"the values of block {self.layer} were {shape} before z, expected [batch, key, "
                f"a divisor of {self.n_heads} heads, d_head]: pattern ablation cannot see what "
                "the heads attend to. Use mode='mean'."
            )
        value = self.value.repeat_interleave(self.n_heads // self.value.shape[2], dim=2)
        visible = self._visible(torch.Size((z.shape[1], value.shape[1])), z.device)
        self.visible = visible.expand(len(z), -1, -1)
        return Attended(value, self.visible.contiguous())

    def _visible(self, shape: torch.Size, device: torch.device) -> Bool[Tensor, "one_or_batch query key"]:
        if self.mask is not None:
            keep = allowed(self.mask)[..., : shape[1]].expand(-1, shape[0], -1)
            return keep.tril() if self.causal else keep
        every = torch.ones(shape, dtype=torch.bool, device=device)
        return (every.tril() if self.causal else every)[None]


def allowed(mask: Float[Tensor, "b h q k"] | Bool[Tensor, "b h q k"]) -> Bool[Tensor, "b q k"]:
    """Keys that a mask leaves: True, or an addend above half the format's lowest number."""
    keep = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return keep.any(1)
