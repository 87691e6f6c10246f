"""A clean and a corrupted input for patching between invokes, token by token in the same places.

nnsight pads invokes of different lengths to one, so that a value written from one into the other
lands on other tokens, and is no error.

What `attach` asks of an nnsight model once: a few forward passes over a short input.

Whether a place can be written to in a trace: some take an edit and change nothing.

transformers hands out attention probabilities beside the output they were used for, so that writing
to `attention.output[1]` is no error and reaches nobody. The test is to write to the place once and
compare outputs. A place that passes is connected; this says nothing about the size of an effect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import nnsight
import torch
from einops import rearrange
from torch import Tensor

from sa_nnsight.paths import Places
from sa_nnsight.places import (
    Order,
    Tap,
    eager,
    final_tap,
    in_order,
    measure_order,
    n_heads,
    output_projection,
    read_taps,
    tap_of,
    value_of,
)
from sa_plugin.host.check import LIMITS, Law, relative_difference
from sa_plugin.host.laws import (
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
from sa_plugin.host.protocol import Block, Point


def check_pair(clean: Mapping[str, Tensor], corrupted: Mapping[str, Tensor]) -> None:
    """Refuse a pair whose tokens, or pixels, do not stand in the same places.

    Args:
        clean: Keyword arguments of the first invoke.
        corrupted: Of the second.

    Raises:
        ValueError: The two differ in an argument's name, shape, or in what the mask hides.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> check_pair({"input_ids": ids}, {"input_ids": ids.flip(-1)})
    """
    if clean.keys() != corrupted.keys():
        raise ValueError(
            f"the clean input has {sorted(clean)}, the corrupted one {sorted(corrupted)}: give the "
            "model the same arguments in both."
        )
    for name, value in clean.items():
        other = corrupted[name]
        if value.shape != other.shape:
            raise ValueError(
                f"{name} has shape {list(value.shape)} in the clean input and {list(other.shape)} "
                "in the corrupted one: both need the same number of tokens, because patching goes "
                "position by position. Replace tokens one for one, or pad both alike."
            )
        if name == "attention_mask" and not value.equal(other):
            raise ValueError("the two attention masks hide different positions: pad both inputs alike.")


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
    model: Any, places: Places, inputs: Mapping[str, Tensor], dtype: str, *, final_norm: bool = False
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
        (k, part): tap_of(model, places, k, part)
        for k in layers
        for part in parts
        if part != "pattern" or not places.crosses(k)
    }
    kept = {tap: partial(kept_part, part) for (_, part), tap in taps.items() if part == "pattern"}
    wanted = [*taps.values(), *([final_tap(model, places)] if final_norm else ())]
    order = measure_order(places.root, _modules(model, places, wanted), inputs)
    try:
        with eager(places.root), module_streams([places.module("block", k) for k in layers]) as own:
            found = read_taps(model, inputs, in_order(order, list(taps.values())), stop=False, kept=kept)
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
        relative_difference(block["resid_pre"], state) for block, state in zip(blocks, states, strict=False)
    ]
    return Law(name, max(gaps), limit)


_NAME = re.compile(r"(?P<path>.+)\.(?P<end>input|output)(\[(?P<item>\d+)\])?")


def parse_tap(model: Any, name: str) -> Tap:
    """A place by its name: `transformer.h.8.output`, `transformer.h.8.attn.output[1]`.

    Raises:
        ValueError: It is no such name, or the model has no such module.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} names no place: give the path of a module and '.input', '.output' or "
            "'.output[1]', as host.hook_name(Site(8, 'resid_post')) does."
        )
    try:
        model.get(match["path"])
    except AttributeError as error:
        raise ValueError(f"the model has no module {match['path']!r}.") from error
    item = None if match["item"] is None else int(match["item"])
    return Tap(match["path"], "input" if match["end"] == "input" else "output", item)


def write_effect(model: Any, tap: Tap, inputs: Mapping[str, Tensor]) -> float:
    """Largest change of the output when noise of its own size is added at a place.

    Args:
        model: nnsight's model.
        tap: The place.
        inputs: Keyword arguments of its forward pass.

    Returns:
        The change; 0.0 if it is no larger than between two clean runs.
    """
    clean, again, edited = (_output(model, inputs, at) for at in (None, None, tap))
    change, noise = ((other - clean).abs().amax() for other in (edited, again))
    return 0.0 if change <= noise else float(change.nan_to_num(torch.inf))


def demand_writable(model: Any, tap: Tap, inputs: Mapping[str, Tensor]) -> None:
    """Refuse a place whose edits would be lost.

    Raises:
        ValueError: Writing to it changes nothing.
    """
    if not write_effect(model, tap, inputs):
        raise ValueError(
            f"writing to {str(tap)!r} changes nothing: an edit there would be silently lost. Write "
            "to the input of the attention's output projection, z, in its place (an edit of the "
            "probabilities is an edit of z = pattern @ v)."
        )


def _output(model: Any, inputs: Mapping[str, Tensor], tap: Tap | None) -> Tensor:
    envoy = None if tap is None else model.get(tap.path)
    with torch.no_grad(), model.trace(**inputs) as tracer:
        if tap is not None:
            _disturb(envoy, tap)
        out = nnsight.save(tracer.result)
    first: Tensor = out[0] if isinstance(out, tuple) else next(iter(out.values()))
    return first.float()


def _disturb(envoy: Any, tap: Tap) -> None:
    value = value_of(envoy, tap)
    noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    size = value.float().clamp(-1e4, 1e4).std() + 0.1
    new: Any = value + (size * noise.to(value.device)).to(value.dtype)
    if tap.end == "input":
        envoy.input = new
        return
    whole = envoy.output
    place = tap.item or 0
    if isinstance(whole, tuple):
        new = (*whole[:place], new, *whole[place + 1 :])
    envoy.output = new
