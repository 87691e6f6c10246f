"""The one pass of a theory check: every sample's sums for every block and direction.

From these sums every measure follows (`theory.measures`): *gaps* for Theorems 1 and 2, moments and
pairs of one sample's activations before and after a block; *attention*, where its mass goes and
what it predicts; *tails*, for Corollary 2. Columns are directions; tokens are the kept ones of one
sample, which attend to one another. Activations are centred within the sample before moments are
taken, so offsets of samples are no gaps.

`pattern` is attention among kept tokens, renormalised: the sinks, special tokens and padding that
hold the rest are left out, and how much they hold is reported (`full` keeps them).

Patterns are large, `heads x tokens^2` a sample and block: they are reduced beside the model, in
pure torch inside `Host.read`, one sample and one block at a time, to sums of shape
`[sample, layer, column]`. What is held at once is the batch's own patterns
(`layers x batch x heads x tokens^2` numbers of the model's format) and, for one sample and block,
`tokens^2 x columns` float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.host.protocol import Batch, Host, HostInfo, Point, Site
from sa_plugin.host.reducers import Keeping, keeping
from sa_plugin.host.weights import apply_norm, norm_scale
from sa_plugin.passes.layout import Layout
from sa_plugin.passes.run import Job, Name, Reducer, run_jobs
from sa_plugin.theory.paths import Directions, Path, predicted_pattern, tilted

LEAST_TOKENS = 10
"""Kept tokens that a sample must have to be measured."""
LEAST_TAIL = 3
"""Tokens of a tail, however short the sample."""
LEAST_KEYS = 10
"""Keys that a query must see to count."""
RESOLUTION = 1e-4
"""Gaps up to this times the largest activation are ties."""
# In the largest write; the weights and the pass round apart, more so in half precision.
CLOSES = {"float32": 1e-3, "float64": 1e-6}
# Added up over samples: with an axis of heads they would be the largest of what is kept.
BY_HEAD = tuple(f"head {end} {side}" for end in ("top", "bottom") for side in ("plus", "minus"))
TENTHS = 10
# Attention mass below this is none.
_RESOLVED = 1e-30
_POINTS: tuple[Point, ...] = ("resid_pre", "resid_post", "attn_out", "pattern")


class Steps(NamedTuple):
    """Activations of one sample's kept tokens around one block.

    Attributes:
        before: a at the input, from its origin.
        after: a at the output.
        heads: What the attention layer adds along v_out.
        predicted: a at the output as the idealised heads would have it; None where beta is not known.
        path: What heads write along v_out from reading the concept alone; None without weights.
    """

    before: Float[Tensor, "token column"]
    after: Float[Tensor, "token column"]
    heads: Float[Tensor, "token column"]
    predicted: Float[Tensor, "token column"] | None
    path: Float[Tensor, "token column"] | None

    def later(self) -> dict[str, Float[Tensor, "token column"]]:
        """A behind the block: as it is, by the heads' write alone, and as predicted."""
        found = {"layer": self.after, "heads": self.before + self.heads}
        return found if self.predicted is None else found | {"predicted": self.predicted}


def gap_sums(steps: Steps) -> dict[str, Tensor]:
    """Moments and pairs, before against after, with the heads' write alone, and as predicted."""
    found: dict[str, Tensor] = {}
    later = steps.later()
    if steps.path is not None:
        later["path"] = steps.before + steps.path
    # Within the sample, so that an offset of the whole sample is no gap.
    x = _centred(steps.before)
    found["xx"] = x.square().sum(0)
    for name, values in later.items():
        y = _centred(values)
        found[f"xy {name}"], found[f"yy {name}"] = (x * y).sum(0), y.square().sum(0)
        if name in ("layer", "heads"):
            counts = pair_counts(steps.before, values)
            found |= {f"{what} {name}": value for what, value in counts.items()}
    change = _centred(steps.after - steps.before)
    write = _centred(steps.heads)
    found["change"] = change.square().sum(0)
    found["change by heads"] = (change * write).sum(0)
    if steps.path is not None:
        own = _centred(steps.path)
        found["path"], found["path by heads"] = own.square().sum(0), (own * write).sum(0)
        found["heads' write"] = write.square().sum(0)
    return found


def pair_counts(
    before: Float[Tensor, "token column"], after: Float[Tensor, "token column"]
) -> dict[str, Tensor]:
    """Pairs of tokens, those of which the gap grew, and those that changed order."""
    n = len(before)
    # Every unordered pair once.
    rows, columns = torch.tril_indices(n, n, -1, device=before.device)
    gaps, later = before[rows] - before[columns], after[rows] - after[columns]
    scale = torch.maximum(before.abs().amax(0), after.abs().amax(0))
    used = gaps.abs() > RESOLUTION * scale
    return _pair_outcomes(gaps, later, used)


