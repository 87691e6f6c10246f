"""What comparing objectives found: every metric of both, and their paired difference.

Both objectives explain the same samples of the same concept by the same method; the difference is
taken sample by sample (or, for micro metrics, within each column), and each source document is left
out in turn. A sample where either is not defined is left out of both. Two orders that no explainer
made are measured beside them as controls of the yardsticks: the labelled tokens first, and a random
order. A yardstick by which the labelled tokens are no better than a random order tells nothing on
these data.

What the intervals do not show: another draw of vectors, thresholds and the level of F1, on which
they are conditional, nor how many rows were looked at: two stars adjust for those of one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin._check import require_known
from sa_plugin._face import face_methods
from sa_plugin.attribution.explained import Attribution, heat_maps
from sa_plugin.attribution.yardsticks import PRIMARY, WAYS, SampleScores, micro_f1
from sa_plugin.show import plots
from sa_plugin.show.result import (
    FORMAT,
    Result,
    Sheet,
    bounds_text,
    clean,
    noun_count,
    number,
    signed,
    star_marks,
    star_words,
)
from sa_plugin.statistics.bootstrap import Resamples, left_out, resampled_sums
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.drawn import Drawn, Resampling, stack
from sa_plugin.statistics.interval import Kind
from sa_plugin.statistics.ranking import resampled_auroc, resampled_average_precision

CurveKey = tuple[str, str, str, str]
"""Method, objective, "insertion" or "deletion", yardstick."""
PER_SAMPLE = ("f1_sample", "auroc", "average_precision", "pointing", "mass_inside")
MICRO = ("f1", "auroc_micro", "average_precision_micro")
HEADLINE = ("f1", "average_precision", "pointing", "insertion/mean_alignment", "deletion/mean_alignment")
CONTROL = "control"
"""In place of a method: orders that no explainer made, to test the yardsticks themselves."""
ORDERS = ("random", "labelled first")
_ALL = "all"


@face_methods
@dataclass(frozen=True, eq=False)
class Trial:
    """One sample explained by one method with one objective, and measured.

    Attributes:
        concept, sample, document, method, objective: What and where.
        scores: Localisation.
        ranks: Share of the sample's tokens at or below each kept token.
        labels: Of the same tokens.
        areas: By name, such as "insertion/mean_alignment", and what the method says of itself:
            "completeness_error", as a share.
    """

    concept: str
    sample: str
    document: str
    method: str
    objective: str
    scores: SampleScores
    ranks: Float[np.ndarray, " token"]
    labels: Bool[np.ndarray, " token"]
    areas: Mapping[str, float]

    def value(self, metric: str) -> float:
        """A metric of this sample alone; NaN where it is not defined."""
        if metric in self.areas:
            return self.areas[metric]
        return float(getattr(self.scores, metric.removesuffix("_sample")))


@dataclass(frozen=True, eq=False)
class Contrast:
    """One metric of one method and concept for every objective.

    Attributes:
        concept: Name, or "all": every sample of every concept.
        method: Explainer.
        metric: Name.
        n_samples: Samples behind it.
        values: Over the objectives; the first is what the others are compared with.
    """

    concept: str
    method: str
    metric: str
    n_samples: int
    values: Drawn

    @property
    def better(self) -> str:
        """Whether "higher" or "lower" values of the metric are better."""
        return "lower" if self.metric.startswith(("deletion", "completeness")) else "higher"

    @cached_property
    def differences(self) -> Drawn:
        """Over the later objectives, minus the first; paired."""
        first, *others = self.values.axes["objective"]
        base = self.values.sel(objective=first)
        return stack({name: self.values.sel(objective=name) - base for name in others}, "objective")

    @property
    def verdicts(self) -> dict[str, str]:
        """For each later objective "better", "worse" or "open" (the interval holds zero)."""
        good, bad = ("better", "worse") if self.better == "higher" else ("worse", "better")
        low, high = np.asarray(self.differences.low), np.asarray(self.differences.high)
        found = np.where(low > 0, good, np.where(high < 0, bad, "open"))
        return dict(zip(self.differences.axes["objective"], found.tolist(), strict=True))

    def rows(self) -> list[dict[str, Any]]:
        """Long form: each objective, then each difference with its verdict."""
        base = self.values.axes["objective"][0]
        same = {"concept": self.concept, "method": self.method}
        about = {"better": self.better, "n_samples": self.n_samples}
        return [
            {
                **same,
                **row,
                "minus": minus,
                "verdict": self.verdicts[row["objective"]] if minus else "",
                **about,
            }
            for drawn, minus in ((self.values, ""), (self.differences, base))
            for row in drawn.rows(self.metric)
        ]

    def flat(self) -> dict[str, Any]:
        """One record with a key for each number."""
        found: dict[str, Any] = {
            "concept": self.concept,
            "method": self.method,
            "metric": self.metric,
            "better": self.better,
            "n_samples": self.n_samples,
        }
        for ending, drawn in (("", self.values), ("_difference", self.differences)):
            for row in drawn.rows(self.metric):
                name = f"{row['objective']}{ending}"
                found |= {name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
        return found | {f"{name}_is": verdict for name, verdict in self.verdicts.items()}


@dataclass(frozen=True)
class Coverage:
    """Which samples could be compared for one concept.

    Attributes:
        concept: Name.
        layer: Block its objectives read.
        positive: Test samples with labelled and unlabelled tokens.
        covered: Those with a SuperActivator; the others are skipped.
        compared: Those drawn for the comparison.
        cal: Calibration samples that the level of F1 was chosen on.
        refused: By method, samples it refused.
        probe: AUROC of the later probe on calibration; None without one.
        few: Compared samples whose tail is too short for the objective "superactivator" to have a
            gradient on it: one or two SuperActivators.
    """

    concept: str
    layer: int
    positive: int
    covered: int
    compared: int
    cal: int
    refused: Mapping[str, int]
    probe: float | None
    few: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """Objectives side by side; made by `compare`.

    Attributes:
        methods: Explainers.
        objectives: The first is what the others are compared with.
        contrasts: Every metric by concept and method, with paired differences.
        coverage: By concept.
        curves: Mean curves over the share of the players, over all samples of all concepts.
        examples: One sample of each concept, every method and objective.
        settings: What it ran with, the primary yardstick among them.
        trials: What the contrasts are made of, sample by sample, controls among them.
    """

    methods: tuple[str, ...]
    objectives: tuple[str, ...]
    contrasts: tuple[Contrast, ...]
    coverage: tuple[Coverage, ...]
    curves: Mapping[CurveKey, Drawn]
    examples: tuple[Attribution, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()

    about: ClassVar[str] = (
        "The comparison holds for this model, data, baseline and detector. A method may localise better and "
        "be no more faithful, or the other way round."
    )

    def headline(self) -> str:
        """What was compared, and on how much."""
        samples = sum(one.compared for one in self.coverage)
        return (
            f"{list(self.objectives)}, {len(self.methods)} methods, "
            f"{len(self.coverage)} concepts, {samples} samples"
        )

    def sheets(self, metrics: Sequence[str] = HEADLINE, concept: str | None = None) -> tuple[Sheet, ...]:
        """Method x metric x objective, with stars where a difference excludes zero, alone and in the family.

        Args:
            metrics: Which.
            concept: By default all concepts together.
        """
        concept = self._overall if concept is None else concept
        first, *others = self.objectives
        header = ["method", "metric", first, *others, *(f"{o} - {first}" for o in others), "n"]
        lines, chosen = [], self._chosen(metrics, concept)
        marks = star_marks(_family([one.differences for one in chosen])) if chosen else []
        for one, stars in zip(chosen, marks, strict=True):
            cells = [one.method, f"{one.metric} ({one.better})"]
            cells += [number(one.values.sel(objective=o).estimate) for o in self.objectives]
            for name, mark in zip(others, stars, strict=True):
                d = one.differences.sel(objective=name)
                cells.append(f"{signed(d.estimate)}{mark:2} {bounds_text(d, sign=True)}")
            lines.append([*cells, str(one.n_samples)])
        return (Sheet(header, lines, notes=self._notes(concept, len(chosen) * len(others))),)

    def _chosen(self, metrics: Sequence[str], concept: str) -> list[Contrast]:
        return [one for one in self.contrasts if one.concept == concept and one.metric in metrics]

    def _notes(self, concept: str, n: int) -> list[str]:
        notes = [
            f"{c.concept}: {c.compared} of {c.covered} samples with a SuperActivator compared, "
            f"{c.positive - c.covered} of {c.positive} skipped without one."
            for c in self.coverage
            if concept in (c.concept, _ALL)
        ]
        few = sum(c.few for c in self.coverage if concept in (c.concept, _ALL))
        if few and "superactivator" in self.objectives:
            notes.append(
                f"{few} of these have one or two SuperActivators: there 'superactivator' has next to no "
                "gradient on them, and gradient methods explain other tokens by it."
            )
        refused = {m for c in self.coverage for m, n in c.refused.items() if n}
        if refused:
            notes.append(f"Some samples were refused by {', '.join(sorted(refused))}.")
        mine = [one for one in self.controls if one.concept == concept]
        blind = [one.metric for one in mine if one.verdicts[ORDERS[1]] != "better"]
        if blind:
            notes.append(
                "Do not judge by these, which do not prefer the labelled tokens to a random order "
                f"here: {', '.join(blind)}."
            )
        level = f"{100 * float(self.settings.get('level', Resampling.level)):g} % intervals over documents"
        notes.append(f"{star_words(n)} {level}.")
        return notes

    @cached_property
    def controls(self) -> tuple[Contrast, ...]:
        """The labelled tokens first against a random order, by yardstick; see `controls_of`."""
        asked = {name: self.settings[name] for name in ("seed", "level") if name in self.settings}
        return tuple(controls_of(self.trials, Resampling(**asked)))

    def rows(self) -> list[dict[str, Any]]:
        """Every contrast: a row an objective, and a row a difference, with its verdict."""
        return [row for one in self.contrasts for row in one.rows()]

    def to_dict(self) -> dict[str, Any]:
        """Every number but those of single samples; what is not defined is None."""
        curves = [
            {
                "method": m,
                "objective": o,
                "kind": k,
                "yardstick": y,
                "values": clean(one.estimate),
                "low": clean(one.low),
                "high": clean(one.high),
            }
            for (m, o, k, y), one in self.curves.items()
        ]
        return {
            "format": FORMAT,
            "kind": type(self).__name__,
            "settings": clean(self.settings),
            "rows": [clean(one.flat()) for one in self.contrasts],
            "coverage": [clean(asdict(one)) for one in self.coverage],
            "grid": clean(self.shares),
            "curves": curves,
        }

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the players in, or taken out: where the curves have their points."""
        return tuple(next(iter(self.curves.values())).axes["share"])

    def heat_maps(self, concept: str | None = None) -> str:
        """Side-by-side maps of one sample, as HTML.

        Args:
            concept: By default the first.

        Raises:
            ValueError: Unknown concept.
        """
        known = list(dict.fromkeys(one.concept for one in self.examples))
        concept = known[0] if concept is None else concept
        require_known("concept", concept, known)
        return heat_maps([one for one in self.examples if one.concept == concept])

    def plot(self, metrics: Sequence[str] = HEADLINE, concept: str | None = None) -> Any:
        """A panel a metric: each later objective minus the first by method, with intervals.

        Args:
            metrics: Which.
            concept: By default all concepts together.

        Raises:
            ValueError: Unknown metric or concept.
        """
        concept = self._overall if concept is None else concept
        require_known("concept", concept, dict.fromkeys(one.concept for one in self.contrasts))
        for metric in metrics:
            require_known("metric", metric, dict.fromkeys(one.metric for one in self.contrasts))
        first, *others = self.objectives
        drawn = [one.differences for metric in metrics for one in self._chosen([metric], concept)]
        figure, axes = plots.new_figure(
            2.0 + 2.4 * len(metrics), 1.6 + 0.3 * len(self.methods) * len(others), columns=len(metrics)
        )
        style = plots.styles(others)
        for k, (ax, metric) in enumerate(zip(np.ravel(axes), metrics, strict=True)):
            found = self._chosen([metric], concept)
            for at, name in enumerate(others):
                verdicts = [one.verdicts[name] for one in found]
                single = [_VERDICT_COLOURS[verdict] for verdict in verdicts]
                parts = {one.method: one.differences.sel(objective=name) for one in found}
                plots.whiskers(
                    ax,
                    stack(parts, "method"),
                    colours=single if len(others) == 1 else style[name][0],
                    offset=0.2 * (at - (len(others) - 1) / 2),
                    label=f"{name} - {first}" if len(others) > 1 else "",
                )
            plots.zero(ax)
            # Panels are narrow, and differences of a hundredth have long labels.
            ax.xaxis.get_major_locator().set_params(nbins=4)
            plots.words(ax, title=metric, x=f"difference ({found[0].better} is better)")
            if k:
                ax.set_yticklabels([])
        if len(others) > 1:
            plots.legend(np.ravel(axes)[-1])
        else:
            figure.suptitle(f"{others[0]} - {first}, {concept}", fontsize=10, parse_math=False)
        level = f"{100 * float(self.settings.get('level', Resampling.level)):g} %"
        colours = "" if len(others) > 1 else "Orange: better, blue: worse, grey: open. "
        plots.note(
            figure, f"{colours}{level} over documents, paired, each read alone.{_sure_words(drawn)}", *drawn
        )
        return figure

    def plot_curves(self, methods: Sequence[str] | None = None, yardstick: str = PRIMARY) -> Any:
        """Mean insertion curves above, deletion below, a column a method, the controls dashed.

        Args:
            methods: Explainers, by default all.
            yardstick: What is read.

        Raises:
            ValueError: There is no such curve.
        """
        known = dict.fromkeys(key[0] for key in self.curves if key[0] != CONTROL)
        methods = list(known if methods is None else methods)
        for method in methods:
            require_known("method", method, known)
        require_known("yardstick", yardstick, dict.fromkeys(key[3] for key in self.curves))
        figure, axes = plots.new_figure(2.0 + 2.4 * len(methods), 4.6, rows=len(WAYS), columns=len(methods))
        looks = {self.objectives[0]: (plots.IN_COLOUR, "-"), self.objectives[-1]: (plots.TAIL_COLOUR, "-")}
        style = plots.styles(self.objectives, looks)
        for row, kind in zip(np.reshape(axes, (len(WAYS), -1)), WAYS, strict=True):
            for ax, method in zip(row, methods, strict=True):
                for name, dashes in zip(ORDERS, (":", "--"), strict=True):
                    control = self.curves[CONTROL, name, kind, yardstick]
                    plots.line(ax, control, label=name, colour=plots.OUT_COLOUR, dashes=dashes, band=False)
                for name in self.objectives:
                    colour, dashes = style[name]
                    curve = self.curves[method, name, kind, yardstick]
                    plots.line(ax, curve, label=name, colour=colour, dashes=dashes)
                share = "share of tokens put in" if kind == "insertion" else "share taken out"
                plots.words(ax, title=f"{method}, {kind}", x=share, y=yardstick if ax is row[0] else "")
        plots.legend(np.ravel(axes)[len(methods) - 1])
        plots.note(
            figure,
            "Means over samples, bands over documents. Insertion: higher is better; deletion: lower.",
            *(self.curves[m, o, k, yardstick] for m in methods for o in self.objectives for k in WAYS),
        )
        return figure

    @property
    def _overall(self) -> str:
        return _ALL if len(self.coverage) > 1 else self.coverage[0].concept


