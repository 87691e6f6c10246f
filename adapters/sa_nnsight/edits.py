"""What is put on passes by torch's own hooks: edits of `z` and of MLP outputs, and looks at parts.

`z` is the input of the attention's output projection. nnsight's traces run under torch's hooks, so that
traces of the user's own see the edit as well. An edit of the probabilities is lost, so patterns are
replaced through z: uniform attention is the mean of the values (`sa_plugin.host.edits`).

What a trace reads of an MLP is what it gave before its edit; the block adds the edited one.

Values are what the value projection gives (or their part of the fused one), the pattern is one of
attention's outputs, handed out by unfused attention only. Values and pattern must give the
unedited z in the first pass: where an architecture does something else to its values, uniform
attention of its heads would be a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from sa_nnsight.places import EnvoyPlaces, by_row, eager, split_heads
from sa_plugin.host.adapter import Look, Looks, Part, seeing_inputs
from sa_plugin.host.edits import AttendedReader, EditWatch
from sa_plugin.host.laws import relative_difference
from sa_plugin.host.protocol import Site


@contextmanager
def watching(places: EnvoyPlaces, watches: Mapping[Site, EditWatch]) -> Iterator[None]:
    """Show every pass inside the context to the watches of some sites; see `Passes.watching`.

    Attention computes a pattern where a watch attends, and is as before afterwards.

    Raises:
        NotImplementedError: A watch attends, and the architecture shows no values. In the first
            pass: it shows no pattern, or values and pattern do not give z.
    """
    rows: list[int] = []

    def start(_: Any, args: Any, kwargs: Any) -> None:
        rows[:] = [len((*args, *kwargs.values())[0])]
        for watch in watches.values():
            watch.start()

    attending = {site.layer: watch for site, watch in watches.items() if watch.reader is not None}
    with ExitStack() as stack:
        if attending:
            stack.enter_context(eager(places.root, ask=bool(places.roles.get("output_attentions"))))
        handles = [places.module("block", 0).register_forward_pre_hook(start, with_kwargs=True)]
        stack.callback(lambda: [handle.remove() for handle in handles])
        for layer, watch in attending.items():
            handles += _attended(places, layer, watch)
        for site, watch in watches.items():
            handles += (
                _edited(places, site.layer, watch)
                if site.point == "z"
                else _edited_mlp(places, site.layer, watch, rows)
            )
        yield


@contextmanager
def showing(places: EnvoyPlaces, looks: Looks) -> Iterator[None]:
    """Show parts of every pass inside the context as they come by; see `sa_plugin.host.adapter.Looks`."""
    rows: list[int] = []

    def ids(given: Tensor) -> None:
        rows[:] = [len(given)]
        looks.ids(given)

    embedding, root = places.root.get_submodule(places.path("embed")), places.root
    with ExitStack() as stack:
        stack.enter_context(seeing_inputs(looks._replace(ids=ids), embedding, [root]))
        for part, look in looks.parts.items():
            stack.callback(_shown(places, part, look, rows).remove)
        yield


def _shown(places: EnvoyPlaces, part: Part, look: Look, rows: list[int]) -> Any:
    tap = places.tap(part)
    gate = 1.0 if tap.gate is None else tap.gate[1]

    def see(whole: Any) -> Any:
        """What takes the place of a module's input or output, or None."""
        own: Tensor = whole[0] if isinstance(whole, tuple) else whole
        value = by_row(own, rows[0])
        # What a block adds is gated where it is looked at, and not yet where it is put back.
        new = look(value if gate == 1.0 else value * gate)
        if new is None:
            return None
        new = (new if gate == 1.0 else new / gate).reshape(own.shape)
        return (new, *whole[1:]) if isinstance(whole, tuple) else new

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            new = see(args)
            return None if new is None else (new, kwargs)
        # Some models pass it on by name, the first.
        name = next(iter(kwargs))
        new = see(kwargs[name])
        return None if new is None else (args, {**kwargs, name: new})

    module = places.model.get(tap.path)._module
    if tap.end == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(lambda _, __, out: see(out))


