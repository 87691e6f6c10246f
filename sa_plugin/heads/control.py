"""The permuted-label control: what a lift owes to choosing tokens by the sum that is decomposed.

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
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.collect import allocate, compact, kept, sink_sites, walk
from sa_plugin.heads.plan import Plan
from sa_plugin.heads.sums import (
    LIFTED,
    Asked,
    Known,
    find_tail,
    group_weights,
    term_sums,
    thresholds,
)
from sa_plugin.heads.target import measure
from sa_plugin.host import Batch, Host, Reduce, Site

MEMORY_BUDGET = 1 << 30


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
    host: Host, asked: Asked, plan: Plan, draws: Sequence[Plan], *, progress: bool
) -> Float[np.ndarray, "draw column"]:
    """The score that as many tokens reach, under each draw, as the concept has SuperActivators.

    Costs one forward pass a sample. A concept without SuperActivators gets +inf.
    """
    layout, bank = asked.layout, asked.bank
    shape = (layout.n_rows, len(draws), len(plan.target.columns))
    scores = allocate(shape, np.float32, MEMORY_BUDGET)
    keep_rows = np.zeros(layout.n_rows, dtype=bool)
    n_tail = np.zeros(shape[2], dtype=np.int64)
    cuts = thresholds(plan)

    def reducer(batch: Batch) -> Reduce:
        known = asked.known(batch)

        def reduce(read: Mapping[Site, Tensor]) -> dict[str, Tensor]:
            keep = kept(read, batch.valid, host.info, bank.sink_layers, bank.origin.sinks)
            tail = find_tail(measure(plan.target, read), cuts, keep, known)
            null = torch.stack([measure(draw.target, read).score for draw in draws], dim=2)
            valid = batch.valid.to(keep.device)
            return {"keep": keep[valid], "n tail": tail.sum((0, 1)), "null": null[valid]}

        return reduce

    sites = sorted({*plan.target.sites, *sink_sites(bank.sink_layers)})
    for batch, got in walk(
        host, layout, sites, reducer, description="control scores", progress=progress
    ):
        rows = layout.rows(batch)
        keep_rows[rows] = got["keep"].numpy()
        scores[rows] = got["null"].numpy()
        n_tail += got["n tail"].numpy()
    return _cuts(compact(scores, keep_rows), n_tail)


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
    """Adds up the draws' sums in the ledger's own pass.

    Args:
        plans: One a draw.
        cuts: From `tail_cuts`.
        lengths: Norm of each concept's vector.
        n_samples: Number of samples.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        cuts: Float[np.ndarray, "draw column"],
        lengths: Float[Tensor, " column"],
        n_samples: int,
    ) -> None:
        self.plans = plans
        self.cuts = torch.from_numpy(cuts)
        self.factors = [self._factor(plan, lengths) for plan in plans]
        target = plans[0].target
        shape = (LIFTED, len(plans[0].components), len(target.columns))
        scales = 1 + target.cosine
        self.values = np.zeros((scales, n_samples, *shape), dtype=np.float32)
        self.weights = np.zeros((n_samples, LIFTED, shape[2]), dtype=np.float32)
        self.draw_values = np.zeros((scales, len(plans), *shape))
        self.draw_weights = np.zeros((len(plans), LIFTED, shape[2]))

    @staticmethod
    def _factor(
        plan: Plan, lengths: Float[Tensor, " column"]
    ) -> Float[Tensor, "scale 1 1 1 column"]:
        # A dot score grows with its vector's length, which for a permuted-label vector means
        # nothing; a cosine does not, but its projection does.
        longer = lengths / plan.target.lengths.clamp_min(1e-30)
        scales = [torch.ones_like(longer), longer] if plan.target.cosine else [longer]
        return torch.stack(scales)[:, None, None, None]

    def reduce(
        self, read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"], known: Known
    ) -> dict[str, Tensor]:
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
        return {
            "control": pooled,
            "control weight": pooled_weight,
            "control draw": torch.stack(by_draw, dim=1),
            "control draw weight": torch.stack(by_draw_weight),
        }

    def take(self, batch: Batch, got: Mapping[str, Tensor]) -> None:
        """Take in what `reduce` returned for a batch."""
        rows = batch.rows.numpy()
        self.values[:, rows] = got["control"].numpy()
        self.weights[rows] = got["control weight"].numpy()
        self.draw_values += got["control draw"].double().numpy()
        self.draw_weights += got["control draw weight"].double().numpy()

    def result(self) -> ControlSums:
        """The sums."""
        return ControlSums(self.values, self.weights, self.draw_values, self.draw_weights)
