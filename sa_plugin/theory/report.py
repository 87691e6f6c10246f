"""What `check_theory` returns: each theorem's quantities, verdicts, and what breaks them, as a result.

The picture of a report is a panel a theorem: what was measured by block with its interval, beside
the prediction and the controls, which have no interval drawn; `table` has the differences'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64

from sa_plugin._check import require_known
from sa_plugin.show import plots
from sa_plugin.show.result import (
    FORMAT,
    Result,
    Sheet,
    bounds_text,
    clean,
    exact,
    long_frame,
    noun_count,
    number,
)
from sa_plugin.theory.assumptions import Assumption, HeadPaths, told
from sa_plugin.theory.measures import QUANTITIES, Quantity
from sa_plugin.theory.paths import Directions
from sa_plugin.theory.verdicts import TITLES, Amplification, Regime, Verdict, too_small

_SHEETS = {
    "T1": (
        "gap_slope",
        "gap_deviation_ratio",
        "gaps_grown",
        "heads_gap_deviation_ratio",
        "heads_gaps_grown",
        "prefix_gap_deviation_ratio",
        "prefix_gaps_grown",
    ),
    "C1": ("attention_by_sign", "top_lift_plus", "top_mass_plus", "effective_keys"),
    "C2": ("spread", "equalisation", "update_gap_ratio"),
    "T2": ("skew", "skew_growth", "tail_gain"),
    "assumption": ("predicted_factor", "mlp_share", "path_r2"),
}
"""Quantities of each theorem's sheet."""
_PANELS = ("gap_deviation_ratio", "attention_by_sign", "spread", "tail_gain")
"""The quantity of each theorem's panel."""
_DASHES = {"permuted": "--", "random": ":"}


