"""Draws the plain set: rare concepts first, no concept in more than 30 % of the passages.

Common concepts are thinned first, independently of each other: a passage stays eligible if a
uniform number drawn for each of its common concepts is below that concept's keeping rate. Draws
and order come from hashes, so that a change of one label does not redraw the whole set. Then every
concept, rarest first, draws passages until it has `FLOOR`, half from each source where that
many exist, and no lemma in more than `LEMMA_SHARE` of a concept's draws while others are left.
The rest of the set is drawn from the eligible passages at random, within the share of each source.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from supersense.labels import Label
from supersense.passages import Passage

SIZE = 2400
FLOOR = 190
CEILING = 0.26
LEMMA_SHARE = 0.15
MOBY_SHARE = 0.3


@dataclass(frozen=True)
class Labelled:
    """A passage with its labels."""

    passage: Passage
    labels: tuple[Label, ...]

    @property
    def concepts(self) -> frozenset[str]:
        """The concepts the passage has."""
        return frozenset(label.concept for label in self.labels)

    def lemmas(self, concept: str) -> frozenset[str]:
        """The lemmas of one concept."""
        return frozenset(label.lemma for label in self.labels if label.concept == concept)


def choose_plain(pool: Sequence[Labelled], concepts: Sequence[str], seed: int) -> list[Labelled]:
    """Return the passages of the plain set in the pool's order."""
    eligible = shuffled(thin(pool, CEILING, seed), seed)
    taken: dict[str, Labelled] = {}
    for concept in by_rarity(eligible, concepts):
        draw_concept(concept, eligible, taken, FLOOR)
    for source, share in (("moby", MOBY_SHARE), ("sotu", 1.0)):
        left = [item for item in eligible if item.passage.source == source]
        wanted = round(share * SIZE)
        for item in left:
            have = len(taken) if source == "sotu" else count_source(taken, source)
            if have >= wanted:
                break
            taken.setdefault(item.passage.id, item)
    return [item for item in pool if item.passage.id in taken]


def uniform(*key: object) -> float:
    """Return a number in [0, 1) that depends on the key alone."""
    digest = hashlib.sha256("\t".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def shuffled(items: Sequence[Labelled], seed: int) -> list[Labelled]:
    """Return the passages in a random order that other passages do not change."""
    return sorted(items, key=lambda item: uniform(seed, "order", item.passage.id))


def count_source(taken: dict[str, Labelled], source: str) -> int:
    """Count the drawn passages of one source."""
    return sum(item.passage.source == source for item in taken.values())


def by_rarity(pool: Sequence[Labelled], concepts: Sequence[str]) -> list[str]:
    """Return the concepts, those in the fewest passages first."""
    counts = Counter(concept for item in pool for concept in item.concepts)
    return sorted(concepts, key=lambda concept: (counts[concept], concept))


def thin(pool: Sequence[Labelled], ceiling: float, seed: int) -> list[Labelled]:
    """Drop passages of common concepts at random until none is in more than `ceiling` of them."""
    kept: list[Labelled] = []
    for source in ("sotu", "moby"):
        part = [item for item in pool if item.passage.source == source]
        draws = [{c: uniform(seed, c, item.passage.id) for c in item.concepts} for item in part]
        keep: dict[str, float] = {}
        left = part
        for _round in range(12):
            counts = Counter(concept for item in left for concept in item.concepts)
            for concept, count in counts.items():
                share = count / len(left)
                if share > ceiling:
                    odds = ceiling * (1 - share) / (share * (1 - ceiling))
                    keep[concept] = keep.get(concept, 1.0) * odds
            left = [
                item
                for item, drawn in zip(part, draws, strict=True)
                if all(drawn[c] < keep.get(c, 1.0) for c in item.concepts)
            ]
        kept += left
    return kept


def draw_concept(concept: str, pool: Sequence[Labelled], taken: dict[str, Labelled], floor: int) -> None:
    """Add passages with the concept to `taken`, in the pool's order, until it has `floor`."""
    candidates = [item for item in pool if concept in item.concepts]
    have = [item for item in taken.values() if concept in item.concepts]
    used = Counter(lemma for item in have for lemma in item.lemmas(concept))
    sources = Counter(item.passage.source for item in have)
    for by_source, by_lemma in ((True, True), (True, False), (False, True), (False, False)):
        for item in candidates:
            if sum(sources.values()) >= floor:
                return
            lemmas = item.lemmas(concept)
            full = by_source and 2 * sources[item.passage.source] >= floor
            worn = by_lemma and max(used[lemma] for lemma in lemmas) >= LEMMA_SHARE * floor
            if full or worn or item.passage.id in taken:
                continue
            taken[item.passage.id] = item
            used.update(lemmas)
            sources[item.passage.source] += 1
