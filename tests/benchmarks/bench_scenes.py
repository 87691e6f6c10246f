"""Scenes a second of the two image sources, masks and data included, against their own renderer.

The opponent is the least that could be done: the same scenes rendered in a plain loop, without
masks, data and split. The ratio says what those add. No aim is set; the note states the throughput.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from sa_plugin.data import ConceptData
from sa_plugin.loaders import (
    draw_shapes,
    emoji_scenes,
    plan_emoji,
    read_glyphs,
    render_emoji,
    render_shapes,
    shapes,
)

SCENES, ROUNDS = 200, 5
Pictures = list[np.ndarray]


def bare_shapes(size: int) -> Pictures:
    """The pictures of `shapes` alone."""
    scenes = (draw_shapes(np.random.default_rng([0, k])) for k in range(SCENES))
    return [render_shapes(scene, size)[0] for scene in scenes]


def bare_emoji(size: int) -> Pictures:
    """The pictures of `emoji_scenes` alone."""
    return [render_emoji(scene, size)[0] for scene in plan_emoji(read_glyphs(), SCENES)]


def run() -> list[dict[str, object]]:
    """Both sources at 64 and 224 pixels."""
    sources = [("shapes", shapes, bare_shapes), ("emoji", emoji_scenes, bare_emoji)]
    return [
        row(f"{name} at {size} px", partial(whole, SCENES, size=size), partial(bare, size))
        for name, whole, bare in sources
        for size in (64, 224)
    ]


def row(name: str, whole: Callable[[], ConceptData], bare: Callable[[], Pictures]) -> dict[str, object]:
    """One line of the table."""
    times: dict[str, list[float]] = {"whole": [], "bare": []}
    for _ in range(ROUNDS):
        start = time.perf_counter()
        data = whole()
        times["whole"].append(time.perf_counter() - start)
        start = time.perf_counter()
        pictures = bare()
        times["bare"].append(time.perf_counter() - start)
    images = [sample.image.pixels for sample in data.samples if sample.image is not None]
    ours, least = min(times["whole"]), min(times["bare"])
    return {
        "name": f"scenes: {name}",
        "ours_s": ours,
        "opponent_s": least,
        "ratio": least / ours,
        "aim": "none",
        "equal": all(np.array_equal(a, b) for a, b in zip(images, pictures, strict=True)),
        "note": f"{SCENES / ours:,.0f} scenes a second with masks, labels and split; "
        f"{SCENES / least:,.0f} for pictures alone, one process",
    }
