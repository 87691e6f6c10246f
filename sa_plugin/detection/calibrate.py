"""Calibration: everything a detector is, from the calibration split alone.

    tau_c(delta) = Q_{1-delta}({ s[t, c] : token t of the calibration split is labelled c })

at every layer and delta; then unit, delta and layer by calibration F1 (`search.py`; arXiv
2512.05038, section 3.2). Every baseline goes through the same search over the same grid, its
quantiles being those of its own per-sample number over positive calibration samples.

Latents of an SAE are zero or above, and zero is no activation: their quantiles, those of every
statistic of theirs included, are of values above zero, +inf where there are none (1.6 of the
method's SAE variant). A delta is then a share of those.

What calibration does not show: how well the detector works. Quantile and choice use the same
samples, so calibration F1 is optimistic; `Detector.evaluate` reads held-out ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sa_plugin._check import users_line
from sa_plugin._face import face
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.concepts.nulls import permute_labels
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection import methods
from sa_plugin.detection.calibration import token_cuts
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import (
    Seen,
    check_bank_data,
    check_finite_scores,
    check_scores,
    known_tokens,
    labels_of,
    rows_of_samples,
    unknown_of,
)
from sa_plugin.detection.poolings import column_spread, max_token
from sa_plugin.detection.promised import guard_split, promised
from sa_plugin.detection.search import Calibrated, best_of, search_matched, search_own
from sa_plugin.host.protocol import Host
from sa_plugin.passes.run import MEMORY_BUDGET
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.html import ALWAYS
from sa_plugin.statistics.conformal import Promise
from sa_plugin.statistics.quantile import (
    DELTAS,
    EmptyConceptWarning,
    FewTokensWarning,
    InactiveConceptWarning,
    tail_thresholds,
    tail_thresholds_cross,
    warn_counts,
)


@face
def calibrate(
    host: Host | None,
    data: ConceptData,
    bank: ConceptBank,
    *,
    scores: ScoreTable | None = None,
    deltas: Sequence[float] = DELTAS,
    seed: int = 0,
    promise: Promise | None = None,
    guard: Any = None,
) -> Detector:
    """Choose a threshold, delta and layer for each concept, and calibrate every baseline alike.

    With a promise layers and units are chosen so too, and the threshold is then the one that keeps it,
    from documents that chose nothing. It is the detector's threshold wherever it decides.

    Costs one forward pass for each calibration and guard sample, or none with `scores`.

    Args:
        host: An attached model; None if scores are given and fresh samples never will be.
        data: Labelled samples; only the calibration split is used, and for a promise its guard.
        bank: Concept vectors.
        scores: `score(host, data, bank)`, holding the calibration split.
        deltas: Grid of deltas, shares of in-concept tokens in (0, 1].
        seed: Of RandTok's draws and of the permuted matching.
        promise: A rate of false alarms that the thresholds are to keep.
        guard: Documents to make it from, which chose nothing: samples in any form that `Detector.find` takes;
            texts without labels have none of the concepts. By default `data.guard`.

    Returns:
        The detector, with the whole calibration table.

    Raises:
        ValueError: The scores are of another bank or other data, hold NaN, lack a concept's
            labels; a delta is outside (0, 1]; there is neither host nor scores; or the promise cannot be
            made: no guard, documents that chose something, too few of them.

    Warns:
        FewTokensWarning, EmptyConceptWarning: A concept has few or no calibration tokens; few on
            which its latent is active.
        InactiveConceptWarning: No latent of an SAE is ever active on a concept's tokens.
        OtherDataWarning: The bank was fitted on other data.

    Example:
        >>> detector = calibrate(host, data, fit(host, data))  # doctest: +SKIP
        >>> detector.evaluate(data.test)  # doctest: +SKIP
    """
    check_bank_data(bank, data)
    split = guard_split(host, data, bank, promise, guard)
    table = _cal_scores(host, data, bank, scores)
    grid = tuple(sorted({float(d) for d in deltas}))
    token_labels, sample_labels = labels_of(table, bank.concepts)
    found = _calibrate_tail(table, token_labels, sample_labels, grid)
    made, tail = None, found
    if promise is not None and split is not None:
        made, thresholds = promised(host, bank, found, promise, split, scores)
        tail = replace(found, promised=thresholds)
    baselines, absent = _calibrate_baselines(table, sample_labels, grid, seed)
    cuts = token_cuts(found, table, token_labels, known_tokens(table.tokens, bank.concepts))
    if _sparse(table):
        _warn_few_active(bank.concepts, found.chosen_delta, cuts.n_tokens)
    return Detector(
        concepts=bank.concepts,
        bank=bank,
        tail=tail,
        baselines=baselines,
        missing=absent,
        cuts=cuts,
        seen=Seen.of(data).guarded_by(split),
        seed=seed,
        unknown=unknown_of(table.tokens, bank.concepts),
        guard=made,
        host=host,
    )


def _cal_scores(
    host: Host | None, data: ConceptData, bank: ConceptBank, scores: ScoreTable | None
) -> ScoreTable:
    if scores is None:
        if host is None:
            raise ValueError("there is neither a host nor scores: give one of the two.")
        from sa_plugin.scores.score import score

        scores = score(host, data, bank, splits=("cal",))
    check_scores(scores, bank, bank.concepts)
    table = scores.select(rows_of_samples(scores, data.cal.samples))
    check_finite_scores(table)
    return table


def _calibrate_tail(
    table: ScoreTable,
    token_labels: Bool[np.ndarray, "token concept"],
    sample_labels: Bool[np.ndarray, "sample concept"],
    deltas: tuple[float, ...],
) -> Calibrated:
    statistic = methods.statistics(methods.TAIL, table)
    if methods.owns_units(methods.TAIL, table.bank):
        own = _in_concept_thresholds(table, token_labels, deltas)
        return search_own(methods.TAIL, statistic, sample_labels, own, deltas)
    cross = tail_thresholds_cross(
        table.scores, token_labels, deltas, names=table.bank.concepts, positive=_sparse(table)
    )
    return search_matched(methods.TAIL, statistic, sample_labels, _layer_first(cross), deltas)


def _in_concept_thresholds(
    table: ScoreTable, labels: Bool[np.ndarray, "token concept"], deltas: tuple[float, ...]
) -> Float[np.ndarray, "layer delta concept"]:
    """Quantiles of in-concept scores; layer by layer from the stored scores where they are too many."""
    names, layers = table.bank.concepts, table.scores.shape[1]
    if 4 * int(labels.sum()) * layers <= MEMORY_BUDGET:
        return tail_thresholds(table.scores, labels, deltas, names=names).swapaxes(0, 1)
    from sa_plugin.statistics.chunks import ScoreChunks, streaming_thresholds

    found = []
    for k in range(layers):
        with warnings.catch_warnings():
            if k:
                # Counts of tokens are those of the first layer: one warning is enough.
                warnings.simplefilter("ignore", FewTokensWarning)
                warnings.simplefilter("ignore", EmptyConceptWarning)
            found.append(streaming_thresholds(ScoreChunks(table.scores[:, k], labels), deltas, names=names))
    return np.stack(found)


def _calibrate_baselines(
    table: ScoreTable, labels: Bool[np.ndarray, "sample concept"], deltas: tuple[float, ...], seed: int
) -> tuple[dict[str, tuple[Calibrated, ...]], dict[str, str]]:
    warn_counts(labels.sum(0), deltas, table.bank.concepts, unit="positive calibration samples (baselines)")
    baselines: dict[str, tuple[Calibrated, ...]] = {}
    absent: dict[str, str] = {}
    spread = column_spread(table.scores)
    for method in (*methods.method_names(), *methods.given_names(table, searched=True)):
        if method in (methods.TAIL, ALWAYS) or (method == methods.CLS and table.cls is None):
            continue
        reason = methods.missing(method, table)
        if reason:
            absent[method] = reason
            continue
        if method == methods.PERMUTED and not table.bank.supervised:
            baselines[method] = (_permuted_match(table, labels, deltas, seed),)
            continue
        if method in methods.GRIDS:
            baselines[method] = (_search_grid(method, table, labels, deltas, spread),)
            continue
        baselines[method] = tuple(
            _search_on(method, table, labels, deltas, methods.statistics(method, table, seed=seed, draw=k))
            for k in range(methods.draws_of(method))
        )
    return baselines, absent


def _search_grid(
    method: str,
    table: ScoreTable,
    labels: Bool[np.ndarray, "sample concept"],
    deltas: tuple[float, ...],
    spread: tuple[Float[np.ndarray, "layer unit"], Float[np.ndarray, "layer unit"]],
) -> Calibrated:
    """The search of every candidate for a statistic's parameters, and the best of them."""
    grid = methods.GRIDS[method]

    def each() -> Iterator[tuple[Calibrated, tuple[Float[np.ndarray, "layer unit"], ...]]]:
        for candidate in grid.candidates:
            own = grid.parameters(candidate, *spread)
            yield _search_on(method, table, labels, deltas, methods.statistics(method, table, own)), own

    return best_of(each())


