"""A text with its tokens shaded, a picture with its patches.

Shades are shares of one limit, symmetrical about zero; positive and negative differ in hue and
negative ones are underlined, so that colour is not alone. Text outside the tokens is what the host
dropped. `shade` takes its colours from the report's style sheet; `shaded_text` and `shaded_picture`
stand alone in a notebook, beside `MAP_STYLE`, and need no script and no network.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sa_plugin._check import require
from sa_plugin.show.html import Child, Markup, Real, el, escape, join

Render = Callable[[int, str], Markup]


def tokens(text: str, offsets: Sequence[Sequence[int]], render: Render) -> Markup:
    """A text with every token rendered and the rest marked as not scored.

    Args:
        text: The text.
        offsets: Ascending `[start, end]` of the kept tokens; tokens of a character split in
            several share an offset, and the text is shown once.
        render: Token number and its characters to an element.
    """
    parts: list[Child] = []
    end = 0
    for n, (start, stop) in enumerate(offsets):
        parts.append(_gap(text[end : max(start, end)]))
        shown = text[max(start, end) : stop]
        lead = len(shown) - len(shown.lstrip()) if shown.strip() else 0
        parts += [shown[:lead], render(n, shown[lead:])]
        end = max(end, stop)
    return join([*parts, _gap(text[end:])])


def _gap(text: str) -> Child:
    if not text.strip():
        return text
    return el("span", text, class_="dropped", title="not scored: dropped by the host")


def shade(words: str, value: Real | None, limit: Real, tip: str, extra: str = "") -> Markup:
    """One token shaded by its share of the limit."""
    if value is None:
        return el("span", words, class_=f"tok {extra}".strip(), title=tip)
    share = min(abs(value) / limit, 1.0) if limit else 0.0
    sign = "pos" if value >= 0 else "neg"
    faint = "" if share >= 0.15 or sign == "pos" else " faint"
    kind = f"tok {sign}{faint} {extra}".strip()
    return el("span", words, class_=kind, style=f"--a:{share:.2f}", title=tip)


MAP_STYLE = Markup(
    "<style>"
    ".sa-maps{display:flex;flex-wrap:wrap;gap:1rem;font-family:sans-serif;line-height:1.7}"
    ".sa-maps figure{margin:0;max-width:30rem}.sa-maps figcaption{font-weight:600}"
    ".sa-maps .lab{outline:1px solid #888;outline-offset:1px}"
    ".sa-maps .neg{text-decoration:underline dotted}"
    "</style>"
)
_HUES = {True: "230,110,0", False: "30,110,220"}


def shaded_text(
    text: str, offsets: np.ndarray, shares: np.ndarray, outlined: np.ndarray, tips: Sequence[str]
) -> Markup:
    """A text whose tokens are shaded by themselves, for a page without the report's style sheet.

    Args:
        text: The text.
        offsets: Start and end of each token.
        shares: Of each token, -1 to 1.
        outlined: Which tokens have a frame.
        tips: What each token says of itself.
    """

    def render(n: int, words: str) -> Markup:
        kind = " ".join(word for word, on in (("neg", shares[n] < 0), ("lab", outlined[n])) if on)
        colour = f"background:rgba({_HUES[bool(shares[n] >= 0)]},{0.7 * abs(shares[n]):.2f})"
        return el("span", words, style=colour, title=tips[n], class_=kind or None)

    return el("p", tokens(text, [[int(start), int(stop)] for start, stop in offsets], render))


def shaded_picture(
    pixels: np.ndarray,
    boxes: np.ndarray,
    shares: np.ndarray,
    outlined: np.ndarray,
    tips: Sequence[str],
    *,
    title: str,
) -> Markup:
    """A picture whose patches are shaded; see `shaded_text`.

    Args:
        pixels: Height, width, colour.
        boxes: Top, left, bottom and right of each patch.
        shares: Of each patch, -1 to 1.
        outlined: Which patches have a frame.
        tips: What each patch says of itself.
        title: What the picture shows, for people who do not see it.

    Raises:
        ImportError: Pillow is not installed.
    """
    height, width = pixels.shape[:2]
    data = io.BytesIO()
    require("PIL.Image", "images", "drawing images").fromarray(pixels).save(data, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    # Grey, or shades would mix with the picture's own colours.
    grey = "filter:grayscale(1)"
    drawn: list[Child] = [el("image", href=source, width=width, height=height, style=grey)]
    for (top, left, bottom, right), share, label, tip in zip(boxes, shares, outlined, tips, strict=True):
        place: dict[str, Any] = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        drawn.append(
            el(
                "rect",
                el("title", tip),
                **{name: f"{value:g}" for name, value in place.items()},
                fill=f"rgb({_HUES[bool(share >= 0)]})",
                fill_opacity=f"{0.75 * abs(share):.2f}",
                stroke="#555" if label else "none",
            )
        )
    head = el("title", escape(title))
    return el("svg", head, *drawn, viewBox=f"0 0 {width} {height}", width="260", role="img")
