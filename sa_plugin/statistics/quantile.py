"""Tail thresholds: the (1 - delta) quantile of a concept's in-concept token scores, exactly.

    tau_c(delta) = Q_{1 - delta}({ s_{t,c} : token t is labelled c })

over the tokens of the calibration split, pooled over samples (SuperActivators, arXiv 2512.05038,
definition of the tail). A token of any sample, labelled or not, is a SuperActivator of c when its
score reaches tau_c(delta). Q is linear interpolation (Hyndman-Fan type 7): of n sorted values
x_0 <= ... <= x_{n-1},

    p = (n - 1) q,   k = floor(p),   t = p - k,   Q = x_k + t (x_{k+1} - x_k)

Floating point makes that formula miss x_{k+1} at t near 1, so numpy computes
`x_{k+1} - (1 - t) (x_{k+1} - x_k)` for t >= 1/2. The same branches here, in float64, give the same
bits as `numpy.quantile` on float64-cast values (a negative zero is returned as zero). One sort serves
every delta: numpy's float32 sort is an order of magnitude faster than `torch.quantile`, which besides
refuses more than 2**24 values and interpolates in float32. Scores are stored row by row; cut into
blocks of tokens that stay in cache, a table is read once and not once a column.

The grid of deltas is that of the authors' code, twelve values; the paper's own plots leave out .5
and .7. A delta chosen at the edge of a grid says that the optimum may lie beyond it.

"Balanced" thresholds give every sample the weight 1, shared by its in-concept tokens, so that long
concept mentions do not set the threshold alone; they are no longer the paper's definition. With
weights w_i of sorted values, A_i the weight before x_i and W that of all,

    p_i = A_i / (W - w_i),   Q(q) = linear interpolation of the points (p_i, x_i) at q

Equal weights give p_i = i / (n - 1), the ordinary quantile. A weight is an importance, not a number
of copies: doubling every weight changes nothing. Resampled counts are copies: see
`sa_plugin.statistics.resampled_quantiles`.

Sparse activations (SAE latents) are zero or above, and zero is no activation: with `positive`,
quantiles are of a unit's values above zero, +inf where there are none.

What a threshold does not show: by construction a share delta of the calibration tokens reaches it,
however good or bad the concept vector is; only out-of-concept tokens tell whether the tail is
reliable. And it rests on about delta * n tokens: below one it interpolates near the maximum of a
handful of tokens, and says more about that handful than about the tail (`FewTokensWarning`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Shaped

from sa_plugin._check import users_line

# Fits a second-level cache: a block is read from memory once, whatever its columns.
_BLOCK_BYTES = 1 << 20


def block_rows(table: Shaped[np.ndarray, "token column"]) -> int:
    """Rows of a block that stays in cache."""
    return max(1, _BLOCK_BYTES // max(1, int(table.itemsize * table.shape[1])))


def cached_blocks(table: Shaped[np.ndarray, "token column"]) -> Iterator[slice]:
    """Row ranges of blocks that stay in cache."""
    step = block_rows(table)
    for start in range(0, len(table), step):
        yield slice(start, min(start + step, len(table)))


def in_concept_values(
    block: Shaped[np.ndarray, "token column"], labels: Bool[np.ndarray, "token concept"]
) -> list[Shaped[np.ndarray, " _in_token"]]:
    """The labelled values of each column; the labels repeat: column k has those of k % concepts."""
    rows = [np.flatnonzero(column) for column in np.ascontiguousarray(labels.T)]
    return [block[:, k].take(rows[k % len(rows)]) for k in range(block.shape[1])]


class FewTokensWarning(UserWarning):
    """A concept has fewer than 1 / delta in-concept tokens."""


class EmptyConceptWarning(UserWarning):
    """A concept has no in-concept token; its threshold is +inf and never fires."""


class InactiveConceptWarning(UserWarning):
    """No unit is ever above zero on a concept's tokens; its thresholds are +inf and never fire."""


# Concepts named in one warning; their numbers are in Detector.table().
_SHOWN = 3


