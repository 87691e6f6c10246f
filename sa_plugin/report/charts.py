"""The report's charts: blocks of the record as inline SVG.

Numbers of the record become `Drawn` again (`stored`), so that a chart of the page and a result's own
`plot()` are drawn by the same functions of `sa_plugin.show.plots`. A panel is as wide as a narrow
screen allows; several stand side by side where there is room.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from sa_plugin.show import plots
from sa_plugin.show.html import MAXTOK, OWN, Markup, Real, interval, small, tick, typeset
from sa_plugin.statistics.drawn import Drawn
from sa_plugin.statistics.interval import ENOUGH, FEW

WIDTH = 4.7
"""Of a panel, in inches."""
MOST_CONCEPTS = 6
_REMEMBERED = 64
"""Charts of each sort."""
Block = Mapping[str, Any]
_Made = TypeVar("_Made")


def _drawn_once(draw: Callable[..., _Made]) -> Callable[..., _Made]:
    """Remember what a chart looks like: equal blocks give equal bytes.

    A page that is made again, after one block has changed, draws that block's charts alone.
    """
    made: OrderedDict[bytes, _Made] = OrderedDict()

    @wraps(draw)
    def remembered(*given: Any) -> _Made:
        key = pickle.dumps(given)
        if key not in made:
            made[key] = draw(*given)
            if len(made) > _REMEMBERED:
                made.popitem(last=False)
        return made[key]

    return remembered


def stored(
    values: Sequence[Any], bounds: Any = None, documents: Sequence[int] = (), **axes: Sequence[Any]
) -> Drawn:
    """Numbers of the record with their intervals; None becomes NaN.

    Args:
        values: Of the shape of the axes.
        bounds: The same with `[low, high]` or None at each place; by default no intervals.
        documents: How many carry each label of the first axis, where that is known.
        **axes: Labels of each axis, in order.
    """
    shape = tuple(len(labels) for labels in axes.values())
    found = np.array(values, dtype=np.float64).reshape(shape)
    ends = np.full((*shape, 2), np.nan)
    for at in np.ndindex(shape if bounds is not None else ()):
        pair = bounds
        for k in at:
            pair = None if pair is None else pair[k]
        ends[at] = (np.nan, np.nan) if pair is None else [np.nan if end is None else end for end in pair]
    carried = np.zeros(0)
    if documents:
        carried = (np.arange(max(documents)) < np.array(documents)[:, None]).astype(np.float64)
    return Drawn(found[..., None], dict(axes), "mean", carried, kept=(ends[..., 0], ends[..., 1]))


def floats(values: Sequence[Any]) -> np.ndarray:
    """Numbers of the record, NaN where they are not defined."""
    return np.array(values, dtype=np.float64)


def _dotted(drawn: Drawn) -> str:
    return f" (dotted: {FEW})" if plots.dashes_of(drawn) == ":" else ""


@_drawn_once
def method_charts(rows: Sequence[Block], floor: Real | None, n_documents: int, prefix: str) -> list[Markup]:
    """Weighted F1 by method, and the paired differences to SuperActivators."""
    names = [row["method"] for row in rows]
    f1 = stored(
        [row["weighted_f1"] for row in rows],
        [row["interval"] for row in rows],
        [n_documents] * len(rows),
        method=names,
    )
    others = [row for row in rows if row["difference"] is not None]
    figure, ax = plots.new_figure(WIDTH, 0.7 + 0.24 * len(rows))
    plots.method_whiskers(ax, f1, float("nan") if floor is None else floor)
    plots.words(ax, x=f"weighted F1, test{_dotted(f1)}")
    words = "; ".join(
        f"{row['method']} {typeset(row['weighted_f1'])} {interval(row['interval'])}" for row in rows
    )
    drawn = [plots.svg(figure, "Weighted F1 by method", words, f"{prefix}f1")]
    if others:
        by = stored(
            [row["difference"] for row in others],
            [row["difference_interval"] for row in others],
            [n_documents] * len(others),
            method=[row["method"] for row in others],
        )
        figure, ax = plots.new_figure(WIDTH, 0.7 + 0.24 * len(rows))
        plots.gap_whiskers(ax, by)
        plots.words(ax, x=f"method minus SuperActivators, paired{_dotted(by)}")
        words = "; ".join(f"{row['method']} {typeset(row['difference'], signed=True)}" for row in others)
        drawn.append(plots.svg(figure, "Differences to SuperActivators", words, f"{prefix}gap"))
    return drawn


@_drawn_once
def concept_chart(rows: Sequence[Block], prefix: str) -> Markup:
    """Test F1 by concept: SuperActivators with intervals, MaxTok and the best other method."""
    names = [row["concept"] for row in rows]
    figure, ax = plots.new_figure(WIDTH, 1.0 + 0.3 * len(rows))
    documents = [row.get("documents") or ENOUGH for row in rows]
    own = stored([row["own"] for row in rows], [row["interval"] for row in rows], documents, concept=names)
    plots.whiskers(ax, own, colours=plots.TAIL_COLOUR, offset=-0.2, label=OWN)
    for key, label, offset, look in (
        ("maxtok", MAXTOK, 0.0, {"marker": "D", "color": plots.IN_COLOUR, "fillstyle": "none"}),
        ("other", "best other (picked on test)", 0.2, {"marker": "s", "color": plots.OUT_COLOUR}),
    ):
        ax.plot(
            floats([row[key] for row in rows]),
            np.arange(len(rows)) + offset,
            ls="",
            ms=4,
            label=label,
            **look,
        )
    plots.words(ax, x=f"F1, test{_dotted(own)}")
    _key_below(ax, 3)
    words = "; ".join(f"{row['concept']} {typeset(row['own'])}" for row in rows)
    return plots.svg(figure, "Test F1 by concept", words, f"{prefix}concepts")


@_drawn_once
def rate_charts(rows: Sequence[Block], prefix: str) -> list[Markup]:
    """False fires and misses by concept, raw scores beside SuperActivators."""
    drawn = []
    for key, title in (
        ("false_fire", "False fires of negative samples"),
        ("miss", "Misses of positive samples"),
    ):
        figure, ax = plots.new_figure(WIDTH, 1.0 + 0.26 * len(rows))
        for side, label, colour, offset in (
            ("raw", "raw scores", plots.IN_COLOUR, -0.16),
            ("tail", OWN, plots.TAIL_COLOUR, 0.16),
        ):
            name = f"{side}_{key}"
            values, ends = [row[name] for row in rows], [row.get(f"{name}_interval") for row in rows]
            one = stored(values, ends, concept=[row["concept"] for row in rows])
            plots.whiskers(ax, one, colours=colour, offset=offset, label=label, hollow=side == "raw")
        ax.set_xlim(-0.03, 1.03)
        plots.words(ax, title=title, x="share of samples")
        _key_below(ax, 2)
        words = "; ".join(
            f"{row['concept']}: raw {typeset(row[f'raw_{key}'])}, tail {typeset(row[f'tail_{key}'])}"
            for row in rows
        )
        drawn.append(plots.svg(figure, title, words, f"{prefix}{key.replace('_', '')}"))
    return drawn


@_drawn_once
def fraction_charts(block: Block, prefix: str) -> list[Markup]:
    """The two distributions of the SuperActivator fraction over positive samples."""
    drawn = []
    for key, title in (
        ("all", "All SuperActivators / in-concept tokens"),
        ("inside", "In-concept SuperActivators / in-concept tokens"),
    ):
        figure, ax = plots.new_figure(WIDTH, 2.5)
        fraction_lines(ax, block["grid"], block[key])
        plots.words(ax, title=title, x="fraction of a sample", y="share of samples")
        first, last = (typeset(block[key]["mean"][k]) for k in (0, -1))
        words = f"Mean: {first} at {block['grid'][0]:g}, {last} at {block['grid'][-1]:g}."
        drawn.append(plots.svg(figure, title, words, f"{prefix}{key}"))
    return drawn


def fraction_lines(ax: Any, grid: Sequence[Real], curve: Block) -> None:
    """Share of positive samples with a fraction of at most x: concepts thin, their mean bold."""
    for name, values in sorted(curve["concepts"].items()):
        plots.tip(_thin(ax, grid, values), name)
    ax.plot(grid, floats(curve["mean"]), color=plots.TAIL_COLOUR, lw=2.4)
    ax.set_ylim(0, 1.03)


@_drawn_once
def delta_chart(block: Block, peaks: Sequence[Block], prefix: str) -> Markup:
    """Weighted F1 against delta, a line a method, peaks dotted."""
    figure, ax = plots.new_figure(WIDTH, 3.5)
    curves = [next(one for one in block["curves"] if one["method"] == peak["method"]) for peak in peaks]
    no_ends = [None] * len(block["deltas"])
    f1 = stored(
        [one["weighted_f1"] for one in curves],
        [one.get("interval") or no_ends for one in curves],
        method=[one["method"] for one in curves],
        delta=block["deltas"],
    )
    floor = block["always_positive"]
    plots.delta_curves(ax, f1, float("nan") if floor is None else floor)
    best = [(peak["delta"], peak["f1"]) for peak in peaks if peak["f1"] is not None]
    ax.plot(*zip(*best, strict=True), "o", color=plots.TEXT_COLOUR, ms=3.2) if best else None
    plots.words(ax, x="δ (log scale)", y="weighted F1, test")
    _key_below(ax, 3)
    words = "; ".join(
        f"{peak['method']} is not defined"
        if peak["f1"] is None
        else f"{peak['method']} peaks at {typeset(peak['f1'])}, delta {tick(peak['delta'])}"
        for peak in peaks
    )
    return plots.svg(figure, "Weighted test F1 against delta", words, f"{prefix}delta")


def shown_concepts(names: Sequence[str], choices: Sequence[Block]) -> list[str]:
    """At most six concepts: all, or every so many in the order of their calibration F1.

    Taking them evenly over the ranking shows the worst along with the best.
    """
    f1 = {choice["concept"]: choice["cal_f1"] or 0.0 for choice in choices}
    ranked = sorted(names, key=lambda name: (-f1.get(name, 0.0), name))
    if len(ranked) <= MOST_CONCEPTS:
        return ranked
    step = (len(ranked) - 1) / (MOST_CONCEPTS - 1)
    return [ranked[round(k * step)] for k in range(MOST_CONCEPTS)]


@_drawn_once
def density_chart(block: Block, names: Sequence[str], chosen: Mapping[str, int], prefix: str) -> Markup:
    """Small multiples: rows are concepts, columns are layers, all on one axis."""
    layers = block["layers"]
    figure, ax = plots.new_figure(min(10.4, 1.4 + 1.8 * len(layers)), 0.6 + 0.62 * len(names))
    density_grid(ax, block, names, layers, chosen)
    title = "In-concept and out-of-concept score densities by layer"
    words = f"Rows: {', '.join(names)}. Columns: layers {', '.join(map(str, layers))}."
    return plots.svg(figure, title, words, f"{prefix}densities")


def density_grid(
    ax: Any, block: Block, names: Sequence[str], layers: Sequence[int], chosen: Mapping[str, int]
) -> None:
    """A grid of densities in one axis: a row a concept, a column a layer, the tail filled.

    Args:
        ax: Where.
        block: `trace["distributions"]`.
        names: Concepts, the first on top.
        layers: Block indices, from the left.
        chosen: Layer by concept; its panel is underlined.
    """
    edges = floats(block["edges"])
    low, high = _support(block, names)
    kept = (edges[:-1] >= low) & (edges[1:] <= high)
    wide = 0.92 / (high - low)
    for row, name in enumerate(names):
        one = block["concepts"][name]
        inside, outside = floats(one["in_concept"]), floats(one["out_of_concept"])
        # Panels of a concept share one height, so that layers can be compared.
        tall = 0.86 / max(np.nan_to_num([inside, outside]).max(initial=0.0), 1e-12)
        for column, layer in enumerate(layers):
            at = block["layers"].index(layer)

            def x(score: Any, column: int = column) -> Any:
                return column + 0.04 + (np.asarray(score) - low) * wide

            base = len(names) - 1 - row
            cuts = np.append(edges[:-1][kept], edges[1:][kept][-1:])
            ins, outs = (np.nan_to_num(values[at][kept]) * tall + base for values in (inside, outside))
            ax.stairs(outs, x(cuts), baseline=base, fill=True, color=plots.OUT_COLOUR, alpha=0.55, lw=0)
            threshold = one["threshold"][at]
            if threshold is not None and low <= threshold <= high:
                beyond = cuts[1:] > threshold
                tail = np.append(max(threshold, cuts[:-1][beyond][0]), cuts[1:][beyond])
                ax.stairs(ins[beyond], x(tail), baseline=base, fill=True, color=plots.TAIL_COLOUR, lw=0)
                (bar,) = ax.plot([x(threshold)] * 2, [base, base + 0.86], color=plots.TAIL_COLOUR, lw=0.9)
                plots.tip(bar, f"{name}, layer {layer}: threshold {typeset(threshold, 2)} sd")
            ax.stairs(ins, x(cuts), baseline=None, color=plots.IN_COLOUR, lw=1.0)
            heavy = 2.4 if chosen.get(name) == layer else 0.6
            ax.plot([column + 0.04, column + 0.96], [base, base], color=plots.TEXT_COLOUR, lw=heavy)
    _grid_axes(ax, names, layers, (low, high), wide)


def _grid_axes(
    ax: Any, names: Sequence[str], layers: Sequence[int], ends: tuple[float, float], wide: float
) -> None:
    low, high = ends
    step = 2 if len(layers) < 6 else 4
    scores = [score for score in range(int(np.ceil(low)), int(np.floor(high)) + 1) if score % step == 0]
    places = [k + 0.04 + (score - low) * wide for k in range(len(layers)) for score in scores]
    ax.set_xticks(places, [tick(score) for score in scores] * len(layers))
    ax.tick_params(labelsize=6.5, length=2)
    plots.rows(ax, names[::-1])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.06, len(names))
    ax.set_xlim(0, len(layers))
    ax.spines[["left", "bottom"]].set_visible(False)
    for column, layer in enumerate(layers):
        ax.text(column + 0.5, len(names), f"layer {layer}", ha="center", va="bottom", fontsize=8)
    plots.words(ax, x="score, sd of out-of-concept")


def _support(block: Block, names: Sequence[str]) -> tuple[float, float]:
    """From the first to the last edge that has more than a trace of mass."""
    edges = block["edges"]
    shown = [
        np.nan_to_num(floats(block["concepts"][name][key]))
        for name in names
        for key in ("in_concept", "out_of_concept")
    ]
    used = np.flatnonzero(np.max([rows.max(0, initial=0.0) for rows in shown], axis=0) > 0.002)
    return (edges[used[0]], edges[used[-1] + 1]) if len(used) else (edges[0], edges[-1])


PANELS = (
    ("auroc", "AUROC of tokens, in against out", None),
    ("in_mass_at_fpr", "In-concept mass above q, the {fpr} tail of out{where}", None),
    ("coverage", "Coverage of positive and negative samples", "negative_coverage"),
    ("tail_gap", "Tail gap, sd of out", None),
    ("overlap", "Overlap of in and out", None),
)


ALONG: Mapping[str, Mapping[str, Any]] = {
    "along_chosen": {"colour": plots.IN_COLOUR, "dashes": (0, (5, 2))},
    "along_prototype": {"colour": plots.OUT_COLOUR, "dashes": (0, (1, 1))},
}
"""Colour and dashes of means along other vectors than each layer's own."""


