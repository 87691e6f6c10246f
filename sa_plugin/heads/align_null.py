"""Calls among all cells by max-T, and how many of a longer list are expected to be false.

A cell is a head and a concept, with two sides: its write (OV) and its read (QK). A joint draw gives
both sides of every cell from the same permuted labels. Each side of each cell is standardised by
the mean and the deviation of all the others of that cell, the found one among the draws' others:

    z_i = (x_i - mean of x_j) / deviation of x_j,  j != i, over the found form and the D draws

so that found and draws stay exchangeable where labels mean nothing. A form that is not above zero
amplifies nothing, however far it stands above a null that lies lower: its z counts as 0 at most, in
draws as in what is found (`amplifying`). T = min(z_OV, z_QK): both sides have to stand out.

*The call* (Westfall and Young 1993, step-down max-T). With cells in descending order of their found
T, the p of the k-th is

    p_k = (1 + #{draws: max over j >= k of T*_j >= T_k}) / (D + 1),   p_k = max(p_k, p_(k-1))

If labels mean nothing, any cell has p <= q with probability at most q: for every D, under any
dependence of the cells, whatever their tails. It is the largest T of a draw that counts, so no
tail is fitted and none needs thousands of draws.

*Draws where candidates are.* A p of D draws has a standard error of sqrt(p (1 - p) / (D + 1)). Draws may
end early only where nothing is to be called: once the smallest p lies above the level by more than
two standard errors (`nothing_near`). Otherwise all draws that were planned are made, more of the same
stream, and calls rest on all of them together. So a call is one that as many draws at once would have
made: ending early takes calls away and adds none, and the level holds for every D, whatever is looked at
on the way. To end early for a call as well would add some.

*Half heads.* That null is chance on both sides. Of cells with one true side and the other at chance
the number with T >= c is expected to be at most

    #{z_OV >= c} * share of draws of all cells with z_QK >= c + the same with sides exchanged

which `false_share` divides by the number of cells with T >= c.

What this does not show: the draws are refits on labels that mean nothing
(`sa_plugin.concepts.nulls`); a head that serves every real concept is called for every concept.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float64

LEAST_Z = 2.0
"""Below which no false share is counted."""
_LEAST_DRAWS = 19
# Standard errors within which a p is near the level.
_NEAR = 2.0


def check_draws(draws: int, level: float) -> None:
    """Refuse so few draws that no call is possible, or no deviation known.

    Raises:
        ValueError: The text says how many it takes.
    """
    needed = draws_needed(level)
    if draws < needed:
        raise ValueError(
            f"draws is {draws}: the smallest p of so many is 1 / {draws + 1}; a call at level {level:g} "
            f"and the null's deviations need {needed} draws at least. Draw more, such as 1000."
        )


def draws_needed(level: float) -> int:
    """The fewest draws whose smallest p, 1 / (draws + 1), reaches the level; `_LEAST_DRAWS` at least."""
    return max(_LEAST_DRAWS, int(np.ceil(1 / level - 1e-9)) - 1)


def by_the_others(values: Float[np.ndarray, "row *cell"]) -> Float64[np.ndarray, "row *cell"]:
    """Each value standardised by mean and deviation of the other rows; 0 where all are alike."""
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    off = x - x.mean(0)
    total = np.square(off).sum(0)
    # Without row i the mean moves by off_i / (n - 1), and the squares lose off_i^2 n / (n - 1).
    rest = np.maximum(total - np.square(off) * (n / (n - 1)), 0.0) / (n - 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = off * (n / (n - 1)) / np.sqrt(rest)
    return np.asarray(np.where(total > 0, z, 0.0))


def amplifying(
    z: Float64[np.ndarray, "*cell"], forms: Float[np.ndarray, "*cell"]
) -> Float64[np.ndarray, "*cell"]:
    """Deviations of forms above zero as they are, those of the others at most 0."""
    return np.asarray(np.where(forms > 0, z, np.minimum(z, 0.0)))


def step_down(
    found: Float64[np.ndarray, " cell"], draws: Float64[np.ndarray, "draw cell"]
) -> Float64[np.ndarray, " cell"]:
    """Adjusted p-values of step-down max-T; -inf is a cell that is not tested, its p NaN.

    Args:
        found: T of each cell.
        draws: T of each draw, from the same permutation for all cells.
    """
    order = np.argsort(-found, kind="stable")
    # From the last cell up: the largest T of a draw among a cell and all that come after it.
    largest = np.maximum.accumulate(draws[:, order[::-1]], axis=1)[:, ::-1]
    reached = (largest >= found[order]).sum(0)
    p = np.empty(len(found))
    p[order] = np.maximum.accumulate((1.0 + reached) / (len(draws) + 1))
    return np.where(np.isneginf(found), np.nan, p)


def is_near(p: Float64[np.ndarray, "*cell"], draws: int, level: float) -> Bool[np.ndarray, "*cell"]:
    """Whether so many other draws might say otherwise: p within two standard errors of the level."""
    error = np.sqrt(p * (1 - p) / (draws + 1))
    return np.asarray(np.abs(p - level) <= _NEAR * error)


def nothing_near(found: float, largest: Float64[np.ndarray, " draw"], level: float) -> bool:
    """Whether draws may end: the smallest p is above the level by more than two standard errors.

    Args:
        found: The largest T.
        largest: The same of each draw.
        level: Family-wise.
    """
    p = np.asarray((1.0 + (largest >= found).sum()) / (len(largest) + 1))
    return bool(p > level and not is_near(p, len(largest), level))


def critical_value(largest: Float64[np.ndarray, " draw"], level: float) -> float:
    """What the largest T has to exceed for any call.

    Args:
        largest: T of each draw, over all cells.
        level: Family-wise.
    """
    # p <= level where at most this many draws reach the found one.
    may_reach = int(np.floor(level * (len(largest) + 1) + 1e-9)) - 1
    return float(np.sort(largest)[::-1][may_reach])


def false_share(
    z_ov: Float64[np.ndarray, "*cell"],
    z_qk: Float64[np.ndarray, "*cell"],
    tail_ov: Float64[np.ndarray, " high"],
    tail_qk: Float64[np.ndarray, " high_too"],
    drawn: int,
) -> Float64[np.ndarray, "*cell"]:
    """Expected share of half heads among the cells with T at least a cell's own.

    Args:
        z_ov: Of the found forms.
        z_qk: The same.
        tail_ov: Those of all standardised draws of all cells that reach `LEAST_Z`.
        tail_qk: The same.
        drawn: How many draws of cells there were, tail or not.
    """
    lesser = np.minimum(z_ov, z_qk)

    def reach(values: np.ndarray) -> np.ndarray:
        return np.asarray(values.size - np.searchsorted(np.sort(values, axis=None), lesser))

    expected = (reach(z_ov) * reach(tail_qk) + reach(z_qk) * reach(tail_ov)) / drawn
    return np.asarray(
        np.where(lesser >= LEAST_Z, np.minimum(1.0, expected / np.maximum(1, reach(lesser))), 1.0)
    )
