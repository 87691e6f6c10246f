"""The head maps: which heads write the score of the SuperActivators, against their control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sa_plugin.report.html import Attribute, Child, Markup, el
from sa_plugin.report.svg import chart, segment, text
from sa_plugin.report.words import Real, sentence, small

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
    return [
        [None if v is None or not total else v / total for v in row] for row in excess(head_map)
    ]


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
    parts = [
        text(LEFT + (n + 0.5) * cell, bottom + 13, str(n), "middle") for n in range(0, blocks, step)
    ]
    parts += [
        text(LEFT - 5, TOP + (h + 0.5) * cell + 4, str(h), "end") for h in range(0, heads, rows)
    ]
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
