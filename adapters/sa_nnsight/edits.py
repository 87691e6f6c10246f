"""Edits of `z`, the input of the attention's output projection, by hooks of torch's own.

nnsight's traces run under torch's hooks, so that traces of the user's own see the edit as well. An
edit of the probabilities (`attention.output[1]`) is lost in every architecture of transformers:
they are handed out beside the output, after it was computed from them. Patterns are therefore
replaced through z: uniform attention is the mean of the values (`attended.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from einops import rearrange
from torch import Tensor

from sa_nnsight.attended import attended_readers
from sa_nnsight.envoy_host import EnvoyHost
from sa_plugin.edit_watch import EditWatch
from sa_plugin.editing import Edit, ZEdit
from sa_plugin.host import Site


@contextmanager
def edited(host: EnvoyHost, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Replace `z` in every pass of the model inside the context; see `EditableHost.edited`."""
    if not edits:
        raise ValueError("edits is empty: give at least one {Site(layer, 'z'): function}.")
    for site in edits:
        if site.point != "z":
            raise ValueError(f"{site} cannot be edited: only 'z' is causal everywhere.")
    attending = [
        site.layer for site, edit in edits.items() if isinstance(edit, ZEdit) and edit.attends
    ]
    with attended_readers(host, attending) as readers:
        watches = {
            site: EditWatch(
                host.hook_name(site), edit, host.output_projection(site.layer), host.info.dtype,
                readers.get(site.layer),
            )
            for site, edit in edits.items()
        }  # fmt: skip
        with _hooks(host, watches):
            yield
    for watch in watches.values():
        watch.finish()


@contextmanager
def _hooks(host: EnvoyHost, watches: Mapping[Site, EditWatch]) -> Iterator[None]:
    def start(*_: Any) -> None:
        for watch in watches.values():
            watch.start()

    handles = [host.places.module("block", 0).register_forward_pre_hook(start)]
    try:
        for site, watch in watches.items():
            handles += _hook(host, site.layer, watch)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(host: EnvoyHost, layer: int, watch: EditWatch) -> list[Any]:
    def before(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = rearrange(args[0], "b t (h e) -> b t h e", h=host.info.n_heads)
        return (watch.edit_z(z).flatten(-2), *args[1:])

    def after(_: Any, __: Any, out: Tensor) -> None:
        watch.see_output(out if gate is None else out * gate[1])

    places = host.places
    gate = places.gate("attn_gate", layer)
    raw = "attn_scale" if places.has("attn_scale") else "o_proj"
    return [
        places.module("o_proj", layer).register_forward_pre_hook(before),
        places.module(raw, layer).register_forward_hook(after),
    ]
