"""Do important tokens carry the label? Pure functions of importance and labels.

For one sample with importance a_t and labels y_t over its kept tokens:

- AUROC and average precision of a against y; per sample, and micro: all samples' tokens together,
  each token's a replaced by the share of its sample's tokens at or below it, because units differ
  between samples.
- pointing: whether the most important token is labelled (the share, where several tie).
- mass inside: sum of (a_t - mean a)_+ over labelled tokens / the same over all tokens. The mean is
  taken off so that methods without a zero point (RISE) can be compared.
- F1: tokens in the sample's top fraction q are marked, q of a grid with the best micro F1 on
  calibration samples (ties to the smaller); micro counts, and per sample.

Only samples with labelled and unlabelled tokens enter. Agreement with labels is not faithfulness: a
model may find a concept beside the labelled word, and then a right explanation scores low here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from sa_plugin.statistics import auroc, average_precision
from sa_plugin.statistics.confusion import ratio
from sa_plugin.tail.deltas import DELTAS

# Samples of a list differ in length, so the axis has no name.
Importance = Float[np.ndarray, " _"]
Labels = Bool[np.ndarray, " _"]


class SampleScores(NamedTuple):
    """Localisation of one sample; NaN where a number is not defined."""

    auroc: float
    average_precision: float
    pointing: float
    mass_inside: float
    f1: float
    true_positives: float
    marked: float
    labelled: float


def sample_scores(
    importance: Float[np.ndarray, " token"], labels: Bool[np.ndarray, " token"], level: float
) -> SampleScores:
    """Every number of one sample.

    Args:
        importance: Of each kept token.
        labels: Of the same tokens, some True and some False.
        level: Fraction of the tokens that are marked.

    Raises:
        ValueError: Importance that is not finite, or labels all alike.

    Example:
        >>> sample_scores(np.array([3.0, 1.0, 0.0]), np.array([True, False, False]), 0.3).pointing
        1.0
    """
    check(importance, labels)
    a = importance.astype(np.float64)
    marked = top_fraction(a, level)
    hits = float((marked & labels).sum())
    best = a == a.max()
    above = np.maximum(a - a.mean(), 0.0)
    return SampleScores(
        float(auroc(a, labels)),
        float(average_precision(a, labels)),
        float(labels[best].mean()),
        float(above[labels].sum() / above.sum()) if above.sum() > 0 else np.nan,
        float(2 * hits / (marked.sum() + labels.sum())),
        hits,
        float(marked.sum()),
        float(labels.sum()),
    )


def top_fraction(
    importance: Float[np.ndarray, " token"], level: float
) -> Bool[np.ndarray, " token"]:
    """The ceil(level n) most important tokens, and all that tie with the last of them.

    Raises:
        ValueError: The level lies outside (0, 1].
    """
    if not 0 < level <= 1:
        raise ValueError(f"level is {level}: give a fraction of the tokens, above 0 and at most 1.")
    # A product such as 0.3 * 10 may lie an ulp above the whole number.
    count = int(np.ceil(np.round(level * len(importance), 9)))
    least = np.sort(importance)[len(importance) - count]
    return np.asarray(importance >= least)


def choose_level(
    samples: Sequence[tuple[Importance, Labels]], grid: Sequence[float] = DELTAS
) -> float:
    """The level with the best micro F1 on calibration samples, ties to the smaller.

    Raises:
        ValueError: No sample.
    """
    if not samples:
        raise ValueError(
            "no calibration sample to choose the level of F1 on: the calibration split has no "
            "positive sample with a SuperActivator. Give more data."
        )
    found = []
    for level in sorted(grid):
        sums = np.zeros(3)
        for importance, labels in samples:
            marked = top_fraction(importance, level)
            sums += (marked & labels).sum(), marked.sum(), labels.sum()
        found.append(micro_f1(sums))
    return sorted(grid)[int(np.argmax(np.array(found)))]


def micro_f1(sums: Float64[np.ndarray, term * draw]) -> Float64[np.ndarray, "*draw"]:
    """F1 from sums of true positives, marked and labelled tokens."""
    return ratio(2 * sums[0], sums[1] + sums[2])


def rank_share(importance: Float[np.ndarray, " token"]) -> Float64[np.ndarray, " token"]:
    """The share of a sample's tokens at or below each token; ties share the middle."""
    ordered = np.sort(importance)
    below = np.searchsorted(ordered, importance, side="left")
    upto = np.searchsorted(ordered, importance, side="right")
    return np.asarray((below + upto) / (2 * len(importance)), dtype=np.float64)


def usable(labels: Bool[np.ndarray, " token"]) -> bool:
    """Whether a sample has labelled and unlabelled tokens."""
    return bool(labels.any() and not labels.all())


def check(importance: Float[np.ndarray, " token"], labels: Bool[np.ndarray, " token"]) -> None:
    """Refuse what cannot be scored.

    Raises:
        ValueError: Importance is not finite, or labels are all alike.
    """
    if not np.isfinite(importance).all():
        raise ValueError("importance holds NaN or infinite values: nothing can be ranked by it.")
    if not usable(labels):
        raise ValueError(
            f"{int(labels.sum())} of {len(labels)} tokens are labelled: localisation needs some "
            "that are and some that are not."
        )
