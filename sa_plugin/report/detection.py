"""The detection table and the choices: every method beside SuperActivators, concept by concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sa_plugin.report.html import Child, Markup, el, join
from sa_plugin.report.svg import Scale, chart, nice, segment, text, whisker
from sa_plugin.report.words import (
    ALWAYS,
    MAXTOK,
    OWN,
    Real,
    by_weighted_f1,
    count,
    interval,
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


def dots_cell(
    x: Scale, ticks: Sequence[Real], what: str, *marks: Child, width: int = CELL
) -> Markup:
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


def _choice_dots(
    concept: str, row: Mapping[str, Any] | None, x: Scale, ticks: Sequence[Real]
) -> Markup:
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
