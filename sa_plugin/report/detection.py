"""The detection table and the choices: every method beside SuperActivators, concept by concept.

Localisation, false fires and misses, and how few tokens the SuperActivators are.

The delta curve: weighted test F1 when all concepts share one delta.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sa_plugin.report.svg import Scale, band, chart, dot, line, nice, segment, text, whisker, x_axis, y_axis
from sa_plugin.show.html import (
    ALWAYS,
    MAXTOK,
    OWN,
    Child,
    Markup,
    Real,
    by_weighted_f1,
    count,
    el,
    interval,
    join,
    known,
    listed,
    method_of,
    number,
    side_of_zero,
    small,
    tick,
)

CELL = 180
ROW = 27


def marker(difference_interval: Sequence[Real | None] | None) -> Markup:
    """▲ or ▼ where a paired interval excludes zero, a point where it does not."""
    side = side_of_zero(difference_interval)
    if not known(difference_interval):
        return Markup("")
    signs = {1: ("▲", "better than"), -1: ("▼", "worse than"), 0: ("·", "not told apart from")}
    sign, words = signs[side]
    return el("span", sign, class_="marker", title=f"{words} SuperActivators", aria_label=words)


def detection_table(block: Mapping[str, Any]) -> Markup:
    """Methods by weighted F1 with dots, whiskers and paired differences."""
    rows = by_weighted_f1(block["methods"])
    ticks = _ticks([(row["weighted_f1"], row["interval"]) for row in rows])
    x = Scale((ticks[0], ticks[-1]), (10, CELL - 10))
    floor = method_of(rows, ALWAYS)
    head = el(
        "tr",
        el("th", "Method", scope="col"),
        el("th", axis_cell(x, ticks, "weighted F1"), scope="col", class_="plot"),
        _head("Weighted F1", 2),
        _head("Difference to SuperActivators", 3),
        *(_head(name) for name in ("Precision", "Recall", "AUROC", "Macro F1", "Candidates")),
    )
    body = [_row(row, x, ticks, floor["weighted_f1"] if floor else None) for row in rows]
    table = el("table", el("thead", head), el("tbody", body), class_="data detection")
    return el("figure", el("div", table, class_="scroll"), _caption(block))


def _head(name: str, columns: int = 1) -> Markup:
    return el("th", name, scope="col", class_="num" if columns == 1 else None, colspan=columns)


def _ticks(pairs: Sequence[tuple[Real | None, Sequence[Real | None] | None]]) -> list[Real]:
    ends = [end for value, bounds in pairs for end in (value, *(bounds or ()))]
    return nice(ends, 4)


def axis_cell(x: Scale, ticks: Sequence[Real], name: str, width: int = CELL) -> Markup:
    """The axis that the rows below share, as a header cell."""
    parts = [text(x(at), 24, tick(at), "middle") for at in ticks]
    marks = [segment(x(tick), 29, x(tick), 34, "grid") for tick in ticks]
    title = text(x.span[0], 9, name, "start", "axis-title")
    return chart(width, 34, f"Axis: {name}", "Ticks of the column.", title, parts, marks)


def dots_cell(x: Scale, ticks: Sequence[Real], what: str, *marks: Child, width: int = CELL) -> Markup:
    """One row's marks over the grid of the column."""
    grid = [segment(x(tick), 0, x(tick), ROW, "grid") for tick in ticks]
    return el("td", chart(width, ROW, what, what, grid, *marks), class_="plot")


def _row(row: Mapping[str, Any], x: Scale, ticks: Sequence[Real], floor: Real | None) -> Markup:
    own = row["method"] == OWN
    what = f"{row['method']}: {number(row['weighted_f1'])} {interval(row['interval'])}"
    reference = segment(x(floor), 0, x(floor), ROW, "floor") if floor is not None else None
    style = "own" if own else "other"
    dots = whisker(x, row["weighted_f1"], row["interval"], ROW / 2, style, what)
    return el(
        "tr",
        el("th", row["method"], scope="row"),
        dots_cell(x, ticks, what, reference, dots),
        el("td", number(row["weighted_f1"]), class_="num main"),
        el("td", interval(row["interval"]), class_="ci"),
        *_difference(row, own),
        *(el("td", number(row[key]), class_="num") for key in ("precision", "recall", "auroc")),
        el("td", number(row["macro_f1"]), class_="num"),
        el("td", count(row["candidates"]), class_="num"),
        class_="own" if own else None,
    )


def _difference(row: Mapping[str, Any], own: bool) -> list[Markup]:
    if own:
        return [el("td", "reference", class_="muted", colspan=3)]
    bounds = row["difference_interval"]
    return [
        el("td", number(row["difference"], signed=True), class_="num"),
        el("td", interval(bounds, signed=True), class_="ci"),
        el("td", marker(bounds), class_="mark"),
    ]


