"""How well scores rank positives above negatives, without a threshold, for every weighting of documents.

    AUROC = P(s+ > s-) + P(s+ = s-) / 2        (Mann-Whitney, ties at half)
    average precision = sum_k (R_k - R_{k-1}) P_k   over distinct thresholds, no interpolation
    TPR at f  = highest share of positives that any threshold finds with at most a share f of negatives
    pAUROC up to f = (1 + (A - f^2 / 2) / (f - f^2 / 2)) / 2,  A the area under the ROC curve up to f
                (McClish 1989: 1/2 for chance, 1 for the best)

as in scikit-learn. The first two average over the whole ranking: AUROC hardly moves when only the top
half per cent of negatives changes, which is where a tail lives; average precision does, and depends on
the share of positives. The other two are of the start of the curve, the false-positive rates that a
monitor can afford, and rest on few negatives: of n at most f n lie above. NaN when a class is empty:
there is nothing to rank.

No column copies a row: with w its document weights, all are functions of weighted counts in the order
of the scores. AUROC is besides a quadratic form in the document weights,

    AUROC_w = (w' A w) / ((w' p) (w' n)),
    A_de = sum of [s_i > s_j] + [s_i = s_j] / 2 over positives i of document d and negatives j of
           document e,

so for many rows of few documents (tokens) A is made once and each column costs D² instead of the
number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

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


class RocStart(NamedTuple):
    """The start of the ROC curve, for every column of document weights.

    Attributes:
        tpr: Share of positives found at each false-positive rate.
        area: Standardised partial area.
    """

    tpr: Float64[np.ndarray, "rate column"]
    area: Float64[np.ndarray, " column"]


def resampled_roc_start(
    scores: Float[np.ndarray, " row"],
    labels: Bool[np.ndarray, " row"],
    resamples: Resamples,
    rates: Sequence[float],
    upto: float,
) -> RocStart:
    """TPR at some false-positive rates, and the standardised partial AUROC, for every column.

    Args:
        scores: Finite scores.
        labels: Truth.
        resamples: Weights over the same rows.
        rates: False-positive rates.
        upto: Of the partial area, in (0, 1].

    Returns:
        NaN in columns where a class is empty. The area is that of
        `sklearn.metrics.roc_auc_score(max_fpr=upto)`.
    """
    order = np.argsort(-scores, kind="stable")
    ends = tie_ends(scores[order])
    found = []
    for part in _parts(resamples, len(scores)):
        weights = part.weights[:, part.document[order]]
        hits, false = (np.cumsum(weights * one[order], axis=1)[:, ends] for one in (labels, ~labels))
        # The curve starts where nothing fires.
        tpr, fpr = (np.pad(ratio(one, one[:, -1:], empty=np.nan), ((0, 0), (1, 0))) for one in (hits, false))
        # A share of whole numbers may miss its rate by the last bit.
        last = np.stack([(fpr <= rate + 1e-12).sum(1) - 1 for rate in rates])
        at = np.where(np.isnan(fpr[:, -1]), np.nan, tpr[np.arange(len(tpr)), np.maximum(last, 0)])
        # Trapezoids, the last of them cut where the rate is reached.
        width = np.diff(fpr, axis=1)
        taken = np.clip(upto - fpr[:, :-1], 0.0, width)
        height = tpr[:, :-1] + np.diff(tpr, axis=1) * ratio(taken, width) / 2
        least = upto**2 / 2
        area = (1 + ((taken * height).sum(1) - least) / (upto - least)) / 2
        found.append(np.vstack([at, area]))
    both = np.concatenate(found, axis=1)
    return RocStart(both[:-1], both[-1])


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
