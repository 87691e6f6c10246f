"""The data side of alignment: what heads do with real tokens, from one forward pass a sample.

*Slope.* For head h, query i and the keys j it may see, `log p_ij = logit_ij - log sum_j exp(logit_ij)`,
so with one intercept a query log-attention is the logit. The model of one head and one concept is

    log p_ij = c_i + slope * a_i a_j + b_1 a_j + b_2 |i - j| + b_3 log(1 + |i - j|) + b_4 [i = j]

fitted by least squares over all queries of all samples; a the activations at the block's input, a_i
itself part of c_i. The partial R^2 of the product is the share of what the others leave that it
explains. Everything is a function of sums of products of variables centred over each query's keys,
which samples and batches add up. Adding a constant to all activations changes neither.

*Lift.* Attention on the tokens with the highest activations, beyond their share of the keys: for
each query i with t_i of its n_i keys among the sample's top delta of tokens, 0 < t_i < n_i,

    lift_i = (attention of i on them) / (attention of i on kept tokens) - t_i / n_i

split by the sign of the query's own activation: an aligned head moves attention to the highest
tokens where the query is positive, and to the lowest where it is negative. "whole" is the same with
attention sinks and special tokens left in the denominator and among the keys: where a sink takes
nearly everything it is near `-t_i / n_i` whatever the head does with the rest.

*Share of the update.* With u_t what the head writes along the output direction at token t and U_t
how much the block changes the residual stream along it,

    share = Cov(u, U) / Var(U)  over kept tokens,

which adds up to 1 over all that writes in a pre-norm block. Norms behind attention are frozen at
each token's own scale; in a post_ln block, where they scale the old residual too, shares need not
add up.

What it does not show: anything causal; only the directions know the labels. Attention to what goes
along with the concept looks the same as attention to the concept, and tokens close by resemble each
other and are attended to for being close. A logit that underflowed to probability 0 is taken at the
smallest positive number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from sa_plugin._face import face_methods
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.heads.align_weights import HeadBlock, write_norms
from sa_plugin.host.protocol import Batch, BlockNorms, DescribedHost, Site
from sa_plugin.host.reducers import Keeping, keeping
from sa_plugin.host.weights import apply_norm, norm_scale
from sa_plugin.passes.layout import Layout
from sa_plugin.passes.run import Job, Reducer, run_jobs
from sa_plugin.statistics.bootstrap import Resamples, document_sums
from sa_plugin.statistics.drawn import Drawn, stack


class Mass(NamedTuple):
    """Sums over queries by the sign of their activation (0 positive, 1 negative)."""

    kept: Float[Tensor, "batch head column sign"]
    whole: Float[Tensor, "batch head column sign"]
    queries: Float[Tensor, "batch column sign"]


def top_tokens(
    a: Float[Tensor, "batch token column"], keep: Bool[Tensor, "batch token"], delta: Float[Tensor, " column"]
) -> Bool[Tensor, "batch token column"]:
    """The highest `ceil(delta * n)` of each sample's n kept tokens."""
    n = keep.sum(-1)[:, None, None]
    # Ties go to the earlier token: two stable sorts turn activations into ranks.
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
    # How many of a query's keys are top tokens, kept ones, all: products with the pairs it may see.
    m = seen.float()
    t = m @ chosen
    n_kept, n_all = m @ kept[..., None], m.sum(-1, keepdim=True)
    # Where none or all of the keys are top tokens, attention on them says nothing.
    counted = (t > 0) & (t < n_kept) & keep[..., None]
    by_sign = torch.stack([counted & (a > 0), counted & (a <= 0)], dim=-1).float()
    lift = on_top / on_kept.clamp_min(1e-12) - (t / n_kept.clamp_min(1.0))[:, None]
    whole = on_top - (t / n_all.clamp_min(1.0))[:, None]
    return Mass(
        torch.einsum("bhqu,bqus->bhus", lift, by_sign),
        torch.einsum("bhqu,bqus->bhus", whole, by_sign),
        by_sign.sum(1),
    )