_VERDICT_COLOURS = {"better": plots.TAIL_COLOUR, "worse": plots.IN_COLOUR, "open": plots.OUT_COLOUR}


def _family(differences: Sequence[Drawn]) -> Drawn:
    return stack(dict(enumerate(differences)), "row")


def _sure_words(differences: Sequence[Drawn]) -> str:
    """How many of the differences of a picture exclude zero, alone and as one family."""
    if not differences:
        return ""
    every = _family(differences)
    alone, jointly = (int(np.sum(one)) for one in (every.excludes_zero, every.excludes_zero_in_family))
    return (
        f"\nOf {noun_count(np.size(every.estimate), 'difference')} {alone} exclude zero read alone, "
        f"{jointly} read as one family (max-T)."
    )


def contrasts_of(
    trials: Sequence[Trial], objectives: Sequence[str], resampling: Resampling = Resampling()
) -> list[Contrast]:
    """Every metric of every method, concept by concept and over all of them.

    Args:
        trials: Of all samples, methods and objectives.
        objectives: The first is what the others are compared with.
        resampling: How intervals are made.
    """
    found = []
    # One set of columns for all, so that methods and metrics can be read as one family.
    documents = {name: k for k, name in enumerate(sorted({one.document for one in trials}))}
    every = left_out(np.arange(len(documents)), resampling)
    for method in dict.fromkeys(one.method for one in trials):
        mine = [one for one in trials if one.method == method]
        concepts = list(dict.fromkeys(one.concept for one in mine))
        for concept in [*concepts, *([_ALL] if len(concepts) > 1 else [])]:
            groups = _complete([one for one in mine if concept in (one.concept, _ALL)], objectives)
            metrics = [*MICRO, *PER_SAMPLE, *groups[0][0].areas] if groups else []
            for metric in metrics:
                # A sample on which one arm's metric is not defined is left out of both.
                used = [g for g in groups if all(_defined(one, metric) for one in g)]
                if used:
                    resamples = every.of(np.array([documents[arms[0].document] for arms in used]))
                    values = _values(used, objectives, metric, resamples)
                    found.append(Contrast(concept, method, metric, len(used), values))
    return found


