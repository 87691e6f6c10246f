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

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8
from scipy import ndimage

from sa_plugin.data.build import mask_sample
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.loaders.huggingface import CLEVR
from sa_plugin.loaders.tables import assemble, drawn, read_json, read_picture, wanted_concepts

DIFFERENCE = 20
REACH = 4
SPLIT_OF = {"train": "train", "val": "test"}
ATTRIBUTES = ("color", "shape", "size", "material")
LAYOUT = "unpack CLEVR_v1.0.zip and give the folder that holds images/ and scenes/"


@dataclass(frozen=True)
class Scene:
    """A picture, and the attributes and centre (x, y) of each of its objects."""

    part: str
    path: Path
    attributes: tuple[tuple[str, ...], ...]
    centres: tuple[tuple[int, int], ...]


def load_clevr(
    root: Path,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    limit: int | None = None,
    parts: Sequence[str] = ("val",),
    min_coverage: float = 0.0,
) -> ConceptData:
    """CLEVR v1.0 in its published layout; one scene is one document.

    Args:
        root: Holds `scenes/CLEVR_val_scenes.json` and `images/val/`.
        split: "plain", or "published": train and val, with val as the test split.
        seed: Of the division and the draw.
        concepts: Values of colour, shape, size and material; by default the paper's six.
        limit: At most this many scenes, drawn by `seed`. A scene takes about half a megabyte.
        parts: "train" and "val"; the release has no scenes for its test pictures.
        min_coverage: As in `ConceptData.from_masks`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A scene is not as published; the text names file and scene.
    """
    skipped: Counter[str] = Counter()
    scenes = [scene for part in parts for scene in read_scenes(root, part)]
    available = sorted({value for s in scenes for values in s.attributes for value in values})
    wanted = wanted_concepts(concepts, CLEVR, available, skipped)
    samples, homes = [], []
    for k in drawn(len(scenes), limit, seed, skipped, "scenes"):
        sample = _sample(scenes[k], wanted, min_coverage)
        if isinstance(sample, str):
            skipped[sample] += 1
        else:
            samples.append(sample)
            homes.append(SPLIT_OF[scenes[k].part])
    return assemble(
        samples, wanted, asked=concepts, parts=homes, split=split, seed=seed, name="clevr", skipped=skipped
    )


def foreground(
    pixels: UInt8[np.ndarray, "height width 3"], difference: int = DIFFERENCE
) -> Bool[np.ndarray, "height width"]:
    """Pixels of which two channels differ by more than `difference`: coloured, not grey."""
    return np.asarray(np.ptp(pixels.astype(np.int16), axis=2) > difference)


def regions_of(
    coloured: Bool[np.ndarray, "height width"], centres: Int[np.ndarray, "object xy"]
) -> list[Bool[np.ndarray, "height width"]] | None:
    """The region of each object, or None where one has none or two share one."""
    region, _ = ndimage.label(coloured)
    found: list[int] = []
    for x, y in centres:
        near = region[max(0, y - REACH) : y + REACH + 1, max(0, x - REACH) : x + REACH + 1]
        numbers = np.unique(near[near > 0])
        if len(numbers) != 1 or numbers[0] in found:
            return None
        found.append(int(numbers[0]))
    return [region == number for number in found]


def read_scenes(root: Path, part: str) -> list[Scene]:
    """The scenes of a part, in file order.

    Raises:
        FileNotFoundError: No scene file.
        ValueError: The part has none, or a key is missing.
    """
    if part not in SPLIT_OF:
        raise ValueError(f"part {part!r} is not one of {tuple(SPLIT_OF)}: only these have scenes.")
    path = root / "scenes" / f"CLEVR_{part}_scenes.json"
    scenes = []
    for k, scene in enumerate(read_json(path, ["scenes"], LAYOUT)["scenes"]):
        objects = _value(path, k, scene, "objects")
        centres = [_value(path, k, o, "pixel_coords") for o in objects]
        scenes.append(
            Scene(
                part,
                root / "images" / part / _value(path, k, scene, "image_filename"),
                tuple(tuple(str(_value(path, k, o, a)) for a in ATTRIBUTES) for o in objects),
                tuple((round(centre[0]), round(centre[1])) for centre in centres),
            )
        )
    return scenes


def _value(path: Path, k: int, found: Any, key: str) -> Any:
    if not isinstance(found, Mapping) or key not in found:
        raise ValueError(
            f"{path} scenes[{k}]: key {key!r} is missing: expected the scene format of CLEVR v1.0."
        )
    return found[key]


def _sample(scene: Scene, wanted: Sequence[str], share: float) -> Sample | str:
    """The scene's sample, or why it is skipped."""
    if any("gray" in values for values in scene.attributes):
        return "scenes with a grey object"
    pixels = read_picture(scene.path, LAYOUT)
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