_SMALLEST = 1e-38


class LogitMoments(NamedTuple):
    """Sums of one batch, by sample and column of activations.

    Attributes:
        gram: Products of the five terms: a_i a_j, a_j, distance, log distance, self.
        cross: The terms with log-attention.
        square: Log-attention squared.
    """

    gram: Float[Tensor, "batch column term term"]
    cross: Float[Tensor, "batch head column term"]
    square: Float[Tensor, "batch head"]


def place_terms(distance: Float[Tensor, "batch query key"]) -> Float[Tensor, "place batch query key"]:
    """Distance, its logarithm, and whether query and key are one token."""
    same = torch.eye(distance.shape[-1], device=distance.device).expand_as(distance)
    return torch.stack([distance, distance.log1p(), same])


def logit_moments(
    pattern: Float[Tensor, "batch head query key"],
    a: Float[Tensor, "batch token column"],
    allowed: Bool[Tensor, "batch query key"],
    places: Float[Tensor, "place batch query key"],
) -> LogitMoments:
    """Sums of one batch and block.

    Args:
        pattern: Attention.
        a: Activations along each column's direction, at the block's input.
        allowed: Pairs of kept tokens of which the query may see the key.
        places: From `place_terms`.
    """
    m = allowed.float()
    count = m.sum(-1, keepdim=True).clamp_min(1.0)
    logs = _centred(pattern.clamp_min(_SMALLEST).log(), m[:, None], count[:, None])
    place = _centred(places, m, count)
    # Sums over a query's keys of a_j centred: spread = sum (a_j - mean)^2 for each query.
    mean = m @ a / count
    spread = m @ a.square() - count * mean.square()
    along = torch.einsum("pbqk,bku->pbqu", place, a)
    seen = torch.einsum("bhqk,bku->bhqu", logs, a)
    # Terms 0 and 1 are a_i a_j and a_j, the others places. a_i is constant over a query's keys, so
    # it leaves every sum over them as a factor and no product of pairs is ever formed.
    size = 2 + len(places)
    gram = a.new_zeros(len(a), a.shape[-1], size, size)
    gram[..., 0, 0] = (a.square() * spread).sum(1)
    gram[..., 0, 1] = (a * spread).sum(1)
    gram[..., 1, 1] = spread.sum(1)
    gram[..., 0, 2:] = (a * along).sum(2).permute(1, 2, 0)
    gram[..., 1, 2:] = along.sum(2).permute(1, 2, 0)
    gram[..., 2:, 2:] = torch.einsum("pbqk,rbqk->bpr", place, place)[:, None]
    # Only one half was filled.
    lower = torch.arange(size)[:, None] > torch.arange(size)
    gram = torch.where(lower.to(gram.device), gram.mT, gram)
    with_places = torch.einsum("bhqk,pbqk->bhp", logs, place)
    cross = torch.cat(
        [
            (a[:, None] * seen).sum(2)[..., None],
            seen.sum(2)[..., None],
            with_places[:, :, None].expand(-1, -1, a.shape[-1], -1),
        ],
        dim=-1,
    )
    return LogitMoments(gram, cross, logs.square().sum((-1, -2)))


def _centred(values: Tensor, m: Tensor, count: Tensor) -> Tensor:
    """Less their mean over each query's keys, 0 elsewhere."""
    return (values - (values * m).sum(-1, keepdim=True) / count) * m


class Slope(NamedTuple):
    """What the product of activations does to the logit.

    Attributes:
        slope: Logit for each unit of the product.
        correlation: Partial correlation; its square is the partial R^2.
    """

    slope: Float64[np.ndarray, "*batch head column"]
    correlation: Float64[np.ndarray, "*batch head column"]


