"""Scenes of emoji with exact masks; test pictures are made of glyphs that no other split has seen.

A glyph's picture, 64 pixels of Noto Color Emoji, and its one concept, a subgroup of Unicode's, come
from the npm package emoji-datasource-google. Nothing is downloaded here, nothing is copied into this
package. Only emoji of one code point count, so skin tones and joined sequences do not.

The unit of splitting and resampling is the deck. A scene shows several glyphs, and scenes that share
a glyph are not independent: a detector that misses it misses it in all of them. So each concept's
glyphs are divided over train, cal and test, and within a split they are dealt into *decks* of four,
of different concepts where possible. A scene shows glyphs of one deck, and the deck is its
`document`. Every glyph is in exactly one deck: scenes of two decks share no glyph, resampling
documents resamples glyphs with all their scenes, and no glyph crosses a split. The price: glyphs of
a deck always meet each other, so one deck cannot tell a glyph from its company.

Numbers of objects, places and sizes, background and light are drawn before it is known which glyphs
stand there. A mask holds the pixels that are at least half glyph (alpha of 128 or more); glyphs do
not overlap.

What this does not show: anything about photographs, or kinds held out. Glyphs are pictograms in one
artist's style, "tiger face" may be in train and "tiger" in test, and backgrounds of all splits are
from the same generator. A concept's test interval rests on its few test glyphs (three of eleven
musical instruments, at the default fractions), however many scenes are made of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from sa_plugin._check import require
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.images import opened
from sa_plugin.data.sample import SPLITS
from sa_plugin.data.splits import Splits
from sa_plugin.loaders.files import fetched_folder, read_json_list
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
)

# Where the package keeps its table and its pictures.
EMOJI_TABLE = "emoji.json"
EMOJI_PICTURES = "img/google/64"
EMOJI_GROUPS = {
    "land mammal": ("animal-mammal",),
    "bird": ("animal-bird",),
    "sea animal": ("animal-marine",),
    "bug": ("animal-bug",),
    "plant": ("plant-flower", "plant-other"),
    "fruit": ("food-fruit",),
    "prepared food": ("food-prepared", "food-asian"),
    "ground vehicle": ("transport-ground",),
    "building": ("place-building",),
    "clothing": ("clothing",),
    "smiling face": ("face-smiling",),
    "musical instrument": ("musical-instrument",),
}
EMOJI_CONCEPTS = tuple(EMOJI_GROUPS)
# Unicode files these with the group, but they do not show the concept: parts, traces, fittings,
# things carried, and fungi.
EMOJI_LEFT_OUT = {
    concept: tuple(names.split(", "))
    for concept, names in {
        "land mammal": "pig nose, paw prints",
        "bird": "feather, wing",
        "bug": "spider web, microbe",
        "plant": "rosette, empty nest, nest with eggs, mushroom",
        "ground vehicle": (
            "station, bus stop, motorway, railway track, oil drum, fuel pump, wheel, police "
            "cars revolving light, horizontal traffic light, vertical traffic light, octagonal "
            "sign, construction sign, roller skate"
        ),
        "building": "building construction, brick, rock, wood, statue of liberty",
        "clothing": (
            "folding hand fan, purse, handbag, pouch, shopping bags, school satchel, hair "
            "pick, prayer beads, lipstick, ring, gem stone"
        ),
    }.items()
}
EMOJI_PER_DECK = 4
# Of the square about a glyph, as a share of the picture's side.
_SIDES = (0.24, 0.38)
_MOST_OBJECTS = 3
_VARIATION = "-FE0F"
_ENTRY = ("unified", "name", "image", "subcategory", "sort_order", "has_img_google")
_PACKAGE = "emoji-datasource-google", "15.0.1"


@dataclass(frozen=True, eq=False)
class Glyph:
    """A picture of one concept, cropped to what is not transparent."""

    name: str
    concept: str
    rgba: UInt8[np.ndarray, "rows columns 4"]


@dataclass(frozen=True)
class Placed:
    """A glyph in a scene; lengths are shares of the picture's side."""

    glyph: Glyph
    centre: tuple[float, float]
    side: float
    mirrored: bool


