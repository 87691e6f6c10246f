"""The one drawing stack: matplotlib, imported when a picture is asked for.

Pictures are made of `Drawn` and arrays alone; no result is known here. A figure belongs to nobody's
global state (no `pyplot.figure`), so a notebook shows it once, where it is returned. Colours are the
palette's; `svg` turns them into the style sheet's variables, so that the report's charts follow
the page, light or dark.
"""

from __future__ import annotations

import io
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from sa_plugin.show.html import ALWAYS, MAXTOK, OWN, Markup, el
from sa_plugin.statistics.drawn import Drawn, few_words
from sa_plugin.statistics.interval import FEW

TAIL_COLOUR = "#ce5410"
IN_COLOUR = "#1a6fae"
OUT_COLOUR = "#a9a79f"
TEXT_COLOUR = "#1d1d1b"
LONGEST = 30
"""Characters of a name beside an axis: a longer one would leave no room for the picture."""
# Deltas that get a tick where a whole grid of them would not fit.
SHOWN_DELTAS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.95)
# Colour and dashes of whatever has no colour of its own, in order.
OTHERS = (
    ("#0b7d5e", "--"),
    ("#a34a83", ":"),
    ("#9a6a00", "-."),
    ("#55606b", "-"),
    ("#77756e", ":"),
    ("#0b7d5e", "-."),
    ("#a34a83", "--"),
    ("#9a6a00", ":"),
    ("#55606b", "--"),
)
MOST_LAYERS = 10
"""Under a panel."""
MOST_LABELS = 24
"""Under a grid; more would run into one another."""
# Variables of the report's style sheet in place of the palette.
VARIABLES: Mapping[str, str] = {
    TAIL_COLOUR: "var(--own)",
    IN_COLOUR: "var(--blue)",
    OUT_COLOUR: "var(--out)",
    TEXT_COLOUR: "var(--ink)",
    "#0b7d5e": "var(--green)",
    "#a34a83": "var(--plum)",
    "#9a6a00": "var(--amber)",
    "#55606b": "var(--slate)",
    "#77756e": "var(--faint)",
}


