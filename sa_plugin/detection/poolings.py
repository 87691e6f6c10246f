"""Poolings: many token scores of a sample to one number, the rivals of its maximum.

With s_1 .. s_n a sample's token scores in the order of the text, s_(1) >= s_(2) >= ... the same by size:

| name | number | after |
|---|---|---|
| MaxTok | s_(1) | arXiv 2512.05038 |
| MeanTok, LastTok | mean of s_t; s_n | arXiv 2512.05038 |
| Top10% | mean of the ceil(n / 10) highest | |
| softmax pool | sum_t p_t s_t, p = softmax(s / T) | arXiv 2506.10805 |
| log-sum-exp | T log mean_t exp(s_t / T) | |
| top-k mean | mean of s_(1) .. s_(k) | |
| trimmed top-k | mean of s_(2) .. s_(k + 1) | |
| softplus pool | sum_t log(1 + exp((s_t - c) / T)) | likelihood ratio, below |
| max EMA | max_t e_t, e_t = e_{t-1} + a (s_t - e_{t-1}), e_1 = s_1 | arXiv 2601.04603 |
| max rolling mean | max_t mean of s_t .. s_{t + w - 1} | arXiv 2601.11516, 2506.10805 |
| k in a window | max_t of the k-th highest of s_t .. s_{t + w - 1} | coherence, 2604.14865 |
| max - median | s_(1) minus the median | the document effect, below |

A sample shorter than k or w is taken whole: its own length stands for them. k tokens in a window reach a
threshold iff some w tokens in a row hold k that do. Tokens are the rows of a table: those that were
dropped (special tokens, sinks) are not between their neighbours, and patches of a picture stand in rows,
so that a window of them is part of a row.

Where a share f of n independent scores is drawn from N(d, 1) and the others from N(0, 1), no test beats
the likelihood ratio (Neyman and Pearson):

    sum_t log(1 - f + f exp(d s_t - d^2 / 2)) = sum_t log(1 + exp(d (s_t - c))) + const,
    c = d / 2 + log((1 - f) / f) / d

the softplus pool with T = 1 / d. f near 1 gives the mean, large d the sum of excesses over c, and for
small f log-sum-exp with T = 1 / d; the maximum is the limit of all three. It takes tokens for independent:
an effect that all tokens of a document share (variance rho) shifts the sum by n times itself and the
maximum by itself, and the maximum minus the median not at all.

Temperatures and places that are candidates count in standard deviations of a column's calibration scores,
from their mean (`column_spread`): one grid serves scores of any unit, and a factor changes nothing.

A pooling is `(scores, bounds, *parameters) -> [sample, layer, unit]`, where sample n owns the token rows
`bounds[n]:bounds[n + 1]` and a parameter is a number or one for each layer and unit. It must treat samples
one by one and columns one by one. Results are float32, as scores are (sums run in float64, over sorted
scores where order does not matter: the same numbers give the same bits in any order).

What a pooling does not show: whether the tokens it takes lie inside the concept.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int
from numpy.lib.stride_tricks import sliding_window_view

Scores = Float[np.ndarray, "token layer unit"]
Bounds = Int[np.ndarray, " sample_and_one"]
OfSamples = Float[np.ndarray, "sample _layer _unit"]
Parameter: TypeAlias = float | Float[np.ndarray, "#layer #unit"]
_Pooled = Float[np.ndarray, "layer unit"]


def max_token(scores: Scores, bounds: Bounds) -> Float[np.ndarray, "sample layer unit"]:
    """The highest token score of each sample."""
    return _by_sample(lambda rows: rows.max(0), scores, bounds)


def mean_token(scores: Scores, bounds: Bounds) -> Float[np.ndarray, "sample layer unit"]:
    """The mean token score of each sample."""
    return _by_sample(lambda rows: rows.mean(0, dtype=np.float64), scores, bounds)


def last_token(scores: Scores, bounds: Bounds) -> Float[np.ndarray, "sample layer unit"]:
    """The score of each sample's last kept token."""
    return _by_sample(lambda rows: rows[-1], scores, bounds)