@dataclass(frozen=True)
class EmojiScene:
    """Glyphs of one deck, their light, and the seed of background and grain."""

    split: str
    deck: str
    placed: tuple[Placed, ...]
    light: Light
    seed: int


def emoji_scenes(
    n: int = 400,
    *,
    seed: int = 0,
    size: int = 224,
    root: str | Path | None = None,
    objects: tuple[int, int] = (1, _MOST_OBJECTS),
    fractions: tuple[float, float, float] = (0.5, 0.2, 0.3),
    min_coverage: float = 0.0,
) -> ConceptData:
    """Scenes of emoji as data; a document is a deck of glyphs.

    Needs Pillow and the pictures, which `make weights` of the repository fetches. Below some 200
    scenes a split may lack a concept; the data then warn.

    Args:
        n: Number of scenes.
        seed: Seed of the decks and of every scene. The same Pillow and pictures give the same pixels.
        size: Side of the pictures, in pixels.
        root: The folder of the npm package emoji-datasource-google; by default `emoji_folder()`.
        objects: Fewest and most glyphs in a scene, at most 3.
        fractions: Shares of train, cal and test, of each concept's glyphs and of the scenes.
        min_coverage: As in `PixelLabels`.

    Returns:
        Data with the concepts `EMOJI_CONCEPTS`; a sample's id ends with the names of its glyphs.

    Raises:
        FileNotFoundError: Table or pictures are not there; the text says how to get them.
        ImportError: Pillow is not installed.
        ValueError: A number is out of range, or the table holds too few glyphs of a concept.

    Example:
        >>> data = emoji_scenes(300)  # doctest: +SKIP
        >>> data.test.samples[0].document  # doctest: +SKIP
        'test-00'
    """
    require_scenes(n, size, objects, _MOST_OBJECTS)
    scenes = plan_emoji(read_glyphs(root), n, seed, objects, fractions)
    return scene_data(
        [render_emoji(scene, size) for scene in scenes],
        [[[p.glyph.concept] for p in scene.placed] for scene in scenes],
        min_coverage,
        concepts=EMOJI_CONCEPTS,
        documents=[scene.deck for scene in scenes],
        splits=Splits(of=[scene.split for scene in scenes], seed=seed),
        ids=[
            f"{i} {', '.join(p.glyph.name for p in scene.placed)}"
            for i, scene in zip(numbered(n), scenes, strict=True)
        ],
        name="emoji",
    )


def emoji_folder() -> Path:
    """Where the pictures are looked for when no root is given: `emoji` in `cache_folder()`. No download.

    Raises:
        FileNotFoundError: They are not there, or not all; the text says how to get them.
    """
    return fetched_folder("emoji", "pictures of emoji", *_PACKAGE, "make weights")


def read_glyphs(root: str | Path | None = None) -> list[Glyph]:
    """Every glyph of every concept, in Unicode's order; a picture that stands twice counts once.

    Args:
        root: The folder of the npm package emoji-datasource-google; by default `emoji_folder()`.

    Raises:
        FileNotFoundError: Table or pictures are not there; the text says how to get them.
        ImportError: Pillow is not installed.
        ValueError: The table is not the package's, or a file is no picture.
    """
    folder = emoji_folder() if root is None else Path(root).expanduser()
    concept_of = {group: concept for concept, groups in EMOJI_GROUPS.items() for group in groups}
    seen: set[bytes] = set()
    glyphs = []
    for entry in emoji_entries(folder):
        concept, name = concept_of[entry["subcategory"]], entry["name"].lower()
        if name in EMOJI_LEFT_OUT.get(concept, ()):
            continue
        rgba = np.asarray(opened(folder / EMOJI_PICTURES / entry["image"]).convert("RGBA"))
        if rgba[..., 3].any() and rgba.tobytes() not in seen:
            seen.add(rgba.tobytes())
            glyphs.append(Glyph(name, concept, _cropped(rgba)))
    return glyphs


