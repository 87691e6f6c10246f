"""Figures that the paper's sources publish, as published, with where each was read.

`published.json` holds them. They are of the paper's own models and data (arXiv 2512.05038): a cell
run on another model or other data has no published counterpart, and no difference is ever taken.
Baselines whose published numbers contradict each other carry the contradiction with them.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from sa_plugin._names import require_known

# Blocks by the models' public configurations; Llama's text stack runs 32 of 40 without an image.
BLOCKS = {
    "clip": (24,), "llama_vision": (40,), "llama_text": (32, 40), "gemma": (42,), "qwen": (36,),
}  # fmt: skip
# Concepts evaluated and samples, of the authors' metadata.
SIZES = {
    "CLEVR": (6, 1000), "COCO": (29, 5500), "OpenSurfaces": (26, 3578), "Pascal": (83, 4503),
    "Sarcasm": (1, 1446), "iSarcasm": (1, 1734), "GoEmotions": (14, 5427),
}  # fmt: skip


@cache
def _text() -> str:
    return files("sa_plugin.reproduce").joinpath("published.json").read_text(encoding="utf-8")


def published() -> dict[str, Any]:
    """Every published figure, a fresh copy.

    Example:
        >>> published()["headline"]["f1"]["COCO"]["SuperActivators"]
        [0.83, 0.01]
    """
    found: dict[str, Any] = json.loads(_text())
    return found


def published_of(key: str) -> dict[str, Any] | None:
    """Published figures of one cell of the paper, or None for the key "".

    Args:
        key: `MODEL/DATA`, such as "clip/COCO".

    Returns:
        Method to F1 with its sources, the delta curve and densities where there are any.

    Raises:
        ValueError: The paper has no such cell; the text names the nearest.

    Example:
        >>> published_of("clip/COCO")["best_layer"]["MaxTok"]
        0.794
    """
    if not key:
        return None
    known = published()
    cells = [f"{model}/{data}" for model, of in known["best_layer"]["f1"].items() for data in of]
    require_known("published cell", key, cells)
    model, data = key.split("/")
    found: dict[str, Any] = {
        "key": key, "model": known["models"][model], "data": data, "marks": known["marks"],
        "best_layer": known["best_layer"]["f1"][model][data],
        "best_layer_what": known["best_layer"]["what"],
    }  # fmt: skip
    if model in known["headline"]["models"]:
        found["headline"] = known["headline"]["f1"][data]
        found["headline_what"] = known["headline"]["what"]
        found["headline_note"] = known["headline"]["note"]
        found["unreliable"] = known["headline"]["unreliable"]
    if model in known["deltas"]["models"] and data in known["deltas"]["data"]:
        curve = known["deltas"]["data"][data]
        found["deltas"] = {"deltas": known["deltas"]["deltas"], **curve}
    if model.startswith("llama") and data in known["density"]["percent"]:
        one = known["density"]
        found["density"] = {"at": one["at"], "percent": one["percent"][data]}
    if key == "llama_vision/COCO":
        found["attribution"] = known["attribution"]["values"]
    return found


def unlike(key: str, n_blocks: int, n_concepts: int, n_samples: int) -> list[str]:
    """In what a run visibly differs from the paper's cell; none is no proof that it is that cell.

    Args:
        key: `MODEL/DATA`, such as "clip/COCO".
        n_blocks: Blocks of the model that was run.
        n_concepts: Concepts of the data.
        n_samples: Samples of all splits.

    Example:
        >>> unlike("clip/COCO", 2, 29, 50)
        ['2 blocks (the paper: 24)', '50 samples (the paper: 5500)']
    """
    model, data = key.split("/")
    concepts, samples = SIZES[data]
    found = []
    if n_blocks not in BLOCKS[model]:
        found.append(f"{n_blocks} blocks (the paper: {' or '.join(map(str, BLOCKS[model]))})")
    if n_concepts != concepts:
        found.append(f"{n_concepts} concepts (the paper: {concepts})")
    if n_samples != samples:
        found.append(f"{n_samples} samples (the paper: {samples})")
    return found
