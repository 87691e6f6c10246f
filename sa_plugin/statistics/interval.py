"""The interval of a statistic over documents, from the statistic without each of them.

With T the statistic on the data, T_d without document d, and n_d the rows of document d that carry it
(positive samples for F1, tokens of the group for a mean over tokens), m documents having some:

    s^2 = (m - 1) / m * sum_d (T_d - T)^2
    h_d = n_d / sum n,   g_d = h_d / (1 - h_d)
    nu  = (sum g)^2 / (sum g^2 + (sum g^2)^2 - sum g^4)        (Bell and McCaffrey 2002; m - 1 for equal n_d)

| kind | interval |
|---|---|
| share, in [0, 1] | expit(logit T -+ t_nu s / (T (1 - T))) |
| difference, in [-1, 1] | T -+ t_nu s, clipped |
| mean, unbounded | T -+ t_nu s |
| rate, from 0 up | T -+ t_nu s, clipped |
| quantile | T -+ t_nu s*,  s* = sqrt(m / (m - 1)) times the deviation over bootstrap draws of documents |
| none | there is none: the statistic's bias is of the size of its spread (always-positive) |

Where no document moves a share or difference (s = 0), or a share is 0 or 1, documents agree and the
exact binomial bound on the share of documents that do takes over: T -+ (1 - alpha_2^(1/m)), alpha_2 =
(1 - level) / 2, clipped; a mean or a rate has no such bound and no interval there. A quantile is not smooth:
leaving one document out says little of how far it moves, hence draws. There is no interval below
`LEAST` documents that carry the statistic, and below `ENOUGH` the words "few documents" stand beside
it.

Many intervals read as one family (`family`): with r_k = (T_d - T)_d / |(T_d - T)_d| of cell k, what
chance does to all of them at once is drawn as

    x_k = sum_d r_kd z_d / sqrt(q_k(u) / nu_k),   z_d standard normal, q_k(u) the u-quantile of chi^2_nu_k

one z and u for all cells, so that methods that err on the same documents count as fewer tests. The
adjusted p of a cell is the share of draws whose smallest p over cells reaches its own (max-T of
Westfall and Young, on the scale of p because degrees of freedom differ); it is Bonferroni's for
independent cells and the plain p for equal ones.

What an interval could have shown (`detectable_of`): the smallest true change from its null that it
excludes with the power asked, at the standard error it has,

    change = eta s,   P(t'_nu(eta) > t_nu) = power,   t' noncentral Student

(of a share on the logit scale, as its interval). Over many documents eta is 2.80 for .8 at .95. Where
documents agree the change is the half-width of the exact bound; no change can be seen where there is no
interval, or where it would leave the range of a share or difference.

What an interval shows: the draw of the documents, with everything fitted before held fixed: vectors,
thresholds, layers, deltas. It says nothing about another train or calibration split, nor of a bias of
the estimate. Measured coverage: docs/findings/coverage.md.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Real
from scipy.special import chdtri, expit, logit, nctdtrinc, stdtr, stdtrit

Kind = Literal["share", "difference", "mean", "rate", "quantile", "none"]
Bounds: TypeAlias = tuple[Any, Any]
"""Lower and upper ends, arrays of one shape or two floats."""
LEAST, ENOUGH = 3, 10
"""Documents that carry a statistic: below the first no interval, below the second a caution."""
FEW, NONE = "few documents", "no interval: carried by"
"""The caution, and how the reason of a refusal begins."""
_FLAT = 1e-12
# Draws of a family: the adjusted p of a borderline star is known to .002.
_FAMILY_DRAWS = 10_000


def carriers(carried: Real[np.ndarray, "*shape document"]) -> Int[np.ndarray, "*shape"]:
    """Number of documents that carry a statistic."""
    return np.asarray((carried > 0).sum(-1))


def degrees(carried: Real[np.ndarray, "*shape document"]) -> Float64[np.ndarray, "*shape"]:
    """Bell-McCaffrey degrees of freedom for documents of so many rows, from 1 to m - 1."""
    share = carried / np.maximum(carried.sum(-1, keepdims=True), 1e-300)
    g = share / np.maximum(1 - share, 1e-12)
    u = (g**2).sum(-1)
    nu = g.sum(-1) ** 2 / np.maximum(u + u**2 - (g**4).sum(-1), 1e-12)
    return np.asarray(np.clip(nu, 1.0, np.maximum(carriers(carried) - 1, 1)))


def bounds_of(
    values: Float[np.ndarray, "*shape column"],
    carried: Real[np.ndarray, "*#shape document"],
    kind: np.ndarray,
    level: float,
) -> Bounds:
    """Both ends of every interval; NaN where there is none.

    Args:
        values: Column 0 the data; the others leave one document out each, or for quantiles are draws.
        carried: Rows of each document that carry the statistic.
        kind: Of each cell, a `Kind`, or of axes of length 1 that stand for all.
        level: In (0, 1).
    """
    t, kind = np.asarray(values[..., 0]), np.broadcast_to(kind, values.shape[:-1])
    m, nu = (np.broadcast_to(one, t.shape) for one in (carriers(carried), degrees(carried)))
    s, reach = deviation(values, m, kind), stdtrit(nu, (1 + level) / 2)
    share, bounded = np.asarray(kind == "share"), (kind == "share") | (kind == "difference")
    with np.errstate(all="ignore"):
        flat = _agree(t, s, share)
        low, high = (t + side * reach * s for side in (-1, 1))
        # The delta method: the deviation of a logit is that of the share over T (1 - T).
        wide = reach * s / (t * (1 - t))
        low, high = (
            np.where(share, expit(logit(t) + side * wide), end) for side, end in ((-1, low), (1, high))
        )
        edge = _edge(m, level)
        low, high = np.where(flat, t - edge, low), np.where(flat, t + edge, high)
    floor = np.where(share | (kind == "rate"), 0.0, np.where(bounded, -1.0, -np.inf))
    ceiling = np.where(bounded, 1.0, np.inf)
    # The last minimum and maximum are against rounding: an interval holds its estimate.
    low, high = np.minimum(np.maximum(low, floor), t), np.maximum(np.minimum(high, ceiling), t)
    missing = (m < LEAST) | np.isnan(t) | (kind == "none") | (~bounded & flat) | (values.shape[-1] < 2)
    return np.where(missing, np.nan, low), np.where(missing, np.nan, high)


def detectable_of(
    values: Float[np.ndarray, "*shape column"],
    carried: Real[np.ndarray, "*#shape document"],
    kind: np.ndarray,
    level: float,
    power: float,
    null: float,
) -> Float64[np.ndarray, "*shape"]:
    """Smallest true change from `null`, upwards, that the interval excludes it for with this power.

    Args:
        values: As for `bounds_of`.
        carried: Rows of each document that carry the statistic.
        kind: Of each cell.
        level: Of the interval.
        power: Chance of seeing it.
        null: Where nothing happens; between 0 and 1 for shares.

    Returns:
        In the statistic's unit; infinite where no change could have been seen.
    """
    t, kind = np.asarray(values[..., 0]), np.broadcast_to(kind, values.shape[:-1])
    m, nu = (np.broadcast_to(one, t.shape) for one in (carriers(carried), degrees(carried)))
    s, share = deviation(values, m, kind), np.asarray(kind == "share")
    # The noncentrality at which so much of the distribution lies beyond the interval's own quantile.
    eta = nctdtrinc(nu, 1 - power, stdtrit(nu, (1 + level) / 2))
    with np.errstate(all="ignore"):
        change = np.where(share, expit(logit(null) + eta * s / (t * (1 - t))) - null, eta * s)
        change = np.where(_agree(t, s, share), _edge(m, level), change)
    low, _ = bounds_of(values, carried, kind, level)
    beyond = ((kind == "difference") | share) & (null + change > 1)
    return np.asarray(np.where(np.isnan(low) | beyond, np.inf, change))


def _agree(
    t: Float[np.ndarray, "*shape"], s: Float64[np.ndarray, "*shape"], share: Bool[np.ndarray, "*shape"]
) -> Bool[np.ndarray, "*shape"]:
    """Where no document moves the statistic, or a share is 0 or 1: the exact bound takes over."""
    return np.asarray((s <= _FLAT) | (share & ((t <= 0) | (t >= 1))))


def _edge(m: Int[np.ndarray, "*shape"], level: float) -> Float64[np.ndarray, "*shape"]:
    """Clopper and Pearson's bound on the share of documents that differ, where none of m does."""
    return np.asarray(1 - ((1 - level) / 2) ** (1 / np.maximum(m, 1)))


