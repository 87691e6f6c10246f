"""The one search all methods share: threshold, delta, unit and layer by calibration F1.

For each layer l, delta d and concept c the threshold is `tau = Q_{1-d}` of reference scores of the
calibration split (in-concept tokens for SuperActivators, positive samples for the baselines). A
sample fires iff its statistic is at least tau, in float64. With calibration F1 = 2TP / (2TP + FP +
FN): delta per (concept, layer, unit) is the best one, ties to the smaller; the unit per (concept,
layer), ties to the first; the layer per concept, ties to the earlier (arXiv 2512.05038, 3.2).

A statistic with parameters is searched so for each candidate of its grid, and a concept keeps at every
layer the candidate with the best calibration F1, ties to the first, as it keeps a unit: parameters are
candidates like any other, and counted (`best_of`).

The same calibration samples give quantile and selection, so `cal_f1` is optimistic; test is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from sa_plugin.statistics.confusion import confusion, f1, reaches


@dataclass(frozen=True, eq=False)
class Calibrated:
    """One method's whole calibration table and what was chosen from it.

    Attributes:
        method: Name.
        deltas: The grid, ascending.
        thresholds: Threshold at every layer and delta; +inf where there was no reference score.
        f1: Calibration F1 at every layer and delta.
        unit: Unit that stands for each concept at each layer.
        layer: Place of each concept's chosen layer.
        delta: Place of each concept's chosen delta.
        candidates: Number of (layer, delta, unit, parameters) each concept's choice was made from.
        parameters: Of the statistic, in the scores' unit; None where it has none.
        promised: Thresholds that keep a promise, in place of the chosen ones; NaN for concepts that none is
            made for, None where there is no promise.
    """

    method: str
    deltas: tuple[float, ...]
    thresholds: Float[np.ndarray, "layer delta concept"]
    f1: Float[np.ndarray, "layer delta concept"]
    unit: Int[np.ndarray, "layer concept"]
    layer: Int[np.ndarray, " concept"]
    delta: Int[np.ndarray, " concept"]
    candidates: int
    parameters: Float[np.ndarray, "layer concept parameter"] | None = None
    promised: Float[np.ndarray, " concept"] | None = None

    def __repr__(self) -> str:
        layers, _, concepts = self.f1.shape
        return (
            f"Calibrated({self.method!r}, {concepts} concepts, {layers} layers x "
            f"{len(self.deltas)} deltas, mean cal F1 {self.chosen_f1.mean():.3f})"
        )

    @property
    def chosen_unit(self) -> Int[np.ndarray, " concept"]:
        """Unit at the chosen layer."""
        return np.asarray(self.unit[self.layer, np.arange(len(self.layer))])

    @property
    def chosen_delta(self) -> Float[np.ndarray, " concept"]:
        """The chosen delta itself."""
        return np.asarray(np.array(self.deltas)[self.delta])

    @property
    def chosen_threshold(self) -> Float[np.ndarray, " concept"]:
        """Threshold at the chosen layer and delta, or the promised one."""
        chosen = np.asarray(self.thresholds[self.layer, self.delta, np.arange(len(self.layer))])
        return chosen if self.promised is None else np.where(np.isnan(self.promised), chosen, self.promised)

    @property
    def chosen_f1(self) -> Float[np.ndarray, " concept"]:
        """Calibration F1 of the choice."""
        return np.asarray(self.f1[self.layer, self.delta, np.arange(len(self.layer))])

    def at_layer(self, layer: int) -> tuple[Int[np.ndarray, " concept"], int]:
        """Units at a fixed layer, and its place in this table (0 where layers mean nothing)."""
        place = layer if len(self.unit) > 1 else 0
        return self.unit[place], place

    def parameters_at(
        self, layer: int | Int[np.ndarray, " concept"]
    ) -> Float[np.ndarray, "concept parameter"] | None:
        """Parameters at a layer, or each concept's at its own; None where the statistic has none."""
        if self.parameters is None:
            return None
        return np.asarray(self.parameters[layer, np.arange(self.unit.shape[1])])


