"""Sparsity: how detection depends on delta, all concepts sharing one layer and one delta.

Weighted test F1 against delta (arXiv 2512.05038, section 5.1): with delta near 1 nearly every
sample fires and F1 falls to that of always answering yes, the floor `2p / (1 + p)`. A peak at small
delta says the evidence is in the tail. The layer is the one with SuperActivators' best calibration
F1, averaged over concepts, at its best shared delta (ties to the earlier layer), unless given; the
baselines are drawn at the same layer, which need not be their best.

The curve is read off the test split: peaks are picked on test, no estimate of what a delta chosen
beforehand gives. MaxTok
thresholds the same statistic at other quantiles, so its curve is the same one, stretched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sa_plugin.data.concept_data import Split
from sa_plugin.detection.evaluate import averaged, counted, f1_of, interval_of, labels_of, positives_of
from sa_plugin.detection.guard import check_unseen, document_names
from sa_plugin.detection.methods import ALWAYS, TAIL, values
from sa_plugin.detection.search import Calibrated
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import aligned, as_html, frame, number, plain
from sa_plugin.statistics.bootstrap import Resamples, resample_documents
from sa_plugin.statistics.drawn import Interval

if TYPE_CHECKING:
    from sa_plugin.detection.detector import Detector


@dataclass(frozen=True, eq=False)
class SparsityCurve:
    """Weighted F1 against delta at one layer.

    Attributes:
        layer: Block index.
        deltas: The grid.
        f1: Method to one interval a delta.
        always_positive: The floor.
        chosen: Method to the number of concepts (times draws) whose own choice is each delta.
        missing: Methods not fitted, with the reason.
        split: Name of the split.
        seed: Of the resamples.
    """

    layer: int
    deltas: tuple[float, ...]
    f1: Mapping[str, tuple[Interval, ...]]
    always_positive: Interval
    chosen: Mapping[str, Int[np.ndarray, " delta"]]
    missing: Mapping[str, str]
    split: str
    seed: int

    def __repr__(self) -> str:
        curve = self.f1[TAIL]
        best = int(np.nanargmax([i.estimate for i in curve]))
        return (
            f"SparsityCurve(layer {self.layer}, SuperActivators peak at delta "
            f"{self.deltas[best]:g} (picked on {self.split}): {curve[best]}, always-positive "
            f"{number(self.always_positive.estimate)})"
        )

    def __str__(self) -> str:
        header = ["delta", *(f"{d:g}" for d in self.deltas)]
        lines = [[name, *(number(i.estimate) for i in row)] for name, row in self.f1.items()]
        lines.append([ALWAYS, *[number(self.always_positive.estimate)] * len(self.deltas)])
        lines.append(["chosen by concepts", *(str(n) for n in self.chosen[TAIL])])
        about = self.always_positive
        return "\n".join(
            [
                f"Weighted F1 on {self.split!r} at layer {self.layer}, one delta for all concepts.",
                aligned(header, lines),
                "Layer: SuperActivators' best by calibration, unless one was given.",
                self._peaks(),
                *(f"{m} is not fitted: {why}." for m, why in self.missing.items()),
                f"Intervals in .table(): {about.draws} draws of {about.n_units} documents, seed "
                f"{self.seed}, conditional on train and calibration.",
            ]
        )

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def _peaks(self) -> str:
        curves = {name: np.array([i.estimate for i in row]) for name, row in self.f1.items()}
        best = {n: int(np.nanargmax(f1)) for n, f1 in curves.items() if np.isfinite(f1).any()}
        at = (f"{n} {number(curves[n][k])} at {self.deltas[k]:g}" for n, k in best.items())
        return f"Peaks (picked on {self.split}): {', '.join(at)}."

    def table(self) -> Any:
        """One row for each method and delta: a DataFrame where pandas is installed."""
        curves = {**self.f1, ALWAYS: (self.always_positive,) * len(self.deltas)}
        return frame(
            [
                {"method": name, "delta": d, "f1": i.estimate, "low": i.low, "high": i.high}
                for name, row in curves.items()
                for d, i in zip(self.deltas, row, strict=True)
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Every number, JSON-ready."""
        found = {
            "split": self.split,
            "seed": self.seed,
            "layer": self.layer,
            "deltas": self.deltas,
            "f1": {name: [asdict(i) for i in row] for name, row in self.f1.items()},
            "always_positive": asdict(self.always_positive),
            "chosen": dict(self.chosen),
            "not_fitted": dict(self.missing),
        }
        return dict(plain(found))


def sweep(
    detector: Detector,
    split: Split,
    *,
    scores: ScoreTable | None,
    layer: int | None,
    draws: int,
    seed: int,
    level: float,
) -> SparsityCurve:
    """See `Detector.sweep`."""
    check_unseen(split, detector.seen)
    place = best_layer(detector.tail) if layer is None else detector.bank.index(layer)
    table = detector.scores_of(split, scores)
    _, labels = labels_of(table, detector.concepts)
    resamples = resample_documents(document_names(table.tokens), draws=draws, seed=seed)
    positives = positives_of(labels, resamples)
    methods = {TAIL: (detector.tail,), **detector.baselines}
    curves = {
        name: _curve(each, table, place, labels, positives, resamples, detector.seed)
        for name, each in methods.items()
    }
    always = f1_of(counted(np.ones_like(labels.T), labels.T, resamples))
    return SparsityCurve(
        detector.bank.layers[place],
        detector.tail.deltas,
        {n: tuple(interval_of(row, resamples, level) for row in c) for n, c in curves.items()},
        interval_of(averaged(always, positives, "weighted"), resamples, level),
        {name: _histogram(each) for name, each in methods.items()},
        dict(detector.missing),
        split.name,
        seed,
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
        unit, at = each.at_layer(place)
        layer = np.full(len(unit), place)
        value = values(each.method, table, layer, unit, seed=seed, draw=draw).astype(np.float64)
        tau = each.thresholds[at][..., None]
        fired = tau <= value.T
        curves.append(averaged(f1_of(counted(fired, labels.T, resamples)), positives, "weighted"))
    return np.asarray(np.mean(curves, axis=0))


def _histogram(calibrated: tuple[Calibrated, ...]) -> Int[np.ndarray, " delta"]:
    chosen = np.concatenate([c.delta for c in calibrated])
    return np.bincount(chosen, minlength=len(calibrated[0].deltas))
