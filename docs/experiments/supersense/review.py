"""Draws the labels to be read by a person, and keeps the verdicts over a rebuild.

The labels of a concept are ranked by a hash of passage, start and concept; the first
`PER_CONCEPT` are the sample. It is a random sample of the final data, and a rebuild that leaves a
label alone leaves it in the sample, with its verdict.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sa_plugin.loaders import SupersensePassage

PER_CONCEPT = 15


@dataclass(frozen=True)
class Verdict:
    """One label as read: `verdict` is right, wrong, or empty where nobody has read it yet."""

    passage: str
    start: int
    word: str
    concept: str
    verdict: str = ""
    note: str = ""

    @property
    def key(self) -> tuple[str, int, str]:
        """What makes it the same label after a rebuild."""
        return self.passage, self.start, self.concept


def sample(passages: Sequence[SupersensePassage], concepts: Sequence[str]) -> list[Verdict]:
    """Return the labels to read, `PER_CONCEPT` of each concept, without verdicts."""
    found: dict[str, list[Verdict]] = {concept: [] for concept in concepts}
    for passage in passages:
        for start, end, concept in passage.spans:
            found[concept].append(Verdict(passage.id, start, passage.text[start:end], concept))
    ranked = (sorted(found[concept], key=_rank)[:PER_CONCEPT] for concept in concepts)
    return [verdict for chosen in ranked for verdict in chosen]


def read_review(path: Path) -> list[Verdict]:
    """Read the verdicts of an earlier build, or nothing."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as opened:
        return [
            Verdict(r["passage"], int(r["start"]), r["word"], r["concept"], r["verdict"], r["note"])
            for r in csv.DictReader(opened)
        ]


def update_review(
    path: Path, passages: Sequence[SupersensePassage], concepts: Sequence[str]
) -> list[Verdict]:
    """Write the sample with the verdicts known so far and return the labels still to be read."""
    known = {verdict.key: verdict for verdict in read_review(path)}
    drawn = [known.get(verdict.key, verdict) for verdict in sample(passages, concepts)]
    with path.open("w", encoding="utf-8", newline="") as opened:
        names = [field.name for field in fields(Verdict)]
        writer = csv.DictWriter(opened, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(verdict) for verdict in drawn)
    return [verdict for verdict in drawn if not verdict.verdict]


def _rank(verdict: Verdict) -> str:
    return hashlib.sha256("\t".join(map(str, verdict.key)).encode()).hexdigest()