@_drawn_once
def layer_charts(block: Block, prefix: str) -> list[Markup]:
    """Separation by layer: the mean over concepts with its interval, concepts thin behind it."""
    share = "top" if block.get("fpr") is None else f"{tick(100 * block['fpr'])} %"
    where = f" on {block['fixed_on']}" if block.get("fixed_on") else ""
    drawn = []
    for key, title, beside in PANELS:
        if any(key not in one for one in block["concepts"].values()):
            continue
        title = title.format(fpr=share, where=where)
        figure, ax = plots.new_figure(WIDTH, 2.4)
        keys = [key, beside] if beside else [key]
        for name, colour, dashes in zip(
            keys, (plots.TAIL_COLOUR, plots.TEXT_COLOUR), ("-", "--"), strict=False
        ):
            for concept, one in sorted(block["concepts"].items()):
                plots.tip(_thin(ax, block["layers"], one[name], colour, dashes), concept)
            if mean := block.get("mean"):
                bold = stored(mean[name], mean.get(f"{name}_interval"), layer=block["layers"])
                plots.line(ax, bold, colour=colour, dashes=dashes, width=2.2)
        for which, along in block.get("along", {}).items():
            if key in along["mean"]:
                plots.line(ax, stored(along["mean"][key], layer=block["layers"]), **ALONG[which])
        if key == "tail_gap":
            plots.zero(ax, upright=False)
        plots.words(ax, title=title, x="layer")
        drawn.append(plots.svg(figure, title, _means(block, keys), f"{prefix}{key.replace('_', '')}"))
    return drawn


