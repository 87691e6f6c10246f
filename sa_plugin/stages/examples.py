"""Which passages a report shows: a hit, a false fire of raw scores, an error, a miss.

The rule is stated, so that nobody picks: in each role the passage whose highest score lies at the
median of that role's margins, one concept a role, concepts in order of their number of positives.
Images are chosen by the same rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin.detection.detector import Detector
from sa_plugin.detection.items import shown_item
from sa_plugin.report.schema import Passage, Picture
from sa_plugin.scores.table import ScoreTable
from sa_plugin.statistics.confusion import exceeds, reaches

ROLES = ("true_positive", "raw_false_fire", "false_positive", "miss")


def passages(detector: Detector, table: ScoreTable, each: int = 2) -> list[Passage]:
    """Passages of every role.

    Args:
        detector: Calibrated.
        table: Scores of the split shown.
        each: Passages a role, of different concepts.
    """
    return cast(list[Passage], _items(detector, table, each))


def pictures(detector: Detector, table: ScoreTable, each: int = 2) -> list[Picture]:
    """Images of every role, as `passages`.

    Raises:
        ValueError: A sample is no image.
    """
    for sample in table.tokens.samples:
        if sample.image is None:
            raise ValueError(f"sample {sample.id!r} has no image: show texts with passages().")
    return cast(list[Picture], _items(detector, table, each))


def _items(detector: Detector, table: ScoreTable, each: int) -> list[dict[str, Any]]:
    scores = detector.token_scores(table)
    return [
        shown_item(detector, table.tokens, scores, n, c) | {"role": role}
        for n, c, role in chosen(detector, table, scores, each)
    ]


def chosen(
    detector: Detector, table: ScoreTable, scores: Float[np.ndarray, "token concept"], each: int
) -> Iterator[tuple[int, int, str]]:
    """Sample, concept and role of what is shown, `each` a role, by the rule above."""
    best = np.maximum.reduceat(scores, table.tokens.bounds[:-1])
    fired = reaches(best, detector.tail.chosen_threshold)
    raw = exceeds(best, detector.cuts.midpoint)
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
    mask: Bool[np.ndarray, "sample concept"], margin: Float[np.ndarray, "sample concept"], size: np.ndarray
) -> Iterator[tuple[int, int]]:
    """For each concept, largest first, the sample at the median margin."""
    for c in np.argsort(-size, kind="stable"):
        rows = np.flatnonzero(mask[:, c])
        if len(rows):
            order = rows[np.argsort(margin[rows, c], kind="stable")]
            yield int(order[len(order) // 2]), int(c)


def marked(record: Mapping[str, Any]) -> str:
    """The first passage of a record, its SuperActivators in brackets, or where those of a picture lie."""
    for passage in record.get("passages", []):
        text, shift = passage["text"], 0
        for (start, end), on in zip(passage["offsets"], passage["superactivator"], strict=True):
            if on:
                a, b = start + shift, end + shift
                text, shift = f"{text[:a]}[[{text[a:b]}]]{text[b:]}", shift + 4
        return (
            f"Passage {passage['id']}, SuperActivators of {passage['concept']!r} at layer "
            f"{passage['layer']} in [[ ]] ({passage['role'].replace('_', ' ')}):\n{text}"
        )
    for picture in record.get("pictures", []):
        marks = [box for box, on in zip(picture["boxes"], picture["superactivator"], strict=True) if on]
        places = ", ".join(f"({top:.0f}, {left:.0f})" for top, left, *_ in marks) or "none"
        return (
            f"Image {picture['id']}, SuperActivator patches of {picture['concept']!r} at layer "
            f"{picture['layer']} ({picture['role'].replace('_', ' ')}), top left corners, pixels: "
            f"{places}. The report shows {len(record['pictures'])} images."
        )
    return "No passage to show."
