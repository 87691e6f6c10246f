"""Weights of a HookedTransformer by the names, and in the layout, that transformers has for them.

A bridge and a HookedTransformer of the same unprocessed weights then have one fingerprint, and a
bank fitted on one is scored on the other. A family that is not listed, or a model whose weights
were rewritten (folded, centred), keeps TransformerLens's own names: its fingerprint is that of no
other host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor


class Family(NamedTuple):
    """Models whose weights have the same names.

    Attributes:
        kind: `model_type` of transformers.
        before: Names of weights before the blocks, ours to theirs.
        block: Prefix of a block of theirs, with its number left open.
        inside: Names of weights inside a block, ours to theirs.
        turned: Whether output and MLP weights stand there as `[out, in]`, as `nn.Linear` has them.
    """

    kind: str
    before: Mapping[str, str]
    block: str
    inside: Mapping[str, str]
    turned: bool = True


def _norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.w": f"{theirs}.weight", f"{ours}.b": f"{theirs}.bias"}


def _heads(theirs: Mapping[str, str], biases: str = "QKVO") -> dict[str, str]:
    return {f"attn.W_{one}": f"{name}.weight" for one, name in theirs.items()} | {
        f"attn.b_{one}": f"{theirs[one]}.bias" for one in biases
    }


def _mlp(theirs: Mapping[str, str], *, biased: bool) -> dict[str, str]:
    own = {f"mlp.W_{one}": f"{name}.weight" for one, name in theirs.items()}
    return own | {f"mlp.b_{one}": f"{name}.bias" for one, name in theirs.items() if biased}


def _llama(kind: str, biases: str = "", **own: str) -> Family:
    heads = _heads({one: f"self_attn.{one.lower()}_proj" for one in "QKVO"}, biases)
    gated = _mlp({"in": "mlp.up_proj", "gate": "mlp.gate_proj", "out": "mlp.down_proj"}, biased=False)
    norms = {"ln1.w": "input_layernorm.weight", "ln2.w": "post_attention_layernorm.weight"}
    before = {"embed.W_E": "embed_tokens.weight"}
    extra = {f"attn.{name}.w": f"self_attn.{theirs}.weight" for name, theirs in own.items()}
    return Family(kind, before, "layers.{}.", heads | gated | norms | extra)


FAMILIES = {
    "LlamaForCausalLM": _llama("llama"),
    "MistralForCausalLM": _llama("mistral"),
    "Qwen2ForCausalLM": _llama("qwen2", "QKV"),
    "Qwen3ForCausalLM": _llama("qwen3", q_norm="q_norm", k_norm="k_norm"),
    "GPT2LMHeadModel": Family(
        "gpt2",
        {"embed.W_E": "wte.weight", "pos_embed.W_pos": "wpe.weight"},
        "h.{}.",
        _norm("ln1", "ln_1")
        | _norm("ln2", "ln_2")
        | _heads({one: f"attn.{one.lower()}" for one in "QKVO"})
        | _mlp({"in": "mlp.c_fc", "out": "mlp.c_proj"}, biased=True),
        turned=False,
    ),
    "GPTNeoXForCausalLM": Family(
        "gpt_neox",
        {"embed.W_E": "embed_in.weight"},
        "layers.{}.",
        _norm("ln1", "input_layernorm")
        | _norm("ln2", "post_attention_layernorm")
        | _heads({one: f"attention.{one.lower()}" for one in "QKVO"})
        | _mlp({"in": "mlp.dense_h_to_4h", "out": "mlp.dense_4h_to_h"}, biased=True),
    ),
    "BertForMaskedLM": Family(
        "bert",
        {
            "embed.embed.W_E": "embeddings.word_embeddings.weight",
            "embed.pos_embed.W_pos": "embeddings.position_embeddings.weight",
            "embed.token_type_embed.W_token_type": "embeddings.token_type_embeddings.weight",
            **_norm("embed.ln", "embeddings.LayerNorm"),
        },
        "encoder.layer.{}.",
        _norm("ln1", "attention.output.LayerNorm")
        | _norm("ln2", "output.LayerNorm")
        | _heads(
            {
                "Q": "attention.self.query",
                "K": "attention.self.key",
                "V": "attention.self.value",
                "O": "attention.output.dense",
            }
        )
        | _mlp({"in": "intermediate.dense", "out": "output.dense"}, biased=True),
    ),
}
# Behind the last block, or no weights of the residual stream.
BEHIND = ("ln_final.", "unembed.", "mlm_head.", "nsp_head.", "pooler.")


def shared_names(model: Any, family: Family | None) -> dict[str, Tensor]:
    """Weights before and in the blocks of a HookedTransformer or HookedEncoder.

    Args:
        model: Its parameters are listed.
        family: By whose names; None keeps TransformerLens's.
    """
    # `_W_K`, `_b_V`: a slice for each group of grouped-query attention.
    own = {name.replace("._", "."): one for name, one in model.named_parameters()}
    own = {name: one for name, one in own.items() if not name.startswith(BEHIND)}
    return own if family is None else dict(_renamed(own, family, len(model.blocks)))


def _renamed(own: Mapping[str, Tensor], family: Family, n_blocks: int) -> Iterator[tuple[str, Tensor]]:
    for ours, theirs in family.before.items():
        yield theirs, own[ours]
    for k in range(n_blocks):
        for ours, theirs in family.inside.items():
            yield family.block.format(k) + theirs, _laid_out(ours, own[f"blocks.{k}.{ours}"], family.turned)


def _laid_out(ours: str, one: Tensor, turned: bool) -> Tensor:
    """A weight as it stands there, heads side by side."""
    part = ours.rpartition(".")[2]
    if part in ("W_Q", "W_K", "W_V"):
        return one.transpose(1, 2).flatten(0, 1)
    if part == "W_O":
        return one.flatten(0, 1).T if turned else one.flatten(0, 1)
    if part in ("b_Q", "b_K", "b_V"):
        return one.flatten()
    return one.T if turned and part.startswith("W_") else one