def _search_on(
    method: str,
    table: ScoreTable,
    labels: Bool[np.ndarray, "sample concept"],
    deltas: tuple[float, ...],
    statistic: Float[np.ndarray, "sample layer unit"],
) -> Calibrated:
    own, given = methods.owns_units(method, table.bank), methods.is_given(method)
    found = _search(method, statistic, labels, deltas, own, positive=_sparse(table) and not given)
    # What was tried to make a statistic counts with what its threshold was chosen from.
    before = table.given[method].candidates if given else 1
    return replace(found, candidates=found.candidates * before)


def _warn_few_active(
    concepts: Sequence[str], delta: Float[np.ndarray, " concept"], active: Int[np.ndarray, " concept"]
) -> None:
    few = [
        f"{name} rests on {n} (delta {d:g})"
        for name, n, d in zip(concepts, active.tolist(), delta.tolist(), strict=True)
        if 0 < n * d < 1
    ]
    if few:
        warnings.warn(
            f"thresholds of {len(few)} of {len(concepts)} concepts rest on fewer than 1 / delta "
            f"tokens where the matched latent is above zero: {'; '.join(few)}. They lie near the "
            "highest of them; prune more, or take them for a guess.",
            FewTokensWarning,
            stacklevel=users_line(),
        )


def _sparse(table: ScoreTable) -> bool:
    return table.bank.token.scoring == "latent"