def _pair_outcomes(
    gaps: Float[Tensor, "*pair column"],
    later: Float[Tensor, "*pair column"],
    used: Bool[Tensor, "*pair column"],
) -> dict[str, Tensor]:
    """Pairs compared, grown, shrunk and flipped, over all but the last axis."""
    every = tuple(range(gaps.ndim - 1))
    # The later gap in the sign of the earlier one: below zero where the two changed order.
    same, size = later * gaps.sign(), gaps.abs()
    return {
        "pairs": used.sum(every).double(),
        "grown": (used & (same > size * (1 + RESOLUTION))).sum(every).double(),
        "shrunk": (used & (same < size * (1 - RESOLUTION))).sum(every).double(),
        "flipped": (used & (same < 0)).sum(every).double(),
    }


def integrated(
    before: Float[Tensor, "token column"], gain: Float[Tensor, "token column"]
) -> Float[Tensor, "token column"]:
    """The activations after a layer that multiplies the gap at each a by the gain there.

    The trapezium rule over the sorted tokens of the sample: exact up to the square of the gaps
    between neighbours. The lowest token stays where it is.
    """
    ordered, order = before.sort(dim=0)
    # a' = lowest + integral of the gain over a; ranks are put back to places in the end.
    factor = gain.gather(0, order)
    steps = ordered.diff(dim=0) * (factor[1:] + factor[:-1]) / 2
    grown = torch.cat([ordered[:1], ordered[:1] + steps.cumsum(0)])
    return torch.empty_like(before).scatter(0, order, grown)


def shape_sums(steps: Steps) -> dict[str, Tensor]:
    """Powers for the pooled skewness, and the sample's own L-skewness."""
    found: dict[str, Tensor] = {}
    sides = {"before": steps.before, "after": steps.after}
    if steps.predicted is not None:
        sides["predicted"] = steps.predicted
    for name, values in sides.items():
        x = _centred(values)
        found[f"second {name}"], found[f"third {name}"] = x.square().sum(0), x.pow(3).sum(0)
    for name in ("before", "after"):
        shape = _column_l_skewness(sides[name])
        found[f"l skew {name}"] = shape.nan_to_num(0.0)
        found[f"l skewed {name}"] = shape.isfinite().double()
    found["tokens"] = torch.full_like(found["second before"], len(steps.before))
    return found


def _column_l_skewness(values: Float[Tensor, "token column"]) -> Float[Tensor, " column"]:
    """L-skewness of each column (`sa_plugin.statistics.shape`); NaN for a constant."""
    n = len(values)
    ordered = _centred(values).sort(dim=0).values
    rank = torch.arange(n, dtype=values.dtype, device=values.device)[:, None]
    # Probability-weighted moments by Hosking's unbiased weights; the zeroth is 0, values are centred.
    b1 = (rank * ordered).sum(0) / (n * (n - 1))
    b2 = (rank * (rank - 1) * ordered).sum(0) / (n * (n - 1) * (n - 2))
    scale = 2 * b1
    flat = scale <= 1e-12 * (ordered[-1] - ordered[0])
    return torch.where(flat, torch.nan, (6 * b2 - 6 * b1) / scale)


def tenth_sums(steps: Steps) -> dict[str, Tensor]:
    """Sums by tenth of a, ranked within the sample: `[column, tenth]`."""
    n = len(steps.before)
    # Ranks of equal values follow their place; a tenth holds n / 10 tokens, give or take one.
    rank = steps.before.argsort(dim=0).argsort(dim=0)
    tenth = (rank * TENTHS) // n
    member = torch.nn.functional.one_hot(tenth, TENTHS).to(steps.before)
    found = {"tenth tokens": member.sum(0)}
    for name, values in {"before": steps.before, **steps.later()}.items():
        found[f"tenth {name}"] = torch.einsum("tc,tcq->cq", _centred(values), member)
    return found


