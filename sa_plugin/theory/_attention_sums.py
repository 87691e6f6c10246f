"""Attention of one sample in one block, as sums: where its mass goes, and what it predicts.

Pure torch, for use inside `Host.read`. `pattern` is attention among kept tokens, renormalised: the
sinks, special tokens and padding that hold the rest are left out, and how much they hold is
reported (`full` keeps them).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin.theory._gap_sums import count

LEAST_KEYS = 10
_RESOLVED = 1e-30


class Attention(NamedTuple):
    """Attention of one sample's kept tokens.

    Attributes:
        pattern: Among kept tokens, rows sum to 1 (0 where a query gives them nothing).
        full: Of kept queries on every token of the sample.
        kept: Which columns of `full` are kept tokens.
        visible: Keys each query may see, among kept tokens.
        visible_full: Keys it may see, of all.
    """

    pattern: Float[Tensor, "head query key"]
    full: Float[Tensor, "head query every"]
    kept: Bool[Tensor, " every"]
    visible: Bool[Tensor, "query key"]
    visible_full: Bool[Tensor, "query every"]


def attention_of(
    full: Float[Tensor, "head every every"], keep: Bool[Tensor, " every"], causal: bool
) -> Attention:
    """The view of one sample's pattern that the sums need."""
    rows = full[:, keep]
    among = rows[:, :, keep]
    mass = among.sum(-1, keepdim=True)
    pattern = torch.where(mass > _RESOLVED, among / mass.clamp_min(_RESOLVED), 0.0)
    everywhere = torch.ones(full.shape[1:], dtype=torch.bool, device=full.device)
    may = everywhere.tril() if causal else everywhere
    return Attention(pattern, rows, keep, may[keep][:, keep], may[keep])


def spread_sums(attention: Attention) -> dict[str, Tensor]:
    """Entropy with and without sinks, means over heads, summed over queries with enough keys."""
    enough = attention.visible.sum(-1) >= LEAST_KEYS
    inside, every = _entropy(attention.pattern), _entropy(attention.full)
    mass = attention.full[:, :, attention.kept].sum(-1)
    return {
        "queries": enough.sum().double(),
        "entropy": inside.mean(0)[enough].sum(),
        "entropy full": every.mean(0)[enough].sum(),
        "log keys": attention.visible.sum(-1)[enough].double().log().sum(),
        "log keys full": attention.visible_full.sum(-1)[enough].double().log().sum(),
        "kept mass": mass.mean(0)[enough].sum(),
    }


def tail_masks(
    activations: Float[Tensor, "key column"], visible: Bool[Tensor, "query key"], tail: float
) -> Bool[Tensor, "column query key"]:
    """For each query the top share of the keys it sees: ceil(tail n) of n."""
    order = activations.argsort(dim=0, descending=True).T
    seen = visible.T[order].transpose(1, 2)
    size = (tail * visible.sum(-1)).ceil()
    top = seen & (seen.cumsum(-1) <= size[:, None])
    into = order[:, None].expand(-1, len(visible), -1)
    return torch.zeros_like(top).scatter(2, into, top)


def mass_sums(
    activations: Float[Tensor, "token column"],
    attention: Attention,
    tail: float,
    predicted: Float[Tensor, "own head token token"] | None = None,
) -> dict[str, Tensor]:
    """Mass on the top and bottom share of keys beside chance, by sign of the query.

    Args:
        activations: a of the kept tokens.
        attention: Of the same.
        tail: Share of the keys a query sees.
        predicted: Attention by the concept's part of the logits alone, of the first columns.
    """
    enough = (attention.visible.sum(-1) >= LEAST_KEYS)[:, None]
    n = attention.visible.sum(-1)[:, None].double()
    found: dict[str, Tensor] = {}
    raw = attention.full[:, :, attention.kept]
    for end, sign in (("top", 1.0), ("bottom", -1.0)):
        mask = tail_masks(sign * activations, attention.visible, tail).to(attention.pattern)
        share = mask.sum(-1).T
        by_head = torch.einsum("hqk,cqk->hqc", attention.pattern, mask)
        full = torch.einsum("hqk,cqk->qc", raw, mask) / len(raw)
        for side, queries in (("plus", activations > 0), ("minus", activations < 0)):
            weight = (queries & enough).to(mask)
            name = f"{end} {side}"
            heads = torch.einsum("hqc,qc->ch", by_head, weight)
            found[f"head {name}"] = heads
            found[f"mass {name}"] = heads.mean(-1)
            found[f"full {name}"] = (full * weight).sum(0)
            found[f"chance {name}"] = (share / n * weight).sum(0)
            found[f"chance full {name}"] = (
                share / attention.visible_full.sum(-1)[:, None] * weight
            ).sum(0)
            found[f"queries {side}"] = weight.sum(0)
            if predicted is not None:
                own = predicted.shape[0]
                mine = torch.einsum("chqk,cqk->qc", predicted.to(mask), mask[:own])
                total = torch.zeros_like(found[f"mass {name}"])
                total[:own] = (mine / predicted.shape[1] * weight[:, :own]).sum(0)
                found[f"predicted {name}"] = total
    return found


