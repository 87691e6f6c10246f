"""Attention logits regressed on the product of the two tokens' activations, in sums.

For head h, query i and the keys j it may see, `log p_ij = logit_ij - log sum_j exp(logit_ij)`, so
with one intercept a query log-attention is the logit. The model of one head and one concept is

    log p_ij = c_i + slope * a_i a_j + b_1 a_j + b_2 |i - j| + b_3 log(1 + |i - j|) + b_4 [i = j]

fitted by least squares over all queries of all samples; a_i itself is part of c_i. The partial R^2
of the product is the share of what the others leave that it explains. Everything is a function of
sums of products of variables centred over each query's keys, which samples and batches add up.
Adding a constant to all activations changes neither the slope nor the partial R^2.

What it does not show: attention to what goes along with the concept looks the same as attention to
the concept. A logit that underflowed to probability 0 is taken at the smallest positive number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

SMALLEST = 1e-38
TERMS = ("a_i a_j", "a_j", "distance", "log distance", "self")


class Moments(NamedTuple):
    """Sums of one batch, by sample and column of activations.

    Attributes:
        gram: Products of the five terms.
        cross: The terms with log-attention.
        square: Log-attention squared.
    """

    gram: Float[Tensor, "batch column term term"]
    cross: Float[Tensor, "batch head column term"]
    square: Float[Tensor, "batch head"]


def place_terms(
    distance: Float[Tensor, "batch query key"],
) -> Float[Tensor, "place batch query key"]:
    """Distance, its logarithm, and whether query and key are one token."""
    same = torch.eye(distance.shape[-1], device=distance.device).expand_as(distance)
    return torch.stack([distance, distance.log1p(), same])


def moments(
    pattern: Float[Tensor, "batch head query key"],
    a: Float[Tensor, "batch token column"],
    allowed: Bool[Tensor, "batch query key"],
    places: Float[Tensor, "place batch query key"],
) -> Moments:
    """Sums of one batch and block.

    Args:
        pattern: Attention.
        a: Activations along each column's direction, at the block's input.
        allowed: Pairs of kept tokens of which the query may see the key.
        places: From `place_terms`.
    """
    m = allowed.float()
    count = m.sum(-1, keepdim=True).clamp_min(1.0)
    logs = _centred(pattern.clamp_min(SMALLEST).log(), m[:, None], count[:, None])
    place = _centred(places, m, count)
    mean = m @ a / count
    spread = m @ a.square() - count * mean.square()
    along = torch.einsum("pbqk,bku->pbqu", place, a)
    seen = torch.einsum("bhqk,bku->bhqu", logs, a)
    size = 2 + len(places)
    gram = a.new_zeros(len(a), a.shape[-1], size, size)
    gram[..., 0, 0] = (a.square() * spread).sum(1)
    gram[..., 0, 1] = (a * spread).sum(1)
    gram[..., 1, 1] = spread.sum(1)
    gram[..., 0, 2:] = (a * along).sum(2).permute(1, 2, 0)
    gram[..., 1, 2:] = along.sum(2).permute(1, 2, 0)
    gram[..., 2:, 2:] = torch.einsum("pbqk,rbqk->bpr", place, place)[:, None]
    lower = torch.arange(size)[:, None] > torch.arange(size)
    gram = torch.where(lower.to(gram.device), gram.mT, gram)
    with_places = torch.einsum("bhqk,pbqk->bhp", logs, place)
    cross = torch.cat(
        [
            (a[:, None] * seen).sum(2)[..., None],
            seen.sum(2)[..., None],
            with_places[:, :, None].expand(-1, -1, a.shape[-1], -1),
        ],
        dim=-1,
    )
    return Moments(gram, cross, logs.square().sum((-1, -2)))


def _centred(values: Tensor, m: Tensor, count: Tensor) -> Tensor:
    """Less their mean over each query's keys, 0 elsewhere."""
    return (values - (values * m).sum(-1, keepdim=True) / count) * m


class Slope(NamedTuple):
    """What the product of activations does to the logit.

    Attributes:
        slope: Logit for each unit of the product.
        correlation: Partial correlation; its square is the partial R^2.
    """

    slope: Float64[np.ndarray, "*batch head column"]
    correlation: Float64[np.ndarray, "*batch head column"]


def slopes(
    gram: Float[np.ndarray, "*batch column term term"],
    cross: Float[np.ndarray, "*batch head column term"],
    square: Float[np.ndarray, "*batch head"],
) -> Slope:
    """Slope and partial correlation of the first term given the others; NaN where it is constant.

    Args:
        gram: Summed products of the terms.
        cross: Of the terms with log-attention.
        square: Of log-attention with itself.
    """
    gram, cross = gram.astype(np.float64), cross.astype(np.float64)
    size = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    size = np.where(size > 0, size, 1.0)
    scaled = gram / size[..., :, None] / size[..., None, :]
    # A term that is constant (no token sees itself) must not make the system singular.
    scaled = scaled + 1e-9 * np.eye(scaled.shape[-1])
    y = cross / size[..., None, :, :]
    others = np.linalg.inv(scaled[..., 1:, 1:])
    weights = np.einsum("...uk,...ukl->...ul", scaled[..., 0, 1:], others)
    left = scaled[..., 0, 0] - np.einsum("...uk,...uk->...u", weights, scaled[..., 0, 1:])
    own = y[..., 0] - np.einsum("...uk,...huk->...hu", weights, y[..., 1:])
    explained = np.einsum("...huk,...ukl,...hul->...hu", y[..., 1:], others, y[..., 1:])
    rest = square.astype(np.float64)[..., None] - explained
    left = np.where(left > 1e-7, left, np.nan)[..., None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = own / np.sqrt(left * np.where(rest > 0, rest, np.nan))
    return Slope(own / left / size[..., None, :, 0], np.clip(correlation, -1, 1))