def best_of(each: Iterable[tuple[Calibrated, tuple[Float[np.ndarray, "layer unit"], ...]]]) -> Calibrated:
    """One table of several, made with different parameters: each concept's best at every layer.

    Args:
        each: Tables of one method, and the parameters they were made with, for every layer and unit.
    """
    tables, parameters = zip(*each, strict=True)
    best = np.stack([table.f1.max(1) for table in tables]).argmax(0)
    unit = _pick([table.unit for table in tables], best)
    layers = np.arange(len(unit))[:, None]
    numbers = [
        np.stack([one[layers, table.unit] for one in own], axis=-1)
        for table, own in zip(tables, parameters, strict=True)
    ]
    found = _choose(
        tables[0].method,
        _pick([table.f1.swapaxes(1, 2) for table in tables], best).swapaxes(1, 2),
        _pick([table.thresholds.swapaxes(1, 2) for table in tables], best).swapaxes(1, 2),
        unit,
        tables[0].deltas,
        sum(table.candidates for table in tables),
    )
    return replace(found, parameters=_pick(numbers, best))


def _pick(
    each: Sequence[Shaped[np.ndarray, "layer concept ..."]], which: Int[np.ndarray, "layer concept"]
) -> Shaped[np.ndarray, "layer concept ..."]:
    """At every layer and concept one of several arrays."""
    layer, concept = np.indices(which.shape)
    return np.asarray(np.stack(each)[which, layer, concept])


def search_own(
    method: str,
    statistic: Float[np.ndarray, "sample layer concept"],
    labels: Bool[np.ndarray, "sample concept"],
    thresholds: Float[np.ndarray, "layer delta concept"],
    deltas: tuple[float, ...],
) -> Calibrated:
    """Choose delta and layer where unit k is concept k.

    Args:
        method: Name, carried along.
        statistic: What is thresholded.
        labels: Sample labels.
        thresholds: Candidates.
        deltas: Their deltas, ascending.
    """
    stat = _samples_last(statistic)
    truth = labels.T
    table = np.empty(thresholds.shape)
    for at, d in np.ndindex(thresholds.shape[:2]):
        table[at, d] = f1(confusion(reaches(stat[at], thresholds[at, d, :, None]), truth))
    layers, concepts = len(table), labels.shape[1]
    unit = np.broadcast_to(np.arange(concepts), (layers, concepts))
    return _choose(method, table, thresholds, unit, deltas, layers * len(deltas))


def search_matched(
    method: str,
    statistic: Float[np.ndarray, "sample layer unit"],
    labels: Bool[np.ndarray, "sample concept"],
    thresholds: Float[np.ndarray, "layer delta concept unit"],
    deltas: tuple[float, ...],
) -> Calibrated:
    """Choose delta, unit and layer where every unit may stand for every concept.

    Args:
        method: Name, carried along.
        statistic: What is thresholded.
        labels: Sample labels.
        thresholds: Candidates, for every pair of concept and unit.
        deltas: Their deltas, ascending.
    """
    stat = _samples_last(statistic)
    table = np.empty(thresholds.shape)
    for at, d, c in np.ndindex(thresholds.shape[:3]):
        fired = reaches(stat[at], thresholds[at, d, c, :, None])
        table[at, d, c] = f1(confusion(fired, labels[:, c]))
    # A concept keeps one unit a layer over all deltas: its best at that unit's best delta.
    unit = table.max(1).argmax(-1)
    index = unit[:, None, :, None]
    f1_of = np.take_along_axis(table, index, axis=-1)[..., 0]
    thresholds_of = np.take_along_axis(thresholds, index, axis=-1)[..., 0]
    layers, _, _, units = thresholds.shape
    return _choose(method, f1_of, thresholds_of, unit, deltas, layers * len(deltas) * units)


def _choose(
    method: str,
    table: Float[np.ndarray, "layer delta concept"],
    thresholds: Float[np.ndarray, "layer delta concept"],
    unit: Int[np.ndarray, "layer concept"],
    deltas: tuple[float, ...],
    candidates: int,
) -> Calibrated:
    # argmax takes the first of equals: the earlier layer, the smaller delta.
    layer = table.max(1).argmax(0)
    delta = table.argmax(1)[layer, np.arange(len(layer))]
    return Calibrated(method, deltas, thresholds, table, unit, layer, delta, candidates)


def _samples_last(
    statistic: Float[np.ndarray, "sample layer unit"],
) -> Float[np.ndarray, "layer unit sample"]:
    return np.ascontiguousarray(np.moveaxis(statistic, 0, -1), dtype=np.float64)
