"""What the heads of a block attend to, seen in the pass that runs: values and visible keys.

Values are `attn.hook_v`, repeated for grouped-query attention. The mask is taken from what the
block hands to its attention module (additive, -inf or the format's lowest number where a key is
hidden, or boolean), because patterns cannot tell a hidden key from one whose weight underflows, and
in encoders and vision towers the pattern is only known after z. No mask at all means all keys, or,
in a causal model, those up to the query.

The pattern, whenever the library shows it, must be zero on every key said to be hidden, and some
query must attend to every key said to be visible; if not, the mask was misread and the pass is
refused.

Plain hooks see no mask. Decoders show it in `attn.hook_attn_scores`, which TransformerLens fires
behind the mask and before z; encoders do not, and there it has to be given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin.editing import Attended


class AttendedReader:
    """Collects one block's values and mask in each pass.

    Args:
        bridge: A TransformerBridge.
        layer: Block.
        causal: Whether queries see no later key.
        n_heads: Query heads.
        mask: For plain hooks: `[batch, key]`, False or 0 at padding.
    """

    def __init__(
        self, bridge: Any, layer: int, causal: bool, n_heads: int, mask: Tensor | None = None
    ) -> None:
        self.module = bridge.blocks[layer].attn
        self.layer, self.causal, self.n_heads = layer, causal, n_heads
        self.given = None if mask is None else mask.bool()[:, None, None]
        self.value: Tensor | None = None
        self.mask: Tensor | None = None
        self.visible: Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See the masks of all passes inside the context."""
        handle = self.module.register_forward_pre_hook(self._see_mask, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _see_mask(self, module: Any, args: Any, kwargs: Any) -> None:
        self.value = self.visible = None
        # A mask has the keys on its last axis, and a batch and a head axis before the queries.
        given = [kwargs.get("attention_mask"), *args[1:]]
        masks = [m for m in given if isinstance(m, Tensor) and m.ndim == 4]
        self.mask = masks[0] if masks else None

    def see_value(self, value: Tensor, hook: Any) -> None:
        """The hook at v."""
        self.value = value

    def plain_hooks(self, prefix: str) -> list[tuple[str, Any]]:
        """Hooks for runs that are not watched, to be added before the edit of z."""

        def see_value(value: Tensor, hook: Any) -> None:
            self.value, self.mask, self.visible = value, self.given, None

        def see_scores(scores: Tensor, hook: Any) -> None:
            # Encoders fire this behind z, with probabilities; by then the keys are settled.
            if self.visible is None:
                self.mask = scores

        names = ("hook_v", "hook_attn_scores", "hook_pattern")
        seen = (see_value, see_scores, self.see_pattern)
        return [(f"{prefix}.attn.{name}", fn) for name, fn in zip(names, seen, strict=True)]

    def see_pattern(self, pattern: Tensor, hook: Any) -> None:
        """The hook at the pattern: it must have the zeros of the mask and no key without weight.

        Raises:
            RuntimeError: It has not.
        """
        visible = self._visible(pattern.shape[-2:]).expand(len(pattern), -1, -1)
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
                f"attn.hook_v of block {self.layer} gave {shape} before z, expected [batch, key, "
                f"a divisor of {self.n_heads} heads, d_head]: pattern ablation cannot see what "
                "the heads attend to. Use mode='mean'."
            )
        value = self.value.repeat_interleave(self.n_heads // self.value.shape[2], dim=2)
        visible = self._visible(torch.Size((z.shape[1], value.shape[1])))
        self.visible = visible.expand(len(z), -1, -1)
        return Attended(value, self.visible.contiguous())

    def _visible(self, shape: torch.Size) -> Bool[Tensor, "one_or_batch query key"]:
        if self.mask is not None:
            keep = allowed(self.mask)[..., : shape[1]].expand(-1, shape[0], -1)
            return keep.tril() if self.causal else keep
        every = torch.ones(shape, dtype=torch.bool, device=next(self.module.parameters()).device)
        return (every.tril() if self.causal else every)[None]


def allowed(mask: Float[Tensor, "b h q k"] | Bool[Tensor, "b h q k"]) -> Bool[Tensor, "b q k"]:
    """Keys that a mask leaves: True, or an addend above half the format's lowest number."""
    keep = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return keep.any(1)
