"""Every detection method by name: which number of a sample it thresholds.

SuperActivators and MaxTok threshold the same number, the sample's highest token score `max_t s[t]`
(arXiv 2512.05038, section 4); they differ only in the calibration quantiles that make up the
threshold grid. All methods share one search (`sa_plugin.detection.search`): the grid of deltas times
the layers, times the units of unsupervised banks, chosen by calibration F1. Names, in the order of
every table:

- SuperActivators: highest token score; thresholds are quantiles of in-concept calibration TOKENS.
- MaxTok, MeanTok, LastTok, Top10%, length-only, and the rival poolings (`sa_plugin.detection.poolings`):
  the functions of `STATISTICS`; thresholds are quantiles of the statistic over positive calibration
  SAMPLES (arXiv 2512.05038, baselines). Candidates of a pooling's parameters stand in `GRIDS`.
- RandTok: the score at one random token, drawn by hash of the sample's name and document, so that the
  order of samples changes nothing; 20 draws with a selection each, metrics averaged.
- pooled: score of the sample's mean activation under vectors fitted on mean activations.
- CLS: the same of the class token, where the model has one (vision towers).
- MaxTok permuted: MaxTok of vectors fitted on labels permuted across samples. For unsupervised
  banks: of the units that match calibration labels permuted across samples.
- always-positive: fires on every sample. No search.
- any name of `ScoreTable.given`: a statistic of samples from elsewhere, such as the answers to a
  prompt ("Prompt" has a threshold beforehand and no search, "Prompt p(yes)" is searched).

A line added to `STATISTICS` is calibrated and evaluated beside the others; one with parameters needs a
line in `GRIDS` too. Every comparison with a threshold is in float64.

What a statistic does not show: whether the tokens it takes lie inside the concept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from sa_plugin._check import did_you_mean
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.detection.poolings import (
    Bounds,
    OfSamples,
    Parameter,
    Scores,
    k_in_window,
    last_token,
    length,
    log_sum_exp,
    max_minus_median,
    max_moving_average,
    max_rolling_mean,
    max_token,
    mean_token,
    softmax_pool,
    softplus_pool,
    top_k_mean,
    top_tenth_mean,
    trimmed_top_k,
)
from sa_plugin.detection.search import Calibrated
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.html import ALWAYS
from sa_plugin.statistics.hashed import mixed, name_keys, uniform

Statistic: TypeAlias = Callable[..., OfSamples]
"""Scores, bounds and the parameters of its grid to a number a sample, layer and unit."""

STATISTICS: dict[str, Statistic] = {
    "MaxTok": max_token,
    "MeanTok": mean_token,
    "LastTok": last_token,
    "Top10%": top_tenth_mean,
    "softmax pool": softmax_pool,
    "log-sum-exp": log_sum_exp,
    "top-k mean": top_k_mean,
    "trimmed top-k": trimmed_top_k,
    "softplus pool": softplus_pool,
    "max EMA": max_moving_average,
    "max rolling mean": max_rolling_mean,
    "k in a window": k_in_window,
    "max - median": max_minus_median,
    "length-only": length,
}


@dataclass(frozen=True)
class Grid:
    """Candidates for a statistic's parameters.

    Attributes:
        names: Of the parameters, in the order the statistic takes them.
        counted: How each is counted: "plainly"; in standard deviations of a column's calibration
            scores ("spread"); in these from their mean ("place").
        candidates: Each a number a parameter; of equally good ones the first is taken.
    """

    names: tuple[str, ...]
    counted: tuple[Literal["plainly", "spread", "place"], ...]
    candidates: tuple[tuple[float, ...], ...]

    def parameters(
        self,
        candidate: tuple[float, ...],
        mean: Float[np.ndarray, "layer unit"],
        sd: Float[np.ndarray, "layer unit"],
    ) -> tuple[Float[np.ndarray, "layer unit"], ...]:
        """A candidate in the scores' own unit, for every layer and unit."""
        scale = {"plainly": np.ones_like(sd), "spread": sd, "place": sd}
        return tuple(
            number * scale[how] + (mean if how == "place" else 0.0)
            for number, how in zip(candidate, self.counted, strict=True)
        )


def _numbers(name: str, *candidates: float) -> Grid:
    return Grid((name,), ("plainly",), tuple((number,) for number in candidates))


