"""The map of aligned heads.

Pictures of how the tail is written: the waterfall.

Every function draws on `ax` and returns it; colours are those of `sa_plugin.plots`. matplotlib is
imported when a picture is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sa_plugin._check import require, require_known
from sa_plugin.heads.waterfall import Waterfall
from sa_plugin.show.plots import TAIL_COLOUR, TEXT_COLOUR

if TYPE_CHECKING:
    from sa_plugin.heads.align import HeadAlignment


def plot_alignment(found: HeadAlignment, concept: str | None = None, ax: Any = None) -> Any:
    """Blocks against heads: `-log10 p` of one concept, or the number of concepts aligned.

    Filled dots are concept-aligned heads, rings those called by their weights alone.

    Args:
        found: The result.
        concept: Which; by default all, counted.
        ax: Axes to draw on; by default new ones.

    Returns:
        The axes.

    Raises:
        ValueError: Unknown concept.
        ImportError: matplotlib is missing; the text names the extra.
    """
    if concept is None:
        values, label = found.aligned.sum(-1), "concepts aligned"
        called, aligned = found.called.any(-1), found.aligned.any(-1)
    else:
        require_known("concept", concept, found.concepts)
        c = found.concepts.index(concept)
        values, label = -np.log10(found.tested.p[..., c]), "-log10 p, weights"
        called, aligned = found.called[..., c], found.aligned[..., c]
    if ax is None:
        _, ax = require("matplotlib.pyplot", "plot", "plots").subplots(figsize=(7.0, 2.8))
    colors = require("matplotlib.colors", "plot", "plots")
    palette = colors.LinearSegmentedColormap.from_list("aligned", ["#ffffff", TAIL_COLOUR])
    image = ax.imshow(values.T, cmap=palette, vmin=0, aspect="auto")
    ax.figure.colorbar(image, ax=ax, label=label)
    for where, face in ((called & ~aligned, "none"), (aligned, TEXT_COLOUR)):
        block, head = np.nonzero(where)
        ax.scatter(block, head, s=14, facecolors=face, edgecolors=TEXT_COLOUR, linewidths=0.8)
    step = max(1, len(found.blocks) // 12)
    ax.set_xticks(range(0, len(found.blocks), step), [str(b) for b in found.blocks[::step]])
    ax.set_xlabel("block")
    ax.set_ylabel("head")
    ax.set_title(concept or f"{len(found.concepts)} concepts", fontsize=10)
    return ax


COLOURS = {
    "embedding": "#55606b",
    "heads": "#ce5410",
    "mlps": "#1a6fae",
    "norms": "#9a6a00",
    "refit": "#a34a83",
}
LABELS = {
    "embedding": "embedding",
    "heads": "attention",
    "mlps": "MLP",
    "norms": "norms (post-LN)",
    "refit": "change of direction",
}


def plot_waterfall(
    waterfall: Waterfall,
    concept: str,
    direction: str = "fixed",
    *,
    layer: int | None = None,
    effect: str = "lift",
    ax: Any = None,
) -> Any:
    """Steps from the embedding to the score, each from the level before it, with its interval.

    Args:
        waterfall: From `tail_waterfall`.
        concept: Which.
        direction: "fixed" or "refitted".
        layer: Where a concept was followed to several.
        effect: "lift", "in_concept_lift", "strongest_lift" or "contrast".
        ax: Axes to draw on; by default new ones.

    Returns:
        The axes.

    Raises:
        ValueError: The waterfall has no such concept, direction or effect.
        ImportError: matplotlib is missing; the text names the extra.
    """
    names, heights, level = waterfall.heights(concept, direction, layer=layer, effect=effect)
    k = waterfall.column(concept, direction, layer)
    kinds = [waterfall.steps[i].kind for i in waterfall.shown(k)]
    if ax is None:
        pyplot = require("matplotlib.pyplot", "plot", "plots")
        ax = pyplot.subplots(figsize=(max(5.0, 0.16 * len(names)), 3.4))[1]
    for x, kind in enumerate(kinds):
        start = level[x] - heights.value[x]
        ax.bar(x, heights.value[x], 0.9, bottom=start, color=COLOURS[kind])
        ax.plot([x, x], [start + heights.low[x], start + heights.high[x]], color="#1d1d1b", lw=0.8)
    ax.plot(range(len(level)), level, color="#1d1d1b", lw=0.8, drawstyle="steps-mid")
    ax.axhline(0, color="#a9a79f", lw=0.8, zorder=0)
    blocks = [waterfall.steps[i].block for i in waterfall.shown(k)]
    ticks = [x for x, block in enumerate(blocks) if block is not None and block not in blocks[:x]]
    ax.set_xticks(ticks, [str(blocks[x]) for x in ticks], fontsize=7)
    ax.set_xlabel("block")
    ax.set_ylabel(f"{effect.replace('_', ' ')} ({waterfall.settings['unit']})")
    ax.set_title(f"{concept}, layer {waterfall.columns[k].layer}, {direction} direction", fontsize=10)
    _legend(ax, [kind for kind in COLOURS if kind in kinds])
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


def _legend(ax: Any, kinds: list[str]) -> None:
    patches = require("matplotlib.patches", "plot", "plots")
    handles = [patches.Patch(color=COLOURS[kind], label=LABELS[kind]) for kind in kinds]
    ax.legend(handles=handles, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