def _caption(block: Mapping[str, Any]) -> Markup:
    return el(
        "figcaption",
        f"Test split: {count(block['n_samples'])} samples of {count(block['n_documents'])} "
        "documents. Dots are weighted F1 (by positive test samples), lines their intervals; the "
        "dashed line is always-positive. Differences are paired over documents, method minus "
        "SuperActivators; ▲ ▼ mark intervals that exclude zero, a point those that do not. "
        "Candidates: settings (layers × deltas × units) each concept's choice was made from.",
    )


def detection_note(block: Mapping[str, Any]) -> Markup:
    """Where SuperActivators do not win, in words."""
    rows = by_weighted_f1(block["methods"])
    own = method_of(rows, OWN)
    if own is None or own["weighted_f1"] is None:
        return el("p", "SuperActivators were not evaluated, so nothing is compared with them.")
    defined = [row for row in rows if row is not own and row["weighted_f1"] is not None]
    above = [row["method"] for row in defined if row["weighted_f1"] > own["weighted_f1"]]
    tied = [row["method"] for row in defined if side_of_zero(row["difference_interval"]) >= 0]
    parts = []
    if above:
        verb = "have" if len(above) > 1 else "has"
        parts.append(f"{listed(above)} {verb} the higher weighted F1.")
    if tied:
        parts.append(f"Not shown to be worse than SuperActivators: {listed(tied)}.")
    if not parts:
        return el("p", "SuperActivators are first, and every paired interval excludes zero.")
    return el("p", el("strong", "Where SuperActivators do not win. "), " ".join(parts))


def choices_table(block: Mapping[str, Any]) -> Markup:
    """Chosen delta and layer of each concept with its test F1 beside MaxTok and the best other."""
    scored = {row["concept"]: row for row in block.get("detection", {}).get("per_concept", [])}
    entries = [(choice, scored.get(choice["concept"])) for choice in block["choices"]]
    entries.sort(key=lambda entry: (-(_f1(entry[1], OWN) or 0.0), entry[0]["concept"]))
    ticks = _ticks(
        [
            (value, one.get("interval", {}).get(OWN))
            for _, one in entries
            if one
            for value in one["f1"].values()
        ]
    )
    x = Scale((ticks[0], ticks[-1]), (10, CELL - 10))
    names = ("Layer", "δ", "Threshold", "In-concept cal tokens", "Cal F1", "Positive test samples")
    head = el(
        "tr",
        el("th", "Concept", scope="col"),
        *(_head(name) for name in names),
        el("th", axis_cell(x, ticks, "test F1"), scope="col", class_="plot"),
        *(_head(name) for name in ("SuperActivators", MAXTOK)),
        el("th", "Best other", scope="col", colspan=2),
    )
    body = [_choice_row(choice, one, x, ticks) for choice, one in entries]
    table = el("table", el("thead", head), el("tbody", body), class_="data choices")
    return el("figure", el("div", table, class_="scroll"), _choices_caption())


def _choices_caption() -> Markup:
    return el(
        "figcaption",
        "Layer, δ and threshold come from calibration alone. ",
        el("span", "●", class_="key own"),
        " SuperActivators, ",
        el("span", "○", class_="key maxtok"),
        " MaxTok, ",
        el("span", "■", class_="key other"),
        " best other method, which is picked on test for each concept and so flattered. "
        "The highest of the three is bold.",
    )


def _f1(row: Mapping[str, Any] | None, method: str) -> Real | None:
    return None if row is None else row["f1"].get(method)


def best_other(row: Mapping[str, Any] | None) -> tuple[str, Real] | None:
    """The best method that is neither SuperActivators nor MaxTok, and its F1."""
    f1 = {} if row is None else row["f1"]
    others = [(v, m) for m, v in f1.items() if m not in (OWN, MAXTOK) and v is not None]
    if not others:
        return None
    value, method = max(others, key=lambda pair: (pair[0], pair[1]))
    return method, value


def _choice_row(
    choice: Mapping[str, Any], row: Mapping[str, Any] | None, x: Scale, ticks: Sequence[Real]
) -> Markup:
    own, maxtok, other = _f1(row, OWN), _f1(row, MAXTOK), best_other(row)
    three = [own, maxtok, other[1] if other else None]
    top = max((v for v in three if v is not None), default=None)
    numbers = [_f1_cell(value, top) for value in three]
    concept = join([choice["concept"], _unit(choice)])
    return el(
        "tr",
        el("th", concept, scope="row"),
        el("td", choice["layer"], class_="num"),
        el("td", number(choice["delta"], 2), class_="num"),
        el("td", _threshold(choice["threshold"]), class_="num"),
        el("td", count(choice.get("n_cal_tokens")), class_="num"),
        el("td", number(choice["cal_f1"]), class_="num"),
        el("td", count(row["n_positive"] if row else None), class_="num"),
        _choice_dots(choice["concept"], row, x, ticks),
        *numbers,
        el("td", other[0] if other else "", class_="muted"),
    )


