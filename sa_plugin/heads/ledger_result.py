"""A head ledger as rows, as text, and as `results.json` has it.

What `head_ledger` returns: tables, maps and words.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin.heads.norms import KINDS, Column, Component, ComponentKind
from sa_plugin.heads.sums import Effect, Estimate, share_excluding_zero
from sa_plugin.show.result import aligned, as_html, frame, number, plain, signed

# The effects that are printed; the others are in the tables.
SHOWN = ("lift", "control", "excess", "contrast")
_NAMES: Mapping[ComponentKind, str] = {"heads": "head", "mlps": "mlp", "embedding": "embedding"}


def component_row(ledger: HeadLedger, component: int, column: int) -> dict[str, Any]:
    """Every effect of one component on one score, with intervals."""
    part, of = ledger.components[component], ledger.columns[column]
    row: dict[str, Any] = {
        "concept": of.concept,
        "at_layer": of.layer,
        "component": part.name,
        "kind": part.kind,
        "block": part.block,
        "head": part.head,
    }
    for name, effect in ledger.effects.items():
        row[name], row[f"{name}_low"], row[f"{name}_high"] = (
            float(values[component, column]) for values in effect.terms
        )
    return row


def share_rows(ledger: HeadLedger) -> list[dict[str, Any]]:
    """Total and shares of every effect, one row a column and effect."""
    rows = []
    for name, effect in ledger.effects.items():
        for k, column in enumerate(ledger.columns):
            row: dict[str, Any] = {
                "concept": column.concept,
                "at_layer": column.layer,
                "effect": name,
                "tokens": int(effect.n_tokens[k]),
            }
            row["total"], row["total_low"], row["total_high"] = (float(values[k]) for values in effect.total)
            for j, kind in enumerate(KINDS):
                row[kind], row[f"{kind}_low"], row[f"{kind}_high"] = (
                    float(values[j, k]) for values in effect.shares
                )
            rows.append(row)
    return rows


def block_rows(ledger: HeadLedger) -> list[dict[str, Any]]:
    """Every effect of each block up to a column's layer, with intervals."""
    rows = []
    for k, column in enumerate(ledger.columns):
        for block in range(ledger.depths[k]):
            row: dict[str, Any] = {"concept": column.concept, "at_layer": column.layer, "block": block}
            for name, effect in ledger.effects.items():
                row[name], row[f"{name}_low"], row[f"{name}_high"] = (
                    float(values[block, k]) for values in effect.blocks
                )
            rows.append(row)
    return rows


def summary(ledger: HeadLedger, n: int) -> str:
    """Shares by concept, and the strongest heads, as text."""
    head = (
        f"{n} strongest heads by {ledger.headline} relative to the total, of {ledger.candidates} "
        f"candidates; unit {ledger.settings['unit']}. Negative numbers work against the concept."
    )
    rows = ledger.strongest(n)
    parts = [repr(ledger), _shares_text(ledger), _wrapped(caution(ledger)), head]
    for words, sign in (("raise the score", 1), ("lower the score", -1)):
        if chosen := [row for row in rows if sign * row[ledger.headline] > 0]:
            parts.append(f"{words}:\n{_heads_text(ledger, chosen)}")
    return "\n\n".join(parts)


def caution(ledger: HeadLedger) -> str:
    """How often intervals exclude zero, beside how often selection alone makes them."""
    shown = {name: ledger.excluding_zero[name] for name in SHOWN if name in ledger.effects}
    said = [f"{name} {number(100 * share, 0)} %" for name, share in shown.items()]
    words = (
        f"Intervals exclude zero for this share of {ledger.candidates} head x concept cells: "
        f"{', '.join(said)}."
    )
    if "control" in ledger.effects:
        words += f" {_of_control(ledger)}"
    return (
        f"{words} Heads are ranked on the split shown ({ledger.settings['split']}), out of "
        f"{ledger.candidates} candidates."
    )


def control_words(ledger: HeadLedger) -> str:
    """What the control of a ledger rests on, for its one line."""
    n = ledger.settings["permutations"]
    if "control" not in ledger.effects:
        return ""
    return "; control of 1 permutation, no test" if n == 1 else f"; control of {n} permutations"


def _of_control(ledger: HeadLedger) -> str:
    n = ledger.settings["permutations"]
    if n == 1:
        return (
            "The control is one permutation per concept: a scale of what selection alone gives, "
            "not a test. Two permuted vectors would differ as well: hold no share against 5 %."
        )
    cells = ledger.beyond_control()[ledger.head_cells]
    cells = cells[np.isfinite(cells)]
    beyond = float((cells <= 1 / (n + 1) + 1e-12).mean()) if len(cells) else float("nan")
    return (
        f"The control is the mean of {n} permutations per concept; intervals resample documents, "
        f"not permutations. Lifts beyond all {n}: {number(100 * beyond, 0)} % of cells, where "
        f"chance gives {number(100 / (n + 1), 0)} %."
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 110, break_on_hyphens=False)


