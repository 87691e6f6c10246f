"""Sparsity: how detection depends on delta, all concepts sharing one layer and one delta.

Weighted test F1 against delta (arXiv 2512.05038, section 5.1): with delta near 1 nearly every
sample fires and F1 falls to that of always answering yes, the floor `2p / (1 + p)`. A peak at small
delta says the evidence is in the tail. The layer is the one with SuperActivators' best calibration
F1, averaged over concepts, at its best shared delta (ties to the earlier layer), unless given; the
baselines are drawn at the same layer, which need not be their best.

The curve is read off the test split: peaks are picked on test, no estimate of what a delta chosen
beforehand gives. MaxTok thresholds the same statistic at other quantiles, so its curve is the same
one, stretched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from sa_plugin.data.concept_data import Split
from sa_plugin.detection.calibration import Calibration
from sa_plugin.detection.guard import document_names, labels_of
from sa_plugin.detection.measures import averaged, f1_of, positives_of
from sa_plugin.detection.methods import TAIL, values
from sa_plugin.detection.search import Calibrated
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.html import ALWAYS
from sa_plugin.show.result import Result, Sheet, number
from sa_plugin.statistics.bootstrap import Resamples, resample_documents, resampled_confusion
from sa_plugin.statistics.confusion import reaches
from sa_plugin.statistics.drawn import Drawn, Resampling


@dataclass(frozen=True, eq=False, repr=False)
class SparsityCurve(Result):
    """Weighted F1 against delta at one layer.

    Attributes:
        layer: Block index.
        f1: Over method and delta.
        always_positive: The floor.
        chosen: Method to the number of concepts (times draws) whose own choice is each delta.
        missing: Methods not fitted, with the reason.
        split: Name of the split.
    """

    layer: int
    f1: Drawn
    always_positive: Drawn
    chosen: Mapping[str, Int[np.ndarray, " delta"]]
    missing: Mapping[str, str]
    split: str

    about: ClassVar[str] = (
        "Peaks are picked on the split that is shown: no estimate of what a delta chosen beforehand gives. "
        "Intervals are conditional on train and calibration."
    )

    @property
    def deltas(self) -> tuple[float, ...]:
        """The grid."""
        return tuple(self.f1.axes["delta"])

    def headline(self) -> str:
        """The layer and SuperActivators' peak."""
        own = self.f1.sel(method=TAIL)
        best = self.deltas[int(np.nanargmax(own.estimate))]
        return (
            f"layer {self.layer}, SuperActivators peak at delta {best:g} "
            f"(picked on {self.split}): "
            f"{own.sel(delta=best)}, always-positive {number(self.always_positive.estimate)}"
        )

    def sheets(self) -> tuple[Sheet, ...]:
        """F1 of every method at every delta, peaks, and what was chosen on calibration."""
        methods = self.f1.axes["method"]
        lines = [[name, *map(number, self.f1.sel(method=name).estimate)] for name in methods]
        lines.append([ALWAYS, *[number(self.always_positive.estimate)] * len(self.deltas)])
        lines.append(["chosen by concepts", *(str(n) for n in self.chosen[TAIL])])
        notes = [
            "Layer: SuperActivators' best by calibration, unless one was given.",
            self._peaks(),
            *(f"{m} is not fitted: {why}." for m, why in self.missing.items()),
            f"Intervals in .table(): each of {self.f1.units} documents left out in turn.",
        ]
        title = f"Weighted F1 on {self.split!r} at layer {self.layer}, one delta for all concepts."
        return (Sheet(["delta", *(f"{d:g}" for d in self.deltas)], lines, title, notes),)

    def _peaks(self) -> str:
        curves = {name: self.f1.sel(method=name).estimate for name in self.f1.axes["method"]}
        best = {n: int(np.nanargmax(f1)) for n, f1 in curves.items() if np.isfinite(f1).any()}
        at = (f"{n} {number(curves[n][k])} at {self.deltas[k]:g}" for n, k in best.items())
        return f"Peaks (picked on {self.split}): {', '.join(at)}."

    def plot(self) -> Any:
        """Weighted F1 against delta, SuperActivators and MaxTok with bands, and the floor."""
        from sa_plugin.show import plots

        figure, ax = plots.new_figure(7.0, 3.8)
        plots.delta_curves(ax, self.f1, float(self.always_positive.estimate))
        plots.words(ax, title=f"layer {self.layer}", x="delta", y=f"weighted F1, {self.split}")
        plots.legend(ax)
        plots.note(
            figure,
            f"Bands: {100 * self.f1.level:g} % over documents. Peaks are picked on this split.",
            self.f1,
        )
        return figure


def sweep(
    calibration: Calibration,
    split: Split,
    table: ScoreTable,
    layer: int | None = None,
    resampling: Resampling = Resampling(),
) -> SparsityCurve:
    """Measure every delta; see `Detector.sweep`.

    Args:
        calibration: Thresholds of every method.
        split: What the table's samples are.
        table: Their scores.
        layer: Block index; by default that of the best mean calibration F1.
        resampling: Of source documents.
    """
    place = best_layer(calibration.tail) if layer is None else calibration.bank.index(layer)
    _, labels = labels_of(table, calibration.concepts)
    resamples = resample_documents(document_names(table.tokens), resampling)
    positives = positives_of(labels, resamples)
    methods = calibration.methods
    curves = {
        name: _curve(each, table, place, labels, positives, resamples, calibration.seed)
        for name, each in methods.items()
    }
    always = f1_of(resampled_confusion(np.ones_like(labels.T), labels.T, resamples))
    carried = resamples.rows(labels.sum(1))
    return SparsityCurve(
        calibration.bank.layers[place],
        resamples.drawn(
            np.stack(list(curves.values())),
            "share",
            carried,
            method=tuple(curves),
            delta=calibration.tail.deltas,
        ),
        resamples.drawn(averaged(always, positives, "weighted"), "none", carried),
        {name: _histogram(each) for name, each in methods.items()},
        dict(calibration.missing),
        split.name,
    )


def best_layer(tail: Calibrated) -> int:
    """Place of the layer with the best mean calibration F1 at its best shared delta."""
    return int(tail.f1.mean(-1).max(1).argmax())


def _curve(
    calibrated: tuple[Calibrated, ...],
    table: ScoreTable,
    place: int,
    labels: Bool[np.ndarray, "sample concept"],
    positives: Float[np.ndarray, "concept column"],
    resamples: Resamples,
    seed: int,
) -> Float[np.ndarray, "delta column"]:
    curves = []
    for draw, each in enumerate(calibrated):
        # Matched units may differ by layer: the curve takes those of its own layer.
        unit, at = each.at_layer(place)
        layer = np.full(len(unit), place)
        value = values(each.method, table, layer, unit, each.parameters_at(at), seed=seed, draw=draw)
        tau = each.thresholds[at][..., None]
        fired = reaches(value.T, tau)
        curves.append(averaged(f1_of(resampled_confusion(fired, labels.T, resamples)), positives, "weighted"))
    return np.asarray(np.mean(curves, axis=0))


def _histogram(calibrated: tuple[Calibrated, ...]) -> Int[np.ndarray, " delta"]:
    chosen = np.concatenate([c.delta for c in calibrated])
    return np.bincount(chosen, minlength=len(calibrated[0].deltas))