_TEMPERATURES = Grid(("temperature",), ("spread",), ((0.125,), (0.25,), (0.5,), (1.0,)))
GRIDS: dict[str, Grid] = {
    "softmax pool": _TEMPERATURES,
    "log-sum-exp": _TEMPERATURES,
    "top-k mean": _numbers("k", 2.0, 3.0, 5.0, 10.0),
    "trimmed top-k": _numbers("k", 1.0, 2.0, 4.0, 8.0),
    # Where the likelihood ratio puts them for separations of 1.5 to 6, shares of a third to a hundredth.
    "softplus pool": Grid(
        ("place", "temperature"), ("place", "spread"), tuple(product((1.0, 2.0, 3.0), (1 / 6, 1 / 3, 2 / 3)))
    ),
    "max EMA": _numbers("share", 0.2, 0.4, 0.6, 0.8),
    "max rolling mean": _numbers("width", 2.0, 3.0, 5.0, 10.0),
    "k in a window": Grid(
        ("k", "width"), ("plainly", "plainly"), ((2.0, 3.0), (2.0, 10.0), (3.0, 5.0), (3.0, 20.0))
    ),
}


def statistic_of(name: str) -> Statistic:
    """The statistic of that name.

    Raises:
        ValueError: Unknown; the text names the nearest.
    """
    if name in STATISTICS:
        return STATISTICS[name]
    hint = did_you_mean(name, STATISTICS)
    raise ValueError(
        f"statistic {name!r} is unknown{hint} A detector calibrated with a "
        "statistic of your own needs it in sa_plugin.detection.methods.STATISTICS again."
    )


def random_rows(bounds: Bounds, names: Sequence[str], seed: int, draw: int) -> Int[np.ndarray, " sample"]:
    """One uniformly drawn token row of every sample (RandTok), by hash of its name and nothing else.

    Args:
        bounds: Where samples start.
        names: Of the samples, with their documents.
        seed: Seed of the run.
        draw: Number of the draw; each is a stream of its own.
    """
    tokens = np.diff(bounds)
    place = uniform(mixed(name_keys(names, seed), draw))
    # One uniform number a sample, scaled to its length: neither other samples nor their order change it.
    return np.asarray(bounds[:-1] + np.minimum((place * tokens).astype(np.int64), tokens - 1))


TAIL = "SuperActivators"
RANDOM = "RandTok"
POOLED = "pooled"
CLS = "CLS"
PERMUTED = "MaxTok permuted"
RANDOM_DRAWS = 20
_ORDER = (
    TAIL,
    "MaxTok",
    "MeanTok",
    "LastTok",
    RANDOM,
    CLS,
    POOLED,
    "Top10%",
    *(name for name in STATISTICS if name in GRIDS),
    "max - median",
    ALWAYS,
    "length-only",
    PERMUTED,
)


def method_names() -> tuple[str, ...]:
    """All methods, in the order of tables; statistics added by the user come last."""
    return _ORDER + tuple(name for name in STATISTICS if name not in _ORDER)


def given_names(table: ScoreTable, *, searched: bool) -> tuple[str, ...]:
    """Methods of statistics that the table carries.

    Args:
        table: Scores.
        searched: Those whose threshold is to be calibrated, or those that have theirs.

    Raises:
        ValueError: One has the name of another method.
    """
    taken = [name for name in table.given if name in method_names()]
    if taken:
        raise ValueError(f"the statistic {taken[0]!r} has the name of a method: name it otherwise.")
    return tuple(k for k, one in table.given.items() if (one.threshold is None) == searched)


def given_values(
    name: str, table: ScoreTable, concepts: tuple[str, ...]
) -> Float[np.ndarray, "sample concept"]:
    """A carried statistic, its columns in the order of some concepts.

    Raises:
        ValueError: The table does not carry it, or it is NaN for a sample.
    """
    if name not in table.given:
        raise ValueError(
            f"statistic {name!r} is unknown to these scores: give them scores.with_statistic"
            f"({name!r}, ...). A detector calibrated with a function of token scores of your own "
            "needs it in sa_plugin.detection.methods.STATISTICS again."
        )
    found = table.given[name].values[:, [table.tokens.concepts.index(c) for c in concepts]]
    unknown = np.isnan(found).any(-1)
    if unknown.any():
        first = table.tokens.samples[int(unknown.argmax())].id
        raise ValueError(
            f"the statistic {name!r} is not known for {int(unknown.sum())} of {len(found)} "
            f"samples, {first!r} first: give it for every sample of this split."
        )
    return found


def draws_of(method: str) -> int:
    """How many times a method is calibrated and its metrics averaged."""
    return RANDOM_DRAWS if method == RANDOM else 1


