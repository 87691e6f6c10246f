"""The cluster bootstrap over source documents, as matrix products.

A draw takes D documents with replacement, that is it gives document d a multinomial weight w_d with
sum w = D. Every statistic that is a function of sums over samples (counts, means, ratios, F1) is
the same function of the weighted document sums:

    sum_b = sum_d w_{b,d} S_d,   S_d = sum over samples n of document d of s_n

so all draws, concepts and deltas are one matrix product [draw, document] x [document, column].
Passages of one document resemble each other: resampling passages or tokens would make intervals too
narrow. Two methods are compared by their difference on the same draws: give both the same
`Resamples` and take the interval of the difference.

What the interval does not show: see `sa_plugin.statistics.drawn`.

F1 of every concept and its mean over concepts, with intervals and paired differences.

    weighted F1 = sum_c P_c F1_c / sum_c P_c,  P_c the positive samples of concept c
    macro F1    = mean of F1_c

The paper reports the weighted mean. In a draw, P_c are the draw's own positives, and a concept
without any is left out (its F1 is not defined). Frequent concepts
dominate the weighted mean, rare ones the macro mean's spread; report both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Real, Shaped

from sa_plugin.statistics.confusion import Confusion, check_samples, confusion, f1, ratio
from sa_plugin.statistics.drawn import Drawn, Interval, interval, percentile_bounds

Statistic: TypeAlias = Callable[[np.ndarray], np.ndarray]
_EXACT_FLOAT32 = 1 << 24


@dataclass(frozen=True, eq=False)
class Resamples:
    """Bootstrap draws of documents, shared by whatever is compared.

    Attributes:
        document: Document of each sample, as a number from 0.
        weights: How often each draw takes each document.
        seed: Seed of the draws.
    """

    document: Int64[np.ndarray, " sample"]
    weights: Int64[np.ndarray, "draw document"]
    seed: int

    def __repr__(self) -> str:
        return (
            f"Resamples({self.draws} draws of {self.n_documents} documents, "
            f"{len(self.document)} samples, seed {self.seed})"
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

    def of(self, rows: Int[np.ndarray, " row"]) -> Resamples:
        """The same draws for other rows, such as tokens, given the sample of each."""
        return Resamples(self.document[rows], self.weights, self.seed)

    def first(self, draws: int) -> Resamples:
        """The first draws only, for statistics that cost more."""
        return Resamples(self.document, self.weights[:draws], self.seed)

    def with_data(self) -> Resamples:
        """The draws with the data as they are put first, as draw 0."""
        one = np.ones((1, self.n_documents), dtype=self.weights.dtype)
        return Resamples(self.document, np.concatenate([one, self.weights]), self.seed)

    def drawn(
        self, values: Float[np.ndarray, "*axes column"], level: float = 0.95, **axes: Sequence[Any]
    ) -> Drawn:
        """A statistic of these resamples, column 0 the data; `axes` label the others."""
        return Drawn(values, axes, self.n_documents, level)

    def interval(
        self, estimate: float | np.floating, drawn: Float[np.ndarray, " draw"], level: float = 0.95
    ) -> Interval:
        """The percentile interval of a statistic drawn from these resamples."""
        return interval(estimate, drawn, n_units=self.n_documents, level=level)


def resample_documents(
    documents: Shaped[np.ndarray, " sample"], *, draws: int = 1000, seed: int = 0
) -> Resamples:
    """Draw documents with replacement.

    Args:
        documents: Source document of each sample: numbers or names.
        draws: Number of draws.
        seed: Seed of the draws.

    Raises:
        ValueError: There are fewer than two documents, or no draws.

    Example:
        >>> resample_documents(np.array(["a", "a", "b"]), draws=10)
        Resamples(10 draws of 2 documents, 3 samples, seed 0)
    """
    names, document = np.unique(np.asarray(documents), return_inverse=True)
    n = len(names)
    if n < 2:
        raise ValueError(
            f"{len(document)} samples come from {n} document: an interval over documents needs at "
            "least two. Name the source of each sample in ConceptData(documents=...)."
        )
    if draws < 1:
        raise ValueError(f"draws is {draws}: ask for at least one, such as 1000.")
    taken = np.random.default_rng(seed).integers(n, size=(draws, n))
    taken += n * np.arange(draws)[:, None]
    weights = np.bincount(taken.ravel(), minlength=draws * n).reshape(draws, n)
    return Resamples(document.reshape(-1), weights, seed)


def document_sums(
    values: Real[np.ndarray, "*shape sample"] | Bool[np.ndarray, "*shape sample"], resamples: Resamples
) -> Float64[np.ndarray, "*shape document"]:
    """Sums of values over the samples of each document."""
    if values.shape[-1] != len(resamples.document):
        raise ValueError(
            f"values {values.shape} have {values.shape[-1]} samples in their last axis, the "
            f"resamples {len(resamples.document)}."
        )
    order = np.argsort(resamples.document, kind="stable")
    home = resamples.document[order]
    starts = np.searchsorted(home, np.arange(resamples.n_documents))
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
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of a mean over samples, or of a ratio of two sums.

    A difference of two methods is the mean of their paired differences.

    Args:
        values: One value a sample.
        documents: Source document of each sample, or draws to share.
        per: Denominator of each sample, for the ratio `sum(values) / sum(per)`; by default 1.
        draws: Number of new draws.
        seed: Seed of new draws.
        level: Of the interval.

    Example:
        >>> bootstrap_mean(np.ones(6), np.arange(6), draws=100)
        1.000 [1.000, 1.000] (95 %, 100 draws of 6 documents)
    """
    per = np.ones(len(values)) if per is None else per
    return bootstrap_statistic(
        lambda sums: ratio(sums[0], sums[1], empty=np.nan),
        np.stack([np.asarray(values, np.float64), np.asarray(per, np.float64)]),
        documents,
        draws=draws,
        seed=seed,
        level=level,
    )


