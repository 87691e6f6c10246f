"""From sums over token groups to lifts, contrasts and shares with document-level intervals.

With k_n SuperActivators among the T_n kept tokens of sample n, and m(.) means of a term:

- lift = sum_n k_n (m(tail of n) - m(other tokens of n)) / sum_n k_n: every SuperActivator against
  the other tokens of its own sample. A sample that is all tail, or has none, does not enter.
- control = the same for the permuted-label vector with its own tail (`control.py`); excess =
  lift - control.
- contrast = mean over in-concept tokens - mean over tokens of negative samples. It selects tokens
  by labels, not by the sum it decomposes; heads ranked by it are selected all the same.
- share of a kind of component = its terms' part of the total, the lift (contrast) of the score.

Intervals are percentile intervals over resampled source documents, all quantities from the same
draws; they are conditional on the fitted vectors and thresholds, and NaN where a mean rests on one
document, whose resamples would all be alike. A share is unstable where its total is small, and may
be negative or exceed 1.

What this does not show. A lift alone is no evidence for a component: tokens chosen by a sum lift
every part of it that varies. The control is one permutation a concept: a scale of what selection
alone gives, not a test. The interval of the excess resamples documents with that one permuted
vector held fixed, so two vectors that both mean nothing differ by it too: it excludes zero for many
heads of a permuted vector posing as a concept (`HeadLedger.excluding_zero` says how often the lift
of one does). Heads ranked on the split that is shown are large partly by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sa_plugin.heads.components import KINDS, Component
from sa_plugin.heads.control import ControlPass
from sa_plugin.heads.sums import GROUPS, GroupSums
from sa_plugin.statistics.bootstrap import Resamples, document_sums
from sa_plugin.statistics.interval import percentile_bounds

MEANS = (
    "tail", "same_samples", "in_concept_rest", "out_of_concept", "strongest_out_of_concept",
)  # fmt: skip


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
        shares: `[kind, column]`, kinds as in `components.KINDS`; they add up to 1.
        n_tokens: Tokens that were chosen, by column.
    """

    terms: Estimate
    total: Estimate
    shares: Estimate
    n_tokens: Int[np.ndarray, "*column"]


