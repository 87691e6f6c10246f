"""Every method on held-out samples, side by side, with intervals over source documents.

Metrics are defined in `sa_plugin.detection.measures`. Differences are method minus SuperActivators in
the same columns, each document left out in turn. Decisions are those of calibration: nothing is chosen
here, and the split is read once.

What the intervals do not show: another train or calibration split (they are conditional on both). Each
interval stands alone; beside its star stands the one that reads all differences of the table as one
family (`Drawn.excludes_zero_in_family`). An interval that contains zero is no proof of equality.
Always-positive has no interval of its own: where concepts share samples out its weighted mean lies
above the truth in every sample, by as much as it spreads; its difference to another method has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from sa_plugin._check import position_of
from sa_plugin.data.concept_data import Split
from sa_plugin.detection import methods
from sa_plugin.detection.calibration import Calibration, sample_max
from sa_plugin.detection.guard import document_names, known_tokens, labels_of, unknown_of
from sa_plugin.detection.measures import (
    ALARMS,
    LEAST_ABOVE,
    METRICS,
    PARTIAL,
    RATES,
    UPTO,
    Outcome,
    TailFractions,
    firing_rates,
    method_metrics,
    positives_of,
    rests_on,
    superactivator_fractions,
)
from sa_plugin.detection.promised import GuardScores
from sa_plugin.detection.realised import RealisedRates, kept_of
from sa_plugin.passes.layout import unknown_words
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.html import ALWAYS
from sa_plugin.show.result import (
    IF_ANY,
    Result,
    Sheet,
    bounds_text,
    clean,
    exact,
    noun_count,
    number,
    short,
    signed,
    star_marks,
    star_words,
)
from sa_plugin.statistics.bootstrap import GROUPS, resample_documents
from sa_plugin.statistics.confusion import exceeds, reaches
from sa_plugin.statistics.drawn import Drawn, Resampling, stack
from sa_plugin.statistics.interval import FEW

CONDITIONAL = (
    "Intervals are over source documents with vectors, thresholds, deltas and layers held fixed: "
    "they are conditional on the train and calibration splits, and each is read alone."
)
COMPARED = ("f1", "auroc", *RATES, PARTIAL, ALARMS)
"""Metrics of which the paired difference to SuperActivators is given."""
LATE = "the detector was calibrated on scores without it"


@dataclass(frozen=True)
class Ground:
    """On what a result's numbers stand.

    Attributes:
        split: Name of the split.
        data_hash: Hash of its data.
        n_samples: Samples of the split.
        n_documents: Source documents they are from.
        resampling: How intervals were made.
        unknown: Tokens of each concept whose label is unknown: they count in nothing that is said of
            tokens; concepts without such tokens are left out.
    """

    split: str
    data_hash: str
    n_samples: int
    n_documents: int
    resampling: Resampling
    unknown: Mapping[str, int] = field(default_factory=dict, metadata=IF_ANY)

    @property
    def made(self) -> str:
        """How intervals were made, and what they leave out."""
        n, seed = self.n_documents, self.resampling.seed
        words = f"Intervals: each of {n} documents left out in turn"
        if n > GROUPS:
            words = f"Intervals: {n} documents left out in {GROUPS} random groups, seed {seed}"
        words += ", Student's t."
        if self.unknown:
            words = f"{words} {unknown_words(self.unknown)}"
        return words


@dataclass(frozen=True, eq=False)
class Chosen:
    """What calibration chose for one method.

    Attributes:
        layer: Block, by draw and concept; empty where layers mean nothing.
        delta: By draw and concept; empty where there is none.
        candidates: Number of (layer, delta, unit, parameters) behind each choice; 0 without a search.
        parameters: Of a pooling that has some, in the scores' unit.
    """

    layer: Int[np.ndarray, "layer_draw concept"]
    delta: Float[np.ndarray, "draw concept"]
    candidates: int
    parameters: Mapping[str, Float[np.ndarray, " concept"]] = field(default_factory=dict, metadata=IF_ANY)


@dataclass(frozen=True, eq=False)
class MethodResult:
    """One method on the split: a view of an `Evaluation`.

    Attributes:
        method: Name.
        concept: Metric to its value by concept.
        weighted: Metric to its mean over concepts, weighted by positive samples.
        macro: Metric to its plain mean over concepts.
        difference: What `COMPARED` names, minus that of SuperActivators; empty for them.
        chosen: Layers and deltas.
    """

    method: str
    concept: Mapping[str, Drawn]
    weighted: Mapping[str, Drawn]
    macro: Mapping[str, Drawn]
    difference: Mapping[str, Drawn]
    chosen: Chosen

    def __repr__(self) -> str:
        return f"MethodResult({self.method!r}, weighted F1 {self.weighted['f1']})"


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Result):
    """Detection metrics of every method on one split.

    Attributes:
        n_positive: Positive samples of each concept.
        concept: Metric to its value over method and concept.
        weighted: Metric to its mean over concepts by method, weighted by positive samples.
        macro: Metric to its plain mean over concepts by method.
        chosen: Method to the layers and deltas of calibration.
        missing: Methods not fitted, with the reason.
        rates: `raw_false_fire`, `raw_miss`, `tail_false_fire`, `tail_miss` by concept.
        fractions: SuperActivator fractions of positive samples.
        ground: Split, counts, resampling.
        kept: With a promise, what was realised of it; the other numbers are those of the thresholds that the
            search chose, as for every method.
    """

    n_positive: Mapping[str, int]
    concept: Mapping[str, Drawn]
    weighted: Mapping[str, Drawn]
    macro: Mapping[str, Drawn]
    chosen: Mapping[str, Chosen]
    missing: Mapping[str, str]
    rates: Mapping[str, Drawn]
    fractions: TailFractions
    ground: Ground
    kept: RealisedRates | None = field(default=None, metadata=IF_ANY)

    about: ClassVar[str] = CONDITIONAL

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names."""
        return tuple(self.n_positive)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of what was fitted, SuperActivators first."""
        return tuple(self.chosen)

    @cached_property
    def difference(self) -> dict[str, Drawn]:
        """What `COMPARED` names, of every other method minus that of SuperActivators, paired.

        Weighted means over concepts; of false alarms, which positive samples have no part in, the
        plain mean.
        """
        found = {}
        for metric in COMPARED:
            mean = self.shown[metric]
            own = mean.sel(method=methods.TAIL)
            found[metric] = stack({name: mean.sel(method=name) - own for name in self.methods[1:]}, "method")
        return found

    @cached_property
    def shown(self) -> dict[str, Drawn]:
        """Every metric's mean over concepts as tables show it: plain for false alarms, else weighted."""
        return {**self.weighted, ALARMS: self.macro[ALARMS]}

    def of(self, method: str) -> MethodResult:
        """The numbers of one method.

        Raises:
            ValueError: Unknown or not fitted; the text names the nearest, or the reason.
        """
        if method in self.missing:
            raise ValueError(f"{method} was not fitted: {self.missing[method]}.")
        position_of(method, self.methods, "the methods")

        def of_method(part: Mapping[str, Drawn]) -> dict[str, Drawn]:
            return {metric: drawn.sel(method=method) for metric, drawn in part.items()}

        return MethodResult(
            method,
            of_method(self.concept),
            of_method(self.weighted),
            of_method(self.macro),
            {} if method == methods.TAIL else of_method(self.difference),
            self.chosen[method],
        )

    def headline(self) -> str:
        """What was evaluated, and SuperActivators' weighted F1."""
        return (
            f"{self.ground.split!r}, {self.ground.n_samples} samples, {len(self.methods)} methods, "
            f"SuperActivators' weighted F1 {self.weighted['f1'].sel(method=methods.TAIL)}"
        )

    def sheets(self) -> tuple[Sheet, ...]:
        """The table of methods, the verdict, how the intervals were made, and what a monitor is chosen by."""
        level = f"{100 * self.ground.resampling.level:g} % interval"
        header = ["method", "F1", level, "precision", "recall", "AUROC", "macro F1", "F1 - SA", "interval"]
        header += ["", "candidates"]
        lines = [self._cells(name) for name in self.methods]
        lines += [[name, "not fitted", *[""] * 9] for name in self.missing]
        title = (
            f"Detection on {self.ground.split!r}: {self.ground.n_samples} samples of "
            f"{self.ground.n_documents} documents, {len(self.concepts)} concepts; F1, precision, recall "
            "and AUROC weighted by positive samples, macro a plain mean; both leave out concepts without any."
        )
        legend = (
            f"{star_words(len(self.stars))} candidates: (layer, delta, unit, parameters) "
            "combinations each concept's choice was made from, on calibration."
        )
        if methods.RANDOM in self.methods:
            legend += f" {methods.RANDOM}: mean of {methods.RANDOM_DRAWS} draws."
        reasons = [f"{m} is not fitted: {why}." for m, why in self.missing.items()]
        notes = [legend, *reasons, self.verdict(), self.ground.made]
        sheets = (Sheet(header, lines, title, notes), self._monitor_sheet())
        return sheets if self.kept is None else (*sheets, self.kept.sheet(self.ground.split))

    def _monitor_sheet(self) -> Sheet:
        """True positives where false ones are few, and how often an alarm is false."""
        rates = {name: f"TPR at {100 * rate:g} %" for name, rate in RATES.items()}
        titles = {**rates, PARTIAL: "pAUROC", ALARMS: "false alarms"}
        header = ["method"]
        for name, said in titles.items():
            header += [said, "interval"] if self._defined(name) else [said]
        compared = [PARTIAL, *(name for name in list(RATES)[:1] if self._defined(name))]
        header += [cell for name in compared for cell in (f"{titles[name]} - SA", "interval", "")]
        marks = {name: star_marks(self.difference[name]).tolist() for name in compared}
        lines = []
        for k, method in enumerate(self.methods):
            cells = [method]
            for name in titles:
                one = self.shown[name].sel(method=method)
                cells += [number(one.estimate), *([bounds_text(one)] if self._defined(name) else [])]
            for name in compared:
                if method == methods.TAIL:
                    cells += ["", "", ""]
                else:
                    by = self.difference[name].sel(method=method)
                    cells += [signed(by.estimate), bounds_text(by, sign=True), marks[name][k - 1]]
            lines.append(cells)
        title = (
            f"What a monitor is chosen by, {self.ground.split!r}: true positives at a false-positive rate "
            f"and the partial AUROC up to {100 * UPTO:g} % (standardised, .5 is chance), of the split's own "
            "curve, weighted by positive samples; false alarms of the calibrated threshold: samples for "
            "1,000 tokens of negative samples, a plain mean."
        )
        return Sheet(header, lines, title, [self.rests_on()])

    def _defined(self, metric: str) -> bool:
        return bool(np.isfinite(self.shown[metric].estimate).any())

    def rests_on(self) -> str:
        """How many negatives the true-positive rates stand on."""
        negatives = [self.ground.n_samples - n for n in self.n_positive.values() if n]
        said = []
        for rate in RATES.values():
            above = [found for found in (rests_on(rate, n) for n in negatives) if found]
            need = f"{LEAST_ABOVE / rate:,.0f} negatives"
            if above:
                span = f"{min(above)} to {max(above)}" if min(above) < max(above) else f"{above[0]}"
                said.append(
                    f"at {100 * rate:g} % {span} of a concept's negative samples lie above the threshold "
                    f"({noun_count(len(above), 'concept')} of {len(negatives)} have {need})"
                )
            else:
                said.append(f"at {100 * rate:g} % no concept has the {need} it takes")
        most = f"{min(negatives)} to {max(negatives)}" if negatives else "0"
        return f"TPR rests on few negatives, of {most} a concept: {'; '.join(said)}."

    def _cells(self, name: str) -> list[str]:
        f1 = self.weighted["f1"].sel(method=name)
        cells = [name, number(f1.estimate), bounds_text(f1)]
        rest = (self.weighted[m].sel(method=name).estimate for m in ("precision", "recall", "auroc"))
        cells += [*map(number, rest), number(self.macro["f1"].sel(method=name).estimate)]
        if name == methods.TAIL:
            cells += ["", "", ""]
        else:
            by = self.difference["f1"].sel(method=name)
            cells += [signed(by.estimate), bounds_text(by, sign=True), self.stars[name]]
        return [*cells, str(self.chosen[name].candidates)]

    @cached_property
    def stars(self) -> dict[str, str]:
        """By method, whether its weighted F1 differs from SuperActivators', alone and of all methods."""
        by = self.difference["f1"]
        return dict(zip(by.axes["method"], star_marks(by).tolist(), strict=True))

    def verdict(self) -> str:
        """Which baselines SuperActivators beat, tie with and lose to, by weighted F1."""
        found: dict[str, list[str]] = {
            verb: [] for verb in ("beat", "tie with", "lose to", "cannot be compared with")
        }
        for name in self.methods[1:]:
            by = self.difference["f1"].sel(method=name)
            if by.high < 0:
                verb = "beat"
            elif by.low > 0:
                verb = "lose to"
            else:
                verb = "tie with" if by.low <= 0 <= by.high else "cannot be compared with"
            found[verb].append(f"{name} ({short(by, sign=True).removesuffix(FEW).rstrip()})")
        said = "; ".join(f"{verb} {', '.join(names)}" for verb, names in found.items() if names)
        level = 100 * self.ground.resampling.level
        sure = [name for name, mark in self.stars.items() if mark == "**"]
        return (
            f"By weighted F1 SuperActivators {said}. In brackets: method minus SuperActivators with "
            f"its {level:g} % interval; a tie is an interval that holds zero, no proof of equality. Of "
            f"{noun_count(len(self.stars), 'difference')} read as one family {len(sure)} exclude zero"
            f"{': ' + ', '.join(sure) if sure else ''}."
        )

    def rows(self) -> list[dict[str, Any]]:
        """Means over concepts, paired differences, every concept's metrics, rates and fractions."""
        found: list[dict[str, Any]] = []
        for average, part in (("weighted", self.weighted), ("macro", self.macro)):
            found += (row for metric, drawn in part.items() for row in drawn.rows(f"{average} {metric}"))
        for metric, drawn in self.difference.items():
            average = "macro" if metric == ALARMS else "weighted"
            found += drawn.rows(f"{average} {metric} minus SuperActivators")
            adjusted = zip(drawn.axes["method"], drawn.p_of_family, strict=True)
            found += [exact(f"p of {average} {metric} in its family", p, method=name) for name, p in adjusted]
        found += (row for metric, drawn in self.concept.items() for row in drawn.rows(metric))
        found += [exact("positive samples", n, concept=name) for name, n in self.n_positive.items()]
        found += (row for name, drawn in self.rates.items() for row in drawn.rows(name.replace("_", " ")))
        for name in ("all", "inside"):
            table = getattr(self.fractions, name)
            found += [
                exact(f"SuperActivator fraction ({name}) at most {x:g}", table[k, at], concept=concept)
                for k, concept in enumerate(self.concepts)
                for at, x in enumerate(self.fractions.grid)
            ]
        return found if self.kept is None else found + self.kept.rows()

    def to_dict(self) -> dict[str, Any]:
        """Every number and setting, the paired differences and the verdict among them."""
        by = {metric: clean(drawn.to_dict()) for metric, drawn in self.difference.items()}
        found = {**super().to_dict(), "difference": by, "verdict": self.verdict()}
        if self.kept is None:
            del found["kept"]
        return found

    def plot(self) -> Any:
        """Weighted F1 by method, best first, and beside it the paired differences.

        A difference whose interval excludes zero is drawn dark; ties are pale.
        """
        from sa_plugin.show import plots

        f1 = self.weighted["f1"]
        order = sorted(self.methods, key=lambda name: -np.nan_to_num(f1.sel(method=name).estimate, nan=-1.0))
        figure, (left, right) = plots.new_figure(9.0, 1.2 + 0.3 * len(order), columns=2)
        floor = float(f1.sel(method=ALWAYS).estimate) if ALWAYS in self.methods else float("nan")
        plots.method_whiskers(left, f1.sel(method=order), floor)
        plots.words(
            left, title=f"{self.ground.split}: weighted F1", x="weighted F1 (dashed: always-positive)"
        )
        own = f1.sel(method=methods.TAIL)
        by = stack({name: f1.sel(method=name) - own for name in order}, "method")
        plots.gap_whiskers(right, by, without=methods.TAIL)
        right.set_yticks(range(len(order)), [self.stars.get(name, "") for name in order])
        plots.words(right, title="minus SuperActivators, paired", x="difference of weighted F1")
        plots.note(
            figure,
            f"Bars: {100 * self.ground.resampling.level:g} % over documents, conditional on train and "
            f"calibration. {star_words(len(self.stars))}",
            f1,
            by,
        )
        return figure


