"""From terms of tokens to lifts: sums over token groups, their permuted-label control, and intervals.

Per-token terms live as long as a batch. What stays of a pass is `[sample, group, component, column]`,
the weighted sums from which every mean and every document-level interval follows. With k_n
SuperActivators among the T_n kept tokens of sample n:

| group | tokens | weight of each |
|---|---|---|
| `tail` | SuperActivators: score at or above the threshold | 1 |
| `same_samples` | the other tokens of a sample that has some | k_n / (T_n - k_n) |
| `in_concept_rest` | labelled with the concept, no SuperActivators | 1 |
| `strongest_out_of_concept` | the highest-scoring token of each negative sample | 1 |
| `out_of_concept` | every token of negative samples | 1 |
| `in_concept` | labelled with the concept | 1 |

A sample that is all tail has no other tokens and enters neither of the first two. With m(.) means of
a term, an *effect* is a difference of two:

- lift = sum_n k_n (m(tail of n) - m(other tokens of n)) / sum_n k_n: every SuperActivator against
  the other tokens of its own sample.
- in_concept_lift = the same tail - in-concept tokens that are no SuperActivators.
- strongest_lift = the same tail - the highest-scoring token of each negative sample.
- control (in_concept_control, strongest_control) = the same for vectors of permuted labels with
  their own tails, over all draws; excess = lift - control.
- contrast = mean over in-concept tokens - mean over tokens of negative samples. It selects tokens
  by labels, not by the sum it decomposes; heads ranked by it are selected all the same.
- share of a kind of component = its terms' part of the total, the lift (contrast) of the score.

The control is what a lift owes to choosing tokens by the sum that is decomposed. Tokens chosen for a
high total give every component that varies a positive expected share, whatever the vector. The
control repeats the choice with the same estimator's vectors for labels permuted across samples: the
tail of each draw are its own highest-scoring tokens of the split, as many as the concept has
SuperActivators there (all tokens that tie with the last are in), compared with the same groups;
in-concept and negative go by the true labels. Control lifts are in the units of the concept's own
score: a permuted vector is given the concept vector's length. Which tokens a draw chooses is known
only when all are scored, so the control costs one pass of scores before the pass of the ledger.

Intervals are over source documents, all quantities in the same columns; they are conditional on the
fitted vectors and thresholds. Both groups of an effect carry it: documents that have tokens of the one
that fewer have. A share is unstable where its total is small, and may be negative or exceed 1.

What this does not show. A lift alone is no evidence for a component: tokens chosen by a sum lift
every part of it that varies. The interval of the excess is over documents with the permuted
vectors held fixed; how far the draws lie apart (`control_by_draw`) is what chance does, and a lift
beyond all D draws has p = 1 / (D + 1) at best, before any correction for the number of heads.
With one draw the control is a scale of what selection gives, and no test: two vectors that both
mean nothing differ by such an excess too. Heads ranked on the split that is shown are large partly
by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.heads.columns import Asked, BatchLabels, Component, ComponentKind
from sa_plugin.heads.decompose import (
    Closure,
    Decomposition,
    LedgerPlan,
    Residue,
    Scored,
    Terms,
    check_closure,
    score_batch,
)
from sa_plugin.host.protocol import Batch, Host, Site
from sa_plugin.host.reducers import Keeping, keeping
from sa_plugin.passes.run import Job, Kept, Name, Reducer, run_jobs
from sa_plugin.statistics.bootstrap import Resamples, document_sums
from sa_plugin.statistics.drawn import Drawn, scarcer, stack

TOKEN_GROUPS = (
    "tail",
    "same_samples",
    "in_concept_rest",
    "strongest_out_of_concept",
    "out_of_concept",
    "in_concept",
)
# The groups whose difference from the tail has a control; they come first.
_LIFTED = 4


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

    def reducer(batch: Batch) -> Reducer:
        known = asked.known(batch)
        return lambda read, keep: _reduce(plan, read, keep, known)

    def closes(batch: Batch, found: Mapping[Name, np.ndarray]) -> None:
        worst = Residue(*(torch.from_numpy(found[name]) for name in Residue._fields))
        check_closure(host, plan.target, batch, worst, [asked.samples[k].id for k in batch.rows.tolist()])

    job = Job(plan.sites, reducer, each=closes)
    sinks = asked.sinks(host)
    own, *others = run_jobs(host, asked.layout, [job, *also], sinks, description=description)
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
    plan: Decomposition, read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"], known: BatchLabels
) -> Keeping:
    # The score is measured once: it finds the tail, weighs the groups, and closes the terms.
    scored = score_batch(plan.target, read)
    tail = _find_tail(scored, _thresholds(plan), keep, known)
    weight = _group_weights(scored, tail, keep, known)
    closure = Closure(scored)
    sums = _term_sums(plan.terms(read), scored, keep, weight, plan.target.cosine, closure)
    return keeping(
        sums={"n tail": tail.sum((0, 1))},
        samples={
            "sums": sums.transpose(0, 1),
            "weights": weight.sum(1).transpose(1, 2),
            **closure.residue(keep)._asdict(),
        },
    )


def _thresholds(plan: Decomposition) -> Float[Tensor, " column"]:
    """The threshold of each column."""
    return torch.tensor([c.threshold for c in plan.target.columns], dtype=torch.float64)


def _term_sums(
    pieces: Iterator[Terms],
    scored: Scored,
    keep: Bool[Tensor, "batch token"],
    weight: Float[Tensor, "batch token column group"],
    cosine: bool,
    closure: Closure | None = None,
) -> Float[Tensor, "scale batch group component column"]:
    """Sums of terms over groups, for the score and (cosine only) the plain dot product."""
    # s scale, b batch, t token, n component, c column, g group: a cosine divides each token by its own
    # size, the projection does not; both are weights, so terms are summed once for the two.
    divisor = scored.divisor.masked_fill(~keep[..., None], 1.0)[..., None]
    scales = torch.stack([weight / divisor, weight][: 1 + cosine])
    sums = []
    for terms, mean in pieces:
        if closure is not None:
            closure.add(terms, mean)
        # Padding may hold anything, also NaN, which a weight of 0 would not silence.
        terms = terms.masked_fill(~keep[..., None, None], 0.0)
        sums.append(torch.einsum("btnc,sbtcg->sbgnc", terms, scales))
    return torch.cat(sums, dim=3)


def _find_tail(
    scored: Scored, threshold: Float[Tensor, " column"], keep: Bool[Tensor, "batch token"], known: BatchLabels
) -> Bool[Tensor, "batch token column"]:
    """SuperActivators, from thresholds or as given."""
    if known.tail is not None:
        return _given_tail(known.tail, keep, scored.score.shape[-1])
    return keep[..., None] & (scored.score.double() >= threshold.to(keep.device))


def _group_weights(
    scored: Scored,
    tail: Bool[Tensor, "batch token column"],
    keep: Bool[Tensor, "batch token"],
    known: BatchLabels,
) -> Float[Tensor, "batch token column group"]:
    """Weight of each token in each of `TOKEN_GROUPS`."""
    every = keep[..., None].expand_as(tail)
    # A sample's other tokens share the weight of its tail: k_n / (T_n - k_n) each.
    n_tail = tail.sum(1, keepdim=True).float()
    n_others = every.sum(1, keepdim=True) - n_tail
    inside = known.inside.to(keep.device) & every
    outside = known.negative.to(keep.device) & every
    # The first of equal maxima, as argmax has it; no kept token is below -inf.
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
    """Sums of the draws' terms over their own groups, the first `_LIFTED` of `TOKEN_GROUPS`.

    Attributes:
        values, weights: Over all draws, by sample; scales as in `GroupSums`.
        draw_values, draw_weights: Over all samples, by draw.
    """

    values: Float[np.ndarray, "scale sample group component column"]
    weights: Float[np.ndarray, "sample group column"]
    draw_values: Float[np.ndarray, "scale draw group component column"]
    draw_weights: Float[np.ndarray, "draw group column"]


def tail_cuts(
    host: Host, asked: Asked, plan: LedgerPlan, draws: Sequence[LedgerPlan]
) -> Float[np.ndarray, "draw column"]:
    """The score that as many tokens reach, under each draw, as the concept has SuperActivators.

    Costs one forward pass a sample. A concept without SuperActivators gets +inf.
    """
    cuts = _thresholds(plan)

    def reducer(batch: Batch) -> Reducer:
        known = asked.known(batch)

        def reduce(read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"]) -> Keeping:
            tail = _find_tail(score_batch(plan.target, read), cuts, keep, known)
            null = torch.stack([score_batch(draw.target, read).score for draw in draws], dim=2)
            return keeping(
                sums={"n tail": tail.sum((0, 1))}, rows={"null": null[batch.valid.to(keep.device)]}
            )

        return reduce

    job = Job(plan.target.sites, reducer)
    sinks = asked.sinks(host)
    (found,) = run_jobs(host, asked.layout, [job], sinks, description="control scores")
    return nth_highest(found.rows["null"], found.sums["n tail"].numpy())


def nth_highest(
    scores: Float[np.ndarray, "token draw column"], n_tail: Int[np.ndarray, " column"]
) -> Float[np.ndarray, "draw column"]:
    """The score that so many tokens of each column reach under each draw; +inf for none."""
    out = np.full(scores.shape[1:], np.inf)
    for k, n in enumerate(n_tail.tolist()):
        for draw in range(scores.shape[1]):
            if n:
                # The n-th largest: tokens that tie with it are in.
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
        plans: Sequence[LedgerPlan],
        cuts: Float[np.ndarray, "draw column"],
        lengths: Float[Tensor, " column"],
    ) -> None:
        self.asked, self.plans = asked, plans
        self.cuts = torch.from_numpy(cuts)
        self.factors = [self._factor(plan, lengths) for plan in plans]

    @staticmethod
    def _factor(plan: LedgerPlan, lengths: Float[Tensor, " column"]) -> Float[Tensor, "scale 1 1 1 column"]:
        # A dot score grows with its vector's length, which for a permuted-label vector means
        # nothing; a cosine does not, but its projection does.
        longer = lengths / plan.target.lengths.clamp_min(1e-30)
        scales = [torch.ones_like(longer), longer] if plan.target.cosine else [longer]
        return torch.stack(scales)[:, None, None, None]

    @property
    def job(self) -> Job:
        """For `passes.run_jobs`."""

        def reducer(batch: Batch) -> Reducer:
            known = self.asked.known(batch)
            return lambda read, keep: self._reduce(read, keep, known)

        return Job({site for plan in self.plans for site in plan.sites}, reducer)

    def _reduce(
        self, read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"], known: BatchLabels
    ) -> Keeping:
        """Sums of a batch: over draws by sample, and over its samples by draw."""
        # A draw chooses its own tail, also where the concept's was given.
        known = replace(known, tail=None)
        # The norms' scales are of the stream, not of a vector: measured once for all draws.
        scales = self.plans[0].frozen.scales(read)
        pooled: Tensor | None = None
        pooled_weight, by_draw, by_draw_weight = torch.zeros(()), [], []
        for plan, cut, factor in zip(self.plans, self.cuts, self.factors, strict=True):
            scored = score_batch(plan.target, read)
            tail = _find_tail(scored, cut, keep, known)
            weight = _group_weights(scored, tail, keep, known)[..., :_LIFTED]
            pieces = plan.terms(read, scales)
            sums = _term_sums(pieces, scored, keep, weight, plan.target.cosine)
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


_MEANS = ("tail", "same_samples", "in_concept_rest", "out_of_concept", "strongest_out_of_concept")
# A lift's name before "lift", "control" and "excess", and what the tail is compared with.
_AGAINST = {"": "same_samples", "in_concept_": "in_concept_rest", "strongest_": "strongest_out_of_concept"}


@dataclass(frozen=True, eq=False)
class Effect:
    """A difference of two means of the score, split into its parts.

    Attributes:
        terms: Over component and score.
        total: Over score; the difference of the score itself.
        shares: Over kind and score; they add up to 1.
        blocks: Over block and score; everything a block wrote.
        n_tokens: Tokens that were chosen, by score.
    """

    terms: Drawn
    total: Drawn
    shares: Drawn
    blocks: Drawn
    n_tokens: Int[np.ndarray, " score"]


class TermLabels(NamedTuple):
    """What the axes of effects say.

    Attributes:
        components: The terms.
        kinds: Kinds of component that shares are of.
        scores: A name for each column.
    """

    components: tuple[Component, ...]
    kinds: tuple[ComponentKind, ...]
    scores: tuple[str, ...]

    def summing(self) -> tuple[Float[np.ndarray, "kind component"], Float[np.ndarray, "block component"]]:
        """What makes kinds, and blocks, of components."""
        n_blocks = 1 + max((c.block for c in self.components if c.block is not None), default=-1)
        kinds = np.array([[c.kind == kind for c in self.components] for kind in self.kinds], dtype=float)
        blocks = np.array([[c.block == b for c in self.components] for b in range(n_blocks)], dtype=float)
        return kinds, blocks.reshape(n_blocks, len(self.components))


def effects_of(
    sums: GroupSums,
    control: ControlSums | None,
    labels: TermLabels,
    resamples: Resamples,
    *,
    lengths: Float[np.ndarray, " column"] | None,
    tail: bool,
) -> tuple[dict[str, Effect], dict[str, Float[np.ndarray, "component column"]]]:
    """Lifts, controls, excesses and contrast of every column, and the means by group.

    Args:
        sums: Of the pass.
        control: Of the permuted-label vectors.
        labels: Of the axes.
        resamples: Of the samples' documents.
        lengths: Of each column's vector, for effects in projections on the unit vector; None for
            effects in the unit of the score.
        tail: Whether there are SuperActivators to speak of.

    Returns:
        Effects by name ("control" and "excess" only with permuted-label vectors, "contrast" alone
        without a tail), and means by the names of `_MEANS`.
    """
    scale = int(lengths is not None)
    parts: dict[str, list[Effect]] = {}
    means: dict[str, list[np.ndarray]] = {name: [] for name in _MEANS}
    for k in range(len(labels.scores)):
        unit = 1.0 if lengths is None else 1 / float(lengths[k])
        found = _means(sums.values[scale, ..., k], sums.weights[..., k], resamples, unit)
        null: Mapping[str, _GroupMean] = {}
        if control is not None:
            null = _means(control.values[scale, ..., k], control.weights[..., k], resamples, unit)
        for name, effect in _differences(found, null, tail).items():
            parts.setdefault(name, []).append(_effect(effect, labels, resamples))
        for name in _MEANS:
            means[name].append(found[name].values[:, 0])
    effects = {name: _joined(one, labels.scores) for name, one in parts.items()}
    return effects, {name: np.stack(one, axis=-1) for name, one in means.items()}


def control_by_draw(
    control: ControlSums, lengths: Float[np.ndarray, " column"] | None
) -> dict[str, Float[np.ndarray, "draw component column"]]:
    """The control of each permutation by itself, by the names of effects."""
    scale, unit = int(lengths is not None), 1.0 if lengths is None else 1 / lengths
    with np.errstate(invalid="ignore", divide="ignore"):
        means = unit * control.draw_values[scale] / control.draw_weights[:, :, None]
    at = {name: k for k, name in enumerate(TOKEN_GROUPS)}
    return {f"{name}control": means[:, at["tail"]] - means[:, at[other]] for name, other in _AGAINST.items()}


def share_excluding_zero(terms: Drawn, cells: Bool[np.ndarray, "component score"]) -> tuple[float, int]:
    """Share of some cells whose interval excludes zero, and the number with an interval.

    The share is NaN over no cell.
    """
    known = cells & np.isfinite(terms.low) & np.isfinite(terms.high)
    n, outside = int(known.sum()), int((known & terms.excludes_zero).sum())
    return (outside / n if n else float("nan")), n


class _GroupMean(NamedTuple):
    """A mean over tokens, or a difference of two; the first's tokens, and what documents carry."""

    values: Float[np.ndarray, "component column"]
    n_tokens: int
    carried: Float[np.ndarray, " document"]

    def minus(self, other: _GroupMean) -> _GroupMean:
        return _GroupMean(self.values - other.values, self.n_tokens, scarcer(self.carried, other.carried))


