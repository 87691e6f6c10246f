"""What a trace found: measures by layer and concept, with intervals over documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from sa_plugin._names import did_you_mean
from sa_plugin._optional import require
from sa_plugin.detection.printing import as_html
from sa_plugin.statistics.interval import Interval, interval

SUMMARY = (
    "auroc", "overlap", "in_mass_at_fpr", "realised_fpr", "coverage", "negative_coverage",
    "tail_gap",
)  # fmt: skip


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
