"""The head ledger's tables: shares of heads, MLPs and embedding, and the strongest heads.

The head maps: which heads write the score of the SuperActivators, against their control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sa_plugin.report.svg import Scale, chart, segment, text
from sa_plugin.show.html import (
    Attribute,
    Child,
    Markup,
    Real,
    count,
    decimals,
    el,
    interval,
    join,
    listed,
    number,
    percent,
    sentence,
    small,
)


def share_tables(block: Mapping[str, Any]) -> Markup | None:
    """Shares of heads, MLPs and embedding, concept by concept: of the contrast and of the lift."""
    named = (("lift_shares", "lift"), ("shares", block.get("shares_of", "total")))
    drawn = []
    for key, of in named:
        rows = {name: one[key] for name, one in block["concepts"].items() if one.get(key)}
        if rows:
            drawn.append(_shares_table(rows, of))
    return join(drawn) if drawn else None


def _shares_table(rows: Mapping[str, Mapping[str, Any]], of: str) -> Markup:
    parts = ["head", "mlp", "embedding"] + (
        ["bias"] if any("bias_share" in one for one in rows.values()) else []
    )
    values = [one.get(f"{part}_share") for one in rows.values() for part in parts]
    present = [v for v in values if v is not None]
    x = Scale((min([0.0, *present]), max([1.0, *present])), (1, 91))
    names = {"head": "Heads", "mlp": "MLPs", "embedding": "Embedding", "bias": "Biases"}
    head = el(
        "tr",
        el("th", "Concept", scope="col"),
        *(el("th", names[part], scope="col", colspan=3) for part in parts),
    )
    body = [_share_row(name, one, parts, x) for name, one in sorted(rows.items())]
    table = el("table", el("thead", head), el("tbody", body), class_="data shares")
    caption = (
        f"Share of the {of}{_MEANING.get(of, '')} that each kind of component writes directly; "
        "signed, so a share below zero works against the concept; unstable where the total is "
        "small."
    )
    return el("figure", el("div", table, class_="scroll"), el("figcaption", caption))


_MEANING = {
    "total": " (this file does not name which)",
    "lift": " (SuperActivators against the other tokens of their samples, no control taken off)",
    "contrast": " (labelled tokens against tokens of negative samples, unlike the maps above)",
}


def _share_row(name: str, shares: Mapping[str, Any], parts: Sequence[str], x: Scale) -> Markup:
    cells: list[Markup] = []
    for part in parts:
        value, bounds = shares.get(f"{part}_share"), shares.get(f"{part}_share_interval")
        cells.append(el("td", _bar(value, part, x), class_="plot"))
        cells.append(el("td", number(value), class_="num"))
        cells.append(el("td", interval(bounds), class_="ci"))
    return el("tr", el("th", name, scope="row"), cells)


def _bar(value: Real | None, part: str, x: Scale) -> Markup:
    if value is None:
        return chart(92, 16, f"{part} share", "not defined")
    left, right = sorted((x(0), x(value)))
    width = f"{max(right - left, 0.5):.1f}"
    bar = el("rect", x=f"{left:.1f}", y=3, width=width, height=10, class_=f"bar {part}")
    zero = segment(x(0), 0, x(0), 16, "axis")
    return chart(92, 16, f"{part} share", number(value), bar, zero)


def strongest_table(block: Mapping[str, Any]) -> Markup:
    """The strongest heads that raise and those that lower a score, with control and contrast."""
    names = ("Lift", "Control", "Lift − control", "In − out contrast")
    spans = (2, 2, 2, 2)
    head = el(
        "tr",
        *(el("th", name, scope="col") for name in ("Head", "Concept")),
        *(el("th", name, scope="col", colspan=span) for name, span in zip(names, spans, strict=True)),
    )
    digits = decimals(row["lift"] for row in block["strongest"])
    controlled = any(row["control"] is not None for row in block["strongest"])
    lowers = [row for row in block["strongest"] if _ranked_by(row) < 0]
    raises = [row for row in block["strongest"] if row not in lowers]
    body: list[Child] = []
    for words, rows in (("Raise the score", raises), ("Lower it", lowers)):
        if rows:
            body.append(el("tr", el("th", words, scope="rowgroup", colspan=10), class_="group"))
            body += [_head_row(row, digits) for row in rows]
    table = el("table", el("thead", head), el("tbody", body), class_="data")
    caption = (
        f"Ranked by |{'lift − control' if controlled else 'lift'}| relative to the lift of the "
        f"score, on the split shown{_candidates(block)}; negative numbers work against the "
        f"concept. {_CONTROL if controlled else ''}{_excluding_zero(block)}The contrast selects no "
        "tokens by score, but the heads shown are ranked all the same."
    )
    return el("figure", el("div", table, class_="scroll"), el("figcaption", caption))


_CONTROL = "The control is one permutation per concept: a scale of what selection alone gives, not a test. "


def _candidates(block: Mapping[str, Any]) -> str:
    n = block.get("candidates")
    return "" if n is None else f", out of {count(n)} candidates (head × concept)"


def _excluding_zero(block: Mapping[str, Any]) -> str:
    names = {"lift": "lift", "control": "control", "excess": "lift − control"}
    shares = block.get("excludes_zero", {})
    said = [f"{percent(shares[key])} for {name}" for key, name in names.items() if key in shares]
    if not said:
        return ""
    return (
        f"Of all candidates the interval excludes zero in {listed(said)}; two permuted vectors "
        "would differ as well, so hold none of these against 5 %. "
    )


def _gap(row: Mapping[str, Any]) -> Real | None:
    if row.get("excess") is not None:
        return float(row["excess"])
    if row["lift"] is None or row["control"] is None:
        return None
    return float(row["lift"] - row["control"])


def _head_row(row: Mapping[str, Any], digits: int) -> Markup:
    return el(
        "tr",
        el("th", f"L{row['layer']}H{row['head']}", scope="row"),
        el("td", row["concept"]),
        el("td", number(row["lift"], digits, True), class_="num"),
        el("td", interval(row["interval"], digits, True), class_="ci"),
        el("td", number(row["control"], digits, True), class_="num"),
        el("td", interval(row.get("control_interval"), digits, True), class_="ci"),
        el("td", number(_gap(row), digits, True), class_="num main"),
        el("td", interval(row.get("excess_interval"), digits, True), class_="ci"),
        el("td", number(row.get("contrast"), digits, True), class_="num"),
        el("td", interval(row.get("contrast_interval"), digits, True), class_="ci"),
    )


def _ranked_by(row: Mapping[str, Any]) -> Real:
    """What the run ranked by: lift - control, else the lift, else the contrast."""
    values = (_gap(row), row["lift"], row.get("contrast"))
    return next((value for value in values if value is not None), 0.0)


CELL = 15
MOST_MAPS = 5
LEFT, TOP, BOTTOM = 26, 6, 30
Grid = Sequence[Sequence[Real | None]]


def excess(head_map: Mapping[str, Any]) -> list[list[Real | None]]:
    """Lift minus control, [block][head]; the lift alone where no control was computed."""
    control = head_map.get("control")
    if not control:
        return [list(row) for row in head_map["lift"]]
    return [
        [None if a is None or b is None else a - b for a, b in zip(one, other, strict=True)]
        for one, other in zip(head_map["lift"], control, strict=True)
    ]


def relative(head_map: Mapping[str, Any]) -> list[list[Real | None]]:
    """Lift minus control as a share of the |lift| of the concept's score, `total`.

    Dot scores of two concepts share no scale; their shares can be averaged and shaded alike.
    """
    total = abs(head_map["total"] or 0.0)
    return [[None if v is None or not total else v / total for v in row] for row in excess(head_map)]


def mean_grid(grids: Sequence[Grid]) -> list[list[Real | None]]:
    """Cell by cell mean; None where any is None.

    Blocks above the layer of a score write nothing into it: shallower grids count as zero there.
    """
    depth = max(len(grid) for grid in grids)
    deep = [[*grid, *[[0.0] * len(grid[0])] * (depth - len(grid))] for grid in grids if grid]
    return [[_mean(cells) for cells in zip(*rows, strict=True)] for rows in zip(*deep, strict=True)]


def _mean(cells: Sequence[Real | None]) -> Real | None:
    present = [cell for cell in cells if cell is not None]
    return sum(present) / len(present) if len(present) == len(cells) else None


def head_maps(block: Mapping[str, Any]) -> Markup:
    """Heat maps: the mean over concepts, then the concepts with the strongest single head."""
    scaled = all("total" in one for one in block["concepts"].values())
    of = relative if scaled else excess
    grids = {name: of(one) for name, one in block["concepts"].items()}
    if not grids:
        return el("p", "The ledger has no concepts.", class_="absent")
    ranked = sorted(grids, key=lambda name: (-_largest([grids[name]]), name))
    shown = {name: grids[name] for name in ranked[:MOST_MAPS]}
    if len(grids) > 1:
        # A concept without a lift has no shares; the mean is over those that have.
        known = [grid for grid in grids.values() if _largest([grid])]
        shown = {_mean_title(block, len(known)): mean_grid(known or list(grids.values())), **shown}
    limit = _largest(list(shown.values()))
    layers = {name: one["layer"] for name, one in block["concepts"].items()}
    drawn = [
        el("div", el("h4", _map_title(name, layers)), heat_map(grid, limit, name))
        for name, grid in shown.items()
    ]
    controlled = all(one.get("control") for one in block["concepts"].values())
    caption = _caption(block, limit, controlled, scaled)
    return el("figure", el("div", drawn, class_="maps"), caption)


def _mean_title(block: Mapping[str, Any], concepts: int) -> str:
    layers = [one["layer"] for one in block["concepts"].values()]
    low, high = min(layers), max(layers)
    where = f"layers {low} to {high}" if low < high else f"layer {low}"
    return f"mean of {concepts} concepts, scores at {where}"


def _map_title(name: str, layers: Mapping[str, int]) -> str:
    return f"{name}, score at layer {layers[name]}" if name in layers else name


def _largest(grids: Sequence[Grid]) -> Real:
    sizes = [abs(v) for grid in grids for row in grid for v in row if v is not None]
    return max(sizes, default=0.0)


def _caption(block: Mapping[str, Any], limit: Real, controlled: bool, scaled: bool) -> Markup:
    what = (
        "Lift minus control: the mean contribution on SuperActivators above that on the other "
        "tokens of their samples, less the same for one permuted-label vector with its own top "
        "tail (tokens chosen by a high sum lift every component that varies)."
        if controlled
        else "Lift, without a control: tokens chosen by a high sum lift every component that "
        "varies, so a part of every positive cell is selection."
    )
    unit = _unit(block, scaled)
    closes = block["closes_to"]
    return el(
        "figcaption",
        el("span", legend(limit), class_="legend"),
        f"{what}{unit} Negative cells carry a bar; blocks above a score's "
        "layer write nothing into it. A direct contribution is no proof of cause; "
        f"ablation is. The ledger's terms add up to the measured score within {small(closes)}.",
    )


def _unit(block: Mapping[str, Any], scaled: bool) -> str:
    if scaled:
        return (
            " As a share of the lift of the concept's score, so that concepts with scores of "
            "different scale can be shaded alike; the mean is that of the shares."
        )
    raw = "" if not block.get("unit") else f" Unit: {sentence(block['unit'])}"
    return f"{raw} Not divided by the scale of each concept's score, which this file does not have."


def legend(limit: Real) -> Markup:
    """The palette from -limit to limit."""
    steps = [k / 5 for k in range(-5, 6)]
    cells = [_cell(14 * k, 0, 14, value, "") for k, value in enumerate(steps)]
    right = 14 * len(steps)
    ends = [text(0, 26, small(-limit)), text(right / 2, 26, "0", "middle")]
    ends.append(text(right, 26, f"+{small(limit)}", "end"))
    return chart(right, 30, "Palette", f"From {small(-limit)} to {small(limit)}", cells, ends)


def heat_map(grid: Grid, limit: Real, name: str, cell: int = CELL) -> Markup:
    """Columns are blocks, rows are heads; shade is the share of `limit`, centred at zero."""
    heads = len(grid[0]) if grid else 0
    cells: list[Child] = []
    for layer, row in enumerate(grid):
        for head, value in enumerate(row):
            tip = f"L{layer}H{head}: {small(value)}"
            share = None if value is None else (value / limit if limit else 0.0)
            cells.append(_cell(LEFT + layer * cell, TOP + head * cell, cell, share, tip))
    strongest = sorted(
        (-abs(v), layer, head)
        for layer, row in enumerate(grid)
        for head, v in enumerate(row)
        if v is not None
    )[:3]
    words = ", ".join(f"layer {n} head {h}: {small(grid[n][h])}" for _, n, h in strongest)
    width, height = max(LEFT + len(grid) * cell + 8, 180), TOP + heads * cell + BOTTOM
    frame = _axes(len(grid), heads, cell)
    title = f"Heads of {name}"
    return chart(width, height, title, f"Strongest: {words}.", cells, frame)


def _axes(blocks: int, heads: int, cell: int) -> list[Markup]:
    bottom = TOP + heads * cell
    step = 5 if blocks > 12 else 2 if blocks > 6 else 1
    rows = 4 if heads > 6 else 1
    parts = [text(LEFT + (n + 0.5) * cell, bottom + 13, str(n), "middle") for n in range(0, blocks, step)]
    parts += [text(LEFT - 5, TOP + (h + 0.5) * cell + 4, str(h), "end") for h in range(0, heads, rows)]
    parts.append(segment(LEFT, bottom, LEFT + blocks * cell, bottom, "axis"))
    parts.append(segment(LEFT, TOP, LEFT, bottom, "axis"))
    parts.append(text(LEFT, bottom + 26, "layer → (rows: head)", class_="axis-title"))
    return parts


def _cell(x: Real, y: Real, size: int, share: Real | None, tip: str) -> Markup:
    tooltip = el("title", tip) if tip else None
    place: dict[str, Attribute] = {"x": f"{x:g}", "y": f"{y:g}", "width": size, "height": size}
    if share is None:
        return el("rect", tooltip, **place, class_="cell none")
    sign = "plus" if share >= 0 else "minus"
    shade = el("rect", tooltip, **place, class_=f"cell {sign}", fill_opacity=f"{abs(share):.3f}")
    if share > -0.25:
        return shade
    middle = y + size / 2
    return el("g", shade, segment(x + size * 0.3, middle, x + size * 0.7, middle, "minus-bar"))
