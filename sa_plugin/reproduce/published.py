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