def _shares_text(ledger: HeadLedger) -> str:
    header = ["concept", "layer"]
    rows = [[column.concept, str(column.layer)] for column in ledger.columns]
    for name in ("lift", "contrast"):
        if name not in ledger.effects:
            continue
        effect = ledger.effects[name]
        header += [f"{name} tokens", name, "heads %", "MLPs %", "embedding %"]
        for k, row in enumerate(rows):
            row += [str(int(effect.n_tokens[k])), signed(float(effect.total.value[k]))]
            shares = (effect.shares.value[KINDS.index(kind), k] for kind in _NAMES)
            row += [number(100 * float(share), 0) for share in shares]
    return aligned(header, rows)


def _heads_text(ledger: HeadLedger, rows: Sequence[Mapping[str, Any]]) -> str:
    names = [n for n in SHOWN if n in ledger.effects]
    text = [
        [f"{row['component']} -> {row['concept']} at {row['at_layer']}"]
        + [
            f"{signed(row[name])} [{signed(row[f'{name}_low'])}, {signed(row[f'{name}_high'])}]"
            for name in names
        ]
        for row in rows
    ]
    return aligned(["head", *names], text)


def as_results(ledger: HeadLedger, n: int) -> dict[str, Any]:
    """Head maps and shares by concept, and the strongest heads: `results.schema.Heads`."""
    out = {
        "concepts": {_name(ledger, k): _map(ledger, k) for k in range(len(ledger.columns))},
        "strongest": [_strongest_row(row) for row in ledger.strongest(n)],
        "closes_to": ledger.closes_to,
        "unit": ledger.settings["unit"],
        "shares_of": "contrast",
        "candidates": ledger.candidates,
        "excludes_zero": {n: v for n, v in ledger.excluding_zero.items() if n in SHOWN},
    }
    return dict(plain(out))


def _name(ledger: HeadLedger, k: int) -> str:
    column = ledger.columns[k]
    several = ledger.concepts.count(column.concept) > 1
    return f"{column.concept} at {column.layer}" if several else column.concept


def _map(ledger: HeadLedger, k: int) -> dict[str, Any]:
    column = ledger.columns[k]
    maps = {
        name: ledger.head_map(column.concept, name, layer=column.layer)
        for name in ("lift", "control", "contrast")
        if name in ledger.effects
    }
    maps.setdefault("lift", np.full_like(maps["contrast"], np.nan))
    out: dict[str, Any] = {"layer": column.layer, **maps, "shares": _shares(ledger, "contrast", k)}
    if "lift" in ledger.effects:
        value, low, high = (float(part[k]) for part in ledger.lift.total)
        out |= {"total": value, "total_interval": [low, high]}
        out["lift_shares"] = _shares(ledger, "lift", k)
    return out


def _shares(ledger: HeadLedger, effect: str, k: int) -> dict[str, Any]:
    value, low, high = (part[:, k] for part in ledger.effects[effect].shares)
    out: dict[str, Any] = {}
    for kind, name in _NAMES.items():
        j = KINDS.index(kind)
        out[f"{name}_share"] = float(value[j])
        out[f"{name}_share_interval"] = [float(low[j]), float(high[j])]
    if any(c.kind == "constants" for c in ledger.components):
        out["bias_share"] = float(value[KINDS.index("constants")])
    return out


def _strongest_row(row: Mapping[str, Any]) -> dict[str, Any]:
    nan = float("nan")
    out = {
        "concept": row["concept"],
        "layer": row["block"],
        "head": row["head"],
        "lift": row.get("lift", nan),
        "control": row.get("control", nan),
        "interval": [row.get("lift_low", nan), row.get("lift_high", nan)],
    }
    for name in ("control", "excess", "contrast"):
        if name in row:
            out[name] = row[name]
            out[f"{name}_interval"] = [row[f"{name}_low"], row[f"{name}_high"]]
    return out


