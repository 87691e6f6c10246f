"""Every method on held-out samples, side by side, with intervals over source documents.

Metrics are defined in `measure.py`. Differences are method minus SuperActivators on the same
resamples. Decisions are those of calibration: nothing is chosen here, and the split is read once.

What the intervals do not show: another train or calibration split (they are conditional on both),
and the number of comparisons (each stands alone). An interval that contains zero is no proof of
equality.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm.auto import tqdm

from sa_plugin.data import Split
from sa_plugin.detection import summary
from sa_plugin.detection.find import sample_max
from sa_plugin.detection.guard import check_unseen, document_names, place
from sa_plugin.detection.measure import (
    METRICS,
    Outcome,
    averaged,
    interval_of,
    measure,
    positives_of,
)
from sa_plugin.detection.methods import (
    ALWAYS,
    TAIL,
    given_names,
    given_values,
    is_given,
    method_names,
    values,
)
from sa_plugin.detection.printing import as_html, frame
from sa_plugin.detection.rates import Fractions, Rates, fractions, rates
from sa_plugin.detection.search import Calibrated
from sa_plugin.scores import ScoreTable
from sa_plugin.statistics import Interval, Resamples, resample_documents
from sa_plugin.statistics.over_concepts import Average

if TYPE_CHECKING:
    from sa_plugin.detection.detector import Detector

LATE = "the detector was calibrated on scores without it"


@dataclass(frozen=True, eq=False)
class MethodResult:
    """One method on the split.

    Attributes:
        method: Name.
        concept: Metric to one interval a concept.
        weighted: Metric to its mean over concepts, weighted by positive samples.
        macro: Metric to its plain mean over concepts.
        difference: "f1" and "auroc", weighted, minus those of SuperActivators; empty for them.
        layer: Chosen block, by draw and concept; empty where layers mean nothing.
        delta: Chosen delta, by draw and concept; empty where there is none.
        candidates: Number of (layer, delta, unit) behind each choice.
    """

    method: str
    concept: Mapping[str, tuple[Interval, ...]]
    weighted: Mapping[str, Interval]
    macro: Mapping[str, Interval]
    difference: Mapping[str, Interval]
    layer: Int[np.ndarray, "layer_draw concept"]
    delta: Float[np.ndarray, "draw concept"]
    candidates: int

    def __repr__(self) -> str:
        return f"MethodResult({self.method!r}, weighted F1 {self.weighted['f1']})"


@dataclass(frozen=True)
class Resampling:
    """What was evaluated and how the intervals were made."""

    split: str
    data_hash: str
    n_samples: int
    n_documents: int
    draws: int
    seed: int
    level: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Detection metrics of every method on one split.

    Attributes:
        concepts: Names.
        n_positive: Positive samples of each concept.
        methods: Results, SuperActivators first.
        missing: Methods not fitted, with the reason.
        rates: False fires and misses of each concept, raw against SuperActivators.
        fractions: SuperActivator fractions of positive samples.
        resampling: Split, counts, seed, level.
    """

    concepts: tuple[str, ...]
    n_positive: Int[np.ndarray, " concept"]
    methods: tuple[MethodResult, ...]
    missing: Mapping[str, str]
    rates: tuple[Rates, ...]
    fractions: Fractions
    resampling: Resampling

    def __repr__(self) -> str:
        return (
            f"Evaluation({self.resampling.split!r}, {self.resampling.n_samples} samples, "
            f"{len(self.methods)} methods, SuperActivators' weighted F1 "
            f"{self.of(TAIL).weighted['f1']})"
        )

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def of(self, method: str) -> MethodResult:
        """The result of one method.

        Raises:
            ValueError: Unknown or not fitted; the text names the nearest, or the reason.
        """
        if method in self.missing:
            raise ValueError(f"{method} was not fitted: {self.missing[method]}.")
        return self.methods[place(method, [m.method for m in self.methods], "the methods")]

    def table(self) -> Any:
        """One row a method: a pandas DataFrame where pandas is installed."""
        return frame(summary.rows(self))

    def concept_table(self) -> Any:
        """One row for each concept and method: a DataFrame where pandas is installed."""
        return frame(summary.concept_rows(self))

    def summary(self) -> str:
        """The table as text, with the verdict and what it is conditional on."""
        return summary.text(self)

    def verdict(self) -> str:
        """Which baselines SuperActivators beat, tie with and lose to, by weighted F1."""
        return summary.verdict(self)

    def to_dict(self) -> dict[str, Any]:
        """Every number, seed and count, JSON-ready; what is not defined is None."""
        return summary.to_dict(self)


