"""How strong a head would have to be for a call: one planted into each head in turn.

Into a head a read and a write of rank one along the concept are planted, so that both cosines are c:

    W_OV' = W_OV + t v_in v_out^T     cos(v_in W_OV', v_out) = c
    W_QK' = W_QK + s v_in v_in^T      the form over the lengths of the query and the key of v_in = c

as one more dimension of the head does, which rotary embeddings leave alone. With y = v_in W_OV and
y_0 the part of it across v_out, t = |y_0| c / sqrt(1 - c^2) - y . v_out. The dimension adds s to the
squared lengths Q and K of query and key too, so s is the larger root of
(f + s)^2 = c^2 (Q + s)(K + s), f the form as it is; where the head has more than c already, s takes
the difference away and lengths stay.

Forms of a draw, directions w, change with it: by t (w_in . v_in)(w_out . v_out) and s (w_in . v_in)^2.
Their mean and deviation follow from moments, so every head, concept and size is tried without a
refit; calls are by the critical value of the run, the planted cell alone.

What this does not show: c is the cosine with the fitted direction, from which a concept's true one
deviates; a head that reads or writes along it in several dimensions, or at one distance only, is
another matter. No activation changes: it is the test's power, not what such a head would do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

COSINES = np.arange(1, 61) / 100
"""That are tried."""


class Sizes(NamedTuple):
    """What a head does with a concept's own direction.

    Attributes:
        ov, qk: Its forms, `[head, concept]`.
        across: Length of what it writes across the output's direction.
        query, key: Squared lengths.
    """

    ov: Float64[np.ndarray, "head concept"]
    qk: Float64[np.ndarray, "head concept"]
    across: Float64[np.ndarray, "head concept"]
    query: Float64[np.ndarray, "head concept"]
    key: Float64[np.ndarray, "head concept"]


def planted_sizes(at: Sizes, cosine: float) -> tuple[np.ndarray, np.ndarray]:
    """T and s: what is added to the forms of a unit direction, see the module.

    Args:
        at: What is there.
        cosine: Of both sides afterwards.
    """
    t = at.across * cosine / np.sqrt(1 - cosine**2) - at.ov
    square = cosine**2
    # (1 - c^2) s^2 + 2 half s + rest = 0; rest is negative while the head has less than c.
    half = at.qk - square * (at.query + at.key) / 2
    rest = at.qk**2 - square * at.query * at.key
    missing = cosine * np.sqrt(at.query * at.key) - at.qk
    root = (np.sqrt(np.maximum(half**2 - (1 - square) * rest, 0.0)) - half) / (1 - square)
    return t, np.where(missing > 0, root, missing)


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
                both.append((form + size - m.mean - size * m.met_mean) / np.sqrt(np.maximum(variance, 0.0)))
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
