"""The one pass of a ledger: terms summed over each sample's token groups, batch by batch.

Per-token terms live as long as a batch. What stays is `[sample, group, component, column]`, the
weighted sums from which every mean and every document-level interval follows. With k_n
SuperActivators among the T_n kept tokens of sample n:

| group | tokens | weight of each |
|---|---|---|
| `tail` | SuperActivators: score at or above the threshold | 1 |
| `same_samples` | the other tokens of a sample that has some | k_n / (T_n - k_n) |
| `in_concept_rest` | labelled with the concept, no SuperActivators | 1 |
| `strongest_out_of_concept` | the highest-scoring token of each negative sample | 1 |
| `out_of_concept` | every token of negative samples | 1 |
| `in_concept` | labelled with the concept | 1 |

A sample that is all tail has no other tokens and enters neither of the first two.

The permuted-label control: what a lift owes to choosing tokens by the sum that is decomposed.

Tokens chosen for a high total give every component that varies a positive expected share, whatever
the vector. The control repeats the choice with the same estimator's vectors for labels permuted
across samples: the tail of each draw are its own highest-scoring tokens of the split, as many as
the concept has SuperActivators there (all tokens that tie with the last are in). They are compared
with the other tokens of their samples, with in-concept tokens outside the draw's tail, and with the
token of each negative sample that the draw scores highest; in-concept and negative go by the true
labels. Control lifts are in the units of the concept's own score: a permuted vector is given the
concept vector's length.

The mean over draws counts every chosen token of every draw once. How much the draws differ from one
another is the measure of chance; the intervals over documents hold the permuted vectors fixed.

Which tokens a draw chooses is known only when all are scored, so the control costs one pass of
scores before the pass of the ledger.

From sums over token groups to lifts, contrasts and shares with document-level intervals.

With k_n SuperActivators among the T_n kept tokens of sample n, and m(.) means of a term:

- lift = sum_n k_n (m(tail of n) - m(other tokens of n)) / sum_n k_n: every SuperActivator against
  the other tokens of its own sample. A sample that is all tail, or has none, does not enter.
- in_concept_lift = the same tail - in-concept tokens that are no SuperActivators.
- strongest_lift = the same tail - the highest-scoring token of each negative sample.
- control (in_concept_control, strongest_control) = the same for vectors of permuted labels with
  their own tails (`control.py`), over all draws; excess = lift - control.
- contrast = mean over in-concept tokens - mean over tokens of negative samples. It selects tokens
  by labels, not by the sum it decomposes; heads ranked by it are selected all the same.
- share of a kind of component = its terms' part of the total, the lift (contrast) of the score.

Intervals are percentile intervals over resampled source documents, all quantities from the same
draws; they are conditional on the fitted vectors and thresholds, and NaN where a mean rests on one
document, whose resamples would all be alike. A share is unstable where its total is small, and may
be negative or exceed 1.

What this does not show. A lift alone is no evidence for a component: tokens chosen by a sum lift
every part of it that varies. The interval of the excess resamples documents with the permuted
vectors held fixed; how far the draws lie apart (`control_by_draw`) is what chance does, and a lift
beyond all D draws has p = 1 / (D + 1) at best, before any correction for the number of heads.
With one draw the control is a scale of what selection gives, and no test: two vectors that both
mean nothing differ by such an excess too. Heads ranked on the split that is shown are large partly
by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.sample import Sample
from sa_plugin.heads.decompose import (
    Closure,
    Decomposition,
    Plan,
    Residue,
    Scored,
    Terms,
    check_closure,
    measure,
)
from sa_plugin.heads.norms import KINDS, Component, ComponentKind
from sa_plugin.host.protocol import Batch, Host, Site
from sa_plugin.host.reducers import Parts, keeping
from sa_plugin.passes.layout import Layout
from sa_plugin.passes.run import Job, Keep, Kept, Name, Sinks, run, sink_rule
from sa_plugin.statistics.bootstrap import Resamples, document_sums
from sa_plugin.statistics.drawn import percentile_bounds

GROUPS = (
    "tail",
    "same_samples",
    "in_concept_rest",
    "strongest_out_of_concept",
    "out_of_concept",
    "in_concept",
)
# The groups whose difference from the tail has a control; they come first.
LIFTED = 4
Tail = Sequence[Bool[np.ndarray, "_ _"]]


@dataclass(frozen=True, eq=False)
class Asked:
    """The samples of a ledger and what is known of their tokens.

    Attributes:
        samples: The samples.
        layout: Where their tokens are.
        bank: For the sink rule.
        labels: Token labels of each column's concept.
        positive: Sample labels of each column's concept.
        tail: The tail, one mask over each sample's kept tokens; else it is from thresholds.
    """

    samples: Sequence[Sample]
    layout: Layout
    bank: ConceptBank
    labels: Bool[np.ndarray, "row column"]
    positive: Bool[np.ndarray, "sample column"]
    tail: Tail | None

    def sinks(self, host: Host) -> Sinks:
        """How tokens are judged."""
        return sink_rule(host.info, self.bank.sink_layers, self.bank.origin.sinks)

    def known(self, batch: Batch) -> Known:
        """What is known of a batch's tokens."""
        inside = torch.zeros(*batch.valid.shape, self.labels.shape[1], dtype=torch.bool)
        inside[batch.valid] = torch.from_numpy(self.labels[self.layout.rows(batch)])
        rows = batch.rows.numpy()
        given = None if self.tail is None else [self.tail[n] for n in rows]
        return Known(inside, torch.from_numpy(~self.positive[rows]), given)