def tail_sums(steps: Steps, tail: float, least: int) -> dict[str, Tensor]:
    """Corollary 2 in the sample's top share of tokens, the same tokens before and after."""
    n = len(steps.before)
    size = tail_size(n, tail, least)
    top = steps.before.topk(size, dim=0).indices
    before, after = steps.before.gather(0, top), steps.after.gather(0, top)
    update = steps.heads.gather(0, top)
    # 1 - a / max a needs a positive maximum, before and after.
    defined = (before.amax(0) > 0) & (after.amax(0) > 0)
    found = {"tails": defined.double()}
    for name, values in (("before", before), ("after", after)):
        peak = values.amax(0)
        spread = 1 - values.mean(0) / peak
        variation = values.std(0) / values.mean(0).abs()
        found[f"spread {name}"] = torch.where(defined, spread, 0.0)
        found[f"variation {name}"] = torch.where(defined, variation, 0.0)
    found["update gap tail"] = _mean_gap(update)
    found["update gap all"] = _mean_gap(steps.heads)
    found["update size"] = update.abs().mean(0)
    return found


def tail_size(n: int, tail: float, least: int) -> int:
    """Tokens of a tail: the share, and at least `least`."""
    return min(n, max(least, round(tail * n)))


def _mean_gap(values: Float[Tensor, "token column"]) -> Float[Tensor, " column"]:
    """Mean |x_i - x_j| over pairs of different tokens, by sorting."""
    n = len(values)
    rank = torch.arange(n, dtype=values.dtype, device=values.device)[:, None]
    ordered = values.sort(dim=0).values
    # Sorted, x_k is the larger of a pair k times and the smaller n - 1 - k times.
    return 2 * ((2 * rank - n + 1) * ordered).sum(0) / (n * (n - 1))


def _centred(values: Float[Tensor, "token column"]) -> Float[Tensor, "token column"]:
    return values - values.mean(0)


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


def _tail_masks(
    activations: Float[Tensor, "key column"], visible: Bool[Tensor, "query key"], tail: float
) -> Bool[Tensor, "column query key"]:
    """For each query the top share of the keys it sees: ceil(tail n) of n."""
    # Along each column's own order of keys, the first `size` of those that the query sees.
    order = activations.argsort(dim=0, descending=True).T
    seen = visible.T[order].transpose(1, 2)
    size = (tail * visible.sum(-1)).ceil()
    top = seen & (seen.cumsum(-1) <= size[:, None])
    # Back from ranks to places.
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
        mask = _tail_masks(sign * activations, attention.visible, tail).to(attention.pattern)
        share = mask.sum(-1).T
        by_head = torch.einsum("hqk,cqk->hqc", attention.pattern, mask)
        full = torch.einsum("hqk,cqk->qc", raw, mask) / len(raw)
        for side, queries in (("plus", activations > 0), ("minus", activations < 0)):
            weight = (queries & enough).to(mask)
            name = f"{end} {side}"
            heads = torch.einsum("hqc,qc->ch", by_head, weight)
            # Chance is the share of keys that the top holds: what even attention would give it.
            found[f"head {name}"] = heads
            found[f"mass {name}"] = heads.mean(-1)
            found[f"full {name}"] = (full * weight).sum(0)
            found[f"chance {name}"] = (share / n * weight).sum(0)
            found[f"chance full {name}"] = (share / attention.visible_full.sum(-1)[:, None] * weight).sum(0)
            found[f"queries {side}"] = weight.sum(0)
            if predicted is not None:
                own = predicted.shape[0]
                mine = torch.einsum("chqk,cqk->qc", predicted.to(mask), mask[:own])
                total = torch.zeros_like(found[f"mass {name}"])
                total[:own] = (mine / predicted.shape[1] * weight[:, :own]).sum(0)
                found[f"predicted {name}"] = total
    return found


def prefix_sums(
    before: Float[Tensor, "token column"],
    pattern: Float[Tensor, "head query key"],
    writes: Float[Tensor, "head token column"],
    growth: Float[Tensor, "head own"],
    inverse: Float[Tensor, " token"],
    resolution: float,
) -> dict[str, Tensor]:
    """Theorem 1 for queries that see different keys: every pair on its common prefix.

    `ideal_model.common_prefix_updates`, in torch for all columns, with the prediction
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
    # update[i, j] is what query i gets from the keys up to j alone, its attention renormalised there;
    # cumulative sums over keys give every prefix at once.
    for weights, write, factor in zip(pattern, writes, growth, strict=True):
        mass = weights.cumsum(1)[..., None]
        mass = torch.where(mass > _RESOLVED, mass, torch.nan)
        update += (weights[..., None] * write).cumsum(1) / mass
        mean = (weights[..., None] * centred).cumsum(1) / mass
        square = (weights[..., None] * centred.square()).cumsum(1) / mass
        variance += factor * (square - mean.square()).clamp_min(0.0)
    # Per unit of a of the query, whose logits hold a_i / r_i.
    variance = variance * inverse[:, None, None]
    # The pair (i, j), j before i, on the keys that both see: those up to j.
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
    found = {f"{what} prefix": value for what, value in _pair_outcomes(kept, later, used).items()}
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


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over each sample's tokens, pairs or queries, by name.

    Attributes:
        values: `[sample, layer, column]` by name, and a last axis of tenths for some.
        heads: `[layer, column, head]`, over all samples: attention mass by head.
        measured: Which samples had enough kept tokens.
        closes_to: Largest miss of the heads' writes as the weights say against what was read, in
            the largest write; NaN without weights.
    """

    values: Mapping[str, Float[np.ndarray, "sample layer ..."]]
    heads: Mapping[str, Float[np.ndarray, "layer column head"]]
    measured: np.ndarray
    closes_to: float


