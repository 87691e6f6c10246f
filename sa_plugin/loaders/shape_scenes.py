"""Scenes of plain shapes with exact masks, after CLEVR (Johnson et al. 2017, arXiv 1612.06890).

One to four objects, each with one of 6 colours, 3 shapes, 2 sizes and 2 materials: 13 concepts. A
scene is drawn in this order: number of objects, their places (as if all were large), light and
background, and only then what stands at each place, each attribute by itself and uniformly. So no
concept can be told from another, from the number of objects, from a place or from the background.
A colour sets hue and saturation; how bright it is varies by object, light and shading.

A mask holds exactly the pixels that an object painted and no later one covered. Shadows fall on the
floor only and are in no mask.

What this does not show: anything about photographs. Shapes are drawn by formula, with hard edges
and no perspective; "metal" is a highlight and a streak. Large, small, metal and rubber are in most
scenes, so a detector that always says yes scores high on them: compare with that baseline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.splits import Splits
from sa_plugin.loaders.scenes import (
    Light,
    Owner,
    Pixels,
    draw_light,
    lit,
    numbered,
    place_squares,
    require_scenes,
    scene_data,
    texture,
    window,
)

SHAPE_COLOURS = {
    "red": (190, 45, 45),
    "green": (40, 140, 50),
    "blue": (55, 95, 215),
    "yellow": (215, 195, 45),
    "purple": (140, 60, 190),
    "cyan": (45, 190, 195),
}
SHAPE_KINDS = ("sphere", "cube", "cylinder")
SHAPE_SIZES = {"large": (0.125, 0.15), "small": (0.07, 0.09)}
SHAPE_MATERIALS = ("metal", "rubber")
SHAPE_CONCEPTS = (*SHAPE_COLOURS, *SHAPE_KINDS, *SHAPE_SIZES, *SHAPE_MATERIALS)

_MOST_OBJECTS = 4
LUMA = np.array([0.299, 0.587, 0.114])
_MIDDLE_LUMA = 105.0
# Overlapping objects keep this share of the disjoint distance. It exceeds 1/2, so none reaches the
# middle of another and nothing labelled is wholly hidden.
_OVERLAP_APART = 0.55


@dataclass(frozen=True)
class Thing:
    """One object; lengths are shares of the picture's side."""

    colour: str
    shape: str
    size: str
    material: str
    centre: tuple[float, float]
    radius: float
    brightness: float

    @property
    def concepts(self) -> tuple[str, str, str, str]:
        """Its four concepts."""
        return self.colour, self.shape, self.size, self.material


@dataclass(frozen=True)
class ShapeScene:
    """Objects from back to front, their light, and the seed of background and grain."""

    things: tuple[Thing, ...]
    light: Light
    seed: int


def shapes(
    n: int = 400,
    *,
    seed: int = 0,
    size: int = 224,
    objects: tuple[int, int] = (1, _MOST_OBJECTS),
    overlap: bool = False,
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    min_coverage: float = 0.0,
) -> ConceptData:
    """Scenes of shapes as data; one scene is one document. Runs on numpy alone.

    Args:
        n: Number of scenes.
        seed: Scene k depends on `seed` and k alone, the split on `seed` and all scenes.
        size: Side of the pictures, in pixels.
        objects: Fewest and most objects in a scene, at most 4.
        overlap: Whether an object may hide part of another; masks hold what is visible.
        fractions: Shares of train, cal and test.
        min_coverage: As in `PixelLabels`.

    Returns:
        Data with the concepts `SHAPE_CONCEPTS`, a mask for each that a scene has.

    Raises:
        ValueError: `n`, `size` or `objects` is out of range; and what `from_masks` raises.

    Example:
        >>> data = shapes(30, size=64)
        >>> data.concepts[:3]
        ('red', 'green', 'blue')
    """
    require_scenes(n, size, objects, _MOST_OBJECTS)
    scenes = [draw_shapes(np.random.default_rng([seed, k]), objects, overlap) for k in range(n)]
    return scene_data(
        [render_shapes(scene, size) for scene in scenes],
        [[thing.concepts for thing in scene.things] for scene in scenes],
        min_coverage,
        concepts=SHAPE_CONCEPTS,
        ids=numbered(n),
        splits=Splits(seed=seed, fractions=fractions),
        name="shapes",
    )


