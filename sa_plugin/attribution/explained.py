"""Importance of a sample's tokens or patches for one objective.

Heat maps of one sample: texts with shaded tokens, images with shaded patches, side by side.

Shades are shares of each map's own largest |importance|, because units differ between methods;
positive and negative differ in hue and negative ones are underlined, so that colour is not alone.
RISE has no zero point, so its mean is taken off. Labelled tokens are outlined. The page needs no
script and no network.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real

from sa_plugin._check import require
from sa_plugin.attribution.players import to_tokens
from sa_plugin.data.sample import Sample
from sa_plugin.show.html import Child, Markup, el, escape, join
from sa_plugin.show.tokens import tokens


class Explained(NamedTuple):
    """What an explainer finds for all objectives of a game.

    Attributes:
        importance: Sign kept where the method has one, larger is more evidence.
        notes: By name, one number for each objective.
    """

    importance: Float[np.ndarray, "player objective"]
    notes: Mapping[str, Float[np.ndarray, " objective"]]


@dataclass(frozen=True, eq=False)
class Attribution:
    """Importance of a sample's tokens or patches for one objective; made by `attribute`.

    Attributes:
        method: Name of the explainer.
        objective: Name of the objective.
        concept: What it is evidence of.
        layer: Block the objective reads.
        sample: What was explained.
        importance: Larger is more evidence; units are those of the method.
        player_of: The player of each token of the model's input; -1 for special tokens.
        offsets: Characters of each token of the input, or the box of each patch.
        notes: What the method says of itself, such as `completeness_error`.
        settings: Options it ran with.
    """

    method: str
    objective: str
    concept: str
    layer: int
    sample: Sample = field(repr=False)
    importance: Float[np.ndarray, " player"]
    player_of: Int[np.ndarray, " token"]
    offsets: Real[np.ndarray, "token edge"]
    notes: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        notes = "".join(f", {name} {value:.3g}" for name, value in self.notes.items())
        return (
            f"Attribution({self.method!r}, {self.objective!r} of {self.concept!r}, sample "
            f"{self.sample.id!r}, {len(self.importance)} players{notes})"
        )

    @property
    def of_token(self) -> Float[np.ndarray, " token"]:
        """Importance of every token of the model's input; NaN for special tokens."""
        return np.asarray(to_tokens(self.importance, self.player_of))

    def top(self, n: int = 5) -> list[tuple[str, float]]:
        """The most important tokens: their text, or where the patch lies, and their importance."""
        shown = np.nan_to_num(self.of_token, nan=-np.inf)
        order = np.argsort(-shown, kind="stable")[: min(n, int((self.player_of >= 0).sum()))]
        return [(self.sample.token_text(self.offsets[t]), float(shown[t])) for t in order]

    def _repr_html_(self) -> str:

        return heat_map([self])


_STYLE = (
    ".sa-maps{display:flex;flex-wrap:wrap;gap:1rem;font-family:sans-serif;line-height:1.7}"
    ".sa-maps figure{margin:0;max-width:30rem}.sa-maps figcaption{font-weight:600}"
    ".sa-maps .lab{outline:1px solid #555;outline-offset:1px}"
    ".sa-maps .neg{text-decoration:underline dotted}"
)
_HUES = {True: "230,110,0", False: "30,110,220"}


def heat_map(shown: Sequence[Attribution]) -> str:
    """Maps of one sample, side by side, as a piece of HTML.

    Args:
        shown: Attributions of the same sample.

    Raises:
        ValueError: None, or of several samples.
        ImportError: An image, and Pillow is not installed.
    """
    samples = {one.sample.id for one in shown}
    if len(samples) != 1:
        raise ValueError(
            f"heat_map shows one sample, these attributions are of {sorted(samples)}: give those of one."
        )
    figures = [el("figure", el("figcaption", f"{one.method}: {one.objective}"), _map(one)) for one in shown]
    return str(join([el("style", Markup(_STYLE)), el("div", *figures, class_="sa-maps")]))


def _map(one: Attribution) -> Markup:
    values, offsets = one.of_token, one.offsets
    kept = np.flatnonzero(~np.isnan(values))
    shown = values[kept]
    shown = shown - shown.mean() if one.method == "rise" else shown
    limit = float(np.abs(shown).max(initial=0.0)) or 1.0
    labels = one.sample.token_labels(offsets[kept], [one.concept])[:, 0]
    shares = shown / limit
    tips = [f"{value:.4g}" for value in values[kept]]
    if one.sample.image is not None:
        return _picture(one, offsets[kept], shares, labels, tips)

    def render(n: int, words: str) -> Markup:
        kind = " ".join(word for word, on in (("neg", shares[n] < 0), ("lab", labels[n])) if on)
        colour = f"background:rgba({_HUES[bool(shares[n] >= 0)]},{0.7 * abs(shares[n]):.2f})"
        return el("span", words, style=colour, title=tips[n], class_=kind or None)

    edges = [[int(start), int(stop)] for start, stop in offsets[kept]]
    return el("p", tokens(one.sample.text, edges, render))


def _picture(
    one: Attribution, boxes: np.ndarray, shares: np.ndarray, labels: np.ndarray, tips: Sequence[str]
) -> Markup:
    assert one.sample.image is not None
    height, width = one.sample.image.pixels.shape[:2]
    data = io.BytesIO()
    require("PIL.Image", "images", "drawing images").fromarray(one.sample.image.pixels).save(data, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    # Grey, or shades would mix with the picture's own colours.
    grey = "filter:grayscale(1)"
    drawn: list[Child] = [el("image", href=source, width=width, height=height, style=grey)]
    for (top, left, bottom, right), share, label, tip in zip(boxes, shares, labels, tips, strict=True):
        drawn.append(
            el(
                "rect",
                el("title", tip),
                x=f"{left:g}",
                y=f"{top:g}",
                width=f"{right - left:g}",
                height=f"{bottom - top:g}",
                fill=f"rgb({_HUES[bool(share >= 0)]})",
                fill_opacity=f"{0.75 * abs(share):.2f}",
                stroke="#555" if label else "none",
            )
        )
    name = escape(f"{one.method}, {one.objective}: {one.concept}")
    return el("svg", el("title", name), *drawn, viewBox=f"0 0 {width} {height}", width="260", role="img")
