"""How well scores rank positives above negatives, without a threshold.

    AUROC = P(s+ > s-) + P(s+ = s-) / 2        (Mann-Whitney, ties at half)
    average precision = sum_k (R_k - R_{k-1}) P_k   over distinct thresholds, no interpolation

as in scikit-learn. Both average over the whole ranking: AUROC hardly moves when only the top half
per cent of negatives changes, which is where a tail lives; average precision does, and depends on
the share of positives. NaN when a class is empty: there is nothing to rank.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from sa_plugin.tail.counts import check_finite


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
    below = np.searchsorted(negative, positive, side="left").sum()
    upto = np.searchsorted(negative, positive, side="right").sum()
    return float((int(below) + int(upto)) / (2 * len(positive) * len(negative)))


def tie_ends(ordered: Float[np.ndarray, " row"]) -> Int64[np.ndarray, " distinct"]:
    """Last place of each run of equal values in sorted ones."""
    return np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)


def _average_precision_of(
    positive: Float[np.ndarray, " p"], negative: Float[np.ndarray, " n"]
) -> float:
    if not len(positive) or not len(negative):
        return float("nan")
    scores = np.concatenate([positive, negative])
    order = np.argsort(-scores, kind="stable")
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