def _edited_mlp(places: EnvoyPlaces, layer: int, watch: EditWatch, rows: list[int]) -> list[Any]:
    gate = places.gate("mlp_gate", layer)

    def after(_: Any, __: Any, out: Any) -> Any:
        own: Tensor = out[0] if isinstance(out, tuple) else out
        value = by_row(own, rows[0])
        # What the block adds is gated where the edit sees it, and not yet where it is put back.
        new = watch.edited(value) if gate is None else watch.edited(value * gate[1]) / gate[1]
        new = new.reshape(own.shape)
        # Routers hand out their scores beside it (GPT-OSS).
        return (new, *out[1:]) if isinstance(out, tuple) else new

    return [places.module("mlp", layer).register_forward_hook(after)]


def _edited(places: EnvoyPlaces, layer: int, watch: EditWatch) -> list[Any]:
    gate = places.gate("attn_gate", layer)

    def before(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = rearrange(args[0], "b t (h e) -> b t h e", h=places.n_heads)
        return (watch.edited(z).flatten(-2), *args[1:])

    def after(_: Any, __: Any, out: Tensor) -> None:
        watch.see_output(out if gate is None else out * gate[1])

    return [
        places.module("o_proj", layer).register_forward_pre_hook(before),
        places.module(places.raw_role(), layer).register_forward_hook(after),
    ]


def _attended(places: EnvoyPlaces, layer: int, watch: EditWatch) -> list[Any]:
    """Hooks that show a watch's reader mask, values and pattern, and prove them."""
    reader = watch.reader
    assert reader is not None
    role, proof = _value_role(places), _Proof(places, layer, reader, watch.limit)

    def before(_: Any, args: Any, kwargs: Any) -> None:
        reader.see_mask(args, kwargs)
        proof.z = proof.pattern = None

    def value(_: Any, __: Any, out: Tensor) -> None:
        reader.see_value(_values_by_head(places, role, out))

    def after(_: Any, __: Any, out: Any) -> None:
        pattern = _pattern(places, layer, out)
        reader.see_pattern(pattern)
        proof.see_pattern(pattern)

    def z(_: Any, args: tuple[Tensor, ...]) -> None:
        proof.see_z(args[0])

    attention = places.module("attention", layer)
    return [
        attention.register_forward_pre_hook(before, with_kwargs=True),
        places.module(role, layer).register_forward_hook(value),
        attention.register_forward_hook(after),
        # In front of every edit of z.
        places.module("o_proj", layer).register_forward_pre_hook(z, prepend=True),
    ]


class _Proof:
    """That values and pattern give the unedited z, in the first pass that shows all three."""

    def __init__(self, places: EnvoyPlaces, layer: int, reader: AttendedReader, limit: float) -> None:
        self.where, self.limit = f"{places.architecture}, block {layer}", limit
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
        # The definition of attention, with the values that were seen.
        made = torch.einsum("bhqk,bkhe->bqhe", pattern, value).flatten(-2)
        gap = relative_difference(z, made)
        if not gap <= self.limit:
            raise NotImplementedError(
                f"values and pattern of {self.where}, do not give z (relative difference "
                f"{gap:.2g}, limit {self.limit:.2g}): pattern ablation is not defined here. Use "
                "mode='mean'."
            )
        self.done, self.z, self.pattern = True, None, None


def _value_role(places: EnvoyPlaces) -> str:
    for role in ("v", "qkv"):
        if places.has(role):
            return role
    raise NotImplementedError(
        f"{places.architecture} has no value projection among its paths, which pattern "
        "ablation needs: give attach(model, paths={..., \"v\": ...}), or use mode='mean'."
    )


def _values_by_head(places: EnvoyPlaces, role: str, out: Tensor) -> Tensor:
    if role == "v":
        return rearrange(out, "b t (h e) -> b t h e", e=places.d_head)
    value = split_heads(places, out.movedim(-1, 0), str(places.roles.get("qkv_order")))[2]
    return rearrange(value, "(h e) b t -> b t h e", e=places.d_head)


def _pattern(places: EnvoyPlaces, layer: int, out: Any) -> Tensor:
    item = int(places.roles.get("pattern", 1))
    found = out[item] if isinstance(out, tuple) and len(out) > item else None
    if isinstance(found, Tensor) and found.ndim == 4:
        return found
    raise NotImplementedError(
        f"{places.architecture} shows no attention pattern at block {layer}, so pattern "
        "ablation cannot check what its heads attend to: load it with "
        "attn_implementation='eager', or use mode='mean'."
    )
