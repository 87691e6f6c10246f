"""Charts as inline SVG: scales, ticks, paths and axes; colours come from the page's stylesheet.

Shapes carry a class, never a colour, so that light, dark and print are one picture. A gap (None)
in the data is a gap in the line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sa_plugin.show.html import Child, Markup, Real, el
from sa_plugin.show.html import tick as tick_text

Values = Sequence[Real | None]
Bounds = Sequence[Sequence[Real | None] | None]


@dataclass(frozen=True)
class Scale:
    """From `domain` to pixels `span`; `log` takes decades."""

    domain: tuple[Real, Real]
    span: tuple[Real, Real]
    log: bool = False

    def __call__(self, value: Real) -> Real:
        """Pixel of a value."""
        low, high = self.domain
        place: Callable[[float], float] = math.log if self.log else float
        width = place(high) - place(low)
        share = (place(value) - place(low)) / width if width else 0.5
        return self.span[0] + share * (self.span[1] - self.span[0])


def nice(values: Iterable[Real | None], n: int = 5, include: Iterable[Real] = ()) -> list[Real]:
    """Round tick values that cover the data, about `n` of them.

    Example:
        >>> nice([0.13, 0.48], 4)
        [0.1, 0.2, 0.3, 0.4, 0.5]
    """
    present = [v for v in values if v is not None] + list(include)
    low, high = (min(present), max(present)) if present else (0.0, 1.0)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / max(n - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 2.5, 5, 10), key=lambda m: abs(m * power - raw))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def chart(
    width: Real, height: Real, title: str, desc: str, *children: Child, class_: str = "chart"
) -> Markup:
    """An SVG that scales with its column and says what it shows to a screen reader."""
    return el(
        "svg",
        el("title", title),
        el("desc", desc),
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
        aria_label=title,
        class_=class_,
    )


def path_data(points: Iterable[tuple[Real, Real] | None]) -> str:
    """Path commands through points; None lifts the pen."""
    parts, down = [], False
    for point in points:
        if point is not None:
            parts.append(f"{'L' if down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        down = point is not None
    return "".join(parts)


def line(xs: Values, ys: Values, x: Scale, y: Scale, class_: str, title: str = "") -> Markup:
    """A line through data."""
    pairs = zip(xs, ys, strict=True)
    points = (None if a is None or b is None else (x(a), y(b)) for a, b in pairs)
    return el("path", el("title", title) if title else None, d=path_data(points), class_=class_)


def band(xs: Sequence[Real], bounds: Bounds | None, x: Scale, y: Scale, class_: str) -> Markup:
    """The area between interval ends, in runs without gaps."""
    if bounds is None:
        return Markup("")
    runs: list[list[tuple[Real, Real, Real]]] = [[]]
    for at, pair in zip(xs, bounds, strict=True):
        if pair is None or pair[0] is None or pair[1] is None:
            runs.append([])
        else:
            runs[-1].append((x(at), y(pair[0]), y(pair[1])))
    outlines = []
    for run in runs:
        around = [(a, b) for a, b, _ in run] + [(a, c) for a, _, c in reversed(run)]
        outlines.append(path_data(around) + "Z" if len(run) > 1 else "")
    return el("path", d="".join(outlines), class_=class_)


def area(xs: Values, ys: Values, x: Scale, y: Scale, class_: str) -> Markup:
    """The area under a line, down to zero."""
    points = [(x(a), y(b)) for a, b in zip(xs, ys, strict=True) if a is not None and b is not None]
    if not points:
        return Markup("")
    closed = [(points[0][0], y(0)), *points, (points[-1][0], y(0))]
    return el("path", d=path_data(closed) + "Z", class_=class_)


def segment(x1: Real, y1: Real, x2: Real, y2: Real, class_: str) -> Markup:
    """A straight line in pixels."""
    return el("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=class_)


def dot(cx: Real, cy: Real, class_: str, r: Real = 3.5, title: str = "") -> Markup:
    """A disc in pixels."""
    tip = el("title", title) if title else None
    return el("circle", tip, cx=f"{cx:.1f}", cy=f"{cy:.1f}", r=f"{r:g}", class_=class_)


def text(x: Real, y: Real, words: str, anchor: str = "start", class_: str = "tick") -> Markup:
    """A label in pixels."""
    return el("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def x_axis(x: Scale, ticks: Sequence[Real], top: Real, bottom: Real, grid: bool = False) -> Markup:
    """Ticks and their numbers under a panel."""
    parts = []
    for tick in ticks:
        at = x(tick)
        start = top if grid else bottom
        parts.append(segment(at, start, at, bottom + (0 if grid else 4), "grid" if grid else "axis"))
        parts.append(text(at, bottom + 16, tick_text(tick), "middle"))
    parts.append(segment(x.span[0], bottom, x.span[1], bottom, "axis"))
    return el("g", parts)


def y_axis(y: Scale, ticks: Sequence[Real], left: Real, right: Real) -> Markup:
    """Hairlines across a panel with their numbers at the left."""
    parts = []
    for tick in ticks:
        parts.append(segment(left, y(tick), right, y(tick), "zero" if tick == 0 else "grid"))
        parts.append(text(left - 6, y(tick) + 3.5, tick_text(tick), "end"))
    return el("g", parts)


def whisker(
    x: Scale,
    value: Real | None,
    bounds: Sequence[Real | None] | None,
    middle: Real,
    class_: str,
    title: str = "",
    r: Real = 4,
) -> Markup:
    """A dot with the line of its interval, lying."""
    parts: list[Child] = []
    if bounds is not None and bounds[0] is not None and bounds[1] is not None:
        parts.append(segment(x(bounds[0]), middle, x(bounds[1]), middle, f"whisker {class_}"))
    if value is not None:
        parts.append(dot(x(value), middle, f"dot {class_}", r, title))
    return el("g", parts)
