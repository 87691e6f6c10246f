"""Plots for notebooks, of the same blocks of `results.json` that the report draws.

Every function takes a block of the results dictionary (`sa_plugin.report.schema`), draws on `ax` and
returns it; colours and line styles are the report's. matplotlib is imported when a plot is asked
for. `show_passages` and `show_pictures` need no matplotlib: they return HTML without network or
scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sa_plugin._check import require
from sa_plugin.report.heads import excess, mean_grid, relative
from sa_plugin.report.page import stylesheet
from sa_plugin.report.passages import passages, pictures
from sa_plugin.show.html import ALWAYS, MAXTOK, OWN, Markup, Real, by_weighted_f1, el, known, method_of
from sa_plugin.show.plots import IN_COLOUR, OTHERS, OUT_COLOUR, TAIL_COLOUR, TEXT_COLOUR

SHOWN_DELTAS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.95)


def plot_detection(block: Mapping[str, Any], ax: Any = None) -> Any:
    """Weighted F1 of every method with its interval, best on top.

    Args:
        block: `kinds[kind]["detection"]`.
        ax: Axes to draw on; by default new ones.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is missing; the text names the extra.
    """
    ax = _axes(ax, (6.0, 3.6))
    rows = by_weighted_f1(block["methods"])
    for place, row in enumerate(rows):
        colour = TAIL_COLOUR if row["method"] == OWN else TEXT_COLOUR
        if known(row["interval"]):
            ax.plot(row["interval"], [place, place], color=colour, lw=1.5)
        ax.plot([_or_nan(row["weighted_f1"])], [place], "o", color=colour, ms=5)
    floor = method_of(rows, ALWAYS)
    if floor and floor["weighted_f1"] is not None:
        ax.axvline(floor["weighted_f1"], color=OUT_COLOUR, lw=1, ls="--", zorder=0)
    ax.set_yticks(range(len(rows)), [row["method"] for row in rows])
    ax.invert_yaxis()
    ax.set_xlabel("weighted F1, test (dashed: always-positive)")
    return _plain(ax)


def plot_sparsity(block: Mapping[str, Any], ax: Any = None) -> Any:
    """The delta curve of every method, with bands and the always-positive floor.

    Args:
        block: `kinds[kind]["sparsity"]`.
        ax: Axes to draw on; by default new ones.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is missing; the text names the extra.
    """
    ax = _axes(ax, (6.0, 3.8))
    others = sorted(c["method"] for c in block["curves"] if c["method"] not in (OWN, MAXTOK))
    style: dict[str, tuple[str, Any]] = {name: OTHERS[k % len(OTHERS)] for k, name in enumerate(others)}
    style |= {OWN: (TAIL_COLOUR, "-"), MAXTOK: (IN_COLOUR, (0, (9, 2)))}
    for curve in block["curves"]:
        name = curve["method"]
        colour, dashes = style[name]
        heights = [_or_nan(v) for v in curve["weighted_f1"]]
        ax.plot(block["deltas"], heights, color=colour, ls=dashes, label=name, lw=2.4 if name == OWN else 1.4)
        if name in (OWN, MAXTOK):
            _band(ax, block["deltas"], curve.get("interval"), colour)
    if block["always_positive"] is not None:
        ax.axhline(block["always_positive"], color=OUT_COLOUR, lw=1, ls="--", label=ALWAYS)
    ax.set_xscale("log")
    shown = [d for d in block["deltas"] if d in SHOWN_DELTAS] or block["deltas"]
    ax.set_xticks(shown, [f"{d:g}" for d in shown])
    ax.minorticks_off()
    ax.set_xlabel("delta")
    ax.set_ylabel("weighted F1, test")
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return _plain(ax)


def plot_trace(block: Mapping[str, Any], quantity: str = "tail_gap", ax: Any = None) -> Any:
    """One quantity by layer: concepts thin, their mean bold with its interval.

    Coverage comes with the coverage of negative samples, without which it means nothing.

    Args:
        block: `kinds[kind]["trace"]`.
        quantity: "auroc", "in_mass_at_fpr", "coverage", "tail_gap", "overlap", ...
        ax: Axes to draw on; by default new ones.

    Returns:
        The axes.

    Raises:
        ValueError: The trace has no such quantity.
        ImportError: matplotlib is missing; the text names the extra.
    """
    series = [*block["concepts"].values(), *([block["mean"]] if block.get("mean") else [])]
    known_names = sorted(k for k in set().union(*series) if not k.endswith("_interval"))
    if quantity not in known_names:
        raise ValueError(f"the trace has no {quantity!r}: use one of {known_names}.")
    ax = _axes(ax, (5.0, 3.4))
    drawn = [(quantity, TAIL_COLOUR, "-")]
    if quantity == "coverage":
        drawn.append(("negative_coverage", "#55606b", "--"))
    for name, colour, dashes in drawn:
        for one in block["concepts"].values():
            heights = [_or_nan(v) for v in one[name]]
            ax.plot(block["layers"], heights, color=colour, ls=dashes, lw=0.7, alpha=0.35)
        if block.get("mean"):
            heights = [_or_nan(v) for v in block["mean"][name]]
            label = name.replace("_", " ")
            ax.plot(block["layers"], heights, color=colour, ls=dashes, lw=2.2, label=label)
            _band(ax, block["layers"], block["mean"].get(f"{name}_interval"), colour)
    ax.set_xlabel("layer")
    ax.set_ylabel(quantity.replace("_", " "))
    if quantity == "coverage" and block.get("mean"):
        ax.legend(frameon=False, fontsize=8)
    return _plain(ax)


def plot_distributions(
    block: Mapping[str, Any], concept: str, layer: int | None = None, ax: Any = None
) -> Any:
    """In- and out-of-concept densities of one concept at one layer, threshold and tail marked.

    Args:
        block: `kinds[kind]["trace"]["distributions"]`.
        concept: Which.
        layer: Block index; by default the last layer traced.
        ax: Axes to draw on; by default new ones.

    Returns:
        The axes.

    Raises:
        ValueError: The block has no such concept or layer.
        ImportError: matplotlib is missing; the text names the extra.
    """
    layer = block["layers"][-1] if layer is None else layer
    if concept not in block["concepts"]:
        raise ValueError(f"no distributions of {concept!r}: use one of {list(block['concepts'])}.")
    if layer not in block["layers"]:
        raise ValueError(f"no distributions at layer {layer}: use one of {block['layers']}.")
    ax = _axes(ax, (5.0, 3.0))
    one, k, edges = block["concepts"][concept], block["layers"].index(layer), block["edges"]
    inside = [_or_nan(v) for v in one["in_concept"][k]]
    outside = [_or_nan(v) for v in one["out_of_concept"][k]]
    ax.stairs(outside, edges, fill=True, color=OUT_COLOUR, alpha=0.5, label="out of concept")
    ax.stairs(inside, edges, color=IN_COLOUR, lw=1.4, label="in concept")
    threshold = one["threshold"][k]
    if threshold is not None:
        _tail(ax, inside, edges, threshold)
    ax.set_xlabel("score, sd of out-of-concept")
    ax.set_ylabel("density")
    ax.set_title(f"{concept}, layer {layer}", fontsize=10)
    ax.legend(frameon=False, fontsize=8)
    return _plain(ax)


def plot_heads(block: Mapping[str, Any], concept: str | None = None, ax: Any = None) -> Any:
    """Lift minus control of every head, a diverging palette centred at zero.

    Each map is divided by the |lift| of its concept's score where the block holds it, so that
    concepts whose scores have different scales can be averaged.

    Args:
        block: `kinds[kind]["heads"]`.
        concept: Which; by default the mean over concepts.
        ax: Axes to draw on; by default new ones.

    Returns:
        The axes.

    Raises:
        ValueError: The block has no such concept.
        ImportError: matplotlib is missing; the text names the extra.
    """
    known_names = list(block["concepts"])
    if concept is not None and concept not in known_names:
        raise ValueError(f"no head map of {concept!r}: use one of {known_names}.")
    names = [concept] if concept else known_names
    maps = [block["concepts"][name] for name in names]
    scaled = all("total" in one for one in maps)
    grid = mean_grid([relative(one) if scaled else excess(one) for one in maps])
    columns = [[_or_nan(v) for v in heads] for heads in zip(*grid, strict=True)]
    limit = max((abs(v) for row in columns for v in row if v == v), default=1.0) or 1.0
    colors = require("matplotlib.colors", "plot", "plots")
    palette = colors.LinearSegmentedColormap.from_list("lift", [IN_COLOUR, "#ffffff", TAIL_COLOUR])
    ax = _axes(ax, (7.0, 2.8))
    image = ax.imshow(columns, cmap=palette, vmin=-limit, vmax=limit, aspect="auto")
    label = "lift − control" if all(one.get("control") for one in maps) else "lift, no control"
    ax.figure.colorbar(image, ax=ax, label=f"{label}, share of the lift" if scaled else label)
    ax.set_xlabel("layer")
    ax.set_ylabel("head")
    ax.set_title(concept or f"mean of {len(names)} concepts", fontsize=10)
    return ax


class PassageView:
    """Passages as static HTML, for notebooks; `str()` is the HTML."""

    _what, _height = "passages", 330

    def __init__(self, markup: Markup) -> None:
        self._markup = markup

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._markup.count('<article')} {self._what})"

    def __str__(self) -> str:
        return str(self._markup)

    def _repr_html_(self) -> str:
        """A frame of its own, so that the notebook's styles and these leave each other."""
        document = el(
            "html",
            el("head", el("meta", charset="utf-8"), el("style", Markup(stylesheet()))),
            el("body", self._markup, style="padding: .5rem; max-width: none"),
        )
        height = 40 + self._height * self._markup.count("<article")
        look = f"width:100%;height:{height}px;border:0"
        return el("iframe", sandbox="", style=look, title=self._what.capitalize(), srcdoc=document)


