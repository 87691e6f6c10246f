"""The data without each source document in turn, and bootstrap draws of documents, as matrix products.

A column gives every document a weight w_d: 1 for all on the data, 0 for the one that is left out. Every
statistic that is a function of sums over samples (counts, means, ratios, F1) is the same function of
the weighted sums:

    sum_b = sum_d w_{b,d} S_d,   S_d = sum over samples n of document d of s_n

so all columns, concepts and deltas are one matrix product [column, document] x [document, statistic].
Passages of one document resemble each other: leaving out passages or tokens would make intervals too
narrow. Two methods are compared by their difference in the same columns: give both the same `Resamples`
and subtract what they drew. More than `GROUPS` documents are left out in so many random groups, which
then are the documents of all that follows.

For quantiles, which are not smooth, `Resamples.bootstrapped` has draws of D documents with replacement
behind the data: multinomial weights, sum w = D.

A measure of several concepts is averaged over them, weighted by their positive samples P_c as the
paper reports it, or plainly:

    weighted = sum_c P_c m_c / sum_c P_c,      macro = mean of m_c

In every column P_c are the column's own positives, and a concept without any is left out (its F1 is not
defined): with weights held fixed coverage collapses where one concept a sample is the rule. Frequent
concepts dominate the weighted mean, rare ones the macro mean's spread; report both.

How columns become an interval, and what it does not show: `sa_plugin.statistics.interval`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Real, Shaped

from sa_plugin._check import require_type
from sa_plugin._face import face_methods
from sa_plugin.statistics.confusion import Confusion, check_samples, ratio
from sa_plugin.statistics.drawn import Drawn, Resampling
from sa_plugin.statistics.interval import Kind

SumsStatistic: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Sums by term to a statistic, elementwise over columns."""
Average = Literal["weighted", "macro"]
GROUPS = 200
"""More documents are left out in so many random groups."""
# Counts below this are exact in float32, whose products take half the time.
_EXACT_FLOAT32 = 1 << 24


@face_methods
@dataclass(frozen=True, eq=False)
class Resamples:
    """Weights of documents, column by column, shared by whatever is compared.

    Attributes:
        document: Document (or group of documents) of each sample, as a number from 0.
        weights: How often each column takes each document; column 0 is the data, once each.
        n_documents: Source documents, however they are grouped.
        resampling: Level of intervals; draws and seed for quantiles.
        digest: By which columns of the same documents are known.
    """

    document: Int64[np.ndarray, " sample"]
    weights: Int64[np.ndarray, "column document"]
    n_documents: int
    resampling: Resampling = Resampling()
    digest: int = 0

    def __repr__(self) -> str:
        return (
            f"Resamples({self.columns} columns of {self.n_documents} documents, {len(self.document)} samples)"
        )

    @property
    def columns(self) -> int:
        """Number of columns, the data among them."""
        return len(self.weights)

    @property
    def units(self) -> int:
        """Number of documents, or of groups of them."""
        return int(self.weights.shape[1])

    @cached_property
    def sample_weights(self) -> Int64[np.ndarray, "column sample"]:
        """How often each column takes each sample."""
        return self.weights[:, self.document]

    @cached_property
    def bootstrapped(self) -> Resamples:
        """The data, then `resampling.draws` draws of documents with replacement; for quantiles."""
        made = self.resampling
        weights = _draws(made.draws, made.seed, self.units)
        digest = zlib.crc32(f"{made.draws} {made.seed}".encode(), self.digest)
        return replace(self, weights=weights, digest=digest)

    def of(self, rows: Int[np.ndarray, " row"]) -> Resamples:
        """The same columns for other rows, such as tokens, given the sample of each."""
        return replace(self, document=self.document[rows])

    def rows(
        self, counted: Real[np.ndarray, "*shape sample"] | Bool[np.ndarray, "*shape sample"] | None = None
    ) -> Float64[np.ndarray, "*shape document"]:
        """Rows of each document, all or those that count: what carries a statistic."""
        every = np.ones(len(self.document), dtype=bool)
        return document_sums(every if counted is None else counted, self)

    def drawn(
        self,
        values: Float[np.ndarray, "*axes column"],
        kind: Kind | np.ndarray,
        carried: Real[np.ndarray, "*#axes document"] | None = None,
        /,
        **axes: Sequence[Any],
    ) -> Drawn:
        """A statistic in these columns, column 0 the data.

        Args:
            values: Last axis the columns.
            kind: What it is (`sa_plugin.statistics.interval`), one for all cells or of the axes.
            carried: Rows of each document that carry it, by default all; leading axes broadcast.
            **axes: Labels of the other axes.
        """
        carried = self.rows() if carried is None else carried
        return Drawn(values, axes, np.asarray(kind), carried, self.resampling.level, drawn_from=self.digest)


