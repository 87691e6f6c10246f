"""What `attach` asks of a bridge once: one forward pass over a short input, every hook counted.

What is measured is in `sa_plugin.host.laws`. TransformerLens's `hook_attn_out` is what attention
adds, but in post_ln it is the sum behind the first norm; there `attn.o.hook_out` is read.

Whether a hook can be written to: some fire, take an edit, and change nothing.

TransformerLens wraps the attention of encoders and vision towers as it stands in transformers,
which returns the pattern beside its output: an edit of `attn.hook_pattern` reaches nobody. Some
hooks never fire at all (`hook_rot_q` of GPT-NeoX). Neither is an error to TransformerLens (4.3
warns of the first), and a patching sweep over such a hook reports an effect of zero. The test is to
perturb the hook once and compare outputs.

A hook that passes is connected; this says nothing about the size of an edit's effect.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sa_plugin.host.check import LIMITS, Law
from sa_plugin.host.laws import (
    NORMS,
    demand,
    in_stages,
    is_causal,
    kept_part,
    module_streams,
    projection_law,
    stream_law,
    structure,
)
from sa_plugin.host.laws import RAW as RAW_PART
from sa_plugin.host.protocol import Block, OutputProjection, Point
from sa_transformer_lens.places import canonical_names, capture, split_inputs

STANDARD: Mapping[Point, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "pattern": "attn.hook_pattern",
}
RAW = "attn.o.hook_out"
NORM_HOOKS = ("ln1.hook_in", "ln1.hook_out", "ln2.hook_in", "ln2.hook_out")


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
    architecture = bridge.cfg.architecture
    hooks = _hooks(bridge)
    layers = range(bridge.cfg.n_layers)
    of_block = {
        k: {
            part: f"blocks.{k}.{hook}"
            for part, hook in hooks.items()
            if part != "pattern" or not getattr(bridge.blocks[k], "crosses", False)
        }
        for k in layers
    }
    names = [name for parts in of_block.values() for name in parts.values()]
    kept = {
        parts["pattern"]: partial(kept_part, "pattern") for parts in of_block.values() if "pattern" in parts
    }
    try:
        with module_streams([bridge.blocks[k].original_component for k in layers]) as own:
            found = capture(bridge, names, inputs, kept=kept)
    except RuntimeError as error:
        raise ValueError(f"{architecture} cannot be attached: {error}") from error
    blocks = [{part: found[name] for part, name in parts.items()} for parts in of_block.values()]
    limit = LIMITS.get(dtype, LIMITS["float32"])
    stream = stream_law(blocks, own)
    demand(architecture, stream)
    kind, gap = structure(architecture, blocks, limit)
    block = in_stages(architecture, kind, blocks)
    projection = projection_law(blocks, [output_projection(bridge, k) for k in layers], limit)
    demand(architecture, projection)
    laws = (
        Law("every hook fires exactly once", 0.0),
        stream,
        Law(f"blocks add up as {kind}", gap, limit),
        projection,
    )
    points = {**STANDARD, "attn_out": RAW} if block == "post_ln" else STANDARD
    return Probe(block, is_causal(blocks), points, laws)


def _hooks(bridge: Any) -> dict[str, str]:
    """Hook of every part of a block, by the names of `sa_plugin.host.laws`."""
    norms = {
        part: hook
        for part, hook in zip(NORMS, NORM_HOOKS, strict=True)
        if f"blocks.0.{hook}" in bridge.hook_dict
    }
    points = {str(point): hook for point, hook in STANDARD.items()}
    return {**points, RAW_PART: RAW, **norms}


def output_projection(bridge: Any, layer: int) -> OutputProjection:
    """W_O and b_O of one block, copied, in float32 on the CPU."""
    attention = bridge.blocks[layer].attn
    # A bias-free projection has no attribute b_O, or None.
    bias = getattr(attention, "b_O", None)
    weight = attention.W_O.detach().to("cpu", torch.float32, copy=True)
    return OutputProjection(
        weight, None if bias is None else bias.detach().to("cpu", torch.float32, copy=True)
    )


def write_effect(bridge: Any, hook_name: str, inputs: Mapping[str, Tensor]) -> float | None:
    """Largest change of the output when noise of its own size is added at a hook.

    Args:
        bridge: A TransformerBridge.
        hook_name: A hook, aliases allowed.
        inputs: `input_ids` or `pixel_values`, and keyword arguments of the bridge.

    Returns:
        The change, 0.0 if it is no larger than between two clean runs; None if the hook did not
        fire.

    Raises:
        ValueError: The model has no such hook, or it carries no real numbers.
    """
    name = canonical_names(bridge, [hook_name])[hook_name]
    fired: list[bool] = []

    def disturb(tensor: Tensor, hook: Any) -> Tensor:
        if not tensor.is_floating_point():
            raise ValueError(
                f"hook {hook_name!r} carries {tensor.dtype}, which cannot be nudged: patch the "
                "embeddings behind it."
            )
        fired.append(True)
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
        size = tensor.float().clamp(-1e4, 1e4).std() + 0.1
        return tensor + (size * noise.to(tensor.device)).to(tensor.dtype)

    clean, again = (_output(bridge, inputs, []) for _ in range(2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A hook on .* returned a modified tensor")
        edited = _output(bridge, inputs, [(name, disturb)])
    if not fired:
        return None
    change, noise = ((other - clean).abs().amax() for other in (edited, again))
    # A model that the edit makes NaN is changed by it.
    return 0.0 if change <= noise else float(change.nan_to_num(torch.inf))


def demand_writable(bridge: Any, hook_name: str, inputs: Mapping[str, Tensor]) -> None:
    """Refuse a hook whose edits would be lost.

    Raises:
        ValueError: The hook does not exist, is switched off (TransformerLens's own words), does not
            fire, or changes nothing.
    """
    effect = write_effect(bridge, hook_name, inputs)
    if effect is None:
        raise ValueError(
            f"hook {hook_name!r} of {bridge.cfg.architecture} never fires, so an edit there would "
            "be silently lost. Patch a hook that run_with_cache returns."
        )
    if not effect:
        raise ValueError(
            f"hook {hook_name!r} of {bridge.cfg.architecture} fires and changes nothing: an edit "
            "there would be silently lost. Patch attn.hook_z or attn.hook_v of the same block "
            "instead (a pattern edit is an edit of z = pattern @ v)."
        )


def _output(bridge: Any, inputs: Mapping[str, Tensor], hooks: list[tuple[str, Any]]) -> Tensor:
    first, others = split_inputs(bridge, inputs)
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        out: Tensor = bridge(first, **others)
    return out.float()