@dataclass(frozen=True, eq=False, repr=False)
class TheoryReport(Result):
    """Each theorem's quantities, measured beside predicted, with controls and what follows.

    Attributes:
        quantities: By (concept, direction) and name; see `sa_plugin.theory.measures`.
        verdicts: By the rule of `sa_plugin.theory.verdicts`.
        amplifications: Whether the mechanism is large enough at all; none where nothing is predicted.
        regimes: Separating or collapsing.
        assumptions: Those that are broken.
        heads: Each head's beta, gamma and attention lift; columns as in `directions`.
        directions: What was followed.
        tenths: Slopes between neighbouring tenths of a by (concept, direction).
        absent: What was not measured, with the reason.
        settings: Counts, seed, split and model.
    """

    quantities: Mapping[tuple[str, str], Mapping[str, Quantity]]
    verdicts: tuple[Verdict, ...]
    amplifications: tuple[Amplification, ...]
    regimes: tuple[Regime, ...]
    assumptions: tuple[Assumption, ...]
    heads: HeadPaths
    directions: Directions
    tenths: Mapping[tuple[str, str], Mapping[str, Float64[np.ndarray, "layer step"]]]
    absent: Mapping[str, str]
    settings: Mapping[str, Any]

    about: ClassVar[str] = (
        "Formulas are a reconstruction from the verbal claims of arXiv 2512.05038, not the paper's "
        "own; intervals leave out each document in turn with the vectors fixed; nothing here shows a cause."
    )

    def headline(self) -> str:
        """Model, size, and how many claims got which answer."""
        answers = Counter(verdict.answer for verdict in self.verdicts)
        told = ", ".join(f"{n} {answer}" for answer, n in answers.most_common())
        return (
            f"{self.settings['model']}, {len(self.quantities)} directions, "
            f"{len(self.layers)} layers, {noun_count(self.settings['n_samples'], 'sample')}: {told}; "
            f"{len({a.name for a in self.assumptions})} assumptions broken"
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """Block indices, the axis of every quantity."""
        return self.directions.layers

    def quantity(self, name: str, concept: str, direction: str = "fixed") -> Quantity:
        """One quantity.

        Raises:
            ValueError: Unknown concept or direction, or a quantity that is unknown or absent.
        """
        found = self._of(concept, direction)
        why = self.absent.get("prefix_*" if name.startswith("prefix_") else name)
        if name not in found and why is not None:
            raise ValueError(f"{name} was not measured: {why}.")
        require_known("quantity", name, found)
        return found[name]

    def _of(self, concept: str, direction: str) -> Mapping[str, Quantity]:
        require_known("concept", concept, dict.fromkeys(c for c, _ in self.quantities))
        require_known("direction", direction, [d for c, d in self.quantities if c == concept])
        return self.quantities[concept, direction]

    def verdict(self, claim: str, concept: str, direction: str = "fixed") -> Verdict:
        """One verdict.

        Raises:
            ValueError: Unknown claim, concept or direction.
        """
        require_known("claim", claim, TITLES)
        require_known("concept", concept, dict.fromkeys(v.concept for v in self.verdicts))
        mine = {v.direction: v for v in self.verdicts if (v.claim, v.concept) == (claim, concept)}
        require_known("direction", direction, mine)
        return mine[direction]

    def sheets(self) -> tuple[Sheet, ...]:
        """The size of the mechanism, verdicts claim by claim, regimes, broken assumptions, absences."""
        s = self.settings
        size = (
            f"{s['model']}, {s['split']}: {noun_count(s['n_samples'], 'sample')} of "
            f"{noun_count(s['n_documents'], 'document')}, {len(self.layers)} layers, top share {s['tail']:g}."
        )
        header = ("claim", "concept", "vectors", "answer", "layers for it", "against", "assessed")
        rows = [
            [
                v.claim,
                v.concept,
                v.direction,
                v.answer,
                *map(str, map(len, (v.for_it, v.against, v.assessed))),
            ]
            for claim in TITLES
            for v in self.verdicts
            if v.claim == claim
        ]
        reasons = [line for claim, title in TITLES.items() for line in self._reasons(claim, title)]
        absent = [f"absent: {what}: {why}." for what, why in self.absent.items()]
        words = [[repr(one) for one in (*self.amplifications, *self.regimes)], told(self.assumptions), absent]
        first = too_small(self.amplifications)
        return (
            *([Sheet((), (), first)] if first else []),
            Sheet(header, rows, size, reasons),
            *(Sheet((), (), notes=some) for some in words if some),
        )

    def _reasons(self, claim: str, title: str) -> list[str]:
        mine = [v for v in self.verdicts if v.claim == claim]
        # Most directions share a reason, above all that there was nothing to measure.
        of = {v.because: [f"{w.concept} {w.direction}" for w in mine if w.because == v.because] for v in mine}
        return [f"{claim}: {title}", *(f"  {', '.join(who)} because {why}" for why, who in of.items())]

    def sheet(self, theorem: str, concept: str, direction: str = "fixed") -> Sheet:
        """Measured, predicted and controls of one theorem, by layer.

        Args:
            theorem: "T1", "C1", "C2", "T2" or "assumption".
            concept: Which.
            direction: "fixed" or "refitted".

        Raises:
            ValueError: Unknown theorem, concept or direction.
        """
        require_known("theorem", theorem, _SHEETS)
        found = self._of(concept, direction)
        header, columns = ["layer"], [[str(layer) for layer in self.layers]]
        for q in (found[name] for name in _SHEETS[theorem] if name in found):
            header.append(q.name)
            cells = [q.measured.sel(layer=layer) for layer in self.layers]
            columns.append([f"{number(one.estimate)} {bounds_text(one)}" for one in cells])
            for name, values in {"predicted": q.predicted, **q.controls}.items():
                if values is not None:
                    header.append(name)
                    columns.append([number(float(value)) for value in values])
        return Sheet(header, list(zip(*columns, strict=True)), f"{theorem}, {concept}, {direction} vectors")

    def rows(self) -> list[dict[str, Any]]:
        """Long form: a row for every number of every quantity and layer; `of` says whose it is.

        `of` is "measured", "predicted", "permuted", "random", or "minus permuted" and "minus
        random", the measured less the control, column by column. Behind them, without a layer: the
        mean logarithm of a block's growth of gaps ("log_growth"), and the "detectable" change of every
        claim of which nothing can be said, `of` the quantity that failed.
        """
        rows = [
            {"concept": concept, "direction": direction, "theorem": q.theorem, "null": q.null, **row}
            for (concept, direction), found in self.quantities.items()
            for q in found.values()
            for row in self._rows(q)
        ]
        for a in self.amplifications:
            labels = {"concept": a.concept, "direction": a.direction, "theorem": "T1", "null": 0.0}
            for of in ("measured", "predicted"):
                rows.append({**labels, "of": of, "layer": None, **getattr(a, of).row("log_growth")})
        return rows + [
            exact(
                "detectable",
                v.detectable,
                concept=v.concept,
                direction=v.direction,
                theorem=v.claim,
                null=QUANTITIES[v.measure].null,
                of=v.measure,
                layer=None,
            )
            for v in self.verdicts
            if v.measure
        ]

    def _rows(self, q: Quantity) -> list[dict[str, Any]]:
        rows = [{"of": "measured", **row} for row in q.measured.rows(q.name)]
        for of, values in {"predicted": q.predicted, **q.controls}.items():
            if values is not None:
                pairs = zip(self.layers, values, strict=True)
                rows += [exact(q.name, float(value), of=of, layer=layer) for layer, value in pairs]
        for control, drawn in q.excess.items():
            rows += [{"of": f"minus {control}", **row} for row in drawn.rows(q.name)]
        return rows

    def head_rows(self) -> list[dict[str, Any]]:
        """One row for each layer, head and direction followed."""
        heads = self.heads
        return [
            {
                **column._asdict(),
                "layer": layer,
                "head": head,
                "beta": float(heads.beta[at, head, k]),
                "gamma": float(heads.gamma[at, head, k]),
                "aligned": bool(heads.aligned[at, head, k]),
                "lift_plus": float(heads.lift_plus[at, head, k]),
                "lift_minus": float(heads.lift_minus[at, head, k]),
            }
            for k, column in enumerate(self.directions.columns)
            for at, layer in enumerate(self.layers)
            for head in range(heads.beta.shape[1])
        ]

    def heads_table(self) -> Any:
        """Every head's beta, gamma and attention lift in long form, as a DataFrame."""
        labels = ("concept", "direction", "role", "layer", "head", "aligned")
        return long_frame(
            [
                exact(name, row[name], **{label: row[label] for label in labels})
                for row in self.head_rows()
                for name in ("beta", "gamma", "lift_plus", "lift_minus")
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Every number, verdict and setting, JSON-ready; what is not defined is None."""
        tenths = [
            {"concept": concept, "direction": direction, "of": of, "slopes": clean(slopes)}
            for (concept, direction), found in self.tenths.items()
            for of, slopes in found.items()
        ]
        return {
            "format": FORMAT,
            "kind": type(self).__name__,
            "settings": clean(self.settings),
            "layers": list(self.layers),
            "rows": [clean(row) for row in self.rows()],
            "verdicts": [clean(asdict(one)) for one in self.verdicts],
            "amplifications": [clean(one) for one in self.amplifications],
            "regimes": [clean(asdict(one)) for one in self.regimes],
            "assumptions": [clean(asdict(one)) for one in self.assumptions],
            "heads": [clean(row) for row in self.head_rows()],
            "tenths": tenths,
            "absent": dict(self.absent),
        }

    def plot(self, concept: str | None = None, direction: str = "fixed") -> Any:
        """One panel a theorem.

        Args:
            concept: By default the first.
            direction: "fixed" or "refitted".

        Raises:
            ValueError: Unknown concept or direction.
        """
        concept = next(iter(self.quantities))[0] if concept is None else concept
        found = self._of(concept, direction)
        figure, axes = plots.new_figure(9.5, 6.0, rows=2, columns=2)
        for k, (name, ax) in enumerate(zip(_PANELS, axes.flat, strict=True)):
            _draw(ax, found[name])
            plots.words(ax, title=f"{found[name].theorem}: {name}", x="block", y=name)
            if k == 1:
                plots.legend(ax)
        figure.suptitle(f"{concept}, {direction} vectors", fontsize=10, parse_math=False)
        self._note(figure, [found[name] for name in _PANELS])
        return figure

    def plot_quantity(self, name: str, concept: str, direction: str = "fixed") -> Any:
        """One quantity by layer: measured with its interval, predicted, and the controls.

        Args:
            name: See `sa_plugin.theory.measures`.
            concept: Which.
            direction: "fixed" or "refitted".

        Raises:
            ValueError: Unknown or absent quantity, concept or direction.
        """
        q = self.quantity(name, concept, direction)
        figure, ax = plots.new_figure(6.5, 3.6)
        _draw(ax, q)
        plots.words(ax, title=f"{q.theorem}, {concept}, {direction} vectors", x="block", y=name)
        plots.legend(ax)
        self._note(figure, [q])
        return figure

    def plot_tenths(self, concept: str, layer: int, direction: str = "fixed") -> Any:
        """The slope of a' on a between neighbouring tenths of a, in one block.

        Raises:
            ValueError: Unknown concept, direction or layer.
        """
        self._of(concept, direction)
        if layer not in self.layers:
            raise ValueError(f"layer {layer} was not checked; checked: {list(self.layers)}.")
        at = self.layers.index(layer)
        figure, ax = plots.new_figure(6.5, 3.6)
        colours = {"measured": plots.TAIL_COLOUR, "heads": plots.OUT_COLOUR, "predicted": plots.IN_COLOUR}
        for name, slopes in self.tenths[concept, direction].items():
            ax.plot(np.arange(1, 10) / 10, slopes[at], "o-", color=colours[name], ms=3, label=name)
        title = f"block {layer}, {concept}, {direction} vectors"
        plots.words(ax, title=title, x="rank of a within its sample", y="slope of a' on a")
        plots.legend(ax)
        plots.note(figure, "Tenths are ranked on a: noise in a flattens these slopes.")
        return figure

    def _note(self, figure: Any, shown: Sequence[Quantity]) -> None:
        level = f"{100 * float(self.settings['level']):g} %"
        words = "Predictions are our reconstruction; no cause is shown."
        plots.note(figure, f"Bands: {level} over documents. {words}", *(q.measured for q in shown))


def _draw(ax: Any, q: Quantity) -> None:
    plots.line(ax, q.measured, label="measured", width=2.0)
    layers = q.measured.axes["layer"]
    if not np.isfinite(q.measured.estimate).any():
        ax.text(0.5, 0.6, "not measured", ha="center", transform=ax.transAxes, fontsize=9)
    if q.predicted is not None:
        ax.plot(layers, q.predicted, color=plots.IN_COLOUR, lw=1.5, label="predicted (ours)")
    for control, dashes in _DASHES.items():
        values = q.controls.get(control)
        if values is not None:
            ax.plot(layers, values, color=plots.OUT_COLOUR, ls=dashes, lw=1.2, label=control)
    if np.isfinite(q.null):
        plots.zero(ax, upright=False, at=q.null)