def new_figure(
    width: float, height: float, *, rows: int = 1, columns: int = 1, heights: Sequence[float] | None = None
) -> tuple[Any, Any]:
    """A figure of its own and its axes: one, or an array where there are several panels.

    Args:
        width: In inches.
        height: In inches.
        rows: Of panels.
        columns: Of panels.
        heights: Of the rows of panels, relative to one another.
    """
    pyplot = import_module("matplotlib.pyplot")
    if "IPython" in sys.modules:
        # A notebook learns how to show a figure when its backend is loaded, which pyplot puts off
        # until it is asked to draw; there is nothing of pyplot's to be drawn.
        pyplot.draw_if_interactive()
    figure = import_module("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, height_ratios=heights)
    for ax in np.ravel(axes):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure, axes


def words(ax: Any, *, title: str = "", x: str = "", y: str = "") -> None:
    """Title and axis labels; a dollar sign in a name is no formula."""
    if title:
        ax.set_title(title, fontsize=9, loc="left", parse_math=False)
    ax.set_xlabel(x, fontsize=9, parse_math=False)
    ax.set_ylabel(y, fontsize=9, parse_math=False)


def legend(ax: Any, *, outside: bool = True) -> None:
    """A legend without a frame, beside the picture where it would cover it."""
    place = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if outside else {"loc": "best"}
    found = ax.legend(frameon=False, fontsize=8, **place)
    for one in found.get_texts():
        one.set_parse_math(False)


def legend_above(ax: Any, title: str) -> None:
    """The title of a figure and the legend of a panel that stands for all of them."""
    handles, names = ax.get_legend_handles_labels()
    found = ax.figure.legend(
        handles,
        names,
        title=title,
        loc="outside upper left",
        alignment="left",
        ncols=len(names),
        frameon=False,
        fontsize=8,
        title_fontsize=10,
    )
    for one in (found.get_title(), *found.get_texts()):
        one.set_parse_math(False)


def note(figure: Any, words: str, *shown: Drawn) -> None:
    """What the picture does not show, under it, and whether few documents carry the numbers shown."""
    # Twenty characters of this size fill an inch.
    few = textwrap.fill(few_words(shown, " (dotted)"), int(20 * figure.get_figwidth()))
    words = "\n".join(filter(None, (words, few)))
    figure.supxlabel(words, fontsize=7, x=0.01, ha="left", color=TEXT_COLOUR, parse_math=False)


def styles(
    names: Sequence[str], own: Mapping[str, tuple[str, Any]] | None = None
) -> dict[str, tuple[str, Any]]:
    """Colour and dashes of every name: its own, or the next of `OTHERS`."""
    rest = [name for name in names if name not in (own or {})]
    return {name: OTHERS[k % len(OTHERS)] for k, name in enumerate(rest)} | dict(own or {})


def line(
    ax: Any,
    drawn: Drawn,
    *,
    label: str = "",
    colour: str = TAIL_COLOUR,
    dashes: Any = "-",
    band: bool = True,
    width: float = 1.6,
) -> Any:
    """A number of one axis as a line over that axis' labels, with its interval as a band."""
    if len(drawn.axes) != 1:
        raise ValueError(f"a line shows a number of one axis, not {drawn!r}: choose with .sel(...).")
    ((axis, labels),) = drawn.axes.items()
    if axis == "layer":
        _layer_ticks(ax, labels)
    marker = "o" if len(labels) < 2 else None
    (found,) = ax.plot(
        labels, drawn.estimate, color=colour, ls=dashes, lw=width, marker=marker, label=label or None
    )
    if band and np.isfinite(drawn.low).any():
        ax.fill_between(labels, drawn.low, drawn.high, color=colour, alpha=0.15, lw=0)
        if dashes_of(drawn) == ":":
            ax.fill_between(labels, drawn.low, drawn.high, color="none", edgecolor=colour, lw=0.8, ls=":")
    return found


def _layer_ticks(ax: Any, layers: Sequence[int]) -> None:
    """The layers that any line has, thinned where there are many; none between them."""
    locator = ax.xaxis.get_major_locator()
    before = locator() if isinstance(locator, import_module("matplotlib.ticker").FixedLocator) else ()
    every = sorted({int(one) for one in (*before, *layers)})
    shown = every[:: -(-len(every) // MOST_LAYERS) or 1]
    ax.set_xticks(shown, [str(one) for one in shown])


def dashes_of(drawn: Drawn) -> str:
    """Of the ends of intervals of which few documents carry some."""
    return ":" if np.any(drawn.notes == FEW) else "-"


def whiskers(
    ax: Any,
    drawn: Drawn,
    *,
    colours: Sequence[str] | str = TEXT_COLOUR,
    offset: float = 0.0,
    label: str = "",
    hollow: bool = False,
    without: str = "",
) -> None:
    """A number of one axis as points with their intervals, one row a label, the first on top.

    An interval that few documents carry is dotted.

    Args:
        ax: Where.
        drawn: The number.
        colours: Of all points, or of each.
        offset: From the row's middle, where several numbers share a row.
        label: In the legend.
        hollow: Draw rings, so that two numbers of a row differ in more than colour.
        without: The row of this label stays empty.
    """
    if len(drawn.axes) != 1:
        raise ValueError(f"whiskers show a number of one axis, not {drawn!r}: choose with .sel(...).")
    (labels,) = drawn.axes.values()
    each = [colours] * len(labels) if isinstance(colours, str) else list(colours)
    cells = zip(drawn.estimate, drawn.low, drawn.high, drawn.notes == FEW, strict=True)
    for place, (value, low, high, few) in enumerate(cells):
        at = place + offset
        if labels[place] == without:
            continue
        if np.isfinite(low) and np.isfinite(high):
            ax.plot([low, high], [at, at], color=each[place], lw=1.5, ls=":" if few else "-")
        said = label if place == 0 and label else None
        fill = {"markerfacecolor": "none", "markeredgewidth": 1.3} if hollow else {}
        ax.plot([value], [at], "o", color=each[place], ms=4.5, label=said, **fill)
    rows(ax, labels)


def rows(ax: Any, labels: Sequence[Any]) -> None:
    """Names along the upright axis, the first on top; a very long one is cut short."""
    names = [str(label) for label in labels]
    shown = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
    ax.set_yticks(range(len(labels)), shown, fontsize=8)
    for one in ax.get_yticklabels():
        one.set_parse_math(False)
    ax.set_ylim(len(labels) - 0.5, -0.5)


def zero(ax: Any, *, upright: bool = True, at: float = 0.0) -> None:
    """A thin line at zero, or where nothing happens."""
    (ax.axvline if upright else ax.axhline)(at, color=OUT_COLOUR, lw=1, ls="--", zorder=0)


def heat(
    ax: Any,
    values: np.ndarray,
    row_labels: Sequence[Any],
    column_labels: Sequence[Any],
    *,
    limit: float | None = None,
    print_values: bool = False,
    scale: str = "",
    tips: Sequence[Sequence[str]] | None = None,
) -> None:
    """A grid of shaded rectangles, orange above zero and blue below; empty where not defined.

    With `scale`, their unit, a bar beside the grid says what the shades mean.

    Rectangles and no image: an image would not follow the page's colours. A bar in a dark rectangle
    says that it is below zero, so that colour is not alone.
    """
    known = np.abs(values[np.isfinite(values)]).tolist()
    top = max(known, default=0.0) if limit is None else limit
    patches = import_module("matplotlib.patches")
    bars: list[tuple[float, float]] = []
    for r, c in np.ndindex(values.shape):
        value = float(values[r, c])
        if not np.isfinite(value):
            continue
        share = min(abs(value) / top, 1.0) if top else 0.0
        colour = TAIL_COLOUR if value >= 0 else IN_COLOUR
        cell = patches.Rectangle((c - 0.5, r - 0.5), 1, 1, facecolor=colour, alpha=share, lw=0, clip_on=False)
        ax.add_patch(cell)
        if tips is not None:
            tip(cell, tips[r][c])
        if value < 0 and share > 0.25:
            bars += [(c - 0.2, r), (c + 0.2, r), (np.nan, np.nan)]
        if print_values:
            ax.text(
                c,
                r,
                f"{value:.2f}".replace("-", "−"),
                ha="center",
                va="center",
                fontsize=6.5,
                color=TEXT_COLOUR,
            )
    if bars and not print_values:
        ax.plot(*zip(*bars, strict=True), color=TEXT_COLOUR, lw=0.8)
    if scale and top:
        _shade_scale(ax, -top if (values < 0).any() else 0.0, top, scale)
    ax.set_xlim(-0.5, len(column_labels) - 0.5)
    # More labels than fit are thinned, the first always shown.
    at = range(0, len(column_labels), -(-len(column_labels) // MOST_LABELS) or 1)
    ax.set_xticks(at, [str(column_labels[c]) for c in at], fontsize=7)
    rows(ax, row_labels)


def _shade_scale(ax: Any, low: float, high: float, unit: str) -> None:
    """A bar of shades beside a grid, with the numbers that they stand for."""
    colors = import_module("matplotlib.colors")
    shades = [TAIL_COLOUR] if low >= 0 else [IN_COLOUR, TAIL_COLOUR]
    between = ["white", *shades] if low >= 0 else [shades[0], "white", shades[1]]
    shown = import_module("matplotlib.cm").ScalarMappable(
        colors.Normalize(low, high), colors.LinearSegmentedColormap.from_list("shades", between)
    )
    bar = ax.figure.colorbar(shown, ax=ax, shrink=0.9, aspect=18, pad=0.02)
    bar.locator = import_module("matplotlib.ticker").MaxNLocator(4)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(unit, fontsize=8, parse_math=False)


def densities(
    ax: Any, inside: np.ndarray | None, outside: np.ndarray, edges: np.ndarray, cut: float | None
) -> None:
    """Densities of scores in and out of concept, the tail above a threshold filled.

    Args:
        ax: Where.
        inside: In-concept scores, if there are any.
        outside: The others.
        edges: Of the bins.
        cut: Threshold.
    """
    drawn = np.histogram(outside, edges, density=True)[0]
    ax.stairs(drawn, edges, fill=True, color=OUT_COLOUR, alpha=0.5, label="out of concept")
    if inside is None:
        return
    heights = np.histogram(inside, edges, density=True)[0]
    ax.stairs(heights, edges, color=IN_COLOUR, lw=1.3, label="in concept")
    if cut is not None:
        above = edges[1:] > cut
        ax.stairs(np.where(above, heights, 0.0), edges, fill=True, color=TAIL_COLOUR, label="tail")
        ax.axvline(cut, color=TAIL_COLOUR, lw=1.2)


def method_whiskers(ax: Any, f1: Drawn, floor: float) -> None:
    """F1 of every method with its interval, SuperActivators in their colour, always-positive dashed."""
    whiskers(ax, f1, colours=[TAIL_COLOUR if name == OWN else TEXT_COLOUR for name in f1.axes["method"]])
    if np.isfinite(floor):
        zero(ax, at=floor)


def gap_whiskers(ax: Any, by: Drawn, without: str = "") -> None:
    """Paired differences by method: dark where the interval excludes zero, pale where it does not."""
    shades = [TEXT_COLOUR if sure else OUT_COLOUR for sure in np.atleast_1d(by.excludes_zero)]
    whiskers(ax, by, colours=shades, without=without)
    zero(ax)


def delta_curves(ax: Any, f1: Drawn, floor: float) -> None:
    """F1 of every method against delta; bands for SuperActivators and MaxTok, always-positive dashed."""
    own = {OWN: (TAIL_COLOUR, "-"), MAXTOK: (IN_COLOUR, (0, (9, 2)))}
    names, deltas = f1.axes["method"], list(f1.axes["delta"])
    style = styles(names, own)
    for name in names:
        colour, dashes = style[name]
        width = 2.4 if name == OWN else 1.4
        curve = f1.sel(method=name)
        tip(line(ax, curve, label=name, colour=colour, dashes=dashes, band=name in own, width=width), name)
    if np.isfinite(floor):
        ax.axhline(floor, color=OUT_COLOUR, lw=1, ls="--", label=ALWAYS)
    ax.set_xscale("log")
    shown = [d for d in deltas if d in SHOWN_DELTAS] or deltas
    ax.set_xticks(shown, [f"{d:g}" for d in shown])
    ax.minorticks_off()


def word_bars(ax: Any, tokens: Sequence[str], values: np.ndarray, outlined: np.ndarray) -> None:
    """A number of each token as bars along the text, orange above zero and blue below.

    Args:
        ax: Where.
        tokens: Characters of each token, in the text's order.
        values: Of each token.
        outlined: Which bars have a frame and their token in bold.
    """
    colours = [TAIL_COLOUR if value >= 0 else IN_COLOUR for value in values]
    frames = [TEXT_COLOUR if one else "none" for one in outlined]
    ax.bar(range(len(values)), values, color=colours, edgecolor=frames, lw=1)
    ax.axhline(0, color=TEXT_COLOUR, lw=0.6)
    ax.set_xticks(range(len(values)), [one.strip() for one in tokens], rotation=90, fontsize=8)
    ax.set_xlim(-0.7, len(values) - 0.3)
    for tick, bold in zip(ax.get_xticklabels(), outlined, strict=True):
        tick.set_parse_math(False)
        tick.set_fontweight("bold" if bold else "normal")


def patch_map(
    ax: Any, pixels: np.ndarray, boxes: np.ndarray, shares: np.ndarray, outlined: np.ndarray
) -> None:
    """A picture in grey with its patches shaded, orange above zero and blue below.

    Args:
        ax: Where.
        pixels: Height, width, colour.
        boxes: Top, left, bottom and right of each patch, in pixels.
        shares: Of each patch, -1 to 1.
        outlined: Which patches have a frame.
    """
    patches = import_module("matplotlib.patches")
    ax.imshow(pixels.mean(-1), cmap="gray", vmin=0, vmax=255)
    for (top, left, bottom, right), share, frame in zip(boxes, shares, outlined, strict=True):
        corner, size = (left - 0.5, top - 0.5), (right - left, bottom - top)
        colour = TAIL_COLOUR if share >= 0 else IN_COLOUR
        ax.add_patch(patches.Rectangle(corner, *size, facecolor=colour, alpha=0.75 * abs(float(share)), lw=0))
        if frame:
            ax.add_patch(patches.Rectangle(corner, *size, fill=False, edgecolor=TEXT_COLOUR, lw=1))
    ax.set_axis_off()


def tip(artist: Any, words: str) -> None:
    """What an artist says of itself when it is pointed at in a page."""
    artist.set_gid(f"{_TIP}{words}")


_TIP = "tip:"


def svg(figure: Any, title: str, description: str, prefix: str) -> Markup:
    """A figure as an SVG element of a page: its colours follow the style sheet, its ids are its own.

    Equal figures of one prefix give equal bytes. The page's style sheet sets what stands for all
    figures alike: lines that join round, text in the page's ink.

    Args:
        figure: Of matplotlib.
        title: Its name, for people who point at it or do not see it.
        description: What it shows, for people who do not see it.
        prefix: Of its ids: letters and figures, another one for every figure of a page.
    """
    matplotlib = import_module("matplotlib")
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "sa_plugin", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    width, height = (72 * side for side in figure.get_size_inches())
    return el(
        "svg",
        el("title", title),
        el("desc", description),
        _themed(buffer.getvalue(), prefix),
        viewBox=f"0 0 {width:g} {height:g}",
        # In pixels: a point is a third more than one.
        width=f"{width * 4 / 3:.0f}",
        height=f"{height * 4 / 3:.0f}",
        role="img",
        aria_label=title,
        class_="figure",
    )


def figure_style() -> str:
    """For the style sheet of a page that shows figures of `svg`, and is no report: the palette, in light."""
    colours = "".join(f"{variable[4:-1]}:{colour};" for colour, variable in VARIABLES.items())
    return (
        f":root{{color-scheme:light;{colours}}}svg.figure text{{fill:var(--ink)}}"
        "svg.figure *{stroke-linejoin:round}"
    )


def _themed(text: str, prefix: str) -> Markup:
    """What an SVG file of matplotlib draws, as a part of a page: see `svg`."""
    text = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    # A global style in one figure would reach every other; the page's style sheet has it instead.
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.S)
    text = text.replace(' xml:space="preserve"', "").replace("xlink:href", "href")
    text = re.sub(rf'<g id="{_TIP}([^"]*)">', r"<g><title>\1</title>", text)
    # Names that nothing refers to go, the others get the figure's own prefix.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)([^")]+)', rf"\1{prefix}-\2", text)
    text = re.sub(r' style="([^"]*)"', lambda m: _styled(m[1]), text)
    text = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda m: _rounded(m[0]), text)
    text = re.sub(r' transform="rotate\(-?0 [^"]*"', "", text)
    return Markup(re.sub(r">\s+<", "><", text.strip()))


def _styled(style: str) -> str:
    """A style in the page's variables, without what its style sheet says of all figures."""
    for colour, variable in VARIABLES.items():
        style = style.replace(colour, variable)
    # What matplotlib draws in plain black is ticks and spines.
    style = style.replace(": #000000", ": var(--ink)")
    kept = [one for one in style.split("; ") if not one.startswith(("font-family", "stroke-linejoin"))]
    return f' style="{"; ".join(kept)}"' if kept else ""


def _rounded(attribute: str) -> str:
    """Places to a hundredth of a point: less cannot be seen."""
    numbers = re.sub(r"-?\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", attribute)
    return re.sub(r"\s+", " ", re.sub(r"\s*([MLQCz])\s*", r"\1", numbers))
