"""The canaries themselves, and their scores on a host: four texts, or two pictures that are computed here.

They come with the package, and nothing of the user's is among them, since artefacts are passed on.
"""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
from torch import Tensor

from sa_plugin._check import users_line
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.concepts.canary import TOLERANCE, VERSION, Canary, Facts, drift_between, likely_cause
from sa_plugin.data.images import Image
from sa_plugin.data.sample import Sample
from sa_plugin.host import reducers
from sa_plugin.host.images import processor_of
from sa_plugin.host.protocol import Batch, Host, Site
from sa_plugin.passes.layout import lay_out
from sa_plugin.passes.run import Job, Reducer, run_jobs

TEXTS = (
    "The quick brown fox jumps over the lazy dog near the old river bank.",
    "In 1969 two people walked on the Moon; 600 million watched: 12.5 % of us!",
    "Zürich, a naïve café; 東京の猫, Привет 🙂.",
    "def f(x): return x ** 2  # tabs and   spaces",
)
SIDE = 96


class CanaryWarning(UserWarning):
    """An artefact carries no canaries, or they could not be compared."""


class DriftError(ValueError):
    """A model gives the canaries other scores than the artefact holds."""


def make_canary(bank: ConceptBank, host: Host) -> Canary:
    """Score the canaries: one forward pass each, up to the deepest layer.

    Raises:
        ValueError: As `sa_plugin.scores.score`.
    """
    samples = canary_samples(processor_of(host) is not None)
    layout = lay_out(host, samples, ())
    plain = ((bank.layers, bank.hook_point, {"token": bank.token.plain}),)

    def reducer(batch: Batch) -> Reducer:
        return partial(reducers.token_scores, valid=batch.valid, banks=plain)

    job = Job({Site(at, bank.hook_point) for at in bank.layers}, reducer)
    # Every token, sinks included: which are sinks is a question of norms, and may change with them.
    (kept,) = run_jobs(host, layout, [job], np.ones(layout.n_rows, dtype=bool), description="canaries")
    counts = np.diff(layout.bounds)
    sample = np.repeat(np.arange(len(samples)), counts)
    offsets = np.asarray(layout.offsets, dtype=np.float64)
    return Canary(np.array(kept.rows[0], dtype=np.float32), sample, offsets, facts_of(host))


def require_canary(bank: ConceptBank, host: Host, *, allow_drift: bool) -> str:
    """Score the canaries again, and refuse a host on which their scores are others.

    Args:
        bank: With the canaries that it was saved with.
        host: The model.
        allow_drift: Take it all the same.

    Returns:
        What moved, in words; "" where nothing did.

    Raises:
        DriftError: Scores moved beyond the rounding of the number format.

    Warns:
        CanaryWarning: The artefact has no canaries of this version, or they drifted and that is allowed.
    """
    then = bank.canary
    if then is None or then.version != VERSION:
        which = "no canaries" if then is None else f"canaries of version {then.version}, not {VERSION}"
        warnings.warn(
            f"the artefact has {which}: whether this model scores as the one that it was saved with is not "
            "known. Save it again with a host.",
            CanaryWarning,
            stacklevel=users_line(),
        )
        return ""
    now = make_canary(bank, host)
    drift, limit = drift_between(then, now), TOLERANCE.get(then.facts.dtype, TOLERANCE["float32"])
    if drift <= limit:
        return ""
    cause = likely_cause(then, now)
    moved = "stand at other tokens" if np.isinf(drift) else f"moved by {drift:.2g} of their spread"
    said = f"scores of the canaries {moved} ({limit:g} is the rounding of {then.facts.dtype}): {cause}"
    if not allow_drift:
        raise DriftError(
            f"{said}. Thresholds do not carry over: attach the model as it was, calibrate again, or give "
            "allow_drift=True, which is recorded in every result."
        )
    warnings.warn(f"{said}.", CanaryWarning, stacklevel=users_line())
    return said


def canary_or_none(bank: ConceptBank, host: Host | None) -> Canary | None:
    """The canaries' scores on a host; those that the bank was loaded with where there is none.

    Warns:
        CanaryWarning: The host could not score them.
    """
    if host is None:
        return bank.canary
    try:
        return make_canary(bank, host)
    except Exception as error:
        # The artefact itself can be saved, and must not be lost for its canaries.
        warnings.warn(
            f"the artefact is saved without canaries, so that nothing will notice a model that scores "
            f"otherwise: scoring them failed ({type(error).__name__}: {error}).",
            CanaryWarning,
            stacklevel=users_line(),
        )
        return None


def facts_of(host: Host) -> Facts:
    """What is known of a host."""
    info = host.info
    known = (info.model, info.dtype, info.tokenizer, info.bos, info.processing, info.fingerprint)
    return Facts(*known, _is_quantised(host))


def _is_quantised(host: Host) -> bool:
    model = getattr(host, "model", None)
    found = getattr(model, "parameters", None)
    if getattr(getattr(model, "config", None), "quantization_config", None) is not None:
        return True
    # Weights of quantised layers are integers, or live in buffers of their own classes.
    weights = found() if callable(found) else ()
    return any(isinstance(one, Tensor) and not one.is_floating_point() for one in weights)


def canary_samples(images: bool) -> list[Sample]:
    """The inputs: texts, or pictures."""
    if not images:
        return [Sample(f"canary {k}", text, f"canary {k}") for k, text in enumerate(TEXTS)]
    return [
        Sample(f"canary {k}", "", f"canary {k}", image=Image(one)) for k, one in enumerate(canary_pictures())
    ]


def canary_pictures() -> tuple[np.ndarray, np.ndarray]:
    """A disc on a gradient, and stripes beside a chequerboard; whole numbers, so the same everywhere."""
    y, x = np.mgrid[:SIDE, :SIDE]
    ramp = np.stack([2 * x, 2 * y, 255 - x - y], axis=-1)
    disc = (x - 60) ** 2 + (y - 36) ** 2 < 24**2
    ramp[disc] = (230, 40, 30)
    board = 40 + 180 * ((x // 12 + y // 12) % 2)
    stripes = np.where(x < SIDE // 2, board, 255 * (y // 6 % 2))
    other = np.stack([stripes, board, 255 - stripes], axis=-1)
    return ramp.astype(np.uint8), other.astype(np.uint8)
