"""Tiny random models of the families that attach without being told where things are.

One row a family: a class of transformers, what its configuration needs beside the common sizes, and
which tokens or pixels it reads. Everything is made from a seed, nothing is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import tiny

SIDE, PATCH, WIDTH, HEADS, DEPTH = 28, 7, 32, 4, 2
COMMON = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
}
TEXT = {**COMMON, "max_position_embeddings": tiny.CONTEXT, "bos_token_id": 0, "eos_token_id": 1}
GROUPED = {**TEXT, "num_key_value_heads": 2, "pad_token_id": None}
WIDE = {**GROUPED, "head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
ENCODER = {**TEXT, "pad_token_id": 1, "eos_token_id": 2, "max_position_embeddings": tiny.CONTEXT + 2}
IMAGE = {**COMMON, "image_size": SIDE, "patch_size": PATCH}


# Where things are, as the source of transformers has it: list of blocks, and inside a block attention,
# its output projection, and what gives the two terms that are added (by default the projection, "mlp").
LLAMA = ("model.layers", "self_attn", "self_attn.o_proj")
POST_NORM = (*LLAMA, "post_attention_layernorm", "post_feedforward_layernorm")
FALCON = ("transformer.h", "self_attention", "self_attention.dense")
BERT = ("encoder.layer", "attention.self", "attention.output.dense", "attention.output.dense", "output.dense")
ROBERTA = ("roberta." + BERT[0], *BERT[1:])
CLIP = ("encoder.layers", "self_attn", "self_attn.out_proj")
VIT = ("layers", "attention", "attention.o_proj")
SCALED = ("layer_scale1", "layer_scale2")


@dataclass(frozen=True)
class Family:
    """One row.

    Attributes:
        model: Class of transformers.
        config: Its configuration's class.
        where: Where things are.
        given: What the configuration is made with.
        tokenizer: Of `tiny`, or None where images are read.
    """

    model: str
    config: str
    where: tuple[str, ...]
    given: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = "llama"


def decoder(
    name: str, given: dict[str, Any], where: tuple[str, ...] = LLAMA, tokenizer: str = "llama"
) -> Family:
    return Family(f"{name}ForCausalLM", f"{name}Config", where, given, tokenizer)


def vision(name: str, where: tuple[str, ...], **given: Any) -> Family:
    return Family(f"{name}Model", f"{name}Config", where, IMAGE | given, None)


GLM = {**WIDE, "partial_rotary_factor": 0.5}
NEO = {"hidden_size": WIDTH, "intermediate_size": 48, "num_layers": DEPTH, "num_heads": HEADS}
NEO |= {
    "attention_types": [[["global", "local"], 1]],
    "window_size": 16,
    "max_position_embeddings": tiny.CONTEXT,
}
GPTJ = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_positions": tiny.CONTEXT, "rotary_dim": 4}
ENDS = {"bos_token_id": 0, "eos_token_id": 1}
FAMILIES = {
    "Mixtral": decoder("Mixtral", {**GROUPED, "num_local_experts": 3}),
    "Qwen2-MoE": decoder(
        "Qwen2Moe", {**GROUPED, **EXPERTS, "num_experts": 3, "shared_expert_intermediate_size": 16}
    ),
    "Qwen3-MoE": decoder("Qwen3Moe", {**WIDE, **EXPERTS, "num_experts": 3}),
    "GPT-OSS": decoder("GptOss", {**WIDE, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "Gemma-1": decoder("Gemma", WIDE),
    "Gemma-3": Family(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        POST_NORM,
        {**WIDE, "query_pre_attn_scalar": 8, "sliding_window": 16},
    ),
    "Phi": decoder("Phi", TEXT, ("model.layers", "self_attn", "self_attn.dense")),
    "Phi-3": decoder("Phi3", GROUPED),
    "OLMo": decoder("Olmo", GROUPED),
    "OLMo-2": decoder("Olmo2", GROUPED, POST_NORM),
    "OLMoE": decoder("Olmoe", {**GROUPED, "num_experts": 3, "num_experts_per_tok": 2}),
    "Cohere": decoder("Cohere", GROUPED),
    "StableLM": decoder("StableLm", GROUPED),
    "Falcon 7B": decoder("Falcon", {**TEXT, "multi_query": True, "alibi": False}, FALCON),
    "Falcon-RW": decoder(
        "Falcon", {**TEXT, "multi_query": False, "parallel_attn": False, "alibi": True, "bias": True}, FALCON
    ),
    "Falcon 40B": decoder("Falcon", {**TEXT, "new_decoder_architecture": True, "num_kv_heads": 2}, FALCON),
    "GPT-J": decoder("GPTJ", GPTJ | ENDS, ("transformer.h", "attn", "attn.out_proj"), "gpt2"),
    "GPT-Neo": decoder(
        "GPTNeo", NEO | ENDS, ("transformer.h", "attn.attention", "attn.attention.out_proj"), "gpt2"
    ),
    "GLM": decoder("Glm", GLM),
    "GLM-4": decoder("Glm4", GLM, (*LLAMA, "post_self_attn_layernorm", "post_mlp_layernorm")),
    "Bloom": decoder(
        "Bloom",
        {"hidden_size": WIDTH, "n_layer": DEPTH, "n_head": HEADS, **ENDS},
        (*FALCON, "self_attention.dense", "mlp.dense_4h_to_h"),
        "gpt2",
    ),
    "OPT": decoder(
        "OPT",
        {**COMMON, **ENDS, "ffn_dim": 48, "word_embed_proj_dim": WIDTH, "pad_token_id": 1}
        | {"max_position_embeddings": tiny.CONTEXT},
        ("model.decoder.layers", "self_attn", "self_attn.out_proj", "self_attn.out_proj", "fc2"),
    ),
    "RoBERTa": Family("RobertaForMaskedLM", "RobertaConfig", ROBERTA, ENCODER, "roberta"),
    "XLM-R": Family("XLMRobertaForMaskedLM", "XLMRobertaConfig", ROBERTA, ENCODER, "roberta"),
    "DistilBERT": Family(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        ("distilbert.transformer.layer", "attention", "attention.out_lin", "attention.out_lin", "ffn"),
        {"dim": WIDTH, "hidden_dim": 48, "n_layers": DEPTH, "n_heads": HEADS, "pad_token_id": 0}
        | {"max_position_embeddings": tiny.CONTEXT},
        "bert",
    ),
    "Electra": Family(
        "ElectraModel",
        "ElectraConfig",
        BERT,
        {**COMMON, "embedding_size": 16, "max_position_embeddings": tiny.CONTEXT},
        "bert",
    ),
    "MPNet": Family(
        "MPNetModel",
        "MPNetConfig",
        ("encoder.layer", "attention.attn", "attention.attn.o", "attention.attn.o", "output.dense"),
        ENCODER,
        "roberta",
    ),
    "ModernBERT": Family(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        ("model.layers", "attn", "attn.Wo"),
        {**TEXT, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 16}
        | {"global_attn_every_n_layers": 2},
        "bert",
    ),
    "T5, encoder": Family(
        "T5EncoderModel",
        "T5Config",
        (
            *("encoder.block", "layer.0.SelfAttention", "layer.0.SelfAttention.o"),
            *("layer.0.SelfAttention.o", "layer.1.DenseReluDense"),
        ),
        {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": DEPTH, "num_heads": HEADS, "pad_token_id": 0},
        "bert",
    ),
    "SigLIP, text": Family(
        "SiglipTextModel",
        "SiglipTextConfig",
        CLIP,
        {**COMMON, **ENDS, "max_position_embeddings": tiny.CONTEXT, "pad_token_id": 1},
    ),
    "SigLIP": vision("SiglipVision", CLIP),
    "SigLIP-2": vision("Siglip2Vision", CLIP, num_patches=(SIDE // PATCH) ** 2),
    "DINOv2 with registers": vision(
        "Dinov2WithRegisters",
        ("encoder.layer", "attention", "attention.o_proj", *SCALED),
        mlp_ratio=2,
        num_register_tokens=3,
    ),
    "DINOv3": vision("DINOv3ViT", ("model.layer", *VIT[1:], *SCALED), num_register_tokens=3),
    "ViT-MSN": vision("ViTMSN", VIT),
    "I-JEPA": vision("IJepa", VIT),
}
# What attaches to nothing, and is told why.
OTHERS = {
    "Mamba": decoder(
        "Mamba", {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "state_size": 4}, (), "gpt2"
    ),
    "ALBERT": Family("AlbertModel", "AlbertConfig", (), {**TEXT, "embedding_size": 16}, "bert"),
    "BEiT": vision("Beit", ()),
    "Granite": decoder("Granite", {**GROUPED, "residual_multiplier": 0.22}, ()),
}


def model(name: str, *, attention: str = "eager", seed: int = 0) -> Any:
    """The model in eval mode, weights from a seed."""
    import transformers as hf

    family = (FAMILIES | OTHERS)[name]
    given = dict(family.given)
    if family.tokenizer is not None:
        given["vocab_size"] = len(tiny.tokenizer(family.tokenizer))
    config = getattr(hf, family.config)(**given)
    config._attn_implementation = attention
    return tiny.fill(getattr(hf, family.model)(config), seed).eval()


def nnsight_host(name: str, **options: Any) -> Any:
    """A checked nnsight host, told nothing of where things are."""
    from nnsight import NNsight

    from sa_nnsight import accept
    from sa_plugin.host import Processor

    family = (FAMILIES | OTHERS)[name]
    read = {"processor": Processor((SIDE, SIDE), PATCH)}
    if family.tokenizer is not None:
        read = {"tokenizer": tiny.tokenizer(family.tokenizer)}
    with tiny.quiet_names():
        wrapped = NNsight(model(name))
    return accept(wrapped, **read | options)


def samples(name: str) -> list[Any]:
    """Two texts of unlike length, or two images."""
    if FAMILIES[name].tokenizer is None:
        return tiny.images(((40, 61), (28, 28)))
    return tiny.samples(("The cat sat on the mat.", "short"))
