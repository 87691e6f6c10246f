"""What a head's weights do along a concept's direction: its OV and QK forms, beside their null.

With v_in the unit concept direction at the block's input, v_out at its output, C the centring and g
the gain of the norm before attention, r its mean scale:

    OV gain   gamma = v_in  C diag(g) W_V W_O  v_out / r
    QK gain   beta  = v_in  C diag(g) W_Q R W_K^T diag(g) C  v_in * scale / r^2

gamma is by how much a token's activation grows for each unit of activation it attends to, beta by
how much a logit grows for each unit of the product of two tokens' activations (arXiv 2512.05038
assumes both for an idealised head; the formulas are ours). A norm behind attention (Gemma-2, BERT)
is folded into W_O with its gain, its centring and its mean scale.

R is the rotary embedding averaged over the offsets seen. With q and k the maps of a direction,
z_j = q_j + i q_{j + width/2} and w_j the same of k, a query at position m and a key at position n
have

    q^T R_{m-n} k = sum_j Re(z_j conj(w_j) exp(i theta_j (m - n))) + the dimensions not turned

so the average over offsets needs only the mean of cos(theta_j offset) and sin(theta_j offset). It
weights an offset by how often the data have it, not by how much attention it gets, and over long
texts high frequencies average out: a head that looks for the concept at one distance only has a
small average. The form at single offsets stands beside it.

The cosines of `v_in W_OV` with v_out and of the query of v_in with its key are shown and not
tested: a head of rank one has cosine 1 or -1 whatever the direction.

What the numbers do not show: attention and scales are those of no token in particular; biases add
terms linear in one token's activation that are left out; a soft cap bends large logits; a norm over
each head's queries and keys (Qwen3) leaves beta its sign only. A direction at the output contains
what the head wrote there, so a head that writes much looks a little aligned with any concept; the
null has this too, for labels without meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.heads.align_plant import Sizes
from sa_plugin.host.protocol import (
    AttentionWeights,
    BlockNorms,
    DescribedHost,
    Norm,
    OutputProjection,
    Rotary,
)
from sa_plugin.host.weights import centre
from sa_plugin.passes.layout import TokenTable

N_CONTROL = 19
"""Permuted-label directions of the data side."""


class MeanTurn(NamedTuple):
    """Mean cosine and sine of each pair of dimensions; of the first `width` dimensions."""

    cos: Float[Tensor, " half_width"]
    sin: Float[Tensor, " half_width"]
    width: int


def offsets_seen(tokens: TokenTable, *, causal: bool) -> dict[int, int]:
    """How often each offset, query minus key, occurs among the kept tokens of a sample.

    Args:
        tokens: The rows.
        causal: Whether only keys at or before the query count.
    """
    found: dict[int, int] = {}
    for start, end in zip(tokens.bounds[:-1], tokens.bounds[1:], strict=True):
        position = tokens.position[start:end]
        # Two tokens are as far apart as their places in a 0/1 row are: a correlation counts all.
        present = np.zeros(int(position[-1] - position[0]) + 1)
        present[position - position[0]] = 1.0
        length = 2 ** int(np.ceil(np.log2(2 * len(present))))
        spectrum = np.fft.rfft(present, length)
        counts = np.rint(np.fft.irfft(np.abs(spectrum) ** 2, length)[: len(present)]).astype(int)
        for offset in np.flatnonzero(counts).tolist():
            found[offset] = found.get(offset, 0) + int(counts[offset])
            if offset and not causal:
                found[-offset] = found.get(-offset, 0) + int(counts[offset])
    return found


def mean_turn(rotary: Rotary | None, offsets: Mapping[int, int]) -> MeanTurn | None:
    """The rotation of a query against a key, averaged over offsets.

    Args:
        rotary: Or None, where nothing turns.
        offsets: How often each occurs.
    """
    if rotary is None:
        return None
    offset = torch.tensor(list(offsets), dtype=torch.float64)
    weight = torch.tensor(list(offsets.values()), dtype=torch.float64)
    angle = offset[:, None] * rotary.inverse_frequency.double()
    # Queries and keys are each scaled once (YaRN), so their product twice.
    share = (weight / weight.sum())[:, None] * rotary.scaling**2
    cos, sin = ((share * part).sum(0).float() for part in (angle.cos(), angle.sin()))
    return MeanTurn(cos, sin, rotary.width)


def turned_product(
    query: Float[Tensor, "*row d_head"], key: Float[Tensor, "*row d_head"], turn: MeanTurn | None
) -> Float[Tensor, "*row"]:
    """The averaged `q^T R k`, row by row."""
    if turn is None:
        return (query * key).sum(-1)
    half = turn.width // 2
    # Dimension j turns with j + half: z = q1 + i q2, and Re(z conj(w) e^{i angle}) written out.
    q1, q2 = query[..., :half], query[..., half : turn.width]
    k1, k2 = key[..., :half], key[..., half : turn.width]
    pairs = (q1 * k1 + q2 * k2) * turn.cos + (q1 * k2 - q2 * k1) * turn.sin
    # Partial rotary leaves the dimensions behind the width as they are.
    rest = (query[..., turn.width :] * key[..., turn.width :]).sum(-1)
    total: Tensor = pairs.sum(-1) + rest
    return total


def profile_offsets(offsets: Mapping[int, int]) -> Sequence[int]:
    """Offsets to show: 0, powers of two and the longest, with their negatives where seen."""
    longest = max(abs(offset) for offset in offsets)
    sizes = [0, *(2**k for k in range(longest.bit_length())), longest]
    wanted = sorted({size for size in sizes} | {-size for size in sizes})
    return [offset for offset in wanted if offset in offsets]


class HeadMaps(NamedTuple):
    """One block's maps with its norms folded in, but for their scales."""

    query: Float[Tensor, "head d_model d_head"]
    key: Float[Tensor, "head d_model d_head"]
    value: Float[Tensor, "head d_model d_head"]
    output: Float[Tensor, "head d_head d_model"]
    scale: float