def top_tenth_mean(scores: Scores, bounds: Bounds) -> Float[np.ndarray, "sample layer unit"]:
    """The mean of each sample's highest `ceil(tokens / 10)` scores."""
    # Rounded up, so that a short sample still has one score.
    return _by_sample(lambda rows: _highest(rows, -(-len(rows) // 10)).mean(0), scores, bounds)


def length(scores: Scores, bounds: Bounds) -> Float[np.ndarray, "sample 1 1"]:
    """The number of kept tokens: what a detector achieves that never looks at the model."""
    return np.diff(bounds).astype(np.float32)[:, None, None]


def softmax_pool(
    scores: Scores, bounds: Bounds, temperature: Parameter
) -> Float[np.ndarray, "sample layer unit"]:
    """The mean score, each token weighing `exp(score / temperature)`."""

    def pool(rows: Scores) -> _Pooled:
        rows = _descending(rows)
        # Weights are relative to the highest, which stands first: nothing overflows.
        weight = np.exp((rows - rows[:1]) / temperature)
        return np.asarray((weight * rows).sum(0) / weight.sum(0))

    return _by_sample(pool, scores, bounds)


def log_sum_exp(
    scores: Scores, bounds: Bounds, temperature: Parameter
) -> Float[np.ndarray, "sample layer unit"]:
    """The soft maximum `T log mean exp(score / T)`: the mean for large T, the maximum for small."""

    def pool(rows: Scores) -> _Pooled:
        rows = _descending(rows)
        return np.asarray(rows[0] + temperature * np.log(np.exp((rows - rows[:1]) / temperature).mean(0)))

    return _by_sample(pool, scores, bounds)


def top_k_mean(scores: Scores, bounds: Bounds, k: Parameter) -> Float[np.ndarray, "sample layer unit"]:
    """The mean of each sample's k highest scores."""
    return _by_number(lambda rows, n: _highest(rows, n).mean(0), scores, bounds, k)


def trimmed_top_k(scores: Scores, bounds: Bounds, k: Parameter) -> Float[np.ndarray, "sample layer unit"]:
    """The mean of the k scores below each sample's highest, which is left out; of one token its score."""

    def pool(rows: Scores, n: int) -> _Pooled:
        below = _highest(rows, n + 1)[:-1]
        return np.asarray(below.mean(0) if len(below) else rows[0])

    return _by_number(pool, scores, bounds, k)


def softplus_pool(
    scores: Scores, bounds: Bounds, place: Parameter, temperature: Parameter
) -> Float[np.ndarray, "sample layer unit"]:
    """The sum of soft excesses `log(1 + exp((score - place) / temperature))`: the likelihood ratio."""

    def pool(rows: Scores) -> _Pooled:
        excess = (_descending(rows) - place) / temperature
        return np.asarray((np.maximum(excess, 0.0) + np.log1p(np.exp(-np.abs(excess)))).sum(0))

    return _by_sample(pool, scores, bounds)


def max_moving_average(
    scores: Scores, bounds: Bounds, share: Parameter
) -> Float[np.ndarray, "sample layer unit"]:
    """The highest value of an exponential moving average that takes `share` of each new score."""
    tokens = np.diff(bounds)
    # All samples step together, the longest first, so that those still running are a slice.
    order = np.argsort(-tokens, kind="stable")
    starts = np.asarray(bounds)[:-1][order]
    average = scores[starts].astype(np.float64)
    highest = average.copy()
    for t in range(1, int(tokens.max())):
        running = int((tokens > t).sum())
        average = average[:running]
        average += share * (scores[starts[:running] + t] - average)
        np.maximum(highest[:running], average, out=highest[:running])
    out = np.empty(highest.shape, dtype=np.float32)
    out[order] = highest
    return out


def max_rolling_mean(
    scores: Scores, bounds: Bounds, width: Parameter
) -> Float[np.ndarray, "sample layer unit"]:
    """The highest mean of `width` tokens in a row."""

    def pool(rows: Scores, w: int) -> _Pooled:
        windows = sliding_window_view(rows, min(w, len(rows)), axis=0)
        return np.asarray(windows.mean(-1, dtype=np.float64).max(0))

    return _by_number(pool, scores, bounds, width)


def k_in_window(
    scores: Scores, bounds: Bounds, k: Parameter, width: Parameter
) -> Float[np.ndarray, "sample layer unit"]:
    """The highest score that k of `width` tokens in a row reach."""

    def pool(rows: Scores, n: int, w: int) -> _Pooled:
        w = min(w, len(rows))
        n = min(n, w)
        starts = len(rows) - w + 1
        # Of every window its n highest so far: each further token pushes the lowest of them out.
        highest = [np.full((starts, *rows.shape[1:]), -np.inf, dtype=rows.dtype) for _ in range(n)]
        for step in range(w):
            new = rows[step : step + starts]
            for j, held in enumerate(highest):
                highest[j], new = np.maximum(held, new), np.minimum(held, new)
        return np.asarray(highest[-1].max(0))

    return _by_number(pool, scores, bounds, k, width)


def max_minus_median(scores: Scores, bounds: Bounds) -> Float[np.ndarray, "sample layer unit"]:
    """How far each sample's highest score lies above its median: what its tokens share cancels."""
    return _by_sample(lambda rows: rows.max(0) - np.median(rows.astype(np.float64), axis=0), scores, bounds)


def column_spread(scores: Scores) -> tuple[_Pooled, _Pooled]:
    """Mean and standard deviation of every column, in which grids of parameters are counted.

    Rounded to float32, so that they do not depend on the order of rows; a deviation of 0 counts as 1.
    """
    mean = scores.mean(0, dtype=np.float64)
    # Layer by layer, so that float64 copies stay small.
    layers = range(scores.shape[1])
    sd = np.stack([scores[:, k].std(0, dtype=np.float64) for k in layers]).astype(np.float32)
    return mean.astype(np.float32).astype(np.float64), np.where(sd > 0, sd, 1.0).astype(np.float64)


def _descending(rows: Scores) -> Float[np.ndarray, "token layer unit"]:
    return np.sort(rows, axis=0)[::-1].astype(np.float64)


def _highest(rows: Scores, k: int) -> Float[np.ndarray, "top layer unit"]:
    """The k highest rows of every column, ascending: their sum does not depend on the order of tokens."""
    n = len(rows)
    k = min(k, n)
    return np.sort(np.partition(rows, n - k, axis=0)[n - k :], axis=0).astype(np.float64)


def _by_number(
    of_sample: Callable[..., _Pooled], scores: Scores, bounds: Bounds, *parameters: Parameter
) -> Float[np.ndarray, "sample layer unit"]:
    """A pooling of whole-number parameters: columns of the same numbers are pooled together."""
    columns = scores.shape[1:]
    each = np.stack([np.broadcast_to(one, columns) for one in parameters], axis=-1).astype(int)
    out = np.empty((len(bounds) - 1, *columns), dtype=np.float32)
    for numbers in np.unique(each.reshape(-1, len(parameters)), axis=0).tolist():
        chosen = (each == numbers).all(-1)
        alike = scores if chosen.all() else scores[:, chosen][:, None]
        found = _by_sample(lambda rows, n=numbers: of_sample(rows, *n), alike, bounds)  # type: ignore[misc]
        out[:, chosen] = found.reshape(len(out), -1)
    return out


def _by_sample(
    of_sample: Callable[[Scores], _Pooled], scores: Scores, bounds: Bounds
) -> Float[np.ndarray, "sample layer unit"]:
    # A loop: `np.maximum.reduceat` along the first axis is five to fifteen times slower.
    out = np.empty((len(bounds) - 1, *scores.shape[1:]), dtype=np.float32)
    for n, (start, end) in enumerate(pairwise(bounds)):
        out[n] = of_sample(scores[start:end])
    return out
