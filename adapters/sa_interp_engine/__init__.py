"""interp-engine as a host: directions are read beside the model, and their scores come back.

`score`, `calibrate`, `find`, `detect`, `localise`, `evaluate` and `sweep` work; what needs activations,
gradients or edits is refused by name. Decoders only, one text a call.

This package is importable without interp-engine and imports it only for one of its own objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sa_plugin._check import require_version
from sa_plugin._face import face_room
from sa_plugin._lazy import lazily

if TYPE_CHECKING:
    from sa_interp_engine.host import ResidualsCrossWarning, load_model
    from sa_plugin.host.protocol import Host
else:
    __getattr__ = lazily(__name__, {"host": ("ResidualsCrossWarning", "load_model")})

__all__ = ["ResidualsCrossWarning", "accept", "load_model"]


def accept(model: Any, **options: Any) -> Host | None:
    """Make a host of a model of interp-engine, or decline.

    Args:
        model: Anything.
        **options: See `sa_interp_engine.host.attach_engine`.

    Returns:
        The checked host, or None if the model is none of interp-engine's.

    Raises:
        TypeError: The model is of a class that was not tried; the text says which were.
        ValueError: A check of the model fails, see `attach_engine`.

    Example:
        >>> accept("not a model") is None
        True
    """
    ours = {
        cls.__name__ for cls in type(model).__mro__ if cls.__module__.partition(".")[0] == "interp_engine"
    }
    if not ours:
        return None
    require_version("interp-engine", "1.14", "it projects no directions")
    # A synchronous view holds the model itself.
    inner = model.model if "SyncModel" in ours else model
    if not hasattr(inner, "hf_model"):
        raise TypeError(
            f"a {type(inner).__name__} keeps its weights in another process: that they are those a bank was "
            "fitted on cannot be measured, and no test of ours has run it. Attach an "
            "interp_engine.EagerModel, or give its engine bank.to_direction_set(layer) yourself."
        )
    from sa_interp_engine.host import attach_engine

    return attach_engine(inner, **options)


face_room(globals())
