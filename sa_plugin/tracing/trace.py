"""From a score table to what is measured: one cell for each concept at one layer.

What a trace found: measures by layer and concept, with intervals over documents.

Binned densities for plots, in deviations of the out-of-concept scores from their mean.

Scores of two layers share no unit (a vector is fitted anew at each), deviations of `out` do. The
joint bins of the overlap differ between layers and concepts; small multiples need one axis, hence
the second set, with equal bins of a quarter deviation.

How a concept's tail forms, layer by layer.

At every layer of a bank the scores of in-concept and out-of-concept tokens are compared on the test
split: `sa_plugin.tracing.measures` defines what is measured and what it does not show. Thresholds
and background quantiles are fixed on the calibration split before. Intervals resample source
documents and are conditional on the vectors and on those cuts: another train or calibration split
would move them too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from tqdm.auto import tqdm

from sa_plugin._check import did_you_mean, require, require_type
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.guard import document_names
from sa_plugin.host.protocol import Host
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import as_html
from sa_plugin.statistics.bootstrap import Resamples, mean_over_concepts, resample_documents, resampled_sums
from sa_plugin.statistics.drawn import Interval, interval, percentile_bounds
from sa_plugin.statistics.quantile import (
    EmptyConceptWarning,
    FewTokensWarning,
    check_finite,
    quantiles,
    tail_levels,
    tail_thresholds,
)
from sa_plugin.tracing.measures import BINS, TAIL_LEVEL, Cell, Group, bin_of, joint_edges, measure

Out = Literal["negative", "all"]


@dataclass(frozen=True, eq=False)
class Columns:
    """A score table reduced to one column a concept.

    Attributes:
        table: The scores.
        column: Column of each concept at each layer.
        out: Which tokens are out of concept.
    """

    table: ScoreTable
    column: Int[np.ndarray, "layer concept"]
    out: Out

    def scores(self, layer: int) -> Float[np.ndarray, "concept token"]:
        """Scores at one layer."""
        return np.ascontiguousarray(self.table.scores[:, layer, self.column[layer]].T)

    @cached_property
    def inside(self) -> Bool[np.ndarray, "concept token"]:
        """Labelled tokens."""
        return np.ascontiguousarray(self.table.tokens.labels.T)

    @cached_property
    def negatives(self) -> Bool[np.ndarray, "concept token"]:
        """Tokens of negative samples."""
        tokens = self.table.tokens
        return np.ascontiguousarray(~tokens.sample_labels[tokens.sample_of].T)

    @property
    def outside(self) -> Bool[np.ndarray, "concept token"]:
        """Out-of-concept tokens."""
        return self.negatives if self.out == "negative" else ~self.inside

    def maxima(self, scores: Float[np.ndarray, "concept token"]) -> Float[np.ndarray, "concept sample"]:
        """Highest score of each sample; -inf for one without kept tokens."""
        bounds = self.table.tokens.bounds
        top = np.full((len(scores), len(bounds) - 1), -np.inf, dtype=np.float32)
        filled = np.flatnonzero(np.diff(bounds))
        if len(filled):
            top[:, filled] = np.maximum.reduceat(scores, bounds[filled], axis=1)
        return top


@dataclass(frozen=True, eq=False)
class Cuts:
    """Scores fixed before measuring, at one layer, by concept."""

    threshold: Float64[np.ndarray, " concept"]
    background: Float64[np.ndarray, " concept"]
    background_of_maxima: Float64[np.ndarray, " concept"]


def cuts(columns: Columns, layer: int, delta: float) -> Cuts:
    """Thresholds at delta and background quantiles of a split, by concept.

    Concepts without in-concept tokens (of SAE latents: without active ones) have threshold +inf,
    those without out-of-concept tokens background +inf.
    """
    scores, negative = columns.scores(layer), ~columns.table.tokens.sample_labels.T
    inside = columns.inside
    if columns.table.bank.token.scoring == "latent":
        # Zero is no activation of a latent: a threshold of zero would be reached everywhere.
        inside = inside & (scores > 0)
    threshold = tail_thresholds(scores.T, inside.T, [delta], names=columns.table.tokens.concepts)[0]
    tokens = [_high(s[rows]) for s, rows in zip(scores, columns.outside, strict=True)]
    tops = columns.maxima(scores)
    maxima = [_high(t[n & np.isfinite(t)]) for t, n in zip(tops, negative, strict=True)]
    return Cuts(threshold, np.array(tokens), np.array(maxima))


def cells(
    columns: Columns,
    layer: int,
    cut: Cuts,
    resamples: Resamples,
    frozen_sd: Float[np.ndarray, "layer concept"] | None = None,
) -> Iterator[Cell]:
    """One cell for each concept at a layer.

    Args:
        columns: Scores of the split that is measured.
        layer: Place of the layer.
        cut: Fixed scores.
        resamples: Draws over the samples, the data first.
        frozen_sd: Deviations to divide tail gaps by.
    """
    tokens = columns.table.tokens
    over_tokens = resamples.of(tokens.sample_of)
    scores = columns.scores(layer)
    tops = columns.maxima(scores)
    for k, (values, top) in enumerate(zip(scores, tops, strict=True)):
        positive = tokens.sample_labels[:, k]
        yield Cell(
            _group(values, columns.inside[k], over_tokens),
            _group(values, columns.outside[k], over_tokens),
            _group(values, columns.negatives[k], over_tokens),
            Group(values, over_tokens),
            columns.inside[k],
            _group(top, positive, resamples),
            _group(top, ~positive, resamples),
            float(cut.threshold[k]),
            float(cut.background[k]),
            float(cut.background_of_maxima[k]),
            None if frozen_sd is None else float(frozen_sd[layer, k]),
        )


def _group(
    values: Float[np.ndarray, " row"], chosen: Bool[np.ndarray, " row"], resamples: Resamples
) -> Group:
    return Group(values[chosen], resamples.of(np.flatnonzero(chosen)))


def _high(values: Float[np.ndarray, " row"]) -> float:
    return float(quantiles(values, [TAIL_LEVEL])[0]) if len(values) else float("inf")


SUMMARY = ("auroc", "overlap", "in_mass_at_fpr", "realised_fpr", "coverage", "negative_coverage", "tail_gap")


class Estimates(NamedTuple):
    """One measure with its percentile bounds."""

    value: Float64[np.ndarray, "layer concept"]
    low: Float64[np.ndarray, "layer concept"]
    high: Float64[np.ndarray, "layer concept"]


@dataclass(frozen=True, eq=False)
class Densities:
    """Binned densities of in- and out-of-concept scores, in deviations of `out` from its mean.

    Attributes:
        edges: Bin edges, one row for each layer and concept, or one row for all.
        in_concept, out_of_concept: Density in each bin; a row integrates to 1, less what lies
            beyond the edges.
    """

    edges: Float64[np.ndarray, "*each edge"]
    in_concept: Float64[np.ndarray, "layer concept bin"]
    out_of_concept: Float64[np.ndarray, "layer concept bin"]

    def __repr__(self) -> str:
        return f"Densities({self.in_concept.shape[-1]} bins, sd of out)"


@dataclass(frozen=True)
class TraceSettings:
    """How a trace was made.

    Attributes:
        split: Split the measures are of.
        fixed_on: Split that thresholds and background quantiles were fixed on: "cal", or `split`
            itself when no calibration split was scored (then they are mildly optimistic).
        out: "negative" (tokens of negative samples) or "all" (all unlabelled tokens).
        delta: Share of in-concept tokens that count as tail.
        fpr: Share of out-of-concept tokens above the background quantile on `fixed_on`; on `split`
            it is the measure `realised_fpr`.
        level: Of the intervals.
        draws: Bootstrap draws over documents.
        quantile_draws: Draws of the L-skewness.
        seed: Of the draws.
        n_documents: Documents resampled.
    """

    split: str
    fixed_on: str
    out: str
    delta: float
    fpr: float
    level: float
    draws: int
    quantile_draws: int
    seed: int
    n_documents: int


@dataclass(frozen=True, eq=False)
class TailTrace:
    """How a concept's tail forms by layer.

    Attributes:
        concepts: Second axis of the measures.
        layers: First axis: block indices.
        measures: By name; `sa_plugin.tracing.measures` defines them.
        layer_means: Mean over concepts, weighted by positive samples, of each measure on the data
            (draw 0) and on every draw.
        fixed: "threshold", "background" and "background_of_maxima" by layer and concept.
        counts: Tokens and samples behind each concept's measures.
        densities: With the joint edges of the overlap.
        common: With one axis for all layers and concepts, for plots.
        settings: How it was made.
    """

    concepts: tuple[str, ...]
    layers: tuple[int, ...]
    measures: Mapping[str, Estimates]
    layer_means: Mapping[str, Float64[np.ndarray, "layer _draw"]]
    fixed: Mapping[str, Float64[np.ndarray, "layer concept"]]
    counts: Mapping[str, Int[np.ndarray, " concept"]]
    densities: Densities
    common: Densities
    settings: TraceSettings

    def __repr__(self) -> str:
        return (
            f"TailTrace({len(self.concepts)} concepts, layers {list(self.layers)}, "
            f"{self.settings.split} split, delta {self.settings.delta:g}, "
            f"{self.settings.n_documents} documents)"
        )

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def __getitem__(self, name: str) -> Estimates:
        """One measure.

        Raises:
            KeyError: Unknown; the text names the nearest.
        """
        if name not in self.measures:
            hint = did_you_mean(name, self.measures)
            raise KeyError(f"{name!r} is no measure of a trace{hint}")
        return self.measures[name]

    def interval(self, measure: str, layer: int, concept: str | None = None) -> Interval:
        """A measure at one layer, of one concept or of the weighted mean over concepts.

        Raises:
            KeyError: Unknown measure.
            ValueError: Unknown layer or concept.
        """
        estimates, at, s = self[measure], self._layer(layer), self.settings
        if concept is None:
            return self._mean_interval(self.layer_means[measure][at])
        if concept not in self.concepts:
            hint = did_you_mean(concept, self.concepts)
            raise ValueError(f"{concept!r} was not traced{hint}")
        value, low, high = (float(a[at, self.concepts.index(concept)]) for a in estimates)
        draws = self.layer_means[measure].shape[1] - 1
        return Interval(value, low, high, s.level, draws, "documents", s.n_documents)

    def change(self, measure: str, start: int, end: int) -> Interval:
        """How the weighted mean of a measure changes between two layers, paired by draw.

        Raises:
            KeyError: Unknown measure.
            ValueError: Unknown layer.
        """
        self[measure]
        means = self.layer_means[measure]
        return self._mean_interval(means[self._layer(end)] - means[self._layer(start)])

    def rows(self) -> list[dict[str, Any]]:
        """One row for each layer and concept: every measure with its bounds."""
        rows = []
        for at, layer in enumerate(self.layers):
            for c, concept in enumerate(self.concepts):
                row: dict[str, Any] = {"layer": layer, "concept": concept}
                for name, estimates in self.measures.items():
                    for suffix, array in zip(("", "_low", "_high"), estimates, strict=True):
                        row[name + suffix] = float(array[at, c])
                row.update({name: float(array[at, c]) for name, array in self.fixed.items()})
                rows.append(row)
        return rows

    def table(self) -> Any:
        """The rows as a pandas DataFrame.

        Raises:
            ImportError: pandas is not installed; `rows()` needs nothing.
        """
        return require("pandas", "demo", "TailTrace.table").DataFrame(self.rows())

    def summary(self) -> str:
        """Weighted means over concepts with intervals, a line a layer."""
        s = self.settings
        lines = [
            f"{s.split}: {len(self.concepts)} concepts, means weighted by positive samples; "
            f"{100 * s.level:g} % intervals from {s.draws} resamples of {s.n_documents} documents. "
            f"Out of concept: {_OUT[s.out]}. Cuts fixed on {s.fixed_on}: delta {s.delta:g}, "
            f"false-positive rate {s.fpr:g}; {self._realised()}.",
            "layer  " + "  ".join(f"{name:>22}" for name in SUMMARY),
        ]
        for layer in self.layers:
            cells = [_short(self.interval(name, layer)) for name in SUMMARY]
            lines.append(f"{layer:>5}  " + "  ".join(f"{cell:>22}" for cell in cells))
        return "\n".join(lines)

    def _realised(self) -> str:
        rates, means = self["realised_fpr"].value, self.layer_means["realised_fpr"][:, 0]
        known = rates[np.isfinite(rates)]
        if not len(known):
            return "the realised one is not defined"
        return (
            f"realised on {self.settings.split} {np.nanmean(means):.4f} in the mean over layers, "
            f"{known.min():.4f} to {known.max():.4f} by concept and layer"
        )

    def _layer(self, layer: int) -> int:
        if layer not in self.layers:
            near = min(self.layers, key=lambda known: abs(known - layer))
            raise ValueError(f"layer {layer} was not traced: nearest is {near} of {self.layers}.")
        return self.layers.index(layer)

    def _mean_interval(self, drawn: Float64[np.ndarray, " draw"]) -> Interval:
        s = self.settings
        return interval(drawn[0], drawn[1:], n_units=s.n_documents, level=s.level)


_OUT = {"negative": "tokens of negative samples", "all": "all unlabelled tokens"}


def _short(value: Interval) -> str:
    return f"{value.estimate:.3f} [{value.low:.3f}, {value.high:.3f}]"


COMMON_EDGES: Float64[np.ndarray, " edge"] = np.arange(-40, 81) / 4.0


class DensityGrid:
    """Densities filled in cell by cell."""

    def __init__(self, layers: int, concepts: int) -> None:
        self._edges = np.full((layers, concepts, BINS + 1), np.nan)
        self._joint = np.full((2, layers, concepts, BINS), np.nan)
        self._common = np.full((2, layers, concepts, len(COMMON_EDGES) - 1), np.nan)

    def fill(
        self,
        layer: int,
        concept: int,
        inside: Float[np.ndarray, " in_row"],
        outside: Float[np.ndarray, " out_row"],
    ) -> None:
        """Bin one concept at one layer; without spread in `out` it stays NaN."""
        if not len(inside) or not len(outside) or outside.min() == outside.max():
            return
        centre, sd = outside.mean(dtype=np.float64), outside.std(dtype=np.float64)
        groups = [(x.astype(np.float64) - centre) / sd for x in (inside, outside)]
        edges = joint_edges(*groups)
        self._edges[layer, concept] = edges
        for k, group in enumerate(groups):
            self._joint[k, layer, concept] = density(group, edges)
            self._common[k, layer, concept] = density(group, COMMON_EDGES)

    def joint(self) -> Densities:
        """With the joint edges of each layer and concept."""
        return Densities(self._edges, *self._joint)

    def common(self) -> Densities:
        """With one axis, cut to the bins that hold anything."""
        used = np.flatnonzero((np.nan_to_num(self._common) > 0).any(axis=(0, 1, 2)))
        first, last = (used[0], used[-1]) if len(used) else (0, len(COMMON_EDGES) - 2)
        return Densities(COMMON_EDGES[first : last + 2], *self._common[..., first : last + 1])


def density(
    values: Float[np.ndarray, " row"], edges: Float64[np.ndarray, " edge"]
) -> Float64[np.ndarray, " bin"]:
    """Share of the values in each bin over its width; values beyond the edges are in none."""
    within = values[(values >= edges[0]) & (values <= edges[-1])]
    counts = np.bincount(bin_of(within, edges), minlength=len(edges) - 1)
    shares: np.ndarray = counts / (len(values) * np.diff(edges))
    return shares


class UndefinedMeasureWarning(UserWarning):
    """A concept lacks tokens or samples for some measures, which are NaN."""


def trace(
    host: Host | None = None,
    data: ConceptData | None = None,
    bank: ConceptBank | None = None,
    *,
    scores: ScoreTable | None = None,
    split: str = "test",
    delta: float = 0.05,
    out: Out = "negative",
    columns: Int[np.ndarray, "*layer concept"] | None = None,
    frozen_sd: Float[np.ndarray, "layer concept"] | None = None,
    draws: int = 1000,
    quantile_draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> TailTrace:
    """Measure in- against out-of-concept scores at every layer of a bank.

    Costs no forward pass when `scores` is given; otherwise one for each sample of the calibration
    and measured splits.

    Args:
        host: An attached model; only without `scores`, like `data` and `bank`.
        data: Labelled samples.
        bank: Concept vectors.
        scores: The shared score table, with the measured split and, for cuts that are fixed
            beforehand, the calibration split.
        split: Split to measure.
        delta: Share of the in-concept tokens that count as tail.
        out: Out-of-concept tokens: "negative" takes those of negative samples, "all" every
            unlabelled token.
        columns: Unit of each concept, for unsupervised banks: `[concept]`, or `[layer, concept]`
            when each layer was matched by itself.
        frozen_sd: Deviations of the negatives' scores that tail gaps are divided by, such as
            `trace(...)["sd_out"].value` of the unablated run; by default their own.
        draws: Bootstrap draws over documents.
        quantile_draws: Draws for the L-skewness.
        level: Of the intervals.
        seed: Of the draws.
        progress: Whether to show a bar.

    Returns:
        Measures by layer and concept.

    Raises:
        TypeError: `scores` is no ScoreTable, or one is given as the host.
        ValueError: Neither scores nor host, data and bank are given; units are not concepts and no
            columns are given; the split was not scored or has one document; NaN or Inf scores.

    Warns:
        UndefinedMeasureWarning: A concept has no in-concept token, or no positive or no negative
            sample; its measures are NaN.

    Example:
        >>> trace(scores=table).summary()  # doctest: +SKIP
    """
    table = _table(host, data, bank, scores, split, progress)
    tail_levels([delta])
    place = _columns(table, columns)
    here = Columns(table.split(split), place, _out(out))
    fixed_on = "cal" if "cal" in table.tokens.split_of else split
    there = here if fixed_on == split else Columns(table.split(fixed_on), place, out)
    _check_sd(frozen_sd, place)
    _warn_undefined(here)
    drawn = resample_documents(document_names(here.table.tokens), draws=draws, seed=seed)
    few = min(quantile_draws, draws)
    run = _Run(here, there, drawn.with_data(), delta, few, level, frozen_sd)
    settings = TraceSettings(
        split, fixed_on, out, delta, round(1 - TAIL_LEVEL, 6), level, draws, few, seed, drawn.n_documents
    )
    return _assemble(run, settings, progress)


@dataclass(frozen=True, eq=False)
class _Run:
    here: Columns
    there: Columns
    resamples: Resamples
    delta: float
    quantile_draws: int
    level: float
    frozen_sd: Float[np.ndarray, "layer concept"] | None

    def layer(
        self, at: int, grid: DensityGrid
    ) -> tuple[Cuts, dict[str, Float64[np.ndarray, "concept _draw"]]]:
        """Cuts and measures of one layer; its densities go into the grid."""
        check_finite(self.here.scores(at), f"scores at layer {self.here.table.bank.layers[at]}")
        cut = _quiet_cuts(self.there, at, self.delta)
        found: dict[str, list[np.ndarray]] = {}
        every = cells(self.here, at, cut, self.resamples, self.frozen_sd)
        for k, cell in enumerate(every):
            grid.fill(at, k, cell.inside.values, cell.outside.values)
            for name, values in measure(cell, self.delta, self.quantile_draws).items():
                found.setdefault(name, []).append(values)
        return cut, {name: np.stack(values) for name, values in found.items()}


def _assemble(run: _Run, settings: TraceSettings, progress: bool) -> TailTrace:
    table = run.here.table
    n_layers, concepts = len(table.bank.layers), table.tokens.concepts
    grid = DensityGrid(n_layers, len(concepts))
    positives = resampled_sums(table.tokens.sample_labels.T, run.resamples)
    bounds: dict[str, list[tuple[np.ndarray, ...]]] = {}
    means: dict[str, list[np.ndarray]] = {}
    fixed = []
    for at in tqdm(range(n_layers), desc="trace", disable=not progress, leave=False):
        cut, found = run.layer(at, grid)
        fixed.append(cut)
        for name, values in found.items():
            low, high = percentile_bounds(values[:, 1:], run.level)
            bounds.setdefault(name, []).append((values[:, 0], low, high))
            weights = positives[:, : values.shape[1]]
            means.setdefault(name, []).append(mean_over_concepts(values.T, weights.T))
    return TailTrace(
        concepts,
        table.bank.layers,
        {name: Estimates(*map(np.stack, zip(*rows, strict=True))) for name, rows in bounds.items()},
        {name: np.stack(rows) for name, rows in means.items()},
        {name: np.stack([getattr(cut, name) for cut in fixed]) for name in vars(fixed[0])},
        _counts(run.here),
        grid.joint(),
        grid.common(),
        settings,
    )


def _table(
    host: Host | None,
    data: ConceptData | None,
    bank: ConceptBank | None,
    scores: ScoreTable | None,
    split: str,
    progress: bool,
) -> ScoreTable:
    require_type("scores", scores, ScoreTable, "give score(host, data, bank)", optional=True)
    if isinstance(host, ScoreTable):
        require_type("host", host, Host, "pass scores=")
    if scores is not None:
        return scores
    if host is None or data is None or bank is None:
        raise ValueError("give scores=score(host, data, bank), or host, data and bank.")
    from sa_plugin.scores.score import score

    splits = list(dict.fromkeys(["cal", split]))
    return score(host, data, bank, splits=splits, progress=progress)


def _columns(
    table: ScoreTable, columns: Int[np.ndarray, "*layer concept"] | None
) -> Int[np.ndarray, "layer concept"]:
    bank, concepts = table.bank, table.tokens.concepts
    shape = (len(bank.layers), len(concepts))
    if columns is None:
        missing = [c for c in concepts if c not in bank.units]
        if missing:
            raise ValueError(
                f"the bank's {len(bank.units)} units ({bank.kind!r}) are not the concepts (no "
                f"{missing[0]!r}): match them on the calibration split and give columns, the unit "
                "of each concept."
            )
        columns = np.array([bank.units.index(c) for c in concepts])
    place = np.asarray(columns)
    if place.shape not in (shape, shape[1:]) or not np.issubdtype(place.dtype, np.integer):
        raise ValueError(f"columns {place.shape} must be whole numbers [concept] or {shape}.")
    if place.min(initial=0) < 0 or place.max(initial=0) >= len(bank.units):
        raise ValueError(f"columns must name units 0 to {len(bank.units) - 1} of the bank.")
    return np.broadcast_to(place, shape)


def _out(out: str) -> Out:
    if out == "negative" or out == "all":
        return out  # type: ignore[return-value]
    raise ValueError(f"out {out!r} is unknown: use 'negative' or 'all'.")


def _check_sd(
    frozen_sd: Float[np.ndarray, "layer concept"] | None, place: Int[np.ndarray, "layer concept"]
) -> None:
    if frozen_sd is not None and np.shape(frozen_sd) != place.shape:
        raise ValueError(f"frozen_sd {np.shape(frozen_sd)} must be [layer, concept] {place.shape}.")


def _quiet_cuts(columns: Columns, layer: int, delta: float) -> Cuts:
    """Cuts with the count warnings at the first layer only: labels are the same at all."""
    with warnings.catch_warnings():
        if layer:
            warnings.simplefilter("ignore", FewTokensWarning)
            warnings.simplefilter("ignore", EmptyConceptWarning)
        return cuts(columns, layer, delta)


def _warn_undefined(here: Columns) -> None:
    counts = _counts(here)
    for what, values in counts.items():
        lacking = [c for c, n in zip(here.table.tokens.concepts, values, strict=True) if n == 0]
        if lacking:
            warnings.warn(
                f"no {what.replace('_', ' ')} for {', '.join(map(repr, lacking))} in the split: "
                "what needs them is NaN and is left out of means over concepts.",
                UndefinedMeasureWarning,
                stacklevel=3,
            )


def _counts(here: Columns) -> Mapping[str, Int[np.ndarray, " concept"]]:
    positive = here.table.tokens.sample_labels
    return {
        "in_concept_tokens": here.inside.sum(axis=1),
        "out_of_concept_tokens": here.outside.sum(axis=1),
        "positive_samples": positive.sum(axis=0),
        "negative_samples": (~positive).sum(axis=0),
    }
