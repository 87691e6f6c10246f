"""Detection and tails without token scores: what leaves the model is a few numbers a sample.

Sample decisions need each sample's highest score alone, and quantiles of the tail need counts
alone. On a remote host these travel instead of activations, and instead of the score of every token
under every vector at every layer.

Whoever looks for evidence in a corpus wants more: where it is, and how far up (`scores_above`). Of each
column, a vector at one layer, travel counts in coarse bins and every score at or above a cut.

A histogram's bins are the high 16 bits of a float32, so a threshold is known to 2**-7 of itself:
`TailHistogram.thresholds` gives both ends. Exact thresholds need the scores (`score`, `calibrate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import Split
from sa_plugin.data.sample import Sample
from sa_plugin.host import reducers
from sa_plugin.host.protocol import Batch, Host, Site
from sa_plugin.passes.layout import Layout, lay_out
from sa_plugin.passes.run import Job, Kept, Reducer, run_jobs
from sa_plugin.scores.score import check_origin
from sa_plugin.statistics.confusion import reaches
from sa_plugin.statistics.quantile import positions, tail_levels
from sa_plugin.statistics.streaming import HIGH_BINS, bin_edges


@dataclass(frozen=True, eq=False)
class SampleMaxima:
    """The highest scores of each sample under every vector.

    Attributes:
        samples: Ids.
        layers: Block indices.
        units: Names of the vectors.
        scores: Descending along "top"; -inf where a sample has fewer tokens.
        position: Place of each in the model's input sequence; None unless asked for.
        kept: Tokens of each sample that are evidence.
    """

    samples: tuple[str, ...]
    layers: tuple[int, ...]
    units: tuple[str, ...]
    scores: Float[np.ndarray, "sample top layer unit"]
    position: Int[np.ndarray, "sample top layer unit"] | None
    kept: Int[np.ndarray, " sample"]

    def __repr__(self) -> str:
        return (
            f"SampleMaxima({len(self.samples)} samples, top {self.scores.shape[1]}, "
            f"{len(self.units)} units, layers {list(self.layers)})"
        )


def sample_maxima(
    host: Host, samples: Sequence[Sample], bank: ConceptBank, *, top: int = 1, positions: bool = False
) -> SampleMaxima:
    """Each sample's highest scores, from one forward pass a sample.

    Args:
        host: An attached model.
        samples: Texts or images.
        bank: Concept vectors.
        top: How many scores of each sample.
        positions: Whether to say where they stand.

    Raises:
        ValueError: `top` is below 1, the bank is of another model, activations are NaN or Inf, or
            a sample has no token left once special tokens and sinks are dropped.
    """
    if top < 1:
        raise ValueError(f"top is {top}: give 1 or more.")
    asked = {"top": top, "places": positions}
    layout, kept = _one_pass(host, samples, bank, reducers.maxima, lambda layout, batch: asked)
    count = kept.samples["count"]
    if not count.all():
        raise ValueError(
            f"sample {samples[int(np.argmin(count))].id!r} has no token left once special tokens "
            "and attention sinks are dropped: give a longer text, or leave it out."
        )
    position = _input_positions(layout, kept.samples["place"]) if positions else None
    names = tuple(sample.id for sample in samples)
    return SampleMaxima(names, bank.layers, bank.units, kept.samples["best"], position, count)


@dataclass(frozen=True, eq=False)
class TailHistogram:
    """Counts of token scores in and out of each concept, by the high 16 bits of the score.

    Attributes:
        layers: Block indices.
        units: Names of the vectors.
        bins: Bins that hold scores, ascending, of each column (in or out, layer, unit).
        counts: Tokens in each of them.
    """

    layers: tuple[int, ...]
    units: tuple[str, ...]
    bins: dict[tuple[bool, int, str], Int[np.ndarray, " bin"]]
    counts: dict[tuple[bool, int, str], Int[np.ndarray, " bin"]]

    def __repr__(self) -> str:
        tokens = sum(int(self.total(i, self.layers[0], self.units[0])) for i in (False, True))
        return f"TailHistogram({tokens} tokens, {len(self.units)} units, {list(self.layers)})"

    def total(self, inside: bool, layer: int, unit: str) -> int:
        """Tokens counted."""
        return int(self.counts[inside, layer, unit].sum())

    def above(self, threshold: float, layer: int, unit: str, *, inside: bool) -> tuple[float, float]:
        """At least and at most which share of the tokens reaches a threshold."""
        bins, counts = self.bins[inside, layer, unit], self.counts[inside, layer, unit]
        lower, upper = bin_edges(bins)
        total = max(1, counts.sum())
        surely, perhaps = (counts[reaches(edge, threshold)].sum() for edge in (lower, upper))
        return float(surely / total), float(perhaps / total)

    def thresholds(self, delta: float, layer: int, unit: str) -> tuple[float, float]:
        """Two numbers that enclose the concept's threshold at sparsity `delta`.

        Raises:
            ValueError: `delta` lies outside (0, 1], or the concept has no token.
        """
        if not 0 < delta <= 1:
            raise ValueError(f"delta is {delta}: give a share above 0 and at most 1.")
        bins, counts = self.bins[True, layer, unit], self.counts[True, layer, unit]
        total = int(counts.sum())
        if not total:
            raise ValueError(f"{unit!r} has no token in these samples: no threshold.")
        # The quantile lies between the tokens of these two ranks, whatever rule interpolates.
        at, ends = positions(total, tail_levels([delta])), np.cumsum(counts)
        below, above = (int(np.searchsorted(ends, rank[0], side="right")) for rank in (at.below, at.above))
        lower, upper = bin_edges(bins)
        return float(lower[below]), float(upper[above])


def tail_histogram(host: Host, samples: Split | Sequence[Sample], bank: ConceptBank) -> TailHistogram:
    """Histograms of every concept's scores at every layer, in and out of the concept.

    Args:
        host: An attached model.
        samples: Labelled samples; tokens whose label is unknown are not counted.
        bank: Vectors of the labelled concepts (prototype, separator, lda, or given).

    Raises:
        ValueError: The bank's units are not its concepts, it is of another model, or activations
            are NaN or Inf.
    """
    if not bank.supervised:
        raise ValueError(
            f"a {bank.kind!r} bank's units are no concepts, so tokens are neither in nor out of "
            "them: use a supervised kind, or score(...) and calibrate(...)."
        )
    rows = samples.samples if isinstance(samples, Split) else samples

    def labels_of(layout: Layout, batch: Batch) -> dict[str, Tensor]:
        masks = {"labels": layout.labels} | ({} if layout.known is None else {"known": layout.known})
        shape = (*batch.valid.shape, len(bank.concepts))
        found = {name: torch.zeros(shape, dtype=torch.bool) for name in masks}
        for name, mask in masks.items():
            found[name][batch.valid] = torch.from_numpy(mask[layout.rows(batch)])
        return found

    _, kept = _one_pass(host, rows, bank, reducers.histogram, labels_of)
    return _by_column(bank, kept.sums["bins"].coalesce())


@dataclass(frozen=True, eq=False)
class ScoresAbove:
    """Of chosen columns the highest score of every sample, all scores above cuts, and counts of all.

    Attributes:
        layout: Where tokens lie.
        counted: Which of its rows count: evidence, and the sample's own.
        best: Highest score of each sample; -inf where no token counts.
        best_row: Row of it.
        n_counted: Tokens of each sample that count.
        row, column, score: Of every score at or above the column's cut, by row.
        bins: Coarse bins that hold any score, by their place in [column, bin] laid flat, ascending; the
            bins of `sa_plugin.statistics.ExactTail`.
        n_in_bins: How many scores each of them holds.
    """

    layout: Layout
    counted: Bool[np.ndarray, " row"]
    best: Float[np.ndarray, "sample column"]
    best_row: Int[np.ndarray, "sample column"]
    n_counted: Int[np.ndarray, " sample"]
    row: Int[np.ndarray, " entry"]
    column: Int[np.ndarray, " entry"]
    score: Float[np.ndarray, " entry"]
    bins: Int[np.ndarray, " bin"]
    n_in_bins: Int[np.ndarray, " bin"]

    def __repr__(self) -> str:
        return (
            f"ScoresAbove({len(self.best)} samples, {self.best.shape[1]} columns, {len(self.row)} above cuts)"
        )


def scores_above(
    host: Host,
    samples: Sequence[Sample],
    bank: ConceptBank,
    columns: Sequence[tuple[int, int]],
    cuts: Float[np.ndarray, " column"],
    own: Callable[[Layout], Bool[np.ndarray, " row"]] | None = None,
) -> ScoresAbove:
    """One forward pass a sample, and what is above cuts of some columns; no bar.

    Args:
        host: An attached model.
        samples: Texts or images.
        bank: Concept vectors.
        columns: Place of the layer and of the unit of each.
        cuts: Of each, float32.
        own: Which rows count, where not all do.

    Raises:
        ValueError: The bank is of another model, or activations are NaN or Inf.
    """
    check_origin(bank, host)
    layout = lay_out(host, samples, ())
    mine = np.ones(layout.n_rows, dtype=bool) if own is None else own(layout)
    layers = sorted({layer for layer, _ in columns})
    units = {layer: sorted({unit for at, unit in columns if at == layer}) for layer in layers}
    one_each = [(bank.layers[k], bank.hook_point, bank.only([k], units[k]).token.plain) for k in layers]
    place = {pair: n for n, pair in enumerate((layer, unit) for layer in layers for unit in units[layer])}
    asked: dict[str, Any] = {
        "banks": tuple(one_each),
        "order": torch.tensor([place[pair] for pair in columns]),
        "cuts": torch.from_numpy(np.asarray(cuts, dtype=np.float32)),
    }

    def reducer(batch: Batch) -> Reducer:
        return partial(reducers.above, valid=batch.valid, own=layout.mask(batch, mine), **asked)

    job = Job({Site(layer, bank.hook_point) for layer, *_ in one_each}, reducer)
    (kept,) = run_jobs(host, layout, [job], bank.sinks_on(host.info), description="scan", quiet=True)
    best = kept.samples["best"]
    if np.isnan(best).any() or np.isposinf(best).any():
        n, k = (int(i) for i in np.argwhere(np.isnan(best) | np.isposinf(best))[0])
        raise ValueError(
            f"the highest score of {bank.units[columns[k][1]]!r} in sample {samples[n].id!r} is "
            f"{best[n, k]}: activations hold NaN or Inf; load the model in float32 or bfloat16."
        )
    filled = kept.sums["bins"].coalesce()
    return ScoresAbove(
        layout,
        kept.keep & mine,
        best,
        layout.bounds[:-1, None] + kept.samples["place"],
        kept.samples["count"],
        kept.picked[reducers.AT],
        kept.picked["column"],
        kept.picked["score"],
        filled.indices()[0].numpy(),
        filled.values().numpy(),
    )


def _one_pass(
    host: Host,
    samples: Sequence[Sample],
    bank: ConceptBank,
    reduce: Callable[..., reducers.Keeping],
    asked: Callable[[Layout, Batch], Mapping[str, Any]],
) -> tuple[Layout, Kept]:
    """Run a reducer of one bank's scores; `asked` is what else it is told of each batch."""
    check_origin(bank, host)
    layout = lay_out(host, samples, bank.concepts)

    def reducer(batch: Batch) -> Reducer:
        own = {"layers": bank.layers, "point": bank.hook_point, "vectors": bank.token.plain}
        return partial(reduce, **own, **asked(layout, batch))

    job = Job({Site(at, bank.hook_point) for at in bank.layers}, reducer)
    (kept,) = run_jobs(host, layout, [job], bank.sinks_on(host.info), description=reduce.__name__)
    return layout, kept


