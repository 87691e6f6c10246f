"""Where things are in a model: one dictionary an architecture, and how a user adds another.

Paths of `blocks`, `embed` and `after` are inside the base model (`GPT2Model`, whatever head stands
on top), all others inside a block. What a dictionary says is not trusted: when a model is attached,
how its blocks add up, that every module runs once, and in which order, are measured.

Where blocks differ, a path is a tuple of alternatives, of which a block has one; `blocks` may be
several lists that run one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROLES = {
    "blocks": "the list of blocks, or several that run one after another",
    "block_class": "class of the blocks that are read, where others stand between them",
    "attention": "module whose output is (attention output, probabilities)",
    "o_proj": "its output projection, a Linear or Conv1D",
    "mlp": "module whose output is what the MLP adds to the residual stream",
    "attn_out": "module whose output is what attention adds, if not o_proj (a norm behind it)",
    "attn_scale": "LayerScale behind o_proj, folded into its weights",
    "attn_gate": "parameter whose tanh scales what attention adds, in blocks that have it",
    "mlp_gate": "the same of the MLP",
    "cross": "attention to other states than the tokens', in blocks that have it",
    "entry": "norm of the stream between two lists of blocks, inside the base model",
    "norm1": "norm before attention; in a post-LN block the norm behind it",
    "norm2": "norm before the MLP; in a post-LN block the norm behind it",
    "q": "query projection",
    "k": "key projection",
    "v": "value projection",
    "qkv": "fused query, key and value projection",
    "qkv_order": "of the fused outputs: 'parts' (all q, all k, all v) or 'heads' (q, k, v a head)",
    "q_norm": "norm of each query",
    "k_norm": "norm of each key",
    "embed": "token embedding, inside the base model",
    "after": "modules behind the last block, which no activation depends on",
    "final_norm": "norm behind the last block, inside the base model",
    "n_heads": "number of query heads, where the model has no config",
}
NOT_IN_BLOCKS = {"blocks", "block_class", "embed", "after", "n_heads", "qkv_order", "entry", "final_norm"}
SOME_BLOCKS = {"attn_gate", "mlp_gate", "cross"}
REQUIRED = ("blocks", "attention", "o_proj", "mlp")
Paths = Mapping[str, Any]

_LLAMA = {
    "blocks": "layers",
    "attention": "self_attn",
    "o_proj": "self_attn.o_proj",
    "mlp": "mlp",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "embed": "embed_tokens",
    "after": ("norm", "lm_head", "score"),
    "final_norm": "norm",
}
_QWEN3 = {**_LLAMA, "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_VIT = {
    "blocks": "layers",
    "attention": "attention",
    "o_proj": "attention.o_proj",
    "mlp": "mlp",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "after": ("layernorm", "pooler", "classifier", "cls_classifier", "distillation_classifier"),
    "final_norm": "layernorm",
}
_CLIP = {
    "blocks": "encoder.layers",
    "attention": "self_attn",
    "o_proj": "self_attn.out_proj",
    "mlp": "mlp",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
}
_BERT = {
    "blocks": "encoder.layer",
    "attention": "attention.self",
    "o_proj": "attention.output.dense",
    "mlp": "output.dense",
    "norm1": "attention.output.LayerNorm",
    "norm2": "output.LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "embed": "embeddings.word_embeddings",
    "after": ("pooler", "cls", "classifier"),
}
# Its language head has another name; positions are counted from behind the padding's.
_ROBERTA = {**_BERT, "after": ("pooler", "lm_head", "classifier")}
_PARTS = (("attention", ""), ("o_proj", ".o_proj"), ("q", ".q_proj"), ("k", ".k_proj"), ("v", ".v_proj"))

PATHS: dict[str, Paths] = {
    "gpt2": {
        "blocks": "h",
        "attention": "attn",
        "o_proj": "attn.c_proj",
        "mlp": "mlp",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "qkv": "attn.c_attn",
        "qkv_order": "parts",
        "embed": "wte",
        "after": ("ln_f", "lm_head", "score"),
        "final_norm": "ln_f",
    },
    "gpt_neox": {
        "blocks": "layers",
        "attention": "attention",
        "o_proj": "attention.dense",
        "mlp": "mlp",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "qkv": "attention.query_key_value",
        "qkv_order": "heads",
        "embed": "embed_in",
        "after": ("final_layer_norm", "lm_head", "embed_out", "score"),
        "final_norm": "final_layer_norm",
    },
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _QWEN3,
    "gemma2": {
        **_LLAMA,
        "attn_out": "post_attention_layernorm",
        "mlp": "post_feedforward_layernorm",
        "norm2": "pre_feedforward_layernorm",
    },
    "bert": _BERT,
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), _ROBERTA),
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": {
        **_VIT,
        "blocks": "encoder.layer",
        "norm1": "norm1",
        "norm2": "norm2",
        "attn_scale": "layer_scale1",
        "mlp": "layer_scale2",
    },
    "clip_vision_model": _CLIP,
    "clip_text_model": {
        **_CLIP,
        "embed": "embeddings.token_embedding",
        "after": ("final_layer_norm", "text_projection"),
        "final_norm": "final_layer_norm",
    },
    "siglip_vision_model": {**_CLIP, "after": ("post_layernorm", "head")},
    # Its blocks of cross-attention do not run on a text alone: see `sa_nnsight.places.locate`.
    "mllama_text_model": {
        **_LLAMA,
        **{role: (f"self_attn{path}", f"cross_attn{path}") for role, path in _PARTS},
        "attn_gate": "cross_attn_attn_gate",
        "mlp_gate": "cross_attn_mlp_gate",
        "cross": "cross_attn",
        "block_class": "MllamaSelfAttentionDecoderLayer",
    },
    "mllama_vision_model": {
        **_CLIP,
        "blocks": ("transformer.layers", "global_transformer.layers"),
        "o_proj": "self_attn.o_proj",
        "attn_gate": "gate_attn",
        "mlp_gate": "gate_ffn",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "entry": "layernorm_post",
    },
}
