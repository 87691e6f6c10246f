"""F1 of every concept and its mean over concepts, with intervals and paired differences.

    weighted F1 = sum_c P_c F1_c / sum_c P_c,  P_c the positive samples of concept c
    macro F1    = mean of F1_c

The paper reports the weighted mean. In a draw, P_c are the draw's own positives, and a concept
without any is left out (its F1 is not defined). Frequent concepts
dominate the weighted mean, rare ones the macro mean's spread; report both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Real, Shaped

from sa_plugin.statistics.bootstrap import Resamples, resample_documents, resampled_confusion
from sa_plugin.statistics.confusion import Confusion, confusion, f1, ratio
from sa_plugin.statistics.interval import Interval, percentile_bounds

Average = Literal["weighted", "macro"]


def mean_over_concepts(
    values: Float64[np.ndarray, "*shape concept"],
    positives: Real[np.ndarray, "*#shape concept"],
    average: Average = "weighted",
) -> Float64[np.ndarray, "*shape"]:
    """Mean of a measure over concepts; concepts where it is NaN are left out.

    Raises:
        ValueError: The average is unknown.
    """
    if average not in ("weighted", "macro"):
        raise ValueError(f"average {average!r} is unknown: use 'weighted' or 'macro'.")
    weights = np.broadcast_to(positives, values.shape) if average == "weighted" else 1.0
    weights = np.where(np.isnan(values), 0.0, weights)
    total = (weights * np.nan_to_num(values)).sum(axis=-1)
    return ratio(total, weights.sum(axis=-1), empty=np.nan)


def f1_over_concepts(
    counts: Confusion, average: Average = "weighted", axis: int = -2
) -> Float64[np.ndarray, "*shape"]:
    """Mean F1 over the concept axis of counts `[..., concept, draw]`.

    A concept without positive samples in a draw is left out of that draw.
    """
    positives = np.moveaxis(np.asarray(counts.tp + counts.fn), axis, -1)
    values = np.where(positives > 0, np.moveaxis(f1(counts), axis, -1), np.nan)
    return mean_over_concepts(values, positives, average)


@dataclass(frozen=True, eq=False)
class F1Draws:
    """F1 by concept and over concepts, on the data and on every draw.

    Attributes:
        f1: By concept.
        low, high: Percentile bounds by concept.
        weighted, macro: Means over concepts with intervals.
        weighted_draws, macro_draws: Their values on each draw, for paired differences.
        resamples: The draws.
    """

    f1: Float64[np.ndarray, " concept"]
    low: Float64[np.ndarray, " concept"]
    high: Float64[np.ndarray, " concept"]
    weighted: Interval
    macro: Interval
    weighted_draws: Float64[np.ndarray, " draw"]
    macro_draws: Float64[np.ndarray, " draw"]
    resamples: Resamples

    def __repr__(self) -> str:
        return f"F1Draws({len(self.f1)} concepts, weighted {self.weighted}, macro {self.macro})"

    def minus(self, other: F1Draws, average: Average = "weighted") -> Interval:
        """Paired difference to another method on the same draws.

        Raises:
            ValueError: The other's draws are not the same.
        """
        if not same_draws(self.resamples, other.resamples):
            raise ValueError("a paired difference needs the same Resamples for both methods.")
        ours, theirs = getattr(self, average), getattr(other, average)
        drawn = getattr(self, f"{average}_draws") - getattr(other, f"{average}_draws")
        return self.resamples.interval(ours.estimate - theirs.estimate, drawn, ours.level)


def bootstrap_f1(
    predicted: Bool[np.ndarray, "concept sample"],
    labels: Bool[np.ndarray, "concept sample"],
    documents: Shaped[np.ndarray, " sample"] | Resamples,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> F1Draws:
    """F1 of fixed decisions with intervals over documents.

    Args:
        predicted: Decisions.
        labels: Truth.
        documents: Source document of each sample, or draws shared with other methods.
        draws: Number of new draws.
        seed: Seed of new draws.
        level: Of the intervals.

    Example:
        >>> labels = np.array([[True, False, True, False]])
        >>> bootstrap_f1(labels, labels, np.arange(4), draws=200).f1
        array([1.])
    """
    resamples = (
        documents
        if isinstance(documents, Resamples)
        else resample_documents(documents, draws=draws, seed=seed)
    )
    counts, drawn = confusion(predicted, labels), resampled_confusion(predicted, labels, resamples)
    low, high = percentile_bounds(f1(drawn), level)
    weighted, macro = (f1_over_concepts(drawn, a) for a in ("weighted", "macro"))
    estimates = [f1_over_concepts(counts, a, axis=-1) for a in ("weighted", "macro")]
    return F1Draws(
        f1(counts), low, high,
        resamples.interval(float(estimates[0]), weighted, level),
        resamples.interval(float(estimates[1]), macro, level),
        weighted, macro, resamples,
    )  # fmt: skip


def same_draws(a: Resamples, b: Resamples) -> bool:
    """Whether two resamples take the same samples equally often."""
    return a is b or (
        np.array_equal(a.document, b.document) and np.array_equal(a.weights, b.weights)
    )
