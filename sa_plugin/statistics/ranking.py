"""How well scores rank positives above negatives, without a threshold, for every weighting of documents.

    AUROC = P(s+ > s-) + P(s+ = s-) / 2        (Mann-Whitney, ties at half)
    average precision = sum_k (R_k - R_{k-1}) P_k   over distinct thresholds, no interpolation

as in scikit-learn. Both average over the whole ranking: AUROC hardly moves when only the top half
per cent of negatives changes, which is where a tail lives; average precision does, and depends on
the share of positives. NaN when a class is empty: there is nothing to rank.

No column copies a row: with w its document weights, both are functions of weighted counts in the order
of the scores. AUROC is besides a quadratic form in the document weights,

    AUROC_w = (w' A w) / ((w' p) (w' n)),
    A_de = sum of [s_i > s_j] + [s_i = s_j] / 2 over positives i of document d and negatives j of
           document e,

so for many rows of few documents (tokens) A is made once and each column costs D² instead of the
number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from sa_plugin.statistics.bootstrap import Resamples, document_sums
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.quantile import check_finite


def auroc(
    scores: Float[np.ndarray, "row *column"], labels: Bool[np.ndarray, "row *#column"]
) -> Float64[np.ndarray, "*column"]:
    """Area under the ROC curve of every column.

    Args:
        scores: Rows are samples or tokens.
        labels: Same shape, or broadcast over columns.

    Returns:
        Equal to `sklearn.metrics.roc_auc_score`; NaN for a column with an empty class.

    Raises:
        ValueError: NaN or Inf scores, or shapes differ.

    Example:
        >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
        array(0.75)
    """
    return _columns(auroc_of, scores, labels)


def average_precision(
    scores: Float[np.ndarray, "row *column"], labels: Bool[np.ndarray, "row *#column"]
) -> Float64[np.ndarray, "*column"]:
    """Average precision of every column.

    Args:
        scores: Rows are samples or tokens.
        labels: Same shape, or broadcast over columns.

    Returns:
        Equal to `sklearn.metrics.average_precision_score`; NaN for a column with an empty class
        (scikit-learn says 0 or 1).

    Raises:
        ValueError: NaN or Inf scores, or shapes differ.
    """
    return _columns(_average_precision_of, scores, labels)


def auroc_of(positive: Float[np.ndarray, " p"], negative: Float[np.ndarray, " n"]) -> float:
    """AUROC of two sets of scores; NaN when one is empty."""
    if not len(positive) or not len(negative):
        return float("nan")
    positive, negative = np.sort(positive), np.sort(negative)
    # Negatives strictly below count one, equal ones a half: the mean of both sides of the search.
    below = np.searchsorted(negative, positive, side="left").sum()
    upto = np.searchsorted(negative, positive, side="right").sum()
    return float((int(below) + int(upto)) / (2 * len(positive) * len(negative)))


def tie_ends(ordered: Float[np.ndarray, " row"]) -> Int64[np.ndarray, " distinct"]:
    """Last place of each run of equal values in sorted ones."""
    return np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)


def _average_precision_of(positive: Float[np.ndarray, " p"], negative: Float[np.ndarray, " n"]) -> float:
    if not len(positive) or not len(negative):
        return float("nan")
    scores = np.concatenate([positive, negative])
    order = np.argsort(-scores, kind="stable")
    # Precision is defined at distinct thresholds only: within a tie there is no order.
    ends = tie_ends(scores[order])
    hits = np.cumsum(order < len(positive))[ends]
    gained = np.diff(hits, prepend=0) / len(positive)
    return float((gained * hits / (ends + 1)).sum())


def _columns(
    measure: Callable[[np.ndarray, np.ndarray], float],
    scores: Float[np.ndarray, "row *column"],
    labels: Bool[np.ndarray, "row *#column"],
) -> Float64[np.ndarray, "*column"]:
    if len(labels) != len(scores):
        raise ValueError(f"{len(scores)} rows of scores for {len(labels)} labels.")
    labels = np.broadcast_to(labels, scores.shape)
    check_finite(scores)
    flat, truth = scores.reshape(len(scores), -1), labels.reshape(len(scores), -1)
    values = [measure(s[y], s[~y]) for s, y in zip(flat.T, truth.T, strict=True)]
    return np.array(values, dtype=np.float64).reshape(scores.shape[1:])


# Entries of a [column, row] table that exist at a time: 32 MiB of float64.
_CHUNK = 1 << 22


def resampled_auroc(
    scores: Float[np.ndarray, " row"], labels: Bool[np.ndarray, " row"], resamples: Resamples
) -> Float64[np.ndarray, " column"]:
    """AUROC of one column of scores, for every column of document weights.

    Args:
        scores: Finite scores.
        labels: Truth.
        resamples: Weights over the same rows (`resamples.of(sample_of)` for tokens).
    """
    # By documents a column costs D² of a matrix product, by rows a running sum each, which are far dearer.
    if resamples.units**2 <= 64 * len(scores):
        return _auroc_by_documents(scores, labels, resamples)
    return _auroc_by_rows(scores, labels, resamples)


def resampled_average_precision(
    scores: Float[np.ndarray, " row"], labels: Bool[np.ndarray, " row"], resamples: Resamples
) -> Float64[np.ndarray, " column"]:
    """Average precision of one column of scores, for every column of document weights.

    Args:
        scores: Finite scores.
        labels: Truth.
        resamples: Weights over the same rows.
    """
    order = np.argsort(-scores, kind="stable")
    ends = tie_ends(scores[order])
    drawn = []
    for part in _parts(resamples, len(scores)):
        weights = part.weights[:, part.document[order]]
        fired = np.cumsum(weights, axis=1)[:, ends].astype(np.float64)
        hits = np.cumsum(weights * labels[order], axis=1)[:, ends].astype(np.float64)
        gained = np.diff(hits, axis=1, prepend=0)
        total = (gained * ratio(hits, fired)).sum(axis=1)
        # A column of one class alone has nothing to rank.
        both = (hits[:, -1] > 0) & (hits[:, -1] < fired[:, -1])
        drawn.append(ratio(total, np.where(both, hits[:, -1], 0), empty=np.nan))
    return np.concatenate(drawn)


def _auroc_by_rows(
    scores: Float[np.ndarray, " row"], labels: Bool[np.ndarray, " row"], resamples: Resamples
) -> Float64[np.ndarray, " column"]:
    order = np.argsort(scores, kind="stable")
    ends = tie_ends(scores[order])
    drawn = []
    for part in _parts(resamples, len(scores)):
        weights = part.weights[:, part.document[order]]
        positive = np.cumsum(weights * labels[order], axis=1)[:, ends].astype(np.float64)
        negative = np.cumsum(weights * ~labels[order], axis=1)[:, ends].astype(np.float64)
        gained = np.diff(positive, axis=1, prepend=0)
        # Of the negatives tied with a threshold half count as beaten.
        below = negative - np.diff(negative, axis=1, prepend=0) / 2
        pairs = positive[:, -1] * negative[:, -1]
        drawn.append(ratio((gained * below).sum(axis=1), pairs, empty=np.nan))
    return np.concatenate(drawn)


def _auroc_by_documents(
    scores: Float[np.ndarray, " row"], labels: Bool[np.ndarray, " row"], resamples: Resamples
) -> Float64[np.ndarray, " column"]:
    n, home = resamples.units, resamples.document
    positive, negative = scores[labels], scores[~labels]
    wins = np.zeros((n, n))
    for e in range(n):
        rivals = np.sort(negative[home[~labels] == e])
        if len(rivals):
            beaten = np.searchsorted(rivals, positive) + np.searchsorted(rivals, positive, "right")
            wins[:, e] = np.bincount(home[labels], weights=beaten / 2, minlength=n)
    weights = resamples.weights.astype(np.float64)
    counts = document_sums(np.stack([labels, ~labels]), resamples) @ weights.T
    return ratio(((weights @ wins) * weights).sum(axis=1), counts[0] * counts[1], empty=np.nan)


def _parts(resamples: Resamples, rows: int) -> list[Resamples]:
    """The columns in groups whose [column, row] tables stay small."""
    step = max(1, _CHUNK // max(1, rows))
    starts = range(0, resamples.columns, step)
    return [replace(resamples, weights=resamples.weights[a : a + step]) for a in starts]
