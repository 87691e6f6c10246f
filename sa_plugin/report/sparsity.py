"""The delta curve: weighted test F1 when all concepts share one delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sa_plugin.report.html import Child, Markup, el
from sa_plugin.report.svg import Scale, band, chart, dot, line, nice, segment, text, x_axis, y_axis
from sa_plugin.report.words import MAXTOK, OWN, Real, number, tick

STYLES = ("line-a", "line-b", "line-c", "line-d", "line-e", "line-f", "line-g")
WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 24, 40


def styles(methods: Sequence[str]) -> dict[str, str]:
    """A line style for each method, by hue and dash; SuperActivators and MaxTok have their own."""
    others = sorted(name for name in methods if name not in (OWN, MAXTOK))
    named = {name: STYLES[k % len(STYLES)] for k, name in enumerate(others)}
    return {OWN: "line-own", MAXTOK: "line-maxtok", **named}


def peak(curve: Mapping[str, Any], deltas: Sequence[Real]) -> tuple[Real, Real] | None:
    """The highest F1 of a curve and the smallest delta that reaches it."""
    pairs = [(v, d) for v, d in zip(curve["weighted_f1"], deltas, strict=True) if v is not None]
    return max(pairs, key=lambda pair: (pair[0], -pair[1])) if pairs else None


def delta_curve(block: Mapping[str, Any]) -> Markup:
    """The figure with its key."""
    curves = sorted(block["curves"], key=lambda curve: (-_height(curve, block), curve["method"]))
    style = styles([curve["method"] for curve in curves])
    at = "each concept at its own chosen layer"
    chosen = (
        "Unless it was asked for, that layer is SuperActivators' best by calibration; other "
        "methods may do better at another. "
        if block["layer"] is not None
        else ""
    )
    layer = at if block["layer"] is None else f"all concepts at layer {block['layer']}"
    caption = (
        f"Test split, {layer}. {chosen}"
        "δ is the share kept of the reference distribution: in-concept calibration tokens for "
        "SuperActivators, positive calibration samples' statistics for the "
        "other methods, so curves are compared by their heights, not at equal δ; MaxTok thresholds "
        "the same statistic, so its curve is that of SuperActivators, stretched. Bands are "
        "intervals over documents, drawn for these two (results.json has all). Dots mark peaks; "
        "these and the table beside are picked on test. The dashed level is always-positive."
    )
    return el(
        "figure",
        el("div", _plot(block, curves, style), _key(block, curves, style), class_="beside"),
        el("figcaption", caption),
    )


def _height(curve: Mapping[str, Any], block: Mapping[str, Any]) -> Real:
    top = peak(curve, block["deltas"])
    return top[0] if top else -1.0


def _scales(
    block: Mapping[str, Any], curves: Sequence[Mapping[str, Any]]
) -> tuple[Scale, Scale, list[Real]]:
    deltas = block["deltas"]
    values = [v for curve in curves for v in curve["weighted_f1"]] + [block["always_positive"]]
    shown = [curve for curve in curves if curve["method"] in (OWN, MAXTOK)]
    ends = [e for curve in shown for pair in curve.get("interval") or () for e in pair or ()]
    ticks = nice(values + ends, 6)
    x = Scale((min(deltas), max(deltas)), (LEFT + 6, WIDTH - RIGHT - 6), log=True)
    return x, Scale((ticks[0], ticks[-1]), (HEIGHT - BOTTOM, TOP)), ticks


def _plot(
    block: Mapping[str, Any], curves: Sequence[Mapping[str, Any]], style: Mapping[str, str]
) -> Markup:
    x, y, ticks = _scales(block, curves)
    deltas = block["deltas"]
    shown = [d for d in deltas if d in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.95)] or deltas
    parts: list[Child] = [
        y_axis(y, ticks, LEFT, WIDTH - RIGHT),
        x_axis(x, shown, TOP, HEIGHT - BOTTOM),
    ]
    parts += [_floor(block["always_positive"], y)]
    for curve in reversed(curves):
        kind = style[curve["method"]]
        if curve["method"] in (OWN, MAXTOK):
            parts.append(band(deltas, curve.get("interval"), x, y, f"band {kind}"))
    for curve in reversed(curves):
        parts.append(_line(curve, deltas, x, y, style[curve["method"]]))
    parts.append(text(LEFT - 36, 11, "weighted F1", class_="axis-title"))
    parts.append(text(WIDTH - RIGHT, HEIGHT - 5, "δ (log scale)", "end", "axis-title"))
    title = "Weighted test F1 against delta"
    desc = "; ".join(_peak_words(curve, block) for curve in curves)
    return chart(WIDTH, HEIGHT, title, desc, parts, class_="chart wide")


def _floor(value: Real | None, y: Scale) -> Markup | None:
    if value is None:
        return None
    return segment(LEFT, y(value), WIDTH - RIGHT, y(value), "floor")


def _line(
    curve: Mapping[str, Any], deltas: Sequence[Real], x: Scale, y: Scale, kind: str
) -> Markup:
    top = peak(curve, deltas)
    points = [
        dot(x(d), y(v), f"hover {kind}", 5, f"{curve['method']}, δ {tick(d)}: {number(v)}")
        for d, v in zip(deltas, curve["weighted_f1"], strict=True)
        if v is not None
    ]
    mark = dot(x(top[1]), y(top[0]), f"peak {kind}", 3.5) if top else None
    return el("g", line(deltas, curve["weighted_f1"], x, y, f"line {kind}"), mark, points)


def _peak_words(curve: Mapping[str, Any], block: Mapping[str, Any]) -> str:
    top = peak(curve, block["deltas"])
    return f"{curve['method']} " + (
        f"peaks at {number(top[0])}, delta {tick(top[1])}" if top else "is not defined"
    )


def _key(
    block: Mapping[str, Any], curves: Sequence[Mapping[str, Any]], style: Mapping[str, str]
) -> Markup:
    rows = [_key_row(curve, block["deltas"], style[curve["method"]]) for curve in curves]
    floor = _sample("floor")
    rows.append(
        el(
            "tr",
            el("td", floor),
            el("th", "always-positive", scope="row"),
            el("td", number(block["always_positive"]), class_="num"),
            el("td", ""),
        )
    )
    names = (("", None), ("Method", None), ("Peak F1 (picked on test)", "num"), ("at δ", "num"))
    head = el("tr", [el("th", name, scope="col", class_=kind) for name, kind in names])
    return el("table", el("thead", head), el("tbody", rows), class_="data key-table")


def _key_row(curve: Mapping[str, Any], deltas: Sequence[Real], kind: str) -> Markup:
    top = peak(curve, deltas)
    return el(
        "tr",
        el("td", _sample(f"line {kind}")),
        el("th", curve["method"], scope="row"),
        el("td", number(top[0] if top else None), class_="num"),
        el("td", tick(top[1]) if top else number(None), class_="num"),
        class_="own" if curve["method"] == OWN else None,
    )


def _sample(kind: str) -> Markup:
    stroke = segment(1, 6, 33, 6, kind)
    return el("svg", stroke, width=34, height=12, viewBox="0 0 34 12", aria_hidden="true")
