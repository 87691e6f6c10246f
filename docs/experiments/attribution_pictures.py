"""The figures of docs/attribution.md, from the files that attribution_runs.py wrote.

python docs/experiments/attribution_pictures.py runs docs/pictures

A figure a model: insertion and deletion by the primary yardstick, and the maps of one test sample
under both objectives. Shades are shares of each map's largest |importance|: orange for evidence,
blue against; of RISE, which has no zero point, its mean is taken off; labelled tokens and patches
are outlined.
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from attribution_runs import data_of
from attribution_tables import MODELS, curves, load
from matplotlib.patches import Rectangle

SHOWN = ("lime", "kernel_shap", "rise", "integrated_gradients", "grad_cam", "direct_alignment")
ARMS = {"global": "#555555", "superactivator": "#d55e00"}
CONTROLS = {"random": ":", "labelled first": "--"}
HUES = {True: (0.90, 0.43, 0.0), False: (0.12, 0.43, 0.86)}
WIDTH = 77


def draw_curves(axes: Any, files: list[dict[str, Any]], methods: list[str]) -> None:
    """Insertion above, deletion below, a column a method."""
    found, grid = curves(files), files[0]["grid"]
    for column, method in enumerate(methods):
        for row, kind in enumerate(("insertion", "deletion")):
            ax = axes[row][column]
            for name, style in CONTROLS.items():
                line = found["control", name, kind, "mean_alignment"]
                ax.plot(grid, line, style, color="#009e73", lw=1, label=name)
            for name, colour in ARMS.items():
                line = found[method, name, kind, "mean_alignment"]
                ax.plot(grid, line, color=colour, lw=1.6, label=name)
            ax.tick_params(labelsize=7)
            if row == 0:
                ax.set_title(method.replace("_", " "), fontsize=9)
            if column == 0:
                ax.set_ylabel(f"{kind}\nmean alignment", fontsize=8)
    handles, names = axes[0][0].get_legend_handles_labels()
    axes[0][0].figure.legend(
        handles, names, fontsize=8, ncol=4, frameon=False, loc="upper right", bbox_to_anchor=(0.905, 0.95)
    )


def shares_of(one: dict[str, Any]) -> np.ndarray:
    """Importance over its own largest; of RISE, which has no zero point, less its mean."""
    values = np.array(one["importance"])
    values = values - values.mean() if one["method"] == "rise" else values
    return values / (np.abs(values).max() or 1)


def draw_text(ax: Any, one: dict[str, Any], y: float, caption: str) -> float:
    """A text with shaded tokens at height y; the height below it."""
    ax.text(0, y, caption, fontsize=7, weight="bold", family="DejaVu Sans Mono", va="top")
    y, x = y - 1.1, 0
    shares = shares_of(one)
    for (start, stop), share, label in zip(one["offsets"], shares, one["labels"], strict=True):
        word = one["text"][start:stop].strip()
        gap = x > 0 and (start == 0 or one["text"][start : start + 1] == " " or one["text"][start - 1] == " ")
        x += int(gap)
        if x + len(word) > WIDTH:
            x, y = 0, y - 1.2
        ax.add_patch(
            Rectangle(
                (x, y - 0.85),
                len(word),
                0.95,
                lw=0.8,
                clip_on=False,
                facecolor=(*HUES[bool(share >= 0)], 0.75 * abs(share)),
                edgecolor="#222222" if label else "none",
            )
        )
        ax.text(x, y - 0.05, word, fontsize=7, family="DejaVu Sans Mono", va="top")
        x += len(word)
    return y - 1.6


def text_maps(figure: Any, place: Any, maps: dict[tuple[str, str], Any], methods: list[str]) -> None:
    """The two objectives side by side, a method below the other."""
    for side, name in enumerate(ARMS):
        ax = figure.add_subplot(place[side])
        y = 0.0
        for method in methods:
            if (method, name) in maps:
                caption = f"{method.replace('_', ' ')}: {name}"
                y = draw_text(ax, maps[method, name], y, caption)
        ax.set_xlim(0, WIDTH + 1)
        ax.set_ylim(y, 0.5)
        ax.axis("off")


def image_maps(
    figure: Any, place: Any, maps: dict[tuple[str, str], Any], methods: list[str], pixels: Any
) -> None:
    """A column a method, a row an objective."""
    grid = place.subgridspec(2, len(methods), wspace=0.04, hspace=0.04)
    for row, name in enumerate(ARMS):
        for column, method in enumerate(methods):
            ax = figure.add_subplot(grid[row, column])
            # Grey, or shades would mix with the picture's own colours.
            ax.imshow(pixels.mean(-1), cmap="gray", vmin=-60, vmax=255)
            ax.set_xticks([])
            ax.set_yticks([])
            if column == 0:
                ax.set_ylabel(name, fontsize=8)
            if row == 0:
                ax.set_title(method.replace("_", " "), fontsize=8)
            if (method, name) not in maps:
                ax.text(0.5, 0.5, "refused", transform=ax.transAxes, ha="center", color="white")
                continue
            one = maps[method, name]
            for (top, left, bottom, right), share, label in zip(
                one["offsets"], shares_of(one), one["labels"], strict=True
            ):
                ax.add_patch(
                    Rectangle(
                        (left, top),
                        right - left,
                        bottom - top,
                        lw=0.7,
                        facecolor=(*HUES[bool(share >= 0)], 0.7 * abs(share)),
                        edgecolor=(0, 0, 0, 0.8) if label else "none",
                    )
                )


def picture(name: str, files: list[dict[str, Any]], out: Path) -> None:
    """The figure of one run."""
    model = files[0]["about"]["model"]
    concept = files[0]["examples"][0]["concept"]
    mine = [one for file in files for one in file["examples"] if one["concept"] == concept]
    maps = {(one["method"], one["objective"]): one for one in mine}
    lines = {key[0] for file in files for *key, _ in file["curves"]}
    methods = [m for m in SHOWN if m in lines]
    figure = plt.figure(figsize=(13, 9.5))
    outer = figure.add_gridspec(2, 1, height_ratios=[1, 1.25], hspace=0.16)
    top = outer[0].subgridspec(2, len(methods), wspace=0.35, hspace=0.25)
    axes = [[figure.add_subplot(top[r, c]) for c in range(len(methods))] for r in range(2)]
    draw_curves(axes, files, methods)
    if model == "vit":
        images = {s.id: s.image.pixels for s in data_of(model).samples if s.image is not None}
        image_maps(figure, outer[1], maps, methods, images[mine[0]["sample"]])
    else:
        text_maps(figure, outer[1].subgridspec(1, 2, wspace=0.05), maps, methods)
    sinks = ", sinks never masked" * name.endswith("_kept")
    what = f"{MODELS[model]}, {files[0]['about']['kind']}s{sinks}"
    title = f"{what}; maps of one test sample, {concept!r}"
    figure.suptitle(title, fontsize=10, x=0.125, y=0.935, ha="left")
    figure.savefig(out / f"attribution_{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Draw every run of a folder."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    for name, files in load(source).items():
        if not name.endswith("_tokens"):
            picture(name, files, out)


if __name__ == "__main__":
    main()