def predicted_pattern(
    scaled: Float[Tensor, "token column"],
    beta: Float[Tensor, "head column"],
    visible: Bool[Tensor, "query key"],
) -> Float[Tensor, "column head query key"]:
    """softmax_j (beta_h a_i a_j / r_i r_j) over the keys seen, in float32."""
    a = scaled.float().T
    logits = beta.float().T[:, :, None, None] * (a[:, :, None] * a[:, None])[:, None]
    return logits.masked_fill(~visible, -torch.inf).softmax(-1)


def tilted(
    pattern: Float[Tensor, "head query key"], scaled: Float[Tensor, "key column"]
) -> tuple[Float[Tensor, "head query column"], Float[Tensor, "head query column"]]:
    """Mean and variance of a / r under each query's actual attention."""
    # Around the sample's mean: the raw second moment would cancel.
    centre = scaled.mean(0)
    x = scaled - centre
    mean = pattern @ x
    return mean + centre, (pattern @ x.square() - mean.square()).clamp_min(0.0)


def prefix_sums(
    before: Float[Tensor, "token column"],
    pattern: Float[Tensor, "head query key"],
    writes: Float[Tensor, "head token column"],
    growth: Float[Tensor, "head own"],
    inverse: Float[Tensor, " token"],
    resolution: float,
) -> dict[str, Tensor]:
    """Theorem 1 for queries that see different keys: every pair on its common prefix.

    `sa_plugin.theory.common_prefix_updates`, in torch for all columns, with the prediction
    (a_i - a_j) (1 + sum beta gamma (V_i|j / r_i + V_j|j / r_j) / 2): the mean of the variance
    between the two tokens by the trapezium rule.

    Args:
        before: a.
        pattern: Causal attention.
        writes: What each head writes along v_out for a unit of attention on a key.
        growth: beta gamma of each head, of the first columns: only those are predicted.
        inverse: 1 / r.
        resolution: Gaps up to this times the largest activation are ties.
    """
    n = len(before)
    ahead = torch.ones(n, n, dtype=torch.bool, device=before.device).triu(1)
    update = torch.zeros(n, n, before.shape[1], dtype=before.dtype, device=before.device)
    first = growth.shape[1]
    variance = torch.zeros_like(update[..., :first])
    scaled = before[:, :first] * inverse[:, None]
    centred = scaled - scaled.mean(0)
    for weights, write, factor in zip(pattern, writes, growth, strict=True):
        mass = weights.cumsum(1)[..., None]
        mass = torch.where(mass > _RESOLVED, mass, torch.nan)
        update += (weights[..., None] * write).cumsum(1) / mass
        mean = (weights[..., None] * centred).cumsum(1) / mass
        square = (weights[..., None] * centred.square()).cumsum(1) / mass
        variance += factor * (square - mean.square()).clamp_min(0.0)
    # Per unit of a of the query, whose logits hold a_i / r_i.
    variance = variance * inverse[:, None, None]
    own = torch.arange(n, device=before.device)
    gaps = before[:, None] - before[None]
    later = gaps + update - update[own, own][None]
    predicted = torch.zeros_like(gaps)
    predicted[..., :first] = gaps[..., :first] * (1 + (variance + variance[own, own][None]) / 2)
    scale = torch.maximum(before.abs().amax(0), (before + update[own, own]).abs().amax(0))
    pair = ~ahead[..., None] & (gaps.abs() > resolution * scale.nan_to_num(0.0))
    used = pair & later.isfinite()
    later, predicted = (torch.where(used, x, 0.0) for x in (later, predicted))
    kept = torch.where(used, gaps, 0.0)
    found = {f"{what} prefix": value for what, value in count(kept, later, used).items()}
    return found | {
        "left out prefix": (pair & ~used).sum((0, 1)).double(),
        "xx prefix": kept.square().sum((0, 1)),
        "xy prefix": (kept * later).sum((0, 1)),
        "yy prefix": later.square().sum((0, 1)),
        "xy prefix predicted": (kept * predicted).sum((0, 1)),
        "yy prefix predicted": predicted.square().sum((0, 1)),
    }


def _entropy(pattern: Float[Tensor, "head query key"]) -> Float[Tensor, "head query"]:
    entropy: Tensor = -torch.special.xlogy(pattern, pattern).sum(-1)
    return entropy
