"""How a concept's tail forms, layer by layer.

At every layer of a bank the scores of in-concept and out-of-concept tokens are compared on the test
split: `sa_plugin.tracing.measures` defines what is measured and what it does not show. Thresholds
and background quantiles are fixed on the calibration split before. Intervals are over source
documents and conditional on the vectors and on those cuts: another train or calibration split
would move them too.

A mean over concepts weights each by its positive samples, in every column by that column's own:

    mean = sum_c n_c m_c / sum_c n_c,   concepts whose m_c is not defined left out

A layer's own vector mixes a better probe with a stronger signal: with a detector and its model the same
tokens are also read along the vector of each concept's chosen layer, carried to all layers, and along
prototypes, and a stated rule says which of the two grows (`sa_plugin.tracing.along`).

Two layers (or two measures) are compared column by column:
`trace.means["tail_gap"].sel(layer=9) - trace.means["tail_gap"].sel(layer=3)`.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int
from tqdm.auto import tqdm

from sa_plugin._check import did_you_mean, users_line
from sa_plugin._face import face
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.concepts.train_statistics import TrainStatistics
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import document_names
from sa_plugin.host.protocol import Host
from sa_plugin.passes.layout import unknown_words
from sa_plugin.scores.score import score
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show import plots
from sa_plugin.show.result import Result, Sheet, exact, number, short
from sa_plugin.statistics.bootstrap import Resamples, resample_documents, resampled_sums
from sa_plugin.statistics.drawn import Drawn, Resampling, few_words, stack
from sa_plugin.statistics.quantile import EmptyConceptWarning, FewTokensWarning, check_finite, tail_levels
from sa_plugin.tracing.along import (
    CHOSEN,
    GAP,
    PROTOTYPE,
    REFITS,
    Growth,
    Measuring,
    Others,
    Traced,
    growths,
    measures_along,
    read_others,
    rows_read,
)
from sa_plugin.tracing.cells import (
    Binned,
    Columns,
    Densities,
    Out,
    binned,
    concept_scores,
    cuts,
    densities_of,
)
from sa_plugin.tracing.measures import TAIL_LEVEL, TAILS, Cut, measures_of

_SUMMARY = ("auroc", "overlap", "in_mass_at_fpr", "realised_fpr", "coverage", "negative_coverage", "tail_gap")
_OUT = {"negative": "tokens of negative samples", "all": "all unlabelled tokens"}
UNKNOWN = "unknown_tokens"
_MEAN = "(weighted mean)"
"""Stands for the concept where the long table has a mean over concepts."""


@face
@dataclass(frozen=True, eq=False)
class TraceOptions:
    """How measures are taken.

    Attributes:
        out: Out-of-concept tokens: "negative" takes those of negative samples, "all" every unlabelled
            token.
        frozen_sd: Deviations of the negatives' scores that tail gaps are divided by, such as
            `trace(...)["sd_out"].estimate` of the unablated run; by default their own.
        quantile_draws: At most so many bootstrap draws of documents for the tail gaps, each of every
            concept and layer.
        fixed_at: With a bank, the layer whose vectors are carried to all layers; none by default. A
            detector has chosen each concept's.
        refit_groups: Groups of train documents that vectors are refitted without, in turn; 0 for no
            refits. By default five for kinds that are fitted from means, none for those that iterate.
        shared: To save passes: train statistics of an earlier `collect`, for prototypes, and for refits
            where they hold every row (collected here, rows lie in a temporary file above two gigabytes);
            or what `read_others` read, for several kinds at once.
    """

    out: Out = "negative"
    frozen_sd: Float[np.ndarray, "layer concept"] | None = None
    quantile_draws: int = 200
    fixed_at: int | None = None
    refit_groups: int | None = None
    shared: TrainStatistics | Others | None = None

    def __post_init__(self) -> None:
        if self.out not in _OUT:
            raise ValueError(f"out {self.out!r} is unknown: use 'negative' or 'all'.")
        if self.frozen_sd is not None and not self.frozen_sd.size:
            raise ValueError(f"frozen_sd is empty, {list(self.frozen_sd.shape)}: give [layer, concept].")
        if self.refit_groups and not 3 <= self.refit_groups <= 100:
            raise ValueError(
                f"refit_groups is {self.refit_groups}: give 0 for none, or 3 to 100 groups, such as 5."
            )


@dataclass(frozen=True)
class TraceSettings:
    """How a trace was made.

    Attributes:
        split: Split the measures are of.
        fixed_on: Split that thresholds and background quantiles were fixed on: "cal", or `split`
            itself when no calibration split was scored (then they are mildly optimistic).
        out: "negative" (tokens of negative samples) or "all" (all unlabelled tokens).
        delta: Share of in-concept tokens that count as tail.
        fpr: Share of out-of-concept tokens above the background quantile on `fixed_on`; on `split`
            it is the measure `realised_fpr`.
        quantile_draws: Bootstrap draws of documents for the tail gaps.
        resampling: How intervals are made.
        n_documents: Documents of the split.
        chosen_layer: Of each concept, whose vector was carried to all layers; empty without.
        refits: Groups of train documents that vectors were refitted without, in turn.
        without: What is missing beside the own vectors, with the reason.
    """

    split: str
    fixed_on: str
    out: str
    delta: float
    fpr: float
    quantile_draws: int
    resampling: Resampling
    n_documents: int
    chosen_layer: Mapping[str, int] = field(default_factory=dict)
    refits: int = 0
    without: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class TailTrace(Result):
    """How a concept's tail forms by layer; `trace["auroc"]` is one measure over layer and concept.

    Attributes:
        measures: By name, over layer and concept; `sa_plugin.tracing.measures` defines them. Those of
            the tail come once more as `NAME_along_chosen` and `NAME_along_prototype`, and with an
            interval over train documents as `NAME_refits` and `NAME_along_chosen_refits`.
        means: The same, as mean over concepts weighted by positive samples, over layer.
        fixed: "threshold", "background" and "background_of_maxima" by layer and concept.
        counts: Tokens and samples behind each concept's measures, and tokens whose label is unknown
            where there are any.
        densities: With the joint edges of the overlap.
        common: With one axis for all layers and concepts, for plots.
        settings: How it was made.
        growth: Probe or signal: the mean over concepts first, then each concept; empty where no
            vector was carried.
    """

    measures: Mapping[str, Drawn]
    means: Mapping[str, Drawn]
    fixed: Mapping[str, Float64[np.ndarray, "layer concept"]]
    counts: Mapping[str, Int[np.ndarray, " concept"]]
    densities: Densities
    common: Densities
    settings: TraceSettings
    growth: tuple[Growth, ...] = ()

    about: ClassVar[str] = (
        "Coverage of positives alone means nothing: read it beside that of negatives. AUROC and overlap "
        "describe the bulk, a tail of 2 % hardly moves them. In-mass is no precision. Scores of two layers "
        "share no unit: compare the measures without unit. Intervals are conditional on the vectors and cuts."
    )

    @property
    def layers(self) -> tuple[int, ...]:
        """Block indices."""
        return tuple(self.means["auroc"].axes["layer"])

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names."""
        return tuple(self.measures["auroc"].axes["concept"])

    def __getitem__(self, name: str) -> Drawn:
        """One measure over layer and concept.

        Raises:
            KeyError: Unknown; the text names the nearest.
        """
        if name not in self.measures:
            hint = did_you_mean(name, self.measures)
            raise KeyError(f"{name!r} is no measure of a trace{hint}")
        return self.measures[name]

    def headline(self) -> str:
        """What was traced."""
        s = self.settings
        return (
            f"{len(self.concepts)} concepts, layers {list(self.layers)}, {s.split} split, "
            f"delta {s.delta:g}, {s.n_documents} documents"
        )

    def sheets(self) -> tuple[Sheet, ...]:
        """Weighted means over concepts with intervals, a line a layer."""
        s, r = self.settings, self.settings.resampling
        title = (
            f"{s.split}: {len(self.concepts)} concepts, means weighted by positive samples; "
            f"{100 * r.level:g} % intervals, each of {s.n_documents} documents left out in turn (tail gap: "
            f"{s.quantile_draws} bootstrap draws of them, seed {r.seed}). "
            f"Out of concept: {_OUT[s.out]}. Cuts fixed on {s.fixed_on}: delta {s.delta:g}, "
            f"false-positive rate {s.fpr:g}; {self._realised()}."
        )
        lines = [
            [str(layer), *(short(self.means[name].sel(layer=layer)) for name in _SUMMARY)]
            for layer in self.layers
        ]
        unknown = {c: int(n) for c, n in zip(self.concepts, self.counts.get(UNKNOWN, ()), strict=False) if n}
        notes = [unknown_words(unknown)] if unknown else []
        return (Sheet(["layer", *_SUMMARY], lines, title, notes), *self._along())

    def _along(self) -> list[Sheet]:
        """The tail along other vectors, and what the growth is of each concept."""
        s = self.settings
        if not self.growth:
            return [Sheet((), (), notes=s.without)] if s.without else []
        shown = [
            (f"{measure}{suffix}", f"{measure.replace('_', ' ')}, {words}")
            for measure in TAILS
            for suffix, words in _ALONG.items()
            # Refits of the gap decide; those of the others stand in `table`.
            if f"{measure}{suffix}" in self.means and (measure == GAP or not suffix.endswith(REFITS))
        ]
        lines = [
            [str(layer), *(short(self.means[name].sel(layer=layer)) for name, _ in shown)]
            for layer in self.layers
        ]
        refits = (
            f"“Refits” has the interval over train documents: each of {s.refits} groups is left out in "
            "turn and the vectors fitted again, measured on the same test documents."
        )
        notes = [refits] * bool(s.refits) + list(s.without)
        first = [c for c, layer in s.chosen_layer.items() if layer == self.layers[0]]
        if first:
            notes.append(f"Chosen at layer {self.layers[0]}, with nothing to compare: {', '.join(first)}.")
        each = [
            [
                g.concept,
                f"{g.first} to {g.last.removeprefix('layer ')}",
                *(number(float(one.estimate)) for one in (g.own, g.chosen, g.top)),
                g.answer,
                number(g.detectable),
            ]
            for g in self.growth
        ]
        header = ["whose tail gap", "layers", "own, first", "chosen, first", "last", "what grows"]
        return [
            Sheet(["layer", *(words for _, words in shown)], lines, self.sentence, notes),
            Sheet([*header, "could have seen"], each),
        ]

    @property
    def sentence(self) -> str:
        """Whether the probe or the signal grows, of the mean over concepts; nothing where not asked."""
        return self.growth[0].sentence() if self.growth else ""

    def cautions(self) -> Sequence[str]:
        """How many numbers few documents carry, groups of refits not counted, and what none of them shows."""
        documents = [
            one for of in (self.measures, self.means) for name, one in of.items() if not name.endswith(REFITS)
        ]
        return [few_words(documents), self.about]

    def _realised(self) -> str:
        rates, means = self["realised_fpr"].estimate, self.means["realised_fpr"].estimate
        known = rates[np.isfinite(rates)]
        if not len(known):
            return "the realised one is not defined"
        return (
            f"realised on {self.settings.split} {np.nanmean(means):.4f} in the mean over layers, "
            f"{known.min():.4f} to {known.max():.4f} by concept and layer"
        )

    def rows(self) -> list[dict[str, Any]]:
        """Every measure by layer and concept, its weighted mean, and what was fixed beforehand."""
        rows = [row for name, drawn in self.measures.items() for row in drawn.rows(name)]
        for name, drawn in self.means.items():
            rows += [{"layer": row["layer"], "concept": _MEAN, **row} for row in drawn.rows(name)]
        rows += [
            exact(name, values[at, c], layer=layer, concept=concept)
            for name, values in self.fixed.items()
            for at, layer in enumerate(self.layers)
            for c, concept in enumerate(self.concepts)
        ]
        return rows + [
            exact("detectable", g.detectable, layer=None, concept=g.concept)
            for g in self.growth
            if g.answer == "cannot be said"
        ]

    def plot(self, concept: str | None = None) -> Any:
        """One panel a question over layers, with the intervals as bands.

        Args:
            concept: Only this; by default the mean over concepts, weighted by positive samples.

        Raises:
            ValueError: Unknown concept; the text names the nearest.
        """
        shown, who = self.means, f"mean of {len(self.concepts)} concepts, weighted by positive samples"
        if concept is not None:
            shown, who = {name: one.sel(concept=concept) for name, one in self.measures.items()}, concept
        figure, axes = plots.new_figure(9.5, 5.4, rows=2, columns=3)
        for ax, (title, unit, lines) in zip(np.ravel(axes), _panels(self.settings), strict=True):
            for (name, label), colour in zip(lines.items(), _COLOURS, strict=False):
                plots.line(ax, shown[name], label=label, colour=colour)
            others = {
                f"{name}{suffix}": look
                for suffix, look in _LINES.items()
                for name in lines
                if f"{name}{suffix}" in shown
            }
            for name, (label, colour, dashes) in others.items():
                # Named in the panels of one line: four names would cover those of a pair.
                word = label if len(lines) == 1 else ""
                plots.line(ax, shown[name], label=word, colour=colour, dashes=dashes, band=False)
            if "auroc" in lines:
                plots.zero(ax, upright=False, at=0.5)
            if len(lines) + len(others) > 1:
                plots.legend(ax, outside=False)
            plots.words(ax, title=title, x="layer", y=unit)
        s = self.settings
        said = {g.concept: g.sentence() for g in self.growth}.get(concept or "", self.sentence)
        plots.note(
            figure,
            (f"{textwrap.fill(said, _NOTE)}\n" if said else "")
            + f"{who}, {s.split} split; cuts fixed on {s.fixed_on}. Bands: {100 * s.resampling.level:g} % "
            f"over {s.n_documents} documents, conditional on vectors and cuts.\nAUROC and overlap describe "
            "the bulk, not the tail; coverage of positives means nothing without that of negatives; in-mass "
            "is no precision.",
            *(shown[name] for _, _, lines in _panels(self.settings) for name in lines),
        )
        return figure


