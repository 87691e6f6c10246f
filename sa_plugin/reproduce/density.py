"""How few of a sample's in-concept tokens are SuperActivators, with intervals.

    r_all = |SA| / |in|,   r_in = |SA and in| / |in|,      samples with |in| > 0 in-concept tokens
    share(x) = mean over concepts of the share of a concept's samples with r <= x

`sa_plugin.detection.rates` has the whole distribution; here are the shares at some x with intervals
over source documents. The paper says that most samples lie below .2 (arXiv 2512.05038).

A low r_in is a property of the chosen delta as much as of the model: delta of in-concept
calibration tokens reach the threshold by construction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sa_plugin.detection.detector import Detector
from sa_plugin.detection.evaluate import labels_of
from sa_plugin.detection.guard import document_names
from sa_plugin.detection.measure import interval_of
from sa_plugin.scores import ScoreTable
from sa_plugin.statistics import Interval, resample_documents, resampled_sums

AT = (0.1, 0.2, 0.5)


def density(
    detector: Detector, table: ScoreTable, *, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, Interval]]:
    """Shares of positive samples with r <= x, by "all" or "inside" and x.

    Args:
        detector: Calibrated.
        table: Scores of the test split.
        draws: Bootstrap resamples of source documents.
        seed: Of the resamples.
        level: Of the intervals.
    """
    token_labels, labels = labels_of(table, detector.concepts)
    tail, starts = detector.superactivators(table), table.tokens.bounds[:-1]

    def total(marks: np.ndarray) -> Any:
        return np.add.reduceat(marks.astype(np.int64), starts, axis=0)

    inside = total(token_labels)
    counted = labels & (inside > 0)
    resamples = resample_documents(document_names(table.tokens), draws=draws, seed=seed)
    weights = resamples.with_data()
    n = resampled_sums(counted.T, weights)
    found: dict[str, dict[str, Interval]] = {}
    for name, marks in (("all", tail), ("inside", tail & token_labels)):
        ratio = total(marks) / np.maximum(inside, 1)
        found[name] = {}
        for x in AT:
            hits = resampled_sums((counted & (ratio <= x)).T, weights)
            share = np.where(n > 0, hits / np.maximum(n, 1), np.nan)
            known = np.isfinite(share).sum(0)
            mean = np.where(known > 0, np.nansum(share, axis=0) / np.maximum(known, 1), np.nan)
            found[name][f"{x:g}"] = interval_of(mean, resamples, level)
    return found
