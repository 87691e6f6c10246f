"""TransformerLens as a host: a `TransformerBridge` (3.6 or later) becomes a `sa_plugin` host.

So do the HookedTransformer and HookedEncoder of 3.8 and 3.9, and SAELens's HookedSAETransformer.
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
    from sa_transformer_lens.hooked import load_hooked
    from sa_transformer_lens.hooks import ablation_hooks, logits, steering_hooks
    from sa_transformer_lens.host import TransformerLensHost, load_model
    from sa_transformer_lens.prefix import prefix_view
else:
    __getattr__ = lazily(
        __name__,
        {
            "hooked": ("load_hooked",),
            "hooks": ("ablation_hooks", "logits", "steering_hooks"),
            "host": ("load_model",),
            "prefix": ("prefix_view",),
        },
    )

__all__ = ["ablation_hooks", "accept", "load_hooked", "load_model", "logits", "prefix_view", "steering_hooks"]

OLDEST = "3.6"
BRIDGES = "its TransformerBridge runs in training mode, or there is none"
HOOKED, OTHER = ("HookedTransformer", "HookedEncoder"), ("HookedEncoderDecoder", "HookedAudioEncoder")


def accept(model: Any, **options: Any) -> TransformerLensHost | None:
    """Make a host of a TransformerBridge, a HookedTransformer or a HookedEncoder, or decline.

    Args:
        model: Anything.
        **options: See `sa_transformer_lens.host.attach_bridge`.

    Returns:
        The checked host, or None if the model is none of these.

    Raises:
        TypeError: The model is of a TransformerLens class that cannot be a host; the text says
            why and what to use.
        ValueError: A check of the model fails, see `attach_bridge`.

    Example:
        >>> accept("not a model") is None
        True
    """
    ours = {
        cls.__name__ for cls in type(model).__mro__ if cls.__module__.partition(".")[0] == "transformer_lens"
    }
    other = sorted(ours.intersection(OTHER))
    if other:
        raise TypeError(
            f"a {other[0]} is no single stack of blocks over texts: attach a HookedTransformer, a "
            "HookedEncoder, or TransformerBridge.boot_transformers(name)."
        )
    hooked = ours.intersection(HOOKED)
    if hooked:
        require_version("transformer-lens", "3.8", f"its {min(hooked)} was not run here")
    if "RemoteBridge" in ours:
        raise TypeError(
            "a RemoteBridge has no local weights or gradients, which the checks, the head ledger "
            "and the attributions need: use TransformerBridge.boot_transformers(name)."
        )
    if not hooked and "TransformerBridge" not in ours and type(model).__qualname__ != "HookedMllama":
        return None
    require_version("transformer-lens", OLDEST, BRIDGES)
    from sa_transformer_lens.host import attach_bridge

    return attach_bridge(model, **options)


face_room(globals())
