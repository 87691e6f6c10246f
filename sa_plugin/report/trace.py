"""How the tail forms: distributions layer by layer, and separation as lines over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sa_plugin.report.svg import Scale, area, band, chart, dot, line, nice, segment, text, x_axis, y_axis
from sa_plugin.show.html import Child, Markup, Real, count, el, number, percent, tick

MOST_CONCEPTS = 6
GRID_WIDTH, NAME_WIDTH, PANEL_HEIGHT, GAP = 1000, 96, 52, 8


def shown_concepts(names: Sequence[str], choices: Sequence[Mapping[str, Any]]) -> list[str]:
    """At most six concepts: all, or every so many in the order of their calibration F1.

    Taking them evenly over the ranking shows the worst along with the best.
    """
    f1 = {choice["concept"]: choice["cal_f1"] or 0.0 for choice in choices}
    ranked = sorted(names, key=lambda name: (-f1.get(name, 0.0), name))
    if len(ranked) <= MOST_CONCEPTS:
        return ranked
    step = (len(ranked) - 1) / (MOST_CONCEPTS - 1)
    return [ranked[round(k * step)] for k in range(MOST_CONCEPTS)]


def distributions(block: Mapping[str, Any], choices: Sequence[Mapping[str, Any]]) -> Markup:
    """Small multiples: rows are concepts, columns are layers, all on one axis."""
    names = shown_concepts(list(block["concepts"]), choices)
    chosen = {choice["concept"]: choice["layer"] for choice in choices}
    layers = block["layers"]
    width = (GRID_WIDTH - NAME_WIDTH) / len(layers)
    height = 26 + len(names) * (PANEL_HEIGHT + GAP) + 34
    parts: list[Child] = [
        text(NAME_WIDTH + k * width + width / 2, 14, f"layer {layer}", "middle", "head")
        for k, layer in enumerate(layers)
    ]
    low, high = _support(block, names)
    for row, name in enumerate(names):
        top = 26 + row * (PANEL_HEIGHT + GAP)
        parts.append(text(0, top + PANEL_HEIGHT - 4, name, "start", "head"))
        one = block["concepts"][name]
        y = Scale((0, _tallest(one)), (top + PANEL_HEIGHT, top))
        for k, layer in enumerate(layers):
            left = NAME_WIDTH + k * width
            x = Scale((low, high), (left + 3, left + width - 3))
            parts.append(_panel(one, k, block["edges"], x, y, layer == chosen.get(name)))
    parts.append(_feet(low, high, len(layers), width, height))
    title = "In-concept and out-of-concept score densities by layer"
    desc = f"Rows: {', '.join(names)}. Columns: layers {', '.join(map(str, layers))}."
    drawing = chart(GRID_WIDTH, height, title, desc, parts, class_="chart grid-chart")
    more = len(block["concepts"]) - len(names)
    caption = _grid_caption(block, more)
    return el("figure", el("div", drawing, class_="scroll"), caption, class_="full")


def _grid_caption(block: Mapping[str, Any], more: int) -> Markup:
    rest = f" {more} further concepts are in results.json; these are evenly spaced in the ranking "
    rest += "by calibration F1." if more else ""
    return el(
        "figcaption",
        "Densities of token scores on test, in standard deviations of the out-of-concept scores. ",
        el("span", "▬", class_="key out"),
        f" out of concept ({block.get('out', 'as traced')}), ",
        el("span", "▬", class_="key in"),
        " in concept, ",
        el("span", "■", class_="key tail"),
        " in concept at or above the threshold (vertical line): the tail. Rows share a height "
        "scale; an underlined panel is the layer chosen for the concept. The vector is fitted anew "
        "at each layer.",
        rest if more else None,
    )


def _tallest(one: Mapping[str, Any]) -> Real:
    rows = [*one["in_concept"], *one["out_of_concept"]]
    return max((v for row in rows for v in row if v is not None), default=0.0) or 1.0


def _support(block: Mapping[str, Any], names: Sequence[str]) -> tuple[Real, Real]:
    edges, used = block["edges"], set()
    for name in names:
        one = block["concepts"][name]
        for row in [*one["in_concept"], *one["out_of_concept"]]:
            used |= {k for k, v in enumerate(row) if v is not None and v > 0.002}
    if not used:
        return edges[0], edges[-1]
    return edges[min(used)], edges[max(used) + 1]


def _panel(one: Mapping[str, Any], k: int, edges: Sequence[Real], x: Scale, y: Scale, chosen: bool) -> Markup:
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    keep = [n for n, at in enumerate(middles) if x.domain[0] <= at <= x.domain[1]]
    xs = [middles[n] for n in keep]
    inside = [one["in_concept"][k][n] for n in keep]
    outside = [one["out_of_concept"][k][n] for n in keep]
    threshold = one["threshold"][k]
    base, top = y.span
    left, right = x.span
    return el(
        "g",
        segment(left, base, right, base, "axis chosen" if chosen else "axis"),
        area(xs, outside, x, y, "density out"),
        _tail(xs, inside, threshold, x, y),
        line(xs, inside, x, y, "density-line in"),
        _threshold_line(threshold, x, top, base),
    )


def _tail(
    xs: Sequence[Real], ys: Sequence[Real | None], threshold: Real | None, x: Scale, y: Scale
) -> Markup | None:
    if threshold is None:
        return None
    cut = _value_at(xs, ys, threshold)
    beyond = [(a, b) for a, b in zip(xs, ys, strict=True) if a > threshold]
    points = ([(threshold, cut)] if cut is not None else []) + beyond
    return area([a for a, _ in points], [b for _, b in points], x, y, "density tail")


def _value_at(xs: Sequence[Real], ys: Sequence[Real | None], at: Real) -> Real | None:
    for (a, b), (c, d) in zip(zip(xs, ys, strict=True), zip(xs[1:], ys[1:], strict=True), strict=False):
        if a <= at <= c and b is not None and d is not None:
            return b + (d - b) * (at - a) / (c - a)
    return None


def _threshold_line(threshold: Real | None, x: Scale, top: Real, base: Real) -> Markup | None:
    if threshold is None or not x.domain[0] <= threshold <= x.domain[1]:
        return None
    tip = el("title", f"threshold {number(threshold, 2)} sd")
    at = f"{x(threshold):.1f}"
    return el("line", tip, x1=at, x2=at, y1=f"{top + 6:.1f}", y2=f"{base:.1f}", class_="threshold")


def _feet(low: Real, high: Real, columns: int, width: Real, height: Real) -> Markup:
    ticks = [t for t in nice([low, high], 4) if low <= t <= high]
    parts: list[Child] = []
    for k in range(columns):
        left = NAME_WIDTH + k * width
        x = Scale((low, high), (left + 3, left + width - 3))
        parts.append([text(x(t), height - 22, tick(t), "middle") for t in ticks])
    where = NAME_WIDTH + columns * width / 2
    parts.append(text(where, height - 5, "score, sd of out-of-concept", "middle", "axis-title"))
    return el("g", parts)


@dataclass(frozen=True)
class Panel:
    """One panel of lines over layers: what it shows and, in a second line, beside what."""

    key: str
    title: str
    beside: str | None = None
    zero: bool = False


PANELS = (
    Panel("auroc", "AUROC, in against out"),
    Panel("in_mass_at_fpr", "In-concept mass above q, the {fpr} tail of out{where}"),
    Panel("coverage", "Coverage of positive and negative samples", "negative_coverage", True),
    Panel("tail_gap", "Tail gap, sd of out", zero=True),
)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 230, 40, 10, 12, 34


def trace_lines(block: Mapping[str, Any], panels: Sequence[Panel] = PANELS) -> Markup:
    """Separation by layer: the mean over concepts with its interval, concepts thin behind it."""
    fpr = block.get("fpr")
    share = "top" if fpr is None else f"{tick(100 * fpr)} %"
    where = f" on {block['fixed_on']}" if block.get("fixed_on") else ""
    drawn = []
    for panel in panels:
        title = panel.title.format(fpr=share, where=where)
        drawn.append(el("div", el("h4", title), _lines(block, panel, title)))
    return el("figure", el("div", drawn, class_="panels"), _trace_caption(block))


def _trace_caption(block: Mapping[str, Any]) -> Markup:
    draws = f" ({count(block['draws'])} resamples)" if block.get("draws") else ""
    mean = f"Bold: mean over concepts, with its interval{draws}. " if block.get("mean") else ""
    delta = block.get("delta")
    top = "1 − δ" if delta is None else tick(1 - delta)
    return el(
        "figcaption",
        f"By layer, on test. {mean}Thin: each concept (its name on hover). "
        f"{_false_positives(block)}"
        "In the coverage panel (share of samples with a token above q) the dashed line is "
        "negative samples: coverage of positive samples means nothing without it. Tail gap: "
        f"(Q({top}) of in-concept test scores − Q(0.995) of negative samples' test scores) / sd of "
        "the latter; below zero the tail does not clear the negatives.",
    )


def _false_positives(block: Mapping[str, Any]) -> str:
    """What share of test tokens out of concept lies above q, which was fixed elsewhere."""
    series = [one.get("realised_fpr") or [] for one in block["concepts"].values()]
    rates = [rate for one in series for rate in one if rate is not None]
    if not rates:
        return ""
    mean = sum(rates) / len(rates)
    fixed = f" is a quantile of {block['fixed_on']};" if block.get("fixed_on") else ":"
    return (
        f"q{fixed} on test {percent(mean, 2)} of the out-of-concept tokens lie above it (mean over "
        f"concepts and layers; {percent(min(rates), 2)} to {percent(max(rates), 2)}). "
    )


def _lines(block: Mapping[str, Any], panel: Panel, title: str) -> Markup:
    layers, mean = block["layers"], block.get("mean")
    keys = [panel.key] + ([panel.beside] if panel.beside else [])
    series = [one for one in (*block["concepts"].values(), *([mean] if mean else []))]
    ends = [e for key in keys for pair in (mean or {}).get(f"{key}_interval") or () for e in pair or ()]
    values = [v for one in series for key in keys for v in one[key]] + ends
    ticks = nice(values, 5, include=(0.0,) if panel.zero else ())
    x = Scale((layers[0], layers[-1]), (LEFT + 4, WIDTH - RIGHT - 4))
    y = Scale((ticks[0], ticks[-1]), (HEIGHT - BOTTOM, TOP))
    step = max(1, -(-len(layers) // 8))
    parts: list[Child] = [
        y_axis(y, ticks, LEFT, WIDTH - RIGHT),
        x_axis(x, layers[::step], TOP, HEIGHT - BOTTOM),
    ]
    for name, one in sorted(block["concepts"].items()):
        parts += [line(layers, one[k], x, y, f"thin {_kind(k, panel)}", name) for k in keys]
    if mean:
        parts += [_mean(layers, mean, key, _kind(key, panel), x, y) for key in reversed(keys)]
    parts.append(text(WIDTH - RIGHT, HEIGHT - 2, "layer", "end", "axis-title"))
    return chart(WIDTH, HEIGHT, title, _words(layers, mean, keys), parts)


def _kind(key: str, panel: Panel) -> str:
    return "negative" if key == panel.beside else "positive"


def _mean(layers: Sequence[int], mean: Mapping[str, Any], key: str, kind: str, x: Scale, y: Scale) -> Markup:
    tips = [
        dot(x(layer), y(v), f"hover {kind}", 4, f"layer {layer}: {number(v)}")
        for layer, v in zip(layers, mean[key], strict=True)
        if v is not None
    ]
    return el(
        "g",
        band(layers, mean.get(f"{key}_interval"), x, y, f"band {kind}"),
        line(layers, mean[key], x, y, f"line {kind}"),
        tips,
    )


def _words(layers: Sequence[int], mean: Mapping[str, Any] | None, keys: Sequence[str]) -> str:
    if not mean:
        return "One line a concept."
    return ". ".join(
        f"{key}: " + ", ".join(f"layer {n} {number(v)}" for n, v in zip(layers, mean[key], strict=True))
        for key in keys
    )