@dataclass(frozen=True, eq=False)
class HeadLedger:
    """Direct contributions to concept scores.

    What it does not show: a direct contribution is no causal effect, `strongest` ranks on the
    split it shows, and a control of few permutations is a scale of what selection alone gives and
    no test. See `excluding_zero`, `beyond_control`, and `effects.py`.

    Attributes:
        components: Rows of every array: "embedding", "L3H5", "L3 MLP", and what is constant before
            norms ("L3 bias x scale") or means ("bias", "reference").
        columns: Columns: a concept at a layer.
        depths: Number of blocks that write before each column's score; later components are 0.
        effects: "lift", "control", "excess" (lift - control), the same with "in_concept_" and
            "strongest_" before them, and "contrast", as far as they are defined; see `effects.py`.
        means: Mean term by token group: "tail", "same_samples", "in_concept_rest",
            "out_of_concept", "strongest_out_of_concept".
        settings: Split, counts, seed, scoring, unit, number of permutations and whether terms are
            centred.
        residue: Largest |score - sum of terms| over kept tokens, relative to the summed sizes.
        closes_to: The same, in the unit of the score.
        control_by_draw: Each permutation's control, by effect.
        projection: For cosines, the same ledger on the un-normalised projection x . v / |v|.
    """

    components: tuple[Component, ...]
    columns: tuple[Column, ...]
    depths: tuple[int, ...]
    effects: Mapping[str, Effect]
    means: Mapping[str, Float[np.ndarray, "component column"]]
    settings: Mapping[str, Any]
    residue: float
    closes_to: float
    control_by_draw: Mapping[str, Float[np.ndarray, "draw component column"]]
    projection: HeadLedger | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        name = "lift" if "lift" in self.effects else "contrast"
        shares = (self.share(kind, name).value for kind in ("heads", "mlps"))
        heads, mlps = (
            np.median(one[np.isfinite(one)]) if np.isfinite(one).any() else np.nan for one in shares
        )
        s = self.settings
        return (
            f"HeadLedger({len(self.columns)} scores, {len(self.components)} components, "
            f"{s['split']} split, {s['n_samples']} samples, {s['n_tokens']} tokens, "
            f"{'centred' if s['centred'] else 'raw'}; median share of the {name}: heads "
            f"{number(100 * heads, 0)} %, MLPs {number(100 * mlps, 0)} %; closes to "
            f"{self.residue:.0e}{control_words(self)})"
        )

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return as_html(str(self))

    @property
    def concepts(self) -> tuple[str, ...]:
        """Concept of each column."""
        return tuple(column.concept for column in self.columns)

    @property
    def lift(self) -> Effect:
        """SuperActivators against the other tokens of their samples.

        Raises:
            ValueError: The ledger has no tail.
        """
        return self._effect("lift")

    @property
    def control(self) -> Effect:
        """The mean lift of permuted-label vectors with their own tails.

        Raises:
            ValueError: The bank has no permuted-label vectors.
        """
        return self._effect("control")

    @property
    def excess(self) -> Effect:
        """Lift minus control; a test against chance only through `beyond_control`.

        Raises:
            ValueError: The bank has no permuted-label vectors.
        """
        return self._effect("excess")

    @property
    def contrast(self) -> Effect:
        """In-concept tokens against tokens of negative samples: no token is selected by score."""
        return self._effect("contrast")

    def beyond_control(self, effect: str = "lift") -> Float[np.ndarray, "component column"]:
        """Two-sided p of every lift among its permutations: how many lie as far out.

            p = (1 + #{draws with |control - m| >= |lift - m|}) / (1 + D),  m the mean of all D + 1

        Not corrected for the number of components. With D draws no p lies below 1 / (1 + D), and
        one draw gives 1 throughout.

        Args:
            effect: "lift", "in_concept_lift" or "strongest_lift".

        Raises:
            ValueError: No such lift, or no control.
        """
        lift, name = self._effect(effect), effect.replace("lift", "control")
        self._effect(name)
        draws = self.control_by_draw[name]
        centre = (draws.sum(0) + lift.terms.value) / (1 + len(draws))
        # Two values lie equally far from their mean, whatever rounding says.
        further = np.abs(draws - centre) >= np.abs(lift.terms.value - centre) * (1 - 1e-9)
        p = (1 + further.sum(0)) / (1 + len(draws))
        return np.where(np.isfinite(lift.terms.value), p, np.nan)

    def _effect(self, name: str) -> Effect:
        if name not in self.effects:
            why = (
                "a bank alone has no SuperActivators: give a detector, or tail="
                if name.endswith("lift") or "lift" not in self.effects
                else "the bank has no permuted-label vectors: fit with controls=True, or give permutations="
            )
            raise ValueError(f"this ledger has no {name}: {why}.")
        return self.effects[name]

    def column(self, concept: str, layer: int | None = None) -> int:
        """Place of a concept (at a layer, where it was decomposed at several).

        Raises:
            ValueError: Unknown, or ambiguous.
        """
        found = [k for k, c in enumerate(self.columns) if c.concept == concept and layer in (None, c.layer)]
        if len(found) == 1:
            return found[0]
        have = ", ".join(f"{c.concept!r} at {c.layer}" for c in self.columns)
        problem = "stands at several layers: name one" if found else "was not decomposed"
        raise ValueError(f"{concept!r} at layer {layer} {problem}; the ledger has {have}.")

    def head_map(
        self, concept: str, effect: str | None = None, *, layer: int | None = None
    ) -> Float[np.ndarray, "block head"]:
        """One effect of every head up to the concept's layer.

        Args:
            concept: Name.
            effect: A name of `effects`; by default "excess" where there is one, else "lift", else
                "contrast".
            layer: Where a concept was decomposed at several.
        """
        k = self.column(concept, layer)
        values = self._effect(effect or self.headline).terms.value[:, k]
        rows = [i for i, c in enumerate(self.components) if c.kind == "heads"]
        blocks = 1 + max((self.components[i].block or 0 for i in rows), default=-1)
        return np.asarray(values[rows].reshape(blocks, -1)[: self.depths[k]])

    @property
    def headline(self) -> str:
        """The effect that components are ranked by."""
        return next(name for name in ("excess", "lift", "contrast") if name in self.effects)

    @property
    def candidates(self) -> int:
        """Head x concept cells that `strongest` ranks: up to each layer, with an interval."""
        return share_excluding_zero(self.effects[self.headline], self.head_cells)[1]

    @property
    def excluding_zero(self) -> dict[str, float]:
        """Share of the head x concept cells whose interval excludes zero, by effect.

        That of "control" is what tokens selected by the sum alone give: read that of "lift" beside
        it, and no single interval of a lift or an excess as a test.
        """
        return {name: share_excluding_zero(e, self.head_cells)[0] for name, e in self.effects.items()}

    @property
    def head_cells(self) -> Bool[np.ndarray, "component column"]:
        """Heads before each column's score."""
        return np.array(
            [[c.kind == "heads" and (c.block or 0) < depth for depth in self.depths] for c in self.components]
        )

    def share(self, kind: ComponentKind, effect: str = "lift") -> Estimate:
        """Share of one kind of component, by column, with its interval."""
        k = KINDS.index(kind)
        shares = self._effect(effect).shares
        return Estimate(shares.value[k], shares.low[k], shares.high[k])

    def strongest(
        self, n: int = 10, *, kind: ComponentKind | None = "heads", concept: str | None = None
    ) -> list[dict[str, Any]]:
        """The components with the largest effect, as a share of their score's own.

        Negative numbers work against the concept.

        Args:
            n: How many.
            kind: "heads", "mlps", "embedding", or None for all.
            concept: Only this concept.

        Returns:
            One row a component and concept, ranked by |excess| (else |lift|, |contrast|) over
            |total of the lift (contrast)|, so that concepts with scores of different scale can be
            ranked together; with every effect and its interval. Concepts whose tail lies in a
            single document have no interval and are left out. The first of many `candidates` are
            large partly by chance, in every effect; ablate, or look at another split.
        """
        ranked = []
        against = self._effect("lift" if "lift" in self.effects else "contrast").total.value
        values, lows, _ = self._effect(self.headline).terms
        for k, column in enumerate(self.columns):
            for i, component in enumerate(self.components):
                late = component.block is not None and component.block >= self.depths[k]
                wanted = kind in (None, component.kind) and concept in (None, column.concept)
                of_total = abs(values[i, k]) / abs(against[k]) if against[k] else np.nan
                if wanted and not late and np.isfinite([of_total, lows[i, k]]).all():
                    ranked.append((of_total, i, k))
        ranked.sort(key=lambda row: (-row[0], row[1], row[2]))
        return [component_row(self, i, k) for _, i, k in ranked[:n]]

    def table(self) -> Any:
        """Every component of every column: a pandas DataFrame where pandas is installed."""
        rows = [
            component_row(self, i, k)
            for k in range(len(self.columns))
            for i, component in enumerate(self.components)
            if component.block is None or component.block < self.depths[k]
        ]
        return frame(rows)

    def blocks_table(self) -> Any:
        """What each block wrote, heads, MLP and biases together, by effect and column."""
        return frame(block_rows(self))

    def shares_table(self) -> Any:
        """Total and shares of every effect by column: a DataFrame where pandas is installed."""
        return frame(share_rows(self))

    def summary(self, n: int = 10) -> str:
        """Shares by concept, and the `n` strongest heads, as text."""
        return summary(self, n)

    def to_dict(self, n: int = 10) -> dict[str, Any]:
        """As `results.json` has it: maps and shares by concept, and the `n` strongest heads."""
        return as_results(self, n)
