"""CLEVR v1.0 (Johnson et al. 2017, arXiv 1612.06890): scenes as JSON, pictures as PNG, no masks.

The paper's masks are made by colour: a pixel is foreground when two of its channels differ by more
than 20 (authors' code). That tells objects from the grey floor, not from one another, and grey
objects not at all; the paper's own scenes hold one object each, those of the release three to ten.
Here foreground pixels are grouped into 4-connected regions, and an object has the region that is
next to its centre (`pixel_coords`). A scene in which that is not one region of its own for every
object is skipped and counted: its labels would be wrong.

What this does not show: occluded parts, shadows and highlights. A highlight is grey and lies
outside the mask; a coloured reflection in a metal object may join two regions, and then the scene
is skipped. The rule was tested on drawn scenes only, not on the release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8

from sa_plugin.data.build import mask_sample
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.loaders.files import json_entry, read_json_object, read_picture
from sa_plugin.loaders.paper import PAPER_CONCEPTS
from sa_plugin.loaders.reading import Reading

_DIFFERENCE = 20
# Pixels about an object's centre in which its region is looked for: a highlight may hide the centre.
_REACH = 4
_SPLIT_OF_PART = {"train": "train", "val": "test"}
_ATTRIBUTES = ("color", "shape", "size", "material")
_EXPECTED = "expected the scene format of CLEVR v1.0."
_LAYOUT = "unpack CLEVR_v1.0.zip and give the folder that holds images/ and scenes/"


@dataclass(frozen=True)
class ClevrScene:
    """A picture, and the attributes and centre (x, y) of each of its objects."""

    part: str
    path: Path
    attributes: tuple[tuple[str, ...], ...]
    centres: tuple[tuple[int, int], ...]


def load_clevr(
    reading: Reading, *, parts: Sequence[str] = ("val",), min_coverage: float = 0.0
) -> ConceptData:
    """CLEVR v1.0 in its published layout; one scene is one document.

    Args:
        reading: The root holds `scenes/CLEVR_val_scenes.json` and `images/val/`. Published parts:
            train and val, with val as the test split. Concepts are values of colour, shape, size
            and material, by default the paper's six. A scene takes about half a megabyte.
        parts: "train" and "val"; the release has no scenes for its test pictures.
        min_coverage: As in `PixelLabels`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A scene is not as published; the text names file and scene.
    """
    scenes = [scene for part in parts for scene in _read_scenes(reading.root, part)]
    available = sorted({value for s in scenes for values in s.attributes for value in values})
    wanted = reading.wanted(available, PAPER_CONCEPTS["clevr"])
    samples, homes = [], []
    for k in reading.drawn(len(scenes), "scenes"):
        sample = _sample(scenes[k], wanted, min_coverage)
        if isinstance(sample, str):
            reading.skipped[sample] += 1
        else:
            samples.append(sample)
            homes.append(_SPLIT_OF_PART[scenes[k].part])
    return reading.data(samples, wanted, homes)


def foreground(pixels: UInt8[np.ndarray, "height width 3"]) -> Bool[np.ndarray, "height width"]:
    """Pixels of which two channels differ by more than 20: coloured, not grey."""
    return np.asarray(np.ptp(pixels.astype(np.int16), axis=2) > _DIFFERENCE)


def regions_of(
    coloured: Bool[np.ndarray, "height width"], centres: Int[np.ndarray, "object xy"]
) -> list[Bool[np.ndarray, "height width"]] | None:
    """The region of each object, or None where one has none or two share one."""
    # scipy is imported by those who read CLEVR, not by everyone who opens a loader.
    from scipy import ndimage

    # Numbers from 1 for each 4-connected region; two objects in one region cannot be told apart.
    region, _ = ndimage.label(coloured)
    found: list[int] = []
    for x, y in centres:
        near = region[max(0, y - _REACH) : y + _REACH + 1, max(0, x - _REACH) : x + _REACH + 1]
        numbers = np.unique(near[near > 0])
        if len(numbers) != 1 or numbers[0] in found:
            return None
        found.append(int(numbers[0]))
    return [region == number for number in found]


def _read_scenes(root: Path, part: str) -> list[ClevrScene]:
    """The scenes of a part, in file order.

    Raises:
        FileNotFoundError: No scene file.
        ValueError: The part has none, or a key is missing.
    """
    if part not in _SPLIT_OF_PART:
        raise ValueError(f"part {part!r} is not one of {tuple(_SPLIT_OF_PART)}: only these have scenes.")
    path = root / "scenes" / f"CLEVR_{part}_scenes.json"
    scenes = []
    for k, scene in enumerate(read_json_object(path, ["scenes"], _LAYOUT)["scenes"]):
        where = f"scenes[{k}]"
        objects = json_entry(path, where, scene, "objects", _EXPECTED)
        centres = [json_entry(path, where, o, "pixel_coords", _EXPECTED) for o in objects]
        scenes.append(
            ClevrScene(
                part,
                root / "images" / part / json_entry(path, where, scene, "image_filename", _EXPECTED),
                tuple(
                    tuple(str(json_entry(path, where, o, a, _EXPECTED)) for a in _ATTRIBUTES) for o in objects
                ),
                tuple((round(centre[0]), round(centre[1])) for centre in centres),
            )
        )
    return scenes


def _sample(scene: ClevrScene, wanted: Sequence[str], share: float) -> Sample | str:
    """The scene's sample, or why it is skipped."""
    if any("gray" in values for values in scene.attributes):
        return "scenes with a grey object"
    pixels = read_picture(scene.path, _LAYOUT)
    centres = np.array(scene.centres, dtype=np.int64).reshape(-1, 2)
    regions = regions_of(foreground(pixels), centres)
    if regions is None:
        return "scenes whose objects colour does not tell apart"
    masks: dict[str, Bool[np.ndarray, "height width"]] = {}
    for values, region in zip(scene.attributes, regions, strict=True):
        for concept in set(values) & set(wanted):
            masks[concept] = masks[concept] | region if concept in masks else region
    id_ = scene.path.stem
    return mask_sample(id_, pixels, masks, document=id_, min_coverage=share)
