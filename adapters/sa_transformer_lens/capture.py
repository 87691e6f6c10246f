"""One forward pass of a bridge that reads named hooks, and leaves the model as it was.

TransformerLens's `stop_at_layer` does nothing on BERT and cannot stop after the last block (the
unembedding still runs), so the pass is ended by an exception from a hook at the deepest block read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

FIRST = ("input_ids", "pixel_values")


class _Reached(Exception):
    """Everything asked for has been read."""


def capture(
    bridge: Any,
    names: Iterable[str],
    inputs: Mapping[str, Tensor],
    stop: str | None = None,
    *,
    kept: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Read hooks in one forward pass without gradients.

    Args:
        bridge: A TransformerBridge.
        names: Hook names, aliases allowed.
        inputs: `input_ids` or `pixel_values`, and keyword arguments of the bridge.
        stop: Hook after which the pass ends; by default it runs to the end.
        kept: What to keep of some hooks' tensors; by default a clone.

    Returns:
        A clone of every tensor (an in-place hook of the user's cannot reach it), by name.

    Raises:
        ValueError: The model has no such hook.
        RuntimeError: A hook did not fire exactly once.
    """
    read: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        reduce = (kept or {}).get(name, Tensor.clone)
        return lambda tensor, hook: read[name].append(reduce(tensor))

    stops = [] if stop is None else [stop]
    canonical = canonical_names(bridge, [*read, *stops])
    hooks = [(canonical[name], keep(name)) for name in read]
    # Added last, so that it runs after what is read at the same point.
    run(bridge, inputs, [*hooks, *((canonical[name], _end) for name in stops)])
    for name, tensors in read.items():
        if len(tensors) != 1:
            raise RuntimeError(_not_once(name, len(tensors)))
    return {name: tensors[0] for name, tensors in read.items()}


def run(bridge: Any, inputs: Mapping[str, Tensor], hooks: list[tuple[str, Any]]) -> None:
    """Call the bridge under hooks, without gradients; hooks are removed whatever happens."""
    first, others = split_inputs(bridge, inputs)
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        try:
            bridge(first, **others)
        except _Reached:
            return


def split_inputs(bridge: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The bridge's first argument, token ids or pixels, and the others, on its device."""
    device = next(bridge.parameters()).device
    moved = {key: value.to(device) for key, value in inputs.items()}
    first = next(name for name in FIRST if name in moved)
    return moved.pop(first), moved


def _end(tensor: Tensor, hook: Any) -> None:
    raise _Reached


def canonical_names(bridge: Any, names: Iterable[str]) -> dict[str, str]:
    """The name each hook point has itself.

    In compatibility mode a hook added by an alias is called once for each of its names.

    Raises:
        ValueError: The model has no such hook.
    """
    known = bridge.hook_dict
    for name in names:
        if name not in known:
            block = name.rpartition(".hook_")[0]
            near = sorted(other for other in known if other.startswith(f"{block}."))
            raise ValueError(
                f"{bridge.cfg.architecture} has no hook {name!r}; hooks there: "
                f"{', '.join(near[:12]) or 'none'}."
            )
    return {name: str(known[name].name) for name in names}


def _not_once(name: str, count: int) -> str:
    text = f"hook {name!r} fired {count} times in one forward pass, expected once"
    if name.endswith("hook_pattern") and count == 0:
        return (
            f"{text}: fused attention computes no pattern. Call "
            "bridge.original_model.set_attn_implementation('eager') and attach again."
        )
    return f"{text}: its tensor cannot be trusted. This architecture needs an adapter of its own."
