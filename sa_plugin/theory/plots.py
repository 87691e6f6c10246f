"""Pictures of a theory check: a quantity by layer with its prediction and controls.

matplotlib is imported when a plot is asked for. A band is the interval over documents of what is
measured; predictions and controls have none drawn (`TheoryReport.rows` has the differences').
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sa_plugin._check import require
from sa_plugin.theory.verdicts import TheoryReport

MEASURED, PREDICTED, CONTROL = "#ce5410", "#1a6fae", "#8a887f"
STYLES = {"permuted": "--", "random": ":"}
PANELS = ("gap_deviation_ratio", "attention_by_sign", "spread", "tail_gain")


def plot_quantity(
    report: TheoryReport, name: str, concept: str, direction: str = "fixed", ax: Any = None
) -> Any:
    """One quantity by layer: measured with its interval, predicted, and the controls.

    Args:
        report: From `check_theory`.
        name: See `sa_plugin.theory.measures`.
        concept: Which.
        direction: "fixed" or "refitted".
        ax: Axes to draw on; by default new ones.

    Returns:
        The axes.

    Raises:
        ValueError: Unknown or absent quantity, concept or direction.
        ImportError: matplotlib is missing; the text names the extra.
    """
    q = report.quantity(name, concept, direction)
    ax = _axes(ax)
    layers = np.asarray(report.layers)
    ax.fill_between(layers, q.low, q.high, color=MEASURED, alpha=0.2, lw=0)
    ax.plot(layers, q.value, color=MEASURED, lw=2, label="measured")
    if q.predicted is not None:
        ax.plot(layers, q.predicted, color=PREDICTED, lw=1.5, label="predicted (ours)")
    for control, values in q.controls.items():
        ax.plot(layers, values, color=CONTROL, ls=STYLES[control], lw=1.2, label=control)
    if np.isfinite(q.null):
        ax.axhline(q.null, color=CONTROL, lw=0.6)
    ax.set_xlabel("block")
    ax.set_ylabel(name)
    ax.set_title(f"{q.theorem}, {concept}, {direction} vectors", fontsize=9, loc="left")
    ax.legend(frameon=False, fontsize=7)
    return ax


def plot_theory(report: TheoryReport, concept: str, direction: str = "fixed") -> Any:
    """One panel a theorem.

    Returns:
        The figure.

    Raises:
        ValueError: Unknown concept or direction.
        ImportError: matplotlib is missing; the text names the extra.
    """
    report.quantity("gap_slope", concept, direction)
    pyplot = require("matplotlib.pyplot", "plot")
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for name, ax in zip(PANELS, axes.flat, strict=True):
        plot_quantity(report, name, concept, direction, ax)
    return figure


def plot_tenths(
    report: TheoryReport, concept: str, layer: int, direction: str = "fixed", ax: Any = None
) -> Any:
    """The slope of a' on a between neighbouring tenths of a, in one block.

    Raises:
        ValueError: Unknown concept, direction or layer.
        ImportError: matplotlib is missing; the text names the extra.
    """
    report.quantity("tail_gain", concept, direction)
    if layer not in report.layers:
        raise ValueError(f"layer {layer} was not checked; checked: {list(report.layers)}.")
    at = report.layers.index(layer)
    ax = _axes(ax)
    colours = {"measured": MEASURED, "heads": CONTROL, "predicted": PREDICTED}
    for name, slopes in report.tenths[concept, direction].items():
        ax.plot(np.arange(1, 10) / 10, slopes[at], "o-", color=colours[name], ms=3, label=name)
    ax.set_xlabel("rank of a within its sample")
    ax.set_ylabel("slope of a' on a")
    ax.set_title(f"block {layer}, {concept}, {direction} vectors", fontsize=9, loc="left")
    ax.legend(frameon=False, fontsize=7)
    return ax


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    return require("matplotlib.pyplot", "plot").subplots(figsize=(5.5, 3.4))[1]
