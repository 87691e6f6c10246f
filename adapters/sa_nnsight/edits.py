"""Values and visible keys of an nnsight model's pass, for uniform attention, by torch's hooks.

Values are what the value projection (or the last part of the fused one) gives, the pattern is
`attention.output[1]`, handed out by unfused attention only; the mask is what the attention module
is called with. Values and pattern must give the unedited z in the first pass: where an architecture
does something else to its values, uniform attention of its heads would be a guess.

Edits of `z`, the input of the attention's output projection, by hooks of torch's own.

nnsight's traces run under torch's hooks, so that traces of the user's own see the edit as well. An
edit of the probabilities (`attention.output[1]`) is lost in every architecture of transformers:
they are handed out beside the output, after it was computed from them. Patterns are therefore
replaced through z: uniform attention is the mean of the values (`attended.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from sa_nnsight.host import EnvoyHost
from sa_nnsight.places import eager
from sa_plugin.host.attended import AttendedReader
from sa_plugin.host.check import LIMITS, relative_difference
from sa_plugin.host.laws import EditWatch
from sa_plugin.host.protocol import Edit, Site, ZEdit


@contextmanager
def attended_readers(host: EnvoyHost, layers: Sequence[int]) -> Iterator[dict[int, AttendedReader]]:
    """A reader a block, for passes with unfused attention; attention is as before afterwards.

    Raises:
        NotImplementedError: The architecture shows no values. In the first pass: it shows no
            pattern, or values and pattern do not give z.
    """
    with ExitStack() as stack:
        if layers:
            stack.enter_context(eager(host.places.root))
        yield {layer: stack.enter_context(_watching(host, layer)) for layer in layers}


@contextmanager
def _watching(host: EnvoyHost, layer: int) -> Iterator[AttendedReader]:
    reader = AttendedReader(layer, host.info.causal, host.info.n_heads)
    role, proof = _value_role(host), _Proof(host, layer, reader)

    def before(_: Any, args: Any, kwargs: Any) -> None:
        reader.see_mask(args, kwargs)
        proof.z = proof.pattern = None

    def value(_: Any, __: Any, out: Tensor) -> None:
        reader.see_value(_by_head(host, role, out))

    def after(_: Any, __: Any, out: Any) -> None:
        pattern = _pattern(host, layer, out)
        reader.see_pattern(pattern)
        proof.see_pattern(pattern)

    def z(_: Any, args: tuple[Tensor, ...]) -> None:
        proof.see_z(args[0])

    attention = host.places.module("attention", layer)
    handles = [
        attention.register_forward_pre_hook(before, with_kwargs=True),
        host.places.module(role, layer).register_forward_hook(value),
        attention.register_forward_hook(after),
        # In front of every edit of z.
        host.places.module("o_proj", layer).register_forward_pre_hook(z, prepend=True),
    ]
    try:
        yield reader
    finally:
        for handle in handles:
            handle.remove()


class _Proof:
    """That values and pattern give the unedited z, in the first pass that shows all three."""

    def __init__(self, host: EnvoyHost, layer: int, reader: AttendedReader) -> None:
        self.where = f"{host.places.architecture}, block {layer}"
        self.limit = LIMITS.get(host.info.dtype, LIMITS["float32"])
        self.reader, self.done = reader, False
        self.pattern: Tensor | None = None
        self.z: Tensor | None = None

    def see_z(self, z: Tensor) -> None:
        self.z = z
        self._prove()

    def see_pattern(self, pattern: Tensor) -> None:
        self.pattern = pattern
        self._prove()

    def _prove(self) -> None:
        # Encoders show the pattern before z, most others after it.
        if self.done or self.z is None or self.pattern is None:
            return
        z, pattern = self.z.detach().float(), self.pattern.detach().float()
        value = self.reader.attended(z).value.detach().float()
        made = torch.einsum("bhqk,bkhe->bqhe", pattern, value).flatten(-2)
        gap = relative_difference(z, made)
        if not gap <= self.limit:
            raise NotImplementedError(
                f"values and pattern of {self.where}, do not give z (relative difference "
                f"{gap:.2g}, limit {self.limit:.2g}): pattern ablation is not defined here. Use "
                "mode='mean'."
            )
        self.done, self.z, self.pattern = True, None, None


def _value_role(host: EnvoyHost) -> str:
    for role in ("v", "qkv"):
        if host.places.has(role):
            return role
    raise NotImplementedError(
        f"{host.places.architecture} has no value projection among its paths, which pattern "
        "ablation needs: give attach(model, paths={..., \"v\": ...}), or use mode='mean'."
    )


def _by_head(host: EnvoyHost, role: str, out: Tensor) -> Tensor:
    if role == "v":
        return rearrange(out, "b t (h e) -> b t h e", e=host.info.d_head)
    heads = host.info.n_heads
    if host.places.roles.get("qkv_order") == "heads":
        return rearrange(out, "b t (h part e) -> part b t h e", h=heads, part=3)[2]
    return rearrange(out.chunk(3, dim=-1)[2], "b t (h e) -> b t h e", h=heads)


def _pattern(host: EnvoyHost, layer: int, out: Any) -> Tensor:
    found = out[1] if isinstance(out, tuple) and len(out) > 1 else None
    if isinstance(found, Tensor) and found.ndim == 4:
        return found
    raise NotImplementedError(
        f"{host.places.architecture} shows no attention pattern at block {layer}, so pattern "
        "ablation cannot check what its heads attend to: load it with "
        "attn_implementation='eager', or use mode='mean'."
    )


@contextmanager
def edited(host: EnvoyHost, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Replace `z` in every pass of the model inside the context; see `EditableHost.edited`."""
    if not edits:
        raise ValueError("edits is empty: give at least one {Site(layer, 'z'): function}.")
    for site in edits:
        if site.point != "z":
            raise ValueError(f"{site} cannot be edited: only 'z' is causal everywhere.")
    attending = [site.layer for site, edit in edits.items() if isinstance(edit, ZEdit) and edit.attends]
    with attended_readers(host, attending) as readers:
        watches = {
            site: EditWatch(
                host.hook_name(site),
                edit,
                host.output_projection(site.layer),
                host.info.dtype,
                readers.get(site.layer),
            )
            for site, edit in edits.items()
        }
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
