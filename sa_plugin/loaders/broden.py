"""Broden (Bau et al. 2017, arXiv 1704.05796): OpenSurfaces' materials, Pascal's objects and parts.

`index.csv` names a picture and, in one column a category, its labels: picture files, separated by
semicolons, whose pixels are R + 256 G, or plain numbers, which hold for the whole picture. A number
is the `number` of label.csv (not the `code` of c_object.csv). 0 is unlabelled, which is not "none of these":
pixels that are 0 in every category that is read are void, and a patch whose label they could change is
unknown. Segmentations are half
as wide as pictures and are read at the pictures' size, each pixel taking the value at its centre.

A concept is `category::label`: one label may be an object here and a part there. The paper uses
4,503 pictures of Pascal and 3,578 of OpenSurfaces; which of Broden's 10,103 and 25,352 they are is
not published, so all are read unless `limit=` draws some. Memory: 0.15 MB a picture of 224 x 224
and 0.05 MB a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from sa_plugin.data.build import mask_sample
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.loaders.files import TableRow, fit_mask, read_picture, read_table
from sa_plugin.loaders.paper import PAPER_CONCEPTS
from sa_plugin.loaders.reading import Reading

_Mask = Bool[np.ndarray, "height width"]
_CATEGORIES = {"opensurfaces": ("material",), "pascal": ("object", "part")}
_SPLIT_OF_PART = {"train": "train", "val": "test"}
_LAYOUT = "unpack broden1_224.zip and give the folder that holds index.csv and images/"


def load_broden(reading: Reading, *, min_coverage: float = 0.0) -> ConceptData:
    """The pictures of OpenSurfaces with materials, or those of Pascal with objects and parts.

    Args:
        reading: The name is "opensurfaces" or "pascal"; the root holds `index.csv`, `label.csv` and
            `images/`. Published parts: train and val, with val as the test split. Concepts are such
            as "material::wood", by default the paper's 26 or 83.
        min_coverage: As in `PixelLabels`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A row or a label is not as published; the text names file and line.
    """
    root, categories = reading.root, _CATEGORIES[reading.name]
    index = read_table(root / "index.csv", ["image", "split", *categories], fix=_LAYOUT)
    names = _read_labels(root / "label.csv", categories)
    rows = [row for row in index if row["image"].startswith(f"{reading.name}/")]
    labelled = [row for row in rows if any(row[c] for c in categories)]
    reading.skipped[f"pictures without {' or '.join(categories)} labels"] += len(rows) - len(labelled)
    available = sorted(f"{category}::{name}" for (category, _), name in names.items())
    wanted = reading.wanted(available, PAPER_CONCEPTS[reading.name])
    samples, parts = [], []
    for k in reading.drawn(len(labelled), "pictures"):
        row = labelled[k]
        part = row.choice("split", _SPLIT_OF_PART)
        pixels = read_picture(root / "images" / row["image"], _LAYOUT)
        masks, void = _masks_of(root, row, names, set(wanted), pixels.shape[:2])
        samples.append(
            mask_sample(
                row["image"],
                pixels,
                masks,
                document=row["image"],
                min_coverage=min_coverage,
                void=void if void.any() else None,
            )
        )
        parts.append(_SPLIT_OF_PART[part])
    return reading.data(samples, wanted, parts)


def _read_labels(path: Path, categories: Sequence[str]) -> dict[tuple[str, int], str]:
    """Category and number to name, from label.csv, whose `category` reads `object(8920);part(3)`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A number is none.
    """
    found = {}
    for row in read_table(path, ["number", "name", "category"], fix=_LAYOUT):
        for entry in row["category"].split(";"):
            if entry.split("(")[0] in categories:
                found[entry.split("(")[0], row.whole("number")] = row["name"]
    return found


def _masks_of(
    root: Path, row: TableRow, names: Mapping[tuple[str, int], str], wanted: set[str], size: tuple[int, int]
) -> tuple[dict[str, _Mask], _Mask]:
    """One mask for each wanted concept that the picture shows, and where nothing is labelled.

    Raises:
        ValueError: A pixel has a number that label.csv does not have in this category.
    """
    masks: dict[str, _Mask] = {}
    unlabelled = np.ones(size, dtype=bool)
    for category in sorted({category for category, _ in names}):
        for cell in filter(None, row[category].split(";")):
            numbers = _plane(root, row, category, cell)
            unlabelled &= fit_mask(numbers == 0, size)
            # Checked before it is asked whether the concept is wanted: a number that label.csv lacks means
            # that the files do not belong together.
            for number in np.unique(numbers[numbers > 0]):
                if (category, int(number)) not in names:
                    raise row.refusal(
                        f"{category!r} has label {number} in {cell}, which label.csv does not "
                        "have in that category: do index.csv and label.csv belong together?"
                    )
                concept = f"{category}::{names[category, int(number)]}"
                if concept in wanted:
                    mask = fit_mask(numbers == number, size)
                    masks[concept] = masks[concept] | mask if concept in masks else mask
    return masks, unlabelled


def _plane(root: Path, row: TableRow, category: str, cell: str) -> Int[np.ndarray, "rows columns"]:
    """Label numbers of one cell: a picture's R + 256 G, or one number everywhere."""
    if cell.isdecimal():
        return np.full((1, 1), int(cell), dtype=np.int64)
    if not (root / "images" / cell).exists():
        raise row.refusal(f"{category!r} names {root / 'images' / cell}, which does not exist.")
    coded = read_picture(root / "images" / cell).astype(np.int64)
    return np.asarray(coded[..., 0] + 256 * coded[..., 1])
