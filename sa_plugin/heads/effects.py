"""From sums over token groups to lifts, contrasts and shares with document-level intervals.

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sa_plugin.heads.components import KINDS, Component, ComponentKind
from sa_plugin.heads.control import ControlSums
from sa_plugin.heads.sums import GROUPS, GroupSums
from sa_plugin.statistics.bootstrap import Resamples, document_sums
from sa_plugin.statistics.interval import percentile_bounds

MEANS = (
    "tail", "same_samples", "in_concept_rest", "out_of_concept", "strongest_out_of_concept",
)  # fmt: skip
# A lift's name before "lift", "control" and "excess", and what the tail is compared with.
AGAINST = {
    "": "same_samples",
    "in_concept_": "in_concept_rest",
    "strongest_": "strongest_out_of_concept",
}


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
    return {
        f"{name}control": means[:, at["tail"]] - means[:, at[other]]
        for name, other in AGAINST.items()
    }


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
        stack([e.terms for e in columns]), stack([e.total for e in columns]),
        stack([e.shares for e in columns]), stack([e.blocks for e in columns]),
        np.stack([e.n_tokens for e in columns]),
    )  # fmt: skip