def _means(block: Block, keys: Sequence[str]) -> str:
    mean = block.get("mean")
    if not mean:
        return "One line a concept."
    return ". ".join(
        f"{key}: "
        + ", ".join(f"layer {n} {typeset(v)}" for n, v in zip(block["layers"], mean[key], strict=True))
        for key in keys
    )


@_drawn_once
def head_map_chart(grid: Float[np.ndarray, "block head"], limit: float, title: str, prefix: str) -> Markup:
    """Columns are blocks, rows are heads; the shade is the share of `limit`."""
    blocks, heads = grid.shape
    figure, ax = plots.new_figure(0.75 + max(0.155 * blocks, 1.1), 0.55 + 0.155 * heads)
    tips = [[f"L{n}H{h}: {small(grid[n, h])}" for n in range(blocks)] for h in range(heads)]
    plots.heat(ax, grid.T, _every(heads, 8), _every(blocks, 16), limit=limit, tips=tips)
    ax.tick_params(length=0)
    plots.words(ax, x="layer", y="head")
    order = np.argsort(-np.abs(np.nan_to_num(grid)), axis=None, kind="stable")[:3]
    strongest = [(at // heads, at % heads) for at in order.tolist()] if heads else []
    words = ", ".join(f"layer {n} head {h}: {small(grid[n, h])}" for n, h in strongest)
    return plots.svg(figure, f"Heads: {title}", f"Strongest: {words}.", prefix)


def _every(n: int, most: int) -> list[str]:
    """Labels of n rows, thinned where there are more than so many."""
    step = 1 if n <= most else 2 if n <= 2 * most else 5
    return [str(k) if k % step == 0 else "" for k in range(n)]


@_drawn_once
def share_chart(rows: Sequence[Block], parts: Mapping[str, str], title: str, prefix: str) -> Markup:
    """Share of each kind of component by concept, with intervals."""
    figure, ax = plots.new_figure(WIDTH, 1.0 + 0.36 * len(rows))
    looks = plots.styles(list(parts), dict(zip(parts, _PART_COLOURS, strict=False)))
    for k, (part, label) in enumerate(parts.items()):
        values, ends = (
            [row.get(f"{part}_share") for row in rows],
            [row.get(f"{part}_share_interval") for row in rows],
        )
        one = stored(values, ends, concept=[row["concept"] for row in rows])
        offset = 0.6 * ((k + 0.5) / len(parts) - 0.5)
        plots.whiskers(ax, one, colours=looks[part][0], offset=offset, label=label)
    plots.zero(ax)
    plots.words(ax, x="share of the whole (signed)")
    _key_below(ax, len(parts))
    words = "; ".join(f"{row['concept']}: heads {typeset(row.get('head_share'))}" for row in rows)
    return plots.svg(figure, title, words, prefix)


_PART_COLOURS = ((plots.TAIL_COLOUR, "-"), (plots.IN_COLOUR, "-"))


@_drawn_once
def objective_chart(rows: Sequence[Block], objectives: Sequence[str], metric: str, prefix: str) -> Markup:
    """One metric: each objective minus the first by explainer; a single one coloured by what is said."""
    said = {"better": plots.TAIL_COLOUR, "worse": plots.IN_COLOUR}
    single, n = len(objectives) == 1, len(objectives)
    figure, ax = plots.new_figure(
        WIDTH, 0.9 + (0.26 if single else 0.1 + 0.14 * n) * len(rows) + 0.2 * (n > 1)
    )
    style = plots.styles(objectives, dict(zip(objectives, _PART_COLOURS, strict=False)))
    for k, objective in enumerate(objectives):
        name = f"{objective}_difference"
        by = stored(
            [row[name] for row in rows],
            [[row[f"{name}_low"], row[f"{name}_high"]] for row in rows],
            method=[row["method"] for row in rows],
        )
        verdicts = [said.get(row[f"{objective}_is"], plots.OUT_COLOUR) for row in rows]
        plots.whiskers(
            ax,
            by,
            colours=verdicts if single else style[objective][0],
            offset=0.24 * (k - (n - 1) / 2),
            label="" if single else objective,
        )
    plots.zero(ax)
    plots.words(ax, title=metric, x=f"difference ({rows[0]['better']} is better)")
    if not single:
        _key_below(ax, n)
    words = "; ".join(
        f"{row['method']}, {one} {typeset(row[f'{one}_difference'], signed=True)}"
        for row in rows
        for one in objectives
    )
    return plots.svg(figure, f"{metric}: {', '.join(objectives)} minus the first objective", words, prefix)


def _thin(
    ax: Any, xs: Sequence[Any], ys: Sequence[Any], colour: str = plots.TAIL_COLOUR, dashes: str = "-"
) -> Any:
    return ax.plot(xs, floats(ys), color=colour, ls=dashes, lw=0.7, alpha=0.35)[0]


def _key_below(ax: Any, columns: int) -> None:
    """What the colours mean, under the picture."""
    found = ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.45, -0.6 / ax.figure.get_size_inches()[1]),
        ncols=columns,
        frameon=False,
        fontsize=7.5,
        columnspacing=1.2,
        handletextpad=0.4,
    )
    for one in found.get_texts():
        one.set_parse_math(False)
