"""The laws of a host: how far what is read is from what its name says.

A law compares two ways to the same tensor. Its difference is relative, token by token:
max |a - b| over the token's components, divided by the largest magnitude of anything compared, so
that one attention sink of norm 20,000 hides nothing.

When a model is attached, how its blocks add up is measured, never taken from the architecture's
name. With A what attention and M what the MLP adds, a the raw output of the attention's output
projection, in every layer:

    pre_norm    resid_post = resid_pre + A + M,  A = a            (parallel blocks too)
    post_norm   resid_post = resid_pre + A + M,  A = norm(a)      (Gemma-2; scaled ones: Granite)
    post_ln     x = LN1(resid_pre + a);  resid_post = LN2(x + M)  (BERT)
    staged      pre_norm, but some block's resid_pre is not the resid_post before it

A block that is none of these is refused. Where a tanh gate stands behind attention or MLP (Mllama),
a, A and M are what is behind the gate.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sa_plugin.host import reducers
from sa_plugin.host.protocol import Batch, Block, Host, OutputProjection, Site

# Of a float64 model rotary angles, softmax and RMSNorm run in float32 all the same in transformers, and
# its weights are copied in float32 for the laws.
LIMITS = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
# Parts of a block that laws compare, besides the points of a `Site`: what leaves the output
# projection, and both ends of its norms, where it has two.
RAW = "raw"
NORMS = ("norm1_in", "norm1_out", "norm2_in", "norm2_out")
MEASURED: tuple[Block, ...] = ("pre_norm", "post_norm", "post_ln")
Parts = Mapping[str, Tensor]
"""Points, RAW and NORMS of one block, by name, as `kept_part` keeps them."""


@dataclass(frozen=True)
class Law:
    """One law and how far the model is from it.

    Attributes:
        name: What should be equal.
        difference: Largest relative difference, or None where the law does not apply.
        limit: Largest difference that passes.
        note: Why it does not apply, or what went wrong.
    """

    name: str
    difference: float | None
    limit: float = 0.0
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the law holds, or does not apply."""
        return self.difference is None or self.difference <= self.limit

    @property
    def verdict(self) -> str:
        """One of "n/a", "pass" and "FAIL"."""
        return "n/a" if self.difference is None else "pass" if self.passed else "FAIL"

    def __str__(self) -> str:
        verdict = f"{self.verdict:4}"
        if self.difference is None or (self.note and math.isinf(self.difference)):
            return f"{verdict}  {self.name}: {self.note}"
        note = f" ({self.note})" if self.note else ""
        measured = f"difference {self.difference:.1e}, limit {self.limit:.0e}"
        return f"{verdict}  {self.name}: {measured}{note}"


def tolerance(dtype: str) -> float:
    """Largest difference that passes in a number format; mixed ones count as float32."""
    return LIMITS.get(dtype, LIMITS["float32"])


def relative_difference(
    whole: Float[Tensor, "*token d_model"], *parts: Float[Tensor, "*token d_model"]
) -> float:
    """Largest difference between a tensor and the sum of parts, relative to its token's values."""
    terms = [part.double().cpu() for part in parts]
    total = whole.double().cpu()
    # Relative to the largest term, not to the sum: terms that cancel leave rounding behind.
    size = torch.stack([term.abs().amax(-1) for term in (total, *terms)]).amax(0)
    gap = (total - reduce(torch.add, terms)).abs().amax(-1) / size.clamp_min(1e-30)
    # max() would skip NaN.
    return float(gap.max()) if torch.isfinite(gap).all() else float("inf")


