"""Labelled word salads: what tests use that need data and no text."""

import numpy as np

from sa_plugin.data import ConceptData, Splits

ANIMALS, FOODS = ("cat", "dog", "cow"), ("bread", "soup")
WORDS = (*ANIMALS, *FOODS, "sat", "ran", "tall", "house", "river", "blue", "over", "under")


def word_data(n, least=3, *, documents=None, seed=0):
    """n samples of `least` to 11 words, each labelled animal, food or neither."""
    rng = np.random.default_rng(seed)
    words = [list(rng.choice(WORDS, rng.integers(least, 12))) for _ in range(n)]
    labels = [["animal" if w in ANIMALS else "food" if w in FOODS else None for w in row] for row in words]
    names = None if documents is None else [f"d{k % documents}" for k in range(n)]
    return ConceptData.from_words(words, labels, splits=Splits(seed=1), documents=names)
