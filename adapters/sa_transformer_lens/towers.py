"""Bridges of models that TransformerLens has none for: CLIP's towers, one tower of two, bare decoders.

| given | becomes |
|---|---|
| `CLIPModel`, either; LLaVA with a CLIP tower, "vision" | a bridge of the tower |
| LLaVA, "text" | its decoder, which is bare, see below |
| Mllama, either | a `HookedMllama` |
| a bare decoder (`Qwen3Model`, as Qwen3-Embedding is) | its class with the embedding as head |

CLIP's towers are pre-norm encoders of the same blocks. The vision tower normalises its embeddings
before block 0 (`embed_ln`), so that residual 0 is `blocks.0.hook_resid_pre`, not `hook_embed`. The
text tower is causal. What TransformerLens does for a ViT holds here too: attention is that of
transformers, its pattern and scores can be read and not written. TransformerLens finds the classes
by the packaging entry points `transformer_lens.architectures`; `register` does the same where this
package is on the path but not installed. Neither replaces an architecture that TransformerLens
knows itself.

What a head made of the embedding predicts means nothing for a model that was trained without one;
the residual stream, all that is read here, does not depend on it. A bridge rewrites the modules it
is given, so that the model has no other use afterwards.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    MLPBridge,
    NormalizationBridge,
    PosEmbedBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.vit import ViTArchitectureAdapter

from sa_plugin._check import require, require_known
from sa_plugin._face import face
from sa_plugin.host import mllama
from sa_plugin.host.adapter import TOWERS


class CLIPVisionAdapter(ViTArchitectureAdapter):
    """`CLIPVisionModel`, `CLIPVisionModelWithProjection`."""

    def _build_component_mapping(self, prefix: str, with_classifier: bool) -> dict[str, Any]:
        return {
            "embed": GeneralizedComponent(name=f"{prefix}embeddings"),
            "embed_ln": _norm(self.cfg, f"{prefix}pre_layrnorm"),
            "blocks": _blocks(self.cfg, f"{prefix}encoder.layers"),
        }

    def prepare_model(self, hf_model: Any) -> None:
        """Find the tower inside the model."""
        prefix = "vision_model." if hasattr(hf_model, "vision_model") else ""
        self.component_mapping = self._build_component_mapping(prefix, with_classifier=False)


class CLIPTextAdapter(ViTArchitectureAdapter):
    """`CLIPTextModel`, `CLIPTextModelWithProjection`."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.is_visual_model = False

    def _build_component_mapping(self, prefix: str, with_classifier: bool) -> dict[str, Any]:
        return {
            "embed": EmbeddingBridge(name=f"{prefix}embeddings.token_embedding"),
            "pos_embed": PosEmbedBridge(name=f"{prefix}embeddings.position_embedding"),
            "blocks": _blocks(self.cfg, f"{prefix}encoder.layers"),
            "ln_final": _norm(self.cfg, f"{prefix}final_layer_norm"),
        }

    def prepare_model(self, hf_model: Any) -> None:
        """Find the tower inside the model."""
        prefix = "text_model." if hasattr(hf_model, "text_model") else ""
        self.component_mapping = self._build_component_mapping(prefix, with_classifier=False)


ADAPTERS = {
    "CLIPVisionModel": CLIPVisionAdapter,
    "CLIPVisionModelWithProjection": CLIPVisionAdapter,
    "CLIPTextModel": CLIPTextAdapter,
    "CLIPTextModelWithProjection": CLIPTextAdapter,
}


def register() -> None:
    """Make CLIP's towers known to TransformerLens, unless they are already."""
    ArchitectureAdapterFactory.discover_entry_points()
    for name, adapter in ADAPTERS.items():
        if name not in ArchitectureAdapterFactory._adapters:
            ArchitectureAdapterFactory.register_adapter(name, adapter)


def _norm(config: Any, name: str) -> NormalizationBridge:
    return NormalizationBridge(name=name, config=config, use_native_layernorm_autograd=True)


