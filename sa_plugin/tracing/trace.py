"""How a concept's tail forms, layer by layer.

At every layer of a bank the scores of in-concept and out-of-concept tokens are compared on the test
split: `sa_plugin.tracing.measures` defines what is measured and what it does not show. Thresholds
and background quantiles are fixed on the calibration split before. Intervals resample source
documents and are conditional on the vectors and on those cuts: another train or calibration split
would move them too.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int
from tqdm.auto import tqdm

from sa_plugin._names import require_type
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data import ConceptData
from sa_plugin.detection.guard import document_names
from sa_plugin.host import Host
from sa_plugin.scores import ScoreTable
from sa_plugin.statistics.bootstrap import Resamples, resample_documents, resampled_sums
from sa_plugin.statistics.interval import percentile_bounds
from sa_plugin.statistics.over_concepts import mean_over_concepts
from sa_plugin.tail.counts import EmptyConceptWarning, FewTokensWarning, check_finite
from sa_plugin.tail.deltas import tail_levels
from sa_plugin.tracing.cells import Columns, Cuts, Out, cells, cuts
from sa_plugin.tracing.densities import DensityGrid
from sa_plugin.tracing.measures import TAIL_LEVEL, measure
from sa_plugin.tracing.result import Estimates, TailTrace, TraceSettings


class UndefinedMeasureWarning(UserWarning):
    """A concept lacks tokens or samples for some measures, which are NaN."""


def trace(
    host: Host | None = None,
    data: ConceptData | None = None,
    bank: ConceptBank | None = None,
    *,
    scores: ScoreTable | None = None,
    split: str = "test",
    delta: float = 0.05,
    out: Out = "negative",
    columns: Int[np.ndarray, "*layer concept"] | None = None,
    frozen_sd: Float[np.ndarray, "layer concept"] | None = None,
    draws: int = 1000,
    quantile_draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> TailTrace:
    """Measure in- against out-of-concept scores at every layer of a bank.

    Costs no forward pass when `scores` is given; otherwise one for each sample of the calibration
    and measured splits.

    Args:
        host: An attached model; only without `scores`, like `data` and `bank`.
        data: Labelled samples.
        bank: Concept vectors.
        scores: The shared score table, with the measured split and, for cuts that are fixed
            beforehand, the calibration split.
        split: Split to measure.
        delta: Share of the in-concept tokens that count as tail.
        out: Out-of-concept tokens: "negative" takes those of negative samples, "all" every
            unlabelled token.
        columns: Unit of each concept, for unsupervised banks: `[concept]`, or `[layer, concept]`
            when each layer was matched by itself.
        frozen_sd: Deviations of the negatives' scores that tail gaps are divided by, such as
            `trace(...)["sd_out"].value` of the unablated run; by default their own.
        draws: Bootstrap draws over documents.
        quantile_draws: Draws for the L-skewness.
        level: Of the intervals.
        seed: Of the draws.
        progress: Whether to show a bar.

    Returns:
        Measures by layer and concept.

    Raises:
        TypeError: `scores` is no ScoreTable, or one is given as the host.
        ValueError: Neither scores nor host, data and bank are given; units are not concepts and no
            columns are given; the split was not scored or has one document; NaN or Inf scores.

    Warns:
        UndefinedMeasureWarning: A concept has no in-concept token, or no positive or no negative
            sample; its measures are NaN.

    Example:
        >>> trace(scores=table).summary()  # doctest: +SKIP
    """
    table = _table(host, data, bank, scores, split, progress)
    tail_levels([delta])
    place = _columns(table, columns)
    here = Columns(table.split(split), place, _out(out))
    fixed_on = "cal" if "cal" in table.tokens.split_of else split
    there = here if fixed_on == split else Columns(table.split(fixed_on), place, out)
    _check_sd(frozen_sd, place)
    _warn_undefined(here)
    drawn = resample_documents(document_names(here.table.tokens), draws=draws, seed=seed)
    few = min(quantile_draws, draws)
    run = _Run(here, there, drawn.with_data(), delta, few, level, frozen_sd)
    settings = TraceSettings(
        split, fixed_on, out, delta, round(1 - TAIL_LEVEL, 6), level, draws, few, seed,
        drawn.n_documents,
    )  # fmt: skip
    return _assemble(run, settings, progress)


@dataclass(frozen=True, eq=False)
class _Run:
    here: Columns
    there: Columns
    resamples: Resamples
    delta: float
    quantile_draws: int
    level: float
    frozen_sd: Float[np.ndarray, "layer concept"] | None

    def layer(
        self, at: int, grid: DensityGrid
    ) -> tuple[Cuts, dict[str, Float64[np.ndarray, "concept _draw"]]]:
        """Cuts and measures of one layer; its densities go into the grid."""
        check_finite(self.here.scores(at), f"scores at layer {self.here.table.bank.layers[at]}")
        cut = _quiet_cuts(self.there, at, self.delta)
        found: dict[str, list[np.ndarray]] = {}
        every = cells(self.here, at, cut, self.resamples, self.frozen_sd)
        for k, cell in enumerate(every):
            grid.fill(at, k, cell.inside.values, cell.outside.values)
            for name, values in measure(cell, self.delta, self.quantile_draws).items():
                found.setdefault(name, []).append(values)
        return cut, {name: np.stack(values) for name, values in found.items()}


def _assemble(run: _Run, settings: TraceSettings, progress: bool) -> TailTrace:
    table = run.here.table
    n_layers, concepts = len(table.bank.layers), table.tokens.concepts
    grid = DensityGrid(n_layers, len(concepts))
    positives = resampled_sums(table.tokens.sample_labels.T, run.resamples)
    bounds: dict[str, list[tuple[np.ndarray, ...]]] = {}
    means: dict[str, list[np.ndarray]] = {}
    fixed = []
    for at in tqdm(range(n_layers), desc="trace", disable=not progress, leave=False):
        cut, found = run.layer(at, grid)
        fixed.append(cut)
        for name, values in found.items():
            low, high = percentile_bounds(values[:, 1:], run.level)
            bounds.setdefault(name, []).append((values[:, 0], low, high))
            weights = positives[:, : values.shape[1]]
            means.setdefault(name, []).append(mean_over_concepts(values.T, weights.T))
    return TailTrace(
        concepts,
        table.bank.layers,
        {name: Estimates(*map(np.stack, zip(*rows, strict=True))) for name, rows in bounds.items()},
        {name: np.stack(rows) for name, rows in means.items()},
        {name: np.stack([getattr(cut, name) for cut in fixed]) for name in vars(fixed[0])},
        _counts(run.here),
        grid.joint(),
        grid.common(),
        settings,
    )


def _table(
    host: Host | None,
    data: ConceptData | None,
    bank: ConceptBank | None,
    scores: ScoreTable | None,
    split: str,
    progress: bool,
) -> ScoreTable:
    require_type("scores", scores, ScoreTable, "give score(host, data, bank)", optional=True)
    if isinstance(host, ScoreTable):
        require_type("host", host, Host, "pass scores=")
    if scores is not None:
        return scores
    if host is None or data is None or bank is None:
        raise ValueError("give scores=score(host, data, bank), or host, data and bank.")
    from sa_plugin.scoring import score

    splits = list(dict.fromkeys(["cal", split]))
    return score(host, data, bank, splits=splits, progress=progress)


def _columns(
    table: ScoreTable, columns: Int[np.ndarray, "*layer concept"] | None
) -> Int[np.ndarray, "layer concept"]:
    bank, concepts = table.bank, table.tokens.concepts
    shape = (len(bank.layers), len(concepts))
    if columns is None:
        missing = [c for c in concepts if c not in bank.units]
        if missing:
            raise ValueError(
                f"the bank's {len(bank.units)} units ({bank.kind!r}) are not the concepts (no "
                f"{missing[0]!r}): match them on the calibration split and give columns, the unit "
                "of each concept."
            )
        columns = np.array([bank.units.index(c) for c in concepts])
    place = np.asarray(columns)
    if place.shape not in (shape, shape[1:]) or not np.issubdtype(place.dtype, np.integer):
        raise ValueError(f"columns {place.shape} must be whole numbers [concept] or {shape}.")
    if place.min(initial=0) < 0 or place.max(initial=0) >= len(bank.units):
        raise ValueError(f"columns must name units 0 to {len(bank.units) - 1} of the bank.")
    return np.broadcast_to(place, shape)


def _out(out: str) -> Out:
    if out == "negative" or out == "all":
        return out  # type: ignore[return-value]
    raise ValueError(f"out {out!r} is unknown: use 'negative' or 'all'.")


def _check_sd(
    frozen_sd: Float[np.ndarray, "layer concept"] | None, place: Int[np.ndarray, "layer concept"]
) -> None:
    if frozen_sd is not None and np.shape(frozen_sd) != place.shape:
        raise ValueError(f"frozen_sd {np.shape(frozen_sd)} must be [layer, concept] {place.shape}.")


def _quiet_cuts(columns: Columns, layer: int, delta: float) -> Cuts:
    """Cuts with the count warnings at the first layer only: labels are the same at all."""
    with warnings.catch_warnings():
        if layer:
            warnings.simplefilter("ignore", FewTokensWarning)
            warnings.simplefilter("ignore", EmptyConceptWarning)
        return cuts(columns, layer, delta)


def _warn_undefined(here: Columns) -> None:
    counts = _counts(here)
    for what, values in counts.items():
        lacking = [c for c, n in zip(here.table.tokens.concepts, values, strict=True) if n == 0]
        if lacking:
            warnings.warn(
                f"no {what.replace('_', ' ')} for {', '.join(map(repr, lacking))} in the split: "
                "what needs them is NaN and is left out of means over concepts.",
                UndefinedMeasureWarning,
                stacklevel=3,
            )


def _counts(here: Columns) -> Mapping[str, Int[np.ndarray, " concept"]]:
    positive = here.table.tokens.sample_labels
    return {
        "in_concept_tokens": here.inside.sum(axis=1),
        "out_of_concept_tokens": here.outside.sum(axis=1),
        "positive_samples": positive.sum(axis=0),
        "negative_samples": (~positive).sum(axis=0),
    }