class Mean(NamedTuple):
    """A mean as a ratio of sums over samples: `factor * sum(numerator) / sum(weight)`."""

    numerator: Float[np.ndarray, "component sample"]
    weight: Float[np.ndarray, " sample"]
    factor: float = 1.0

    def times(self, factor: float) -> Mean:
        """The mean multiplied."""
        return self._replace(factor=self.factor * factor)

    def value(self) -> Float[np.ndarray, " component"]:
        """Over all samples; NaN over none."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.factor * self.numerator.sum(1) / self.weight.sum())

    def drawn(self, resamples: Resamples) -> Float[np.ndarray, "component draw"]:
        """Over the samples of each draw; NaN where it has none, or only one document ever has."""
        taken = resamples.weights.T.astype(np.float64)
        total = document_sums(self.numerator, resamples) @ taken
        weight = document_sums(self.weight, resamples) @ taken
        if (document_sums(self.weight, resamples) > 0).sum() < 2:
            return np.full(total.shape, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.factor * total / weight)


def column_means(
    sums: GroupSums, positive: Bool[np.ndarray, " sample"], column: int, length: float, scale: int
) -> dict[str, Mean]:
    """The mean term over the tokens of each group of `MEANS`, and over in-concept tokens.

    "tail" and "same_samples" are the two sides of the lift: the same samples, each as often as it
    has SuperActivators. "strongest_out_of_concept" is the highest-scoring token of each negative
    sample.

    Args:
        sums: Of the pass.
        positive: Sample labels of the column's concept.
        column: Which.
        length: Norm of its vector.
        scale: 0 for the score, 1 for the projection on the unit vector.
    """
    values = {g: sums.values[scale, :, i, :, column].T.astype(float) for i, g in enumerate(GROUPS)}
    counts = {g: sums.counts[:, i, column].astype(float) for i, g in enumerate(GROUPS)}
    tail, others = _sides(values["tail"], counts["tail"], values["all"], counts["all"])
    unit = 1 / length if scale else 1.0
    negative = ~positive
    means = {
        "tail": tail,
        "same_samples": others,
        "in_concept_rest": Mean(
            values["in_concept"] - values["in_concept_tail"],
            counts["in_concept"] - counts["in_concept_tail"],
        ),
        "out_of_concept": Mean(values["all"] * negative, counts["all"] * negative),
        "strongest_out_of_concept": Mean(
            values["strongest"] * negative, counts["strongest"] * negative
        ),
        "in_concept": Mean(values["in_concept"], counts["in_concept"]),
    }
    return {name: mean.times(unit) for name, mean in means.items()}


def control_means(
    control: ControlPass,
    n_all: Int[np.ndarray, " sample"],
    n_tail: int,
    column: int,
    length: float,
    scale: int,
) -> tuple[Mean, Mean]:
    """The two sides of the permuted-label vector's lift, in the units of the concept's score."""
    permuted = float(control.plan.vectors.vectors[column, 0].norm())
    # A dot score grows with its vector's length, which for a permuted-label vector means nothing.
    factor = 1 / permuted if scale else 1.0 if control.plan.cosine else length / permuted
    chosen = control.candidates[column].top(n_tail)
    terms = chosen.terms.astype(float)
    if scale == 0:
        terms = terms / chosen.divisor[:, None]
    everything = control.everything[scale, :, :, column].T.astype(float)
    tail = np.zeros_like(everything)
    np.add.at(tail.T, chosen.sample, terms)
    n = np.bincount(chosen.sample, minlength=len(n_all)).astype(float)
    sides = _sides(tail, n, everything, n_all.astype(float))
    return sides[0].times(factor), sides[1].times(factor)


def _sides(
    tail: Float[np.ndarray, "component sample"],
    n_tail: Float[np.ndarray, " sample"],
    everything: Float[np.ndarray, "component sample"],
    n_all: Float[np.ndarray, " sample"],
) -> tuple[Mean, Mean]:
    """Tail tokens, and the other tokens of each sample as often as it has tail tokens."""
    n_others = n_all - n_tail
    weight = np.where(n_others > 0, n_tail, 0.0)
    others = (everything - tail) / np.maximum(n_others, 1) * weight
    return Mean(np.where(weight > 0, tail, 0.0), weight), Mean(others, weight)


def share_excluding_zero(
    effect: Effect, cells: Bool[np.ndarray, "component column"]
) -> tuple[float, int]:
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
    positive: Bool[np.ndarray, "sample column"],
    lengths: Float[np.ndarray, " column"],
    components: Sequence[Component],
    resamples: Resamples,
    *,
    scale: int,
    tail: bool,
) -> tuple[dict[str, Effect], dict[str, Float[np.ndarray, "component column"]]]:
    """Lift, control, excess and contrast of every column, and the means by group.

    Args:
        sums: Of the pass.
        positive: Sample labels of each column's concept.
        lengths: Norm of each column's vector.
        components: The terms.
        resamples: Of the samples' documents.
        scale: 0 for the score, 1 for the projection on the unit vector.
        tail: Whether there are SuperActivators to speak of.

    Returns:
        Effects by name ("control" and "excess" only with permuted-label vectors, "contrast" alone
        without a tail), and means by the names of `MEANS`.
    """
    kinds = np.array([[c.kind == kind for c in components] for kind in KINDS], dtype=float)
    columns: list[dict[str, Effect]] = []
    means: list[dict[str, np.ndarray]] = []
    for k in range(positive.shape[1]):
        mean = column_means(sums, positive[:, k], k, float(lengths[k]), scale)
        terms = {"contrast": [mean["in_concept"], mean["out_of_concept"].times(-1.0)]}
        n_tail = int(sums.counts[:, GROUPS.index("tail"), k].sum())
        if tail:
            terms["lift"] = [mean["tail"], mean["same_samples"].times(-1.0)]
        if tail and sums.control is not None:
            n_all = sums.counts[:, GROUPS.index("all"), k]
            high, rest = control_means(sums.control, n_all, n_tail, k, float(lengths[k]), scale)
            terms["control"] = [high, rest.times(-1.0)]
            terms["excess"] = [*terms["lift"], high.times(-1.0), rest]
        columns.append({name: _effect(parts, kinds, resamples) for name, parts in terms.items()})
        means.append({name: mean[name].value() for name in MEANS})
    joined = {name: _join([column[name] for column in columns]) for name in columns[0]}
    return joined, {name: np.stack([one[name] for one in means], axis=-1) for name in MEANS}


def _effect(parts: Sequence[Mean], kinds: np.ndarray, resamples: Resamples) -> Effect:
    value = np.sum([part.value() for part in parts], axis=0)
    drawn = np.sum([part.drawn(resamples) for part in parts], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share, drawn_share = kinds @ value / value.sum(), kinds @ drawn / drawn.sum(0)
    return Effect(
        Estimate(value, *percentile_bounds(drawn)),
        Estimate(value.sum(), *(end[0] for end in percentile_bounds(drawn.sum(0)[None]))),
        Estimate(share, *percentile_bounds(drawn_share)),
        np.asarray(int(parts[0].weight.sum())),
    )


def _join(columns: Sequence[Effect]) -> Effect:
    def stack(parts: Sequence[Estimate]) -> Estimate:
        return Estimate(*(np.stack(one, axis=-1) for one in zip(*parts, strict=True)))

    return Effect(
        stack([e.terms for e in columns]), stack([e.total for e in columns]),
        stack([e.shares for e in columns]), np.stack([e.n_tokens for e in columns]),
    )  # fmt: skip
