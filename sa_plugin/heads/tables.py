"""A head ledger as rows, as text, and as `results.json` has it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sa_plugin.detection.printing import aligned, number, plain, signed
from sa_plugin.heads.components import KINDS, ComponentKind

if TYPE_CHECKING:
    from sa_plugin.heads.result import HeadLedger

# The effects that are printed; the others are in the tables.
SHOWN = ("lift", "control", "excess", "contrast")
_NAMES: Mapping[ComponentKind, str] = {"heads": "head", "mlps": "mlp", "embedding": "embedding"}


def component_row(ledger: HeadLedger, component: int, column: int) -> dict[str, Any]:
    """Every effect of one component on one score, with intervals."""
    part, of = ledger.components[component], ledger.columns[column]
    row: dict[str, Any] = {
        "concept": of.concept, "at_layer": of.layer, "component": part.name,
        "kind": part.kind, "block": part.block, "head": part.head,
    }  # fmt: skip
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
                "concept": column.concept, "at_layer": column.layer, "effect": name,
                "tokens": int(effect.n_tokens[k]),
            }  # fmt: skip
            row["total"], row["total_low"], row["total_high"] = (
                float(values[k]) for values in effect.total
            )
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
            row: dict[str, Any] = {"concept": column.concept, "at_layer": column.layer,
                                   "block": block}  # fmt: skip
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
        "concept": row["concept"], "layer": row["block"], "head": row["head"],
        "lift": row.get("lift", nan), "control": row.get("control", nan),
        "interval": [row.get("lift_low", nan), row.get("lift_high", nan)],
    }  # fmt: skip
    for name in ("control", "excess", "contrast"):
        if name in row:
            out[name] = row[name]
            out[f"{name}_interval"] = [row[f"{name}_low"], row[f"{name}_high"]]
    return out
