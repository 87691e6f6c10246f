"""TransformerLens as a host: a `TransformerBridge` (3.6 or later) becomes a `sa_plugin` host.

Text models and vision towers (ViT, DeiT, folded DINOv2, CLIP) alike.

This package is importable without TransformerLens and imports it only for a bridge: `accept`
looks at the class of the object it is given, so attaching a bridge imports no other library, and
other objects are declined without importing TransformerLens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sa_plugin._check import require_version
from sa_plugin._face import face_room
from sa_plugin._lazy import lazily

if TYPE_CHECKING:
    from sa_transformer_lens.hooks import ablation_hooks, logits
    from sa_transformer_lens.host import TransformerLensHost, load_model
    from sa_transformer_lens.prefix import prefix_view
else:
    __getattr__ = lazily(
        __name__, {"hooks": ("ablation_hooks", "logits"), "host": ("load_model",), "prefix": ("prefix_view",)}
    )

__all__ = ["ablation_hooks", "accept", "load_model", "logits", "prefix_view"]

OLDEST = "3.6"
BRIDGES = "its TransformerBridge runs in training mode, or there is none"
REMOVED = ("HookedTransformer", "HookedEncoder", "HookedEncoderDecoder", "HookedAudioEncoder")


def accept(model: Any, **options: Any) -> TransformerLensHost | None:
    """Make a host of a TransformerBridge, or decline.

    Args:
        model: Anything.
        **options: See `sa_transformer_lens.host.attach_bridge`.

    Returns:
        The checked host, or None if the model is no TransformerBridge.

    Raises:
        TypeError: The model is of a TransformerLens class that cannot be a host; the text says
            why and what to use.
        ValueError: A check of the model fails, see `attach_bridge`.

    Example:
        >>> accept("not a model") is None
        True
    """
    names = {cls.__name__ for cls in type(model).__mro__}
    removed = sorted(names.intersection(REMOVED))
    if removed:
        raise TypeError(
            f"{removed[0]} was removed in TransformerLens 4.0 and rewrites weights while loading: "
            "use TransformerBridge.boot_transformers(name) (transformer-lens>=3.6)."
        )
    ours = {
        cls.__name__ for cls in type(model).__mro__ if cls.__module__.partition(".")[0] == "transformer_lens"
    }
    if "RemoteBridge" in ours:
        raise TypeError(
            "a RemoteBridge has no local weights or gradients, which the checks, the head ledger "
            "and the attributions need: use TransformerBridge.boot_transformers(name)."
        )
    if "TransformerBridge" not in ours and type(model).__qualname__ != "HookedMllama":
        return None
    require_version("transformer-lens", OLDEST, BRIDGES)
    from sa_transformer_lens.host import attach_bridge

    return attach_bridge(model, **options)


face_room(globals())
