"""Where things are in a model: one dictionary an architecture, and how a user adds another.

Paths of `blocks`, `embed` and `after` are inside the base model (`GPT2Model`, whatever head stands
on top), all others inside a block. What a dictionary says is not trusted: when a model is attached,
how its blocks add up, that every module runs once, and in which order, are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

ROLES = {
    "blocks": "the list of blocks",
    "block_class": "class of the blocks that are read, where others stand between them",
    "attention": "module whose output is (attention output, probabilities)",
    "o_proj": "its output projection, a Linear or Conv1D",
    "mlp": "module whose output is what the MLP adds to the residual stream",
    "attn_out": "module whose output is what attention adds, if not o_proj (a norm behind it)",
    "attn_scale": "LayerScale behind o_proj, folded into its weights",
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
    "n_heads": "number of query heads, where the model has no config",
}
NOT_IN_BLOCKS = {"blocks", "block_class", "embed", "after", "n_heads", "qkv_order"}
REQUIRED = ("blocks", "attention", "o_proj", "mlp")
Paths = Mapping[str, Any]

_LLAMA = {
    "blocks": "layers", "attention": "self_attn", "o_proj": "self_attn.o_proj", "mlp": "mlp",
    "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "embed": "embed_tokens", "after": ("norm", "lm_head", "score"),
}  # fmt: skip
_QWEN3 = {**_LLAMA, "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_VIT = {
    "blocks": "layers", "attention": "attention", "o_proj": "attention.o_proj", "mlp": "mlp",
    "norm1": "layernorm_before", "norm2": "layernorm_after",
    "q": "attention.q_proj", "k": "attention.k_proj", "v": "attention.v_proj",
    "after": ("layernorm", "pooler", "classifier", "cls_classifier", "distillation_classifier"),
}  # fmt: skip
_CLIP = {
    "blocks": "encoder.layers", "attention": "self_attn", "o_proj": "self_attn.out_proj",
    "mlp": "mlp", "norm1": "layer_norm1", "norm2": "layer_norm2",
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
}  # fmt: skip

PATHS: dict[str, Paths] = {
    "gpt2": {
        "blocks": "h", "attention": "attn", "o_proj": "attn.c_proj", "mlp": "mlp",
        "norm1": "ln_1", "norm2": "ln_2", "qkv": "attn.c_attn", "qkv_order": "parts",
        "embed": "wte", "after": ("ln_f", "lm_head", "score"),
    },
    "gpt_neox": {
        "blocks": "layers", "attention": "attention", "o_proj": "attention.dense", "mlp": "mlp",
        "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
        "qkv": "attention.query_key_value", "qkv_order": "heads",
        "embed": "embed_in",
        "after": ("final_layer_norm", "lm_head", "embed_out", "score"),
    },
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _QWEN3,
    "gemma2": {
        **_LLAMA, "attn_out": "post_attention_layernorm", "mlp": "post_feedforward_layernorm",
        "norm2": "pre_feedforward_layernorm",
    },
    "bert": {
        "blocks": "encoder.layer", "attention": "attention.self",
        "o_proj": "attention.output.dense", "mlp": "output.dense",
        "norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm",
        "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
        "embed": "embeddings.word_embeddings", "after": ("pooler", "cls", "classifier"),
    },
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": {
        **_VIT, "blocks": "encoder.layer", "norm1": "norm1", "norm2": "norm2",
        "attn_scale": "layer_scale1", "mlp": "layer_scale2",
    },
    "clip_vision_model": _CLIP,
    "clip_text_model": {
        **_CLIP, "embed": "embeddings.token_embedding",
        "after": ("final_layer_norm", "text_projection"),
    },
    # Its blocks of cross-attention do not run on a text alone.
    "mllama_text_model": {**_LLAMA, "block_class": "MllamaSelfAttentionDecoderLayer"},
    "mllama_vision_model": {
        **_CLIP, "blocks": "transformer.layers", "o_proj": "self_attn.o_proj",
        "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
        "after": ("layernorm_post", "post_tile_positional_embedding", "global_transformer"),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Places:
    """A model's modules by role.

    Attributes:
        root: The module that is run.
        architecture: Class name of the model.
        kind: Its `model_type`, or "" without a config.
        roles: See `ROLES`.
        prefix: Path of the base model inside the root, "" or ending in a dot.
        numbers: Of the blocks that are read, in the model's own list.
    """

    root: nn.Module
    architecture: str
    kind: str
    roles: Paths
    prefix: str
    numbers: tuple[int, ...]

    @property
    def n_layers(self) -> int:
        """Number of blocks that are read."""
        return len(self.numbers)

    def has(self, role: str) -> bool:
        """Whether the architecture has such a module."""
        return role in self.roles

    def path(self, role: str, layer: int | None = None) -> str:
        """Path of a module inside the root; "block" is a block itself."""
        if layer is None:
            return self.prefix + str(self.roles[role])
        block = f"{self.prefix}{self.roles['blocks']}.{self.numbers[layer]}"
        return block if role == "block" else f"{block}.{self.roles[role]}"

    def module(self, role: str, layer: int | None = None) -> Any:
        """The module itself."""
        return self.root.get_submodule(self.path(role, layer))


def locate(root: nn.Module, given: Paths | None) -> Places:
    """Find a model's modules.

    Args:
        root: The module that is run.
        given: Roles that the user adds or replaces.

    Raises:
        ValueError: The architecture is unknown, or a path leads nowhere; the text names the
            modules that were found.
    """
    kind = str(getattr(getattr(root, "config", None), "model_type", "") or "")
    architecture = type(root).__name__
    unknown = sorted(set(given or {}) - set(ROLES))
    if unknown:
        raise ValueError(f"paths has {unknown[0]!r}, which is no role; roles: {', '.join(ROLES)}.")
    roles = {**PATHS.get(kind, {}), **(given or {})}
    missing = [role for role in REQUIRED if role not in roles]
    if missing:
        raise ValueError(_unknown(root, architecture, kind, missing))
    for prefix in ("", f"{getattr(root, 'base_model_prefix', '')}.", "model."):
        blocks = _find(root, prefix + str(roles["blocks"]))
        if isinstance(blocks, nn.ModuleList | nn.Sequential) and len(blocks):
            wanted = roles.get("block_class")
            numbers = [k for k, b in enumerate(blocks) if wanted in (None, type(b).__name__)]
            if not numbers:
                break
            places = Places(root, architecture, kind, roles, prefix, tuple(numbers))
            _check(places)
            return places
    raise ValueError(f"{architecture} has no list of blocks at {roles['blocks']!r}. {_found(root)}")


def _check(places: Places) -> None:
    for role in sorted(set(places.roles) - NOT_IN_BLOCKS):
        if _find(places.root, places.path(role, 0)) is None:
            raise ValueError(
                f"{places.architecture} has no module {places.path(role, 0)!r} ({role}: "
                f"{ROLES[role]}). {_found(places.root)}"
            )


def _find(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _unknown(root: nn.Module, architecture: str, kind: str, missing: list[str]) -> str:
    wanted = ", ".join(f"{role!r} ({ROLES[role]})" for role in missing)
    if hasattr(root, "vision_model") and hasattr(root, "text_model"):
        return (
            f"{architecture} has two towers: say which to read, attach(model, tower='vision') or "
            "tower='text'."
        )
    return (
        f"{architecture} ({kind or 'no config'}) is no architecture this adapter knows "
        f"({', '.join(PATHS)}). {_found(root)} Say where things are, paths inside a block: "
        'attach(model, paths={"blocks": ..., "attention": ..., "o_proj": ..., "mlp": ..., '
        f'"norm1": ..., "norm2": ...}}); missing: {wanted}.'
    )


def _found(root: nn.Module) -> str:
    """Lists of blocks and what is in the first of each."""
    lists = []
    for name, module in root.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            inner = [path for path, _ in module[0].named_modules() if path]
            lists.append(f"{name!r} ({len(module)} x {type(module[0]).__name__}: "
                         f"{', '.join(inner[:16])})")  # fmt: skip
    return f"Lists of blocks found: {'; '.join(lists[:4]) or 'none'}."
