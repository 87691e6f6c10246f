"""How it is said where things are in a model: the roles of its modules.

What they are is found from a pass over the model (`sa_nnsight.measure`); a user adds or corrects them
by `attach(model, paths={role: path})`. Written down here is what one pass does not show.

Paths of `blocks`, `embed`, `final_norm` and `after` are inside the base model (`GPT2Model`, whatever
head stands on top), all others inside a block. Where blocks differ, a path is a tuple of alternatives,
of which a block has one; `blocks` may be several lists that run one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROLES = {
    "blocks": "the list of blocks, or several that run one after another",
    "block_class": "class of the blocks that are read, where others stand between them",
    "attention": "module whose outputs hold attention's output and the probabilities",
    "pattern": "which of attention's outputs the probabilities are, if not 1",
    "output_attentions": "True where they are handed out only by a model that is told to",
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
    "qkv_order": "of the fused outputs: 'parts' (all q, all k, all v) or 'heads' (q, k, v a group of heads)",
    "q_norm": "norm of each query",
    "k_norm": "norm of each key",
    "embed": "token embedding, inside the base model",
    "after": "modules behind the last block, which no activation depends on",
    "final_norm": "norm behind the last block, inside the base model",
    "n_heads": "number of query heads",
}
NOT_IN_BLOCKS = {
    *("blocks", "block_class", "embed", "after", "entry", "final_norm"),
    *("n_heads", "qkv_order", "pattern", "output_attentions"),
}
SOME_BLOCKS = {"attn_gate", "mlp_gate", "cross"}
REQUIRED = ("blocks", "attention", "o_proj", "mlp")
Paths = Mapping[str, Any]

_PARTS = (("attention", ""), ("o_proj", ".o_proj"), ("q", ".q_proj"), ("k", ".k_proj"), ("v", ".v_proj"))

# Fused projections that keep a head's query, key and value side by side: measured where a model has
# values, taken from its kind where they are on a server.
SIDE_BY_SIDE = ("gpt_neox", "bloom", "falcon")
KNOWN: dict[str, Paths] = {
    # Its last norm acts on the class token alone, and always was among the weights that are hashed.
    "clip_vision_model": {"after": ()},
    # Its blocks of cross-attention do not run on a text alone: see `sa_nnsight.places.locate`.
    "mllama_text_model": {
        "blocks": "layers",
        "mlp": "mlp",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "embed": "embed_tokens",
        "after": ("norm", "lm_head", "score"),
        "final_norm": "norm",
        **{role: (f"self_attn{path}", f"cross_attn{path}") for role, path in _PARTS},
        "attn_gate": "cross_attn_attn_gate",
        "mlp_gate": "cross_attn_mlp_gate",
        "cross": "cross_attn",
        "block_class": "MllamaSelfAttentionDecoderLayer",
    },
    # Two lists of blocks, with gates behind the second's attention and MLP.
    "mllama_vision_model": {
        "blocks": ("transformer.layers", "global_transformer.layers"),
        "mlp": "mlp",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        **{role: f"self_attn{path}" for role, path in _PARTS},
        "attn_gate": "gate_attn",
        "mlp_gate": "gate_ffn",
        "entry": "layernorm_post",
    },
}
