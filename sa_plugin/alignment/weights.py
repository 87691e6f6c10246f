"""The weights side: what a head reads along a concept, and what it then writes along it.

With the norm before attention folded in (gain g, centring C for LayerNorms, and r its mean scale
over kept tokens), v_in the unit concept direction at the block's input, v_out at its output:

    OV gain   gamma = v_in  C diag(g) W_V W_O  v_out / r
    QK gain   beta  = v_in  C diag(g) W_Q R W_K^T diag(g) C  v_in * scale / r^2

gamma is by how much a token's activation grows for each unit of activation it attends to, beta by
how much a logit grows for each unit of the product of two tokens' activations (arXiv 2512.05038
assumes both for an idealised head; the formulas are ours). R is the rotary embedding averaged over
the offsets seen (`rotary.py`). A norm behind attention (Gemma-2, BERT) is folded into W_O with its
gain, its centring and its mean scale.

The cosines of `v_in W_OV` with v_out and of the query of v_in with its key are shown and not
tested: a head of rank one has cosine 1 or -1 whatever the direction.

What the numbers do not show: attention and scales are those of no token in particular; biases add
terms linear in one token's activation that are left out; a soft cap bends large logits; a norm over
each head's queries and keys (Qwen3) leaves beta its sign only. A direction at the output contains
what the head wrote there, so a head that writes much looks a little aligned with any concept; the
null of `null.py` has this too, for labels without meaning.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.alignment.rotary import Turn, turned_product
from sa_plugin.block import AttentionWeights, BlockNorms, Norm
from sa_plugin.host import OutputProjection


class HeadMaps(NamedTuple):
    """One block's maps with its norms folded in, but for their scales."""

    query: Float[Tensor, "head d_model d_head"]
    key: Float[Tensor, "head d_model d_head"]
    value: Float[Tensor, "head d_model d_head"]
    output: Float[Tensor, "head d_head d_model"]
    scale: float


def head_maps(
    weights: AttentionWeights, norms: BlockNorms, projection: OutputProjection
) -> HeadMaps:
    """Fold a block's norms into its maps.

    Args:
        weights: Of the block.
        norms: Of the block; `mlp_out` is folded only where it scales the residual stream itself.
        projection: Attention's output projection.
    """
    query, key, value = (
        _read_through(weights.norm, part) for part in (weights.query, weights.key, weights.value)
    )
    output = projection.weight
    for norm in write_norms(norms):
        output = (output - output.mean(-1, keepdim=True) if norm.centred else output) * norm.gain
    return HeadMaps(query, key, value, output, weights.scale)


def write_norms(norms: BlockNorms) -> tuple[Norm, ...]:
    """Norms between a head's write and the block's output, in order."""
    if norms.attn_out is None:
        return ()
    # A post_ln block has no norm before attention, and both of its norms scale the stream itself.
    if norms.attn_in is None and norms.mlp_in is None and norms.mlp_out is not None:
        return norms.attn_out, norms.mlp_out
    return (norms.attn_out,)


def _read_through(norm: Norm | None, weight: Tensor) -> Tensor:
    if norm is None:
        return weight
    folded = norm.gain[:, None] * weight
    return folded - folded.mean(1, keepdim=True) if norm.centred else folded


def ov_form(
    maps: HeadMaps,
    v_in: Float[Tensor, "direction d_model"],
    v_out: Float[Tensor, "direction d_model"],
) -> Float[Tensor, "direction head"]:
    """`v_in W_V W_O v_out` of every head."""
    out: Tensor = (_through(v_in, maps.value) * _through(v_out, maps.output.mT)).sum(-1)
    return out


def qk_form(
    maps: HeadMaps, v_in: Float[Tensor, "direction d_model"], turn: Turn | None
) -> Float[Tensor, "direction head"]:
    """`v_in W_Q R W_K^T v_in * scale` of every head."""
    query, key = _through(v_in, maps.query), _through(v_in, maps.key)
    return turned_product(query, key, turn) * maps.scale


def ov_cosine(
    maps: HeadMaps,
    v_in: Float[Tensor, "direction d_model"],
    v_out: Float[Tensor, "direction d_model"],
) -> Float[Tensor, "direction head"]:
    """Cosine of what a head writes for v_in with v_out."""
    written = torch.einsum("nhe,hed->nhd", _through(v_in, maps.value), maps.output)
    out: Tensor = torch.cosine_similarity(written, v_out[:, None], dim=-1)
    return out


def qk_cosine(
    maps: HeadMaps, v_in: Float[Tensor, "direction d_model"], turn: Turn | None
) -> Float[Tensor, "direction head"]:
    """Averaged product of the query of v_in and its key, over their lengths."""
    query, key = _through(v_in, maps.query), _through(v_in, maps.key)
    lengths = query.norm(dim=-1) * key.norm(dim=-1)
    out: Tensor = turned_product(query, key, turn) / lengths.clamp_min(1e-12)
    return out


def _through(
    v: Float[Tensor, "direction d_model"], maps: Float[Tensor, "head d_model d_head"]
) -> Float[Tensor, "direction head d_head"]:
    # One product with all heads side by side is several times faster than a batch of small ones.
    heads, d_model, d_head = maps.shape
    flat = maps.permute(1, 0, 2).reshape(d_model, heads * d_head)
    return (v @ flat).reshape(len(v), heads, d_head)
