"""CLIP's two towers as architectures of TransformerLens, which has none of its own.

Both are pre-norm encoders of the same blocks. The vision tower normalises its embeddings before
block 0 (`embed_ln`), so that residual 0 is `blocks.0.hook_resid_pre`, not `hook_embed`. The text
tower is causal. What TransformerLens does for a ViT holds here too: attention is that of
transformers, its pattern and scores can be read and not written.

TransformerLens finds the classes by the packaging entry points `transformer_lens.architectures`;
`register` does the same where this package is on the path but not installed. Neither replaces an
architecture that TransformerLens knows itself.
"""

from __future__ import annotations

from typing import Any

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
                name="self_attn", config=config,
                submodules={part: LinearBridge(name=module) for part, module in attention.items()},
            ),
            "mlp": MLPBridge(
                name="mlp", config=config,
                submodules={part: LinearBridge(name=module) for part, module in mlp.items()},
            ),
        },
    )  # fmt: skip
