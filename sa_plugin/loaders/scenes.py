"""What the made-up scenes share: places, backgrounds, light, and masks by concept.

Nothing here knows of concepts: places, backgrounds and light are drawn first and objects are put
into them afterwards, so that no concept can be told from where it stands or what is behind it.
Lengths are shares of the picture's side; a scene is the same at every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.images import PixelLabels

Pixels = UInt8[np.ndarray, "size size 3"]
Owner = UInt8[np.ndarray, "size size"]

_CANDIDATES = 64
_CLOUD_CELLS = 5
_SMALLEST = 32
# Grey levels by which noise moves a pixel at most.
_GRAIN = 7.0


@dataclass(frozen=True)
class Light:
    """Where light comes from and what it does to the whole picture.

    Attributes:
        towards: Unit vector to the light: right, down, towards the viewer.
        exposure: Factor on everything.
        slope: Change of the factor across the picture, along `towards`.
        tint: Factor on red, green and blue.
    """

    towards: tuple[float, float, float]
    exposure: float
    slope: float
    tint: tuple[float, float, float]


def draw_light(rng: np.random.Generator) -> Light:
    """A light from above, left or right, brighter or darker, warmer or colder."""
    side, warm = rng.uniform(-0.7, 0.7), rng.uniform(-0.08, 0.08)
    vector = np.array([side, -0.6, 0.65])
    x, y, z = (float(v) for v in vector / np.linalg.norm(vector))
    exposure, slope = rng.uniform(0.7, 1.15), rng.uniform(0, 0.35)
    return Light((x, y, z), float(exposure), float(slope), (1 + warm, 1.0, 1 - warm))


def place_squares(
    rng: np.random.Generator, half: Float[np.ndarray, " object"], apart: float = 1.0
) -> Float[np.ndarray, "object 2"]:
    """Centres (row, column) of squares in the picture, uniform over all arrangements that fit.

    Args:
        rng: Source of chance.
        half: Half the side of each square; the squares lie wholly in the picture.
        apart: Share of the squares kept free of each other: at 1 they are disjoint.

    Returns:
        One centre a square. Equal squares are exchangeable.
    """
    # Squares overlap when both axes are closer than the sum of their half sides: the larger of the two
    # distances decides. Whole arrangements are rejected, so those that fit stay equally likely.
    first, second = np.triu_indices(len(half), 1)
    needed = apart * (half[first] + half[second])
    while True:
        centres = rng.random((_CANDIDATES, len(half), 2)) * (1 - 2 * half[:, None]) + half[:, None]
        distance = np.abs(centres[:, first] - centres[:, second]).max(-1)
        fits = np.flatnonzero((distance >= needed).all(-1))
        if len(fits):
            return np.asarray(centres[fits[0]])


def texture(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """A pattern in [0, 1]: a gradient, stripes, checks or clouds, each as likely."""
    kind, angle = rng.integers(4), rng.uniform(0, 2 * np.pi)
    waves = 2 * np.pi * rng.uniform(2, 8)
    phase = [float(p) for p in rng.uniform(0, 2 * np.pi, 2)]
    clouds = rng.random((_CLOUD_CELLS, _CLOUD_CELLS), dtype=np.float32)
    along = _axes(size, angle)
    if kind == 0:
        return np.asarray((along + 0.75) / 1.5)
    if kind == 1:
        return np.asarray(0.5 + 0.5 * np.sin(waves * along + phase[0]))
    if kind == 2:
        across = np.sin(waves * _axes(size, angle + np.pi / 2) + phase[1])
        return np.asarray(0.5 + 0.5 * across * np.sin(waves * along + phase[0]))
    # Clouds: a coarse grid of noise, interpolated along rows and along columns.
    blend = _interpolation(size)
    return np.asarray(blend @ clouds @ blend.T)


def lit(picture: Float[np.ndarray, "size size 3"], light: Light, rng: np.random.Generator) -> Pixels:
    """The picture under its light, with grain; each pixel by itself."""
    size = len(picture)
    gain = light.exposure * (1 + light.slope * _axes(size, np.arctan2(*light.towards[1::-1])))
    picture = picture * np.array(light.tint, np.float32) * gain[..., None]
    # Raw bytes as signed numbers are uniform noise at a fraction of the cost of drawing floats.
    noise = np.frombuffer(rng.bytes(size * size), np.int8).reshape(size, size, 1)
    picture += noise * np.float32(_GRAIN / 128)
    np.clip(picture, 0, 255, out=picture)
    return np.asarray(picture, np.uint8)


def scene_data(
    rendered: Sequence[tuple[Pixels, Owner]],
    concepts_of: Sequence[Sequence[Sequence[str]]],
    min_coverage: float,
    **columns: Any,
) -> ConceptData:
    """Data from painted scenes.

    Args:
        rendered: Pixels of each scene, and which object each of them shows.
        concepts_of: Concepts of each object of each scene.
        min_coverage: As in `PixelLabels`.
        **columns: Of `ConceptData.from_masks`.
    """
    masks = [masks_by_concept(owner, of) for (_, owner), of in zip(rendered, concepts_of, strict=True)]
    labels = PixelLabels(masks, min_coverage=min_coverage)
    return ConceptData.from_masks([pixels for pixels, _ in rendered], labels, **columns)


def masks_by_concept(
    owner: Owner, concepts_of: Sequence[Sequence[str]]
) -> dict[str, Bool[np.ndarray, "size size"]]:
    """Union of the visible pixels of each concept's objects.

    Args:
        owner: 0 for background, k for the k-th object, where it is visible.
        concepts_of: Concepts of each object.

    Returns:
        Masks of the concepts that are in the scene. Concepts of the same objects share one
        read-only array.
    """
    of_concept: dict[str, list[int]] = {}
    for k, concepts in enumerate(concepts_of, start=1):
        for concept in concepts:
            of_concept.setdefault(concept, []).append(k)
    masks: dict[tuple[int, ...], Bool[np.ndarray, "size size"]] = {}
    for objects in map(tuple, of_concept.values()):
        if objects not in masks:
            masks[objects] = np.logical_or.reduce([owner == k for k in objects])
            # Concepts share the array: who wrote into one mask would change another.
            masks[objects].flags.writeable = False
    found = {concept: masks[tuple(objects)] for concept, objects in of_concept.items()}
    return {concept: mask for concept, mask in found.items() if mask.any()}


def require_scenes(n: int, size: int, objects: tuple[int, int], most: int) -> None:
    """Refuse numbers that no scene can be made of.

    Raises:
        ValueError: Which number, what is allowed.
    """
    if n < 1:
        raise ValueError(f"n = {n} scenes: ask for at least one.")
    if size < _SMALLEST:
        raise ValueError(f"size {size} is under {_SMALLEST} pixels: small objects would vanish.")
    if len(objects) != 2 or not 1 <= objects[0] <= objects[1] <= most:
        raise ValueError(
            f"objects {objects} must be the fewest and the most in a scene, between 1 and {most}."
        )


def window(
    centre: Float[np.ndarray, " 2"], half: float, size: int
) -> tuple[tuple[slice, slice], Float[np.ndarray, "rows 1"], Float[np.ndarray, "1 columns"]]:
    """The pixels about a centre, and their offsets from it in units of the side."""
    rows, columns = (
        np.arange(max(int((c - half) * size), 0), min(int((c + half) * size) + 2, size))
        for c in (float(v) for v in centre)
    )
    # A pixel stands for its centre, half a pixel from its upper left corner.
    where = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    dy, dx = ((ks + 0.5) / size - c for ks, c in zip((rows, columns), centre, strict=True))
    return where, dy.astype(np.float32)[:, None], dx.astype(np.float32)[None, :]


def numbered(n: int) -> list[str]:
    """Ids that sort in order."""
    return [f"{k:05d}" for k in range(n)]


def _axes(size: int, angle: float) -> Float[np.ndarray, "size size"]:
    """Distance along a direction from the middle of the picture."""
    steps = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    down, right = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    return np.asarray(down * steps[:, None] + right * steps)


def _interpolation(size: int) -> Float[np.ndarray, "size cell"]:
    """Weights that interpolate a coarse grid linearly."""
    at = np.linspace(0, _CLOUD_CELLS - 1, size, dtype=np.float32)
    cells = np.arange(_CLOUD_CELLS, dtype=np.float32)
    return np.asarray(np.clip(1 - np.abs(at[:, None] - cells), 0, 1))