@dataclass(frozen=True, eq=False)
class Known:
    """Labels of a batch, and its tail where that is given.

    Attributes:
        inside: Tokens labelled with each column's concept.
        negative: Samples without it.
        tail: As in `Asked`.
    """

    inside: Bool[Tensor, "batch token column"]
    negative: Bool[Tensor, "batch column"]
    tail: Sequence[np.ndarray] | None


@dataclass(frozen=True, eq=False)
class GroupSums:
    """Weighted sums of terms over token groups.

    Attributes:
        values: Scale 0 is the score, scale 1 the plain dot product (cosine only).
        weights: Summed weights of each group.
        n_tail: SuperActivators, those of samples that are all tail included.
        residue: The largest residue met, relative to the summed sizes of its terms.
        closes_to: The largest residue met, in the unit of the score.
        n_tokens: Kept tokens.
    """

    values: Float[np.ndarray, "scale sample group component column"]
    weights: Float[np.ndarray, "sample group column"]
    n_tail: Int[np.ndarray, " column"]
    residue: float
    closes_to: float
    n_tokens: int


def sum_groups(
    host: Host,
    asked: Asked,
    plan: Decomposition,
    also: Sequence[Job] = (),
    *,
    description: str = "head ledger",
) -> tuple[GroupSums, tuple[Kept, ...]]:
    """Run every batch once.

    Args:
        host: An attached model.
        asked: The samples.
        plan: What to decompose, and how.
        also: What else is kept of the same pass.
        description: Of the bar.

    Raises:
        LedgerError: A token's terms do not add up to its score.
        ValueError: A mask of the tail has another length than its sample's kept tokens.
    """

    def reducer(batch: Batch) -> Keep:
        known = asked.known(batch)
        return lambda read, keep: _reduce(plan, read, keep, known)

    def closes(batch: Batch, found: Mapping[Name, np.ndarray]) -> None:
        worst = Residue(*(torch.from_numpy(found[name]) for name in Residue._fields))
        check_closure(host, plan.target, batch, worst, [asked.samples[k].id for k in batch.rows.tolist()])

    job = Job(plan.sites, reducer, each=closes)
    sinks = asked.sinks(host)
    own, *others = run(host, asked.layout, [job, *also], sinks, description=description)
    found = own.samples
    return GroupSums(
        # The scale is no axis of samples, so it travels behind them.
        np.moveaxis(found["sums"], 1, 0),
        found["weights"],
        own.sums["n tail"].numpy(),
        float(found["relative"].max()),
        float(found["largest"].max()),
        int(own.keep.sum()),
    ), tuple(others)


