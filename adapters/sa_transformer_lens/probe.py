"""What `attach` asks of a bridge once: one forward pass over a short input, every hook counted.

How a block adds up is measured, never taken from the architecture's name. With A what attention and
M what the MLP adds, a the raw output of the attention's output projection, in every layer:

    pre_norm    resid_post = resid_pre + A + M,  A = a            (parallel blocks too)
    post_norm   resid_post = resid_pre + A + M,  A = norm(a)      (Gemma-2; scaled ones: Granite)
    post_ln     x = LN1(resid_pre + a);  resid_post = LN2(x + M)  (BERT)

TransformerLens's `hook_attn_out` is A, but in post_ln it is x; there `attn.o.hook_out` is read. A
block that is none of these is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from sa_plugin.checks import LIMITS, Law, relative_difference
from sa_plugin.host import Block, OutputProjection, Point
from sa_transformer_lens.capture import capture

STANDARD: Mapping[Point, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "pattern": "attn.hook_pattern",
}
RAW = "attn.o.hook_out"
NORMS = ("ln1.hook_in", "ln1.hook_out", "ln2.hook_in", "ln2.hook_out")


@dataclass(frozen=True)
class Probe:
    """What one forward pass showed.

    Attributes:
        block: How blocks add up.
        causal: Whether no token attends to a later one.
        points: Hook of each point, inside a block.
        laws: What was measured.
    """

    block: Block
    causal: bool
    points: Mapping[Point, str]
    laws: tuple[Law, ...]


def probe(bridge: Any, inputs: Mapping[str, Tensor], dtype: str) -> Probe:
    """Run the bridge once, to the end, and measure.

    Args:
        bridge: The bridge, in eval mode.
        inputs: One unpadded text of two tokens or more, or one image.
        dtype: Number format, for the limits.

    Raises:
        ValueError: A hook is missing or did not fire once, a law does not hold, or blocks add up in
            no known way.
    """
    layers = range(bridge.cfg.n_layers)
    suffixes = [*STANDARD.values(), RAW]
    suffixes += [norm for norm in NORMS if f"blocks.0.{norm}" in bridge.hook_dict]
    names = [f"blocks.{layer}.{suffix}" for layer in layers for suffix in suffixes]
    try:
        with _module_streams(bridge) as own:
            found = capture(bridge, names, inputs)
    except RuntimeError as error:
        raise ValueError(f"{bridge.cfg.architecture} cannot be attached: {error}") from error
    blocks = [{suffix: found[f"blocks.{k}.{suffix}"] for suffix in suffixes} for k in layers]
    limit = LIMITS.get(dtype, LIMITS["float32"])
    stream = Law("the residual is the model's own hidden state", _own_gap(blocks, own))
    demand(bridge, stream)
    block, gap = _structure(bridge, blocks, limit)
    projection = _projection_gap(bridge, blocks)
    laws = (
        Law("every hook fires exactly once", 0.0),
        stream,
        Law(f"blocks add up as {block}", gap, limit),
        Law("z @ W_O + b_O = output of the projection", projection, limit),
    )
    demand(bridge, laws[-1])
    points = dict(STANDARD)
    if block == "post_ln":
        points["attn_out"] = RAW
    return Probe(block, _is_causal(blocks), points, laws)


def demand(bridge: Any, law: Law) -> None:
    """Refuse a model that breaks a law.

    Raises:
        ValueError: It does.
    """
    if law.difference is not None and not math.isfinite(law.difference):
        raise ValueError(
            f"{bridge.cfg.architecture}: activations hold NaN or Inf on a short text ({law}): mend "
            "the weights, or load the model in float32 or bfloat16."
        )
    if not law.passed:
        raise ValueError(
            f"{bridge.cfg.architecture} breaks a law: {law}. What would be read is not what its "
            "name says: take off hooks that edit the model, or report it (sa-plugin check)."
        )


@contextmanager
def _module_streams(bridge: Any) -> Iterator[dict[tuple[int, str], list[Tensor]]]:
    """What goes in and out of the wrapped modules, by torch's own hooks, not the bridge's."""
    seen: dict[tuple[int, str], list[Tensor]] = {}
    handles = []

    def keep(layer: int, end: str, value: Any) -> None:
        tensor = value[0] if isinstance(value, tuple) else value
        seen.setdefault((layer, end), []).append(tensor.clone())

    for k in range(bridge.cfg.n_layers):
        module = bridge.blocks[k].original_component

        def before(_: Any, args: Any, kwargs: Any, k: int = k) -> None:
            keep(k, "resid_pre", args or kwargs["hidden_states"])

        def after(_: Any, args: Any, out: Any, k: int = k) -> None:
            keep(k, "resid_post", out)

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _own_gap(blocks: list[dict[str, Tensor]], own: Mapping[tuple[int, str], list[Tensor]]) -> float:
    worst = 0.0
    for k, block in enumerate(blocks):
        for point in ("resid_pre", "resid_post"):
            seen = own.get((k, point), [])
            if len(seen) != 1:
                return float("inf")
            worst = max(worst, relative_difference(block[f"hook_{point}"], seen[0]))
    return worst


def _structure(bridge: Any, blocks: list[dict[str, Tensor]], limit: float) -> tuple[Block, float]:
    gaps = {kind: max(_gap(block, kind) for block in blocks) for kind in get_args(Block)}
    for kind in get_args(Block):
        if gaps[kind] <= limit:
            return kind, gaps[kind]
    measured = ", ".join(f"{kind} by {gap:.1e}" for kind, gap in gaps.items())
    raise ValueError(
        f"{bridge.cfg.architecture}: its blocks add up in no known way (relative differences: "
        f"{measured}; limit {limit:.0e}), so attention and MLP outputs cannot be named. It needs "
        "an adapter of its own (entry-point group 'sa_plugin.adapters')."
    )


def _gap(block: Mapping[str, Tensor], kind: Block) -> float:
    before, after = block["hook_resid_pre"], block["hook_resid_post"]
    raw, mlp = block[RAW], block["hook_mlp_out"]
    if kind == "post_ln":
        if not all(norm in block for norm in NORMS):
            return float("inf")
        return max(
            relative_difference(block["ln1.hook_in"], before, raw),
            relative_difference(block["ln2.hook_in"], block["ln1.hook_out"], mlp),
            relative_difference(after, block["ln2.hook_out"]),
        )
    attention = block["hook_attn_out"]
    added = relative_difference(after, before, attention, mlp)
    return max(added, relative_difference(attention, raw)) if kind == "pre_norm" else added


def _projection_gap(bridge: Any, blocks: list[dict[str, Tensor]]) -> float:
    worst = 0.0
    for layer, block in enumerate(blocks):
        weight, bias = output_projection(bridge, layer)
        z = block["attn.hook_z"].float().cpu()
        heads, d_head = weight.shape[:2]
        if z.shape[-2:] != (heads, d_head):
            return float("inf")
        terms = [torch.einsum("bthe,hed->btd", z, weight)]
        terms += [] if bias is None else [bias.expand_as(terms[0])]
        worst = max(worst, relative_difference(block[RAW], *terms))
    return worst


def output_projection(bridge: Any, layer: int) -> OutputProjection:
    """W_O and b_O of one block, copied, in float32 on the CPU."""
    attention = bridge.blocks[layer].attn
    # A bias-free projection has no attribute b_O, or None.
    bias = getattr(attention, "b_O", None)
    weight = attention.W_O.detach().to("cpu", torch.float32, copy=True)
    return OutputProjection(
        weight, None if bias is None else bias.detach().to("cpu", torch.float32, copy=True)
    )


def _is_causal(blocks: list[dict[str, Tensor]]) -> bool:
    return all(not block["attn.hook_pattern"].triu(1).any() for block in blocks)
