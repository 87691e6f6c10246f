"""Pictures in the format of the authors' code: metadata.csv with 0/1 columns, and masks.

One row a picture: `image_path`, `split` (train, cal, test) and one 0/1 column a concept. What the
row says is the sample label; masks of concepts that it denies are not used (and counted), as in the
authors' code. Masks come from:

| data | from |
|---|---|
| CLEVR | the picture: pixels of which two channels differ by more than 20; one object a scene |
| COCO | `instances_*.json` in the folder, in its annotations/, or in ../Coco-Cal/annotations/ |
| Broden | `segmentations.pt`: for each row {concept: mask}, read without running pickled code |

The authors stretch masks to 224 x 224 while CLIP's processor crops; here patches read the masks of
the original picture through the processor's own geometry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from sa_plugin.data import ConceptData
from sa_plugin.datasets.clevr import foreground
from sa_plugin.datasets.coco import Picture, masks_of, read_instances, require_size
from sa_plugin.datasets.paper import CLEVR, COCO, OPENSURFACES, PASCAL
from sa_plugin.datasets.parts import assemble, drawn, wanted_concepts
from sa_plugin.datasets.tables import Row, fit_mask, read_picture, read_table, require_path
from sa_plugin.make_samples import mask_sample
from sa_plugin.samples import SPLITS

Pixels = UInt8[np.ndarray, "height width 3"]
Masks = Mapping[str, Bool[np.ndarray, "height width"]]
MaskReader = Callable[[int, Row, Pixels, Sequence[str]], Masks]
NO_CONCEPT = ("image_path", "text_path", "split", "class", "")
LAYOUT = "give the folder that holds metadata.csv and the pictures it names"


def load_clevr_metadata(
    root: Path,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    limit: int | None = None,
    min_coverage: float = 0.0,
) -> ConceptData:
    """CLEVR scenes of one object each, masks by colour.

    Args:
        root: Holds `metadata.csv`.
        split: "published" takes the column `split`; "plain" divides anew.
        seed: Of the division and the draw.
        concepts: Columns; by default the paper's. `color::blue` and `blue` are one concept.
        limit: At most this many rows, drawn by `seed`.
        min_coverage: As in `ConceptData.from_masks`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A row is not as expected; the text names file and line.
    """

    def by_colour(_: int, row: Row, pixels: Pixels, wanted: Sequence[str]) -> Masks:
        _require_one_object(row)
        return dict.fromkeys(wanted, foreground(pixels))

    return _load(root, split, seed, "clevr", CLEVR, by_colour, concepts, limit, min_coverage)


def load_coco_metadata(
    root: Path,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    limit: int | None = None,
    min_coverage: float = 0.0,
) -> ConceptData:
    """COCO pictures with the masks of `instances_*.json`; arguments of `load_clevr_metadata`.

    Raises:
        ImportError: pycocotools is not installed.
    """
    places = [root, root / "annotations", root.parent / "Coco-Cal" / "annotations"]
    files = [file for place in places for file in sorted(place.glob("instances_*.json"))]
    if not files:
        require_path(root / "instances_val2017.json", "put COCO's annotation file there")
    of_name = {p.file_name: p for file in files for p in read_instances(file)}

    def by_instance(_: int, row: Row, pixels: Pixels, wanted: Sequence[str]) -> Masks:
        name = Path(row["image_path"]).name
        if name not in of_name:
            raise row.refusal(f"{name} is in none of {', '.join(map(str, files))}.")
        picture: Picture = of_name[name]
        require_size(root / row["image_path"], pixels.shape[:2], picture)
        return masks_of(picture, wanted)

    return _load(root, split, seed, "coco", COCO, by_instance, concepts, limit, min_coverage)


def load_opensurfaces_metadata(
    root: Path,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    limit: int | None = None,
    min_coverage: float = 0.0,
) -> ConceptData:
    """Broden's OpenSurfaces with the masks of segmentations.pt; as `load_clevr_metadata`."""
    return _load(root, split, seed, "opensurfaces", OPENSURFACES, _segmentations(root), concepts,
                 limit, min_coverage)  # fmt: skip


