"""Scenes of emoji whose concept covers a planned part of the picture: the tail law's data for vision models.

The pictures, the decks and the split of glyphs are those of `emoji`; here a plan says how many glyphs of one
concept a scene shows and how large they are, so that the labelled part runs from a hundredth of the picture
to more than half of it:

    side      of the square about each glyph of the concept, as a share of the picture's side
    count     glyphs of the concept
    sisters   glyphs of the other groups of `emoji` beside them, of side `_SISTER`

A concept's negatives are scenes of another concept, and those of sisters alone. Glyphs of a concept stand
apart ("spread") or side by side ("clustered"). A scene is of one deck, its `document`; a quarter of train's
decks are the guard, which no vector is fitted on.

What this does not show: what `emoji` does not. A deck has few glyphs of a concept: several in one scene are
often the same glyph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from sa_plugin._check import require_known
from sa_plugin._face import face
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import ALL_SPLITS
from sa_plugin.data.splits import Splits
from sa_plugin.loaders.emoji import EmojiScene, Glyph, Placed, deal_decks, read_glyphs, render_emoji
from sa_plugin.loaders.scenes import draw_light, numbered, place_squares, scene_data
from sa_plugin.loaders.tail_spans import ARRANGEMENTS

SCENE_CONCEPTS = ("land mammal", "fruit", "prepared food", "ground vehicle", "clothing")
_SISTER = 0.22
_MOST = 0.86
_TRIES = 400


@face
@dataclass(frozen=True)
class ScenePlan:
    """What a scene shows of its concept.

    Attributes:
        side: Of each glyph's square, a share of the picture's side.
        count: Glyphs of the concept.
        arrangement: "clustered" or "spread".
        sisters: Glyphs of other groups.
    """

    side: float = 0.25
    count: int = 1
    arrangement: Literal["clustered", "spread"] = "spread"
    sisters: int = 1

    def __post_init__(self) -> None:
        require_known("arrangement", self.arrangement, ARRANGEMENTS)
        area = self.count * self.side**2 + self.sisters * _SISTER**2
        if not 0.05 <= self.side <= 1 or self.count < 1 or self.sisters < 0 or area > _MOST:
            raise ValueError(
                f"{self.count} glyphs of side {self.side:g} and {self.sisters} sisters of {_SISTER:g} cover "
                f"{area:.0%} of a picture: give a side of .05 to 1, a count of 1 or more, and "
                f"{_MOST:.0%} at most."
            )


def load_tail_scenes(
    *,
    plan: ScenePlan = ScenePlan(),
    contexts: Mapping[str, int] | None = None,
    root: str | Path | None = None,
    size: int = 224,
    seed: int = 0,
) -> ConceptData:
    """Scenes of one plan as data.

    Args:
        plan: What a scene shows.
        contexts: Number of scenes of each split; by default 200 of train, 100 of guard and of cal, 200 of
            test.
        root: The folder of the npm package emoji-datasource-google; by default `emoji_folder()`.
        size: Side of the pictures, in pixels.
        seed: Of the decks and every scene.

    Raises:
        FileNotFoundError: The pictures are not there; the text says how to get them.
        ImportError: Pillow is not installed.
        ValueError: Unknown split, or a plan that does not fit into a picture.
    """
    counts = {"train": 200, "guard": 100, "cal": 100, "test": 200} if contexts is None else contexts
    for name in counts:
        require_known("split of contexts", name, ALL_SPLITS)
    dealt = deal_decks(read_glyphs(root), seed=seed)
    own = [deck for deck in dealt["train"] if any(g.concept in SCENE_CONCEPTS for g in deck)]
    guard = len(own) // 4
    parts = {**dealt, "train": own[guard:], "guard": own[:guard]}
    scenes, split_of = [], []
    for split, n in counts.items():
        for k in range(n):
            rng = np.random.default_rng([seed, ALL_SPLITS.index(split), k])
            number = k % len(parts[split])
            scenes.append(_scene(parts[split][number], f"{split}-{number:02d}", split, plan, rng))
            split_of.append(split)
    return scene_data(
        [render_emoji(scene, size) for scene in scenes],
        [
            [[p.glyph.concept] if p.glyph.concept in SCENE_CONCEPTS else [] for p in scene.placed]
            for scene in scenes
        ],
        0.0,
        concepts=SCENE_CONCEPTS,
        documents=[scene.deck for scene in scenes],
        splits=Splits(of=split_of, seed=seed),
        ids=numbered(len(scenes)),
        name=f"tail_scenes/{plan.count} x {plan.side:g}",
    )


def _scene(
    deck: Sequence[Glyph], name: str, split: str, plan: ScenePlan, rng: np.random.Generator
) -> EmojiScene:
    here = sorted({g.concept for g in deck} & set(SCENE_CONCEPTS))
    cards = [*here, None]
    concept = cards[int(rng.integers(len(cards)))]
    shown = [g for g in deck if g.concept == concept]
    others = [g for g in deck if g.concept not in SCENE_CONCEPTS]
    mine = [shown[int(rng.integers(len(shown)))] for _ in range(plan.count)] if shown else []
    beside = [others[int(rng.integers(len(others)))] for _ in range(plan.sisters)] if others else []
    centres = _centres(len(mine), len(beside), plan, rng)
    light, background = draw_light(rng), int(rng.integers(2**32))
    sides = [plan.side] * len(mine) + [_SISTER] * len(beside)
    placed = tuple(
        Placed(glyph, (float(y), float(x)), side, bool(rng.integers(2)))
        for glyph, (y, x), side in zip([*mine, *beside], centres, sides, strict=True)
    )
    return EmojiScene(split, name, placed, light, background)


def _centres(
    mine: int, beside: int, plan: ScenePlan, rng: np.random.Generator
) -> Float[np.ndarray, "glyph 2"]:
    """Places of the concept's glyphs, then of the others; none overlap.

    Side by side glyphs are one larger square, in which they stand in rows.
    """
    others = [_SISTER / 2] * beside
    if plan.arrangement == "spread" or mine < 2:
        half = np.array([plan.side / 2] * mine + others)
        return place_squares(rng, half) if len(half) else np.zeros((0, 2))
    across = int(np.ceil(np.sqrt(mine)))
    found = place_squares(rng, np.array([across * plan.side / 2, *others]))
    grid = np.array([divmod(k, across) for k in range(mine)], dtype=np.float64)
    corner = found[0] - across * plan.side / 2
    return np.concatenate([corner + (grid + 0.5) * plan.side, found[1:]])