def _unit(choice: Mapping[str, Any]) -> Markup | None:
    return el("span", f" unit {choice['unit']}", class_="muted") if "unit" in choice else None


def _threshold(value: Real | None) -> str | Markup:
    if value is not None:
        return small(value)
    return el("span", number(None), title="no finite threshold: the concept never fires")


def _f1_cell(value: Real | None, top: Real | None) -> Markup:
    best = value is not None and value == top
    return el("td", number(value), class_="num main" if best else "num")


def _choice_dots(concept: str, row: Mapping[str, Any] | None, x: Scale, ticks: Sequence[Real]) -> Markup:
    own, maxtok, other = _f1(row, OWN), _f1(row, MAXTOK), best_other(row)
    middle = ROW / 2
    bounds = (row or {}).get("interval", {}).get(OWN)
    marks: list[Child] = []
    if other:
        tip = el("title", f"{other[0]} {number(other[1])}")
        left, top = f"{x(other[1]) - 3:.1f}", f"{middle + 4:.1f}"
        marks.append(el("rect", tip, x=left, y=top, width=6, height=6, class_="square"))
    marks.append(whisker(x, own, bounds, middle - 7, "own", f"{OWN} {number(own)}"))
    marks.append(whisker(x, maxtok, None, middle, "maxtok", f"{MAXTOK} {number(maxtok)}", 3.5))
    what = f"{concept}: {OWN} {number(own)}, {MAXTOK} {number(maxtok)}"
    return dots_cell(x, ticks, what, marks)