_NOTE = 150
_COLOURS = (plots.TAIL_COLOUR, plots.TEXT_COLOUR)
_ALONG = {
    "": "own vectors",
    f"_{REFITS}": "own, refits",
    f"_{CHOSEN}": "chosen layer's",
    f"_{CHOSEN}_{REFITS}": "chosen's, refits",
    f"_{PROTOTYPE}": "prototypes",
}
"""Ends of measures' names, and which vectors they are along."""
_LINES = {
    f"_{CHOSEN}": ("chosen layer's vector", plots.IN_COLOUR, "--"),
    f"_{PROTOTYPE}": ("prototypes", plots.OUT_COLOUR, ":"),
}


def _panels(settings: TraceSettings) -> tuple[tuple[str, str, Mapping[str, str]], ...]:
    """Title, unit, and measure to label of each panel."""
    above = f"{100 * (1 - settings.fpr):g} % quantile of out"
    return (
        ("in against out of concept", "AUROC", {"auroc": ""}),
        ("overlap of in and out", "shared mass", {"overlap": ""}),
        (
            f"tokens above the {above}",
            "share of tokens",
            {"in_mass_at_fpr": "in concept", "realised_fpr": "out of concept"},
        ),
        (
            "samples with a token above it",
            "share of samples",
            {"coverage": "positive", "negative_coverage": "negative"},
        ),
        ("tail against the negatives' tail", "gap, sd of negatives", {"tail_gap": ""}),
        (f"tokens above tau, delta {settings.delta:g}", "precision", {"precision": ""}),
    )