def warn_counts(
    counts: Int[np.ndarray, " concept"],
    deltas: Sequence[float],
    names: Sequence[str] | None = None,
    *,
    unit: str = "in-concept tokens",
) -> None:
    """Warn of concepts with no token, or too few for a delta.

    Args:
        counts: In-concept tokens of each concept (or samples, with balanced weights).
        deltas: The deltas asked for.
        names: Names of the concepts; by default their numbers.
        unit: What was counted.
    """
    sizes = [int(n) for n in counts]
    label = [repr(n) for n in names] if names is not None else [f"#{k}" for k in range(len(sizes))]
    empty = [name for name, n in zip(label, sizes, strict=True) if n == 0]
    if empty:
        warnings.warn(
            f"no {unit} for {', '.join(empty)}: the threshold is +inf and never fires. Label "
            "tokens of the concept in this split, or leave it out.",
            EmptyConceptWarning,
            stacklevel=users_line(),
        )
    smallest = min(deltas)
    few = [
        f"{name} has {n} (delta {_too_small(n, deltas)})"
        for name, n in zip(label, sizes, strict=True)
        if n > 0 and n * smallest < 1 - 1e-9
    ]
    if few:
        warnings.warn(
            f"{len(few)} of {len(sizes)} concepts have fewer than 1 / delta {unit}: "
            f"{'; '.join(few[:_SHOWN])}{_more(len(few))}. Their "
            "thresholds interpolate near the maximum; use a larger delta or more data.",
            FewTokensWarning,
            stacklevel=users_line(),
        )


def warn_inactive(
    counts: Int[np.ndarray, " concept"],
    active: Bool[np.ndarray, " concept"],
    names: Sequence[str] | None = None,
    *,
    unit: str = "in-concept tokens",
) -> None:
    """Warn of concepts that have tokens, none of which any unit is active on.

    Args:
        counts: In-concept tokens of each concept.
        active: Whether any unit is above zero on any of them.
        names: Names of the concepts; by default their numbers.
        unit: What was counted.
    """
    label = [repr(n) for n in names] if names is not None else [f"#{k}" for k in range(len(counts))]
    silent = [n for n, k, yes in zip(label, counts, active, strict=True) if k and not yes]
    if silent:
        warnings.warn(
            f"no unit is above zero on any of the {unit} of {', '.join(silent)}: the thresholds "
            "are +inf and the concept never fires. Prune less, or use another SAE or layer.",
            InactiveConceptWarning,
            stacklevel=users_line(),
        )


def _more(n: int) -> str:
    return f"; and {n - _SHOWN} more" if n > _SHOWN else ""


def _too_small(n: int, deltas: Sequence[float]) -> str:
    return ", ".join(f"{d:g} needs {math.ceil(1 / d - 1e-9)}" for d in deltas if n * d < 1 - 1e-9)


def check_finite(scores: Float[np.ndarray, "*shape"], what: str = "scores") -> None:
    """Refuse NaN and Inf.

    Raises:
        ValueError: With the number of each.
    """
    if np.isfinite(scores).all():
        return
    nan, inf = int(np.isnan(scores).sum()), int(np.isinf(scores).sum())
    raise ValueError(
        f"{what} hold {nan} NaN and {inf} Inf of {scores.size} values: look for overflow in the "
        "model's dtype (load it in float32 or bfloat16) and for a zero normaliser scale."
    )


DELTAS: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def tail_levels(deltas: Sequence[float]) -> Float64[np.ndarray, " delta"]:
    """The quantile level `1 - delta` of each delta.

    Raises:
        ValueError: There is no delta, or one lies outside (0, 1].
    """
    values = np.asarray(deltas, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"deltas {deltas!r} must be a sequence of one or more numbers in (0, 1].")
    wrong = [d for d in values.tolist() if not (0 < d <= 1) or math.isnan(d)]
    if wrong:
        raise ValueError(f"delta {wrong[0]} is outside (0, 1]: it is the share of tokens kept.")
    return 1.0 - values


class Position(NamedTuple):
    """Ranks below and above each quantile and the share of the way between them."""

    below: Int64[np.ndarray, " q"]
    above: Int64[np.ndarray, " q"]
    t: Float64[np.ndarray, " q"]


