"""Tail thresholds: the (1 - delta) quantile of a concept's in-concept token scores.

    tau_c(delta) = Q_{1 - delta}({ s_{t,c} : token t is labelled c })

over the tokens of the calibration split, pooled over samples, linear interpolation, exact
(SuperActivators, arXiv 2512.05038, definition of the tail). A token of any sample, labelled or not,
is a SuperActivator of c when its score reaches tau_c(delta).

What a threshold does not show: by construction a share delta of the calibration tokens reaches it,
however good or bad the concept vector is; only out-of-concept tokens tell whether the tail is
reliable. Sparse activations (SAE latents) are zero or above, and zero is no activation: with
`positive`, quantiles are of a unit's values above zero, +inf where there are none. Long concept
mentions weigh more than short ones (`weights="balanced"` undoes that).

One sort serves every delta: numpy's float32 sort is an order of magnitude faster than
`torch.quantile`, which besides refuses more than 2**24 values and interpolates in float32.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from sa_plugin.tail.columns import blocks, pick
from sa_plugin.tail.counts import check_finite, warn_counts, warn_inactive
from sa_plugin.tail.deltas import DELTAS, tail_levels
from sa_plugin.tail.interpolation import interpolate, positions
from sa_plugin.tail.weighted import balanced_weights, weighted_quantiles

Weights = Literal["tokens", "balanced"]
_BLOCK_BYTES = 1 << 20
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
    for rows in blocks(flat):
        block = np.asarray(flat[rows])
        if not np.isfinite(block).all():
            check_finite(flat)
        for part, values in zip(parts, pick(block, labels[rows]), strict=True):
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
        values.sort()
        return quantiles_sorted(values, levels)
    return weighted_quantiles(values, balanced_weights(sample_of[rows]), levels)


def _units(
    labels: Bool[np.ndarray, "token concept"],
    weights: Weights,
    sample_of: Int[np.ndarray, " token"] | None,
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
