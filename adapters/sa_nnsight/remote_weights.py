"""Weights that are elsewhere: their fingerprint, from a few of their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sa_nnsight.paths import Places
from sa_nnsight.weights import inner_parameters, shared_names
from sa_plugin.fingerprint import hash_values, strided_places

Ask = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def fingerprint(places: Places, ask: Ask) -> str:
    """The fingerprint that the same weights have on this machine.

    Args:
        places: Modules of the model, on the meta device.
        ask: Flat indices by path of a parameter, to its values there, in float32.
    """
    asked: dict[str, Tensor] = {}
    derived: dict[str, tuple[tuple[int, ...], str, slice]] = {}
    for inner, parameter in inner_parameters(places).items():
        path = places.prefix + inner
        asked[path], parts = _places(places, inner, parameter)
        start = 0
        for name, (shape, count) in parts.items():
            derived[name] = shape, path, slice(start, start + count)
            start += count
    values = ask(asked)
    found = {name: (shape, values[path][part]) for name, (shape, path, part) in derived.items()}
    return hash_values(places.kind, found)


def _places(
    places: Places, inner: str, parameter: Tensor
) -> tuple[Tensor, dict[str, tuple[tuple[int, ...], int]]]:
    """Flat indices into a parameter, and the shape and count of each part that they are for."""
    names = shared_names(places, inner, parameter)
    if len(names) == 1:
        where = strided_places(parameter.numel())
        return where, {name: (tuple(one.shape), len(where)) for name, one in names.items()}
    # A fused parameter: its parts are views, so that indices are cut as values are.
    index = torch.arange(parameter.numel()).reshape(parameter.shape)
    cut = shared_names(places, inner, index)
    flat = {name: one.reshape(-1)[strided_places(one.numel())] for name, one in cut.items()}
    shapes = {name: (tuple(cut[name].shape), len(where)) for name, where in flat.items()}
    return torch.cat(list(flat.values())), shapes