def positions(n: int, q: Sequence[float] | Float64[np.ndarray, " q"]) -> Position:
    """Where the quantiles of `n >= 1` sorted values lie.

    Raises:
        ValueError: There is no value, or a level lies outside [0, 1].
    """
    levels = np.asarray(q, dtype=np.float64)
    if n < 1:
        raise ValueError("a quantile of no values is undefined: give at least one value.")
    if not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"quantile levels {levels.tolist()} must lie in [0, 1].")
    virtual = (n - 1) * levels
    below = np.floor(virtual).astype(np.int64)
    above = np.minimum(below + 1, n - 1)
    return Position(below, above, virtual - below)


def interpolate(
    lower: Float64[np.ndarray, "*shape"],
    upper: Float64[np.ndarray, "*shape"],
    t: Float64[np.ndarray, "*#shape"],
) -> Float64[np.ndarray, "*shape"]:
    """The value a share `t` of the way from `lower` to `upper`, rounded as numpy rounds it."""
    difference = upper - lower
    early = lower + difference * t
    late = upper - difference * (1 - t)
    # The sum turns minus zero into zero, which numpy returns for it too.
    result: np.ndarray = np.where(t >= 0.5, late, early) + 0.0
    return result


def weighted_quantiles(
    values: Float[np.ndarray, " row"],
    weights: Float[np.ndarray, " row"],
    q: Sequence[float] | Float64[np.ndarray, " q"],
) -> Float64[np.ndarray, " q"]:
    """Quantiles of values that count by their weights.

    Args:
        values: Finite values, at least one.
        weights: Positive weights.
        q: Levels in [0, 1].

    Raises:
        ValueError: No value, or a weight that is not positive and finite.
    """
    if not len(values) or not (np.isfinite(weights).all() and (np.asarray(weights) > 0).all()):
        raise ValueError("weighted quantiles need at least one value and positive finite weights.")
    order = np.argsort(values, kind="stable")
    x, w = values[order].astype(np.float64), weights[order].astype(np.float64)
    if len(x) == 1:
        # p would be 0 / 0: a single value is every quantile.
        return np.full(len(q), x[0])
    before = np.concatenate([[0.0], np.cumsum(w)[:-1]])
    p = before / (before[-1] + w[-1] - w)
    # Exactly one, which rounding of the sums would miss; interpolation needs the end of its range.
    p[-1] = 1.0
    return np.interp(np.asarray(q, dtype=np.float64), p, x)


def balanced_weights(sample_of: Int[np.ndarray, " row"]) -> Float64[np.ndarray, " row"]:
    """One weight a sample, shared equally by its rows."""
    _, place, count = np.unique(sample_of, return_inverse=True, return_counts=True)
    return 1.0 / count[place]


Weights = Literal["tokens", "balanced"]
_TOKENS, _SAMPLES = "in-concept tokens", "samples with in-concept tokens"


def quantiles(
    values: Float[np.ndarray, " row"], q: Sequence[float] | Float64[np.ndarray, " q"]
) -> Float64[np.ndarray, " q"]:
    """Exact quantiles, to the bit those of `numpy.quantile(values.astype(float64), q)`.

    Args:
        values: Finite values of any float type, at least one.
        q: Levels in [0, 1].

    Raises:
        ValueError: No value, NaN or Inf among them, or a level outside [0, 1].

    Example:
        >>> quantiles(np.arange(5, dtype=np.float32), [0.5, 0.9])
        array([2. , 3.6])
    """
    check_finite(values, "values")
    return quantiles_sorted(np.sort(values), q)


def quantiles_sorted(
    ordered: Float[np.ndarray, "*batch row"], q: Sequence[float] | Float64[np.ndarray, " q"]
) -> Float64[np.ndarray, "q *batch"]:
    """Quantiles along the last axis of values sorted along it."""
    at = positions(ordered.shape[-1], q)
    lower = np.moveaxis(ordered[..., at.below], -1, 0).astype(np.float64)
    upper = np.moveaxis(ordered[..., at.above], -1, 0).astype(np.float64)
    return interpolate(lower, upper, at.t.reshape(-1, *[1] * (ordered.ndim - 1)))