class UndefinedMeasureWarning(UserWarning):
    """A concept lacks tokens or samples for some measures, which are NaN."""


@face
def trace(
    host: Host | None = None,
    data: ConceptData | None = None,
    source: Detector | ConceptBank | None = None,
    *,
    scores: ScoreTable | None = None,
    split: str = "test",
    delta: float = 0.05,
    columns: Int[np.ndarray, "*layer concept"] | None = None,
    options: TraceOptions = TraceOptions(),
    resampling: Resampling = Resampling(),
) -> TailTrace:
    """Measure in- against out-of-concept scores at every layer of a bank.

    Costs no forward pass when only `scores` are given; else one for each sample of the calibration and
    measured splits. With a detector, or `fixed_at`, the host reads those samples once more along carried
    vectors, prototypes and refits, and the train split once; `TraceOptions.shared` saves either.

    Args:
        host: An attached model; only without `scores`, or to read along other vectors.
        data: Labelled samples.
        source: A detector, whose vectors of each concept's chosen layer are carried to all layers; or a
            bank of concept vectors.
        scores: The shared score table, with the measured split and, for cuts that are fixed
            beforehand, the calibration split.
        split: Split to measure.
        delta: Share of the in-concept tokens that count as tail.
        columns: Unit of each concept, for unsupervised banks: `[concept]`, or `[layer, concept]`
            when each layer was matched by itself. A detector has matched them.
        options: Which tokens are out of concept, what tail gaps are divided by, which vectors are
            carried and how often vectors are refitted.
        resampling: Of source documents.

    Returns:
        Measures by layer and concept.

    Raises:
        TypeError: `scores` is no ScoreTable, or one is given as the host.
        ValueError: Neither scores nor host, data and source are given; units are not concepts and no
            columns are given; the split was not scored or has one document; NaN or Inf scores; the
            bank has no layer `fixed_at`.

    Warns:
        UndefinedMeasureWarning: A concept has no in-concept token, or no positive or no negative
            sample; its measures are NaN.

    Example:
        >>> trace(scores=table).means["auroc"].sel(layer=9)  # doctest: +SKIP
        >>> print(trace(host, data, detector).sentence)  # doctest: +SKIP
    """
    detector = source if isinstance(source, Detector) else None
    bank = source.bank if isinstance(source, Detector) else source
    table = _table(host, data, bank, scores, split)
    tail_levels([delta])
    column = _columns(table, detector.tail.unit if detector is not None and columns is None else columns)
    here = Columns(table.split(split), column, options.out)
    fixed_on = "cal" if "cal" in table.tokens.split_of else split
    there = here if fixed_on == split else Columns(table.split(fixed_on), column, options.out)
    if options.frozen_sd is not None and np.shape(options.frozen_sd) != column.shape:
        raise ValueError(f"frozen_sd {np.shape(options.frozen_sd)} must be [layer, concept] {column.shape}.")
    chosen = _chosen(table, detector, options)
    counts = _counts(here)
    _warn_undefined(here.table.tokens.concepts, counts)
    few = replace(resampling, draws=min(options.quantile_draws, resampling.draws))
    drawn = resample_documents(document_names(here.table.tokens), few)
    settings = TraceSettings(
        split,
        fixed_on,
        options.out,
        delta,
        round(1 - TAIL_LEVEL, 6),
        few.draws,
        resampling,
        drawn.n_documents,
    )
    silent = host is not None and not host.progress
    bar = tqdm(range(len(table.bank.layers)), desc="trace", disable=silent or None, leave=False)
    found = [_layer(here, there, at, drawn, options, settings) for at in bar]
    joint, common = densities_of([one.bins for one in found])
    traced = TailTrace(
        _by_layer(table, [one.measures for one in found]),
        _by_layer(table, [one.means for one in found]),
        {name: np.array([[getattr(c, name) for c in one.cut] for one in found]) for name in Cut._fields},
        counts,
        joint,
        common,
        settings,
    )
    others = options.shared if isinstance(options.shared, Others) else None
    if chosen and others is None and host is not None and data is not None:
        statistics = options.shared if isinstance(options.shared, TrainStatistics) else None
        splits = dict.fromkeys((fixed_on, split))
        wanted = [Traced(table, column, chosen)]
        (others,) = read_others(
            host, data, wanted, splits=list(splits), statistics=statistics, groups=options.refit_groups
        )
    if others is None or not chosen:
        return traced
    return _with_others(traced, rows_read(table, (fixed_on, split)), chosen, drawn, others)


