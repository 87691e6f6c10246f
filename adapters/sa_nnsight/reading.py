"""One trace that reads named places in the order of the forward pass, and stops at the deepest.

nnsight hands out values as the pass goes by, so that places must be asked for in the order in which
modules run. That order is measured once, by torch's own hooks, and with it that every module runs
exactly once. Values are cloned where they are read: nothing later in the pass can write to them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import nnsight
import torch
from torch import Tensor, nn

from sa_nnsight.paths import Places
from sa_plugin.structure import NORMS, RAW


class Tap(NamedTuple):
    """A value of one module: `path.input`, `path.output` or `path.output[index]`.

    `gate` is the path of a parameter and its tanh, which the value is multiplied with.
    """

    path: str
    end: Literal["input", "output"]
    item: int | None = None
    gate: tuple[str, float] | None = None

    def __str__(self) -> str:
        place = f"{self.path}.{self.end}" + ("" if self.item is None else f"[{self.item}]")
        return place if self.gate is None else f"{place} * tanh({self.gate[0]})"


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
    gated = {"attn_out": "attn_gate", RAW: "attn_gate", "mlp_out": "mlp_gate"}.get(part)
    gate = None if gated is None else places.gate(gated, layer)
    return Tap(path, end, 1 if part == "pattern" else None, gate)


def final_tap(model: Any, places: Places) -> Tap:
    """The residual stream behind the norm that follows the last block.

    Raises:
        ValueError: The architecture's paths name none.
    """
    if not places.has("final_norm"):
        raise ValueError(
            f"{places.architecture} has no final norm among its paths: leave final_norm out, or "
            'give attach(model, paths={..., "final_norm": ...}).'
        )
    return Tap(envoy_path(model, places.path("final_norm")), "output")


def envoy_path(model: Any, path: str) -> str:
    """A module's path as nnsight spells it: a submodule named `output` is `E_output` there."""
    served = type(model)
    return ".".join(
        f"E_{part}" if inspect.isdatadescriptor(getattr(served, part, None)) else part
        for part in path.split(".")
    )


def read_taps(
    model: Any,
    inputs: Mapping[str, Tensor],
    taps: Sequence[Tap],
    *,
    stop: bool = True,
    kept: Mapping[Tap, Callable[[Tensor], Tensor]] | None = None,
) -> dict[Tap, Tensor]:
    """Read in one trace without gradients.

    Args:
        model: nnsight's model.
        inputs: Keyword arguments of its forward pass.
        taps: In the order of the forward pass.
        stop: End the pass after the last of them.
        kept: What to keep of some of them, in place of the value.

    Returns:
        A clone of each value.

    Raises:
        RuntimeError: A module did not run.
    """
    envoys = [model.get(tap.path) for tap in taps]
    found: list[Tensor] = []
    reduce = kept or {}
    try:
        with torch.no_grad(), model.trace(**inputs) as tracer:
            found = nnsight.save([])
            for tap, envoy in zip(taps, envoys, strict=True):
                value = value_of(envoy, tap)
                found.append(reduce[tap](value) if tap in reduce else value)
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
    copy: Tensor = value.clone() if tap.gate is None else value * tap.gate[1]
    return copy


def in_order(order: Order, taps: Sequence[Tap]) -> list[Tap]:
    """Taps as the forward pass comes by them, each once."""
    return sorted(
        set(taps), key=lambda tap: (order[tap.path, tap.end], tap.item or 0, tap.gate is not None)
    )


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
