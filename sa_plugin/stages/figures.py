"""A cell's figures, PNG and SVG: the paper's plots of this cell's numbers.

Drawn from `cell.json` alone, by the functions that draw the report and the results themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sa_plugin._files import written
from sa_plugin.report.charts import density_grid, fraction_lines, stored
from sa_plugin.report.words import overall_rows
from sa_plugin.show import plots
from sa_plugin.show.html import ALWAYS, MAXTOK, OWN, by_weighted_f1, kind_label, tick
from sa_plugin.show.plots import IN_COLOUR, OTHERS, OUT_COLOUR, TAIL_COLOUR
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
    drawings: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "detection": _draw_detection,
        "deltas": _draw_deltas,
        "peaks": _draw_peaks,
        "density": _draw_density,
    }
    if any("trace" in block for block in record["kinds"].values()):
        drawings |= {"layers": _draw_layers, "histograms": _draw_histograms}
    if "rows" in record.get("attribution", {}):
        drawings["attribution"] = _draw_attribution
    paths = []
    for name, draw in drawings.items():
        figure = draw(record)
        for ending in FORMATS:
            # Without a date equal numbers give equal files.
            metadata = {"Date": None} if ending == "svg" else {"Software": None}
            with written(folder / f"{name}.{ending}") as partial:
                figure.savefig(partial, dpi=DPI, metadata=metadata)
        paths.append(folder / f"{name}.png")
    return tuple(paths)


def _draw_detection(record: Mapping[str, Any]) -> Any:
    """Weighted F1 of every method with its interval, one panel a kind."""
    blocks = record["kinds"]
    first = record["meta"]["primary_kind"]
    order = [row["method"] for row in by_weighted_f1(blocks[first]["detection"]["methods"])]
    figure, axes = plots.new_figure(2.6 * len(blocks) + 1.4, 0.3 * len(order) + 1.3, columns=len(blocks))
    for ax, (kind, block) in zip(np.ravel(axes), blocks.items(), strict=True):
        rows = {row["method"]: row for row in block["detection"]["methods"]}
        shown = [rows.get(name, {"weighted_f1": None, "interval": None}) for name in order]
        f1 = stored([row["weighted_f1"] for row in shown], [row["interval"] for row in shown], method=order)
        plots.method_whiskers(ax, f1, float(f1.sel(method=ALWAYS).estimate))
        plots.words(ax, title=kind_label(kind))
        if ax is not np.ravel(axes)[0]:
            ax.set_yticklabels([])
    figure.supxlabel("weighted F1, test (dashed: always-positive)", fontsize=10)
    return figure


def _draw_deltas(record: Mapping[str, Any]) -> Any:
    """Weighted F1 of SuperActivators against delta for every kind, MaxTok dashed for the first."""
    figure, ax = plots.new_figure(9.0, 4.2)
    primary = record["meta"]["primary_kind"]
    for colour, (kind, block) in zip(_colours(record), record["kinds"].items(), strict=True):
        found = block["sparsity"]
        curves = {curve["method"]: curve for curve in found["curves"]}
        own, label = curves[OWN], kind_label(kind)
        f1 = stored(own["weighted_f1"], own["interval"], delta=found["deltas"])
        plots.line(ax, f1, label=f"{label}, layer {found['layer']}", colour=colour, width=2.0)
        if kind == primary:
            maxtok = stored(curves[MAXTOK]["weighted_f1"], delta=found["deltas"])
            plots.line(ax, maxtok, label=f"MaxTok, {label}", colour=IN_COLOUR, dashes=(0, (5, 2)), width=1.5)
    floor = record["kinds"][primary]["sparsity"]["always_positive"]
    ax.axhline(floor, color=OUT_COLOUR, lw=1, ls="--", label=ALWAYS)
    ax.set_xscale("log")
    grid = [d for d in found["deltas"] if d not in (0.4, 0.6, 0.8, 0.9)]
    ax.set_xticks(grid, [tick(d) for d in grid])
    ax.minorticks_off()
    plots.words(ax, x="delta, one for all concepts", y="weighted F1, test")
    plots.legend(ax)
    return figure


def _draw_peaks(record: Mapping[str, Any]) -> Any:
    """Number of concepts whose test F1 is best at each delta, one group of bars a delta."""
    figure, ax = plots.new_figure(9.0, 4.2)
    blocks = record["kinds"]
    width = 0.8 / len(blocks)
    for k, (colour, (kind, block)) in enumerate(zip(_colours(record), blocks.items(), strict=True)):
        found = block["peaks"]
        at = np.arange(len(found["deltas"])) + (k - (len(blocks) - 1) / 2) * width
        ax.bar(at, found["on_test"], width, color=colour, label=kind_label(kind))
    ax.set_xticks(range(len(found["deltas"])), [tick(d) for d in found["deltas"]])
    ax.yaxis.get_major_locator().set_params(integer=True)
    plots.words(ax, x="delta of the best test F1 (picked on test)", y="concepts")
    plots.legend(ax, outside=False)
    return figure


def _draw_density(record: Mapping[str, Any]) -> Any:
    """Distribution of SuperActivators over in-concept tokens: all, and those inside."""
    figure, axes = plots.new_figure(9.0, 4.2, columns=2)
    found = record["kinds"][record["meta"]["primary_kind"]]["fractions"]
    titles = {
        "all": "all SuperActivators / in-concept tokens",
        "inside": "SuperActivators inside / in-concept tokens",
    }
    for ax, (part, title) in zip(axes, titles.items(), strict=True):
        fraction_lines(ax, found["grid"], found[part])
        plots.zero(ax, at=0.2)
        plots.zero(ax, at=0.5, upright=False)
        plots.words(ax, title=title, x="ratio in a sample", y="share of positive samples")
    return figure


def _draw_layers(record: Mapping[str, Any]) -> Any:
    """Separation by layer for every kind: AUROC, in-concept mass, coverage and its control."""
    panels = {
        "auroc": "AUROC of tokens",
        "in_mass_at_fpr": "in-concept mass above q",
        "coverage": "positive samples above q (dashed: negative)",
    }
    figure, axes = plots.new_figure(11.0, 3.6, columns=len(panels))
    for ax, (name, title) in zip(axes, panels.items(), strict=True):
        for colour, (kind, block) in zip(_colours(record), record["kinds"].items(), strict=True):
            mean, layers = block["trace"]["mean"], block["trace"]["layers"]
            drawn = stored(mean[name], mean[f"{name}_interval"], layer=layers)
            main = kind == record["meta"]["primary_kind"]
            plots.line(ax, drawn, label=kind_label(kind), colour=colour, band=main)
            if name == "coverage":
                negative = stored(mean["negative_coverage"], layer=layers)
                plots.line(ax, negative, colour=colour, dashes="--", width=1.0)
        plots.words(ax, title=title, x="layer")
    plots.legend(axes[0], outside=False)
    return figure


def _draw_histograms(record: Mapping[str, Any]) -> Any:
    """Scores in and out of a few concepts at a few layers, primary kind, the tail marked."""
    block = record["kinds"][record["meta"]["primary_kind"]]
    found = block["trace"]["distributions"]
    counts = {row["concept"]: row["n_positive"] for row in block["detection"]["per_concept"]}
    concepts = sorted(found["concepts"], key=lambda c: -counts.get(c, 0))[:SHOWN_CONCEPTS]
    layers = _spread(found["layers"], SHOWN_LAYERS)
    figure, ax = plots.new_figure(2.3 * len(layers) + 0.6, 1.8 * len(concepts) + 0.6)
    density_grid(ax, found, concepts, layers, {row["concept"]: row["layer"] for row in block["choices"]})
    plots.note(
        figure,
        "Grey: out of concept. Blue: in concept, orange from the threshold on. Heavy: the chosen layer.",
    )
    return figure


def _draw_attribution(record: Mapping[str, Any]) -> Any:
    """Both objectives by explainer: localisation, insertion, deletion."""
    found = record["attribution"]
    panels = ("f1", "insertion/mean_alignment", "deletion/mean_alignment")
    missed = incomplete(found)
    figure, axes = plots.new_figure(11.0, 3.8, columns=len(panels))
    for ax, metric in zip(axes, panels, strict=True):
        rows = overall_rows(found, metric)
        names = [r["method"] + (" (incomplete)" if r["method"] in missed else "") for r in rows]
        for name, colour, offset in (("global", OTHERS[3][0], -0.14), ("superactivator", TAIL_COLOUR, 0.14)):
            ends = [[r[f"{name}_low"], r[f"{name}_high"]] for r in rows]
            drawn = stored([r[name] for r in rows], ends, method=names)
            plots.whiskers(ax, drawn, colours=colour, offset=offset, label=name, hollow=name == "global")
        plots.zero(ax)
        better = rows[0]["better"] if rows else ""
        plots.words(ax, title=f"{metric.split('/')[0]} ({better} is better)")
    plots.legend(axes[-1])
    return figure


def _colours(record: Mapping[str, Any]) -> list[str]:
    return [KIND_COLOURS[k % len(KIND_COLOURS)] for k in range(len(record["kinds"]))]


def _spread(layers: list[int], n: int) -> list[int]:
    if len(layers) <= n:
        return layers
    return [layers[round(k * (len(layers) - 1) / (n - 1))] for k in range(n)]