def emoji_entries(folder: Path) -> list[Mapping[str, Any]]:
    """The table's entries of the groups in `EMOJI_GROUPS`, in Unicode's order: those of one code point.

    Raises:
        FileNotFoundError: The table is not there.
        ValueError: It is not the package's.
    """
    path = folder / EMOJI_TABLE
    groups = {group for groups in EMOJI_GROUPS.values() for group in groups}
    found = read_json_list(path, _ENTRY, f"give the folder of the npm package {' '.join(_PACKAGE)}")
    one = (e for e in found if "-" not in e["unified"].removesuffix(_VARIATION))
    wanted = (e for e in one if e["subcategory"] in groups and e["has_img_google"])
    return sorted(wanted, key=lambda e: e["sort_order"])


def _cropped(rgba: UInt8[np.ndarray, "rows columns 4"]) -> UInt8[np.ndarray, "_ _ 4"]:
    rows, columns = (np.flatnonzero(rgba[..., 3].any(axis)) for axis in (1, 0))
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def deal_decks(
    glyphs: Sequence[Glyph], fractions: tuple[float, float, float] = (0.5, 0.2, 0.3), seed: int = 0
) -> dict[str, list[list[Glyph]]]:
    """Decks of each split: every glyph in exactly one.

    Args:
        glyphs: All of them.
        fractions: Shares of train, cal and test of each concept's glyphs; at least one each.
        seed: Seed of the division.

    Raises:
        ValueError: The fractions are not three positive numbers that add up to 1, or a concept
            has fewer than three glyphs.
    """
    # Refuses shares that do not add up.
    Splits(fractions=fractions)
    rng = np.random.default_rng([seed, len(SPLITS)])
    shares: dict[str, list[list[Glyph]]] = {split: [] for split in SPLITS}
    for concept in EMOJI_CONCEPTS:
        own = [g for g in glyphs if g.concept == concept]
        if len(own) < len(SPLITS):
            raise ValueError(
                f"concept {concept!r} has {len(own)} glyphs; each split needs one: are these the "
                f"pictures of the npm package {' '.join(_PACKAGE)}?"
            )
        # Rounded shares, then clipped so that no split is left without a glyph.
        cuts = np.round(np.cumsum(fractions)[:2] * len(own)).astype(int)
        first = int(np.clip(cuts[0], 1, len(own) - 2))
        second = int(np.clip(cuts[1], first + 1, len(own) - 1))
        order = [own[i] for i in rng.permutation(len(own))]
        parts = (order[:first], order[first:second], order[second:])
        for split, part in zip(SPLITS, parts, strict=True):
            shares[split].append(part)
    return {split: _decks(of_concept, rng) for split, of_concept in shares.items()}


def plan_emoji(
    glyphs: Sequence[Glyph],
    n: int,
    seed: int = 0,
    objects: tuple[int, int] = (1, _MOST_OBJECTS),
    fractions: tuple[float, float, float] = (0.5, 0.2, 0.3),
) -> list[EmojiScene]:
    """Scenes, split by split; decks take turns, and so do the glyphs of a deck.

    Raises:
        ValueError: What `deal_decks` raises.
    """
    decks = deal_decks(glyphs, fractions, seed)
    ends = np.round(np.cumsum((0.0, *fractions)) * n).astype(int)
    scenes = []
    for s, split in enumerate(SPLITS):
        shown: dict[str, int] = {}
        for k in range(ends[s + 1] - ends[s]):
            # Scene k of a split depends on seed, split and k: more scenes leave the first as they are.
            rng = np.random.default_rng([seed, s, k])
            number = k % len(decks[split])
            scene = _draw_emoji(rng, decks[split][number], shown, objects)
            scenes.append(EmojiScene(split, f"{split}-{number:02d}", *scene))
    return scenes


