"""Binned densities for plots, in deviations of the out-of-concept scores from their mean.

Scores of two layers share no unit (a vector is fitted anew at each), deviations of `out` do. The
joint bins of the overlap differ between layers and concepts; small multiples need one axis, hence
the second set, with equal bins of a quarter deviation.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64

from sa_plugin.tracing.measures import BINS, bin_of, joint_edges
from sa_plugin.tracing.result import Densities

COMMON_EDGES: Float64[np.ndarray, " edge"] = np.arange(-40, 81) / 4.0


class DensityGrid:
    """Densities filled in cell by cell."""

    def __init__(self, layers: int, concepts: int) -> None:
        self._edges = np.full((layers, concepts, BINS + 1), np.nan)
        self._joint = np.full((2, layers, concepts, BINS), np.nan)
        self._common = np.full((2, layers, concepts, len(COMMON_EDGES) - 1), np.nan)

    def fill(
        self,
        layer: int,
        concept: int,
        inside: Float[np.ndarray, " in_row"],
        outside: Float[np.ndarray, " out_row"],
    ) -> None:
        """Bin one concept at one layer; without spread in `out` it stays NaN."""
        if not len(inside) or not len(outside) or outside.min() == outside.max():
            return
        centre, sd = outside.mean(dtype=np.float64), outside.std(dtype=np.float64)
        groups = [(x.astype(np.float64) - centre) / sd for x in (inside, outside)]
        edges = joint_edges(*groups)
        self._edges[layer, concept] = edges
        for k, group in enumerate(groups):
            self._joint[k, layer, concept] = density(group, edges)
            self._common[k, layer, concept] = density(group, COMMON_EDGES)

    def joint(self) -> Densities:
        """With the joint edges of each layer and concept."""
        return Densities(self._edges, *self._joint)

    def common(self) -> Densities:
        """With one axis, cut to the bins that hold anything."""
        used = np.flatnonzero((np.nan_to_num(self._common) > 0).any(axis=(0, 1, 2)))
        first, last = (used[0], used[-1]) if len(used) else (0, len(COMMON_EDGES) - 2)
        return Densities(COMMON_EDGES[first : last + 2], *self._common[..., first : last + 1])


def density(
    values: Float[np.ndarray, " row"], edges: Float64[np.ndarray, " edge"]
) -> Float64[np.ndarray, " bin"]:
    """Share of the values in each bin over its width; values beyond the edges are in none."""
    within = values[(values >= edges[0]) & (values <= edges[-1])]
    counts = np.bincount(bin_of(within, edges), minlength=len(edges) - 1)
    shares: np.ndarray = counts / (len(values) * np.diff(edges))
    return shares
