"""What a threshold needs of its tokens: enough of them, all of them finite.

The (1 - delta) quantile of n tokens rests on about delta * n of them. Below one it interpolates
near the maximum of a handful of tokens, and says more about that handful than about the tail.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


class FewTokensWarning(UserWarning):
    """A concept has fewer than 1 / delta in-concept tokens."""


class EmptyConceptWarning(UserWarning):
    """A concept has no in-concept token; its threshold is +inf and never fires."""


class InactiveConceptWarning(UserWarning):
    """No unit is ever above zero on a concept's tokens; its thresholds are +inf and never fire."""


# Concepts named in one warning; their numbers are in Detector.table().
SHOWN = 3


def warn_counts(
    counts: Int[np.ndarray, " concept"],
    deltas: Sequence[float],
    names: Sequence[str] | None = None,
    *,
    unit: str = "in-concept tokens",
    stacklevel: int = 3,
) -> None:
    """Warn of concepts with no token, or too few for a delta.

    Args:
        counts: In-concept tokens of each concept (or samples, with balanced weights).
        deltas: The deltas asked for.
        names: Names of the concepts; by default their numbers.
        unit: What was counted.
        stacklevel: Of the warning.
    """
    sizes = [int(n) for n in counts]
    label = [repr(n) for n in names] if names is not None else [f"#{k}" for k in range(len(sizes))]
    empty = [name for name, n in zip(label, sizes, strict=True) if n == 0]
    if empty:
        warnings.warn(
            f"no {unit} for {', '.join(empty)}: the threshold is +inf and never fires. Label "
            "tokens of the concept in this split, or leave it out.",
            EmptyConceptWarning,
            stacklevel=stacklevel,
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
            f"{'; '.join(few[:SHOWN])}{_more(len(few))}. Their "
            "thresholds interpolate near the maximum; use a larger delta or more data.",
            FewTokensWarning,
            stacklevel=stacklevel,
        )


def warn_inactive(
    counts: Int[np.ndarray, " concept"],
    active: Bool[np.ndarray, " concept"],
    names: Sequence[str] | None = None,
    *,
    unit: str = "in-concept tokens",
    stacklevel: int = 3,
) -> None:
    """Warn of concepts that have tokens, none of which any unit is active on.

    Args:
        counts: In-concept tokens of each concept.
        active: Whether any unit is above zero on any of them.
        names: Names of the concepts; by default their numbers.
        unit: What was counted.
        stacklevel: Of the warning.
    """
    label = [repr(n) for n in names] if names is not None else [f"#{k}" for k in range(len(counts))]
    silent = [n for n, k, yes in zip(label, counts, active, strict=True) if k and not yes]
    if silent:
        warnings.warn(
            f"no unit is above zero on any of the {unit} of {', '.join(silent)}: the thresholds "
            "are +inf and the concept never fires. Prune less, or use another SAE or layer.",
            InactiveConceptWarning,
            stacklevel=stacklevel,
        )


def _more(n: int) -> str:
    return f"; and {n - SHOWN} more" if n > SHOWN else ""


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