def slopes(
    gram: Float[np.ndarray, "*batch column term term"],
    cross: Float[np.ndarray, "*batch head column term"],
    square: Float[np.ndarray, "*batch head"],
) -> Slope:
    """Slope and partial correlation of the first term given the others; NaN where it is constant.

    Args:
        gram: Summed products of the terms.
        cross: Of the terms with log-attention.
        square: Of log-attention with itself.
    """
    gram, cross = gram.astype(np.float64), cross.astype(np.float64)
    size = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    size = np.where(size > 0, size, 1.0)
    scaled = gram / size[..., :, None] / size[..., None, :]
    # A term that is constant (no token sees itself) must not make the system singular.
    scaled = scaled + 1e-9 * np.eye(scaled.shape[-1])
    y = cross / size[..., None, :, :]
    # Frisch-Waugh-Lovell: what the other terms leave of the product, and of log-attention.
    others = np.linalg.inv(scaled[..., 1:, 1:])
    weights = np.einsum("...uk,...ukl->...ul", scaled[..., 0, 1:], others)
    left = scaled[..., 0, 0] - np.einsum("...uk,...uk->...u", weights, scaled[..., 0, 1:])
    own = y[..., 0] - np.einsum("...uk,...huk->...hu", weights, y[..., 1:])
    explained = np.einsum("...huk,...ukl,...hul->...hu", y[..., 1:], others, y[..., 1:])
    rest = square.astype(np.float64)[..., None] - explained
    # The product is a combination of the others (constant activations): it has no slope.
    left = np.where(left > 1e-7, left, np.nan)[..., None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = own / np.sqrt(left * np.where(rest > 0, rest, np.nan))
    return Slope(own / left / size[..., None, :, 0], np.clip(correlation, -1, 1))


@face_methods
@dataclass(frozen=True, eq=False)
class DataPlan:
    """What every batch of the pass does.

    Attributes:
        host, bank: The model, and the sink rule.
        blocks: To measure.
        norms: Of each block.
        v_in: Unit directions at each block's input, concepts first, then permuted-label ones.
        v_out: Unit directions at each block's output, concepts alone.
        mean: Train mean at each block's input.
        delta: Share of a sample's tokens that is its top, by concept.
    """

    host: DescribedHost
    bank: ConceptBank
    blocks: Sequence[HeadBlock]
    norms: Sequence[BlockNorms]
    v_in: Sequence[Float[Tensor, "column d_model"]]
    v_out: Sequence[Float[Tensor, "concept d_model"]]
    mean: Sequence[Float[Tensor, " d_model"]]
    delta: Float[Tensor, " concept"]

    @classmethod
    def of(
        cls,
        host: DescribedHost,
        bank: ConceptBank,
        blocks: Sequence[HeadBlock],
        vectors: Mapping[int, Float[Tensor, "concept d_model"]],
        control: Mapping[int, Float[Tensor, "draw concept d_model"]],
        delta: Float[Tensor, " concept"],
    ) -> DataPlan:
        """Of unit vectors and permuted-label ones by layer of the bank."""
        # Block 0 has no block before it, but the mean of what enters it may be known.
        entry = bank.component_means
        means = [
            entry.embedding if b.index == 0 and entry is not None else bank.token.mean[bank.index(b.source)]
            for b in blocks
        ]
        return cls(
            host,
            bank,
            blocks,
            [host.norms(b.index) for b in blocks],
            [torch.cat([vectors[b.source], control[b.source].flatten(0, 1)]) for b in blocks],
            [vectors[b.index] for b in blocks],
            [mean.float() for mean in means],
            delta,
        )

    @property
    def sites(self) -> set[Site]:
        """Everything the pass reads."""
        sites: set[Site] = set()
        for block, norms in zip(self.blocks, self.norms, strict=True):
            points = ["resid_pre", "resid_post", "pattern", "z"]
            points += ["attn_out", "mlp_out"] if len(write_norms(norms)) > 1 else []
            sites |= {Site(block.index, point) for point in points}  # type: ignore[arg-type]
        return sites


def data_sums(plan: DataPlan, layout: Layout) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Run the samples once.

    Memory: a batch's patterns of every block, and `samples x blocks x heads x concepts x 12`
    floats.

    Args:
        plan: What to measure.
        layout: Of the samples.

    Returns:
        Sums by name: for concepts `[block, sample, ...]`, for the control's directions `[block, ...]`.
    """
    job = Job(plan.sites, lambda batch: _reducer(plan, batch))
    rule = plan.bank.sinks_on(plan.host.info)
    (kept,) = run_jobs(plan.host, layout, [job], rule, description="attention")
    return (
        {str(name): np.moveaxis(array, 1, 0) for name, array in kept.samples.items()},
        {str(name): total.numpy() for name, total in kept.sums.items()},
    )


def _reducer(plan: DataPlan, batch: Batch) -> Reducer:
    attended = batch.inputs.get("attention_mask")
    distance = _token_distance(batch)

    def reduce(read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"]) -> Keeping:
        known = torch.ones_like(batch.valid) if attended is None else attended.bool()
        blocks = [_block_sums(plan, k, read, keep, known, distance) for k in range(len(plan.blocks))]
        own, control = ([block[i] for block in blocks] for i in (0, 1))
        return keeping(
            samples={name: torch.stack([one[name] for one in own], dim=1) for name in own[0]},
            sums={name: torch.stack([one[name] for one in control]) for name in control[0]},
        )

    return reduce


def _block_sums(
    plan: DataPlan,
    k: int,
    read: Mapping[Site, Tensor],
    keep: Bool[Tensor, "batch token"],
    known: Bool[Tensor, "batch token"],
    distance: Float[Tensor, "batch query key"],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sums of one block: of each sample for concepts, over samples for the control's directions."""
    at, device = plan.blocks[k].index, keep.device
    before, pattern = (read[Site(at, p)].float() for p in ("resid_pre", "pattern"))
    n_concepts = len(plan.v_out[k])
    a = (before - plan.mean[k].to(device)) @ plan.v_in[k].to(device).T
    a = a * keep[..., None]
    # A pair that no head attends to is one that the mask hides.
    seen = (pattern > 0).any(1) & known.to(device)[:, None]
    allowed = seen & keep[:, None] & keep[..., None]
    found = logit_moments(pattern, a, allowed, place_terms(distance.to(device)))
    real = a[..., :n_concepts]
    mass = attention_mass(pattern, real, top_tokens(real, keep, plan.delta), keep, seen)
    pairs = pattern.shape[1] * allowed.sum((-1, -2))
    lost = ((pattern <= 0) & allowed[:, None]).sum((1, 2, 3))
    own = {
        "gram": found.gram[:, :n_concepts],
        "cross": found.cross[:, :, :n_concepts],
        "square": found.square,
        **{f"mass {name}": value for name, value in mass._asdict().items()},
        "pairs": torch.stack([lost, pairs], -1).float(),
        "activation": torch.stack([real.sum(1), real.square().sum(1)], -1),
        "tokens": keep.sum(1).float(),
        **_writes(plan, k, read, keep),
    }
    control = LogitMoments(found.gram[:, n_concepts:], found.cross[:, :, n_concepts:], found.square)
    return own, {name: each.sum(0) for name, each in control._asdict().items()}


def _writes(
    plan: DataPlan, k: int, read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"]
) -> dict[str, Tensor]:
    """Sums for the share of the update, and of the norms' scales."""
    block, weight = plan.blocks[k], keep.float()[..., None]
    at, device = block.index, keep.device
    before, after, z = (read[Site(at, p)].float() for p in ("resid_pre", "resid_post", "z"))
    v_out = plan.v_out[k].to(device)
    # W_O onto each direction first: d_head numbers a head and concept in place of d_model a token.
    onto = torch.einsum("hed,ud->heu", block.maps.output.to(device), v_out)
    behind = write_scale(plan, k, read)
    wrote = torch.einsum("bthe,heu->bthu", z, onto) / behind[..., None, None]
    change = ((after - before) @ v_out.T) * weight
    wrote = wrote * weight[..., None]
    reading = norm_scale(block.attention.norm, before)
    return {
        "write": torch.stack([wrote.sum(1), (wrote * change[:, :, None]).sum(1)], -1),
        "change": torch.stack([change.sum(1), change.square().sum(1)], -1),
        "scales": torch.stack([(reading * keep).sum(1), (behind * keep).sum(1)], -1),
    }


def write_scale(plan: DataPlan, k: int, read: Mapping[Site, Tensor]) -> Float[Tensor, "batch token"]:
    """What the norms between the head's write and the block's output divide by."""
    at = plan.blocks[k].index
    before, z = (read[Site(at, p)].float() for p in ("resid_pre", "z"))
    norms = write_norms(plan.norms[k])
    if not norms:
        return torch.ones_like(before[..., 0])
    if len(norms) == 1:
        weight, bias = plan.host.output_projection(at)
        raw = torch.einsum("bthe,hed->btd", z, weight.to(z.device))
        return norm_scale(norms[0], raw if bias is None else raw + bias.to(z.device))
    # A post_ln block norms the stream twice; both scales are each token's own.
    added = before + read[Site(at, "attn_out")].float()
    first = norm_scale(norms[0], added)
    middle = apply_norm(norms[0], added) + read[Site(at, "mlp_out")].float()
    return first * norm_scale(norms[1], middle)


def _token_distance(batch: Batch) -> Float[Tensor, "batch query key"]:
    """Tokens between two words; for images the distance of two patches, in patches."""
    if batch.offsets.shape[-1] == 4:
        box = batch.offsets.float()
        centre = (box[..., :2] + box[..., 2:]) / 2
        height = (box[..., 2] - box[..., 0]).amax(-1).clamp_min(1.0)
        return torch.cdist(centre, centre) / height[:, None, None]
    place = torch.arange(batch.valid.shape[1], dtype=torch.float32)
    return (place[:, None] - place).abs().expand(len(batch.valid), -1, -1)


_MOMENTS = LogitMoments._fields
_SIGNS = ("positive", "negative")
_KEYS = ("kept", "whole")


@dataclass(frozen=True, eq=False)
class DataSide:
    """What heads do with real tokens; arrays and axes `[block, head, concept]`, see the module.

    Attributes:
        slope: Logit for one standard deviation of each token's activation.
        correlation: Partial correlation of logit and product; squared it is the partial R^2.
        p_control: Share of permuted-label directions with at least this correlation.
        lift: Attention on the top tokens beyond chance, by which keys count ("kept" without sinks
            and special tokens, "whole" with them) and by the query's sign.
        write_share: Share of the block's update along the concept that the head wrote.
        deviation: Standard deviation of the activations, `[block, concept]`.
        scales: Mean scale of the norm before, and of the norms behind attention, `[block, 2]`.
        underflow: Share of logits that underflowed.
        n_tokens: Kept tokens.
    """

    slope: Drawn
    correlation: Float64[np.ndarray, "block head concept"]
    p_control: Float64[np.ndarray, "block head concept"]
    lift: Drawn
    write_share: Drawn
    deviation: Float64[np.ndarray, "block concept"]
    scales: Float64[np.ndarray, "block 2"]
    underflow: float
    n_tokens: int


def data_side(
    found: Mapping[str, np.ndarray],
    control: Mapping[str, np.ndarray],
    resamples: Resamples,
    n_control: int,
    blocks: Sequence[int],
    concepts: Sequence[str],
) -> DataSide:
    """Estimates and intervals, block by block.

    Args:
        found: From `data_sums`, by sample.
        control: The same of the control's directions.
        resamples: Columns of document weights, over the samples of the pass.
        n_control: Permuted-label directions a concept.
        blocks: Their indices.
        concepts: Their names.
    """
    n = found["tokens"][0].astype(np.float64).sum()
    total = found["activation"].astype(np.float64).sum(1)
    mean = total[..., 0] / n
    deviation = np.sqrt(np.maximum(total[..., 1] / n - mean**2, 0.0))
    carried = resamples.rows(found["tokens"][0].astype(np.float64))
    measures: dict[str, dict[int, Drawn]] = {"slope": {}, "share": {}, "lift": {}}
    for k, block in enumerate(blocks):
        for name, values in _measures_block(found, k, resamples, deviation[k]).items():
            heads = {"head": tuple(range(values.shape[-3])), "concept": tuple(concepts)}
            axes = {"keys": _KEYS, "sign": _SIGNS, **heads} if name == "lift" else heads
            measures[name][block] = resamples.drawn(values, "mean", carried, **axes)
    own = slopes(*(found[name].sum(1) for name in _MOMENTS)).correlation
    lost, pairs = found["pairs"].astype(np.float64).sum((0, 1))
    return DataSide(
        stack(measures["slope"], "block"),
        own,
        _beside_control(own, control, n_control),
        stack(measures["lift"], "block"),
        stack(measures["share"], "block"),
        deviation,
        found["scales"].astype(np.float64).sum(1) / n,
        float(lost / pairs) if pairs else 0.0,
        int(n),
    )


def _beside_control(
    own: Float64[np.ndarray, "block head concept"], sums: Mapping[str, np.ndarray], n_control: int
) -> Float64[np.ndarray, "block head concept"]:
    """`(1 + #{control >= own}) / (1 + n_control)`; columns of the control are draw by draw."""
    control = slopes(*(sums[name] for name in _MOMENTS)).correlation
    by_draw = control.reshape(*control.shape[:2], n_control, own.shape[-1])
    reached = (by_draw >= own[:, :, None]).sum(2)
    return np.where(np.isnan(own), np.nan, (1.0 + reached) / (1 + n_control))


def _measures_block(
    found: Mapping[str, np.ndarray], k: int, resamples: Resamples, deviation: Float64[np.ndarray, " concept"]
) -> dict[str, Float64[np.ndarray, "*by head concept column"]]:
    """Every statistic of one block in every column; column 0 is the data as they are."""
    names = (*_MOMENTS, "mass kept", "mass whole", "mass queries", "write", "change", "tokens")
    drawn = {name: _resampled(found[name][k], resamples) for name in names}
    fitted = slopes(*(drawn[name] for name in _MOMENTS))
    queries = drawn["mass queries"][:, None]
    # Signs are the last axis of the sums; without a query of a sign there is no lift.
    lift = [drawn[f"mass {keys}"] / np.where(queries > 0, queries, np.nan) for keys in _KEYS]
    return {
        "slope": np.moveaxis(fitted.slope * deviation**2, 0, -1),
        "share": np.moveaxis(_share(drawn), 0, -1),
        "lift": np.moveaxis(np.stack(lift), (1, 4), (-1, 1)),
    }


def _share(drawn: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "draw head concept"]:
    n = drawn["tokens"][:, None]
    wrote, together = drawn["write"][..., 0], drawn["write"][..., 1]
    change, square = drawn["change"][..., 0], drawn["change"][..., 1]
    # Both over the same tokens, so n cancels.
    covariance = together - wrote * (change / n)[:, None]
    variance = (square - change**2 / n)[:, None]
    return np.asarray(covariance / np.where(variance > 0, variance, np.nan))


def _resampled(
    values: Float[np.ndarray, "sample ..."], resamples: Resamples
) -> Float64[np.ndarray, "draw ..."]:
    by_document = document_sums(np.moveaxis(values.astype(np.float64), 0, -1), resamples)
    return np.moveaxis(by_document @ resamples.weights.T.astype(np.float64), -1, 0)