def _head_maps(weights: AttentionWeights, norms: BlockNorms, projection: OutputProjection) -> HeadMaps:
    """Fold a block's norms into its maps.

    Args:
        weights: Of the block.
        norms: Of the block; `mlp_out` is folded only where it scales the residual stream itself.
        projection: Attention's output projection.
    """
    query, key, value = (
        _read_through(weights.norm, part)
        for part in (weights.query.weight, weights.key.weight, weights.value.weight)
    )
    output = projection.weight
    # Behind attention: centring and gain of each norm act on what the head writes, in order; what
    # they divide by is a token's own and stands in `DataSide.scales`.
    for norm in write_norms(norms):
        output = centre(norm, output) * norm.gain
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
    # x centred, times W, is x times W with its column means taken out.
    return folded - folded.mean(1, keepdim=True) if norm.centred else folded


def ov_form(
    maps: HeadMaps, v_in: Float[Tensor, "direction d_model"], v_out: Float[Tensor, "direction d_model"]
) -> Float[Tensor, "direction head"]:
    """`v_in W_V W_O v_out` of every head."""
    out: Tensor = (_through(v_in, maps.value) * _through(v_out, maps.output.mT)).sum(-1)
    return out


def qk_form(
    maps: HeadMaps, v_in: Float[Tensor, "direction d_model"], turn: MeanTurn | None
) -> Float[Tensor, "direction head"]:
    """`v_in W_Q R W_K^T v_in * scale` of every head."""
    query, key = _through(v_in, maps.query), _through(v_in, maps.key)
    return turned_product(query, key, turn) * maps.scale


def _ov_cosine(
    maps: HeadMaps, v_in: Float[Tensor, "direction d_model"], v_out: Float[Tensor, "direction d_model"]
) -> Float[Tensor, "direction head"]:
    """Cosine of what a head writes for v_in with v_out."""
    # Here the write itself is needed, for its length; `ov_form` never forms it.
    written = torch.einsum("nhe,hed->nhd", _through(v_in, maps.value), maps.output)
    out: Tensor = torch.cosine_similarity(written, v_out[:, None], dim=-1)
    return out


