"""Which passages a report shows: a hit, a false fire of raw scores, an error, a miss.

The rule is stated, so that nobody picks: in each role the passage whose highest score lies at the
median of that role's margins, one concept a role, concepts in order of their number of positives.
Images are chosen by the same rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin.detection import Detector
from sa_plugin.results.schema import Passage
from sa_plugin.scores import ScoreTable

ROLES = ("true_positive", "raw_false_fire", "false_positive", "miss")


def passages(detector: Detector, table: ScoreTable, each: int = 2) -> list[Passage]:
    """Passages of every role.

    Args:
        detector: Calibrated.
        table: Scores of the split shown.
        each: Passages a role, of different concepts.
    """
    scores = detector.token_scores(table)
    return [
        _passage(detector, table, scores, n, c, role)
        for n, c, role in chosen(detector, table, scores, each)
    ]


def chosen(
    detector: Detector, table: ScoreTable, scores: Float[np.ndarray, "token concept"], each: int
) -> Iterator[tuple[int, int, str]]:
    """Sample, concept and role of what is shown, `each` a role, by the rule above."""
    best = np.maximum.reduceat(scores, table.tokens.bounds[:-1])
    fired = best >= detector.tail.chosen_threshold
    raw = best > detector.cuts.midpoint
    positive = table.tokens.sample_labels
    role_of = {
        "true_positive": positive & fired,
        "raw_false_fire": ~positive & raw & ~fired,
        "false_positive": ~positive & fired,
        "miss": positive & ~fired,
    }
    for role in ROLES:
        picks = _typical(role_of[role], best - detector.tail.chosen_threshold, positive.sum(0))
        for _, (n, c) in zip(range(each), picks, strict=False):
            yield n, c, role


def _typical(
    mask: Bool[np.ndarray, "sample concept"],
    margin: Float[np.ndarray, "sample concept"],
    size: np.ndarray,
) -> Iterator[tuple[int, int]]:
    """For each concept, largest first, the sample at the median margin."""
    for c in np.argsort(-size, kind="stable"):
        rows = np.flatnonzero(mask[:, c])
        if len(rows):
            order = rows[np.argsort(margin[rows, c], kind="stable")]
            yield int(order[len(order) // 2]), int(c)


def shared(
    detector: Detector, table: ScoreTable, scores: np.ndarray, n: int, c: int, role: str
) -> dict[str, Any]:
    """What a passage and an image have in common."""
    tokens = table.tokens
    rows = slice(int(tokens.bounds[n]), int(tokens.bounds[n + 1]))
    concept, sample = detector.concepts[c], tokens.samples[n]
    one = detector.choice(concept)
    own = scores[rows, c]
    return {
        "id": sample.id,
        "document": sample.document,
        "concept": concept,
        "kind": detector.bank.kind,
        "layer": one.layer,
        "delta": one.delta,
        "threshold": _finite(one.threshold),
        "raw_threshold": _finite(detector.cuts.midpoint[c]),
        "role": role,
        "positive": concept in sample.positive,
        "scores": own.tolist(),
        "superactivator": (own >= one.threshold).tolist(),
        "in_concept": tokens.labels[rows, tokens.concepts.index(concept)].tolist(),
    }


def _passage(
    detector: Detector, table: ScoreTable, scores: np.ndarray, n: int, c: int, role: str
) -> Passage:
    tokens = table.tokens
    rows = slice(int(tokens.bounds[n]), int(tokens.bounds[n + 1]))
    own = {"text": tokens.samples[n].text, "offsets": tokens.offsets[rows].tolist()}
    return cast(Passage, shared(detector, table, scores, n, c, role) | own)


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