def evaluate(
    calibration: Calibration, split: Split, table: ScoreTable, resampling: Resampling = Resampling()
) -> Evaluation:
    """Measure every method; see `Detector.evaluate`.

    Args:
        calibration: Thresholds of every method.
        split: What the table's samples are.
        table: Their scores.
        resampling: Of source documents.
    """
    kept = None
    if calibration.guard is not None:
        scored = GuardScores.of(table, calibration.token_scores(table), calibration.concepts)
        thresholds = calibration.tail.chosen_threshold
        kept = kept_of(calibration.guard, thresholds, scored, calibration.concepts, resampling)
        # Methods are compared as the search chose them; the promise is looked for beside.
        calibration = replace(calibration, tail=replace(calibration.tail, promised=None), guard=None)
    concepts = calibration.concepts
    token_labels, labels = labels_of(table, concepts)
    resamples = resample_documents(document_names(table.tokens), resampling)
    said = outcomes(calibration, table)
    tokens = np.diff(table.tokens.bounds)
    measured = {
        name: method_metrics(each, labels, concepts, resamples, "none" if name == ALWAYS else "share", tokens)
        for name, each in said.items()
    }
    by_concept = {
        metric: stack({name: one[metric] for name, one in measured.items()}, "method") for metric in METRICS
    }
    late = [k for k in methods.given_names(table, searched=True) if k not in calibration.baselines]
    raw = exceeds(sample_max(calibration.token_scores(table), table.tokens.bounds), calibration.cuts.midpoint)
    rates = firing_rates(raw, said[methods.TAIL][0].fired, labels, concepts, resamples)
    positives = positives_of(labels, resamples)
    return Evaluation(
        dict(zip(concepts, labels.sum(0).tolist(), strict=True)),
        by_concept,
        {metric: each.mean("concept", positives) for metric, each in by_concept.items()},
        {metric: each.mean("concept") for metric, each in by_concept.items()},
        {name: _chosen(calibration, name) for name in measured},
        {**calibration.missing, **dict.fromkeys(late, LATE)},
        rates,
        superactivator_fractions(
            calibration.superactivators(table),
            token_labels,
            table.tokens.sample_of,
            labels,
            known_tokens(table.tokens, concepts),
        ),
        Ground(
            split.name,
            split.data_hash,
            len(labels),
            resamples.n_documents,
            resampling,
            unknown_of(table.tokens, concepts),
        ),
        kept,
    )


