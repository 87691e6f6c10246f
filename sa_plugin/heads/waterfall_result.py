"""What `tail_waterfall` returns: steps, levels and words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sa_plugin._names import require_known
from sa_plugin.detection.printing import aligned, as_html, frame, number, signed
from sa_plugin.heads.components import STEP_KINDS, Column, Component
from sa_plugin.heads.effects import Effect, Estimate

LIFTS = ("lift", "in_concept_lift", "strongest_lift")
_WORDS = {"embedding": "embedding %", "heads": "attention %", "mlps": "MLPs %", "norms": "norms %",
          "refit": "refit %"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Waterfall:
    """The tail's growth, step by step.

    Attributes:
        steps: Rows of every array: "embedding", then of each block "L3 attention" (heads and b_O),
            "L3 MLP", post_ln "L3 norms", refitted "L3 refit"; last the constant "reference".
        columns: Columns of every array: a concept at its layer.
        directions: "fixed" or "refitted", of each column.
        depths: Number of blocks before each column's score; later steps are 0.
        effects: "lift" (against the other tokens of the same samples), "in_concept_lift",
            "strongest_lift", and "contrast" (in-concept against tokens of negative samples).
        means: Mean step by token group, as in `HeadLedger`.
        settings: Split, counts, seed, layers of the bank, unit.
        residue: Largest |score - sum of steps| over kept tokens, relative to the summed sizes.
    """

    steps: tuple[Component, ...]
    columns: tuple[Column, ...]
    directions: tuple[str, ...]
    depths: tuple[int, ...]
    effects: Mapping[str, Effect]
    means: Mapping[str, Float[np.ndarray, "step column"]]
    settings: Mapping[str, Any]
    residue: float

    def __repr__(self) -> str:
        s = self.settings
        ways = " and ".join(dict.fromkeys(self.directions))
        return (
            f"Waterfall({len(set(self.columns))} scores, {ways} direction, {s['split']} split, "
            f"{s['n_samples']} samples, {s['n_tokens']} tokens; closes to {self.residue:.0e})"
        )

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def column(self, concept: str, direction: str = "fixed", layer: int | None = None) -> int:
        """Place of a concept (at a layer, where it was followed to several).

        Raises:
            ValueError: Unknown, or ambiguous.
        """
        found = [
            k for k, (c, way) in enumerate(zip(self.columns, self.directions, strict=True))
            if c.concept == concept and way == direction and layer in (None, c.layer)
        ]  # fmt: skip
        if len(found) == 1:
            return found[0]
        have = ", ".join(dict.fromkeys(f"{c.concept!r} at {c.layer}" for c in self.columns))
        problem = "stands at several layers: name one" if found else "was not followed"
        raise ValueError(
            f"{concept!r} at layer {layer}, direction {direction!r}, {problem}; the waterfall has "
            f"{have}, {' and '.join(dict.fromkeys(self.directions))}."
        )

    def shown(self, column: int) -> list[int]:
        """Steps that a column can have."""
        last = self.depths[column]
        follows = self.directions[column] == "refitted"
        return [
            i for i, step in enumerate(self.steps)
            if step.kind != "constants"
            and (step.block is None or step.block + (step.kind == "refit") < last)
            and (step.kind != "refit" or (follows and last > 0))
        ]  # fmt: skip

    def heights(
        self, concept: str, direction: str = "fixed", *, layer: int | None = None,
        effect: str = "lift",
    ) -> tuple[list[str], Estimate, Float[np.ndarray, " step"]]:  # fmt: skip
        """Steps of one column: their names, heights with intervals, and the level after each.

        Args:
            concept: Name.
            direction: "fixed" or "refitted".
            layer: Where a concept was followed to several.
            effect: A name of `effects`.
        """
        require_known("effect", effect, tuple(self.effects))
        k = self.column(concept, direction, layer)
        rows, terms = self.shown(k), self.effects[effect].terms
        heights = Estimate(*(one[rows, k] for one in terms))
        return [self.steps[i].name for i in rows], heights, np.cumsum(heights.value)

    def table(self, effect: str = "lift") -> Any:
        """One row a step and column: a pandas DataFrame where pandas is installed.

        Args:
            effect: A name of `effects`.

        Returns:
            Height with its interval, level after the step, and the mean step over the tail.
        """
        rows = []
        for k, (column, way) in enumerate(zip(self.columns, self.directions, strict=True)):
            _, heights, level = self.heights(column.concept, way, layer=column.layer, effect=effect)
            for j, i in enumerate(self.shown(k)):
                step = self.steps[i]
                rows.append({
                    "concept": column.concept, "at_layer": column.layer, "direction": way,
                    "step": step.name, "kind": step.kind, "block": step.block,
                    "height": float(heights.value[j]), "low": float(heights.low[j]),
                    "high": float(heights.high[j]), "level": float(level[j]),
                    "tail": float(self.means["tail"][i, k]),
                })  # fmt: skip
        return frame(rows)

    def summary(self) -> str:
        """Totals, shares of each kind of step, and the largest steps, as text."""
        header = ["concept", "layer", "direction", "lift", *_WORDS.values(), "largest steps"]
        lift = self.effects["lift"]
        rows = []
        for k, (column, way) in enumerate(zip(self.columns, self.directions, strict=True)):
            names, heights, _ = self.heights(column.concept, way, layer=column.layer)
            order = np.argsort(-np.abs(np.nan_to_num(heights.value)), kind="stable")[:3]
            shares = lift.shares.value[:, k]
            rows.append([
                column.concept, str(column.layer), way, signed(float(lift.total.value[k])),
                *(number(100 * float(shares[STEP_KINDS.index(kind)]), 0) for kind in _WORDS),
                ", ".join(f"{names[j]} {signed(float(heights.value[j]))}" for j in order),
            ])  # fmt: skip
        note = (
            "Mean step over SuperActivators minus that over the other tokens of their samples. "
            "They were chosen by the sum at the end: head_ledger has the control."
        )
        return "\n\n".join([repr(self), aligned(header, rows), note])
