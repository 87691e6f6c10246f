"""Tiny random models with two towers: Mllama, LLaVA; and an embedding model without a head."""

from __future__ import annotations

from typing import Any

import tiny

SIDE = 28
SHARED = {"hidden_size": tiny.D_MODEL, "intermediate_size": 48}
N_LOCAL, N_GLOBAL, TILES = 2, 2, 2
CROSS = (1, 3)
N_TEXT = 5


def mllama(seed: int = 0, attention: str = "eager") -> Any:
    """A whole MllamaForConditionalGeneration, its gates open; 16 patches, 7 padding tokens."""
    from transformers.models import mllama as hf

    heads = tiny.N_HEADS
    vision = hf.MllamaVisionConfig(
        **SHARED,
        num_hidden_layers=N_LOCAL,
        num_global_layers=N_GLOBAL,
        attention_heads=heads,
        image_size=SIDE,
        patch_size=tiny.PATCH,
        max_num_tiles=TILES,
        vision_output_dim=64,
        intermediate_layers_indices=[0],
        supported_aspect_ratios=[[1, 1], [1, 2]],
    )
    text = hf.MllamaTextConfig(
        **SHARED,
        num_hidden_layers=N_TEXT,
        num_attention_heads=heads,
        num_key_value_heads=2,
        vocab_size=len(tiny.tokenizer("llama")),
        cross_attention_layers=list(CROSS),
        pad_token_id=1,
        max_position_embeddings=tiny.CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    config = hf.MllamaConfig(vision_config=vision, text_config=text)
    model = hf.MllamaForConditionalGeneration(config)
    model.set_attn_implementation(attention)
    return tiny.fill(model, seed).eval()


def llava(seed: int = 0) -> Any:
    """A LlavaForConditionalGeneration of a CLIP tower and a Llama."""
    import transformers as hf

    attention = {"num_attention_heads": tiny.N_HEADS, "num_hidden_layers": tiny.N_LAYERS}
    vision = hf.CLIPVisionConfig(**SHARED, **attention, image_size=SIDE, patch_size=tiny.PATCH)
    text = hf.LlamaConfig(
        **SHARED,
        **attention,
        vocab_size=len(tiny.tokenizer("llama")),
        max_position_embeddings=tiny.CONTEXT,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=1,
    )
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_id=5)
    model = hf.LlavaForConditionalGeneration(config)
    model.set_attn_implementation("eager")
    return tiny.fill(model, seed).eval()


def qwen3_embedding(seed: int = 0) -> Any:
    """A bare Qwen3Model, as Qwen3-Embedding is."""
    return tiny.hf_model("qwen3", seed=seed).model


def processor() -> Any:
    """Images fitted into the upper left, as Llama's processor does for one tile."""
    from sa_plugin.host import Processor

    return Processor((SIDE, SIDE), tiny.PATCH, mode="letter_box")