def deviation(
    values: Float[np.ndarray, "*shape column"], m: Int[np.ndarray, "*shape"], kind: np.ndarray
) -> Float64[np.ndarray, "*shape"]:
    """Standard error of each statistic."""
    # Undefined without d: d alone carries it, and m is 1.
    moved = np.nan_to_num(values[..., 1:] - values[..., :1])
    s = np.asarray(np.sqrt((m - 1) / np.maximum(m, 1) * (moved**2).sum(-1)))
    drawn = kind == "quantile"
    if drawn.any():
        draws, of = values[drawn][:, 1:], m[drawn]
        known = np.isfinite(draws)
        n = np.maximum(known.sum(-1), 1)
        mean = np.where(known, draws, 0.0).sum(-1) / n
        square = (np.where(known, draws - mean[:, None], 0.0) ** 2).sum(-1)
        s[drawn] = np.sqrt(square / np.maximum(n - 1, 1) * of / np.maximum(of - 1, 1))
    return s


def family(
    values: Float[np.ndarray, "*shape column"],
    carried: Real[np.ndarray, "*#shape document"],
    kind: np.ndarray,
    seed: int = 0,
) -> Float64[np.ndarray, "*shape"]:
    """The p of every cell against zero, adjusted for all cells (max-T); NaN where there is no interval.

    Args:
        values: As for `bounds_of`, of one set of documents.
        carried: Rows of each document that carry the statistic.
        kind: Of each cell.
        seed: Of the draws.
    """
    shape = values.shape[:-1]
    cells, kind = values.reshape(-1, values.shape[-1]), np.broadcast_to(kind, shape).ravel()
    m, nu = (np.broadcast_to(one, shape).ravel() for one in (carriers(carried), degrees(carried)))
    low = np.ravel(bounds_of(values, carried, kind.reshape(shape), 0.95)[0])
    counted = np.isfinite(low) & (kind != "quantile")
    t, s, m, nu = (one[counted] for one in (cells[:, 0], deviation(cells, m, kind), m, nu))
    flat = s <= _FLAT
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(flat, np.minimum(2 * (1 - np.abs(t)) ** m, 1), 2 * stdtr(nu, -np.abs(t) / s))
    moved = np.nan_to_num(cells[counted][:, 1:] - cells[counted][:, :1])[~flat]
    length = np.sqrt((moved**2).sum(-1, keepdims=True))
    adjusted = np.full(len(cells), np.nan)
    if counted.any():
        least = _least_p(moved / length, nu[~flat], int(flat.sum()), seed)
        reached = (least <= p[:, None]).sum(1)
        # Chance in the draws must not make a family of one more sure than the cell itself.
        adjusted[counted] = np.maximum((reached + 1) / (len(least) + 1), p)
    return adjusted.reshape(shape)


def _least_p(
    direction: Float64[np.ndarray, "cell document"], nu: Float64[np.ndarray, " cell"], alone: int, seed: int
) -> Float64[np.ndarray, " draw"]:
    """Smallest p over cells in every draw; `alone` cells have no direction and are taken as independent."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((_FAMILY_DRAWS, direction.shape[1])) @ direction.T
    u = rng.random(_FAMILY_DRAWS)[:, None]
    p = [2 * stdtr(nu, -np.abs(z) / np.sqrt(chdtri(nu, 1 - u) / nu)), rng.random((_FAMILY_DRAWS, alone))]
    return np.asarray(np.concatenate(p, axis=1).min(1))
