"""The tail as one number of a concept's scores, so that it can be patched and differentiated.

    T_c = sum_n k_n (m_tail(n) - m_others(n)) / sum_n k_n

with k_n the SuperActivators of sample n in the unablated run, m_tail and m_others the mean score of
those and of the sample's other kept tokens: the total lift of the ledger (`effects.py`). Which
tokens are the tail is fixed by the unablated run, so T_c is linear in the scores, with one weight a
token.

What it does not show: tokens are chosen by the score whose parts are then taken away, so every part
that varies has a positive expected share of T_c, for a vector that means nothing too. The ledger
subtracts that (excess); patching and gradients of T_c do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sa_plugin.detection.detector import Detector
from sa_plugin.scores import ScoreTable
from sa_plugin.statistics import Resamples, document_sums
from sa_plugin.statistics.confusion import ratio
from sa_plugin.tokens import TokenTable


@dataclass(frozen=True, eq=False)
class TailObjective:
    """T_c of every concept on one split.

    Attributes:
        tokens: Rows of the unablated run.
        weights: 1 for a tail token, -k_n / (number of others) for another of its sample; 0 in
            samples that are all tail or have none.
        n_tail: k_n, 0 where the sample does not enter.
        clean: `sums` of the unablated scores.
    """

    tokens: TokenTable
    weights: Float[np.ndarray, "token concept"]
    n_tail: Float[np.ndarray, "sample concept"]
    clean: Float[np.ndarray, "sample concept"]

    def sums(
        self, scores: Float[np.ndarray, "token concept"]
    ) -> Float[np.ndarray, "sample concept"]:
        """Each sample's part of T_c times the number of tail tokens."""
        return np.add.reduceat(self.weights * scores, self.tokens.bounds[:-1], axis=0)

    def value(
        self, sums: Float[np.ndarray, "*head sample concept"]
    ) -> Float[np.ndarray, "*head concept"]:
        """T_c, or the part of it that the sums hold; NaN without a tail."""
        return ratio(sums.sum(-2), self.n_tail.sum(0), empty=np.nan)

    def columns(
        self, sums: Float[np.ndarray, "head sample concept"], resamples: Resamples
    ) -> Float[np.ndarray, "head concept column"]:
        """`value` on the split (column 0) and every resample of its documents.

        NaN in resamples where only one document has a tail.
        """
        draws = resamples.with_data()
        weights = draws.weights.T.astype(np.float64)
        top = document_sums(np.moveaxis(sums, 1, 2), draws) @ weights
        by_document = document_sums(self.n_tail.T, draws)
        found = ratio(top, by_document @ weights, empty=np.nan)
        found[:, (by_document > 0).sum(1) < 2, 1:] = np.nan
        return found


def tail_objective(detector: Detector, table: ScoreTable) -> TailObjective:
    """The tail objective of every concept, from unablated scores of one split.

    Args:
        detector: Gives layers, vectors and thresholds.
        table: Scores of the split alone.

    Raises:
        ValueError: No concept has a tail there.
    """
    scores = detector.token_scores(table)
    tail = scores.astype(np.float64) >= np.array([detector.threshold[c] for c in detector.concepts])
    starts, sample_of = table.tokens.bounds[:-1], table.tokens.sample_of
    k = np.add.reduceat(tail.astype(np.float64), starts, axis=0)
    others = np.diff(table.tokens.bounds)[:, None] - k
    n_tail = np.where(others > 0, k, 0.0)
    rest = -n_tail / np.maximum(others, 1)
    weights = np.where(tail, (n_tail > 0)[sample_of], rest[sample_of])
    if not n_tail.any():
        raise ValueError("no token of the split is a SuperActivator of any concept: no tail.")
    made = TailObjective(table.tokens, weights, n_tail, np.zeros_like(n_tail))
    return TailObjective(table.tokens, weights, n_tail, made.sums(scores))
