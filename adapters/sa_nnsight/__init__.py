"""nnsight as a host: a `TransformersModel` or `NNsight` wrapper becomes a `sa_plugin` host.

Text models, vision towers and the towers of CLIP alike; `attach(model, remote=True)` leaves the
model on an NDIF server.

This package is importable without nnsight and imports it only for one of nnsight's own objects
(`import nnsight` gives every Python object a method `save`): `accept` looks at the class of what it
is given, so attaching a bridge never imports nnsight. `sa_nnsight.trace_ops` is plain torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sa_nnsight.host import load_model
    from sa_nnsight.jobs import Patience
    from sa_plugin.host.protocol import Host

__all__ = ["Patience", "accept", "load_model"]

OLDEST = (0, 8, 1)


def accept(model: Any, *, remote: bool = False, **options: Any) -> Host | None:
    """Make a host of an nnsight model, or decline.

    Args:
        model: Anything.
        remote: Leave the model on its NDIF server; `options` are then those of
            `sa_nnsight.remote.attach_remote`.
        **options: See `sa_nnsight.host.attach_local`.

    Returns:
        The checked host, or None if the model is none of nnsight's.

    Raises:
        TypeError: The model is of an nnsight class that cannot be a host; the text says why and
            what to use.
        ValueError: A check of the model fails, see `attach_local`.

    Example:
        >>> accept("not a model") is None
        True
    """
    ours = {cls.__name__ for cls in type(model).__mro__ if cls.__module__.partition(".")[0] == "nnsight"}
    if "Envoy" not in ours:
        return None
    _check_version()
    if remote:
        if "Remotable" not in ours:
            raise TypeError(
                f"{type(model).__name__} has no remote side: nnsight would take remote=True and "
                "run the model on this machine without a word. Use nnsight.TransformersModel"
                "(repo_id), or attach without remote=True."
            )
        from sa_nnsight.remote import attach_remote

        host: Host = attach_remote(model, **options)
        return host
    if "DiffusionModel" in ours or "VLLM" in ours:
        raise TypeError(
            f"a {type(model).__name__} has no single stack of blocks in torch to read: attach a "
            "TransformersModel, or NNsight(module) round the transformer inside."
        )
    from sa_nnsight.host import attach_local

    return attach_local(model, **options)


def _check_version() -> None:
    try:
        installed = version("nnsight")
    except PackageNotFoundError:
        return
    if tuple(int(part) for part in installed.split(".")[:3] if part.isdigit()) < OLDEST:
        raise TypeError(f"nnsight {installed} is too old, its tracing differs: install nnsight>=0.8.1.")


LAZY = {"Patience": "jobs", "load_model": "host"}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{LAZY[name]}"), name)
