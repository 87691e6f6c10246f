"""What is drawn of one sample under one concept, and results that draw it.

The record is the `Item` of `sa_plugin.show.tokens`: a text with its tokens, or an image with its
patches, scores of the concept's own layer and unit, and what each rule marks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from sa_plugin.detection.calibration import Calibration
from sa_plugin.passes.layout import TokenTable
from sa_plugin.show.patches import data_uri, mask_outline, shrunk

SHOWN_ITEMS = 6
TOP_TOKENS = 5


def shown_item(
    calibration: Calibration,
    tokens: TokenTable,
    scores: Float[np.ndarray, "token concept"],
    sample: int,
    concept: int,
) -> dict[str, Any]:
    """One sample under one concept.

    Args:
        calibration: Thresholds.
        tokens: What the rows of the scores are.
        scores: At each concept's own layer and unit.
        sample: Place of the sample.
        concept: Place of the concept.
    """
    rows = slice(int(tokens.bounds[sample]), int(tokens.bounds[sample + 1]))
    name, one = calibration.concepts[concept], tokens.samples[sample]
    choice, own = calibration.choice(name), scores[rows, concept]
    found: dict[str, Any] = {
        "id": one.id,
        "document": one.document,
        "concept": name,
        "kind": calibration.bank.kind,
        "layer": choice.layer,
        "delta": choice.delta,
        "threshold": _finite(choice.threshold),
        "raw_threshold": _finite(calibration.cuts.midpoint[concept]),
        "positive": name in one.positive,
        "scores": own.tolist(),
        "superactivator": (own >= choice.threshold).tolist(),
        "in_concept": tokens.labels[rows, tokens.concepts.index(name)].tolist(),
    }
    if one.image is None:
        return found | {"text": one.text, "offsets": tokens.offsets[rows].tolist()}
    mask = one.image.masks.get(name)
    return found | {
        "png": data_uri(shrunk(one.image.pixels)),
        "size": list(one.image.pixels.shape[:2]),
        "boxes": tokens.offsets[rows].tolist(),
        "outline": "" if mask is None else mask_outline(mask),
    }


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
