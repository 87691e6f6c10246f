"""What comparing objectives found: every metric of both, and their paired difference (`contrasts.py`).

Two orders that no explainer made are measured beside the explainers as controls of the yardsticks: the
labelled tokens first, and a random order. A yardstick by which the labelled tokens are no better than a
random order tells nothing on these data.

What the intervals do not show: another draw of vectors, thresholds and the level of F1, on which
they are conditional, nor how many rows were looked at: two stars adjust for those of one table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from sa_plugin._check import require_known
from sa_plugin.attribution.contrasts import ALL, CONTROL, ORDERS, POWER, STRATA, Contrast, Trial, controls_of
from sa_plugin.attribution.explained import Attribution, heat_maps
from sa_plugin.attribution.objective import FEW
from sa_plugin.attribution.yardsticks import PRIMARY, WAYS
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
from sa_plugin.statistics.drawn import Drawn, Resampling, stack
from sa_plugin.statistics.interval import LEAST

CurveKey = tuple[str, str, str, str]
"""Method, objective, "insertion" or "deletion", yardstick."""
HEADLINE = ("f1", "average_precision", "pointing", "insertion/mean_alignment", "deletion/mean_alignment")


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
        strata: Compared samples by number of SuperActivators, every label of `STRATA`.
    """

    concept: str
    layer: int
    positive: int
    covered: int
    compared: int
    cal: int
    refused: Mapping[str, int]
    probe: float | None
    strata: Mapping[str, int] = field(default_factory=dict)

    @property
    def few(self) -> int:
        """Compared samples on whose tail the objective "superactivator" has next to no gradient."""
        return sum(n for label, n in self.strata.items() if STRATA[label][0] < FEW)


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

    def sheets(
        self, metrics: Sequence[str] = HEADLINE, concept: str | None = None, stratum: str = ALL
    ) -> tuple[Sheet, ...]:
        """A sheet a metric with a row an arm, and the first metric by number of SuperActivators.

        Stars mark a difference that excludes zero, alone and in the family of all that are shown.

        Args:
            metrics: Which.
            concept: By default all concepts together.
            stratum: Of `STRATA`, or all together.

        Raises:
            ValueError: Unknown metric, concept or stratum.
        """
        concept = self._known(metrics, concept, stratum)
        found = [group for metric in metrics if (group := self._chosen([metric], concept, stratum))]
        each = [one for group in found for one in group]
        marks = iter(star_marks(_family([one.differences for one in each]))) if each else iter(())
        sheets = [self._sheet(group, marks) for group in found]
        # Not of a concept among several: strata are told of all concepts together.
        if found and stratum == ALL and concept == self._overall:
            sheets.append(self._by_stratum(found[0][0].metric))
        notes = self._notes(concept, stratum, len(each) * (len(self.objectives) - 1))
        return (*sheets, Sheet([], [], notes=notes))

    def _sheet(self, found: Sequence[Contrast], marks: Iterator[Any]) -> Sheet:
        """One metric: a row an arm, its value, its difference to the first with what could have been seen."""
        first, *others = self.objectives
        lines = []
        for one in found:
            lines.append([one.method, first, number(one.values.sel(objective=first).estimate), "", ""])
            for name, mark in zip(others, next(marks), strict=True):
                d = one.differences.sel(objective=name)
                value = number(one.values.sel(objective=name).estimate)
                # A mean that no document moves has no interval.
                ends = "the same" if not d.values.any() and np.isnan(d.low) else bounds_text(d, sign=True)
                lines.append(["", name, value, f"{signed(d.estimate)}{mark:2} {ends}", _seen(one, name)])
        header = ["method", "objective", "value", f"minus {first}", "could see"]
        sizes = {one.n_samples for one in found}
        title = f"{found[0].metric} ({found[0].better} is better)"
        if len(sizes) == 1:
            title += f", {noun_count(sizes.pop(), 'sample')}"
        else:
            header.append("n")
            lines = [[*line, str(found[k // len(self.objectives)].n_samples)] for k, line in enumerate(lines)]
        return Sheet(header, lines, f"{title}.")

    def _by_stratum(self, metric: str) -> Sheet:
        """One metric's differences by number of SuperActivators, in brackets what could have been seen."""
        first, *others = self.objectives
        by = {
            (one.method, one.stratum): one
            for one in self.contrasts
            if one.metric == metric and one.concept == self._overall
        }
        there = {label: (n, documents) for label, n, documents in self.strata if n}
        header = ["method", "objective", *(f"{label} (n={n})" for label, (n, _) in there.items())]
        lines = [
            [
                method if name == others[0] else "",
                name,
                *(_brief(by.get((method, label)), name) for label in there),
            ]
            for method in dict.fromkeys(m for m, _ in by)
            for name in others
        ]
        return Sheet(
            header,
            lines,
            f"{metric} minus {first}, by number of SuperActivators; in brackets what could have been seen.",
        )

    @cached_property
    def strata(self) -> tuple[tuple[str, int, int], ...]:
        """Every label of `STRATA` with its samples and their documents; a sample counts once a concept."""
        found = []
        for label in STRATA:
            mine = {(t.concept, t.sample, t.document) for t in self.trials if t.stratum == label}
            found.append((label, len(mine), len({document for *_, document in mine})))
        return tuple(found)

    def _known(self, metrics: Sequence[str], concept: str | None, stratum: str) -> str:
        """The concept that is asked for, once all names are known."""
        concept = self._overall if concept is None else concept
        require_known("concept", concept, dict.fromkeys(one.concept for one in self.contrasts))
        # Where every method refused every sample those that are shown first are not there.
        known = dict.fromkeys([*(one.metric for one in self.contrasts), *HEADLINE])
        for metric in metrics:
            require_known("metric", metric, known)
        held = dict.fromkeys(one.stratum for one in self.contrasts if one.concept == concept)
        if stratum in STRATA and stratum not in held:
            raise ValueError(
                f"stratum {stratum!r}: no compared sample of {concept!r} has so many SuperActivators, or "
                f"strata are not told for it; there are {list(held)}."
            )
        require_known("stratum", stratum, held)
        return concept

    def _chosen(self, metrics: Sequence[str], concept: str, stratum: str = ALL) -> list[Contrast]:
        return [
            one
            for one in self.contrasts
            if one.concept == concept and one.stratum == stratum and one.metric in metrics
        ]

    def _notes(self, concept: str, stratum: str, n: int) -> list[str]:
        notes = [
            f"{c.concept}: {c.compared} of {c.covered} samples with a SuperActivator compared, "
            f"{c.positive - c.covered} of {c.positive} skipped without one."
            for c in self.coverage
            if concept in (c.concept, ALL)
        ]
        few = sum(c.few for c in self.coverage if concept in (c.concept, ALL))
        if few and "superactivator" in self.objectives:
            notes.append(
                f"{few} of these have one or two SuperActivators: there 'superactivator' has next to no "
                "gradient on them, and gradient methods explain other tokens by it."
            )
        if concept == self._overall:
            empty = [label for label, samples, _ in self.strata if not samples]
            alone = [label for label, samples, documents in self.strata if samples and documents < LEAST]
            if empty:
                notes.append(f"No compared sample has this many SuperActivators: {'; '.join(empty)}.")
            if alone:
                notes.append(
                    f"Fewer than {LEAST} documents, so no interval, with this many SuperActivators: "
                    f"{'; '.join(alone)}."
                )
        refused = {m for c in self.coverage for m, n in c.refused.items() if n}
        if refused:
            notes.append(f"Some samples were refused by {', '.join(sorted(refused))}.")
        mine = [one for one in self.controls if (one.concept, one.stratum) == (concept, stratum)]
        blind = [one.metric for one in mine if one.verdicts[ORDERS[1]] != "better"]
        if blind:
            notes.append(
                "Do not judge by these, which do not prefer the labelled tokens to a random order "
                f"here: {', '.join(blind)}."
            )
        level = f"{100 * float(self.settings.get('level', Resampling.level)):g} % intervals over documents"
        notes.append(
            f"{star_words(n)} {level}. Could see: the smallest difference that would exclude zero with power "
            f"{POWER:g}, where it does not."
        )
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

    def plot(self, metrics: Sequence[str] = HEADLINE, concept: str | None = None, stratum: str = ALL) -> Any:
        """A panel a metric: each later objective minus the first by method, with intervals.

        Args:
            metrics: Which.
            concept: By default all concepts together.
            stratum: Of `STRATA`, or all together.

        Raises:
            ValueError: Unknown metric, concept or stratum, or no metric.
        """
        concept = self._known(metrics, concept, stratum)
        panels = {
            f"{metric} ({group[0].better} is better)": {one.method: one for one in group}
            for metric in metrics
            if (group := self._chosen([metric], concept, stratum))
        }
        held = "" if stratum == ALL else f", samples with {stratum} SuperActivators"
        return self._panels(panels, f"Objectives against {self.objectives[0]!r}: {_said(concept)}{held}")

    def plot_strata(self, metric: str = HEADLINE[0]) -> Any:
        """A panel a method: each later objective minus the first by number of SuperActivators.

        Args:
            metric: Which.

        Raises:
            ValueError: Unknown metric.
        """
        self._known([metric], None, ALL)
        count = {label: n for label, n, _ in self.strata}
        panels: dict[str, dict[str, Contrast]] = {}
        for one in self.contrasts:
            if one.metric == metric and one.concept == self._overall and one.stratum != ALL:
                panels.setdefault(one.method, {})[f"{one.stratum} (n={count[one.stratum]})"] = one
        better = {f" ({one.better} is better)" for found in panels.values() for one in found.values()}
        return self._panels(
            panels, f"{metric}{''.join(better)}, {_said(self._overall)}, by number of SuperActivators"
        )

    def _panels(self, panels: Mapping[str, Mapping[str, Contrast]], title: str) -> Any:
        """Panels two abreast, in each the differences of every row, a colour an objective."""
        if not panels:
            raise ValueError("metrics is empty: name one or more, or leave it out.")
        first, *others = self.objectives
        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        longest = max(map(len, panels.values()))
        figure, axes = plots.new_figure(
            8.5, 0.9 + rows * (0.6 + longest * (0.12 + 0.16 * len(others))), rows=rows, columns=columns
        )
        every = np.ravel(axes)
        looks = dict(zip(others, ((plots.TAIL_COLOUR, "-"), (plots.IN_COLOUR, "-")), strict=False))
        style = plots.styles(others, looks)
        for k, (ax, (name, found)) in enumerate(zip(every, panels.items(), strict=False)):
            for at, other in enumerate(others):
                parts = {row: one.differences.sel(objective=other) for row, one in found.items()}
                plots.whiskers(
                    ax,
                    stack(parts, "row"),
                    colours=style[other][0],
                    offset=0.24 * (at - (len(others) - 1) / 2),
                    label=other,
                )
            plots.zero(ax)
            # Panels are narrow, and differences of a hundredth have long labels.
            ax.xaxis.get_major_locator().set_params(nbins=5)
            plots.words(ax, title=name, x=f"minus {first}" if k >= len(panels) - columns else "")
            if k % columns and [*found] == [*list(panels.values())[k - 1]]:
                ax.set_yticklabels([])
        for ax in every[len(panels) :]:
            ax.remove()
        plots.legend_above(every[0], title)
        drawn = [one.differences for found in panels.values() for one in found.values()]
        level = f"{100 * float(self.settings.get('level', Resampling.level)):g} %"
        plots.note(figure, f"{level} over documents, paired, each read alone.{_sure_words(drawn)}", *drawn)
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
        return ALL if len(self.coverage) > 1 else self.coverage[0].concept


def _said(concept: str) -> str:
    return "all concepts" if concept == ALL else concept


def _seen(one: Contrast, name: str) -> str:
    """What could have been seen of an open difference."""
    size, same = one.detectable[name], not one.differences.sel(objective=name).values.any()
    if one.verdicts[name] != "open" or (same and not np.isfinite(size)):
        return ""
    return number(size) if np.isfinite(size) else "nothing"


def _brief(one: Contrast | None, name: str) -> str:
    """A difference without its interval; one that is not clear with what could have been seen."""
    if one is None:
        return "-"
    value, seen = signed(one.differences.sel(objective=name).estimate, 2), one.detectable[name]
    if one.verdicts[name] != "open":
        return f"{value}*"
    return f"{value} ({seen:.2f})" if np.isfinite(seen) else f"{value} (-)"


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