def run_pass(
    host: Host,
    layout: Layout,
    bank: ConceptBank,
    directions: Directions,
    paths: Sequence[Path] | None,
    tail: float,
) -> Sums:
    """Run every batch once.

    Raises:
        ValueError: The heads' writes as the weights say are not what the attention layer added.
    """

    def closes(batch: Batch, found: Mapping[Name, np.ndarray]) -> None:
        if "closes" in found:
            _check_closes(host, float(found["closes"].max()))

    sites = {Site(layer, point) for layer in directions.layers for point in _POINTS}
    job = Job(sites, lambda batch: _reducer(host.info, directions, paths, tail, batch), each=closes)
    rule = bank.sinks_on(host.info)
    (kept,) = run_jobs(host, layout, [job], rule, description="theory")
    values = {str(name): array for name, array in kept.samples.items()}
    measured = values.pop("measured")
    closes_to = values.pop("closes", np.zeros(1)).max() if paths is not None else np.nan
    heads = {str(name): total.numpy() for name, total in kept.sums.items()}
    return Sums(values, heads, measured, float(closes_to))


def _reducer(
    info: HostInfo, directions: Directions, paths: Sequence[Path] | None, tail: float, batch: Batch
) -> Reducer:
    mask = batch.inputs.get("attention_mask")
    attended = torch.ones_like(batch.valid) if mask is None else mask.bool().cpu()

    def of_sample(read: Mapping[Site, Tensor], row: int, keep: Bool[Tensor, " token"]) -> dict[str, Tensor]:
        inputs = attended[row].to(keep.device)
        tokens = keep[inputs]
        if int(tokens.sum()) < LEAST_TOKENS:
            return {}
        blocks = []
        for k, layer in enumerate(directions.layers):
            own = {point: read[Site(layer, point)][row] for point in _POINTS}
            path = None if paths is None else paths[k]
            blocks.append(_block(own, inputs, tokens, k, directions, path, tail, info.causal))
        return {name: torch.stack([one[name] for one in blocks]) for name in blocks[0]}

    # One sample and block at a time: each makes tokens^2 x columns numbers.
    return lambda read, keep: _batched([of_sample(read, row, of_row) for row, of_row in enumerate(keep)])


def _batched(rows: Sequence[dict[str, Tensor]]) -> Keeping:
    """Sums of each sample, 0 for those with too few tokens; attention by head over all of them."""
    samples = {"measured": torch.tensor([bool(row) for row in rows])}
    sums: dict[str, Tensor] = {}
    filled = [row for row in rows if row]
    for name, like in filled[0].items() if filled else ():
        if name in BY_HEAD:
            sums[name] = sum((row[name] for row in filled), torch.zeros((), dtype=like.dtype))
        else:
            samples[name] = torch.stack([row.get(name, torch.zeros_like(like)) for row in rows])
    return keeping(sums=sums, samples=samples)


