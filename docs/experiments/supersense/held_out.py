"""The held-out-lemma set: what is seen in train and cal never occurs in test.

A train or cal passage has no word, in any part of speech or case, that is a form of a held-out
lemma of any concept; a test passage none of a seen lemma. Documents are disjoint.
"""

from __future__ import annotations

from collections.abc import Sequence

from supersense.choose import Labelled, by_rarity, draw_concept, shuffled, thin
from supersense.division import divide
from supersense.labels import WORD
from supersense.wordnet import WordNet

FLOOR = {"train": 70, "cal": 26, "test": 54}
SIZES = {"train": 660, "cal": 250, "test": 540}
CEILING = 0.35


def choose_held_out(
    pool: Sequence[Labelled], concepts: Sequence[str], wordnet: WordNet, seed: int
) -> tuple[dict[str, str], set[str]]:
    """Return the split of each chosen passage id, and the held-out lemmas."""
    forms = [all_lemmas(item.passage.text, wordnet) for item in pool]
    division, fitting = divide(pool, forms, concepts, seed)
    splits: dict[str, str] = {}
    for split, fits in fitting.items():
        eligible = shuffled(thin(fits, CEILING, seed), seed)
        taken: dict[str, Labelled] = {}
        for concept in by_rarity(eligible, concepts):
            draw_concept(concept, eligible, taken, FLOOR[split])
            draw_concept(concept, shuffled(fits, seed), taken, FLOOR[split])
        for item in eligible:
            if len(taken) < SIZES[split]:
                taken.setdefault(item.passage.id, item)
        splits.update(dict.fromkeys(taken, split))
    return splits, division.held_out


def all_lemmas(text: str, wordnet: WordNet) -> frozenset[str]:
    """Return the noun lemmas of every word of a text, whatever its part of speech."""
    words = {word.lower() for word in WORD.findall(text)}
    words |= {part for word in words for part in word.split("-")}
    return frozenset(form for word in words for form in wordnet.lemmas(word, plural=True))