def _stored(table: ScoreTable) -> dict[str, tuple[Float[np.ndarray, "sample layer _unit"] | None, str]]:
    """Methods whose statistic scoring left behind, and what is missing where it did not."""
    found = {
        POOLED: (table.pooled, "the bank has no pooled vectors"),
        CLS: (table.cls, "the bank has no vectors of class tokens"),
    }
    if table.bank.supervised:
        found[PERMUTED] = table.permuted_max, "the bank has no permuted-label vectors"
    return found


def missing(method: str, table: ScoreTable) -> str:
    """Why a method cannot be calibrated on these scores, or ""."""
    found, reason = _stored(table).get(method, (table.scores, ""))
    return reason if found is None else ""


def owns_units(method: str, bank: ConceptBank) -> bool:
    """Whether unit k of the method's statistic is concept k, so that nothing is matched."""
    return (bank.supervised and method != "length-only") or is_given(method)


def is_given(method: str) -> bool:
    """Whether a method's statistic comes from elsewhere: no layer, no unit."""
    return method not in method_names()


def statistics(
    method: str, table: ScoreTable, parameters: tuple[Parameter, ...] = (), *, seed: int = 0, draw: int = 0
) -> OfSamples:
    """What a method thresholds, at every layer for every unit.

    Args:
        method: Name.
        table: Scores.
        parameters: Of its grid, in the scores' unit.
        seed: Of RandTok.
        draw: Number of RandTok's draw.

    Raises:
        ValueError: The method is unknown, or the table lacks what it needs.
    """
    return _of(method, table, table.scores, parameters, seed, draw)


def values(
    method: str,
    table: ScoreTable,
    layer: Int[np.ndarray, " concept"],
    unit: Int[np.ndarray, " concept"],
    parameters: Float[np.ndarray, "concept parameter"] | None = None,
    *,
    seed: int = 0,
    draw: int = 0,
) -> Float[np.ndarray, "sample concept"]:
    """What a method thresholds, at one layer and unit for each concept, in float64.

    Args:
        method: Name.
        table: Scores.
        layer: Place of each concept's layer in the bank.
        unit: Each concept's unit.
        parameters: Each concept's, in the scores' unit; none for methods without.
        seed: Of RandTok.
        draw: Number of RandTok's draw.

    Raises:
        ValueError: The method is unknown, or the table lacks what it needs.
    """
    if is_given(method):
        return given_values(method, table, table.bank.concepts).astype(np.float64)
    if method in _stored(table):
        return _of(method, table, table.scores, (), seed, draw)[:, layer, unit].astype(np.float64)
    # Only the chosen columns are reduced: statistics treat columns one by one.
    picked = column_scores(table, layer, unit)[:, None]
    own = () if parameters is None else tuple(column[None] for column in parameters.T)
    found = _of(method, table, picked, own, seed, draw)[:, 0].astype(np.float64)
    return np.broadcast_to(found, (len(found), len(layer)))


def chosen_values(
    chosen: Calibrated, table: ScoreTable, *, seed: int = 0, draw: int = 0
) -> Float[np.ndarray, "sample concept"]:
    """What a calibrated method thresholds, at the layer, unit and parameters chosen for each concept.

    Args:
        chosen: The method's calibration.
        table: Scores.
        seed: Of RandTok.
        draw: Number of RandTok's draw.
    """
    at = chosen.layer
    own = chosen.parameters_at(at)
    return values(chosen.method, table, at, chosen.chosen_unit, own, seed=seed, draw=draw)


def column_scores(
    table: ScoreTable, layer: Int[np.ndarray, " concept"], unit: Int[np.ndarray, " concept"]
) -> Float[np.ndarray, "token concept"]:
    """Token scores at one layer and unit for each concept."""
    out = np.empty((len(table.tokens), len(layer)), dtype=np.float32)
    for k, (at, column) in enumerate(zip(layer, unit, strict=True)):
        out[:, k] = table.scores[:, at, column]
    return out


def _of(
    method: str, table: ScoreTable, scores: Scores, parameters: tuple[Parameter, ...], seed: int, draw: int
) -> OfSamples:
    found, reason = _stored(table).get(method, (None, ""))
    if found is not None:
        return found
    if reason:
        raise ValueError(f"{method} cannot be computed: {reason}.")
    if is_given(method):
        return given_values(method, table, table.bank.concepts)[:, None]
    bounds = table.tokens.bounds
    if method == RANDOM:
        return np.asarray(scores[random_rows(bounds, table.tokens.names, seed, draw)])
    statistic = max_token if method in (TAIL, PERMUTED) else statistic_of(method)
    return statistic(scores, bounds, *parameters)