def bootstrap_statistic(
    statistic: Statistic,
    values: Real[np.ndarray, "term sample"],
    documents: Shaped[np.ndarray, " sample"] | Resamples,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of any function of sums over samples.

    Args:
        statistic: Sums by term to the statistic, elementwise over draws.
        values: The terms of each sample.
        documents: Source document of each sample, or draws to share.
        draws: Number of new draws.
        seed: Seed of new draws.
        level: Of the interval.
    """
    resamples = (
        documents
        if isinstance(documents, Resamples)
        else resample_documents(documents, draws=draws, seed=seed)
    )
    drawn = statistic(resampled_sums(values, resamples))
    estimate = float(statistic(values.sum(axis=-1)))
    return resamples.interval(estimate, drawn, level)


Average = Literal["weighted", "macro"]


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


def f1_over_concepts(
    counts: Confusion, average: Average = "weighted", axis: int = -2
) -> Float64[np.ndarray, "*shape"]:
    """Mean F1 over the concept axis of counts `[..., concept, draw]`.

    A concept without positive samples in a draw is left out of that draw.
    """
    positives = np.moveaxis(np.asarray(counts.tp + counts.fn), axis, -1)
    values = np.where(positives > 0, np.moveaxis(f1(counts), axis, -1), np.nan)
    return mean_over_concepts(values, positives, average)


@dataclass(frozen=True, eq=False)
class F1Draws:
    """F1 by concept and over concepts, on the data and on every draw.

    Attributes:
        f1: By concept.
        low, high: Percentile bounds by concept.
        weighted, macro: Means over concepts with intervals.
        weighted_draws, macro_draws: Their values on each draw, for paired differences.
        resamples: The draws.
    """

    f1: Float64[np.ndarray, " concept"]
    low: Float64[np.ndarray, " concept"]
    high: Float64[np.ndarray, " concept"]
    weighted: Interval
    macro: Interval
    weighted_draws: Float64[np.ndarray, " draw"]
    macro_draws: Float64[np.ndarray, " draw"]
    resamples: Resamples

    def __repr__(self) -> str:
        return f"F1Draws({len(self.f1)} concepts, weighted {self.weighted}, macro {self.macro})"

    def minus(self, other: F1Draws, average: Average = "weighted") -> Interval:
        """Paired difference to another method on the same draws.

        Raises:
            ValueError: The other's draws are not the same.
        """
        if not same_draws(self.resamples, other.resamples):
            raise ValueError("a paired difference needs the same Resamples for both methods.")
        ours, theirs = getattr(self, average), getattr(other, average)
        drawn = getattr(self, f"{average}_draws") - getattr(other, f"{average}_draws")
        return self.resamples.interval(ours.estimate - theirs.estimate, drawn, ours.level)


def bootstrap_f1(
    predicted: Bool[np.ndarray, "concept sample"],
    labels: Bool[np.ndarray, "concept sample"],
    documents: Shaped[np.ndarray, " sample"] | Resamples,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> F1Draws:
    """F1 of fixed decisions with intervals over documents.

    Args:
        predicted: Decisions.
        labels: Truth.
        documents: Source document of each sample, or draws shared with other methods.
        draws: Number of new draws.
        seed: Seed of new draws.
        level: Of the intervals.

    Example:
        >>> labels = np.array([[True, False, True, False]])
        >>> bootstrap_f1(labels, labels, np.arange(4), draws=200).f1
        array([1.])
    """
    resamples = (
        documents
        if isinstance(documents, Resamples)
        else resample_documents(documents, draws=draws, seed=seed)
    )
    counts, drawn = confusion(predicted, labels), resampled_confusion(predicted, labels, resamples)
    low, high = percentile_bounds(f1(drawn), level)
    weighted, macro = (f1_over_concepts(drawn, a) for a in ("weighted", "macro"))
    estimates = [f1_over_concepts(counts, a, axis=-1) for a in ("weighted", "macro")]
    return F1Draws(
        f1(counts),
        low,
        high,
        resamples.interval(float(estimates[0]), weighted, level),
        resamples.interval(float(estimates[1]), macro, level),
        weighted,
        macro,
        resamples,
    )


def same_draws(a: Resamples, b: Resamples) -> bool:
    """Whether two resamples take the same samples equally often."""
    return a is b or (np.array_equal(a.document, b.document) and np.array_equal(a.weights, b.weights))