def evaluate(
    detector: Detector,
    split: Split,
    *,
    scores: ScoreTable | None,
    draws: int,
    seed: int,
    level: float,
    progress: bool = False,
) -> Evaluation:
    """See `Detector.evaluate`."""
    check_unseen(split, detector.seen)
    table = detector.scores_of(split, scores)
    token_labels, labels = labels_of(table, detector.concepts)
    resamples = resample_documents(document_names(table.tokens), draws=draws, seed=seed)
    said = outcomes(detector, table)
    positives = positives_of(labels, resamples)
    bar = tqdm(said.items(), desc="evaluate", unit="method", disable=not progress, leave=False)
    measured = {name: measure(each, labels, resamples) for name, each in bar}
    results = tuple(
        _result(detector, name, measured, positives, resamples, level) for name in measured
    )
    late = [k for k in given_names(table, searched=True) if k not in detector.baselines]
    tokens = detector.token_scores(table)
    raw = sample_max(tokens, table.tokens.bounds) > detector.cuts.midpoint
    fired = said[TAIL][0].fired
    tail = detector.superactivators(table)
    return Evaluation(
        detector.concepts,
        labels.sum(0),
        results,
        {**detector.missing, **dict.fromkeys(late, LATE)},
        rates(detector.concepts, raw, fired, labels, resamples, level),
        fractions(tail, token_labels, table.tokens.sample_of, labels),
        Resampling(
            split.name, split.data_hash, len(labels), resamples.n_documents, draws, seed, level
        ),
    )


def labels_of(
    table: ScoreTable, concepts: tuple[str, ...]
) -> tuple[Bool[np.ndarray, "token concept"], Bool[np.ndarray, "sample concept"]]:
    """Token and sample labels, columns in the detector's order."""
    columns = [place(c, table.tokens.concepts, "the labelled concepts") for c in concepts]
    return table.tokens.labels[:, columns], table.tokens.sample_labels[:, columns]


def outcomes(detector: Detector, table: ScoreTable) -> dict[str, list[Outcome]]:
    """What every fitted method says of every sample, one outcome a draw."""
    found: dict[str, list[Outcome]] = {}
    calibrated: dict[str, tuple[Calibrated, ...]] = {TAIL: (detector.tail,), **detector.baselines}
    for name in (*method_names(), *calibrated):
        if name == ALWAYS:
            shape = (table.tokens.n_samples, len(detector.concepts))
            found[name] = [Outcome(np.ones(shape, dtype=bool), np.zeros(shape))]
        elif name in calibrated and name not in found:
            found[name] = [
                outcome(c, table, detector.seed, k) for k, c in enumerate(calibrated[name])
            ]
    for name in given_names(table, searched=False):
        threshold = table.given[name].threshold
        assert threshold is not None
        value = given_values(name, table, detector.concepts).astype(np.float64)
        found[name] = [Outcome(value >= threshold, value)]
    return found


def outcome(calibrated: Calibrated, table: ScoreTable, seed: int, draw: int) -> Outcome:
    """What one calibrated method says of every sample, at its own layers."""
    value = values(
        calibrated.method,
        table,
        calibrated.layer,
        calibrated.chosen_unit,
        seed=seed,
        draw=draw,
    ).astype(np.float64)
    return Outcome(value >= calibrated.chosen_threshold, value)


def _result(
    detector: Detector,
    name: str,
    measured: Mapping[str, Mapping[str, Float[np.ndarray, "concept column"]]],
    positives: Float[np.ndarray, "concept column"],
    resamples: Resamples,
    level: float,
) -> MethodResult:
    own, tail = measured[name], measured[TAIL]

    def mean(metric: Float[np.ndarray, "concept column"], average: Average) -> Interval:
        return interval_of(averaged(metric, positives, average), resamples, level)

    def difference(metric: str) -> Interval:
        ours, theirs = (averaged(m[metric], positives, "weighted") for m in (own, tail))
        return interval_of(ours - theirs, resamples, level)

    chosen = (detector.tail,) if name == TAIL else detector.baselines.get(name, ())
    layers = np.array(detector.bank.layers)
    has_layers = chosen and name != "length-only" and not is_given(name)
    return MethodResult(
        name,
        {m: tuple(interval_of(row, resamples, level) for row in own[m]) for m in METRICS},
        {m: mean(own[m], "weighted") for m in METRICS},
        {m: mean(own[m], "macro") for m in METRICS},
        {} if name == TAIL else {m: difference(m) for m in ("f1", "auroc")},
        np.stack([layers[c.layer] for c in chosen])
        if has_layers
        else np.zeros((0, len(detector.concepts)), int),
        np.stack([c.chosen_delta for c in chosen])
        if chosen
        else np.zeros((0, len(detector.concepts))),
        chosen[0].candidates if chosen else 0,
    )
