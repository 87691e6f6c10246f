"""The cluster bootstrap over source documents, as matrix products.

A draw takes D documents with replacement, that is it gives document d a multinomial weight w_d with
sum w = D. Every statistic that is a function of sums over samples (counts, means, ratios, F1) is
the same function of the weighted document sums:

    sum_b = sum_d w_{b,d} S_d,   S_d = sum over samples n of document d of s_n

so all draws, concepts and deltas are one matrix product [draw, document] x [document, column].
Passages of one document resemble each other: resampling passages or tokens would make intervals too
narrow. Two methods are compared by their difference on the same draws: give both the same
`Resamples` and subtract what they drew.

A measure of several concepts is averaged over them, weighted by their positive samples P_c as the
paper reports it, or plainly:

    weighted = sum_c P_c m_c / sum_c P_c,      macro = mean of m_c

In a draw, P_c are the draw's own positives, and a concept without any is left out (its F1 is not
defined). Frequent concepts dominate the weighted mean, rare ones the macro mean's spread; report
both.

What the interval does not show: see `sa_plugin.statistics.drawn`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Real, Shaped

from sa_plugin._check import require_type
from sa_plugin.statistics.confusion import Confusion, check_samples, ratio
from sa_plugin.statistics.drawn import Drawn, Resampling

SumsStatistic: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Sums by term to a statistic, elementwise over draws."""
Average = Literal["weighted", "macro"]
# Counts below this are exact in float32, whose products take half the time.
_EXACT_FLOAT32 = 1 << 24


@dataclass(frozen=True, eq=False)
class Resamples:
    """Bootstrap draws of documents, shared by whatever is compared.

    Attributes:
        document: Document of each sample, as a number from 0.
        weights: How often each draw takes each document.
        resampling: How the draws were made, and the level of intervals of them.
    """

    document: Int64[np.ndarray, " sample"]
    weights: Int64[np.ndarray, "draw document"]
    resampling: Resampling = Resampling()

    def __repr__(self) -> str:
        return (
            f"Resamples({self.draws} draws of {self.n_documents} documents, "
            f"{len(self.document)} samples, seed {self.resampling.seed})"
        )

    @property
    def draws(self) -> int:
        """Number of draws."""
        return len(self.weights)

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return int(self.weights.shape[1])

    @cached_property
    def sample_weights(self) -> Int64[np.ndarray, "draw sample"]:
        """How often each draw takes each sample."""
        return self.weights[:, self.document]

    @cached_property
    def digest(self) -> int:
        """By which draws are known to be the same."""
        return zlib.crc32(self.weights.tobytes())

    def of(self, rows: Int[np.ndarray, " row"]) -> Resamples:
        """The same draws for other rows, such as tokens, given the sample of each."""
        return replace(self, document=self.document[rows])

    def first(self, draws: int) -> Resamples:
        """The first draws only, for statistics that cost more."""
        return replace(self, weights=self.weights[:draws])

    def with_data(self) -> Resamples:
        """The draws with the data as they are put first, as draw 0."""
        one = np.ones((1, self.n_documents), dtype=self.weights.dtype)
        return replace(self, weights=np.concatenate([one, self.weights]))

    def drawn(self, values: Float[np.ndarray, "*axes column"], **axes: Sequence[Any]) -> Drawn:
        """A statistic of these resamples, column 0 the data; `axes` label the others."""
        return Drawn(values, axes, self.n_documents, self.resampling.level, drawn_from=self.digest)


def resample_documents(
    documents: Shaped[np.ndarray, " sample"], resampling: Resampling = Resampling()
) -> Resamples:
    """Draw documents with replacement.

    Args:
        documents: Source document of each sample: numbers or names.
        resampling: Number and seed of the draws, level of the intervals.

    Raises:
        ValueError: There are fewer than two documents.

    Example:
        >>> resample_documents(np.array(["a", "a", "b"]), Resampling(draws=10))
        Resamples(10 draws of 2 documents, 3 samples, seed 0)
    """
    require_type("resampling", resampling, Resampling, "give Resampling(draws=1000)")
    names, document = np.unique(np.asarray(documents), return_inverse=True)
    n = len(names)
    if n < 2:
        raise ValueError(
            f"{len(document)} samples come from {n} document: an interval over documents needs at "
            "least two. Name the source of each sample in ConceptData(documents=...)."
        )
    taken = np.random.default_rng(resampling.seed).integers(n, size=(resampling.draws, n))
    # Documents of draw b are shifted by b * n, so that one bincount counts all draws at once.
    taken += n * np.arange(resampling.draws)[:, None]
    weights = np.bincount(taken.ravel(), minlength=resampling.draws * n).reshape(resampling.draws, n)
    return Resamples(document.reshape(-1), weights, resampling)