def _search(
    method: str,
    statistic: Float[np.ndarray, "sample layer unit"],
    labels: Bool[np.ndarray, "sample concept"],
    deltas: tuple[float, ...],
    own: bool,
    positive: bool = False,
) -> Calibrated:
    with warnings.catch_warnings():
        # One warning for all baselines was given; a second for each draw would bury it.
        warnings.simplefilter("ignore", FewTokensWarning)
        warnings.simplefilter("ignore", EmptyConceptWarning)
        warnings.simplefilter("ignore", InactiveConceptWarning)
        if own:
            thresholds = _own_thresholds(statistic, labels, deltas, positive)
            return search_own(method, statistic, labels, thresholds, deltas)
        cross = tail_thresholds_cross(statistic, labels, deltas, positive=positive)
        return search_matched(method, statistic, labels, _layer_first(cross), deltas)


def _permuted_match(
    table: ScoreTable, labels: Bool[np.ndarray, "sample concept"], deltas: tuple[float, ...], seed: int
) -> Calibrated:
    """MaxTok of units chosen on permuted labels; delta and layer are chosen on the true ones."""
    # Each sample is a row of its own here: labels of samples in another order.
    shuffled = permute_labels(labels, np.arange(len(labels) + 1), np.random.default_rng([seed, 1]))
    statistic = max_token(table.scores, table.tokens.bounds)
    positive = _sparse(table)
    unit = _search(methods.PERMUTED, statistic, shuffled, deltas, own=False, positive=positive).unit
    chosen = np.take_along_axis(statistic, unit[None], axis=-1)
    found = _search(methods.PERMUTED, chosen, labels, deltas, own=True, positive=positive)
    return replace(found, unit=unit)


def _own_thresholds(
    statistic: Float[np.ndarray, "sample layer concept"],
    labels: Bool[np.ndarray, "sample concept"],
    deltas: tuple[float, ...],
    positive: bool,
) -> Float[np.ndarray, "layer delta concept"]:
    if not positive:
        return tail_thresholds(statistic, labels, deltas).swapaxes(0, 1)
    layers = np.moveaxis(statistic, 1, 0)
    return np.stack([tail_thresholds(one, labels & (one > 0), deltas) for one in layers])


def _layer_first(
    cross: Float[np.ndarray, "delta concept layer unit"],
) -> Float[np.ndarray, "layer delta concept unit"]:
    return np.moveaxis(cross, 2, 0)