def _chosen(table: ScoreTable, detector: Detector | None, options: TraceOptions) -> dict[str, int]:
    """The layer of each concept's carried vector; none where it is not to be compared with."""
    concepts = table.tokens.concepts
    # Gaps in deviations of another run are no measure of how well a vector of this one does.
    if options.frozen_sd is not None or table.bank.token.scoring == "latent":
        return {}
    if options.fixed_at is not None:
        table.bank.index(options.fixed_at)
        return dict.fromkeys(concepts, options.fixed_at)
    return {} if detector is None else {c: detector.layer[c] for c in concepts}


def _with_others(
    traced: TailTrace, table: ScoreTable, chosen: Mapping[str, int], resamples: Resamples, others: Others
) -> TailTrace:
    """A trace with the tail along other vectors, and what grows."""
    s = traced.settings
    labels = table.split(s.split).tokens.sample_labels.T
    plan = Measuring(s.split, s.fixed_on, "negative" if s.out == "negative" else "all", s.delta)
    found = measures_along(others, table, traced.measures, resamples, plan)
    positives, of_draws = (resampled_sums(labels, of) for of in (resamples, resamples.bootstrapped))
    means = {}
    for name, one in found.items():
        weights = of_draws if name.startswith(GAP) else positives
        # Columns of refits are train documents: the samples that are measured stay the same ones.
        means[name] = one.mean("concept", positives[:, 0] if name.endswith(REFITS) else weights)
    return replace(
        traced,
        measures={**traced.measures, **found},
        means={**traced.means, **means},
        settings=replace(s, chosen_layer=dict(chosen), refits=len(others.defined), without=others.without),
        growth=growths({**traced.measures, **found}, chosen, of_draws),
    )