def tail_thresholds(
    scores: Float[np.ndarray, "token *layer concept"],
    labels: Bool[np.ndarray, "token concept"],
    deltas: Sequence[float] = DELTAS,
    *,
    names: Sequence[str] | None = None,
    weights: Weights = "tokens",
    sample_of: Int[np.ndarray, " token"] | None = None,
) -> Float64[np.ndarray, "delta *layer concept"]:
    """Thresholds of supervised concepts: each column under its own labels.

    Args:
        scores: Token scores, one column a concept; any number of axes, such as layers, between.
        labels: Token labels. For sparse non-negative scores (SAE latents) give
            `labels & (scores > 0)`: zeros are no activation.
        deltas: Shares of the in-concept tokens that lie at or above the threshold.
        names: Names of the concepts, for warnings.
        weights: "tokens" counts every token once; "balanced" every sample once.
        sample_of: Sample of each token, needed for balanced weights.

    Returns:
        Thresholds in float64; +inf for a concept without in-concept tokens.

    Raises:
        ValueError: Shapes differ, NaN or Inf scores, a delta outside (0, 1], or balanced weights
            without `sample_of`.

    Warns:
        FewTokensWarning: A concept has fewer than 1 / delta in-concept tokens.
        EmptyConceptWarning: A concept has none.

    Example:
        >>> scores = np.arange(200, dtype=np.float32)[:, None]
        >>> tail_thresholds(scores, scores >= 100, [0.1])
        array([[189.1]])
    """
    levels = tail_levels(deltas)
    _check(scores, labels, weights, sample_of, same_columns=True)
    concepts = labels.shape[1]
    flat = scores.reshape(len(scores), -1)
    columns = _in_concept(flat, labels)
    warn_counts(_units(labels, weights, sample_of), deltas, names, unit=_unit(weights))
    result = np.full((len(levels), flat.shape[1]), np.inf)
    for k, values in enumerate(columns):
        if len(values):
            rows = labels[:, k % concepts]
            result[:, k] = _quantiles(values, levels, weights, sample_of, rows)
    return result.reshape(len(levels), *scores.shape[1:])


