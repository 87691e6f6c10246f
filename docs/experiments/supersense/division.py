"""Divides lemmas into seen and held-out ones, and documents into train, cal and test.

A passage fits train or cal if none of its words is a form of a held-out lemma, test if none is a
form of a seen lemma; most passages fit nowhere. The division starts at random, with common lemmas
on both sides, and climbs: one exchange of two lemmas of like frequency, or of two documents, is
kept if the scarcest counts (`wealth`) do not fall.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from supersense.choose import Labelled

AIM = {"train": 60, "cal": 24, "test": 48}
DOCUMENT_SHARES = {"train": 0.35, "cal": 0.17, "test": 0.48}
HELD_SHARE = 0.42
BLOCK = 5
STEPS = 15000


@dataclass
class Division:
    """The state of the climb: which lemmas are held out, which document is in which split."""

    held_out: set[str]
    split_of: dict[str, str]


class Pool:
    """Passages with their labelled lemmas as bits of an integer, for fast counting."""

    def __init__(self, items: Sequence[Labelled], forms: Sequence[frozenset[str]]) -> None:
        """Number the lemmas and keep, for the counts, the passages with a scarce concept."""
        lemmas = {label.lemma for item in items for label in item.labels}
        self.bit = {lemma: 1 << place for place, lemma in enumerate(sorted(lemmas))}
        self.items = items
        self.masks = [self.mask(found & lemmas) for found in forms]
        counts = Counter(concept for item in items for concept in item.concepts)
        self.scarce = {concept for concept in counts if counts[concept] < 0.1 * len(items)}
        self.rows = [
            (mask, item.passage.document, sorted(item.concepts & self.scarce))
            for mask, item in zip(self.masks, items, strict=True)
            if item.concepts & self.scarce
        ]

    def mask(self, lemmas: frozenset[str] | set[str]) -> int:
        """Return the bits of the lemmas."""
        return sum(self.bit[lemma] for lemma in lemmas)

    def fits(self, mask: int, split: str, held: int) -> bool:
        """Tell whether a passage with these lemmas fits a split."""
        return not mask & ~held if split == "test" else not mask & held

    def wealth(self, division: Division) -> float:
        """Return the sum over splits and scarce concepts of sqrt(count / `AIM`), each up to 1."""
        held = self.mask(division.held_out)
        counts: Counter[tuple[str, str]] = Counter()
        for mask, document, concepts in self.rows:
            split = division.split_of[document]
            if self.fits(mask, split, held):
                for concept in concepts:
                    counts[split, concept] += 1
        pairs = [(split, concept) for split in AIM for concept in sorted(self.scarce)]
        return sum(sqrt(min(1.0, counts[pair] / AIM[pair[0]])) for pair in pairs)

    def fitting(self, division: Division) -> dict[str, list[Labelled]]:
        """Return the passages that fit each split."""
        held = self.mask(division.held_out)
        found: dict[str, list[Labelled]] = {split: [] for split in AIM}
        for item, mask in zip(self.items, self.masks, strict=True):
            split = division.split_of[item.passage.document]
            if self.fits(mask, split, held):
                found[split].append(item)
        return found


def divide(
    items: Sequence[Labelled], forms: Sequence[frozenset[str]], concepts: Sequence[str], seed: int
) -> tuple[Division, dict[str, list[Labelled]]]:
    """Return the division after the climb and the passages that fit each split."""
    rng = random.Random(seed)
    pool = Pool(items, forms)
    blocks = [block for concept in concepts for block in lemma_blocks(items, concept)]
    division = Division(start_lemmas(blocks, rng), start_documents(items, rng))
    documents = sorted(division.split_of)
    best = pool.wealth(division)
    for _step in range(STEPS):
        old = Division(set(division.held_out), dict(division.split_of))
        if rng.random() < 0.6:
            _exchange_lemmas(division, rng.choice(blocks), rng)
        else:
            _exchange_documents(division, documents, rng)
        wealth = pool.wealth(division)
        if wealth < best:
            division = old
        best = max(best, wealth)
    return division, pool.fitting(division)


def lemma_blocks(items: Sequence[Labelled], concept: str) -> list[list[str]]:
    """Return a concept's lemmas, commonest first, in blocks of `BLOCK`."""
    counts = Counter(lemma for item in items for lemma in sorted(item.lemmas(concept)))
    ranked = sorted(counts, key=lambda lemma: (-counts[lemma], lemma))
    return [ranked[start : start + BLOCK] for start in range(0, len(ranked), BLOCK)]


def start_lemmas(blocks: list[list[str]], rng: random.Random) -> set[str]:
    """Hold out `HELD_SHARE` of each block's lemmas, two of five."""
    return {x for block in blocks for x in rng.sample(block, round(HELD_SHARE * len(block)))}


def start_documents(items: Sequence[Labelled], rng: random.Random) -> dict[str, str]:
    """Give each document to a split, within each source by `DOCUMENT_SHARES`."""
    where: dict[str, str] = {}
    for source in ("sotu", "moby"):
        documents = sorted({i.passage.document for i in items if i.passage.source == source})
        rng.shuffle(documents)
        train = round(DOCUMENT_SHARES["train"] * len(documents))
        cal = train + round(DOCUMENT_SHARES["cal"] * len(documents))
        for place, document in enumerate(documents):
            where[document] = "train" if place < train else "cal" if place < cal else "test"
    return where


def _exchange_lemmas(division: Division, block: list[str], rng: random.Random) -> None:
    held = [lemma for lemma in block if lemma in division.held_out]
    seen = [lemma for lemma in block if lemma not in division.held_out]
    if held and seen:
        division.held_out.remove(rng.choice(held))
        division.held_out.add(rng.choice(seen))


def _exchange_documents(division: Division, documents: list[str], rng: random.Random) -> None:
    first, second = rng.sample(documents, 2)
    where = division.split_of
    where[first], where[second] = where[second], where[first]
