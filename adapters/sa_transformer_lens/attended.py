"""Values and visible keys of a bridge's pass, for `sa_plugin.attended`.

Values are `attn.hook_v`, the pattern `attn.hook_pattern`, the mask what the attention module is
called with.

Plain hooks see no mask. Decoders show it in `attn.hook_attn_scores`, which TransformerLens fires
behind the mask and before z; encoders do not, and there it has to be given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sa_plugin.attended import AttendedReader


class BridgeReader(AttendedReader):
    """Collects one block's values and mask in each pass of a bridge.

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
        super().__init__(layer, causal, n_heads)
        self.module = bridge.blocks[layer].attn
        self.given = None if mask is None else mask.bool()[:, None, None]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See the masks of all passes inside the context."""

        def before(_: Any, args: Any, kwargs: Any) -> None:
            self.see_mask(args, kwargs)

        handle = self.module.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def hooks(self, block: str) -> list[tuple[str, Any]]:
        """Hooks for runs that are watched."""
        return [
            (f"{block}.attn.hook_v", lambda value, hook: self.see_value(value)),
            (f"{block}.attn.hook_pattern", lambda pattern, hook: self.see_pattern(pattern)),
        ]

    def plain_hooks(self, block: str) -> list[tuple[str, Any]]:
        """Hooks for runs that are not watched, to be added before the edit of z."""

        def see_value(value: Tensor, hook: Any) -> None:
            self.value, self.mask, self.visible = value, self.given, None

        def see_scores(scores: Tensor, hook: Any) -> None:
            # Encoders fire this behind z, with probabilities; by then the keys are settled.
            if self.visible is None:
                self.mask = scores

        (_, pattern) = self.hooks(block)
        names = (f"{block}.attn.hook_v", f"{block}.attn.hook_attn_scores")
        return [*zip(names, (see_value, see_scores), strict=True), pattern]