def tail_thresholds_cross(
    scores: Float[np.ndarray, "token *layer unit"],
    labels: Bool[np.ndarray, "token concept"],
    deltas: Sequence[float] = DELTAS,
    *,
    names: Sequence[str] | None = None,
    weights: Weights = "tokens",
    sample_of: Int[np.ndarray, " token"] | None = None,
    positive: bool = False,
) -> Float64[np.ndarray, "delta concept *layer unit"]:
    """Thresholds of every unit over every concept's in-concept tokens.

    Unsupervised units (clusters, SAE latents) belong to no concept yet; matching them needs the
    threshold of each pair (method of the paper's code, on the calibration split).

    Args:
        scores: Token scores, one column a unit; any axes between.
        labels: Token labels of the concepts.
        deltas: As in `tail_thresholds`, like the arguments that follow.
        names: Names of the concepts.
        weights: "tokens" or "balanced".
        sample_of: Sample of each token.
        positive: Quantiles of values above zero alone.

    Returns:
        Thresholds in float64; +inf for a concept without in-concept tokens, and, with `positive`,
        for a unit that is never above zero on them.

    Raises:
        ValueError: As in `tail_thresholds`; the number of columns is free.

    Warns:
        InactiveConceptWarning: With `positive`, no unit is above zero on a concept's tokens.
    """
    levels = tail_levels(deltas)
    _check(scores, labels, weights, sample_of, same_columns=False)
    flat = scores.reshape(len(scores), -1)
    check_finite(flat)
    warn_counts(_units(labels, weights, sample_of), deltas, names, unit=_unit(weights))
    result = np.full((len(levels), labels.shape[1], flat.shape[1]), np.inf)
    for c, rows in enumerate(np.ascontiguousarray(labels.T)):
        index = np.flatnonzero(rows)
        # Units whose values on this concept stay in cache while they are sorted.
        step = max(1, _BLOCK_BYTES // max(1, 4 * len(index)))
        for start in range(0, flat.shape[1] if len(index) else 0, step):
            part = slice(start, start + step)
            values = np.ascontiguousarray(flat[index, part].T)
            if weights == "tokens":
                values.sort(axis=-1)
                result[:, c, part] = _of_rows(values, levels, positive)
                continue
            for k, column in enumerate(values, start):
                above = column > (0 if positive else -np.inf)
                if above.any():
                    which = np.zeros_like(rows)
                    which[index[above]] = True
                    result[:, c, k] = _quantiles(column[above], levels, weights, sample_of, which)
    if positive:
        heard = np.isfinite(result).reshape(len(levels), labels.shape[1], -1).any(axis=(0, 2))
        warn_inactive(labels.sum(0), heard, names)
    return result.reshape(len(levels), labels.shape[1], *scores.shape[1:])


def _of_rows(
    ordered: Float[np.ndarray, "unit row"], levels: Float64[np.ndarray, " q"], positive: bool
) -> Float64[np.ndarray, "q unit"]:
    """Quantiles of sorted rows, of all values or of those above zero."""
    if not positive:
        return quantiles_sorted(ordered, levels)
    # Rows are sorted, so values above zero are the last ones; units with equally many go together.
    counts = (ordered > 0).sum(-1)
    result = np.full((len(levels), len(ordered)), np.inf)
    for n in np.unique(counts[counts > 0]):
        alike = counts == n
        result[:, alike] = quantiles_sorted(ordered[alike, -n:], levels)
    return result


def _in_concept(
    flat: Float[np.ndarray, "token column"], labels: Bool[np.ndarray, "token concept"]
) -> list[Float[np.ndarray, " _in_token"]]:
    parts: list[list[Float[np.ndarray, " _in_token"]]] = [[] for _ in range(flat.shape[1])]
    for rows in cached_blocks(flat):
        block = np.asarray(flat[rows])
        if not np.isfinite(block).all():
            # The whole table is counted only where something is wrong.
            check_finite(flat)
        for part, values in zip(parts, in_concept_values(block, labels[rows]), strict=True):
            part.append(values)
    return [np.concatenate(part) if part else np.zeros(0, flat.dtype) for part in parts]


def _quantiles(
    values: Float[np.ndarray, " in_token"],
    levels: Float64[np.ndarray, " q"],
    weights: Weights,
    sample_of: Int[np.ndarray, " token"] | None,
    rows: Bool[np.ndarray, " token"],
) -> Float64[np.ndarray, " q"]:
    if weights == "tokens" or sample_of is None:
        # In place: the values are a copy of this column already.
        values.sort()
        return quantiles_sorted(values, levels)
    return weighted_quantiles(values, balanced_weights(sample_of[rows]), levels)


def _units(
    labels: Bool[np.ndarray, "token concept"], weights: Weights, sample_of: Int[np.ndarray, " token"] | None
) -> Int[np.ndarray, " concept"]:
    if weights == "tokens" or sample_of is None:
        counts: np.ndarray = labels.sum(axis=0)
        return counts
    return np.array([len(np.unique(sample_of[rows])) for rows in labels.T])


def _unit(weights: Weights) -> str:
    return _TOKENS if weights == "tokens" else _SAMPLES


def _check(
    scores: Float[np.ndarray, "token *layer unit"],
    labels: Bool[np.ndarray, "token concept"],
    weights: str,
    sample_of: Int[np.ndarray, " token"] | None,
    *,
    same_columns: bool,
) -> None:
    if scores.ndim < 2 or labels.ndim != 2 or len(scores) != len(labels):
        raise ValueError(
            f"scores {scores.shape} must be [token, ..., unit] and labels {labels.shape} "
            "[token, concept] of the same tokens."
        )
    if same_columns and scores.shape[-1] != labels.shape[1]:
        raise ValueError(
            f"scores have {scores.shape[-1]} columns for {labels.shape[1]} concepts: use "
            "tail_thresholds_cross for units that are not the concepts."
        )
    if labels.dtype != np.bool_:
        raise ValueError(f"labels are {labels.dtype}: give booleans.")
    if weights not in ("tokens", "balanced"):
        raise ValueError(f"weights {weights!r} is unknown: use 'tokens' or 'balanced'.")
    if weights == "balanced" and (sample_of is None or len(sample_of) != len(scores)):
        raise ValueError("balanced weights need sample_of, one sample number a token.")
