"""What runs on the server beside the reducers: reading a place, and a model's weights.

Like `sa_plugin.host.reducers` this module is shipped by its source: torch alone, nothing imported
inside a function, and plain values as arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def shaped(
    site: tuple[int, str], value: Any, item: int | None, heads: int, rows: int | None = None
) -> torch.Tensor:
    """What a module gave, as a `Site` names it.

    Args:
        site: Layer and point.
        value: Its input or output.
        item: Which of several outputs.
        heads: Query heads of an attention layer.
        rows: Of the batch, for blocks that pass `[row * token, d_model]` on (OPT).

    Raises:
        ValueError: There are no attention probabilities.
    """
    if item is not None:
        value = value[item] if isinstance(value, tuple) else None
    elif isinstance(value, tuple):
        value = value[0]
    if value is None:
        raise ValueError(
            f"the attention probabilities of block {site[0]} are None: the server runs fused "
            "attention and does not switch it. Use points other than 'pattern', or attach locally."
        )
    tensor: torch.Tensor = value
    if tensor.ndim == 2 and rows is not None:
        tensor = tensor.reshape(rows, -1, tensor.shape[-1])
    return tensor.reshape(*tensor.shape[:-1], heads, -1) if site[1] == "z" else tensor


def parameter_values(root: torch.nn.Module, places: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Some values of some parameters, by flat index, in float32."""
    found = {}
    for name, where in places.items():
        flat = root.get_parameter(name).detach().flatten()
        found[name] = flat[where.to(flat.device)].to("cpu", torch.float32)
    return found


def pick_all(read: Mapping[Any, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What was read, in float32, by `"layer point"`, and an empty tensor in its format."""
    out = {f"{layer} {point}": value.float() for (layer, point), value in read.items()}
    return {**out, "format": next(iter(read.values())).flatten()[:0]}