def localisation_table(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Token-level agreement with the labels."""
    metrics = (("F1", "f1"), ("Average precision", "average_precision"), ("AUROC", "auroc"))
    head = el(
        "tr", el("th", "Rule", scope="col"), *(el("th", name, scope="col", colspan=2) for name, _ in metrics)
    )
    body = [_localisation_row(row, [key for _, key in metrics]) for row in rows]
    table = el("table", el("thead", head), el("tbody", body), class_="data")
    caption = (
        "Token level, test split, weighted over concepts, against the token labels. A rule that "
        "marks few tokens by design gives up recall here; and agreement with a dictionary's labels "
        "is not where the model's evidence lies."
    )
    return el("figure", el("div", table, class_="scroll"), el("figcaption", caption))


def _localisation_row(row: Mapping[str, Any], keys: Sequence[str]) -> Markup:
    cells = [
        (
            el("td", number(row[key]), class_="num"),
            el("td", interval(row.get(f"{key}_interval")), class_="ci"),
        )
        for key in keys
    ]
    own = row["method"] == OWN
    return el("tr", el("th", row["method"], scope="row"), cells, class_="own" if own else None)


def rates_table(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """False fires and misses by concept, raw beside SuperActivators."""
    x = Scale((0.0, 1.0), (10, 190))
    ticks = nice([0, 1], 3)
    pair = (("False fires of negatives", "false_fire"), ("Misses of positives", "miss"))
    head = el(
        "tr",
        el("th", "Concept", scope="col"),
        *(
            (
                el("th", axis_cell(x, ticks, name, 200), scope="col", class_="plot"),
                el("th", "Raw", scope="col", class_="num"),
                el("th", OWN, scope="col", class_="num"),
            )
            for name, _ in pair
        ),
    )
    body = [_rate_row(row, [key for _, key in pair], x, ticks) for row in rows]
    table = el("table", el("thead", head), el("tbody", body), class_="data rates")
    caption = [
        "Share of negative samples that fire and of positive samples that stay silent, test "
        "split. The raw rule (any token above the midpoint between the calibration means of in- "
        "and out-of-concept scores) is one rule among many, not the best. ",
        el("span", "○", class_="key maxtok"),
        " raw scores, ",
        el("span", "●", class_="key own"),
        " SuperActivators, with intervals over documents.",
    ]
    return el("figure", el("div", table, class_="scroll"), el("figcaption", caption))


def _rate_row(row: Mapping[str, Any], keys: Sequence[str], x: Scale, ticks: Sequence[Real]) -> Markup:
    cells: list[Markup] = []
    for key in keys:
        raw, tail = row[f"raw_{key}"], row[f"tail_{key}"]
        marks = [
            whisker(x, raw, row.get(f"raw_{key}_interval"), ROW / 2 - 4, "maxtok", f"raw {number(raw)}"),
            whisker(x, tail, row.get(f"tail_{key}_interval"), ROW / 2 + 4, "own", f"{OWN} {number(tail)}"),
        ]
        what = f"{row['concept']}, {key.replace('_', ' ')}: raw {number(raw)}, tail {number(tail)}"
        cells.append(dots_cell(x, ticks, what, marks, width=200))
        cells += [el("td", number(raw), class_="num"), el("td", number(tail), class_="num")]
    return el("tr", el("th", row["concept"], scope="row"), cells)


RATES_WIDTH, RATES_HEIGHT, RATES_LEFT, RATES_RIGHT, RATES_TOP, RATES_BOTTOM = (400, 240, 40, 12, 12, 36)
CURVES = (
    ("all", "All SuperActivators / in-concept tokens"),
    ("inside", "In-concept SuperActivators / in-concept tokens"),
)


def fraction_cdfs(block: Mapping[str, Any]) -> Markup:
    """The two CDFs of the SuperActivator fraction of positive samples."""
    drawn = [el("div", el("h4", title), _cdf(block["grid"], block[key], title)) for key, title in CURVES]
    caption = (
        "Share of positive test samples whose fraction is at most x; thin lines are concepts (name "
        "on hover), the bold line is their mean. Left, every SuperActivator of the sample counts, "
        "so fractions above 1 occur and the curve may end below 1; right, only those in concept."
    )
    return el("figure", el("div", drawn, class_="panels"), el("figcaption", caption))


def _cdf(grid: Sequence[Real], curve: Mapping[str, Any], title: str) -> Markup:
    x = Scale((grid[0], grid[-1]), (RATES_LEFT + 4, RATES_WIDTH - RATES_RIGHT))
    y = Scale((0.0, 1.0), (RATES_HEIGHT - RATES_BOTTOM, RATES_TOP))
    parts: list[Child] = [
        y_axis(y, nice([0, 1], 5), RATES_LEFT, RATES_WIDTH - RATES_RIGHT),
        x_axis(
            x, [t for t in nice(grid, 6) if grid[0] <= t <= grid[-1]], RATES_TOP, RATES_HEIGHT - RATES_BOTTOM
        ),
    ]
    for name, values in sorted(curve["concepts"].items()):
        parts.append(line(grid, values, x, y, "thin positive", name))
    parts.append(line(grid, curve["mean"], x, y, "line positive", "mean"))
    parts.append(text(RATES_WIDTH - RATES_RIGHT, RATES_HEIGHT - 4, "fraction", "end", "axis-title"))
    parts.append(segment(RATES_LEFT, RATES_TOP, RATES_LEFT, RATES_HEIGHT - RATES_BOTTOM, "axis"))
    first, last = number(curve["mean"][0]), number(curve["mean"][-1])
    ends = f"Mean: {first} at {grid[0]:g}, {last} at {grid[-1]:g}."
    return chart(RATES_WIDTH, RATES_HEIGHT, title, ends, parts)


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


def _scales(block: Mapping[str, Any], curves: Sequence[Mapping[str, Any]]) -> tuple[Scale, Scale, list[Real]]:
    deltas = block["deltas"]
    values = [v for curve in curves for v in curve["weighted_f1"]] + [block["always_positive"]]
    shown = [curve for curve in curves if curve["method"] in (OWN, MAXTOK)]
    ends = [e for curve in shown for pair in curve.get("interval") or () for e in pair or ()]
    ticks = nice(values + ends, 6)
    x = Scale((min(deltas), max(deltas)), (LEFT + 6, WIDTH - RIGHT - 6), log=True)
    return x, Scale((ticks[0], ticks[-1]), (HEIGHT - BOTTOM, TOP)), ticks


def _plot(block: Mapping[str, Any], curves: Sequence[Mapping[str, Any]], style: Mapping[str, str]) -> Markup:
    x, y, ticks = _scales(block, curves)
    deltas = block["deltas"]
    shown = [d for d in deltas if d in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.95)] or deltas
    parts: list[Child] = [y_axis(y, ticks, LEFT, WIDTH - RIGHT), x_axis(x, shown, TOP, HEIGHT - BOTTOM)]
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


def _line(curve: Mapping[str, Any], deltas: Sequence[Real], x: Scale, y: Scale, kind: str) -> Markup:
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


def _key(block: Mapping[str, Any], curves: Sequence[Mapping[str, Any]], style: Mapping[str, str]) -> Markup:
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
