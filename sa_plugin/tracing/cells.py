"""From a score table to what is measured: one cell for each concept at one layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from sa_plugin.scores import ScoreTable
from sa_plugin.statistics.bootstrap import Resamples
from sa_plugin.tail.quantile import quantiles, tail_thresholds
from sa_plugin.tracing.measures import TAIL_LEVEL, Cell, Group

Out = Literal["negative", "all"]


@dataclass(frozen=True, eq=False)
class Columns:
    """A score table reduced to one column a concept.

    Attributes:
        table: The scores.
        column: Column of each concept at each layer.
        out: Which tokens are out of concept.
    """

    table: ScoreTable
    column: Int[np.ndarray, "layer concept"]
    out: Out

    def scores(self, layer: int) -> Float[np.ndarray, "concept token"]:
        """Scores at one layer."""
        return np.ascontiguousarray(self.table.scores[:, layer, self.column[layer]].T)

    @cached_property
    def inside(self) -> Bool[np.ndarray, "concept token"]:
        """Labelled tokens."""
        return np.ascontiguousarray(self.table.tokens.labels.T)

    @cached_property
    def negatives(self) -> Bool[np.ndarray, "concept token"]:
        """Tokens of negative samples."""
        tokens = self.table.tokens
        return np.ascontiguousarray(~tokens.sample_labels[tokens.sample_of].T)

    @property
    def outside(self) -> Bool[np.ndarray, "concept token"]:
        """Out-of-concept tokens."""
        return self.negatives if self.out == "negative" else ~self.inside

    def maxima(
        self, scores: Float[np.ndarray, "concept token"]
    ) -> Float[np.ndarray, "concept sample"]:
        """Highest score of each sample; -inf for one without kept tokens."""
        bounds = self.table.tokens.bounds
        top = np.full((len(scores), len(bounds) - 1), -np.inf, dtype=np.float32)
        filled = np.flatnonzero(np.diff(bounds))
        if len(filled):
            top[:, filled] = np.maximum.reduceat(scores, bounds[filled], axis=1)
        return top


@dataclass(frozen=True, eq=False)
class Cuts:
    """Scores fixed before measuring, at one layer, by concept."""

    threshold: Float64[np.ndarray, " concept"]
    background: Float64[np.ndarray, " concept"]
    background_of_maxima: Float64[np.ndarray, " concept"]


def cuts(columns: Columns, layer: int, delta: float) -> Cuts:
    """Thresholds at delta and background quantiles of a split, by concept.

    Concepts without in-concept tokens (of SAE latents: without active ones) have threshold +inf,
    those without out-of-concept tokens background +inf.
    """
    scores, negative = columns.scores(layer), ~columns.table.tokens.sample_labels.T
    inside = columns.inside
    if columns.table.bank.token.scoring == "latent":
        # Zero is no activation of a latent: a threshold of zero would be reached everywhere.
        inside = inside & (scores > 0)
    threshold = tail_thresholds(scores.T, inside.T, [delta], names=columns.table.tokens.concepts)[0]
    tokens = [_high(s[rows]) for s, rows in zip(scores, columns.outside, strict=True)]
    tops = columns.maxima(scores)
    maxima = [_high(t[n & np.isfinite(t)]) for t, n in zip(tops, negative, strict=True)]
    return Cuts(threshold, np.array(tokens), np.array(maxima))


def cells(
    columns: Columns,
    layer: int,
    cut: Cuts,
    resamples: Resamples,
    frozen_sd: Float[np.ndarray, "layer concept"] | None = None,
) -> Iterator[Cell]:
    """One cell for each concept at a layer.

    Args:
        columns: Scores of the split that is measured.
        layer: Place of the layer.
        cut: Fixed scores.
        resamples: Draws over the samples, the data first.
        frozen_sd: Deviations to divide tail gaps by.
    """
    tokens = columns.table.tokens
    over_tokens = resamples.of(tokens.sample_of)
    scores = columns.scores(layer)
    tops = columns.maxima(scores)
    for k, (values, top) in enumerate(zip(scores, tops, strict=True)):
        positive = tokens.sample_labels[:, k]
        yield Cell(
            _group(values, columns.inside[k], over_tokens),
            _group(values, columns.outside[k], over_tokens),
            _group(values, columns.negatives[k], over_tokens),
            Group(values, over_tokens),
            columns.inside[k],
            _group(top, positive, resamples),
            _group(top, ~positive, resamples),
            float(cut.threshold[k]),
            float(cut.background[k]),
            float(cut.background_of_maxima[k]),
            None if frozen_sd is None else float(frozen_sd[layer, k]),
        )


def _group(
    values: Float[np.ndarray, " row"], chosen: Bool[np.ndarray, " row"], resamples: Resamples
) -> Group:
    return Group(values[chosen], resamples.of(np.flatnonzero(chosen)))


def _high(values: Float[np.ndarray, " row"]) -> float:
    return float(quantiles(values, [TAIL_LEVEL])[0]) if len(values) else float("inf")
