"""COCO 2017 (Lin et al. 2014, arXiv 1405.0312): instance masks of categories and supercategories.

A concept is the name of a category ("dog") or of a supercategory ("animal"); its mask is the union
of the masks of all its instances, crowds included: `iscrowd` says that one mask holds many instances, not
that their category is open, and COCO knows no void. Where both have one name ("person") they are one
concept. Polygons and run lengths are decoded by pycocotools.

Memory: pixels and masks are held. A picture of 640 x 480 takes 0.9 MB and each of its masks 0.3 MB,
so val2017 (5,000 pictures, the paper's 29 concepts) takes about 10 GB and train2017 about 24 times
that: give `limit=`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from sa_plugin._check import require
from sa_plugin.data.build import mask_sample
from sa_plugin.data.columns import name_of, shown, text_of, whole_of
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.loaders.files import json_entry, read_json_object, read_picture
from sa_plugin.loaders.paper import PAPER_CONCEPTS
from sa_plugin.loaders.reading import Reading

_SPLIT_OF_PART = {"train2017": "train", "val2017": "test"}
_SIZE = ("height", "width")
_LAYOUT = (
    "unpack annotations_trainval2017.zip and the pictures' zip beside each other and give the "
    "folder that holds annotations/ and val2017/"
)


@dataclass(frozen=True)
class CocoInstance:
    """One annotation: its concepts, its `segmentation` as published, and where it stands.

    `boxed` says whether it has a box of a pixel or more: something is there, whether or not it has a region.
    """

    concepts: tuple[str, ...]
    segmentation: Any
    where: str
    boxed: bool = False


@dataclass(frozen=True)
class CocoPicture:
    """One image with its annotations; a picture without any is a negative."""

    file_name: str
    size: tuple[int, int]
    instances: tuple[CocoInstance, ...]


def load_coco(
    reading: Reading, *, parts: Sequence[str] = ("val2017",), min_coverage: float = 0.0
) -> ConceptData:
    """COCO 2017 in its published layout; one picture is one document.

    Args:
        reading: The root holds `annotations/instances_val2017.json` and `val2017/`. Published parts
            need both, val2017 is the test split; the paper takes train and test from val2017 and
            calibrates on 500 pictures of train2017. Concepts are categories and supercategories, by
            default the paper's 29.
        parts: "val2017", "train2017" or both.
        min_coverage: As in `PixelLabels`.

    Raises:
        FileNotFoundError: A file is not there.
        ImportError: pycocotools or Pillow is not installed.
        ValueError: An annotation is not as published; the text names file and entry.
    """
    root = reading.root
    pictures = [(part, p) for part in parts for p in read_instances(_annotation_file(root, part))]
    available = sorted({c for _, p in pictures for one in p.instances for c in one.concepts})
    wanted = reading.wanted(available, PAPER_CONCEPTS["coco"])
    samples, homes = [], []
    for k in reading.drawn(len(pictures), "pictures"):
        part, picture = pictures[k]
        path = root / part / picture.file_name
        pixels = read_picture(path, _LAYOUT)
        require_size(path, pixels.shape[:2], picture)
        masks, unplaced = masks_of_picture(picture, wanted, reading.skipped)
        id_ = f"{part}/{Path(picture.file_name).stem}"
        samples.append(
            mask_sample(
                id_,
                pixels,
                masks,
                document=id_,
                labels=unplaced,
                unknown=unplaced or None,
                min_coverage=min_coverage,
            )
        )
        homes.append(_SPLIT_OF_PART[part])
    return reading.data(samples, wanted, homes)


def _annotation_file(root: Path, part: str) -> Path:
    """The annotation file of a part."""
    if part not in _SPLIT_OF_PART:
        raise ValueError(f"part {part!r} is not one of {tuple(_SPLIT_OF_PART)}.")
    return root / "annotations" / f"instances_{part}.json"


def read_instances(path: Path) -> list[CocoPicture]:
    """The pictures of an `instances_*.json`, in file order.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A key is missing, or an annotation is of an image or a category that the file
            does not have.
    """
    found = read_json_object(path, ["images", "annotations", "categories"], _LAYOUT)

    def values(listed: str, k: int, *keys: str) -> list[Any]:
        entry, where = found[listed][k], f"{listed}[{k}]"
        return [json_entry(path, where, entry, key, "is this an instances file?") for key in keys]

    for listed in ("images", "annotations", "categories"):
        if not isinstance(found[listed], list):
            raise ValueError(f"{path}: {listed!r} is {shown(found[listed])}, not a list: is this of COCO?")
    names: dict[str | int, tuple[str, ...]] = {}
    for k, entry in enumerate(found["categories"]):
        category_id, name = values("categories", k, "id", "name")
        # Tools that know no supercategories leave it out, or write None, "" or "none".
        above = entry.get("supercategory")
        both = [
            name,
            *([above] if isinstance(above, str) and above.strip().lower() not in ("", "none") else []),
        ]
        where = f"{path} categories[{k}]"
        # "person" is the name of a category and of its supercategory: one concept.
        if _key(where, category_id) in names:
            raise ValueError(f"{where}: the id {category_id!r} is another category's too: give each its own.")
        names[_key(where, category_id)] = tuple(dict.fromkeys(name_of(f"{where} name", one) for one in both))
    ids = [_key(f"{path} images[{k}]", values("images", k, "id")[0]) for k in range(len(found["images"]))]
    of_image: dict[str | int, list[CocoInstance]] = {one: [] for one in ids}
    if len(of_image) < len(ids):
        twice = next(one for one, count in Counter(ids).items() if count > 1)
        raise ValueError(f"{path}: the id {twice!r} is of two images: give each its own.")
    for k, one in enumerate(found["annotations"]):
        image_id, category_id = (
            _key(f"{path} annotations[{k}]", value)
            for value in values("annotations", k, "image_id", "category_id")
        )
        where = f"{path} annotations[{k}] (id {one.get('id')!r})"
        if category_id not in names:
            raise ValueError(f"{where}: category_id {category_id!r} is not in the file.")
        if image_id not in of_image:
            raise ValueError(f"{where}: image_id {image_id!r} is not in the file: is it cut off?")
        boxed = _has_box(one.get("bbox"), one.get("area"))
        of_image[image_id].append(CocoInstance(names[category_id], one.get("segmentation"), where, boxed))
    pictures = []
    for k, own_id in enumerate(ids):
        file_name, *size = values("images", k, "file_name", "height", "width")
        where = f"{path} images[{k}]"
        height, width = (
            whole_of(f"{path} images[{k}] {what}", v) for what, v in zip(_SIZE, size, strict=True)
        )
        name = text_of(f"{where} file_name", file_name)
        pictures.append(CocoPicture(name, (height, width), tuple(of_image[own_id])))
    return pictures


def _key(where: str, value: Any) -> str | int:
    if isinstance(value, float) and value.is_integer():
        # Tables of pandas write whole numbers so.
        return int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(
            f"{where}: the id {shown(value)} is no number and no text: is this an instances file?"
        )
    return value


def _has_box(box: Any, area: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        return False
    return bool(area != 0 and min(box[2:]) > 0 and box[2] * box[3] >= 1)


def masks_of_picture(
    picture: CocoPicture, wanted: Sequence[str], skipped: Counter[str]
) -> tuple[dict[str, Bool[np.ndarray, "height width"]], frozenset[str]]:
    """One mask for each wanted concept that the picture has an instance of, and the concepts without a place.

    An instance that has a box and no region says that the picture has its concept, and not where. Annotation
    tools leave others without an area behind: they are skipped. Both are counted in `skipped`.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: A segmentation cannot be decoded.
    """
    masks: dict[str, Bool[np.ndarray, "height width"]] = {}
    unplaced: set[str] = set()
    for one in picture.instances:
        own = [concept for concept in one.concepts if concept in wanted]
        if not own:
            continue
        said: Counter[str] = Counter()
        segmentation = _with_area(one.segmentation, said)
        if segmentation is None and one.boxed:
            unplaced.update(own)
            said = Counter({"annotations with a box alone, patches unknown": 1})
        skipped.update(said)
        if segmentation is None:
            continue
        try:
            mask = decode_segmentation(segmentation, *picture.size)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f"{one.where}: its segmentation cannot be decoded ({error}): expected polygons "
                "[[x, y, ...], ...] or run lengths {'counts': ..., 'size': [height, width]}."
            ) from error
        if not mask.any():
            skipped["annotations that cover no pixel's centre, patches unknown"] += 1
            unplaced.update(own)
            continue
        for concept in own:
            masks[concept] = masks[concept] | mask if concept in masks else mask
    return masks, frozenset(unplaced)


def _with_area(segmentation: Any, skipped: Counter[str]) -> Any:
    """A segmentation without its polygons of fewer than three points; None where nothing is left."""
    if segmentation is None or segmentation in ("", {}):
        skipped["annotations without a segmentation"] += 1
        return None
    if not isinstance(segmentation, list):
        return segmentation
    kept = [polygon for polygon in segmentation if not _is_degenerate(polygon)]
    skipped["polygons of fewer than three points"] += len(segmentation) - len(kept)
    skipped["annotations without an area"] += not kept
    return kept or None


def _is_degenerate(polygon: Any) -> bool:
    numbers = isinstance(polygon, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in polygon
    )
    return numbers and len(polygon) % 2 == 0 and len(set(zip(polygon[::2], polygon[1::2], strict=True))) < 3


def decode_segmentation(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """A segmentation's pixels, by pycocotools: polygons, or run lengths packed or not.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: It is neither, or of another size than the image.
    """
    coder = require("pycocotools.mask", "coco", "decoding COCO's masks")
    if isinstance(segmentation, list):
        _require_polygons(segmentation)
        packed = coder.merge(coder.frPyObjects(segmentation, height, width))
    elif list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, the image's {[height, width]}")
    elif isinstance(segmentation["counts"], list):
        packed = coder.frPyObjects(segmentation, height, width)
    else:
        packed = segmentation
    return np.asarray(coder.decode(packed), dtype=bool)


def _require_polygons(found: list[Any]) -> None:
    """Refuse what is no list of polygons; pycocotools would read four numbers as a box."""
    for polygon in found or [None]:
        numbers = isinstance(polygon, list) and all(isinstance(v, int | float) for v in polygon)
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"{polygon!r:.60} is no polygon of three points or more")
        if all(0 <= v <= 1 for v in polygon) and not all(v in (0, 1) for v in polygon):
            raise ValueError(f"{polygon!r:.60} is in shares of the sides, not in pixels")


def require_size(path: Path, size: tuple[int, ...], picture: CocoPicture) -> None:
    """Refuse a picture of another size than its annotations: it was resized.

    Raises:
        ValueError: Both sizes and the fix.
    """
    if tuple(size) != picture.size:
        turned = tuple(size) == picture.size[::-1]
        why = " (or turned: pictures are read as their EXIF orientation shows them)" if turned else ""
        raise ValueError(
            f"{path} is {size[0]} x {size[1]}, its annotations say {picture.size[0]} x "
            f"{picture.size[1]}: use the pictures as published, not resized{why}."
        )
