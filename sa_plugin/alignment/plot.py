"""The map of aligned heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sa_plugin._names import require_known
from sa_plugin._optional import require
from sa_plugin.plots import TAIL_COLOUR, TEXT_COLOUR

if TYPE_CHECKING:
    from sa_plugin.alignment.result import HeadAlignment


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