def draw_shapes(
    rng: np.random.Generator, objects: tuple[int, int] = (1, _MOST_OBJECTS), overlap: bool = False
) -> ShapeScene:
    """A scene by chance: places first, then what stands there."""
    count = int(rng.integers(objects[0], objects[1] + 1))
    largest = np.full(count, SHAPE_SIZES["large"][1])
    centres = place_squares(rng, largest, _OVERLAP_APART if overlap else 1.0)
    light = draw_light(rng)
    nearer_last = sorted((float(y), float(x)) for y, x in centres)
    things = tuple(_draw_thing(rng, centre) for centre in nearer_last)
    return ShapeScene(things, light, int(rng.integers(2**32)))


def render_shapes(scene: ShapeScene, size: int) -> tuple[Pixels, Owner]:
    """Paint a scene.

    Returns:
        Pixels, and for each pixel 0 (background) or the number of the object it shows, from 1. An
        object's visible pixels do not depend on the other objects.
    """
    rng = np.random.default_rng(scene.seed)
    picture = _floor(rng, size)
    owner = np.zeros((size, size), np.uint8)
    # All shadows before any object, so that they fall on the floor only.
    for thing in scene.things:
        _shade_floor(picture, thing, scene.light)
    for number, thing in enumerate(scene.things, start=1):
        where, dy, dx = window(np.array(thing.centre), thing.radius, size)
        inside, normal = _surface(thing.shape, dx / thing.radius, dy / thing.radius)
        paint = _paint(thing, scene.light, normal, dx / thing.radius, dy / thing.radius)
        picture[where][inside] = paint[inside]
        owner[where][inside] = number
    return lit(picture, scene.light, rng), owner


def _draw_thing(rng: np.random.Generator, centre: tuple[float, float]) -> Thing:
    colour, size = _one(rng, tuple(SHAPE_COLOURS)), _one(rng, tuple(SHAPE_SIZES))
    shape, material = _one(rng, SHAPE_KINDS), _one(rng, SHAPE_MATERIALS)
    radius, brightness = float(rng.uniform(*SHAPE_SIZES[size])), float(rng.uniform(0.75, 1.25))
    return Thing(colour, shape, size, material, centre, radius, brightness)


