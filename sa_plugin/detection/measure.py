"""Detection metrics of one method on a split and on every resample of its documents.

Per concept: precision = TP / (TP + FP), recall = TP / (TP + FN), F1 = 2TP / (2TP + FP + FN), and
the AUROC of what the method thresholds. A concept without positive samples has none of them (NaN),
one without negative samples no AUROC; precision is 0 where nothing fires on a concept that has
positives. Averages over concepts leave out what is not defined, weighted and macro alike, so that
all metrics but AUROC average the same concepts:

    weighted = sum_c n_c m_c / sum_c n_c,  n_c = positive samples,      macro = mean_c m_c

Column 0 of every array is the split itself, the others are its resamples. All methods share the
resamples, so differences are paired. A method with several draws (RandTok) is averaged over them
within each column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin.statistics import (
    Confusion,
    Interval,
    Resamples,
    confusion,
    document_sums,
    f1,
    mean_over_concepts,
    percentile_bounds,
    precision,
    recall,
    resampled_confusion,
)
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.over_concepts import Average

METRICS = ("precision", "recall", "f1", "auroc")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one method, or one draw of it, said of every sample.

    Attributes:
        fired: Whether it fires.
        values: What it thresholds.
    """

    fired: Bool[np.ndarray, "sample concept"]
    values: Float[np.ndarray, "sample concept"]


def measure(
    outcomes: Sequence[Outcome], labels: Bool[np.ndarray, "sample concept"], resamples: Resamples
) -> dict[str, Float[np.ndarray, "concept column"]]:
    """Every metric of a method, averaged over its draws.

    Args:
        outcomes: One a draw.
        labels: Sample labels.
        resamples: Draws of documents.

    Returns:
        Metric to `[concept, 1 + draws]`; column 0 is the split itself.
    """
    each = []
    for outcome in outcomes:
        counts = counted(outcome.fired.T, labels.T, resamples)
        each.append(tuple(_defined(m(counts), counts) for m in (precision, recall, f1)))
    found = dict(zip(METRICS, np.mean(each, axis=0), strict=False))
    values = np.stack([outcome.values for outcome in outcomes])
    columns = [mean_auroc(values[..., c], labels[:, c], resamples) for c in range(labels.shape[1])]
    return {**found, "auroc": np.stack(columns)}


def counted(
    fired: Bool[np.ndarray, "*shape sample"],
    labels: Bool[np.ndarray, "*#shape sample"],
    resamples: Resamples,
) -> Confusion:
    """Outcome counts `[*shape, 1 + draws]`; column 0 is the split itself."""
    here, drawn = confusion(fired, labels), resampled_confusion(fired, labels, resamples)
    pairs = [np.broadcast_arrays(a[..., None], b) for a, b in zip(here, drawn, strict=True)]
    return Confusion(*(np.concatenate([a[..., :1], b], axis=-1) for a, b in pairs))


def f1_of(counts: Confusion) -> Float[np.ndarray, "*shape"]:
    """F1, not defined where there is no positive sample."""
    return _defined(f1(counts), counts)


def positives_of(
    labels: Bool[np.ndarray, "sample concept"], resamples: Resamples
) -> Float[np.ndarray, "concept column"]:
    """Positive samples of each concept."""
    counts = counted(labels.T, labels.T, resamples)
    return np.asarray(counts.tp, dtype=np.float64)


def averaged(
    metric: Float[np.ndarray, "*shape concept column"],
    positives: Float[np.ndarray, "concept column"],
    average: Average,
) -> Float[np.ndarray, "*shape column"]:
    """Mean over concepts of every column."""
    return mean_over_concepts(np.moveaxis(metric, -2, -1), positives.T, average)


def interval_of(
    columns: Float[np.ndarray, " column"], resamples: Resamples, level: float
) -> Interval:
    """The estimate of column 0 with the percentile interval of the others that are defined."""
    drawn = columns[1:]
    low, high = percentile_bounds(drawn[None], level)
    defined = int(np.isfinite(drawn).sum())
    return Interval(
        float(columns[0]),
        float(low[0]),
        float(high[0]),
        level,
        defined,
        n_units=resamples.n_documents,
    )


def mean_auroc(
    values: Float[np.ndarray, "draw sample"],
    labels: Bool[np.ndarray, " sample"],
    resamples: Resamples,
) -> Float[np.ndarray, " column"]:
    """AUROC of one concept, averaged over a method's draws; NaN where a class is empty.

    The number of pairs does not depend on the draw, so the mean is one quadratic form in the
    document weights: draws add up in `wins` before anything is resampled.
    """
    one = np.ones((1, resamples.n_documents))
    weights = np.concatenate([one, resamples.weights])
    positive, negative = np.flatnonzero(labels), np.flatnonzero(~labels)
    wins = np.zeros((len(positive), len(negative)))
    for value in values:
        up, down = value[positive][:, None], value[negative]
        wins += (up > down) + 0.5 * (up == down)
    of_negative = document_sums(wins, resamples.of(negative))
    by_document = document_sums(of_negative.T, resamples.of(positive)).T
    # Documents without a positive have empty rows, those without a negative empty columns.
    rows, columns = np.unique(resamples.document[labels]), np.unique(resamples.document[~labels])
    left, right = weights[:, rows], weights[:, columns]
    total = ((left @ by_document[np.ix_(rows, columns)]) * right).sum(1)
    counts = document_sums(np.stack([labels, ~labels]), resamples) @ weights.T
    return ratio(total, len(values) * counts[0] * counts[1], empty=np.nan)


def _defined(metric: Float[np.ndarray, "*shape"], counts: Confusion) -> Float[np.ndarray, "*shape"]:
    return np.where(np.asarray(counts.tp + counts.fn) > 0, metric, np.nan)
