"""Every detection method by name: which number of a sample it thresholds, where it comes from.

All methods share one search (`search.py`): the grid of deltas times the layers, times the units
of unsupervised banks, chosen by calibration F1. Names, in the order of every table:

- SuperActivators: highest token score; thresholds are quantiles of in-concept calibration TOKENS.
- MaxTok, MeanTok, LastTok, Top10%, length-only: statistics of `pool.py`; thresholds are quantiles
  of the statistic over positive calibration SAMPLES (arXiv 2512.05038, baselines).
- RandTok: the score at one random token, 20 draws with a selection each, metrics averaged.
- pooled: score of the sample's mean activation under vectors fitted on mean activations.
- CLS: the same of the class token, where the model has one (vision towers).
- MaxTok permuted: MaxTok of vectors fitted on labels permuted across samples. For unsupervised
  banks: of the units that match calibration labels permuted across samples.
- always-positive: fires on every sample. No search.
- any name of `ScoreTable.given`: a statistic of samples from elsewhere, such as the answers to a
  prompt ("Prompt" has a threshold beforehand and no search, "Prompt p(yes)" is searched).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.detection.pool import STATISTICS, max_token, random_rows, statistic_of
from sa_plugin.scores import ScoreTable

TAIL = "SuperActivators"
RANDOM = "RandTok"
POOLED = "pooled"
CLS = "CLS"
PERMUTED = "MaxTok permuted"
ALWAYS = "always-positive"
RANDOM_DRAWS = 20
_ORDER = (
    TAIL, "MaxTok", "MeanTok", "LastTok", RANDOM, CLS, POOLED, "Top10%", ALWAYS,
    "length-only", PERMUTED,
)  # fmt: skip


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
            "needs it in sa_plugin.detection.pool.STATISTICS again."
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


def missing(method: str, table: ScoreTable) -> str:
    """Why a method cannot be calibrated on these scores, or ""."""
    if method == POOLED and table.pooled is None:
        return "the bank has no pooled vectors"
    if method == CLS and table.cls is None:
        return "the bank has no vectors of class tokens"
    if method == PERMUTED and table.bank.supervised and table.permuted_max is None:
        return "the bank has no permuted-label vectors"
    return ""


def owns_units(method: str, bank: ConceptBank) -> bool:
    """Whether unit k of the method's statistic is concept k, so that nothing is matched."""
    return (bank.supervised and method != "length-only") or is_given(method)


def is_given(method: str) -> bool:
    """Whether a method's statistic comes from elsewhere: no layer, no unit."""
    return method not in method_names()


def statistics(
    method: str, table: ScoreTable, *, seed: int = 0, draw: int = 0
) -> Float[np.ndarray, "sample _layer _unit"]:
    """What a method thresholds, at every layer for every unit.

    Args:
        method: Name.
        table: Scores.
        seed: Of RandTok.
        draw: Number of RandTok's draw.

    Raises:
        ValueError: The method is unknown, or the table lacks what it needs.
    """
    return _of(method, table, table.scores, seed, draw)


def values(
    method: str,
    table: ScoreTable,
    layer: Int[np.ndarray, " concept"],
    unit: Int[np.ndarray, " concept"],
    *,
    seed: int = 0,
    draw: int = 0,
) -> Float[np.ndarray, "sample concept"]:
    """What a method thresholds, at one layer and unit for each concept.

    Args:
        method: Name.
        table: Scores.
        layer: Place of each concept's layer in the bank.
        unit: Each concept's unit.
        seed: Of RandTok.
        draw: Number of RandTok's draw.

    Raises:
        ValueError: The method is unknown, or the table lacks what it needs.
    """
    if is_given(method):
        return given_values(method, table, table.bank.concepts)
    if method in (POOLED, CLS) or (method == PERMUTED and table.bank.supervised):
        return _of(method, table, table.scores, seed, draw)[:, layer, unit]
    picked = column_scores(table, layer, unit)[:, None]
    found = _of(method, table, picked, seed, draw)[:, 0]
    return np.broadcast_to(found, (len(found), len(layer)))


def column_scores(
    table: ScoreTable, layer: Int[np.ndarray, " concept"], unit: Int[np.ndarray, " concept"]
) -> Float[np.ndarray, "token concept"]:
    """Token scores at one layer and unit for each concept."""
    out = np.empty((len(table.tokens), len(layer)), dtype=np.float32)
    for k, (at, column) in enumerate(zip(layer, unit, strict=True)):
        out[:, k] = table.scores[:, at, column]
    return out


def _of(
    method: str,
    table: ScoreTable,
    scores: Float[np.ndarray, "token layer unit"],
    seed: int,
    draw: int,
) -> Float[np.ndarray, "sample _layer _unit"]:
    reason = missing(method, table)
    if reason:
        raise ValueError(f"{method} cannot be computed: {reason}.")
    if is_given(method):
        return given_values(method, table, table.bank.concepts)[:, None]
    bounds = table.tokens.bounds
    if method == RANDOM:
        return np.asarray(scores[random_rows(bounds, seed, draw)])
    if method == POOLED:
        assert table.pooled is not None
        return table.pooled
    if method == CLS:
        assert table.cls is not None
        return table.cls
    if method == PERMUTED and table.bank.supervised:
        assert table.permuted_max is not None
        return table.permuted_max
    statistic = max_token if method in (TAIL, PERMUTED) else statistic_of(method)
    return statistic(scores, bounds)
