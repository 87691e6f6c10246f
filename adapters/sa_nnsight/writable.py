"""Whether a place can be written to in a trace: some take an edit and change nothing.

transformers hands out attention probabilities beside the output they were used for, so that writing
to `attention.output[1]` is no error and reaches nobody. The test is to write to the place once and
compare outputs. A place that passes is connected; this says nothing about the size of an effect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import nnsight
import torch
from torch import Tensor

from sa_nnsight.reading import Tap, value_of

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