def load_pascal_metadata(
    root: Path,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    limit: int | None = None,
    min_coverage: float = 0.0,
) -> ConceptData:
    """Broden's Pascal with the masks of segmentations.pt; as `load_clevr_metadata`."""
    return _load(root, split, seed, "pascal", PASCAL, _segmentations(root), concepts, limit,
                 min_coverage)  # fmt: skip


def metadata_split(row: Row) -> str:
    """The row's split.

    Raises:
        ValueError: It is none of train, cal and test.
    """
    if row["split"] not in SPLITS:
        raise row.refusal(f"split {row['split']!r} is not one of {SPLITS}.")
    return row["split"]


def _load(
    root: Path,
    split: str,
    seed: int,
    name: str,
    default: Sequence[str],
    masks: MaskReader,
    concepts: Sequence[str] | str | None,
    limit: int | None,
    min_coverage: float,
) -> ConceptData:
    skipped: Counter[str] = Counter()
    rows = read_table(root / "metadata.csv", ["image_path", "split"], fix=LAYOUT)
    columns = {_concept(c): c for c in rows[0].values if c not in NO_CONCEPT}
    wanted = wanted_concepts(concepts, default, sorted(columns), skipped)
    samples, homes = [], []
    for k in drawn(len(rows), limit, seed, skipped, "rows"):
        row = rows[k]
        pixels = read_picture(root / row["image_path"], LAYOUT)
        said = [c for c in wanted if row.flag(columns[c])]
        found = masks(k, row, pixels, wanted)
        if name != "clevr":
            skipped["masks of concepts that metadata.csv denies"] += len(found.keys() - set(said))
        samples.append(
            mask_sample(
                row["image_path"], pixels, {c: found[c] for c in said if c in found}, labels=said,
                document=row["image_path"], min_coverage=min_coverage,
            )
        )  # fmt: skip
        homes.append(metadata_split(row))
    return assemble(
        samples, wanted, asked=concepts, parts=homes, split=split, seed=seed,
        name=name, skipped=+skipped,
    )  # fmt: skip


def _require_one_object(row: Row) -> None:
    """Refuse a scene of several objects: one mask by colour would stand for all of them."""
    columns = [column for column in row.values if column not in NO_CONCEPT]
    for kind in (CLEVR[:3], CLEVR[3:]):
        said = [c for c in columns if _concept(c) in kind and row.flag(c)]
        if len(said) > 1:
            raise row.refusal(
                f"{' and '.join(map(repr, said))} are 1, and a picture here shows one object: "
                "leave such rows out, or give the published folder with scenes/."
            )


def _concept(column: str) -> str:
    """CLEVR's columns are `blue` or `color::blue`; Broden's keep their category."""
    return column.removeprefix("color::").removeprefix("shape::")


def _segmentations(root: Path) -> MaskReader:
    path = require_path(root / "segmentations.pt", LAYOUT)
    rows = len(read_table(root / "metadata.csv", fix=LAYOUT))
    try:
        entries = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        raise ValueError(
            f"{path} holds more than lists, dicts and tensors, and pickled code is not run: save "
            "each mask as a tensor (torch.as_tensor), or give the published Broden folder."
        ) from error

    if not isinstance(entries, list | tuple) or len(entries) != rows:
        held = f"{len(entries)} entries" if isinstance(entries, list | tuple) else "no list"
        raise ValueError(
            f"{path} holds {held}, metadata.csv has {rows} rows: give one dict a row, in its "
            "order, since masks belong to rows by their order alone."
        )

    def by_row(k: int, row: Row, pixels: Pixels, wanted: Sequence[str]) -> Masks:
        if not isinstance(entries[k], Mapping):
            raise row.refusal(f"{path} has no masks at position {k}: expected one dict a row.")
        size = pixels.shape[:2]
        return {c: _fitted(row, c, mask, size) for c, mask in entries[k].items() if c in wanted}

    return by_row


def _fitted(
    row: Row, concept: str, mask: Any, size: tuple[int, int]
) -> Bool[np.ndarray, "height width"]:
    plane = np.asarray(torch.as_tensor(mask) > 0)
    turned = size[0] != size[1] and plane.shape == size[::-1]
    if plane.ndim != 2 or not plane.size or turned:
        raise row.refusal(
            f"the mask of {concept!r} has shape {list(plane.shape)}, the picture {list(size)}: "
            "give [height, width], of the picture or of a resized copy of it."
        )
    return fit_mask(plane, size)
