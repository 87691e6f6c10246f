"""What is demanded of an edit of `z` in every pass: it fires once, changes z, and is not lost.

One that may leave z as it is (`ZEdit.may_keep`) need only fire. That it is not lost is measured at
the token that it changes most: what leaves the output projection must not be the projection of the
unedited z.

What a host is asked once, when it is attached: that it reads what it says it reads.

How a block adds up is measured, never taken from the architecture's name. With A what attention and
M what the MLP adds, a the raw output of the attention's output projection, in every layer:

    pre_norm    resid_post = resid_pre + A + M,  A = a            (parallel blocks too)
    post_norm   resid_post = resid_pre + A + M,  A = norm(a)      (Gemma-2; scaled ones: Granite)
    post_ln     x = LN1(resid_pre + a);  resid_post = LN2(x + M)  (BERT)
    staged      pre_norm, but some block's resid_pre is not the resid_post before it

A block that is none of these is refused. Where a tanh gate stands behind attention or MLP (Mllama),
a, A and M are what is behind the gate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sa_plugin.host import reducers
from sa_plugin.host.check import LIMITS, Law, relative_difference
from sa_plugin.host.protocol import (
    Attended,
    Batch,
    Block,
    Edit,
    Host,
    OutputProjection,
    Site,
    ZEdit,
    apply_edit,
)


@runtime_checkable
class Reader(Protocol):
    """Sees what the heads of a block attend to."""

    def attended(self, z: Tensor) -> Attended:
        """In the pass that runs, up to z."""


class EditWatch:
    """One edit under watch.

    Args:
        name: The library's own name of the site.
        edit: The edit.
        projection: What z is multiplied by.
        dtype: Number format of the model, for the limit.
        reader: For edits that attend.
    """

    def __init__(
        self, name: str, edit: Edit, projection: OutputProjection, dtype: str, reader: Reader | None = None
    ) -> None:
        self.name, self.edit = name, edit
        self.weight, self.bias = projection
        self.limit = LIMITS.get(dtype, LIMITS["float32"])
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

    def edit_z(self, z: Float[Tensor, "batch token head d_head"]) -> Float[Tensor, "batch token head d_head"]:
        """The edited z; the edit gets a copy, so that one in place is seen too.

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
        change = (new.detach().float() - z.detach().float()).abs().amax((-2, -1))
        if not change.any():
            raise RuntimeError(
                f"the edit of {self.name!r} changed nothing: it would report an effect of zero."
            )
        row, token = divmod(int(change.argmax()), change.shape[1])
        self.place = (row, token)
        self.outputs = (self._project(z[row, token]), self._project(new[row, token]))
        return new

    def _project(self, z: Float[Tensor, "head d_head"]) -> Float[Tensor, " d_model"]:
        out = torch.einsum("he,hed->d", z.detach().float().cpu(), self.weight)
        return out if self.bias is None else out + self.bias

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
        if (here - old).norm() <= limit < (new - old).norm():
            raise RuntimeError(
                f"the edit of {self.name!r} was lost: the output projection gave what the unedited "
                "z gives. This architecture needs an adapter of its own."
            )
        self.outputs = None


# What an adapter reads of every block besides the points of a `Site`.
RAW = "raw"
MEASURED: tuple[Block, ...] = ("pre_norm", "post_norm", "post_ln")
NORMS = ("norm1_in", "norm1_out", "norm2_in", "norm2_out")
Parts = Mapping[str, Tensor]
"""Points, RAW and, where a block has two norms, NORMS, by name, as `kept_part` keeps them."""


def demand(architecture: str, law: Law) -> None:
    """Refuse a model that breaks a law.

    Raises:
        ValueError: It does.
    """
    if law.difference is not None and not math.isfinite(law.difference):
        raise ValueError(
            f"{architecture}: activations hold NaN or Inf on a short text ({law}): mend the "
            "weights, or load the model in float32 or bfloat16."
        )
    if not law.passed:
        raise ValueError(
            f"{architecture} breaks a law: {law}. What would be read is not what its name says: "
            "take off hooks that edit the model, or report it (sa-plugin check)."
        )


@contextmanager
def module_streams(blocks: Sequence[nn.Module]) -> Iterator[dict[tuple[int, str], list[Tensor]]]:
    """What goes in and out of blocks inside the context, by torch's own hooks, not the host's."""
    seen: dict[tuple[int, str], list[Tensor]] = {}
    handles = []

    def keep(layer: int, end: str, value: Any) -> None:
        tensor = value[0] if isinstance(value, tuple) else value
        seen.setdefault((layer, end), []).append(tensor.clone())

    for k, module in enumerate(blocks):

        def before(_: Any, args: Any, kwargs: Any, k: int = k) -> None:
            keep(k, "resid_pre", args or next(iter(kwargs.values())))

        def after(_: Any, args: Any, out: Any, k: int = k) -> None:
            keep(k, "resid_post", out)

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def stream_law(blocks: Sequence[Parts], own: Mapping[tuple[int, str], Sequence[Tensor]]) -> Law:
    """The residual that is read against the modules' own, seen another way.

    Args:
        blocks: What the host read.
        own: `(layer, "resid_pre" | "resid_post")` to what was seen there, once.
    """
    worst = 0.0
    for k, block in enumerate(blocks):
        for point in ("resid_pre", "resid_post"):
            seen = own.get((k, point), [])
            gap = relative_difference(block[point], seen[0]) if len(seen) == 1 else math.inf
            worst = max(worst, gap)
    return Law("the residual is the model's own hidden state", worst)


