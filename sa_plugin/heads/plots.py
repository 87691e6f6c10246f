"""Pictures of how the tail is written: the waterfall.

Every function draws on `ax` and returns it; colours are those of `sa_plugin.plots`. matplotlib is
imported when a picture is asked for.
"""

from __future__ import annotations

from typing import Any

from sa_plugin._check import require
from sa_plugin.heads.waterfall import Waterfall

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
