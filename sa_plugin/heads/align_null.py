"""p-values from draws of a null, below what counting draws can reach, and the calls made of many.

*Exponential tail.* Let u be the (k + 1)-th largest of D draws and x_1 .. x_k the excesses of the k
larger ones. If the null's upper tail beyond u is exponential, the excesses are independent and
exponential (Rényi), and a new draw exceeds t > u with probability

    p = (k + 1) / (D + 1) * (1 + (t - u) / sum x)^-k

exactly, the uncertain rate included: no plug-in estimate, no correction. Up to u it is the count
(1 + #{draws >= t}) / (D + 1). Lighter tails (normal, bounded) make p too large, which is safe;
heavier ones too small. Bilinear forms of directions of unit length are bounded, and sums of
products of nearly normal variables have exponential tails at the most. Whether it held is measured
on the draws themselves: `calibration`. *Empirical*: the count alone, for which a test at level q
among m needs 20 m / q draws or more. The idea of a fitted tail: Knijnenburg and others,
Bioinformatics 25 (2009), i161.

Of many p-values BH (J. R. Stat. Soc. B 57, 1995) calls the k smallest, k the largest with
`p_(k) <= q k / m`; the expected share of false calls among all calls is then at most q if the tests
are independent or positively dependent. BY (Ann. Stat. 29, 2001) divides q by
`1 + 1/2 + ... + 1/m` and needs no assumption. If nothing is true, both make any call with
probability at most q.

The draws are refits on labels that mean nothing (`sa_plugin.concepts.nulls`, which also says what
such a null does not show). Neither correction bounds the share of false calls in a selection from
the calls.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float64

from sa_plugin._check import require_known

CORRECTIONS = ("BH", "BY")
TAILS = ("exponential", "empirical")
LEVELS = (0.05, 0.01, 1e-3, 1e-4, 1e-5)
"""At which `calibration` is measured."""

_LEAST_DRAWS, _LEAST_EXCESSES = 60, 25


def check_draws(tail: str, refits: int, tests: int, q: float) -> None:
    """Refuse too few draws of a null.

    Raises:
        ValueError: Refits below what the tail needs; the text says how many.
    """
    if refits < _LEAST_DRAWS:
        raise ValueError(f"refits is {refits}: the null needs {_LEAST_DRAWS} at least, such as 400.")
    needed = int(np.ceil(20 * tests / q))
    if tail == "empirical" and refits < needed:
        raise ValueError(
            f"refits is {refits}: counting draws needs 20 m / q = {needed:,} of them for {tests:,} "
            f"tests at level {q}. Ask for as many, for fewer concepts or layers, or for "
            "tail='exponential'."
        )


def p_values(
    observed: Float[np.ndarray, "*cell"], draws: Float[np.ndarray, "draw ..."], tail: str = "exponential"
) -> Float64[np.ndarray, "*cell"]:
    """One-sided: small where the observed value lies above its null.

    Args:
        observed: One value a cell.
        draws: Null draws of each cell.
        tail: "exponential" or "empirical".
    """
    counted = (1.0 + (draws >= observed).sum(0)) / (len(draws) + 1)
    if tail == "empirical":
        return np.asarray(counted, dtype=np.float64)
    fitted = _beyond(np.asarray(observed), *_upper(draws), len(draws))
    return np.asarray(np.where(np.isnan(fitted), counted, fitted))


def _upper(draws: Float[np.ndarray, "draw ..."]) -> tuple[np.ndarray, np.ndarray]:
    """The (k + 1)-th largest draw, and the sum of the excesses over it."""
    # A partition is enough: the largest k + 1, the smallest of them first.
    first = len(draws) - _excesses(len(draws)) - 1
    top = np.partition(draws.astype(np.float64), first, axis=0)[first:]
    return top[0], (top[1:] - top[0]).sum(0)


def _beyond(observed: np.ndarray, u: np.ndarray, total: np.ndarray, draws: int) -> np.ndarray:
    """The extrapolated p-value; NaN up to u, and where all draws are alike."""
    k = _excesses(draws)
    # (t - u) / sum x of the formula above; undefined up to u, and where no draw exceeds it.
    beyond = observed - u
    ratio = np.divide(beyond, total, out=np.full(beyond.shape, np.nan), where=(beyond > 0) & (total > 0))
    return np.asarray((k + 1) / (draws + 1) * (1 + ratio) ** -float(k))


def _excesses(draws: int) -> int:
    """How many of the draws the tail is fitted on: a tenth, 25 at least."""
    return max(_LEAST_EXCESSES, draws // 10)


def calibration(draws: Float[np.ndarray, "draw ..."], tail: str) -> dict[str, float]:
    """How often draws held out of the fit fall below each level; at most the level is right.

    Half of the draws make the null, the other half are tested against it, cell by cell.

    Args:
        draws: Null draws of each cell.
        tail: "exponential" or "empirical".
    """
    half = len(draws) // 2
    if half < _LEAST_DRAWS // 2:
        return {}
    fitted, held_out = draws[:half], draws[half : 2 * half]
    p = np.stack([(1.0 + (fitted >= one).sum(0)) / (half + 1) for one in held_out])
    if tail != "empirical":
        beyond = _beyond(held_out, *_upper(fitted), half)
        p = np.where(np.isnan(beyond), p, beyond)
    return {f"{level:g}": float((p <= level).mean()) for level in LEVELS}


def adjusted(p: Float[np.ndarray, "*cell"], correction: str = "BH") -> Float64[np.ndarray, "*cell"]:
    """Adjusted p-values: the smallest q at which each would be called.

    Args:
        p: All p-values of the family; NaN counts as no test.
        correction: "BH" or "BY".

    Raises:
        ValueError: Unknown correction.
    """
    require_known("correction", correction, CORRECTIONS)
    flat = np.asarray(p, dtype=np.float64).ravel()
    tested = np.flatnonzero(np.isfinite(flat))
    order = tested[np.argsort(flat[tested], kind="stable")]
    m = len(order)
    factor = np.sum(1 / np.arange(1, m + 1)) if correction == "BY" else 1.0
    raised = flat[order] * m * factor / np.arange(1, m + 1)
    out = np.full_like(flat, np.nan)
    out[order] = np.minimum(1.0, np.minimum.accumulate(raised[::-1])[::-1])
    return out.reshape(np.shape(p))


def call(p: Float[np.ndarray, "*cell"], q: float, correction: str = "BH") -> Bool[np.ndarray, "*cell"]:
    """Which tests are called at level q.

    Args:
        p: All p-values of the family.
        q: Bound on the expected share of false calls.
        correction: "BH" or "BY".

    Raises:
        ValueError: Unknown correction, or q outside (0, 1).
    """
    if not 0 < q < 1:
        raise ValueError(f"q is {q}: a share of false calls between 0 and 1 is meant, such as 0.05.")
    return np.asarray(adjusted(p, correction) <= q)