def render_emoji(scene: EmojiScene, size: int) -> tuple[Pixels, Owner]:
    """Paint a scene.

    Returns:
        Pixels, and for each pixel 0 (background) or the number of the glyph it shows, from 1. A
        glyph's pixels do not depend on the other glyphs.
    """
    rng = np.random.default_rng(scene.seed)
    picture = _background(rng, size)
    owner = np.zeros((size, size), np.uint8)
    for number, placed in enumerate(scene.placed, start=1):
        rgba = _scaled(placed, size)
        rows, columns = rgba.shape[:2]
        top = math.ceil(placed.centre[0] * size - rows / 2)
        left = math.ceil(placed.centre[1] * size - columns / 2)
        where = (slice(top, top + rows), slice(left, left + columns))
        # Blending with the background; the mask is where the glyph is at least half of the pixel.
        alpha = rgba[..., 3:].astype(np.float32) / 255
        picture[where] += alpha * (rgba[..., :3] - picture[where])
        owner[where][rgba[..., 3] >= 128] = number
    return lit(picture, scene.light, rng), owner


def _decks(of_concept: Sequence[Sequence[Glyph]], rng: np.random.Generator) -> list[list[Glyph]]:
    """Deal each concept's glyphs to the decks with fewest cards so far, ties by chance.

    Rare concepts so reach as many decks, the units of resampling, as they have glyphs.
    """
    count = max(1, round(sum(map(len, of_concept)) / EMOJI_PER_DECK))
    decks: list[list[Glyph]] = [[] for _ in range(count)]
    for concept in rng.permutation(len(of_concept)):
        for turn in range(0, len(of_concept[concept]), count):
            # lexsort orders by its last key first: cards held, then chance.
            held = np.array([len(deck) for deck in decks])
            order = np.lexsort((rng.random(count), held))
            for deck, glyph in zip(order, of_concept[concept][turn : turn + count], strict=False):
                decks[deck].append(glyph)
    return decks


def _draw_emoji(
    rng: np.random.Generator, deck: Sequence[Glyph], shown: dict[str, int], objects: tuple[int, int]
) -> tuple[tuple[Placed, ...], Light, int]:
    """Places and light, and then the glyphs of the deck that were shown least."""
    count = min(int(rng.integers(objects[0], objects[1] + 1)), len(deck))
    sides = rng.uniform(*_SIDES, count)
    centres = place_squares(rng, sides / 2)
    light, background = draw_light(rng), int(rng.integers(2**32))
    times = np.array([shown.get(glyph.name, 0) for glyph in deck])
    chosen = [deck[i] for i in np.lexsort((rng.random(len(deck)), times))[:count]]
    for glyph in chosen:
        shown[glyph.name] = shown.get(glyph.name, 0) + 1
    placed = tuple(
        Placed(chosen[i], (float(y), float(x)), float(side), bool(rng.integers(2)))
        for i, (y, x), side in zip(rng.permutation(count), centres, sides, strict=True)
    )
    return placed, light, background


def _background(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size 3"]:
    """Two patterns over one another, in colours of any hue."""
    colours = rng.uniform(30, 225, (3, 3)).astype(np.float32)
    first, second = texture(rng, size)[..., None], texture(rng, size)[..., None]
    picture = colours[0] + first * (colours[1] - colours[0])
    return np.asarray(picture + 0.4 * second * (colours[2] - picture))


def _scaled(placed: Placed, size: int) -> UInt8[np.ndarray, "rows columns 4"]:
    """The glyph at its size in the picture, its longer side as long as the square drawn for it.

    Less two pixels, so that no rounding takes it out of its square.
    """
    pillow = require("PIL.Image", "images", "emoji scenes")
    rgba = placed.glyph.rgba
    factor = (placed.side * size - 2) / max(rgba.shape[:2])
    rows, columns = (max(1, int(side * factor)) for side in rgba.shape[:2])
    scaled = pillow.fromarray(rgba).resize((columns, rows), pillow.Resampling.LANCZOS)
    found = np.asarray(scaled)
    return found[:, ::-1] if placed.mirrored else found
