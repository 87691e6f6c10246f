"""A cell's figures, PNG and SVG: the paper's plots of this cell's numbers.

Drawn from `cell.json` alone by matplotlib's object interface: no display, no global state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from sa_plugin._check import require
from sa_plugin.show.html import ALWAYS, MAXTOK, OWN, by_weighted_f1, kind_label, known, tick
from sa_plugin.show.plots import IN_COLOUR, OTHERS, OUT_COLOUR, TAIL_COLOUR, TEXT_COLOUR
from sa_plugin.stages.published import incomplete

KIND_COLOURS = ("#0b7d5e", TAIL_COLOUR, "#a34a83", "#55606b")
SHOWN_CONCEPTS, SHOWN_LAYERS = 3, 5
FORMATS = ("png", "svg")
DPI = 110


def draw_figures(record: Mapping[str, Any], folder: Path) -> tuple[Path, ...]:
    """Draw every figure the record has numbers for.

    Args:
        record: `cell.json`.
        folder: Where to put them.

    Returns:
        Paths of the PNG files; the SVG files lie beside them.
    """
    figure = require("matplotlib.figure", "plot", "the figures of a cell").Figure
    folder.mkdir(parents=True, exist_ok=True)
    traced = [k for k, b in record["kinds"].items() if "trace" in b]
    drawings: dict[str, Callable[[Any, Mapping[str, Any]], None]] = {
        "detection": draw_detection,
        "deltas": draw_deltas,
        "peaks": draw_peaks,
        "density": draw_density,
    }
    if traced:
        drawings |= {"layers": draw_layers, "histograms": draw_histograms}
    if "rows" in record.get("attribution", {}):
        drawings["attribution"] = draw_attribution
    paths = []
    for name, draw in drawings.items():
        canvas = figure(figsize=(9.0, 4.2), layout="constrained")
        draw(canvas, record)
        for ending in FORMATS:
            # Without a date equal numbers give equal files.
            metadata = {"Date": None} if ending == "svg" else {"Software": None}
            canvas.savefig(folder / f"{name}.{ending}", dpi=DPI, metadata=metadata)
        paths.append(folder / f"{name}.png")
    return tuple(paths)


def draw_detection(figure: Any, record: Mapping[str, Any]) -> None:
    """Weighted F1 of every method with its interval, one panel a kind."""
    blocks = record["kinds"]
    first = record["meta"]["primary_kind"]
    order = [row["method"] for row in by_weighted_f1(blocks[first]["detection"]["methods"])]
    figure.set_size_inches(2.6 * len(blocks) + 1.4, 0.3 * len(order) + 1.3)
    axes = figure.subplots(1, len(blocks), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (kind, block) in zip(axes, blocks.items(), strict=True):
        rows = {row["method"]: row for row in block["detection"]["methods"]}
        for place, name in enumerate(order):
            row = rows.get(name)
            if row is None or row["weighted_f1"] is None:
                continue
            colour = {OWN: TAIL_COLOUR, MAXTOK: IN_COLOUR}.get(name, TEXT_COLOUR)
            if known(row["interval"]):
                ax.plot(row["interval"], [place, place], color=colour, lw=1.6)
            ax.plot([row["weighted_f1"]], [place], "o", color=colour, ms=5)
        floor = rows[ALWAYS]["weighted_f1"]
        ax.axvline(floor, color=OUT_COLOUR, lw=1, ls="--", zorder=0)
        ax.set_title(kind_label(kind), fontsize=10)
        ax.set_yticks(range(len(order)), order)
        _plain(ax)
    axes[0].invert_yaxis()
    figure.supxlabel("weighted F1, test (dashed: always-positive)", fontsize=10)


def draw_deltas(figure: Any, record: Mapping[str, Any]) -> None:
    """Weighted F1 of SuperActivators against delta for every kind, MaxTok dashed for the first."""
    ax = figure.subplots()
    primary = record["meta"]["primary_kind"]
    for colour, (kind, block) in zip(_colours(record), record["kinds"].items(), strict=True):
        found = block["sparsity"]
        curves = {curve["method"]: curve for curve in found["curves"]}
        own = curves[OWN]
        ax.plot(
            found["deltas"],
            _floats(own["weighted_f1"]),
            color=colour,
            lw=2,
            marker="o",
            ms=3,
            label=f"{kind_label(kind)}, layer {found['layer']}",
        )
        low, high = zip(*(pair or (None, None) for pair in own["interval"]), strict=True)
        ax.fill_between(found["deltas"], _floats(low), _floats(high), color=colour, alpha=0.12, lw=0)
        if kind == primary:
            ax.plot(
                found["deltas"],
                _floats(curves[MAXTOK]["weighted_f1"]),
                color=IN_COLOUR,
                ls=(0, (5, 2)),
                lw=1.5,
                label=f"MaxTok, {kind_label(kind)}",
            )
    floor = record["kinds"][primary]["sparsity"]["always_positive"]
    ax.axhline(floor, color=OUT_COLOUR, lw=1, ls="--", label=ALWAYS)
    ax.set_xscale("log")
    grid = [d for d in found["deltas"] if d not in (0.4, 0.6, 0.8, 0.9)]
    ax.set_xticks(grid, [tick(d) for d in grid])
    ax.minorticks_off()
    ax.set_xlabel("delta, one for all concepts")
    ax.set_ylabel("weighted F1, test")
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    _plain(ax)


def draw_peaks(figure: Any, record: Mapping[str, Any]) -> None:
    """Number of concepts whose test F1 is best at each delta, one group of bars a delta."""
    ax = figure.subplots()
    blocks = record["kinds"]
    width = 0.8 / len(blocks)
    for k, (colour, (kind, block)) in enumerate(zip(_colours(record), blocks.items(), strict=True)):
        found = block["peaks"]
        at = [x + (k - (len(blocks) - 1) / 2) * width for x in range(len(found["deltas"]))]
        ax.bar(at, found["on_test"], width, color=colour, label=kind_label(kind))
    ax.set_xticks(range(len(found["deltas"])), [tick(d) for d in found["deltas"]])
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("delta of the best test F1 (picked on test)")
    ax.set_ylabel("concepts")
    ax.legend(frameon=False, fontsize=8)
    _plain(ax)


def draw_density(figure: Any, record: Mapping[str, Any]) -> None:
    """Distribution of SuperActivators over in-concept tokens: all, and those inside."""
    axes = figure.subplots(1, 2, sharey=True)
    found = record["kinds"][record["meta"]["primary_kind"]]["fractions"]
    titles = {
        "all": "all SuperActivators / in-concept tokens",
        "inside": "SuperActivators inside / in-concept tokens",
    }
    for ax, (part, title) in zip(axes, titles.items(), strict=True):
        for curve in found[part]["concepts"].values():
            ax.plot(found["grid"], _floats(curve), color=TAIL_COLOUR, lw=0.7, alpha=0.4)
        ax.plot(found["grid"], _floats(found[part]["mean"]), color=TAIL_COLOUR, lw=2.4)
        ax.axvline(0.2, color=OUT_COLOUR, lw=1, ls="--", zorder=0)
        ax.axhline(0.5, color=OUT_COLOUR, lw=1, ls="--", zorder=0)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("ratio in a sample")
        ax.set_ylim(0, 1.02)
        _plain(ax)
    axes[0].set_ylabel("share of positive samples")


def draw_layers(figure: Any, record: Mapping[str, Any]) -> None:
    """Separation by layer for every kind: AUROC, in-concept mass, coverage and its control."""
    panels = {
        "auroc": "AUROC of tokens",
        "in_mass_at_fpr": "in-concept mass above q",
        "coverage": "positive samples above q (dashed: negative)",
    }
    figure.set_size_inches(11, 3.6)
    axes = figure.subplots(1, len(panels))
    for ax, (name, title) in zip(axes, panels.items(), strict=True):
        for colour, (kind, block) in zip(_colours(record), record["kinds"].items(), strict=True):
            found = block["trace"]
            ax.plot(
                found["layers"],
                _floats(found["mean"][name]),
                color=colour,
                marker="o",
                ms=3,
                label=kind_label(kind),
            )
            if name == "coverage":
                other = _floats(found["mean"]["negative_coverage"])
                ax.plot(found["layers"], other, color=colour, ls="--", lw=1, marker="x", ms=3)
            if kind == record["meta"]["primary_kind"]:
                edges = [pair or (None, None) for pair in found["mean"][f"{name}_interval"]]
                low, high = (_floats(side) for side in zip(*edges, strict=True))
                ax.fill_between(found["layers"], low, high, color=colour, alpha=0.15, lw=0)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("layer")
        ax.xaxis.get_major_locator().set_params(integer=True)
        _plain(ax)
    axes[0].legend(frameon=False, fontsize=8)


def draw_histograms(figure: Any, record: Mapping[str, Any]) -> None:
    """Scores in and out of a few concepts at a few layers, primary kind, the tail marked."""
    block = record["kinds"][record["meta"]["primary_kind"]]
    found = block["trace"]["distributions"]
    counts = {row["concept"]: row["n_positive"] for row in block["detection"]["per_concept"]}
    concepts = sorted(found["concepts"], key=lambda c: -counts.get(c, 0))[:SHOWN_CONCEPTS]
    layers = _spread(found["layers"], SHOWN_LAYERS)
    figure.set_size_inches(2.3 * len(layers) + 0.6, 1.8 * len(concepts) + 0.6)
    grid = figure.subplots(len(concepts), len(layers), sharex=True, squeeze=False)
    for row, concept in zip(grid, concepts, strict=True):
        one = found["concepts"][concept]
        for ax, layer in zip(row, layers, strict=True):
            at = found["layers"].index(layer)
            outside = _merged(one["out_of_concept"][at], found["edges"])
            inside = _merged(one["in_concept"][at], found["edges"])
            ax.stairs(*outside, fill=True, color=OUT_COLOUR, alpha=0.6, label="out of concept")
            ax.stairs(*inside, color=IN_COLOUR, lw=1.3, label="in concept")
            if one["threshold"][at] is not None:
                ax.axvline(one["threshold"][at], color=TAIL_COLOUR, lw=1.2, label="threshold")
            ax.set_yticks([])
            ax.locator_params(axis="x", nbins=4)
            _plain(ax)
        row[0].set_ylabel(concept, fontsize=10)
    for ax, layer in zip(grid[0], layers, strict=True):
        ax.set_title(f"layer {layer}", fontsize=10)
    grid[0][-1].legend(frameon=False, fontsize=7)
    figure.supxlabel("score, sd of out-of-concept from its mean", fontsize=10)


def draw_attribution(figure: Any, record: Mapping[str, Any]) -> None:
    """Both objectives by explainer: localisation, insertion, deletion."""
    found = record["attribution"]
    every = {row["concept"] for row in found["rows"]}
    overall = "all" if "all" in every else next(iter(every))
    panels = ("f1", "insertion/mean_alignment", "deletion/mean_alignment")
    figure.set_size_inches(11, 3.8)
    axes = figure.subplots(1, len(panels))
    missed = incomplete(found)
    looks = {"global": OTHERS[3][0], "superactivator": TAIL_COLOUR}
    for ax, metric in zip(axes, panels, strict=True):
        rows = [r for r in found["rows"] if (r["concept"], r["metric"]) == (overall, metric)]
        for k, (name, colour) in enumerate(looks.items()):
            at = [x + (k - 0.5) * 0.38 for x in range(len(rows))]
            reach = [
                [(r[name] or 0) - (r[f"{name}_low"] or 0) for r in rows],
                [(r[f"{name}_high"] or 0) - (r[name] or 0) for r in rows],
            ]
            bars = [[max(0.0, one) for one in side] for side in reach]
            ax.bar(at, [r[name] or 0 for r in rows], 0.38, yerr=bars, color=colour, label=name)
        ax.axhline(0, color=TEXT_COLOUR, lw=0.6)
        names = [
            r["method"].replace("_", "\n") + ("\n(incomplete)" if r["method"] in missed else "") for r in rows
        ]
        ax.set_xticks(range(len(rows)), names, fontsize=8)
        better = rows[0]["better"] if rows else ""
        ax.set_title(f"{metric.split('/')[0]} ({better} is better)", fontsize=10)
        _plain(ax)
    axes[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _colours(record: Mapping[str, Any]) -> list[str]:
    return [KIND_COLOURS[k % len(KIND_COLOURS)] for k in range(len(record["kinds"]))]


def _spread(layers: list[int], n: int) -> list[int]:
    if len(layers) <= n:
        return layers
    return [layers[round(k * (len(layers) - 1) / (n - 1))] for k in range(n)]


def _merged(heights: Any, edges: list[float]) -> tuple[list[float], list[float]]:
    """Densities and edges of every three bins as one: concepts have few tokens."""
    width, values = 3, _floats(heights)
    sizes = [b - a for a, b in pairwise(edges)]
    starts = range(0, len(values), width)
    mass = [
        sum(v * w for v, w in zip(values[k : k + width], sizes[k : k + width], strict=True)) for k in starts
    ]
    cut = [*(edges[k] for k in starts), edges[-1]]
    return [m / (b - a) for m, (a, b) in zip(mass, pairwise(cut), strict=True)], cut


def _floats(values: Any) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _plain(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
