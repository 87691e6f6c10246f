"""Edits of `z` and of MLP outputs, and what is demanded of each of them in every pass.

An edit fires once, changes what it is given, and is not lost. One that may leave z as it is
(`ZEdit.may_keep`) need only fire. That one of z is not lost is measured at the token that it changes
most: what leaves the output projection must not be the projection of the unedited z. That one of an
MLP's output is not is shown beforehand: noise there changes the model's output (`local.demand_writable`).

An edit that attends is told what the heads of its block attend to in the pass that runs: values and
visible keys. The mask is taken from what the block hands to its attention module (additive, -inf or
the format's lowest number where a key is hidden, or boolean), because patterns cannot tell a hidden
key from one whose weight underflows, and are often known only after z. No mask at all means all
keys, or, in a causal model, those up to the query. The pattern, whenever the library shows it, must
be zero on every key said to be hidden, and some query must attend to every key said to be visible;
if not, the mask was misread and the pass is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin.host.laws import tolerance
from sa_plugin.host.protocol import Attended, Edit, OutputProjection, ZEdit, apply_edit


class EditWatch:
    """One edit under watch.

    Args:
        name: The library's own name of the site.
        edit: The edit.
        projection: What z is multiplied by; None for an MLP's output.
        dtype: Number format of the model, for the limit.
        reader: For edits that attend.
    """

    def __init__(
        self,
        name: str,
        edit: Edit,
        projection: OutputProjection | None,
        dtype: str,
        reader: AttendedReader | None = None,
    ) -> None:
        self.name, self.edit = name, edit
        self.projection = projection
        self.limit = tolerance(dtype)
        self.passes = self.fired = 0
        self.outputs: tuple[Tensor, Tensor] | None = None
        self.place = (0, 0)
        self.may_keep = isinstance(edit, ZEdit) and edit.may_keep
        self.reader = reader

    def start(self) -> None:
        """A pass begins, so the one before is over.

        Raises:
            RuntimeError: The edit did not fire exactly once in it.
        """
        if self.passes:
            self._demand_once()
        self.passes, self.fired = self.passes + 1, 0

    def finish(self) -> None:
        """The last pass is over.

        Raises:
            RuntimeError: There was none, or the edit did not fire exactly once in the last.
        """
        if not self.passes:
            raise RuntimeError(f"no forward pass ran while {self.name!r} was edited.")
        self._demand_once()

    def _demand_once(self) -> None:
        if self.fired != 1:
            raise RuntimeError(
                f"the edit of {self.name!r} fired {self.fired} times in one forward pass, expected "
                "once: leave out edits of blocks behind the deepest one that is read."
            )

    def edited(self, z: Float[Tensor, "batch token *what"]) -> Float[Tensor, "batch token *what"]:
        """The edited z or output; the edit gets a copy, so that one in place is seen too.

        Raises:
            RuntimeError: The edit returned another shape or format, or changed nothing.
        """
        self.fired += 1
        attended = None if self.reader is None else self.reader.attended(z)
        new = apply_edit(self.edit, z.clone(), attended)
        if new.shape != z.shape or new.dtype != z.dtype:
            raise RuntimeError(
                f"the edit of {self.name!r} returned {new.dtype} {tuple(new.shape)}, expected "
                f"{z.dtype} {tuple(z.shape)}."
            )
        if self.may_keep:
            return new
        # The largest change of any number, by token: where it is largest, a lost edit shows best.
        change = (new.detach().float() - z.detach().float()).abs().flatten(2).amax(-1)
        if not change.any():
            raise RuntimeError(
                f"the edit of {self.name!r} changed nothing: it would report an effect of zero."
            )
        if self.projection is not None:
            row, token = divmod(int(change.argmax()), change.shape[1])
            self.place = (row, token)
            self.outputs = (self._project(z[row, token]), self._project(new[row, token]))
        return new

    def _project(self, z: Float[Tensor, "head d_head"]) -> Float[Tensor, " d_model"]:
        assert self.projection is not None
        weight, bias = self.projection
        # One token alone: the whole product would cost as much as the block.
        out = torch.einsum("he,hed->d", z.detach().float().cpu(), weight)
        return out if bias is None else out + bias

    def see_output(self, out: Float[Tensor, "batch token d_model"]) -> None:
        """What left the projection.

        Raises:
            RuntimeError: It is what the unedited z gives.
        """
        if self.outputs is None:
            return
        old, new = self.outputs
        here = out[self.place].detach().float().cpu()
        limit = self.limit * float(old.norm())
        # Only where the edit would have shown: a change below the limit proves nothing.
        if (here - old).norm() <= limit < (new - old).norm():
            raise RuntimeError(
                f"the edit of {self.name!r} was lost: the output projection gave what the unedited "
                "z gives. This architecture needs an adapter of its own."
            )
        self.outputs = None


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
        # One value a query head, whatever the groups.
        value = self.value.repeat_interleave(self.n_heads // self.value.shape[2], dim=2)
        visible = self._visible(torch.Size((z.shape[1], value.shape[1])), z.device)
        self.visible = visible.expand(len(z), -1, -1)
        return Attended(value, self.visible.contiguous())

    def _visible(self, shape: torch.Size, device: torch.device) -> Bool[Tensor, "one_or_batch query key"]:
        if self.mask is not None:
            # A static cache makes the mask longer than the keys there are.
            keep = allowed(self.mask)[..., : shape[1]].expand(-1, shape[0], -1)
            return keep.tril() if self.causal else keep
        every = torch.ones(shape, dtype=torch.bool, device=device)
        return (every.tril() if self.causal else every)[None]


def allowed(mask: Float[Tensor, "b h q k"] | Bool[Tensor, "b h q k"]) -> Bool[Tensor, "b q k"]:
    """Keys that a mask leaves: True, or an addend above half the format's lowest number."""
    keep = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return keep.any(1)