def outcomes(calibration: Calibration, table: ScoreTable) -> dict[str, list[Outcome]]:
    """What every fitted method says of every sample, one outcome a draw."""
    found: dict[str, list[Outcome]] = {}
    calibrated = calibration.methods
    for name in (*methods.method_names(), *calibrated):
        if name == ALWAYS:
            shape = (table.tokens.n_samples, len(calibration.concepts))
            found[name] = [Outcome(np.ones(shape, dtype=bool), np.zeros(shape))]
        elif name in calibrated and name not in found:
            # Every draw at its own layers and units.
            own = [
                (one, methods.chosen_values(one, table, seed=calibration.seed, draw=k))
                for k, one in enumerate(calibrated[name])
            ]
            found[name] = [Outcome(reaches(value, one.chosen_threshold), value) for one, value in own]
    for name in methods.given_names(table, searched=False):
        threshold = table.given[name].threshold
        assert threshold is not None
        value = methods.given_values(name, table, calibration.concepts).astype(np.float64)
        found[name] = [Outcome(reaches(value, threshold), value)]
    return found


def _chosen(calibration: Calibration, name: str) -> Chosen:
    found = calibration.methods.get(name, ())
    layers, none = np.array(calibration.bank.layers), np.zeros((0, len(calibration.concepts)))
    own = found[0].parameters_at(found[0].layer) if found else None
    has_layers = found and name != "length-only" and not methods.is_given(name)
    return Chosen(
        np.stack([layers[c.layer] for c in found]) if has_layers else none.astype(int),
        np.stack([c.chosen_delta for c in found]) if found else none,
        found[0].candidates if found else 0,
        dict(zip(methods.GRIDS[name].names, own.T, strict=True)) if own is not None else {},
    )