def _qk_cosine(
    maps: HeadMaps, v_in: Float[Tensor, "direction d_model"], turn: MeanTurn | None
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


Forms = Float[np.ndarray, "block head concept"]


@dataclass(frozen=True, eq=False)
class HeadBlock:
    """What is fixed about one block: its maps, its rotation, and the bank's layers at its ends."""

    index: int
    source: int
    attention: AttentionWeights
    maps: HeadMaps
    turn: MeanTurn | None


@dataclass(frozen=True, eq=False)
class Observed:
    """Forms at the concepts' own directions, without the norms' scales.

    Attributes:
        ov, qk: Bilinear forms.
        ov_cosine, qk_cosine: Shown, not tested.
        profile: `qk` at single offsets, query minus key; empty without rotary embeddings.
    """

    ov: Forms
    qk: Forms
    ov_cosine: Forms
    qk_cosine: Forms
    profile: Mapping[int, Forms]


def describe_blocks(
    host: DescribedHost, layers: Sequence[int], offsets: Mapping[int, int]
) -> list[HeadBlock]:
    """Blocks whose input and output both have concept vectors.

    The input of block b is the output of block b - 1; block 0 takes its own output's direction.

    Args:
        host: Hands out its weights.
        layers: Of the bank.
        offsets: Seen in the data.

    Raises:
        ValueError: No two layers are neighbours, or an architecture's attention is unknown.
    """
    found = []
    for b in layers:
        if b and b - 1 not in layers:
            continue
        attention = host.attention_weights(b)
        maps = _head_maps(attention, host.norms(b), host.output_projection(b))
        turn = mean_turn(attention.rotary, offsets)
        found.append(HeadBlock(b, max(0, b - 1), attention, maps, turn))
    if not found:
        raise ValueError(
            f"the bank has vectors at layers {list(layers)}, no two of them neighbours: a head of "
            "block b reads at layer b - 1 and writes at layer b. Fit more layers (by default all)."
        )
    return found


def observe(
    blocks: Sequence[HeadBlock],
    vectors: Mapping[int, Float[Tensor, "concept d_model"]],
    offsets: Mapping[int, int],
) -> Observed:
    """Forms and cosines at unit directions, by block."""
    ends = [(b, vectors[b.source], vectors[b.index]) for b in blocks]
    turned = any(b.turn is not None for b in blocks)
    single = profile_offsets(offsets) if turned else ()
    profile = {offset: _stack([_at_offset(b, v, offset) for b, v, _ in ends]) for offset in single}
    return Observed(
        _stack([ov_form(b.maps, v, w) for b, v, w in ends]),
        _stack([qk_form(b.maps, v, b.turn) for b, v, _ in ends]),
        _stack([_ov_cosine(b.maps, v, w) for b, v, w in ends]),
        _stack([_qk_cosine(b.maps, v, b.turn) for b, v, _ in ends]),
        profile,
    )


def _at_offset(block: HeadBlock, v: Tensor, offset: int) -> Tensor:
    return qk_form(block.maps, v, mean_turn(block.attention.rotary, {offset: 1}))


def _stack(parts: Sequence[Float[Tensor, "concept head"]]) -> Forms:
    return torch.stack(list(parts)).mT.double().numpy()


def head_sizes(block: HeadBlock, v_in: Tensor, v_out: Tensor) -> Sizes:
    """What a block's heads do with the concepts' own directions."""
    maps = block.maps
    written = torch.einsum("nhe,hed->nhd", _through(v_in, maps.value), maps.output)
    along = (written * v_out[:, None]).sum(-1)
    query, key = _through(v_in, maps.query), _through(v_in, maps.key)
    # The logits' own scale multiplies both lengths as it does the form.
    lengths = [part.square().sum(-1) * maps.scale for part in (query, key)]
    across = (written - along[..., None] * v_out[:, None]).norm(dim=-1)
    parts = (along, turned_product(query, key, block.turn) * maps.scale, across, *lengths)
    return Sizes(*(part.mT.double().numpy() for part in parts))
