"""Rotary embeddings in a bilinear form of one direction with itself, averaged over offsets.

With q and k the maps of a direction, z_j = q_j + i q_{j + width/2} and w_j the same of k, a query
at position m and a key at position n have

    q^T R_{m-n} k = sum_j Re(z_j conj(w_j) exp(i theta_j (m - n))) + the dimensions not turned

so the average over offsets needs only the mean of cos(theta_j offset) and sin(theta_j offset):
averaging costs nothing. The average weights an offset by how often the data have it, not by how
much attention it gets, and over long texts high frequencies average out: a head that looks for the
concept at one distance only has a small average. The form at single offsets stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.block import Rotary
from sa_plugin.tokens import TokenTable


class Turn(NamedTuple):
    """Mean cosine and sine of each pair of dimensions; of the first `width` dimensions."""

    cos: Float[Tensor, " half_width"]
    sin: Float[Tensor, " half_width"]
    width: int


def offsets_seen(tokens: TokenTable, *, causal: bool) -> dict[int, int]:
    """How often each offset, query minus key, occurs among the kept tokens of a sample.

    Args:
        tokens: The rows.
        causal: Whether only keys at or before the query count.
    """
    found: dict[int, int] = {}
    for start, end in zip(tokens.bounds[:-1], tokens.bounds[1:], strict=True):
        position = tokens.position[start:end]
        # Two tokens are as far apart as their places in a 0/1 row are: a correlation counts all.
        present = np.zeros(int(position[-1] - position[0]) + 1)
        present[position - position[0]] = 1.0
        length = 2 ** int(np.ceil(np.log2(2 * len(present))))
        spectrum = np.fft.rfft(present, length)
        counts = np.rint(np.fft.irfft(np.abs(spectrum) ** 2, length)[: len(present)]).astype(int)
        for offset in np.flatnonzero(counts).tolist():
            found[offset] = found.get(offset, 0) + int(counts[offset])
            if offset and not causal:
                found[-offset] = found.get(-offset, 0) + int(counts[offset])
    return found


def mean_turn(rotary: Rotary | None, offsets: Mapping[int, int]) -> Turn | None:
    """The rotation of a query against a key, averaged over offsets.

    Args:
        rotary: Or None, where nothing turns.
        offsets: How often each occurs.
    """
    if rotary is None:
        return None
    offset = torch.tensor(list(offsets), dtype=torch.float64)
    weight = torch.tensor(list(offsets.values()), dtype=torch.float64)
    angle = offset[:, None] * rotary.inverse_frequency.double()
    share = (weight / weight.sum())[:, None] * rotary.scaling**2
    cos, sin = ((share * part).sum(0).float() for part in (angle.cos(), angle.sin()))
    return Turn(cos, sin, rotary.width)


def turned_product(
    query: Float[Tensor, "*row d_head"], key: Float[Tensor, "*row d_head"], turn: Turn | None
) -> Float[Tensor, "*row"]:
    """The averaged `q^T R k`, row by row."""
    if turn is None:
        return (query * key).sum(-1)
    half = turn.width // 2
    q1, q2 = query[..., :half], query[..., half : turn.width]
    k1, k2 = key[..., :half], key[..., half : turn.width]
    pairs = (q1 * k1 + q2 * k2) * turn.cos + (q1 * k2 - q2 * k1) * turn.sin
    rest = (query[..., turn.width :] * key[..., turn.width :]).sum(-1)
    total: Tensor = pairs.sum(-1) + rest
    return total


def profile_offsets(offsets: Mapping[int, int]) -> Sequence[int]:
    """Offsets to show: 0, powers of two and the longest, with their negatives where seen."""
    longest = max(abs(offset) for offset in offsets)
    sizes = [0, *(2**k for k in range(longest.bit_length())), longest]
    wanted = sorted({size for size in sizes} | {-size for size in sizes})
    return [offset for offset in wanted if offset in offsets]
