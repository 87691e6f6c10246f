"""One trace that reads named places in the order of the forward pass, and stops at the deepest.

nnsight hands out values as the pass goes by, so that places must be asked for in the order in which
modules run. That order is measured once, by torch's own hooks, and with it that every module runs
exactly once. Values are cloned where they are read: nothing later in the pass can write to them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import nnsight
import torch
from torch import Tensor, nn

from sa_nnsight.paths import Places
from sa_plugin.structure import NORMS, RAW


class Tap(NamedTuple):
    """A value of one module: `path.input`, `path.output` or `path.output[index]`."""

    path: str
    end: Literal["input", "output"]
    item: int | None = None

    def __str__(self) -> str:
        return f"{self.path}.{self.end}" + ("" if self.item is None else f"[{self.item}]")


Order = Mapping[tuple[str, str], int]
"""Rank of each `(path, end)` in the forward pass."""


def tap_of(model: Any, places: Places, layer: int, part: str) -> Tap:
    """Where a point, or another part that `sa_plugin.structure` asks for, is read."""
    roles: dict[str, tuple[str, Literal["input", "output"]]] = {
        "resid_pre": ("block", "input"),
        "resid_post": ("block", "output"),
        "z": ("o_proj", "input"),
        "attn_out": ("attn_out" if places.has("attn_out") else "raw", "output"),
        RAW: ("raw", "output"),
        "mlp_out": ("mlp", "output"),
        "pattern": ("attention", "output"),
        **{part: (part[:5], "input" if part.endswith("in") else "output") for part in NORMS},
    }
    role, end = roles[part]
    if role == "raw":
        role = "attn_scale" if places.has("attn_scale") else "o_proj"
    path = envoy_path(model, places.path(role, layer))
    return Tap(path, end, 1 if part == "pattern" else None)


def envoy_path(model: Any, path: str) -> str:
    """A module's path as nnsight spells it: a submodule named `output` is `E_output` there."""
    served = type(model)
    return ".".join(
        f"E_{part}" if inspect.isdatadescriptor(getattr(served, part, None)) else part
        for part in path.split(".")
    )


def read_taps(
    model: Any, inputs: Mapping[str, Tensor], taps: Sequence[Tap], *, stop: bool = True
) -> dict[Tap, Tensor]:
    """Read in one trace without gradients.

    Args:
        model: nnsight's model.
        inputs: Keyword arguments of its forward pass.
        taps: In the order of the forward pass.
        stop: End the pass after the last of them.

    Returns:
        A clone of each value.

    Raises:
        RuntimeError: A module did not run.
    """
    envoys = [model.get(tap.path) for tap in taps]
    found: list[Tensor] = []
    try:
        with torch.no_grad(), model.trace(**inputs) as tracer:
            found = nnsight.save([])
            for tap, envoy in zip(taps, envoys, strict=True):
                found.append(value_of(envoy, tap))
            if stop:
                tracer.stop()
    except nnsight.intervention.interleaver.OutOfOrderError as error:
        raise RuntimeError(
            f"{error}: a module did not run, or not in the order that was measured when the model "
            "was attached."
        ) from error
    return dict(zip(taps, found, strict=True))


def value_of(envoy: Any, tap: Tap) -> Tensor:
    """A clone of a tap's value, inside a trace."""
    value = envoy.input if tap.end == "input" else envoy.output
    if tap.item is not None:
        value = value[tap.item] if isinstance(value, tuple) else None
    elif isinstance(value, tuple):
        value = value[0]
    if value is None:
        raise RuntimeError(
            f"{tap} is None: fused attention computes no pattern, and this model's attention could "
            "not be switched to 'eager'. Load it with attn_implementation='eager'."
        )
    copy: Tensor = value.clone()
    return copy


def in_order(order: Order, taps: Sequence[Tap]) -> list[Tap]:
    """Taps as the forward pass comes by them, each once."""
    return sorted(set(taps), key=lambda tap: (order[tap.path, tap.end], tap.item or 0))


def measure_order(
    root: nn.Module, modules: Mapping[str, nn.Module], inputs: Mapping[str, Tensor]
) -> Order:
    """Run the model once and see when each module starts and ends, by torch's own hooks.

    Args:
        root: What is run.
        modules: By nnsight's path.
        inputs: Keyword arguments of the forward pass.

    Raises:
        ValueError: A module did not run exactly once.
    """
    seen: list[tuple[str, str]] = []
    handles = []
    for path, module in modules.items():

        def starts(*_: Any, path: str = path) -> None:
            seen.append((path, "input"))

        def ends(*_: Any, path: str = path) -> None:
            seen.append((path, "output"))

        handles += [module.register_forward_pre_hook(starts), module.register_forward_hook(ends)]
    try:
        with torch.no_grad():
            root(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    for path in modules:
        count = seen.count((path, "output"))
        if count != 1:
            raise ValueError(
                f"{type(root).__name__} ran module {path!r} {count} times in one forward pass, "
                "expected once: its tensor cannot be trusted. Name another module in "
                "attach(model, paths={...})."
            )
    return {event: rank for rank, event in enumerate(seen)}


@contextmanager
def eager(root: nn.Module) -> Iterator[None]:
    """Unfused attention inside the context, so that there are probabilities to read."""
    before = getattr(getattr(root, "config", None), "_attn_implementation", None)
    switch = getattr(root, "set_attn_implementation", None)
    if switch is None or before in (None, "eager"):
        yield
        return
    switch("eager")
    try:
        yield
    finally:
        switch(before)