def _block(
    read: Mapping[Point, Tensor],
    inputs: Tensor,
    tokens: Tensor,
    at: int,
    directions: Directions,
    path: Path | None,
    tail: float,
    causal: bool,
) -> dict[str, Tensor]:
    """Everything of one sample in one block."""
    # Products of many tokens are summed: the model's own format would lose them. MPS has no float64.
    wide = torch.float32 if inputs.device.type == "mps" else torch.float64
    before, after, added = (read[p][inputs].to(wide) for p in ("resid_pre", "resid_post", "attn_out"))
    v_in, v_out = (d[at].to(before) for d in (directions.read, directions.write))
    a = _along(before[tokens], v_in, directions.origin_in[at], bool(directions.own_mean[at, 0]))
    b = _along(after[tokens], v_out, directions.origin_out[at], bool(directions.own_mean[at, 1]))
    full = read["pattern"].to(before.dtype)[:, inputs][:, :, inputs]
    attention = attention_of(full, tokens, causal)
    heads = added[tokens] @ v_out
    predicted = None
    found = {
        "norm before": before[tokens].norm(dim=-1).sum(),
        "norm after": after[tokens].norm(dim=-1).sum(),
        "closes": torch.zeros((), dtype=before.dtype, device=before.device),
    }
    after_path = path_write = None
    if path is not None:
        written = apply_norm(path.norm, before)
        writes = torch.einsum("td,hdc->htc", written, path.write.to(before))
        said = torch.einsum("hqk,hkc->qc", full, writes) + path.constant.to(before)
        found["closes"] = _missed(said, added @ v_out)
        inverse = 1 / norm_scale(path.norm, before[tokens])
        # Concepts' columns stand first, so that pairs and keys are predicted for them.
        own = sum(column.role == "concept" for column in directions.columns)
        extra, after_path, path_write, predicted = _by_weights(
            path, a, inverse, writes[:, tokens], attention, own, causal
        )
        found |= extra
    steps = Steps(a, b, heads, after_path, path_write)
    found |= gap_sums(steps) | shape_sums(steps) | tenth_sums(steps)
    found |= tail_sums(steps, tail, LEAST_TAIL) | spread_sums(attention)
    return found | mass_sums(a, attention, tail, predicted)


def _by_weights(
    path: Path,
    a: Float[Tensor, "token column"],
    inverse: Float[Tensor, " token"],
    writes: Float[Tensor, "head token column"],
    attention: Attention,
    own: int,
    causal: bool,
) -> tuple[dict[str, Tensor], Tensor | None, Tensor, Tensor | None]:
    """What needs the heads' weights: the concept's path, its prediction, the common prefix.

    Args:
        path: The block's heads.
        a: Of the kept tokens.
        inverse: 1 / r of the same.
        writes: What each head writes along v_out for a unit of attention on a kept token.
        attention: Of the sample.
        own: How many of the first columns are concepts': only those are predicted.
        causal: Whether the model is.
    """
    scaled = a * inverse[:, None]
    beta, gamma = path.beta.to(a), path.gamma.to(a)
    mean, variance = tilted(attention.pattern, scaled)
    # sum_h gamma_h E_i(a / r): what heads write from reading the concept alone.
    path_write = torch.einsum("hc,hqc->qc", gamma, mean)
    found = {"inverse scale": inverse.sum(), "inverse scale squared": inverse.square().sum()}
    known = bool(beta.isfinite().all())
    first = own if known else 0
    if causal:
        growth = (beta * gamma)[:, :first]
        found |= prefix_sums(a, attention.pattern, writes, growth, inverse, RESOLUTION)
    if not known:
        return found, None, path_write, None
    # T1's factor at each query: 1 + sum_h beta_h gamma_h V_i / r_i.
    gain = 1 + torch.einsum("hc,hqc->qc", beta * gamma, variance) * inverse[:, None]
    found["gain"] = gain.sum(0)
    pattern = predicted_pattern(scaled[:, :first], beta[:, :first], attention.visible)
    return found, integrated(a, gain), path_write, pattern


def _missed(said: Float[Tensor, "every column"], got: Float[Tensor, "every column"]) -> Float[Tensor, ""]:
    """Largest difference in the largest value; 0 where nothing was written."""
    most = got.abs().max()
    missed: Tensor = (said - got).abs().max() / most.clamp_min(1e-30)
    return torch.where(most > 0, missed, 0.0)


def _along(
    resid: Float[Tensor, "token d_model"],
    vectors: Float[Tensor, "d_model column"],
    origin: Float[Tensor, " d_model"],
    own_mean: bool,
) -> Float[Tensor, "token column"]:
    mean = resid.mean(0) if own_mean else origin.to(resid)
    return (resid - mean) @ vectors


def _check_closes(host: Host, missed: float) -> None:
    limit = CLOSES.get(host.info.dtype, 5e-2)
    # Not the other way round: NaN misses too.
    if not missed <= limit:
        raise ValueError(
            f"the heads' writes by {type(host).__name__}.attention_weights miss what the attention "
            f"layers of {host.info.model} added by {missed:.1e} of the largest (limit {limit:g}): "
            "predictions from these weights would be of another model. Run "
            "sa_plugin.check(host), and report the architecture."
        )