def _blocks(config: Any, name: str) -> BlockBridge:
    attention = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    mlp = {"in": "fc1", "out": "fc2"}
    return BlockBridge(
        name=name,
        hook_alias_overrides={"hook_mlp_out": "mlp.out.hook_out", "hook_mlp_in": "mlp.in.hook_in"},
        submodules={
            "ln1": _norm(config, "layer_norm1"),
            "ln2": _norm(config, "layer_norm2"),
            "attn": AttentionBridge(
                name="self_attn",
                config=config,
                submodules={part: LinearBridge(name=module) for part, module in attention.items()},
            ),
            "mlp": MLPBridge(
                name="mlp",
                config=config,
                submodules={part: LinearBridge(name=module) for part, module in mlp.items()},
            ),
        },
    )


@runtime_checkable
class Tokenizer(Protocol):
    """A tokenizer of transformers."""

    convert_ids_to_tokens: Any
    decode: Any
    padding_side: Any


@runtime_checkable
class PreTrainedModel(Protocol):
    """A model of transformers, with or without a head."""

    config: Any
    training: bool
    parameters: Any
    get_input_embeddings: Any
    set_attn_implementation: Any


@face
def tower_bridge(
    model: PreTrainedModel,
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
    require_known("tower", tower, TOWERS)
    inner = getattr(model, "model", model)
    half = next((getattr(inner, n) for n in TOWERS[tower] if hasattr(inner, n)), None)
    if half is None:
        raise ValueError(f"{type(model).__name__} has no {tower} tower: bridge it as it is.")
    kind = half.config.model_type
    if kind in (mllama.VISION, mllama.TEXT):
        from sa_transformer_lens.mllama import HookedMllama

        return HookedMllama(model, tower, image=image, processor=processor, tokenizer=tokenizer, name=name)
    if image is not None:
        raise ValueError(f"{type(half).__name__} attends to no image: leave image out.")
    if tower == "text" and kind != "clip_text_model":
        return bare_bridge(half, tokenizer, name=name)
    return _encoder(half, tokenizer, processor, name)


def _encoder(half: Any, tokenizer: Any, processor: Any, name: str | None) -> Any:
    kind = type(half).__name__
    if kind not in ADAPTERS:
        raise ValueError(
            f"a {kind} has no adapter for TransformerLens here ({', '.join(ADAPTERS)}): attach the "
            "model on nnsight, or register one (entry-point group 'transformer_lens.architectures')"
        )
    register()
    half.set_attn_implementation("eager")
    return module_bridge(half, tokenizer, processor, name or kind)


@face
def module_bridge(model: PreTrainedModel, tokenizer: Any, processor: Any, name: str) -> Any:
    """A bridge of an encoder; `boot_transformers` would look for its processor's name on the hub.

    Args:
        model: Of transformers, in eval mode.
        tokenizer: Of texts, else None.
        processor: Of images, else None.
        name: Of the model.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    module: Any = model
    bridge = build_bridge_from_module(
        module, type(model).__name__, hf_config=model.config, model_name=name, tokenizer=tokenizer
    )
    bridge.processor = processor
    return bridge


@face
def bare_bridge(model: PreTrainedModel, tokenizer: Tokenizer, *, name: str | None = None) -> Any:
    """A decoder without a head as a bridge, for `attach`.

    Args:
        model: Such as a Qwen3Model, in eval mode.
        tokenizer: From `from_pretrained`.
        name: Of the model; by default its class.

    Raises:
        ValueError: The model has its head, or transformers has no causal language model of this kind.
    """
    from transformer_lens.model_bridge import TransformerBridge

    transformers = require("transformers", "transformer-lens", "putting a head on a bare model")
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(model) in known.values():
        raise ValueError(f"a {type(model).__name__} has its head: boot_transformers(name, hf_model=model).")
    if type(model.config) not in known:
        raise ValueError(
            f"transformers has no causal language model of a {type(model).__name__}: bridge the "
            "model as it is, or attach it on nnsight."
        )
    # Only the frame is needed: the body and the head are put in below.
    with torch.device("meta"):
        whole = known[type(model.config)](model.config)
    setattr(whole, whole.base_model_prefix, model)
    whole.set_attn_implementation("eager")
    whole.get_output_embeddings().weight = model.get_input_embeddings().weight
    # A new module is in training mode, whatever its parts are.
    whole.train(model.training)
    weight = next(model.parameters())
    return TransformerBridge.boot_transformers(
        name or type(model).__name__,
        hf_model=whole,
        tokenizer=tokenizer,
        device=str(weight.device),
        dtype=weight.dtype,
    )