class _Layer(NamedTuple):
    cut: tuple[Cut, ...]
    measures: dict[str, Drawn]
    means: dict[str, Drawn]
    bins: list[Binned]


def _layer(
    here: Columns,
    there: Columns,
    at: int,
    resamples: Resamples,
    options: TraceOptions,
    settings: TraceSettings,
) -> _Layer:
    """Cuts from `there`, measures and densities from `here`, at one layer."""
    tokens, layers = here.table.tokens, here.table.bank.layers
    check_finite(here.scores(at), f"scores at layer {layers[at]}")
    cut = _quiet_cuts(there, at, settings.delta)
    measured, bins = [], []
    for cell in concept_scores(here, at, cut, resamples, options.frozen_sd):
        measured.append(measures_of(cell, settings.delta))
        bins.append(binned(cell))
    measures = {
        name: stack({c: one[name] for c, one in zip(tokens.concepts, measured, strict=True)}, "concept")
        for name in measured[0]
    }
    # A tail gap has draws in place of left-out documents, and their own positives.
    positives = {
        name: resampled_sums(tokens.sample_labels.T, of)
        for name, of in (("tail_gap", resamples.bootstrapped), ("", resamples))
    }
    means = {name: one.mean("concept", positives.get(name, positives[""])) for name, one in measures.items()}
    return _Layer(cut, measures, means, bins)


