"""Attention on the tokens with the highest activations, beyond their share of the keys.

For each query i with t_i of its n_i keys among the sample's top delta of tokens, 0 < t_i < n_i,

    lift_i = (attention of i on them) / (attention of i on kept tokens) - t_i / n_i

split by the sign of the query's own activation: an aligned head moves attention to the highest
tokens where the query is positive, and to the lowest where it is negative. `whole` is the same with
attention sinks and special tokens left in the denominator and among the keys: where a sink takes
nearly everything it is near `-t_i / n_i` whatever the head does with the rest.

What it does not show: whether the head looks for the concept or for what stands next to it. Tokens
close by resemble each other and are attended to for being close.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Mass(NamedTuple):
    """Sums over queries by the sign of their activation (0 positive, 1 negative)."""

    kept: Float[Tensor, "batch head column sign"]
    whole: Float[Tensor, "batch head column sign"]
    queries: Float[Tensor, "batch column sign"]


def top_tokens(
    a: Float[Tensor, "batch token column"],
    keep: Bool[Tensor, "batch token"],
    delta: Float[Tensor, " column"],
) -> Bool[Tensor, "batch token column"]:
    """The highest `ceil(delta * n)` of each sample's n kept tokens."""
    n = keep.sum(-1)[:, None, None]
    masked = a.masked_fill(~keep[..., None], -torch.inf)
    rank = masked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < (delta.to(a) * n).ceil()) & keep[..., None]


def attention_mass(
    pattern: Float[Tensor, "batch head query key"],
    a: Float[Tensor, "batch token column"],
    top: Bool[Tensor, "batch token column"],
    keep: Bool[Tensor, "batch token"],
    seen: Bool[Tensor, "batch query key"],
) -> Mass:
    """Lift of attention on the top tokens, summed over queries.

    Args:
        pattern: Attention.
        a: Activations at the block's input.
        top: From `top_tokens`.
        keep: Kept tokens.
        seen: Pairs of which the query may see the key, special tokens and sinks included.
    """
    chosen, kept = top.float(), keep.float()
    on_top = torch.einsum("bhqk,bku->bhqu", pattern, chosen)
    on_kept = torch.einsum("bhqk,bk->bhq", pattern, kept)[..., None]
    m = seen.float()
    t = m @ chosen
    n_kept, n_all = m @ kept[..., None], m.sum(-1, keepdim=True)
    counted = (t > 0) & (t < n_kept) & keep[..., None]
    by_sign = torch.stack([counted & (a > 0), counted & (a <= 0)], dim=-1).float()
    lift = on_top / on_kept.clamp_min(1e-12) - (t / n_kept.clamp_min(1.0))[:, None]
    whole = on_top - (t / n_all.clamp_min(1.0))[:, None]
    return Mass(
        torch.einsum("bhqu,bqus->bhus", lift, by_sign),
        torch.einsum("bhqu,bqus->bhus", whole, by_sign),
        by_sign.sum(1),
    )
