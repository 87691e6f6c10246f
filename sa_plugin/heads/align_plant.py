"""How strong a head would have to be for a call: one planted into each head in turn.

To a head, as it is, a read and a write of rank one along the concept are added:

    W_OV' = W_OV + t v_in v_out^T     t^2 = c^2 (|y_0|^2 + t^2), y_0 the part of v_in W_OV across v_out
    W_QK' = W_QK + s v_in v_in^T      s^2 = c^2 (Q + s)(K + s), Q and K the squared lengths of query and key

as one more dimension of the head does, which rotary embeddings leave alone: along the concept the
head would write and read with cosine c if it did nothing else along it. What it does already stays.
Heads whose queries and keys lie along one another for any direction (MiniLM has them, cosine .9) are
not taken back by it.

Forms of a draw, directions w, change with it: by t (w_in . v_in)(w_out . v_out) and s (w_in . v_in)^2.
Their mean and deviation follow from moments, so every head, concept and size is tried without a
refit; calls are by the critical value of the run, the planted cell alone.

What this does not show: c is the cosine with the fitted direction, from which a concept's true one
deviates; a head that reads or writes along it in several dimensions, or at one distance only, is
another matter. No activation changes: it is the test's power, not what such a head would do. Heads
that are called as they are count as called.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sa_plugin.heads.align_null import amplifying

COSINES = np.arange(1, 91) / 100
"""That are tried."""


class Sizes(NamedTuple):
    """What a head does with a concept's own direction.

    Attributes:
        ov, qk: Its forms, `[head, concept]`.
        across: Length of what it writes across the output's direction.
        query, key: Squared lengths, with the logits' scale.
    """

    ov: Float64[np.ndarray, "head concept"]
    qk: Float64[np.ndarray, "head concept"]
    across: Float64[np.ndarray, "head concept"]
    query: Float64[np.ndarray, "head concept"]
    key: Float64[np.ndarray, "head concept"]


def planted_sizes(at: Sizes, cosine: float) -> tuple[np.ndarray, np.ndarray]:
    """Sizes t and s: what is added to the forms of a unit direction, see the module.

    Args:
        at: What is there.
        cosine: Of either side, if the head did nothing else along the direction.
    """
    square = cosine**2
    # (1 - c^2) s^2 - c^2 (Q + K) s - c^2 Q K = 0
    half = square * (at.query + at.key) / 2
    root = half + np.sqrt(half**2 + (1 - square) * square * at.query * at.key)
    return at.across * cosine / np.sqrt(1 - square), root / (1 - square)


def planted_z(
    at: Sizes,
    drawn: tuple[Float[np.ndarray, "draw head concept"], Float[np.ndarray, "draw head concept"]],
    met: tuple[Float64[np.ndarray, "draw concept"], Float64[np.ndarray, "draw concept"]],
) -> Float64[np.ndarray, "cosine head concept"]:
    """T of each cell once a head of each of `COSINES` is planted in it.

    Args:
        at: What is there.
        drawn: OV and QK forms of the draws.
        met: What t and s are multiplied by in each draw, see `meeting`.
    """
    sides = [_moments(forms, each) for forms, each in zip(drawn, met, strict=True)]
    found = []
    for cosine in COSINES:
        both = []
        for form, size, m in zip((at.ov, at.qk), planted_sizes(at, cosine), sides, strict=True):
            variance = m.variance + 2 * size * m.covariance + size**2 * m.met_variance
            with np.errstate(divide="ignore", invalid="ignore"):
                z = (form + size - m.mean - size * m.met_mean) / np.sqrt(np.maximum(variance, 0.0))
            both.append(amplifying(z, form + size))
        found.append(np.fmin(*both))
    return np.stack(found)


class _Moments(NamedTuple):
    mean: np.ndarray
    variance: np.ndarray
    covariance: np.ndarray
    met_mean: np.ndarray
    met_variance: np.ndarray


def _moments(forms: np.ndarray, met: np.ndarray) -> _Moments:
    mean, met_mean = forms.mean(0, dtype=np.float64), met.mean(0)
    off, met_off, n = forms - mean, met - met_mean, len(forms) - 1
    # A concept's meeting is the same for all of its heads.
    covariance = np.einsum("dhc,dc->hc", off, met_off) / n
    return _Moments(mean, np.square(off).sum(0) / n, covariance, met_mean, np.square(met_off).sum(0) / n)


def meeting(
    v_in: Float[Tensor, "concept d_model"],
    v_out: Float[Tensor, "concept d_model"],
    drawn_in: Float[Tensor, "draw concept d_model"],
    drawn_out: Float[Tensor, "draw concept d_model"],
) -> tuple[Float64[np.ndarray, "draw concept"], Float64[np.ndarray, "draw concept"]]:
    """How much of a planted head each draw's directions meet: on the OV side and on the QK side."""
    read, write = (
        torch.einsum("ncd,cd->nc", drawn, own).double().numpy()
        for drawn, own in ((drawn_in, v_in), (drawn_out, v_out))
    )
    return read * write, read**2


def smallest_called(z: Float64[np.ndarray, "cosine *cell"], critical: float) -> Float64[np.ndarray, "*cell"]:
    """The smallest of `COSINES` that is called; NaN where none is."""
    called = z > critical
    return np.where(called.any(0), COSINES[called.argmax(0)], np.nan)
