"""Thresholds of stored scores, chunk by chunk: of more than memory holds, equal to the bit.

Every in-concept score is kept by an `ExactTail` whose cut is -inf, since in-concept tokens are few beside
all tokens; so every delta's threshold is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from sa_plugin.statistics.quantile import DELTAS, tail_levels, warn_counts
from sa_plugin.statistics.streaming import ExactTail


@dataclass(frozen=True)
class ScoreChunks:
    """Stored scores and labels cut into chunks of tokens, as often as they are wanted.

    Args:
        scores: In memory or memory mapped.
        labels: Token labels.
        size: Tokens a chunk.
    """

    scores: Shaped[np.ndarray, "token *layer concept"]
    labels: Bool[np.ndarray, "token concept"]
    size: int = 65_536

    def __repr__(self) -> str:
        return f"ScoreChunks({self.scores.shape} {self.scores.dtype}, {self.size} tokens a chunk)"

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if len(self.scores) != len(self.labels):
            raise ValueError(f"{len(self.scores)} rows of scores for {len(self.labels)} labels.")
        for start in range(0, len(self.scores), self.size):
            rows = slice(start, start + self.size)
            yield self.scores[rows], self.labels[rows]


def streaming_thresholds(
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    deltas: Sequence[float] = DELTAS,
    *,
    names: Sequence[str] | None = None,
) -> Float64[np.ndarray, "delta *layer concept"]:
    """Thresholds of supervised concepts from stored scores, equal to `tail_thresholds` to the bit.

    Args:
        chunks: `(scores[token, *layer, concept], labels[token, concept])`, read once: `ScoreChunks`, or
            any iterable.
        deltas: Shares of the in-concept tokens at or above the threshold.
        names: Names of the concepts, for warnings.

    Returns:
        Thresholds in float64; +inf for a concept without in-concept tokens.

    Raises:
        ValueError: No chunks, a float64 chunk, NaN or Inf.

    Warns:
        FewTokensWarning, EmptyConceptWarning: As `tail_thresholds`.

    Example:
        >>> scores = np.arange(200, dtype=np.float32)[:, None]
        >>> streaming_thresholds(ScoreChunks(scores, scores >= 100, size=64), [0.1])
        array([[189.1]])
    """
    levels = tail_levels(deltas)
    tail, shape, seen = None, (0,), np.zeros(0, dtype=np.int64)
    for scores, labels in chunks:
        if tail is None:
            shape, seen = scores.shape[1:], np.zeros(labels.shape[1], dtype=np.int64)
            tail = ExactTail(np.full(int(np.prod(shape)), -np.inf))
        tail.update(scores.reshape(len(scores), -1), labels)
        seen += labels.sum(axis=0)
    if tail is None:
        raise ValueError("chunks is empty: there is nothing to set a threshold from.")
    warn_counts(seen, deltas, names)
    return tail.quantiles(levels).low.reshape(len(levels), *shape)