def document_sums(
    values: Real[np.ndarray, "*shape sample"] | Bool[np.ndarray, "*shape sample"], resamples: Resamples
) -> Float64[np.ndarray, "*shape document"]:
    """Sums of values over the samples of each document."""
    if values.shape[-1] != len(resamples.document):
        raise ValueError(
            f"values {values.shape} have {values.shape[-1]} samples in their last axis, the "
            f"resamples {len(resamples.document)}."
        )
    # Sorted by document, every document is a run, and one reduction sums them all.
    order = np.argsort(resamples.document, kind="stable")
    home = resamples.document[order]
    starts = np.searchsorted(home, np.arange(resamples.n_documents))
    # A subset of samples may miss documents, and reduceat has no empty runs.
    filled = np.flatnonzero(np.diff(starts, append=len(home)))
    sums = np.zeros((*values.shape[:-1], resamples.n_documents))
    if len(filled):
        dtype = np.int64 if values.dtype == np.bool_ else np.float64
        sums[..., filled] = np.add.reduceat(values[..., order], starts[filled], axis=-1, dtype=dtype)
    return sums


def resampled_sums(
    values: Real[np.ndarray, "*shape sample"] | Bool[np.ndarray, "*shape sample"], resamples: Resamples
) -> Float64[np.ndarray, "*shape draw"]:
    """Sums of values over the samples of each draw.

    Args:
        values: Samples are the last axis.
        resamples: The draws.

    Raises:
        ValueError: Numbers of samples differ.
    """
    sums = document_sums(values, resamples)
    flat = sums.reshape(-1, resamples.n_documents)
    counts = values.dtype == np.bool_ or np.issubdtype(values.dtype, np.integer)
    # A draw weighs a document D times at most, so no partial sum is larger than this.
    largest = np.abs(flat).max(initial=0) * resamples.n_documents
    dtype = np.float32 if counts and largest < _EXACT_FLOAT32 else np.float64
    product = flat.astype(dtype) @ resamples.weights.T.astype(dtype)
    drawn: np.ndarray = product.astype(np.float64)
    return drawn.reshape(*values.shape[:-1], resamples.draws)


def resampled_confusion(
    predicted: Bool[np.ndarray, "*shape sample"],
    labels: Bool[np.ndarray, "*#shape sample"],
    resamples: Resamples,
) -> Confusion:
    """Outcome counts of each draw.

    Args:
        predicted: Decisions; samples are the last axis.
        labels: Truth; axes before the samples broadcast.
        resamples: The draws.

    Returns:
        Exact counts of shape `[*shape, draw]`.

    Raises:
        ValueError: Numbers of samples differ.
    """
    check_samples(predicted, labels)
    tp = resampled_sums(predicted & labels, resamples)
    fired = resampled_sums(predicted, resamples)
    positive = resampled_sums(labels, resamples)
    total = resampled_sums(np.ones(labels.shape[-1], dtype=bool), resamples)
    return Confusion(tp, fired - tp, positive - tp, total - fired - positive + tp)


def bootstrap_mean(
    values: Real[np.ndarray, " sample"],
    documents: Shaped[np.ndarray, " sample"] | Resamples,
    *,
    per: Real[np.ndarray, " sample"] | None = None,
    resampling: Resampling = Resampling(),
) -> Drawn:
    """A mean over samples, or a ratio of two sums, with its resamples.

    A difference of two methods is the mean of their paired differences.

    Args:
        values: One value a sample.
        documents: Source document of each sample, or draws to share.
        per: Denominator of each sample, for the ratio `sum(values) / sum(per)`; by default 1.
        resampling: Of new draws.

    Example:
        >>> bootstrap_mean(np.ones(6), np.arange(6), resampling=Resampling(draws=100))
        1.000 [1.000, 1.000] (95 %, 100 draws of 6 documents)
    """
    per = np.ones(len(values)) if per is None else per
    terms = np.stack([np.asarray(values, np.float64), np.asarray(per, np.float64)])
    return bootstrap_statistic(
        lambda sums: ratio(sums[0], sums[1], empty=np.nan), terms, documents, resampling=resampling
    )


def bootstrap_statistic(
    statistic: SumsStatistic,
    values: Real[np.ndarray, "term sample"],
    documents: Shaped[np.ndarray, " sample"] | Resamples,
    *,
    resampling: Resampling = Resampling(),
) -> Drawn:
    """Any function of sums over samples, with its resamples.

    Args:
        statistic: Sums by term to the statistic, elementwise over draws.
        values: The terms of each sample.
        documents: Source document of each sample, or draws to share.
        resampling: Of new draws.
    """
    resamples = documents if isinstance(documents, Resamples) else resample_documents(documents, resampling)
    sums = np.concatenate([values.sum(axis=-1)[:, None], resampled_sums(values, resamples)], axis=1)
    return resamples.drawn(np.asarray(statistic(sums), dtype=np.float64))


def mean_over_concepts(
    values: Float64[np.ndarray, "*shape concept"],
    positives: Real[np.ndarray, "*#shape concept"],
    average: Average = "weighted",
) -> Float64[np.ndarray, "*shape"]:
    """Mean of a measure over concepts; concepts where it is NaN are left out.

    Raises:
        ValueError: The average is unknown.
    """
    if average not in ("weighted", "macro"):
        raise ValueError(f"average {average!r} is unknown: use 'weighted' or 'macro'.")
    weights = np.broadcast_to(positives, values.shape) if average == "weighted" else 1.0
    weights = np.where(np.isnan(values), 0.0, weights)
    total = (weights * np.nan_to_num(values)).sum(axis=-1)
    return ratio(total, weights.sum(axis=-1), empty=np.nan)