def show_passages(items: Sequence[Mapping[str, Any]]) -> PassageView:
    """Passages with raw activations and SuperActivators side by side.

    Args:
        items: `results["passages"]`, or some of them.

    Returns:
        An object that a notebook shows; it needs no network and no matplotlib.

    Example:
        >>> show_passages([])
        PassageView(0 passages)
    """
    return PassageView(passages(items))


class PictureView(PassageView):
    """Images as static HTML, for notebooks; `str()` is the HTML."""

    _what, _height = "pictures", 660


def show_pictures(items: Sequence[Mapping[str, Any]]) -> PictureView:
    """Images with raw activations and SuperActivators side by side, masks outlined.

    Args:
        items: `results["pictures"]`, or some of them.

    Returns:
        An object that a notebook shows; it needs no network and no matplotlib.

    Example:
        >>> show_pictures([])
        PictureView(0 pictures)
    """
    return PictureView(pictures(items))


def _axes(ax: Any, size: tuple[Real, Real]) -> Any:
    pyplot = require("matplotlib.pyplot", "plot", "plots")
    return pyplot.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def _plain(ax: Any) -> Any:
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _or_nan(value: Real | None) -> Real:
    return float("nan") if value is None else value


def _band(
    ax: Any, xs: Sequence[Real], bounds: Sequence[Sequence[Real | None] | None] | None, colour: str
) -> None:
    if bounds is None:
        return
    low, high = ([_or_nan(None if pair is None else pair[end]) for pair in bounds] for end in (0, 1))
    ax.fill_between(xs, low, high, color=colour, alpha=0.15, lw=0)


def _tail(ax: Any, heights: Sequence[Real], edges: Sequence[Real], threshold: Real) -> None:
    kept = [n for n in range(len(heights)) if edges[n + 1] > threshold]
    if kept:
        cut = [max(edges[kept[0]], threshold), *edges[kept[0] + 1 :]]
        tail = [heights[n] for n in kept]
        ax.stairs(tail, cut, fill=True, color=TAIL_COLOUR, label="tail (SuperActivators)")
    ax.axvline(threshold, color=TAIL_COLOUR, lw=1.2)