def _means(
    sums: Float[np.ndarray, "sample group component"],
    weights: Float[np.ndarray, "sample group"],
    resamples: Resamples,
    unit: float,
) -> dict[str, _GroupMean]:
    """Mean terms of each group, `unit * sum over samples of sums / of weights`, in every column."""
    taken = resamples.weights.T.astype(np.float64)
    found = {}
    for group in range(weights.shape[1]):
        above = document_sums(sums[:, group].T.astype(np.float64), resamples)
        below = document_sums(weights[:, group].astype(np.float64), resamples)
        # Ratio of sums, so that every token counts once, whatever its sample's length.
        # NaN over no token.
        with np.errstate(invalid="ignore", divide="ignore"):
            values = unit * (above @ taken) / (below @ taken)
        found[TOKEN_GROUPS[group]] = _GroupMean(values, round(float(weights[:, group].sum())), below)
    return found


def _differences(
    found: Mapping[str, _GroupMean], null: Mapping[str, _GroupMean], tail: bool
) -> dict[str, _GroupMean]:
    """Every effect as a difference of means, with the tokens that were chosen."""
    parts = {"contrast": found["in_concept"].minus(found["out_of_concept"])}
    for name, other in _AGAINST.items() if tail else ():
        lift = parts[f"{name}lift"] = found["tail"].minus(found[other])
        if null:
            control = parts[f"{name}control"] = null["tail"].minus(null[other])
            parts[f"{name}excess"] = lift.minus(control)
    return parts


def _effect(effect: _GroupMean, labels: TermLabels, resamples: Resamples) -> Effect:
    kinds, blocks = labels.summing()
    values, carried = effect.values, effect.carried
    total = values.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = kinds @ values / total
    names = tuple(component.name for component in labels.components)
    return Effect(
        resamples.drawn(values, "mean", carried, component=names),
        resamples.drawn(total, "mean", carried),
        resamples.drawn(shares, "mean", carried, kind=labels.kinds),
        resamples.drawn(blocks @ values, "mean", carried, block=tuple(range(len(blocks)))),
        np.array([effect.n_tokens]),
    )


def _joined(columns: Sequence[Effect], scores: Sequence[str]) -> Effect:
    """Effects of single columns as one, the score as last axis."""

    def joined(name: str) -> Drawn:
        parts = {score: getattr(one, name) for score, one in zip(scores, columns, strict=True)}
        return stack(parts, "score", last=True)

    terms, total, shares, blocks = map(joined, ("terms", "total", "shares", "blocks"))
    return Effect(terms, total, shares, blocks, np.concatenate([one.n_tokens for one in columns]))