def _reduce(
    plan: Decomposition, read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"], known: Known
) -> Parts:
    scored = measure(plan.target, read)
    tail = find_tail(scored, thresholds(plan), keep, known)
    weight = group_weights(scored, tail, keep, known)
    closure = Closure(scored)
    sums = term_sums(plan.terms(read), scored, keep, weight, plan.target.cosine, closure)
    return keeping(
        sums={"n tail": tail.sum((0, 1))},
        samples={
            "sums": sums.transpose(0, 1),
            "weights": weight.sum(1).transpose(1, 2),
            **closure.residue(keep)._asdict(),
        },
    )


def thresholds(plan: Decomposition) -> Float[Tensor, " column"]:
    """The threshold of each column."""
    return torch.tensor([c.threshold for c in plan.target.columns], dtype=torch.float64)


def term_sums(
    pieces: Iterator[Terms],
    scored: Scored,
    keep: Bool[Tensor, "batch token"],
    weight: Float[Tensor, "batch token column group"],
    cosine: bool,
    closure: Closure | None = None,
) -> Float[Tensor, "scale batch group component column"]:
    """Sums of terms over groups, for the score and (cosine only) the plain dot product."""
    divisor = scored.divisor.masked_fill(~keep[..., None], 1.0)[..., None]
    scales = torch.stack([weight / divisor, weight][: 1 + cosine])
    sums = []
    for terms, mean in pieces:
        if closure is not None:
            closure.add(terms, mean)
        terms = terms.masked_fill(~keep[..., None, None], 0.0)
        sums.append(torch.einsum("btnc,sbtcg->sbgnc", terms, scales))
    return torch.cat(sums, dim=3)


def find_tail(
    scored: Scored, threshold: Float[Tensor, " column"], keep: Bool[Tensor, "batch token"], known: Known
) -> Bool[Tensor, "batch token column"]:
    """SuperActivators, from thresholds or as given."""
    if known.tail is not None:
        return _given_tail(known.tail, keep, scored.score.shape[-1])
    return keep[..., None] & (scored.score.double() >= threshold.to(keep.device))


def group_weights(
    scored: Scored, tail: Bool[Tensor, "batch token column"], keep: Bool[Tensor, "batch token"], known: Known
) -> Float[Tensor, "batch token column group"]:
    """Weight of each token in each of `GROUPS`."""
    every = keep[..., None].expand_as(tail)
    n_tail = tail.sum(1, keepdim=True).float()
    n_others = every.sum(1, keepdim=True) - n_tail
    inside = known.inside.to(keep.device) & every
    outside = known.negative.to(keep.device)[:, None] & every
    best = scored.score.masked_fill(~every, -torch.inf).argmax(dim=1, keepdim=True)
    strongest = torch.zeros_like(tail).scatter(1, best, True) & outside
    groups = (
        tail & (n_others > 0),
        (every & ~tail) * (n_tail / n_others.clamp_min(1)),
        inside & ~tail,
        strongest,
        outside,
        inside,
    )
    return torch.stack([one.float() for one in groups], dim=-1)


def _given_tail(
    given: Sequence[np.ndarray], keep: Bool[Tensor, "batch token"], n_columns: int
) -> Bool[Tensor, "batch token column"]:
    tail = torch.zeros(*keep.shape, n_columns, dtype=torch.bool, device=keep.device)
    for row, mask in enumerate(given):
        n = int(keep[row].sum())
        if mask.shape != (n, n_columns):
            raise ValueError(
                f"a mask of `tail` has shape {mask.shape}, its sample has {n} kept tokens and "
                f"{n_columns} columns are decomposed: give one [token, concept] mask a sample, "
                "over kept tokens in the order of the text (ScoreTable.tokens holds them)."
            )
        tail[row, keep[row]] = torch.from_numpy(np.asarray(mask, dtype=bool)).to(keep.device)
    return tail


@dataclass(frozen=True, eq=False)
class ControlSums:
    """Sums of the draws' terms over their own groups, the first `LIFTED` of `GROUPS`.

    Attributes:
        values, weights: Over all draws, by sample; scales as in `GroupSums`.
        draw_values, draw_weights: Over all samples, by draw.
    """

    values: Float[np.ndarray, "scale sample group component column"]
    weights: Float[np.ndarray, "sample group column"]
    draw_values: Float[np.ndarray, "scale draw group component column"]
    draw_weights: Float[np.ndarray, "draw group column"]


