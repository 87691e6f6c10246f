"""Canaries: scores of a few inputs of ours that an artefact carries, to be scored again where it is loaded.

A threshold means something on the model that it was calibrated on, run as it was run. What changes
scores and stands in no configuration (a kernel, a quantised copy, edited weights, another attention,
another number format) shows here: the artefact holds the scores of the canaries (`canary_scores`) under
every vector at every layer.

    r[t] = |s'[t] - s[t]| / (mad + |s[t] - median|),   drift = max over layers and vectors of median_t r

with median and mad (the median distance from it) over the canaries' tokens: the usual change of a token's
score in units of the scores' own spread. The median over tokens makes nothing of one token. On
SmolLM2-135M (blocks 4 to 28, prototypes and lda) two hosts differ by 0, float16 from float32 by .0024,
bfloat16 by .018, weights rounded to eight bits by .035.

What the absence of drift does not show: that scores agree on inputs that are nothing like the canaries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

VERSION = 1
"""Of the inputs, raised when they change: canaries of another version are not compared."""
# Largest drift that is rounding, by the format that the artefact was saved in.
TOLERANCE = {"float64": 3e-4, "float32": 3e-4, "float16": 0.01, "bfloat16": 0.06}


class Facts(NamedTuple):
    """What is known of the model that scored the canaries."""

    model: str
    dtype: str
    tokenizer: str
    bos: bool
    processing: str
    fingerprint: str
    quantised: bool


@dataclass(frozen=True, eq=False)
class Canary:
    """The canaries' scores on one host.

    Attributes:
        scores: Of every token that is neither padding nor special.
        sample: Which canary each token is of.
        offsets: Where it stands: characters, or the edges of a patch.
        facts: Of the host.
        version: Of the inputs.
    """

    scores: Float[np.ndarray, "row layer unit"]
    sample: Int[np.ndarray, " row"]
    offsets: Float[np.ndarray, "row edge"]
    facts: Facts
    version: int = VERSION


def canary_parts(canary: Canary | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Canaries as tensors and a record."""
    if canary is None:
        return {}, {}
    arrays = {name: getattr(canary, name) for name in ("scores", "sample", "offsets")}
    tensors = {f"canary.{name}": torch.from_numpy(array) for name, array in arrays.items()}
    return tensors, {"canary": {"version": canary.version, **canary.facts._asdict()}}


def canary_of(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Canary | None:
    """The canaries of `canary_parts`, once their record and tensors were checked."""
    if "canary" not in record:
        return None
    facts = dict(record["canary"])
    version = facts.pop("version")
    scores, sample, offsets = (tensors[f"canary.{name}"].numpy() for name in ("scores", "sample", "offsets"))
    return Canary(scores, sample, offsets, Facts(**facts), version)


def drift_between(then: Canary, now: Canary) -> float:
    """How far scores moved, in units of their own spread; infinite where there are other tokens."""
    same = then.scores.shape == now.scores.shape and np.array_equal(then.sample, now.sample)
    if not same or not np.allclose(then.offsets, now.offsets, atol=1e-6):
        return float("inf")
    before, after = then.scores.astype(np.float64), now.scores.astype(np.float64)
    middle = np.median(before, axis=0)
    away = np.abs(before - middle)
    # Latents that are active on no canary have no spread: they are compared as they are.
    size = np.median(away, axis=0) + away
    relative = np.abs(after - before) / np.where(size > 0, size, 1.0)
    return float(np.median(relative, axis=0).max())


def likely_cause(then: Canary, now: Canary) -> str:
    """Why canaries are scored otherwise: the first difference that would explain it."""
    a, b = then.facts, now.facts
    if a.bos != b.bos:
        return (
            f"the tokenizer {'puts' if b.bos else 'does not put'} a BOS first now (bos=, add_special_tokens=)"
        )
    if a.tokenizer != b.tokenizer or not _same_tokens(then, now):
        return "another tokenizer, or another way of cutting inputs"
    if a.processing != b.processing:
        return f"another weight processing ({a.processing!r}, now {b.processing!r})"
    if a.quantised != b.quantised:
        return f"the weights are {'quantised' if b.quantised else 'not quantised'} now"
    if a.dtype != b.dtype:
        return f"another number format ({a.dtype}, now {b.dtype})"
    if a.fingerprint != b.fingerprint:
        was, is_now = (f"{one.model}, weights {one.fingerprint[:12]}" for one in (a, b))
        return f"another checkpoint ({was}; now {is_now})"
    return (
        "nothing that the model says of itself differs, so weights were edited or quantised in place, hooks "
        "or an adapter (LoRA) change activations, or the library computes otherwise (attention, TF32)"
    )


def _same_tokens(then: Canary, now: Canary) -> bool:
    return then.offsets.shape == now.offsets.shape and bool(np.allclose(then.offsets, now.offsets, atol=1e-6))
