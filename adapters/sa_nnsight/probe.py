"""What `attach` asks of an nnsight model once: a few forward passes over a short input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from einops import rearrange
from torch import Tensor

from sa_nnsight.paths import Places
from sa_nnsight.reading import (
    Order,
    eager,
    final_tap,
    in_order,
    measure_order,
    read_taps,
    tap_of,
)
from sa_nnsight.weights import n_heads, output_projection
from sa_plugin.checks import LIMITS, Law, relative_difference
from sa_plugin.host import Block, Point
from sa_plugin.structure import (
    NORMS,
    RAW,
    demand,
    in_stages,
    is_causal,
    kept_part,
    module_streams,
    projection_law,
    stream_law,
    structure,
)


@dataclass(frozen=True)
class Probe:
    """What was seen.

    Attributes:
        block: How blocks add up.
        causal: Whether no token attends to a later one.
        d_model: Width of the residual stream.
        order: In which modules run.
        laws: What was measured.
    """

    block: Block
    causal: bool
    d_model: int
    order: Order
    laws: tuple[Law, ...]


def probe(
    model: Any,
    places: Places,
    inputs: Mapping[str, Tensor],
    dtype: str,
    *,
    final_norm: bool = False,
) -> Probe:
    """Run the model three times and measure.

    Args:
        model: nnsight's model, in eval mode.
        places: Its modules.
        inputs: One unpadded text of two tokens or more, or one image, on the model's device.
        dtype: Number format, for the limits.
        final_norm: Whether the norm behind the last block is read too.

    Raises:
        ValueError: A module did not run once, a law does not hold, or blocks add up in no known
            way.
    """
    layers = range(places.n_layers)
    name = places.architecture
    parts = [*get_args(Point), RAW]
    if places.has("norm1") and places.has("norm2"):
        parts += NORMS
    taps = {
        (k, part): tap_of(model, places, k, part) for k in layers for part in parts
        if part != "pattern" or not places.crosses(k)
    }  # fmt: skip
    kept = {tap: partial(kept_part, part) for (_, part), tap in taps.items() if part == "pattern"}
    wanted = [*taps.values(), *([final_tap(model, places)] if final_norm else ())]
    order = measure_order(places.root, _modules(model, places, wanted), inputs)
    try:
        with eager(places.root), module_streams([places.module("block", k) for k in layers]) as own:
            found = read_taps(
                model, inputs, in_order(order, list(taps.values())), stop=False, kept=kept
            )
    except RuntimeError as error:
        raise ValueError(f"{name} cannot be attached: {error}") from error
    heads = n_heads(places)
    blocks = [
        {part: _shaped(part, found[taps[k, part]], heads) for part in parts if (k, part) in taps}
        for k in layers
    ]
    limit = LIMITS.get(dtype, LIMITS["float32"])
    stream = stream_law(blocks, own)
    demand(name, stream)
    kind, gap = structure(name, blocks, limit)
    block = in_stages(name, kind, blocks)
    projection = projection_law(blocks, [output_projection(places, k) for k in layers], limit)
    demand(name, projection)
    states = _hidden_states_law(places, blocks, inputs, limit)
    demand(name, states)
    laws = (
        Law("every module runs exactly once", 0.0),
        stream,
        states,
        Law(f"blocks add up as {kind}", gap, limit),
        projection,
    )
    return Probe(block, is_causal(blocks), blocks[0]["resid_pre"].shape[-1], order, laws)


def _modules(model: Any, places: Places, taps: Any) -> dict[str, Any]:
    envoys = {tap.path: model.get(tap.path) for tap in taps}
    return {path: envoy._module for path, envoy in envoys.items()}


def _shaped(part: str, value: Tensor, heads: int) -> Tensor:
    return rearrange(value, "b t (h e) -> b t h e", h=heads) if part == "z" else value


def _hidden_states_law(
    places: Places, blocks: list[dict[str, Tensor]], inputs: Mapping[str, Tensor], limit: float
) -> Law:
    name = "the residual before each block is what transformers calls its hidden state"
    if not hasattr(places.root, "config"):
        return Law(name, None, note="the model is none of transformers'")
    # Unfused, as the blocks were read: in bfloat16 the two kinds of attention differ by per cents.
    with torch.no_grad(), eager(places.root):
        out = places.root(**inputs, output_hidden_states=True)
    states = getattr(out, "hidden_states", None)
    if not states or len(states) != places.n_layers + 1:
        return Law(name, None, note="the model returns none")
    # The last one is read behind the final norm in most models.
    gaps = [
        relative_difference(block["resid_pre"], state)
        for block, state in zip(blocks, states, strict=False)
    ]
    return Law(name, max(gaps), limit)