def _by_layer(table: ScoreTable, found: Sequence[Mapping[str, Drawn]]) -> dict[str, Drawn]:
    return {
        name: stack(dict(zip(table.bank.layers, (one[name] for one in found), strict=True)), "layer")
        for name in found[0]
    }


def _table(
    host: Host | None,
    data: ConceptData | None,
    bank: ConceptBank | None,
    scores: ScoreTable | None,
    split: str,
) -> ScoreTable:
    if scores is not None:
        return scores
    if host is None or data is None or bank is None:
        raise ValueError("give scores=score(host, data, bank), or host, data and a detector or bank.")
    return score(host, data, bank, splits=list(dict.fromkeys(["cal", split])))


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
    unit = np.asarray(columns)
    if unit.shape not in (shape, shape[1:]) or not np.issubdtype(unit.dtype, np.integer):
        raise ValueError(f"columns {unit.shape} must be whole numbers [concept] or {shape}.")
    if unit.min(initial=0) < 0 or unit.max(initial=0) >= len(bank.units):
        raise ValueError(f"columns must name units 0 to {len(bank.units) - 1} of the bank.")
    return np.broadcast_to(unit, shape)


def _quiet_cuts(columns: Columns, layer: int, delta: float) -> tuple[Cut, ...]:
    """Cuts with the count warnings at the first layer only: labels are the same at all."""
    with warnings.catch_warnings():
        if layer:
            warnings.simplefilter("ignore", FewTokensWarning)
            warnings.simplefilter("ignore", EmptyConceptWarning)
        return cuts(columns, layer, delta)


def _counts(here: Columns) -> dict[str, Int[np.ndarray, " concept"]]:
    positive = here.table.tokens.sample_labels
    return {
        "in_concept_tokens": here.inside.sum(axis=1),
        "out_of_concept_tokens": here.outside.sum(axis=1),
        "positive_samples": positive.sum(axis=0),
        "negative_samples": (~positive).sum(axis=0),
        **({} if here.known is None else {UNKNOWN: (~here.known).sum(axis=1)}),
    }


def _warn_undefined(concepts: Sequence[str], counts: Mapping[str, Int[np.ndarray, " concept"]]) -> None:
    for what, values in counts.items():
        if what == UNKNOWN:
            continue
        lacking = [c for c, n in zip(concepts, values, strict=True) if n == 0]
        if lacking:
            warnings.warn(
                f"no {what.replace('_', ' ')} for {', '.join(map(repr, lacking))} in the split: "
                "what needs them is NaN and is left out of means over concepts.",
                UndefinedMeasureWarning,
                stacklevel=users_line(),
            )
