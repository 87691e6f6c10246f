"""Two devices on a machine that has none: tensors say where they lie, and refuse to meet elsewhere.

Inside `two_devices()` everything is computed on the CPU, and every tensor has a device of its own: that of
what it was computed from, or the one it was moved to. Tensors of two devices that meet in one operation
are an error, as they are on GPUs; numbers without axes and masks or places of the CPU may meet any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CPU, FIRST, SECOND = (torch.device(name) for name in ("cpu", "cuda:0", "cuda:1"))


def place(tensor: Tensor) -> torch.device:
    """Where a tensor says it is."""
    return getattr(tensor, "_place", CPU)


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor that says it is there; the same numbers."""
    # A move is a step of the graph of gradients, the one that a copy to a GPU is.
    there = (
        torch.ops.aten._to_copy(tensor)
        if tensor.requires_grad or tensor.is_sparse
        else tensor.view(tensor.shape)
    )
    there._place = device
    return there


def spread(model: torch.nn.Module, blocks: Sequence[torch.nn.Module], first: int) -> None:
    """Lay blocks from `first` on on a second device, as accelerate's `dispatch_model` does.

    Every module with weights brings what it is given to where it is, inside its forward, so that hooks see
    what it was given; the model hands out what it gives on the first device.
    """
    later = {id(one) for block in blocks[first:] for one in block.modules()}
    for module in model.modules():
        where = SECOND if id(module) in later else FIRST
        for one in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            one._place = where
        if module.state_dict():
            _bring(module, where)


def _bring(module: torch.nn.Module, device: torch.device) -> None:
    forward = module.forward

    def moved(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(
            lambda one: one.to(device) if isinstance(one, Tensor) else one, (args, kwargs)
        )
        return forward(*args, **kwargs)

    module.forward = moved


# Asked of two tensors that need not meet.
_SAYS = (torch._has_compatible_shallow_copy_type,)


class _Places(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        # A slot wrapper is made anew at each look: equal, and not the same.
        if func == Tensor.device.__get__:
            return place(args[0])
        if func == Tensor.cpu:
            return self._moved(args[0], CPU)
        if func is Tensor.to:
            return self._moved(*args, **named)
        if func is Tensor.numpy and place(args[0]) != CPU:
            raise TypeError(f"can't convert {place(args[0])} device type tensor to numpy")
        if func in _SAYS or func == Tensor.data.__set__:
            return func(*args, **named)
        asked = named.pop("device", None)
        flat = [one for one in tree_flatten((args, named))[0] if isinstance(one, Tensor)]
        # Masks and places of the CPU may choose from a tensor of a device.
        met = {place(one) for one in flat if one.ndim}
        if func is Tensor.__getitem__:
            met = {place(args[0])} | {where for where in met if where != CPU}
        if len(met) > 1:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {sorted(map(str, met))} ({func})"
            )
        where = torch.device(asked) if asked is not None else next(iter(met), CPU)
        out = func(*args, **named)
        return tree_map(lambda one: self._tagged(one, where), out)

    @staticmethod
    def _tagged(one: Any, where: torch.device) -> Any:
        if isinstance(one, Tensor) and not isinstance(one, torch.nn.Parameter):
            one._place = where
        return one

    @staticmethod
    def _moved(tensor: Tensor, *args: Any, **named: Any) -> Tensor:
        where, rest = place(tensor), []
        for one in (*args, named.pop("device", None)):
            if isinstance(one, str | torch.device) and one is not None:
                where = torch.device(one)
            elif isinstance(one, Tensor):
                where = place(one)
                rest.append(one.dtype)
            elif isinstance(one, torch.dtype):
                rest.append(one)
        cast = tensor.to(*rest, **named) if rest or named else tensor
        return cast if cast is tensor and where == place(tensor) else put(cast, where)


@contextmanager
def two_devices() -> Iterator[None]:
    """Tensors that are made inside say where they lie."""
    with _Places():
        yield
