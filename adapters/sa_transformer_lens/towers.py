"""Bridges of models that TransformerLens has none for: one tower of two, or a model without a head.

| given | becomes |
|---|---|
| `CLIPModel`, either; LLaVA with a CLIP tower, "vision" | a bridge of the tower |
| LLaVA, "text" | its decoder, which is bare, see below |
| Mllama, either | a `HookedMllama` |
| a bare decoder (`Qwen3Model`, as Qwen3-Embedding is) | its class with the embedding as head |

What a head made of the embedding predicts means nothing for a model that was trained without one;
the residual stream, all that is read here, does not depend on it. A bridge rewrites the modules it
is given, so that the model has no other use afterwards.
"""

from __future__ import annotations

from typing import Any

import torch

from sa_plugin import _mllama
from sa_plugin._names import require_known
from sa_plugin._optional import require

TOWERS = {"vision": ("vision_model", "vision_tower"), "text": ("text_model", "language_model")}


def tower_bridge(
    model: Any,
    tower: str,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    image: Any = None,
    name: str | None = None,
) -> Any:
    """One tower of a model with two, for `attach`.

    Args:
        model: A CLIPModel, LlavaForConditionalGeneration or MllamaForConditionalGeneration, in
            eval mode.
        tower: "vision" or "text".
        tokenizer: Of texts.
        processor: Of images.
        image: Of Mllama's text: see `HookedMllama`.
        name: Of the model; by default the tower's class.

    Raises:
        ValueError: The model has no such tower, or its architecture is unknown here.

    Example:
        >>> host = attach(tower_bridge(llava, "vision", processor=processor))  # doctest: +SKIP
    """
    require_known("tower", tower, tuple(TOWERS))
    inner = getattr(model, "model", model)
    half = next((getattr(inner, n) for n in TOWERS[tower] if hasattr(inner, n)), None)
    if half is None:
        raise ValueError(f"{type(model).__name__} has no {tower} tower: bridge it as it is.")
    kind = half.config.model_type
    if kind in (_mllama.VISION, _mllama.TEXT):
        from sa_transformer_lens.mllama import HookedMllama

        return HookedMllama(
            model, tower, image=image, processor=processor, tokenizer=tokenizer, name=name
        )
    if image is not None:
        raise ValueError(f"{type(half).__name__} attends to no image: leave image out.")
    if tower == "text" and kind != "clip_text_model":
        return bare_bridge(half, tokenizer, name=name)
    return _encoder(half, tokenizer, processor, name)


def _encoder(half: Any, tokenizer: Any, processor: Any, name: str | None) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    from sa_transformer_lens.clip import ADAPTERS, register

    kind = type(half).__name__
    if kind not in ADAPTERS:
        raise ValueError(
            f"a {kind} has no adapter for TransformerLens here ({', '.join(ADAPTERS)}): attach the "
            "model on nnsight, or register one (entry-point group 'transformer_lens.architectures')"
        )
    register()
    half.set_attn_implementation("eager")
    bridge = build_bridge_from_module(
        half, kind, hf_config=half.config, model_name=name or kind, tokenizer=tokenizer
    )
    bridge.processor = processor
    return bridge


def bare_bridge(model: Any, tokenizer: Any, *, name: str | None = None) -> Any:
    """A decoder without a head as a bridge, for `attach`.

    Args:
        model: Such as a Qwen3Model, in eval mode.
        tokenizer: From `from_pretrained`.
        name: Of the model; by default its class.

    Raises:
        ValueError: transformers has no causal language model of this kind.
    """
    from transformer_lens.model_bridge import TransformerBridge

    transformers = require("transformers", "transformer-lens", "putting a head on a bare model")
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(model.config) not in known:
        raise ValueError(
            f"transformers has no causal language model of a {type(model).__name__}: bridge the "
            "model as it is, or attach it on nnsight."
        )
    with torch.device("meta"):
        whole = known[type(model.config)](model.config)
    setattr(whole, whole.base_model_prefix, model)
    whole.set_attn_implementation("eager")
    whole.get_output_embeddings().weight = model.get_input_embeddings().weight
    whole.train(model.training)
    weight = next(model.parameters())
    return TransformerBridge.boot_transformers(
        name or type(model).__name__, hf_model=whole, tokenizer=tokenizer,
        device=str(weight.device), dtype=weight.dtype,
    )  # fmt: skip
