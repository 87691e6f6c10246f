"""Metrics of two objectives over the same samples, and their paired difference.

Both objectives explain the same samples of the same concept by the same method; the difference is
taken sample by sample (or, for micro metrics, within each draw), and source documents are
resampled. A sample where either is not defined is left out of both. Intervals are conditional on
vectors, thresholds and the level of F1, and are not adjusted for the number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sa_plugin.attribution.localisation import SampleScores, micro_f1
from sa_plugin.statistics import Interval, resample_documents
from sa_plugin.statistics.bootstrap import Resamples, resampled_sums
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.ranking import auroc, average_precision
from sa_plugin.statistics.resampled_ranking import resampled_auroc, resampled_average_precision

PER_SAMPLE = ("f1_sample", "auroc", "average_precision", "pointing", "mass_inside")
MICRO = ("f1", "auroc_micro", "average_precision_micro")
CONTROL = "control"
"""In place of a method: orders that no explainer made, to test the yardsticks themselves."""
ORDERS = ("random", "labelled first")


@dataclass(frozen=True, eq=False)
class Measured:
    """One sample explained by one method with one objective.

    Attributes:
        concept, sample, document, method, objective: What and where.
        scores: Localisation.
        ranks: Share of the sample's tokens at or below each kept token.
        labels: Of the same tokens.
        areas: By name, such as "insertion/mean_alignment", and what the method says of itself:
            "completeness_error", as a share.
    """

    concept: str
    sample: str
    document: str
    method: str
    objective: str
    scores: SampleScores
    ranks: Float[np.ndarray, " token"]
    labels: np.ndarray
    areas: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Row:
    """One metric of one method and concept for every objective.

    Attributes:
        concept: Name, or "all": every sample of every concept.
        method: Explainer.
        metric: Name.
        better: "higher" or "lower".
        n_samples: Samples behind it.
        values: By objective.
        differences: By objective, minus the first one's; paired.
    """

    concept: str
    method: str
    metric: str
    better: str
    n_samples: int
    values: Mapping[str, Interval]
    differences: Mapping[str, Interval]

    @property
    def wins(self) -> dict[str, str]:
        """For each later objective "better", "worse" or "open" (the interval holds zero)."""
        good = {"higher": "better", "lower": "worse"}[self.better]
        bad = {"higher": "worse", "lower": "better"}[self.better]
        return {
            name: "open" if not d.excludes_zero else good if d.low > 0 else bad
            for name, d in self.differences.items()
        }


def rows_of(
    found: Sequence[Measured],
    objectives: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Row]:
    """Every metric of every method, concept by concept and over all of them.

    Args:
        found: Of all samples, methods and objectives.
        objectives: The first is what the others are compared with.
        draws: Bootstrap resamples of source documents.
        seed: Of the resamples.
        level: Of the intervals.
    """
    rows = []
    for method in dict.fromkeys(one.method for one in found):
        mine = [one for one in found if one.method == method]
        concepts = list(dict.fromkeys(one.concept for one in mine))
        for concept in [*concepts, *(["all"] if len(concepts) > 1 else [])]:
            of = [one for one in mine if concept in (one.concept, "all")]
            complete = _complete(of, objectives)
            if complete:
                rows += _rows(concept, method, complete, objectives, draws, seed, level)
    return rows


def control_rows(
    found: Sequence[Measured], *, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> list[Row]:
    """Insertion and deletion of labelled tokens first, against a random order, by yardstick.

    A yardstick that does not prefer the labelled tokens here cannot tell explainers apart on these
    data, or the model does not use the labelled tokens.

    Args:
        found: As for `rows_of`.
        draws: Bootstrap resamples of source documents.
        seed: Of the resamples.
        level: Of the intervals.
    """
    mine = [one for one in found if one.method == CONTROL]
    rows = rows_of(mine, ORDERS, draws=draws, seed=seed, level=level)
    return [row for row in rows if "/" in row.metric]


def _complete(found: Sequence[Measured], objectives: Sequence[str]) -> list[dict[str, Measured]]:
    """Samples that every objective was measured on."""
    by_sample: dict[tuple[str, str], dict[str, Measured]] = {}
    for one in found:
        by_sample.setdefault((one.concept, one.sample), {})[one.objective] = one
    return [group for group in by_sample.values() if set(objectives) <= set(group)]


def _rows(
    concept: str,
    method: str,
    groups: Sequence[dict[str, Measured]],
    objectives: Sequence[str],
    draws: int,
    seed: int,
    level: float,
) -> list[Row]:
    first = groups[0][objectives[0]]
    metrics = [*MICRO, *PER_SAMPLE, *first.areas]
    rows = []
    for metric in metrics:
        used = [g for g in groups if all(_defined(g[o], metric) for o in objectives)]
        if not used:
            continue
        resamples = _resamples([g[objectives[0]].document for g in used], draws, seed)
        drawn = {o: _drawn([g[o] for g in used], metric, resamples) for o in objectives}
        base = drawn[objectives[0]]
        rows.append(
            Row(
                concept, method, metric, better(metric), len(used),
                {o: _interval(d, resamples, level) for o, d in drawn.items()},
                {o: _interval(drawn[o] - base, resamples, level) for o in objectives[1:]},
            )
        )  # fmt: skip
    return rows


def better(metric: str) -> str:
    """Whether higher or lower values of a metric are better."""
    return "lower" if metric.startswith(("deletion", "completeness")) else "higher"


def _defined(one: Measured, metric: str) -> bool:
    return metric in MICRO or bool(np.isfinite(_value(one, metric)))


def _value(one: Measured, metric: str) -> float:
    if metric in one.areas:
        return one.areas[metric]
    return float(getattr(one.scores, metric.removesuffix("_sample")))


def _resamples(documents: Sequence[str], draws: int, seed: int) -> Resamples | None:
    """None for one document, which leaves nothing to resample."""
    names = np.array(documents)
    return resample_documents(names, draws=draws, seed=seed) if len(set(documents)) > 1 else None


def _drawn(
    found: Sequence[Measured], metric: str, resamples: Resamples | None
) -> Float[np.ndarray, " draw"]:
    """The metric on the data first, then on every draw."""
    if metric in ("auroc_micro", "average_precision_micro"):
        return _ranked(found, metric, resamples)
    if metric == "f1":
        terms = np.array(
            [[s.scores.true_positives, s.scores.marked, s.scores.labelled] for s in found]
        ).T
        of = micro_f1
    else:
        terms = np.array([[_value(s, metric), 1.0] for s in found]).T

        def of(sums: np.ndarray) -> np.ndarray:
            return ratio(sums[0], sums[1], empty=np.nan)

    own = of(terms.sum(1, keepdims=True))
    return own if resamples is None else np.concatenate([own, of(resampled_sums(terms, resamples))])


def _ranked(
    found: Sequence[Measured], metric: str, resamples: Resamples | None
) -> Float[np.ndarray, " draw"]:
    ranks = np.concatenate([s.ranks for s in found])
    labels = np.concatenate([s.labels for s in found])
    is_auroc = metric == "auroc_micro"
    own = np.atleast_1d((auroc if is_auroc else average_precision)(ranks, labels))
    if resamples is None:
        return own
    home = np.repeat(np.arange(len(found)), [len(s.ranks) for s in found])
    drawn = (resampled_auroc if is_auroc else resampled_average_precision)(
        ranks, labels, resamples.of(home)
    )
    return np.concatenate([own, drawn])


def _interval(
    values: Float[np.ndarray, " draw"], resamples: Resamples | None, level: float
) -> Interval:
    if resamples is None:
        return Interval(float(values[0]), np.nan, np.nan, level, 0, n_units=1)
    return resamples.interval(float(values[0]), values[1:], level)
