"""What a comparison of objectives is made of: every metric of both, and their paired difference.

Both objectives explain the same samples of the same concept by the same method; the difference is
taken sample by sample (or, for micro metrics, within each column), and each source document is left
out in turn. A sample where either is not defined is left out of both.

Samples are also told apart by how many SuperActivators they have, 1, 2, 3 to 9, 10 and more: the longer
the tail, the more of an objective's gradient lies on it. Beside every difference that is not clear stands
the smallest that would have been seen four times of five (`Drawn.detectable`).

What the intervals do not show: another draw of vectors, thresholds and the level of F1, on which
they are conditional, nor how many rows were looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin._face import face_methods
from sa_plugin.attribution.yardsticks import SampleScores, micro_f1
from sa_plugin.statistics.bootstrap import Resamples, left_out, resampled_sums
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.drawn import Drawn, Resampling, stack
from sa_plugin.statistics.interval import Kind
from sa_plugin.statistics.ranking import resampled_auroc, resampled_average_precision

PER_SAMPLE = ("f1_sample", "auroc", "average_precision", "pointing", "mass_inside")
MICRO = ("f1", "auroc_micro", "average_precision_micro")
CONTROL = "control"
"""In place of a method: orders that no explainer made, to test the yardsticks themselves."""
ORDERS = ("random", "labelled first")
ALL = "all"
"""In place of a concept, or of a stratum: all together."""
STRATA: Mapping[str, range] = {
    "1": range(1, 2),
    "2": range(2, 3),
    "3 to 9": range(3, 10),
    "10 and more": range(10, sys.maxsize),
}
"""SuperActivators of the sample for the concept, by label."""
POWER = 0.8
"""With which a difference that is not clear could have been seen."""


@face_methods
@dataclass(frozen=True, eq=False)
class Trial:
    """One sample explained by one method with one objective, and measured.

    Attributes:
        concept, sample, document, method, objective: What and where.
        scores: Localisation.
        ranks: Share of the sample's tokens at or below each kept token.
        labels: Of the same tokens.
        areas: By name, such as "insertion/mean_alignment", and what the method says of itself:
            "completeness_error", as a share.
        n_tail: SuperActivators of the sample for the concept, one at least.
    """

    concept: str
    sample: str
    document: str
    method: str
    objective: str
    scores: SampleScores
    ranks: Float[np.ndarray, " token"]
    labels: Bool[np.ndarray, " token"]
    areas: Mapping[str, float]
    n_tail: int

    def __post_init__(self) -> None:
        if self.n_tail < 1:
            raise ValueError(
                f"n_tail is {self.n_tail} for sample {self.sample!r}: without a SuperActivator of "
                f"{self.concept!r} there is nothing to explain, leave the sample out and count it."
            )

    @property
    def stratum(self) -> str:
        """Of `STRATA`."""
        return next(label for label, held in STRATA.items() if self.n_tail in held)

    def value(self, metric: str) -> float:
        """A metric of this sample alone; NaN where it is not defined."""
        if metric in self.areas:
            return self.areas[metric]
        return float(getattr(self.scores, metric.removesuffix("_sample")))


@dataclass(frozen=True, eq=False)
class Contrast:
    """One metric of one method, concept and stratum for every objective.

    Attributes:
        concept: Name, or "all": every sample of every concept.
        stratum: Of `STRATA`, or "all": samples with any number of SuperActivators.
        method: Explainer.
        metric: Name.
        n_samples: Samples behind it.
        values: Over the objectives; the first is what the others are compared with.
    """

    concept: str
    stratum: str
    method: str
    metric: str
    n_samples: int
    values: Drawn

    @property
    def better(self) -> str:
        """Whether "higher" or "lower" values of the metric are better."""
        return "lower" if self.metric.startswith(("deletion", "completeness")) else "higher"

    @cached_property
    def differences(self) -> Drawn:
        """Over the later objectives, minus the first; paired."""
        first, *others = self.values.axes["objective"]
        base = self.values.sel(objective=first)
        return stack({name: self.values.sel(objective=name) - base for name in others}, "objective")

    @property
    def verdicts(self) -> dict[str, str]:
        """For each later objective "better", "worse" or "open" (the interval holds zero)."""
        good, bad = ("better", "worse") if self.better == "higher" else ("worse", "better")
        low, high = np.asarray(self.differences.low), np.asarray(self.differences.high)
        found = np.where(low > 0, good, np.where(high < 0, bad, "open"))
        return dict(zip(self.differences.axes["objective"], found.tolist(), strict=True))

    @cached_property
    def detectable(self) -> dict[str, float]:
        """For each later objective the smallest difference seen with power .8; infinite where none is."""
        sizes = np.asarray(self.differences.detectable(power=POWER))
        return dict(zip(self.differences.axes["objective"], sizes.tolist(), strict=True))

    def rows(self) -> list[dict[str, Any]]:
        """Long form: each objective, then each difference with its verdict."""
        base = self.values.axes["objective"][0]
        same = {"concept": self.concept, "stratum": self.stratum, "method": self.method}
        about = {"better": self.better, "n_samples": self.n_samples}
        return [
            {
                **same,
                **row,
                "minus": minus,
                "verdict": self.verdicts[row["objective"]] if minus else "",
                "detectable": self.detectable[row["objective"]] if minus else np.nan,
                **about,
            }
            for drawn, minus in ((self.values, ""), (self.differences, base))
            for row in drawn.rows(self.metric)
        ]

    def flat(self) -> dict[str, Any]:
        """One record with a key for each number."""
        found: dict[str, Any] = {
            "concept": self.concept,
            "stratum": self.stratum,
            "method": self.method,
            "metric": self.metric,
            "better": self.better,
            "n_samples": self.n_samples,
        }
        for ending, drawn in (("", self.values), ("_difference", self.differences)):
            for row in drawn.rows(self.metric):
                name = f"{row['objective']}{ending}"
                found |= {name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
        for name, verdict in self.verdicts.items():
            found |= {f"{name}_is": verdict, f"{name}_detectable": self.detectable[name]}
        return found


def contrasts_of(
    trials: Sequence[Trial], objectives: Sequence[str], resampling: Resampling = Resampling()
) -> list[Contrast]:
    """Every metric of every method, concept by concept, over all of them, and these by stratum.

    Args:
        trials: Of all samples, methods and objectives.
        objectives: The first is what the others are compared with.
        resampling: How intervals are made.
    """
    found = []
    # One set of columns for all, so that methods and metrics can be read as one family.
    documents = {name: k for k, name in enumerate(sorted({one.document for one in trials}))}
    every = left_out(np.arange(len(documents)), resampling)
    for method in dict.fromkeys(one.method for one in trials):
        mine = [one for one in trials if one.method == method]
        concepts = list(dict.fromkeys(one.concept for one in mine))
        overall = concepts[0] if len(concepts) == 1 else ALL
        cuts = [(concept, ALL) for concept in dict.fromkeys([*concepts, overall])]
        # Strata of one concept among several would hold few samples.
        cuts += [(overall, label) for label in STRATA if any(one.stratum == label for one in mine)]
        for concept, stratum in cuts:
            groups = _complete(
                [o for o in mine if concept in (o.concept, ALL) and stratum in (o.stratum, ALL)], objectives
            )
            metrics = [*MICRO, *PER_SAMPLE, *groups[0][0].areas] if groups else []
            for metric in metrics:
                # A sample on which one arm's metric is not defined is left out of both.
                used = [g for g in groups if all(_defined(one, metric) for one in g)]
                if used:
                    resamples = every.of(np.array([documents[arms[0].document] for arms in used]))
                    values = _values(used, objectives, metric, resamples)
                    found.append(Contrast(concept, stratum, method, metric, len(used), values))
    return found


def controls_of(trials: Sequence[Trial], resampling: Resampling = Resampling()) -> list[Contrast]:
    """Insertion and deletion of labelled tokens first, against a random order, by yardstick.

    A yardstick that does not prefer the labelled tokens here cannot tell explainers apart on these
    data, or the model does not use the labelled tokens.

    Args:
        trials: As for `contrasts_of`.
        resampling: How intervals are made.
    """
    mine = [one for one in trials if one.method == CONTROL]
    return [one for one in contrasts_of(mine, ORDERS, resampling) if "/" in one.metric]


def _complete(trials: Sequence[Trial], objectives: Sequence[str]) -> list[list[Trial]]:
    """Samples that every objective was measured on, a trial for each objective in order."""
    by_sample: dict[tuple[str, str], dict[str, Trial]] = {}
    for one in trials:
        by_sample.setdefault((one.concept, one.sample), {})[one.objective] = one
    return [[group[o] for o in objectives] for group in by_sample.values() if set(objectives) <= set(group)]


def _defined(one: Trial, metric: str) -> bool:
    return metric in MICRO or bool(np.isfinite(one.value(metric)))


def _values(
    groups: Sequence[Sequence[Trial]], objectives: Sequence[str], metric: str, resamples: Resamples
) -> Drawn:
    """A metric of every objective, in the same columns."""
    parts = {
        name: _drawn([arms[k] for arms in groups], metric, resamples) for k, name in enumerate(objectives)
    }
    return stack(parts, "objective")


def _drawn(trials: Sequence[Trial], metric: str, resamples: Resamples) -> Drawn:
    """A metric of one objective; the documents of its samples carry it, or of their labelled tokens."""
    if metric in ("auroc_micro", "average_precision_micro"):
        ranks = np.concatenate([s.ranks for s in trials])
        labels = np.concatenate([s.labels for s in trials])
        # Documents are left out, tokens ranked: each token goes with its sample's document.
        over = resamples.of(np.repeat(np.arange(len(trials)), [len(s.ranks) for s in trials]))
        area = resampled_auroc if metric == "auroc_micro" else resampled_average_precision
        return over.drawn(area(ranks, labels, over), "share", over.rows(labels))
    if metric == "f1":
        terms = np.array([[s.scores.true_positives, s.scores.marked, s.scores.labelled] for s in trials]).T
        return resamples.drawn(micro_f1(resampled_sums(terms, resamples)), "share", resamples.rows(terms[2]))
    # A mean is the ratio of two sums: the values, and how many samples a column holds.
    terms = np.array([[s.value(metric), 1.0] for s in trials]).T
    sums = resampled_sums(terms, resamples)
    kind: Kind = "share" if metric in PER_SAMPLE else "mean"
    return resamples.drawn(ratio(sums[0], sums[1], empty=np.nan), kind, resamples.rows(terms[1]))
