"""Localisation, false fires and misses, and how few tokens the SuperActivators are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sa_plugin.report.detection import axis_cell, dots_cell
from sa_plugin.report.html import Child, Markup, el
from sa_plugin.report.svg import Scale, chart, line, nice, segment, text, whisker, x_axis, y_axis
from sa_plugin.report.words import OWN, Real, interval, number

ROW = 27


def localisation_table(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Token-level agreement with the labels."""
    metrics = (("F1", "f1"), ("Average precision", "average_precision"), ("AUROC", "auroc"))
    head = el(
        "tr",
        el("th", "Rule", scope="col"),
        *(el("th", name, scope="col", colspan=2) for name, _ in metrics),
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


def _rate_row(
    row: Mapping[str, Any], keys: Sequence[str], x: Scale, ticks: Sequence[Real]
) -> Markup:
    cells: list[Markup] = []
    for key in keys:
        raw, tail = row[f"raw_{key}"], row[f"tail_{key}"]
        marks = [
            whisker(
                x, raw, row.get(f"raw_{key}_interval"), ROW / 2 - 4, "maxtok", f"raw {number(raw)}"
            ),
            whisker(
                x,
                tail,
                row.get(f"tail_{key}_interval"),
                ROW / 2 + 4,
                "own",
                f"{OWN} {number(tail)}",
            ),
        ]
        what = f"{row['concept']}, {key.replace('_', ' ')}: raw {number(raw)}, tail {number(tail)}"
        cells.append(dots_cell(x, ticks, what, marks, width=200))
        cells += [el("td", number(raw), class_="num"), el("td", number(tail), class_="num")]
    return el("tr", el("th", row["concept"], scope="row"), cells)


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 240, 40, 12, 12, 36
CURVES = (
    ("all", "All SuperActivators / in-concept tokens"),
    ("inside", "In-concept SuperActivators / in-concept tokens"),
)


def fraction_cdfs(block: Mapping[str, Any]) -> Markup:
    """The two CDFs of the SuperActivator fraction of positive samples."""
    drawn = [
        el("div", el("h4", title), _cdf(block["grid"], block[key], title)) for key, title in CURVES
    ]
    caption = (
        "Share of positive test samples whose fraction is at most x; thin lines are concepts (name "
        "on hover), the bold line is their mean. Left, every SuperActivator of the sample counts, "
        "so fractions above 1 occur and the curve may end below 1; right, only those in concept."
    )
    return el("figure", el("div", drawn, class_="panels"), el("figcaption", caption))


def _cdf(grid: Sequence[Real], curve: Mapping[str, Any], title: str) -> Markup:
    x = Scale((grid[0], grid[-1]), (LEFT + 4, WIDTH - RIGHT))
    y = Scale((0.0, 1.0), (HEIGHT - BOTTOM, TOP))
    parts: list[Child] = [
        y_axis(y, nice([0, 1], 5), LEFT, WIDTH - RIGHT),
        x_axis(x, [t for t in nice(grid, 6) if grid[0] <= t <= grid[-1]], TOP, HEIGHT - BOTTOM),
    ]
    for name, values in sorted(curve["concepts"].items()):
        parts.append(line(grid, values, x, y, "thin positive", name))
    parts.append(line(grid, curve["mean"], x, y, "line positive", "mean"))
    parts.append(text(WIDTH - RIGHT, HEIGHT - 4, "fraction", "end", "axis-title"))
    parts.append(segment(LEFT, TOP, LEFT, HEIGHT - BOTTOM, "axis"))
    first, last = number(curve["mean"][0]), number(curve["mean"][-1])
    ends = f"Mean: {first} at {grid[0]:g}, {last} at {grid[-1]:g}."
    return chart(WIDTH, HEIGHT, title, ends, parts)
