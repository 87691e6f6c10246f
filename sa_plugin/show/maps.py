"""Heat maps of one sample that stand alone in a notebook, beside `MAP_STYLE`.

Shades are shares of one limit, symmetrical about zero; positive and negative differ in hue and
negative ones are underlined, so that colour is not alone. No script and no network is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sa_plugin.show.html import Child, Markup, el
from sa_plugin.show.patches import data_uri, shrunk
from sa_plugin.show.shaded import tokens

MAP_STYLE = Markup(
    "<style>"
    ".sa-maps{display:flex;flex-wrap:wrap;gap:1rem;font-family:sans-serif;line-height:1.7}"
    ".sa-maps figure{margin:0;max-width:30rem}.sa-maps figcaption{font-weight:600}"
    ".sa-maps .lab{outline:1px solid #888;outline-offset:1px}"
    ".sa-maps .neg{text-decoration:underline dotted}.sa-maps .out{opacity:.5}"
    ".sa-maps p{margin:.3em 0}.sa-maps .key{font-size:85%;opacity:.8}"
    "</style>"
)
_HUES = {True: "230,110,0", False: "30,110,220"}


def shade_key(limit: float, of: str = "") -> Markup:
    """What the shades of a map mean.

    Args:
        limit: The number that a full shade stands for.
        of: Where it is counted from, if not from zero.
    """
    ends = f"Full shade: orange {limit:.3g}, blue {-limit:.3g}{of} (dotted in a text)".replace("-", "−")
    return el("p", f"{ends}. Framed: labelled.", class_="key")


def shaded_text(
    text: str, offsets: np.ndarray, shares: np.ndarray, outlined: np.ndarray, tips: Sequence[str]
) -> Markup:
    """A text whose tokens are shaded by themselves, for a page without the report's style sheet.

    Args:
        text: The text.
        offsets: Start and end of each token.
        shares: Of each token, -1 to 1; NaN where it has none, and stands pale.
        outlined: Which tokens have a frame.
        tips: What each token says of itself.
    """

    def render(n: int, words: str) -> Markup:
        none = bool(np.isnan(shares[n]))
        marks = (("neg", shares[n] < 0), ("lab", outlined[n]), ("out", none))
        kind = " ".join(word for word, on in marks if on)
        if none:
            return el("span", words, title=tips[n], class_=kind)
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
    """
    height, width = pixels.shape[:2]
    # Grey, or shades would mix with the picture's own colours.
    grey = "filter:grayscale(1)"
    size = {"width": width, "height": height, "preserveAspectRatio": "none"}
    drawn: list[Child] = [el("image", href=data_uri(shrunk(pixels)), **size, style=grey)]
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
    head = el("title", title)
    return el("svg", head, *drawn, viewBox=f"0 0 {width} {height}", width="260", role="img")
