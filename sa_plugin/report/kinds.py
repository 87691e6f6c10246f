"""The other concept kinds in short: one line each, their tables folded."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from sa_plugin.report.detection import detection_table
from sa_plugin.report.html import Child, Markup, el, join
from sa_plugin.report.sparsity import delta_curve
from sa_plugin.report.trace import trace_lines
from sa_plugin.report.words import (
    MAXTOK,
    OWN,
    Real,
    by_weighted_f1,
    interval,
    kind_label,
    method_of,
    number,
)


def other_kinds(kinds: Mapping[str, Mapping[str, Any]], primary: str) -> Markup:
    """A line for every kind, then what was computed for each but the primary, folded."""
    names = ("Layers chosen", "Median δ", "AUROC", "Localisation F1")
    head = el(
        "tr",
        el("th", "Kind", scope="col"),
        *(el("th", name, scope="col", colspan=2) for name in (OWN, MAXTOK)),
        el("th", "Best method (picked on test)", scope="col", colspan=2),
        *(el("th", name, scope="col", class_="num") for name in names),
    )
    body = [_row(name, block, name == primary) for name, block in kinds.items()]
    table = el("table", el("thead", head), el("tbody", body), class_="data")
    caption = (
        "Weighted test F1. The best method of each kind is picked on test, so its number is "
        "flattered and no fair rival of the columns beside it. The marked row is the run's primary "
        "kind, which the sections above show in full."
    )
    folded = [_folded(name, block) for name, block in kinds.items() if name != primary]
    figure = el("figure", el("div", table, class_="scroll"), el("figcaption", caption))
    return join([figure, *folded])


def _row(name: str, block: Mapping[str, Any], primary: bool) -> Markup:
    rows = by_weighted_f1(block.get("detection", {}).get("methods", []))
    own, best = method_of(rows, OWN), rows[0] if rows else None
    cells: list[Child] = []
    for row in (own, method_of(rows, MAXTOK)):
        cells.append(el("td", number(row["weighted_f1"] if row else None), class_="num"))
        cells.append(el("td", interval(row["interval"] if row else None), class_="ci"))
    cells.append(el("td", number(best["weighted_f1"] if best else None), class_="num"))
    cells.append(el("td", best["method"] if best else "", class_="muted"))
    return el(
        "tr",
        el("th", kind_label(name), scope="row"),
        cells,
        el("td", _layers(block), class_="num"),
        el("td", _delta(block), class_="num"),
        el("td", number(own["auroc"] if own else None), class_="num"),
        el("td", number(_localised(block)), class_="num"),
        class_="own" if primary else None,
    )


def _layers(block: Mapping[str, Any]) -> str:
    layers = [choice["layer"] for choice in block.get("choices", [])]
    if not layers:
        return number(None)
    return f"{min(layers)}–{max(layers)}" if min(layers) < max(layers) else str(layers[0])


def _delta(block: Mapping[str, Any]) -> str:
    deltas = [choice["delta"] for choice in block.get("choices", [])]
    return number(median(deltas) if deltas else None, 2)


def _localised(block: Mapping[str, Any]) -> Real | None:
    row = method_of(block.get("localisation", []), OWN)
    return row["f1"] if row else None


def _folded(name: str, block: Mapping[str, Any]) -> Markup:
    parts: list[Child] = []
    if block.get("detection"):
        parts.append(detection_table(block["detection"]))
    if block.get("sparsity"):
        parts.append(delta_curve(block["sparsity"]))
    if block.get("trace"):
        parts.append(trace_lines(block["trace"]))
    if not parts:
        parts.append(el("p", f"{kind_label(name)}: nothing further computed.", class_="absent"))
    return el("details", el("summary", f"More on the {kind_label(name)}"), parts)