def resample_documents(
    documents: Shaped[np.ndarray, " sample"], resampling: Resampling = Resampling()
) -> Resamples:
    """Leave out each document in turn.

    Args:
        documents: Source document of each sample: numbers or names.
        resampling: Level of the intervals; draws and seed for quantiles.

    Raises:
        ValueError: There are fewer than two documents.

    Example:
        >>> resample_documents(np.array(["a", "a", "b"]))
        Resamples(3 columns of 2 documents, 3 samples)
    """
    require_type("resampling", resampling, Resampling, "give Resampling(level=0.95)")
    names, document = np.unique(np.asarray(documents), return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"{len(document)} samples come from {len(names)} document: an interval over documents needs at "
            "least two. Name the source of each sample in ConceptData(documents=...)."
        )
    return left_out(document.reshape(-1), resampling)


def left_out(document: Int64[np.ndarray, " sample"], resampling: Resampling) -> Resamples:
    """The same of documents that are numbered, even of a single one (which has no interval)."""
    sources = units = int(document.max(initial=-1)) + 1
    digest = zlib.crc32(np.ascontiguousarray(document).tobytes())
    if sources > GROUPS:
        # Groups of one size, up to one: which documents share one is chance.
        home = np.random.default_rng(resampling.seed).permutation(sources) % GROUPS
        document, units = home[document], GROUPS
    weights = np.concatenate([np.ones((1, units), dtype=np.int64), 1 - np.eye(units, dtype=np.int64)])
    return Resamples(document, weights, sources, resampling, digest)


@lru_cache(maxsize=2)
def _draws(draws: int, seed: int, documents: int) -> Int64[np.ndarray, "column document"]:
    """The data, then how often each draw takes each document."""
    taken = np.random.default_rng(seed).integers(documents, size=(draws, documents))
    # Documents of draw b are shifted by b * D, so that one bincount counts all draws at once.
    taken += documents * np.arange(draws)[:, None]
    drawn = np.bincount(taken.ravel(), minlength=draws * documents).reshape(draws, documents)
    weights = np.concatenate([np.ones((1, documents), dtype=np.int64), drawn])
    # Shared by whoever asks again.
    weights.setflags(write=False)
    return weights


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
    starts = np.searchsorted(home, np.arange(resamples.units))
    # A subset of samples may miss documents, and reduceat has no empty runs.
    filled = np.flatnonzero(np.diff(starts, append=len(home)))
    sums = np.zeros((*values.shape[:-1], resamples.units))
    if len(filled):
        dtype = np.int64 if values.dtype == np.bool_ else np.float64
        sums[..., filled] = np.add.reduceat(values[..., order], starts[filled], axis=-1, dtype=dtype)
    return sums


def resampled_sums(
    values: Real[np.ndarray, "*shape sample"] | Bool[np.ndarray, "*shape sample"], resamples: Resamples
) -> Float64[np.ndarray, "*shape column"]:
    """Sums of values over the samples of each column.

    Args:
        values: Samples are the last axis.
        resamples: The columns.

    Raises:
        ValueError: Numbers of samples differ.
    """
    sums = document_sums(values, resamples)
    flat = sums.reshape(-1, resamples.units)
    counts = values.dtype == np.bool_ or np.issubdtype(values.dtype, np.integer)
    # A column weighs a document D times at most, so no partial sum is larger than this.
    largest = np.abs(flat).max(initial=0) * resamples.units
    dtype = np.float32 if counts and largest < _EXACT_FLOAT32 else np.float64
    product = flat.astype(dtype) @ resamples.weights.T.astype(dtype)
    drawn: np.ndarray = product.astype(np.float64)
    return drawn.reshape(*values.shape[:-1], resamples.columns)


def resampled_confusion(
    predicted: Bool[np.ndarray, "*shape sample"],
    labels: Bool[np.ndarray, "*#shape sample"],
    resamples: Resamples,
) -> Confusion:
    """Outcome counts of each column.

    Args:
        predicted: Decisions; samples are the last axis.
        labels: Truth; axes before the samples broadcast.
        resamples: The columns.

    Returns:
        Exact counts of shape `[*shape, column]`.

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
    kind: Kind = "mean",
    resampling: Resampling = Resampling(),
) -> Drawn:
    """A mean over samples, or a ratio of two sums, with its interval over documents.

    A difference of two methods is the mean of their paired differences.

    Args:
        values: One value a sample.
        documents: Source document of each sample, or columns to share.
        per: Denominator of each sample, for the ratio `sum(values) / sum(per)`; by default 1.
        kind: "share" for a mean in [0, 1], "difference" for one in [-1, 1].
        resampling: Of new columns.

    Example:
        >>> bootstrap_mean(np.arange(6.0), np.arange(6))
        2.500 [0.537, 4.463] (95 %, 6 documents; few documents)
    """
    per = np.ones(len(values)) if per is None else np.asarray(per, np.float64)
    resamples = documents if isinstance(documents, Resamples) else resample_documents(documents, resampling)
    sums = resampled_sums(np.stack([np.asarray(values, np.float64), per]), resamples)
    return resamples.drawn(ratio(sums[0], sums[1], empty=np.nan), kind, resamples.rows(per))


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