def _one(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def _floor(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size 3"]:
    """A greyish floor with a faint pattern."""
    base = rng.uniform(70, 175) + rng.uniform(-14, 14, 3)
    contrast = rng.uniform(5, 35) * rng.choice([-1.0, 1.0])
    pattern = (texture(rng, size) - 0.5) * np.float32(contrast)
    return np.asarray(pattern[..., None] + base.astype(np.float32))


def _shade_floor(picture: Float[np.ndarray, "size size 3"], thing: Thing, light: Light) -> None:
    """Darken an ellipse at the object's foot, on the side away from the light."""
    radius = thing.radius
    foot = np.array(thing.centre) + radius * np.array([0.8, -0.45 * light.towards[0]])
    where, dy, dx = window(foot, 1.15 * radius, len(picture))
    shadow = (dx / 1.1) ** 2 + (dy / 0.35) ** 2 < radius**2
    picture[where][shadow] *= np.float32(0.65)


def _surface(
    shape: str, dx: Float[np.ndarray, "1 columns"], dy: Float[np.ndarray, "rows 1"]
) -> tuple[Bool[np.ndarray, "rows columns"], Float[np.ndarray, "3 rows columns"]]:
    """Silhouette and unit normals (right, down, towards the viewer) of a unit shape."""
    # Inside a unit square; normals decide the shading, so flat faces have one and round ones bend.
    if shape == "sphere":
        squared = dx**2 + dy**2
        return squared < 1, _stack(dx, dy, np.sqrt(np.clip(1 - squared, 0, 1)))
    if shape == "cylinder":
        top = (dx / 0.75) ** 2 + ((dy + 0.62) / 0.24) ** 2 < 1
        foot = (dx / 0.75) ** 2 + ((dy - 0.62) / 0.24) ** 2 < 1
        body = (np.abs(dx) < 0.75) & (np.abs(dy) < 0.62)
        round_ = np.clip(dx / 0.75, -1, 1)
        side = _stack(round_, 0 * dy, np.sqrt(1 - round_**2))
        return top | body | foot, np.where(top, _UP, side)
    # A cube seen from above and the right: a square front, and two faces slanted by 45 degrees.
    above, beside = -0.5 - dy, dx - 0.5
    front = (np.abs(dx + 0.175) < 0.675) & (np.abs(dy - 0.175) < 0.675)
    top = (above >= 0) & (above < 0.35) & (np.abs(dx - above + 0.175) < 0.675)
    right = (beside >= 0) & (beside < 0.35) & (np.abs(dy + beside - 0.175) < 0.675)
    return front | top | right, np.where(top, _UP, np.where(right, _RIGHT, _FRONT))


def _unit(x: float, y: float, z: float) -> Float[np.ndarray, "3 1 1"]:
    vector = np.array([x, y, z], np.float32)
    return np.asarray(vector / np.linalg.norm(vector))[:, None, None]


_UP, _RIGHT, _FRONT = _unit(0.0, -1.0, 0.35), _unit(1.0, 0.0, 0.35), _unit(-0.15, 0.2, 1.0)


def _stack(*parts: Float[np.ndarray, "_ _"]) -> Float[np.ndarray, "3 rows columns"]:
    return np.stack(np.broadcast_arrays(*parts))


def _dot(
    vector: Float[np.ndarray, " 3"], normal: Float[np.ndarray, "3 rows columns"]
) -> Float[np.ndarray, "rows columns"]:
    return np.asarray(vector[0] * normal[0] + vector[1] * normal[1] + vector[2] * normal[2])


def _paint(
    thing: Thing,
    light: Light,
    normal: Float[np.ndarray, "3 rows columns"],
    dx: Float[np.ndarray, "1 columns"],
    dy: Float[np.ndarray, "rows 1"],
) -> Float[np.ndarray, "rows columns 3"]:
    """Phong shading; metal has a small highlight, more contrast and a reflected streak."""
    towards = np.array(light.towards, np.float32)
    half = towards + np.array([0, 0, 1], np.float32)
    # Blinn's half vector between light and viewer stands in for the mirrored ray.
    half /= np.linalg.norm(half)
    facing, mirror = (np.clip(_dot(vector, normal), 0, 1) for vector in (towards, half))
    colour = _colour(thing)
    if thing.material == "rubber":
        return np.asarray(colour * (0.5 + 0.6 * facing)[..., None] + (12 * mirror**4)[..., None])
    # A bright band that follows the surface, as of a window mirrored in metal.
    streak = np.exp(-(((normal[0] + 0.6 * normal[1] + 0.7 * (dx + dy)) / 0.2) ** 2))
    shine = 165 * mirror**40 + 65 * streak
    return np.asarray(colour * (0.25 + 0.85 * facing)[..., None] + shine[..., None])


def _colour(thing: Thing) -> Float[np.ndarray, " 3"]:
    """Hue and saturation of the palette; brightness drawn towards a common middle."""
    colour = np.array(SHAPE_COLOURS[thing.colour])
    luma = colour @ LUMA
    # Palettes differ in brightness by nature; the power draws them together, so that brightness alone
    # does not tell the colour.
    wanted = _MIDDLE_LUMA * (luma / _MIDDLE_LUMA) ** 0.35 * thing.brightness
    return np.asarray(colour * (wanted / luma), np.float32)
