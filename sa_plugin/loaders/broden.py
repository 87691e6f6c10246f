"""Broden (Bau et al. 2017, arXiv 1704.05796): OpenSurfaces' materials, Pascal's objects and parts.

`index.csv` names a picture and, in one column a category, its labels: picture files, separated by
semicolons, whose pixels are R + 256 G, or plain numbers, which hold for the whole picture. A number
is the `number` of label.csv (not the `code` of c_object.csv); 0 is no label. Segmentations are half
as wide as pictures and are read at the pictures' size, each pixel taking the value at its centre.

A concept is `category::label`: one label may be an object here and a part there. The paper uses
4,503 pictures of Pascal and 3,578 of OpenSurfaces; which of Broden's 10,103 and 25,352 they are is
not published, so all are read unless `limit=` draws some. Memory: 0.15 MB a picture of 224 x 224
and 0.05 MB a mask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from sa_plugin.data.build import mask_sample
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.loaders.huggingface import OPENSURFACES, PASCAL
from sa_plugin.loaders.tables import Row, assemble, drawn, fit_mask, read_picture, read_table, wanted_concepts

Mask = Bool[np.ndarray, "height width"]
SPLIT_OF = {"train": "train", "val": "test"}
LAYOUT = "unpack broden1_224.zip and give the folder that holds index.csv and images/"


def load_opensurfaces(
    root: Path,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    limit: int | None = None,
    min_coverage: float = 0.0,
) -> ConceptData:
    """The pictures of OpenSurfaces in Broden, with materials.

    Args:
        root: Holds `index.csv`, `label.csv` and `images/`.
        split: "plain", or "published": train and val, with val as the test split.
        seed: Of the division and the draw.
        concepts: Such as "material::wood"; by default the paper's 26.
        limit: At most this many pictures, drawn by `seed`.
        min_coverage: As in `ConceptData.from_masks`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A row or a label is not as published; the text names file and line.
    """
    return _load(
        root, split, seed, "opensurfaces", ("material",), OPENSURFACES, concepts, limit, min_coverage
    )


def load_pascal(
    root: Path,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    limit: int | None = None,
    min_coverage: float = 0.0,
) -> ConceptData:
    """The pictures of Pascal in Broden, with objects and parts.

    Arguments and errors are those of `load_opensurfaces`; the paper's concepts are 83.
    """
    return _load(root, split, seed, "pascal", ("object", "part"), PASCAL, concepts, limit, min_coverage)


def _load(
    root: Path,
    split: str,
    seed: int,
    source: str,
    categories: tuple[str, ...],
    default: Sequence[str],
    concepts: Sequence[str] | str | None,
    limit: int | None,
    min_coverage: float,
) -> ConceptData:
    skipped: Counter[str] = Counter()
    index = read_table(root / "index.csv", ["image", "split", *categories], fix=LAYOUT)
    names = read_labels(root / "label.csv", categories)
    rows = [row for row in index if row["image"].startswith(f"{source}/")]
    labelled = [row for row in rows if any(row[c] for c in categories)]
    skipped[f"pictures without {' or '.join(categories)} labels"] += len(rows) - len(labelled)
    available = sorted(f"{category}::{name}" for (category, _), name in names.items())
    wanted = wanted_concepts(concepts, default, available, skipped)
    samples, homes = [], []
    for k in drawn(len(labelled), limit, seed, skipped, "pictures"):
        row = labelled[k]
        if row["split"] not in SPLIT_OF:
            raise row.refusal(f"split {row['split']!r} is not one of {tuple(SPLIT_OF)}.")
        pixels = read_picture(root / "images" / row["image"], LAYOUT)
        masks = masks_of(root, row, names, set(wanted), pixels.shape[:2])
        samples.append(
            mask_sample(row["image"], pixels, masks, document=row["image"], min_coverage=min_coverage)
        )
        homes.append(SPLIT_OF[row["split"]])
    return assemble(
        samples, wanted, asked=concepts, parts=homes, split=split, seed=seed, name=source, skipped=+skipped
    )


def read_labels(path: Path, categories: Sequence[str]) -> dict[tuple[str, int], str]:
    """Category and number to name, from label.csv, whose `category` reads `object(8920);part(3)`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A number is none.
    """
    found = {}
    for row in read_table(path, ["number", "name", "category"], fix=LAYOUT):
        for entry in row["category"].split(";"):
            if entry.split("(")[0] in categories:
                found[entry.split("(")[0], row.whole("number")] = row["name"]
    return found


def masks_of(
    root: Path, row: Row, names: Mapping[tuple[str, int], str], wanted: set[str], size: tuple[int, int]
) -> dict[str, Mask]:
    """One mask for each wanted concept that the picture shows.

    Raises:
        ValueError: A pixel has a number that label.csv does not have in this category.
    """
    masks: dict[str, Mask] = {}
    for category in sorted({category for category, _ in names}):
        for cell in filter(None, row[category].split(";")):
            numbers = _plane(root, row, category, cell)
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
    return masks


def _plane(root: Path, row: Row, category: str, cell: str) -> Int[np.ndarray, "rows columns"]:
    """Label numbers of one cell: a picture's R + 256 G, or one number everywhere."""
    if cell.isdecimal():
        return np.full((1, 1), int(cell), dtype=np.int64)
    if not (root / "images" / cell).exists():
        raise row.refusal(f"{category!r} names {root / 'images' / cell}, which does not exist.")
    coded = read_picture(root / "images" / cell).astype(np.int64)
    return np.asarray(coded[..., 0] + 256 * coded[..., 1])