def _input_positions(layout: Layout, place: Int[np.ndarray, "sample ..."]) -> Int[np.ndarray, "sample ..."]:
    """Places in a padded batch as places in the model's input sequence."""
    out = place.astype(np.int64)
    for batch in layout.batches:
        mask = batch.inputs.get("attention_mask")
        if mask is not None:
            order = (mask.long().cumsum(-1) - 1).cpu().numpy()
            rows = batch.rows.numpy()
            # A sample of fewer tokens than are asked for has places behind its last one: their
            # scores are -inf, and any place will do.
            at = out[rows].reshape(len(rows), -1).clip(max=order.shape[1] - 1)
            out[rows] = np.take_along_axis(order, at, axis=1).reshape(out[rows].shape)
    return out


def _by_column(bank: ConceptBank, total: Tensor) -> TailHistogram:
    # The flat index of the reducer: (in or out, layer, unit) times the number of bins, plus the bin.
    place, count = total.indices()[0].numpy(), total.values().numpy()
    column, low = place // HIGH_BINS, place % HIGH_BINS
    found: list[dict[tuple[bool, int, str], np.ndarray]] = [{}, {}]
    keys = [(i, at, unit) for i in (False, True) for at in bank.layers for unit in bank.units]
    for k, key in enumerate(keys):
        chosen: Bool[np.ndarray, " entry"] = column == k
        found[0][key], found[1][key] = low[chosen], count[chosen]
    return TailHistogram(bank.layers, bank.units, *found)
