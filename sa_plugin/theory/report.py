"""What `check_theory` returns: numbers, words and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from sa_plugin._names import require_known
from sa_plugin._optional import require
from sa_plugin.detection.printing import aligned, as_html, number
from sa_plugin.theory.assumptions import Assumption, Heads
from sa_plugin.theory.directions import Directions
from sa_plugin.theory.estimates import Quantity
from sa_plugin.theory.regime import Regime
from sa_plugin.theory.verdicts import TITLES, Verdict

SHOWN = {
    "T1": (
        "gap_slope", "gap_deviation_ratio", "gaps_grown", "heads_gap_deviation_ratio",
        "heads_gaps_grown", "prefix_gap_deviation_ratio", "prefix_gaps_grown",
    ),
    "C1": ("attention_by_sign", "top_lift_plus", "top_mass_plus", "effective_keys"),
    "C2": ("spread", "equalisation", "update_gap_ratio"),
    "T2": ("skew", "skew_growth", "tail_gain"),
    "assumption": ("predicted_factor", "mlp_share", "path_r2"),
}  # fmt: skip
NOTE = (
    "Formulas are a reconstruction from the verbal claims of arXiv 2512.05038, not the paper's "
    "own; intervals resample documents with the vectors fixed; nothing here shows a cause."
)


@dataclass(frozen=True, eq=False)
class TheoryReport:
    """Each theorem's quantities, measured beside predicted, with controls and what follows.

    Attributes:
        quantities: By (concept, direction) and name; see `sa_plugin.theory.measures`.
        verdicts: By the rule of `sa_plugin.theory.verdicts`.
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
    regimes: tuple[Regime, ...]
    assumptions: tuple[Assumption, ...]
    heads: Heads
    directions: Directions
    tenths: Mapping[tuple[str, str], Mapping[str, Float64[np.ndarray, "layer step"]]]
    absent: Mapping[str, str]
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        answers = Counter(verdict.answer for verdict in self.verdicts)
        told = ", ".join(f"{n} {answer}" for answer, n in answers.most_common())
        return (
            f"TheoryReport({self.settings['model']}, {len(self.quantities)} directions, "
            f"{len(self.layers)} layers, {self.settings['n_samples']} samples: {told}; "
            f"{len({a.name for a in self.assumptions})} assumptions broken)"
        )

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return as_html(str(self))

    @property
    def layers(self) -> tuple[int, ...]:
        """Block indices, the axis of every quantity."""
        return self.directions.layers

    def quantity(self, name: str, concept: str, direction: str = "fixed") -> Quantity:
        """One quantity.

        Raises:
            ValueError: Unknown concept or direction, or a quantity that is unknown or absent.
        """
        require_known("concept", concept, dict.fromkeys(c for c, _ in self.quantities))
        require_known("direction", direction, [d for c, d in self.quantities if c == concept])
        found = self.quantities[concept, direction]
        why = self.absent.get("prefix_*" if name.startswith("prefix_") else name)
        if name not in found and why is not None:
            raise ValueError(f"{name} was not measured: {why}.")
        require_known("quantity", name, found)
        return found[name]

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

    def rows(self) -> list[dict[str, Any]]:
        """One row for each concept, direction, quantity and layer."""
        rows = []
        for (concept, direction), found in self.quantities.items():
            for q in found.values():
                for at, layer in enumerate(self.layers):
                    row: dict[str, Any] = {
                        "concept": concept, "direction": direction, "theorem": q.theorem,
                        "quantity": q.name, "layer": layer, "null": q.null,
                        "measured": float(q.value[at]), "low": float(q.low[at]),
                        "high": float(q.high[at]),
                        "predicted": _at(q.predicted, at),
                    }  # fmt: skip
                    for control in ("permuted", "random"):
                        row[control] = _at(q.controls.get(control), at)
                        excess = q.excess.get(control)
                        for k, bound in enumerate(("", "_low", "_high")):
                            row[f"minus_{control}{bound}"] = _at(
                                None if excess is None else excess[k], at
                            )
                    rows.append(row)
        return rows

    def head_rows(self) -> list[dict[str, Any]]:
        """One row for each layer, head and direction followed."""
        rows = []
        for k, column in enumerate(self.directions.columns):
            for at, layer in enumerate(self.layers):
                for head in range(self.heads.beta.shape[1]):
                    place = at, head, k
                    rows.append(
                        {
                            **column._asdict(), "layer": layer, "head": head,
                            "beta": float(self.heads.beta[place]),
                            "gamma": float(self.heads.gamma[place]),
                            "aligned": bool(self.heads.aligned[place]),
                            "lift_plus": float(self.heads.lift_plus[place]),
                            "lift_minus": float(self.heads.lift_minus[place]),
                        }
                    )  # fmt: skip
        return rows

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame.

        Raises:
            ImportError: pandas is not installed; `rows()` needs nothing.
        """
        return require("pandas", "demo", "TheoryReport.to_pandas").DataFrame(self.rows())

    def summary(self) -> str:
        """Verdicts, regimes, broken assumptions and what is absent, in words."""
        s = self.settings
        lines = [
            f"{s['model']}, {s['split']}: {s['n_samples']} samples of {s['n_documents']} "
            f"documents, {len(self.layers)} layers, top share {s['tail']:g}. {NOTE}",
        ]
        for claim, title in TITLES.items():
            lines.append(f"\n{claim}: {title}")
            lines += [
                f"  {v.concept} {v.direction}: {v.answer}, because {v.because}"
                for v in self.verdicts
                if v.claim == claim
            ]
        lines += ["", *map(repr, self.regimes)]
        lines += ["", *map(repr, self.assumptions)] if self.assumptions else []
        lines += ["", *(f"absent: {what}: {why}." for what, why in self.absent.items())]
        return "\n".join(lines)

    def table(self, theorem: str, concept: str, direction: str = "fixed") -> str:
        """Measured, predicted and controls by layer, as plain text.

        Args:
            theorem: "T1", "C1", "C2", "T2" or "assumption".
            concept: Which.
            direction: "fixed" or "refitted".

        Raises:
            ValueError: Unknown theorem, concept or direction.
        """
        require_known("theorem", theorem, SHOWN)
        self.quantity("gap_slope", concept, direction)
        found = self.quantities[concept, direction]
        shown = [found[name] for name in SHOWN[theorem] if name in found]
        header, columns = ["layer"], []
        for q in shown:
            header.append(q.name)
            columns.append([_cell(*x) for x in zip(q.value, q.low, q.high, strict=True)])
            extra = {"predicted": q.predicted, **q.controls}
            for name, values in extra.items():
                if values is not None:
                    header.append(name)
                    columns.append([number(float(v)) for v in values])
        body = [
            [str(b), *row] for b, row in zip(self.layers, zip(*columns, strict=True), strict=True)
        ]
        return aligned(header, body)


def _at(values: Float64[np.ndarray, " layer"] | None, at: int) -> float:
    return float("nan") if values is None else float(values[at])


def _cell(value: float, low: float, high: float) -> str:
    return f"{number(value)} [{number(low)}, {number(high)}]"
