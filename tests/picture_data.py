"""Pictures with bright patches of 7 by 7 pixels as the concept, every other one without."""

from collections.abc import Sequence

import numpy as np

from sa_plugin.data import ConceptData, Sample
from sa_plugin.images import Image


def picture_data(widths: Sequence[int], columns: int) -> ConceptData:
    """24 pictures, 28 pixels high, their widths in turn; patches in the first `columns`."""
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
