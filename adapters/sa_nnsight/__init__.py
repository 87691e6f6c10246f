"""nnsight as a host: a `TransformersModel` or `NNsight` wrapper becomes a `sa_plugin` host.

Text models, vision towers and the towers of CLIP alike; `attach(model, remote=True)` leaves the
model on an NDIF server.

This package is importable without nnsight and imports it only for one of nnsight's own objects
(`import nnsight` gives every Python object a method `save`): `accept` looks at the class of what it
is given, so attaching a bridge never imports nnsight. `sa_nnsight.trace_ops` is plain torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sa_plugin._check import require_version
from sa_plugin._face import face_room
from sa_plugin._lazy import lazily

if TYPE_CHECKING:
    from sa_nnsight.host import load_model
    from sa_nnsight.jobs import Patience
    from sa_plugin.host.protocol import Host
else:
    __getattr__ = lazily(__name__, {"host": ("load_model",), "jobs": ("Patience",)})

__all__ = ["Patience", "accept", "load_model"]


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
    require_version("nnsight", "0.8.1", "its tracing differs")
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


face_room(globals())