def read_sites(host: Host, batch: Batch, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """The tensors themselves, unreduced: for short inputs."""
    # A reducer returns tensors by name, and sites are no strings.
    named = {site: f"{site.layer}.{site.point}" for site in sites}
    kept = host.read(batch, sites, lambda read: {named[site]: read[site] for site in sites})
    return {site: kept[name] for site, name in named.items()}


class BrokenLawError(ValueError):
    """A model is not what is said of it: an adapter adds what it took to be where."""


def demand(architecture: str, law: Law) -> None:
    """Refuse a model that breaks a law.

    Raises:
        BrokenLawError: It does.
        ValueError: Its activations are no numbers.
    """
    if law.difference is not None and not math.isfinite(law.difference):
        raise ValueError(
            f"{architecture}: activations hold NaN or Inf on a short text ({law}): mend the "
            "weights, or load the model in float32 or bfloat16."
        )
    if not law.passed:
        raise BrokenLawError(
            f"{architecture} breaks a law: {law}. What would be read is not what its name says: "
            "take off hooks that edit the model, or report it (sa-plugin check)."
        )


@contextmanager
def module_streams(blocks: Sequence[nn.Module]) -> Iterator[dict[tuple[int, str], list[Tensor]]]:
    """What goes in and out of blocks inside the context, by torch's own hooks, not the host's."""
    seen: dict[tuple[int, str], list[Tensor]] = {}
    handles = []

    def keep(layer: int, end: str, value: Any) -> None:
        # Blocks of some architectures take or return tuples, the stream first.
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


def stream_law(blocks: Mapping[int, Parts], own: Mapping[tuple[int, str], Sequence[Tensor]]) -> Law:
    """The residual that is read against the modules' own, seen another way.

    Args:
        blocks: What the host read of each block.
        own: `(layer, "resid_pre" | "resid_post")` to what was seen there, once.
    """
    worst = 0.0
    for k, block in blocks.items():
        for point in ("resid_pre", "resid_post"):
            seen = own.get((k, point), [])
            # A block that ran twice, or not at all, is not the one that was read.
            gap = relative_difference(block[point], seen[0]) if len(seen) == 1 else math.inf
            worst = max(worst, gap)
    return Law("the residual is the model's own hidden state", worst)


def structure(architecture: str, blocks: Sequence[Parts], limit: float) -> tuple[Block, float]:
    """How the blocks add up, and how far they are from it.

    Raises:
        BrokenLawError: In no known way.
    """
    gaps = {kind: max(_gap(block, kind) for block in blocks) for kind in MEASURED}
    # The first that fits: a pre_norm block is a post_norm one whose norm does nothing.
    for kind in MEASURED:
        if gaps[kind] <= limit:
            return kind, gaps[kind]
    measured = ", ".join(f"{kind} by {gap:.1e}" for kind, gap in gaps.items())
    raise BrokenLawError(
        f"{architecture}: its blocks add up in no known way (relative differences: {measured}; "
        f"limit {limit:.0e}), so attention and MLP outputs cannot be named."
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
    # What is added is the projection's own output, or what a norm makes of it.
    attention = block["attn_out"]
    added = relative_difference(after, before, attention, mlp)
    return max(added, relative_difference(attention, raw)) if kind == "pre_norm" else added


def in_stages(architecture: str, kind: Block, blocks: Sequence[Parts], whole: Container[int]) -> Block:
    """The kind, or "staged" where some block's input is not the output of the block before.

    Args:
        architecture: For the error.
        kind: What `structure` found.
        blocks: All of a model's, in order.
        whole: Those that nothing is spliced into.

    Raises:
        BrokenLawError: Something stands between blocks that are not pre_norm.
    """
    joints = [
        k
        for k, (one, two) in enumerate(pairwise(blocks), 1)
        # Neighbours lie on two devices where a model is spread over several.
        if k in whole and not torch.equal(one["resid_post"], two["resid_pre"].to(one["resid_post"].device))
    ]
    if joints and kind != "pre_norm":
        raise BrokenLawError(
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
        # The library cuts heads another way than the projection says.
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
    limit = tolerance(host.info.dtype)
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
        read = host.read(batch, [site], partial(reducers.at_site, site=(site.layer, str(site.point))))["h"]
        for k, row in enumerate(batch.rows.tolist()):
            found[row] = read[k, batch.valid[k]]
    return found
