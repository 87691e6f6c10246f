"""From sums over samples to quantities with intervals, each minus its controls on the same draws.

Intervals resample source documents (`sa_plugin.statistics.bootstrap`), the vectors held fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from sa_plugin.statistics.bootstrap import Resamples
from sa_plugin.statistics.interval import Interval, interval, percentile_bounds
from sa_plugin.theory._pass import Sums
from sa_plugin.theory.directions import Directions
from sa_plugin.theory.measures import KINDS, Measured, measure, tenth_slopes

CONTROLS = ("permuted", "random")
# What verdicts rest on (`theory.verdicts`).
DECISIVE = (
    *(f"{who}{what}" for who in ("", "heads_", "prefix_")
      for what in ("gap_deviation_ratio", "gaps_grown")),
    "attention_by_sign", "equalisation", "tail_gain", "skew_growth",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Quantity:
    """One quantity of one concept and direction, by layer.

    Attributes:
        name: See `sa_plugin.theory.measures`.
        theorem: What it belongs to.
        null: Its value where nothing happens.
        value, low, high: Measured, with percentile bounds.
        predicted: By the idealised model; None where it says nothing or weights are missing.
        controls: The same of permuted-label and random directions, as far as there are any.
        excess: Value, low and high of measured minus control, `[3, layer]`.
    """

    name: str
    theorem: str
    null: float
    value: Float64[np.ndarray, " layer"]
    low: Float64[np.ndarray, " layer"]
    high: Float64[np.ndarray, " layer"]
    predicted: Float64[np.ndarray, " layer"] | None
    controls: Mapping[str, Float64[np.ndarray, " layer"]]
    excess: Mapping[str, Float64[np.ndarray, "3 layer"]]

    def __repr__(self) -> str:
        known = np.isfinite(self.value)
        if not known.any():
            return f"Quantity({self.name}: not defined)"
        mean = float(self.value[known].mean())
        beside = "" if self.predicted is None else f", predicted {np.nanmean(self.predicted):.3f}"
        beside += "".join(f", {k} {np.nanmean(v):.3f}" for k, v in self.controls.items())
        return f"Quantity({self.name}: mean of {known.sum()} layers {mean:.3f}{beside})"


@dataclass(frozen=True, eq=False)
class Drawn:
    """Every quantity of one concept and direction on every draw; draw 0 is the data.

    Attributes:
        own, predicted: `[draw, layer]` by name.
        controls: `[draw, layer]` by control and name, random directions averaged.
        each: `[draw, layer, control]` by decisive name: every control direction by itself, those
            of other concepts' permuted labels included.
        tenths: Slopes between neighbouring tenths of a, measured and predicted, `[layer, step]`.
        n_documents: Resampled.
        level: Of the intervals.
    """

    own: Mapping[str, Float64[np.ndarray, "draw layer"]]
    predicted: Mapping[str, Float64[np.ndarray, "draw layer"]]
    controls: Mapping[str, Mapping[str, Float64[np.ndarray, "draw layer"]]]
    each: Mapping[str, Float64[np.ndarray, "draw layer control"]]
    tenths: Mapping[str, Float64[np.ndarray, "layer step"]]
    n_documents: int
    level: float

    def quantity(self, name: str) -> Quantity:
        """One quantity with its bounds."""
        own, kind = self.own[name], KINDS[name]
        low, high = percentile_bounds(own[1:].T, self.level)
        controls = {c: self.controls[c][name] for c in CONTROLS if c in self.controls}
        excess = {}
        for control, drawn in controls.items():
            gap = own - drawn
            excess[control] = np.stack([gap[0], *percentile_bounds(gap[1:].T, self.level)])
        predicted = self.predicted.get(name)
        return Quantity(
            name, kind.theorem, kind.null, own[0], low, high,
            None if predicted is None else predicted[0],
            {control: drawn[0] for control, drawn in controls.items()}, excess,
        )  # fmt: skip

    def mean(self, name: str, layers: Bool[np.ndarray, " layer"]) -> Interval:
        """Mean of a quantity over some layers."""
        return self._mean(self.own[name][:, layers])

    def excess(self, name: str, layers: Bool[np.ndarray, " layer"]) -> list[Interval]:
        """Mean over some layers of a quantity minus that of each control that has it."""
        own, each = self.own[name][:, layers], self.each[name][:, layers]
        found = [self._mean(own - each[..., k]) for k in range(each.shape[-1])]
        return [one for one in found if np.isfinite(one.estimate)]

    def _mean(self, drawn: Float64[np.ndarray, "draw chosen"]) -> Interval:
        known = np.isfinite(drawn[0])
        if not known.any():
            return Interval(np.nan, np.nan, np.nan, self.level, 0, "documents", self.n_documents)
        mean = drawn[:, known].mean(axis=1)
        return interval(mean[0], mean[1:], n_units=self.n_documents, level=self.level)


def draw(
    sums: Sums,
    directions: Directions,
    concept: str,
    direction: str,
    samples: Bool[np.ndarray, " sample"],
    resamples: Resamples,
    *,
    causal: bool,
    aligned_gamma: Float64[np.ndarray, "layer column"] | None,
    level: float,
) -> Drawn:
    """Every quantity of one concept and direction.

    Args:
        sums: Of all samples.
        directions: What the columns are.
        concept: Whose.
        direction: "fixed" or "refitted".
        samples: Which samples count.
        resamples: Draws over the samples, the data first.
        causal: Whether the model is.
        aligned_gamma: See `measure`.
        level: Of the intervals.
    """
    where = directions.where(concept, direction)
    columns = where["concept"] + where.get("every control", [])
    total = _Totals(sums, columns, samples, resamples)
    weights = "path" in sums.values
    gamma = None if aligned_gamma is None else aligned_gamma[:, columns]
    found = measure(total, causal=causal, weights=weights, aligned_gamma=gamma)
    shape = total("tokens").shape
    place = {role: [columns.index(k) for k in where.get(role, [])] for role in CONTROLS}
    predicted = {n: m.predicted for n, m in found.items() if m.predicted is not None}
    steps = {"measured": "layer", "heads": "heads"} | (
        {"predicted": "predicted"} if gamma is not None else {}
    )
    return Drawn(
        {name: np.broadcast_to(m.value, shape)[..., 0].copy() for name, m in found.items()},
        {name: np.broadcast_to(value, shape)[..., 0].copy() for name, value in predicted.items()},
        {role: _averaged(found, shape, at) for role, at in place.items() if at},
        {n: np.broadcast_to(found[n].value, shape)[..., 1:] for n in DECISIVE if n in found},
        {name: tenth_slopes(total, part)[0, :, 0] for name, part in steps.items()},
        resamples.n_documents,
        level,
    )


def _averaged(
    found: Mapping[str, Measured], shape: tuple[int, ...], at: Sequence[int]
) -> dict[str, Float64[np.ndarray, "draw layer"]]:
    return {n: np.broadcast_to(m.value, shape)[..., at].mean(axis=-1) for n, m in found.items()}


class _Totals:
    """Sums of some columns over the samples of every draw, by name, computed once."""

    def __init__(
        self,
        sums: Sums,
        columns: Sequence[int],
        samples: Bool[np.ndarray, " sample"],
        resamples: Resamples,
    ) -> None:
        self.sums, self.columns = sums, list(columns)
        # How often each draw takes each sample that counts.
        self.weights = resamples.sample_weights * samples
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, name: str) -> np.ndarray:
        if name not in self.known:
            values = self.sums.values[name]
            values = values[:, :, None] if values.ndim == 2 else values[:, :, self.columns]
            self.known[name] = np.tensordot(self.weights.astype(np.float64), values, axes=1)
        return self.known[name]