def tail_cuts(
    host: Host, asked: Asked, plan: Plan, draws: Sequence[Plan]
) -> Float[np.ndarray, "draw column"]:
    """The score that as many tokens reach, under each draw, as the concept has SuperActivators.

    Costs one forward pass a sample. A concept without SuperActivators gets +inf.
    """
    cuts = thresholds(plan)

    def reducer(batch: Batch) -> Keep:
        known = asked.known(batch)

        def reduce(read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"]) -> Parts:
            tail = find_tail(measure(plan.target, read), cuts, keep, known)
            null = torch.stack([measure(draw.target, read).score for draw in draws], dim=2)
            return keeping(
                sums={"n tail": tail.sum((0, 1))}, rows={"null": null[batch.valid.to(keep.device)]}
            )

        return reduce

    job = Job(plan.target.sites, reducer)
    sinks = asked.sinks(host)
    (found,) = run(host, asked.layout, [job], sinks, description="control scores")
    return _cuts(found.rows["null"], found.sums["n tail"].numpy())


def _cuts(
    scores: Float[np.ndarray, "token draw column"], n_tail: Int[np.ndarray, " column"]
) -> Float[np.ndarray, "draw column"]:
    out = np.full(scores.shape[1:], np.inf)
    for k, n in enumerate(n_tail.tolist()):
        for draw in range(scores.shape[1]):
            if n:
                column = np.asarray(scores[:, draw, k])
                out[draw, k] = np.partition(column, len(column) - n)[len(column) - n]
    return out


class ControlPass:
    """What the control needs of the ledger's own pass.

    Args:
        asked: The samples.
        plans: One a draw.
        cuts: From `tail_cuts`.
        lengths: Norm of each concept's vector.
    """

    def __init__(
        self,
        asked: Asked,
        plans: Sequence[Plan],
        cuts: Float[np.ndarray, "draw column"],
        lengths: Float[Tensor, " column"],
    ) -> None:
        self.asked, self.plans = asked, plans
        self.cuts = torch.from_numpy(cuts)
        self.factors = [self._factor(plan, lengths) for plan in plans]

    @staticmethod
    def _factor(plan: Plan, lengths: Float[Tensor, " column"]) -> Float[Tensor, "scale 1 1 1 column"]:
        # A dot score grows with its vector's length, which for a permuted-label vector means
        # nothing; a cosine does not, but its projection does.
        longer = lengths / plan.target.lengths.clamp_min(1e-30)
        scales = [torch.ones_like(longer), longer] if plan.target.cosine else [longer]
        return torch.stack(scales)[:, None, None, None]

    @property
    def job(self) -> Job:
        """For `passes.run`."""

        def reducer(batch: Batch) -> Keep:
            known = self.asked.known(batch)
            return lambda read, keep: self._reduce(read, keep, known)

        return Job({site for plan in self.plans for site in plan.sites}, reducer)

    def _reduce(self, read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"], known: Known) -> Parts:
        """Sums of a batch: over draws by sample, and over its samples by draw."""
        known = Known(known.inside, known.negative, None)
        scales = self.plans[0].frozen.scales(read)
        pooled: Tensor | None = None
        pooled_weight, by_draw, by_draw_weight = torch.zeros(()), [], []
        for plan, cut, factor in zip(self.plans, self.cuts, self.factors, strict=True):
            scored = measure(plan.target, read)
            tail = find_tail(scored, cut, keep, known)
            weight = group_weights(scored, tail, keep, known)[..., :LIFTED]
            pieces = plan.terms(read, scales)
            sums = term_sums(pieces, scored, keep, weight, plan.target.cosine)
            sums = sums * factor.to(keep.device)
            weights = weight.sum(1).transpose(1, 2)
            pooled = sums if pooled is None else pooled + sums
            pooled_weight = pooled_weight.to(keep.device) + weights
            by_draw.append(sums.sum(1))
            by_draw_weight.append(weights.sum(0))
        assert pooled is not None
        return keeping(
            sums={"values": torch.stack(by_draw, dim=1), "weights": torch.stack(by_draw_weight)},
            samples={"values": pooled.transpose(0, 1), "weights": pooled_weight},
        )

    @staticmethod
    def result(kept: Kept) -> ControlSums:
        """The sums."""
        return ControlSums(
            np.moveaxis(kept.samples["values"], 1, 0),
            kept.samples["weights"],
            kept.sums["values"].numpy(),
            kept.sums["weights"].numpy(),
        )


MEANS = ("tail", "same_samples", "in_concept_rest", "out_of_concept", "strongest_out_of_concept")
# A lift's name before "lift", "control" and "excess", and what the tail is compared with.
AGAINST = {"": "same_samples", "in_concept_": "in_concept_rest", "strongest_": "strongest_out_of_concept"}


class Estimate(NamedTuple):
    """Values with the ends of their 95 % intervals."""

    value: Float[np.ndarray, "*what"]
    low: Float[np.ndarray, "*what"]
    high: Float[np.ndarray, "*what"]


@dataclass(frozen=True, eq=False)
class Effect:
    """A difference of two means of the score, by component.

    Attributes:
        terms: `[component, column]`.
        total: `[column]`; the difference of the score itself.
        shares: `[kind, column]`, kinds as in `components.KINDS` (a waterfall's: `STEP_KINDS`); they
            add up to 1.
        blocks: `[block, column]`; everything a block wrote.
        n_tokens: Tokens that were chosen, by column.
    """

    terms: Estimate
    total: Estimate
    shares: Estimate
    blocks: Estimate
    n_tokens: Int[np.ndarray, "*column"]


@dataclass(frozen=True, eq=False)
class Mean:
    """A mean of terms over a group of tokens, with its values in the resamples.

    Attributes:
        value: Over all samples; NaN over none.
        drawn: Over the samples of each resample; NaN where it has none, or only one document ever
            has any.
        weight: Tokens, weighted.
    """

    value: Float[np.ndarray, " component"]
    drawn: Float[np.ndarray, "component draw"]
    weight: float


def weighted_mean(
    numerator: Float[np.ndarray, "sample component"],
    weight: Float[np.ndarray, " sample"],
    resamples: Resamples,
    factor: float = 1.0,
) -> Mean:
    """`factor * sum(numerator) / sum(weight)` over samples."""
    taken = resamples.weights.T.astype(np.float64)
    sums = document_sums(numerator.T.astype(np.float64), resamples)
    weights = document_sums(weight.astype(np.float64), resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = factor * sums.sum(1) / weights.sum()
        drawn = factor * (sums @ taken) / (weights @ taken)
    if (weights > 0).sum() < 2:
        drawn = np.full(drawn.shape, np.nan)
    return Mean(np.asarray(value), np.asarray(drawn), float(weight.sum()))


def share_excluding_zero(effect: Effect, cells: Bool[np.ndarray, "component column"]) -> tuple[float, int]:
    """Share of some cells whose interval excludes zero, and the number with an interval.

    The share is NaN over no cell.
    """
    low, high = effect.terms.low[cells], effect.terms.high[cells]
    known = np.isfinite(low) & np.isfinite(high)
    n = int(known.sum())
    outside = int(((low > 0) | (high < 0))[known].sum())
    return (outside / n if n else float("nan")), n


def effects_of(
    sums: GroupSums,
    control: ControlSums | None,
    lengths: Float[np.ndarray, " column"],
    components: Sequence[Component],
    resamples: Resamples,
    *,
    scale: int,
    tail: bool,
    kinds: Sequence[ComponentKind] = KINDS,
) -> tuple[dict[str, Effect], dict[str, Float[np.ndarray, "component column"]]]:
    """Lifts, controls, excesses and contrast of every column, and the means by group.

    Args:
        sums: Of the pass.
        control: Of the permuted-label vectors.
        lengths: Norm of each column's vector.
        components: The terms.
        resamples: Of the samples' documents.
        scale: 0 for the score, 1 for the projection on the unit vector.
        tail: Whether there are SuperActivators to speak of.
        kinds: Kinds of component that shares are of.

    Returns:
        Effects by name ("control" and "excess" only with permuted-label vectors, "contrast" alone
        without a tail), and means by the names of `MEANS`.
    """
    by_kind, by_block = _sums_over(components, kinds)
    columns: list[dict[str, Effect]] = []
    means: list[dict[str, np.ndarray]] = []
    for k in range(len(lengths)):
        unit = 1 / float(lengths[k]) if scale else 1.0
        found = _means(sums.values[scale, ..., k], sums.weights[..., k], resamples, unit)
        null: Mapping[str, Mean] = {}
        if control is not None:
            null = _means(control.values[scale, ..., k], control.weights[..., k], resamples, unit)
        parts = _differences(found, null, tail)
        columns.append({name: _effect(p, by_kind, by_block) for name, p in parts.items()})
        means.append({name: found[name].value for name in MEANS})
    joined = {name: _join([column[name] for column in columns]) for name in columns[0]}
    return joined, {name: np.stack([one[name] for one in means], axis=-1) for name in MEANS}


def control_by_draw(
    control: ControlSums, lengths: Float[np.ndarray, " column"], *, scale: int
) -> dict[str, Float[np.ndarray, "draw component column"]]:
    """The control of each permutation by itself, by the names of effects."""
    unit = 1 / lengths if scale else np.ones_like(lengths)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = unit * control.draw_values[scale] / control.draw_weights[:, :, None]
    at = {name: k for k, name in enumerate(GROUPS)}
    return {f"{name}control": means[:, at["tail"]] - means[:, at[other]] for name, other in AGAINST.items()}


def _means(
    values: Float[np.ndarray, "sample group component"],
    weights: Float[np.ndarray, "sample group"],
    resamples: Resamples,
    unit: float,
) -> dict[str, Mean]:
    return {
        GROUPS[g]: weighted_mean(values[:, g], weights[:, g], resamples, unit)
        for g in range(weights.shape[1])
    }


def _differences(
    found: Mapping[str, Mean], null: Mapping[str, Mean], tail: bool
) -> dict[str, list[tuple[Mean, int]]]:
    """Every effect as signed means."""
    parts = {"contrast": [(found["in_concept"], 1), (found["out_of_concept"], -1)]}
    for name, other in AGAINST.items() if tail else ():
        lift = [(found["tail"], 1), (found[other], -1)]
        parts[f"{name}lift"] = lift
        if null:
            parts[f"{name}control"] = [(null["tail"], 1), (null[other], -1)]
            parts[f"{name}excess"] = [*lift, (null["tail"], -1), (null[other], 1)]
    return parts


def _sums_over(
    components: Sequence[Component], kinds: Sequence[ComponentKind]
) -> tuple[Float[np.ndarray, "kind component"], Float[np.ndarray, "block component"]]:
    n_blocks = 1 + max((c.block for c in components if c.block is not None), default=-1)
    of_kind = np.array([[c.kind == kind for c in components] for kind in kinds], dtype=float)
    blocks = np.array([[c.block == b for c in components] for b in range(n_blocks)], dtype=float)
    return of_kind, blocks.reshape(n_blocks, len(components))


def _effect(parts: Sequence[tuple[Mean, int]], kinds: np.ndarray, blocks: np.ndarray) -> Effect:
    value = np.sum([sign * part.value for part, sign in parts], axis=0)
    drawn = np.sum([sign * part.drawn for part, sign in parts], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share, drawn_share = kinds @ value / value.sum(), kinds @ drawn / drawn.sum(0)
    return Effect(
        Estimate(value, *percentile_bounds(drawn)),
        Estimate(value.sum(), *(end[0] for end in percentile_bounds(drawn.sum(0)[None]))),
        Estimate(share, *percentile_bounds(drawn_share)),
        Estimate(blocks @ value, *percentile_bounds(blocks @ drawn)),
        np.asarray(round(parts[0][0].weight)),
    )


def _join(columns: Sequence[Effect]) -> Effect:
    def stack(parts: Sequence[Estimate]) -> Estimate:
        return Estimate(*(np.stack(one, axis=-1) for one in zip(*parts, strict=True)))

    return Effect(
        stack([e.terms for e in columns]),
        stack([e.total for e in columns]),
        stack([e.shares for e in columns]),
        stack([e.blocks for e in columns]),
        np.stack([e.n_tokens for e in columns]),
    )
