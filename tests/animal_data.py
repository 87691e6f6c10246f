"""Small data with the concept "animal": random words, and pictures with bright patches."""

from collections.abc import Sequence

import numpy as np

from sa_plugin.data import ConceptData, Image, Sample, Splits

ANIMALS = ("cat", "dog")
WORDS = (*ANIMALS, "sat", "mat", "people", "walk", "home", "night", "the", "on")


def animal_texts() -> ConceptData:
    """32 texts of five to nine of the words."""
    rng = np.random.default_rng(0)
    words = [list(rng.choice(WORDS, rng.integers(5, 10))) for _ in range(32)]
    labels = [["animal" if w in ANIMALS else None for w in row] for row in words]
    return ConceptData.from_words(words, labels, splits=Splits(seed=1))


def animal_pictures(widths: Sequence[int], columns: int) -> ConceptData:
    """24 pictures, 28 pixels high, their widths in turn, every other one without the concept.

    The concept is a few bright patches of 7 by 7 pixels in the first `columns`.
    """
    rng = np.random.default_rng(0)
    samples = []
    for n in range(24):
        pixels = rng.integers(0, 80, (28, widths[n % len(widths)], 3), dtype=np.uint8)
        mask = np.zeros(pixels.shape[:2], dtype=bool)
        if n % 2:
            for row, column in rng.integers(0, (4, columns), (3, 2)):
                mask[7 * row : 7 * row + 7, 7 * column : 7 * column + 7] = True
            pixels[mask] += 150
        image = Image(pixels, {"animal": mask})
        positive = frozenset({"animal"} if n % 2 else ())
        samples.append(Sample(f"i{n}", "", f"d{n}", positive=positive, image=image))
    splits = tuple(np.repeat(["train", "cal", "test"], [12, 8, 4]).tolist())
    return ConceptData(("animal",), tuple(samples), splits)