def structure(architecture: str, blocks: Sequence[Parts], limit: float) -> tuple[Block, float]:
    """How the blocks add up, and how far they are from it.

    Raises:
        ValueError: In no known way.
    """
    gaps = {kind: max(_gap(block, kind) for block in blocks) for kind in MEASURED}
    for kind in MEASURED:
        if gaps[kind] <= limit:
            return kind, gaps[kind]
    measured = ", ".join(f"{kind} by {gap:.1e}" for kind, gap in gaps.items())
    raise ValueError(
        f"{architecture}: its blocks add up in no known way (relative differences: {measured}; "
        f"limit {limit:.0e}), so attention and MLP outputs cannot be named. It needs an adapter of "
        "its own (entry-point group 'sa_plugin.adapters')."
    )


def _gap(block: Parts, kind: Block) -> float:
    before, after = block["resid_pre"], block["resid_post"]
    raw, mlp = block[RAW], block["mlp_out"]
    if kind == "post_ln":
        if not all(norm in block for norm in NORMS):
            return math.inf
        return max(
            relative_difference(block["norm1_in"], before, raw),
            relative_difference(block["norm2_in"], block["norm1_out"], mlp),
            relative_difference(after, block["norm2_out"]),
        )
    attention = block["attn_out"]
    added = relative_difference(after, before, attention, mlp)
    return max(added, relative_difference(attention, raw)) if kind == "pre_norm" else added


def in_stages(architecture: str, kind: Block, blocks: Sequence[Parts]) -> Block:
    """The kind, or "staged" where some block's input is not the output of the block before.

    Args:
        architecture: For the error.
        kind: What `structure` found.
        blocks: All of a model's, in order.

    Raises:
        ValueError: Something stands between blocks that are not pre_norm.
    """
    joints = [
        k
        for k, (one, two) in enumerate(pairwise(blocks), 1)
        if not torch.equal(one["resid_post"], two["resid_pre"])
    ]
    if joints and kind != "pre_norm":
        raise ValueError(
            f"{architecture}: something changes the residual stream between blocks {joints[0] - 1} "
            f"and {joints[0]}, which are {kind}: it needs an adapter of its own (entry-point group "
            "'sa_plugin.adapters')."
        )
    return "staged" if joints else kind


def projection_law(blocks: Sequence[Parts], projections: Sequence[OutputProjection], limit: float) -> Law:
    """That the heads' z times the projection is what the projection gives."""
    worst = 0.0
    for block, (weight, bias) in zip(blocks, projections, strict=True):
        z = block["z"].float().cpu()
        if z.shape[-2:] != weight.shape[:2]:
            return Law("z @ W_O + b_O = output of the projection", math.inf, limit)
        terms = [torch.einsum("bthe,hed->btd", z, weight)]
        terms += [] if bias is None else [bias.expand_as(terms[0])]
        worst = max(worst, relative_difference(block[RAW], *terms))
    return Law("z @ W_O + b_O = output of the projection", worst, limit)


def is_causal(blocks: Sequence[Parts]) -> bool:
    """Whether no token attends to a later one; blocks that attend to others have no pattern."""
    return not any(bool(block["pattern"].any()) for block in blocks if "pattern" in block)


def kept_part(part: str, value: Tensor) -> Tensor:
    """What is kept of a part: of a pattern, whether a token attends to a later one.

    The patterns of a vision tower with thousands of tokens would fill memory, all at once.
    """
    return value.triu(1).any() if part == "pattern" else value.clone()


def padding_law(host: Host, alone: Sequence[Sequence[Batch]], padded: Mapping[str, Sequence[Batch]]) -> Law:
    """That padding changes no valid token of the last residual.

    Args:
        host: The host.
        alone: The batches of each sample by itself, unpadded.
        padded: Side of the padding to the batches of all samples.
    """
    limit = LIMITS.get(host.info.dtype, LIMITS["float32"])
    expected = [_residuals(host, batches)[0] for batches in alone]
    worst = 0.0
    for batches in padded.values():
        together = _residuals(host, batches)
        for row, resid in enumerate(expected):
            worst = max(worst, relative_difference(together[row], resid))
    return Law(f"padding on the {' and the '.join(padded)} changes nothing", worst, limit)


def _residuals(host: Host, batches: Sequence[Batch]) -> dict[int, Tensor]:
    """The residual after the last block, of each sample's valid tokens."""
    site = Site(host.info.n_layers - 1, "resid_post")
    found = {}
    for batch in batches:
        read = host.read(batch, [site], partial(reducers.pick, site=(site.layer, str(site.point))))["h"]
        for k, row in enumerate(batch.rows.tolist()):
            found[row] = read[k, batch.valid[k]]
    return found
