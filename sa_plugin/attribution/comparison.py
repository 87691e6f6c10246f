"""What `compare` found: a table, curves, and heat maps of one sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from sa_plugin._names import require_known
from sa_plugin._optional import require
from sa_plugin.attribution.heat_map import heat_map
from sa_plugin.attribution.paired import ORDERS, Measured, Row, control_rows
from sa_plugin.attribution.result import Attribution
from sa_plugin.detection.printing import aligned, as_html, frame, number, plain, signed

CurveKey = tuple[str, str, str, str]
"""Method, objective, "insertion" or "deletion", yardstick."""
HEADLINE = ("f1", "average_precision", "pointing", "insertion/mean_alignment",
            "deletion/mean_alignment")  # fmt: skip


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
    """

    concept: str
    layer: int
    positive: int
    covered: int
    compared: int
    cal: int
    refused: Mapping[str, int]
    probe: float | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Objectives side by side; made by `compare`.

    Attributes:
        methods: Explainers.
        objectives: The first is what the others are compared with.
        rows: Every metric by concept and method, with paired differences.
        coverage: By concept.
        curves: Mean curves at `grid`, over all samples of all concepts.
        grid: Shares of the players.
        examples: One sample of each concept, every method and objective.
        settings: What it ran with, the primary yardstick among them.
        measured: What the rows are made of, sample by sample, controls among them.
    """

    methods: tuple[str, ...]
    objectives: tuple[str, ...]
    rows: tuple[Row, ...]
    coverage: tuple[Coverage, ...]
    curves: Mapping[CurveKey, Float[np.ndarray, " point"]]
    grid: Float[np.ndarray, " point"]
    examples: tuple[Attribution, ...] = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    measured: tuple[Measured, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        samples = sum(one.compared for one in self.coverage)
        return (
            f"Comparison({list(self.objectives)}, {len(self.methods)} methods, "
            f"{len(self.coverage)} concepts, {samples} samples)"
        )

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def text(self, metrics: Sequence[str] = HEADLINE, concept: str | None = None) -> str:
        """Method x objective x metric as text, an asterisk where the interval excludes zero.

        Args:
            metrics: Which rows.
            concept: By default all concepts together.
        """
        concept = self._overall if concept is None else concept
        shown = [r for r in self.rows if r.concept == concept and r.metric in metrics]
        names = list(self.objectives)
        header = ["method", "metric", *names, *(f"{o} - {names[0]}" for o in names[1:]), "n"]
        lines = []
        for row in shown:
            cells = [row.method, f"{row.metric} ({row.better})"]
            cells += [number(row.values[o].estimate) for o in names]
            for name in names[1:]:
                d = row.differences[name]
                mark = "*" if d.excludes_zero else " "
                cells.append(f"{signed(d.estimate)}{mark} [{signed(d.low)}, {signed(d.high)}]")
            lines.append([*cells, str(row.n_samples)])
        notes = [
            f"{c.concept}: {c.compared} of {c.covered} samples with a SuperActivator compared, "
            f"{c.positive - c.covered} of {c.positive} skipped without one."
            for c in self.coverage
            if concept in (c.concept, "all")
        ]
        refused = {m for c in self.coverage for m, n in c.refused.items() if n}
        if refused:
            notes.append(f"Some samples were refused by {', '.join(sorted(refused))}.")
        blind = [r.metric for r in self._controls_of(concept) if r.wins[ORDERS[1]] != "better"]
        if blind:
            notes.append(
                "Do not judge by these, which do not prefer the labelled tokens to a random order "
                f"here: {', '.join(blind)}."
            )
        level = f"{100 * float(self.settings.get('level', 0.95)):g} % intervals over documents"
        notes.append(f"{level}, paired, not adjusted for the number of rows.")
        return "\n".join([aligned(header, lines), *notes])

    @property
    def controls(self) -> list[Row]:
        """The labelled tokens first against a random order, by yardstick; see `control_rows`."""
        wanted = {k: self.settings[k] for k in ("draws", "seed", "level") if k in self.settings}
        return control_rows(self.measured, **wanted)

    def _controls_of(self, concept: str) -> list[Row]:
        return [row for row in self.controls if row.concept == concept]

    def table(self) -> Any:
        """Every row: a pandas DataFrame where pandas is installed."""
        return frame([self._flat(row) for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Every number, JSON-ready; what is not defined is None."""
        curves = [
            {"method": m, "objective": o, "kind": k, "yardstick": y, "values": values}
            for (m, o, k, y), values in self.curves.items()
        ]
        found = {
            "settings": self.settings,
            "rows": [self._flat(row) for row in self.rows],
            "coverage": [asdict(one) for one in self.coverage],
            "grid": self.grid,
            "curves": curves,
        }
        return dict(plain(found))

    def heat_map(self, concept: str | None = None) -> str:
        """Side-by-side maps of one sample, as HTML.

        Args:
            concept: By default the first.

        Raises:
            ValueError: Unknown concept.
        """
        known = list(dict.fromkeys(one.concept for one in self.examples))
        concept = known[0] if concept is None else concept
        require_known("concept", concept, known)
        return heat_map([one for one in self.examples if one.concept == concept])

    def plot(self, metric: str = "f1", *, ax: Any = None) -> Any:
        """Bars of every method and objective, with intervals.

        Args:
            metric: One of the rows'.
            ax: Where to draw; by default a new figure.

        Raises:
            ValueError: Unknown metric.
        """
        rows = [r for r in self.rows if r.concept == self._overall]
        require_known("metric", metric, dict.fromkeys(r.metric for r in rows))
        chosen = [r for r in rows if r.metric == metric]
        ax = _axes(ax)
        width = 0.8 / len(self.objectives)
        for k, name in enumerate(self.objectives):
            found = [r.values[name] for r in chosen]
            at = np.arange(len(chosen)) + (k - (len(self.objectives) - 1) / 2) * width
            estimate = np.array([v.estimate for v in found])
            reach = np.array([[v.estimate - v.low, v.high - v.estimate] for v in found]).T
            ax.bar(at, estimate, width, yerr=np.clip(reach, 0, None), label=name)
        ax.set_xticks(range(len(chosen)), [r.method for r in chosen], rotation=30, ha="right")
        ax.set_ylabel(f"{metric} ({chosen[0].better} is better)")
        ax.legend()
        return ax

    def plot_curves(
        self, method: str, kind: str = "insertion", yardstick: str = "mean_alignment", *,
        ax: Any = None,
    ) -> Any:  # fmt: skip
        """Mean insertion or deletion curves of one method.

        Args:
            method: Explainer.
            kind: "insertion" or "deletion".
            yardstick: What is read.
            ax: Where to draw; by default a new figure.

        Raises:
            ValueError: There is no such curve.
        """
        for position, (what, name) in enumerate(
            (("method", method), ("kind", kind), ("yardstick", yardstick))
        ):
            place = (0, 2, 3)[position]
            mine = [key[place] for key in self.curves if key[1] in self.objectives]
            require_known(what, name, dict.fromkeys(mine))
        ax = _axes(ax)
        for name in self.objectives:
            ax.plot(self.grid, self.curves[method, name, kind, yardstick], label=name)
        ax.set_xlabel("share of tokens put in" if kind == "insertion" else "share taken out")
        ax.set_ylabel(yardstick)
        ax.set_title(f"{method}, {kind}")
        ax.legend()
        return ax

    @property
    def _overall(self) -> str:
        return "all" if len(self.coverage) > 1 else self.coverage[0].concept

    def _flat(self, row: Row) -> dict[str, Any]:
        flat: dict[str, Any] = {
            "concept": row.concept, "method": row.method, "metric": row.metric,
            "better": row.better, "n_samples": row.n_samples,
        }  # fmt: skip
        for name, value in row.values.items():
            flat |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
        for name, value in row.differences.items():
            flat |= {
                f"{name}_difference": value.estimate,
                f"{name}_difference_low": value.low,
                f"{name}_difference_high": value.high,
                f"{name}_is": row.wins[name],
            }
        return flat


def _axes(ax: Any) -> Any:
    return require("matplotlib.pyplot", "plot").subplots()[1] if ax is None else ax