def controls_of(trials: Sequence[Trial], resampling: Resampling = Resampling()) -> list[Contrast]:
    """Insertion and deletion of labelled tokens first, against a random order, by yardstick.

    A yardstick that does not prefer the labelled tokens here cannot tell explainers apart on these
    data, or the model does not use the labelled tokens.

    Args:
        trials: As for `contrasts_of`.
        resampling: How intervals are made.
    """
    mine = [one for one in trials if one.method == CONTROL]
    return [one for one in contrasts_of(mine, ORDERS, resampling) if "/" in one.metric]


def _complete(trials: Sequence[Trial], objectives: Sequence[str]) -> list[list[Trial]]:
    """Samples that every objective was measured on, a trial for each objective in order."""
    by_sample: dict[tuple[str, str], dict[str, Trial]] = {}
    for one in trials:
        by_sample.setdefault((one.concept, one.sample), {})[one.objective] = one
    return [[group[o] for o in objectives] for group in by_sample.values() if set(objectives) <= set(group)]


def _defined(one: Trial, metric: str) -> bool:
    return metric in MICRO or bool(np.isfinite(one.value(metric)))


def _values(
    groups: Sequence[Sequence[Trial]], objectives: Sequence[str], metric: str, resamples: Resamples
) -> Drawn:
    """A metric of every objective, in the same columns."""
    parts = {
        name: _drawn([arms[k] for arms in groups], metric, resamples) for k, name in enumerate(objectives)
    }
    return stack(parts, "objective")


