"""Counts of right and wrong decisions, and the ratios made of them.

    precision = TP / (TP + FP)     recall = TP / (TP + FN)
    F1 = 2 TP / (2 TP + FP + FN)   accuracy = (TP + TN) / n   false-positive rate = FP / (FP + TN)

A ratio whose denominator is 0 is 0, as in the paper's code: a detector that never fires has
precision 0, and a concept without positive samples has recall and F1 0 (leave it out of means over
concepts: its weight by positive samples is 0 too). F1 depends on the share of positives: compare it
with the F1 of always answering yes, 2 p / (1 + p).

Samples are the last axis; every axis before it is carried along.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Real
from numpy.typing import ArrayLike

_Cut = float | np.floating | Real[np.ndarray, "..."]


def reaches(scores: Real[np.ndarray, "..."], cut: _Cut) -> Bool[np.ndarray, "..."]:
    """Which scores are at or above a cut, compared in float64.

    The one way scores meet thresholds: left to itself NumPy 2 rounds a number to the format of the array
    beside it, so that float32 scores below a threshold between two of them would reach it.
    """
    return np.asarray(np.greater_equal(scores, cut, signature="dd->?"))


def exceeds(scores: Real[np.ndarray, "..."], cut: _Cut) -> Bool[np.ndarray, "..."]:
    """Which scores are above a cut, compared in float64 as by `reaches`."""
    return np.asarray(np.greater(scores, cut, signature="dd->?"))


class Confusion(NamedTuple):
    """Counts of the four outcomes, arrays of one shape."""

    tp: Real[np.ndarray, "*shape"]
    fp: Real[np.ndarray, "*shape"]
    fn: Real[np.ndarray, "*shape"]
    tn: Real[np.ndarray, "*shape"]


def confusion(
    predicted: Bool[np.ndarray, "*shape sample"], labels: Bool[np.ndarray, "*#shape sample"]
) -> Confusion:
    """Count outcomes over samples.

    Args:
        predicted: Decisions.
        labels: Truth; axes before the samples broadcast.

    Returns:
        int64 counts of shape `*shape`.

    Raises:
        ValueError: Numbers of samples differ.

    Example:
        >>> confusion(np.array([True, True, False]), np.array([True, False, False])).fp
        array(1)
    """
    check_samples(predicted, labels)
    tp = np.asarray((predicted & labels).sum(axis=-1))
    positive = np.broadcast_to(labels.sum(axis=-1), tp.shape)
    fired = np.broadcast_to(predicted.sum(axis=-1), tp.shape)
    n = predicted.shape[-1]
    counts = (tp, fired - tp, positive - tp, n - fired - positive + tp)
    return Confusion(*map(np.asarray, counts))


def precision(counts: Confusion) -> Float64[np.ndarray, "*shape"]:
    """Share of positive decisions that are right; 0 when there is none."""
    return ratio(counts.tp, counts.tp + counts.fp)


def recall(counts: Confusion) -> Float64[np.ndarray, "*shape"]:
    """Share of positives that are found; 0 when there is none."""
    return ratio(counts.tp, counts.tp + counts.fn)


def f1(counts: Confusion) -> Float64[np.ndarray, "*shape"]:
    """Harmonic mean of precision and recall; 0 when nothing is positive or predicted so."""
    return ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def accuracy(counts: Confusion) -> Float64[np.ndarray, "*shape"]:
    """Share of right decisions; 0 without samples."""
    return ratio(counts.tp + counts.tn, counts.tp + counts.fp + counts.fn + counts.tn)


def false_positive_rate(counts: Confusion) -> Float64[np.ndarray, "*shape"]:
    """Share of negatives that are called positive; 0 when there is none."""
    return ratio(counts.fp, counts.fp + counts.tn)


def ratio(numerator: ArrayLike, denominator: ArrayLike, empty: float = 0.0) -> Float64[np.ndarray, "*shape"]:
    """A quotient that is `empty` where the denominator is 0."""
    above, below = np.broadcast_arrays(numerator, denominator)
    out = np.full(above.shape, empty, dtype=np.float64)
    np.divide(above, below, out=out, where=below != 0)
    return out


def check_samples(
    predicted: Bool[np.ndarray, "*shape sample"], labels: Bool[np.ndarray, "*#shape sample"]
) -> None:
    """Check that decisions and labels are booleans of the same samples.

    Raises:
        ValueError: They are not.
    """
    if predicted.shape[-1:] != labels.shape[-1:]:
        raise ValueError(
            f"predictions {predicted.shape} and labels {labels.shape} differ in their last axis, "
            "the samples: transpose [sample, concept] arrays."
        )
    if predicted.dtype != np.bool_ or labels.dtype != np.bool_:
        raise ValueError(f"predictions are {predicted.dtype}, labels {labels.dtype}: give bool.")
