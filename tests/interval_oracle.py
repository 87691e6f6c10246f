"""Intervals over documents, one cell at a time, as `statistics/interval.py` writes them."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import numpy as np
from scipy import optimize, stats

from sa_plugin.statistics import Drawn

LEVEL = 0.95


def slow_degrees(rows):
    """(tr M)^2 / tr M^2 of the quadratic form that s^2 is, for rows of one variance, as matrices."""
    h = np.array([n for n in rows if n]) / sum(rows)
    g = h / (1 - h)
    # T - T_d = g_d (mean of d - T) as weights on the documents' means, whose variances are 1 / h.
    c = np.diag(g) - np.outer(g, h)
    form = np.diag(1 / np.sqrt(h)) @ c.T @ c @ np.diag(1 / np.sqrt(h))
    return np.trace(form) ** 2 / np.trace(form @ form)


def slow_interval(columns, rows, kind, level=LEVEL):
    """The table of the module, one cell at a time."""
    t, m = columns[0], sum(n > 0 for n in rows)
    if m < 3 or math.isnan(t) or kind == "none":
        return math.nan, math.nan
    if kind == "quantile":
        s = np.std(columns[1:], ddof=1) * math.sqrt(m / (m - 1))
    else:
        s = math.sqrt((m - 1) / m * sum((one - t) ** 2 for one in columns[1:] if not math.isnan(one)))
    reach = stats.t.ppf((1 + level) / 2, max(1, min(m - 1, slow_degrees(rows)))) * s
    low, high = t - reach, t + reach
    if kind in ("share", "difference"):
        floor = 0 if kind == "share" else -1
        if s < 1e-12 or (kind == "share" and t in (0, 1)):
            edge = 1 - ((1 - level) / 2) ** (1 / m)
            low, high = t - edge, t + edge
        elif kind == "share":
            ends = (math.log(t / (1 - t)) + side * reach / (t * (1 - t)) for side in (-1, 1))
            low, high = (1 / (1 + math.exp(-end)) for end in ends)
        low, high = max(low, floor), min(high, 1)
    elif s < 1e-12:
        low = high = math.nan
    elif kind == "rate":
        low = max(low, 0)
    return low, high


def slow_detectable(columns, rows, kind, null, power=0.8, level=LEVEL):
    """The change whose noncentral t lies beyond the interval's quantile so often, found by bisection."""
    t, m = columns[0], sum(n > 0 for n in rows)
    if m < 3 or math.isnan(t) or kind == "none":
        return math.inf
    if kind == "quantile":
        s = np.std(columns[1:], ddof=1) * math.sqrt(m / (m - 1))
    else:
        s = math.sqrt((m - 1) / m * sum((one - t) ** 2 for one in columns[1:] if not math.isnan(one)))
    nu = max(1, min(m - 1, slow_degrees(rows)))
    reach = stats.t.ppf((1 + level) / 2, nu)
    eta = optimize.brentq(lambda x: stats.nct.sf(reach, nu, x) - power, 0, 100)
    if kind in ("share", "difference") and (s < 1e-12 or (kind == "share" and t in (0, 1))):
        change = 1 - ((1 - level) / 2) ** (1 / m)
    elif kind == "share":
        at = math.log(null / (1 - null)) + eta * s / (t * (1 - t))
        change = 1 / (1 + math.exp(-at)) - null
    else:
        change = eta * s
        if s < 1e-12:
            return math.inf
    return math.inf if kind in ("share", "difference") and null + change > 1 else change


def numbers_in(thing, path=""):
    """Every `Drawn` that a result holds, however deep, and its paired differences, by where it stands."""
    if isinstance(thing, Drawn):
        return {path: thing}
    if isinstance(thing, Mapping):
        parts = thing.items()
    elif isinstance(thing, list | tuple):
        parts = enumerate(thing)
    elif is_dataclass(thing):
        names = [one.name for one in fields(thing)]
        parts = [(k, getattr(thing, k)) for k in (*names, "difference", "differences") if hasattr(thing, k)]
    else:
        parts = ()
    return {k: v for name, one in parts for k, v in numbers_in(one, f"{path}/{name}").items()}