def _drawn(trials: Sequence[Trial], metric: str, resamples: Resamples) -> Drawn:
    """A metric of one objective; the documents of its samples carry it, or of their labelled tokens."""
    if metric in ("auroc_micro", "average_precision_micro"):
        ranks = np.concatenate([s.ranks for s in trials])
        labels = np.concatenate([s.labels for s in trials])
        # Documents are left out, tokens ranked: each token goes with its sample's document.
        over = resamples.of(np.repeat(np.arange(len(trials)), [len(s.ranks) for s in trials]))
        area = resampled_auroc if metric == "auroc_micro" else resampled_average_precision
        return over.drawn(area(ranks, labels, over), "share", over.rows(labels))
    if metric == "f1":
        terms = np.array([[s.scores.true_positives, s.scores.marked, s.scores.labelled] for s in trials]).T
        return resamples.drawn(micro_f1(resampled_sums(terms, resamples)), "share", resamples.rows(terms[2]))
    # A mean is the ratio of two sums: the values, and how many samples a column holds.
    terms = np.array([[s.value(metric), 1.0] for s in trials]).T
    sums = resampled_sums(terms, resamples)
    kind: Kind = "share" if metric in PER_SAMPLE else "mean"
    return resamples.drawn(ratio(sums[0], sums[1], empty=np.nan), kind, resamples.rows(terms[1]))
