"""Images with their patches: raw activations beside SuperActivators, masks outlined.

Palette, limits and verdicts are those of texts (`sa_plugin.show.shaded`); the `Item` of an image
has `png` (a `data:` address), `size`, `boxes` and `outline` in place of a text and offsets; patches of which
nobody says whether they have the concept (void pixels) are hatched. Every
image is in the page once: later panels, of other concepts too, draw the first's again. Patches are
drawn as far as the image goes; what no patch covers the host did not score, and it is veiled.

The outline of a mask runs along the edges of its pixels: filled by the even-odd rule it is the mask
again, and nothing is smoothed. The image itself may be scaled down (each pixel the mean of those it
stands for); patches and outline stay in pixels of the original.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from sa_plugin.show.html import Child, Markup, Real, el, typeset
from sa_plugin.show.shaded import Item, side

LONGEST_SIDE = 320
WIDEST = 26
Box = tuple[Real, Real, Real, Real]


def picture_sides(item: Item, limit: Real, drawn: set[str]) -> Markup:
    """An image twice: raw activations, and SuperActivators.

    Args:
        item: What is drawn.
        limit: Score of the darkest shade.
        drawn: Names of the images that the page has already; this one's is added.
    """
    # Named by what it shows: the same name twice in a page, from two results, is the same image.
    name = f"image-{sha256(item['png'].encode()).hexdigest()[:12]}"
    again = name in drawn
    drawn.add(name)
    boxes = [_within(box, item["size"]) for box in item["boxes"]]
    return el("div", _raw(item, boxes, limit, name, again), _tail(item, boxes, name), class_="sides")


def _raw(item: Item, boxes: Sequence[Box], limit: Real, name: str, again: bool) -> Markup:
    height, width = item["size"]
    bar, scores = item.get("raw_threshold"), item["scores"]
    above = [
        box for box, v in zip(boxes, scores, strict=True) if bar is not None and v is not None and v > bar
    ]
    size = {"width": width, "height": height, "preserveAspectRatio": "none"}
    image = el("use", href=f"#{name}") if again else el("image", id=name, href=item["png"], **size)
    layers = [
        el("g", image, class_="grey"),
        el("rect", width=width, height=height, class_="veil"),
        [_shaded(item, n, box, limit) for n, box in enumerate(boxes)],
        _twice(rim(above), "above") if above else None,
    ]
    said = f"{len(boxes)} patches shaded by score"
    foot: list[Child] = [typeset(-limit, 2), el("span", class_="ramp over"), typeset(limit, 2)]
    if bar is not None:
        said += f", {len(above)} of them above the raw threshold {typeset(bar)}"
        foot.append(f" Outlined: above the raw threshold {typeset(bar)} ({len(above)} patches).")
    foot.append(f" Barred: negative.{_key(item, boxes)}")
    return _side("Raw activations", item, boxes, layers, said, foot)


def _tail(item: Item, boxes: Sequence[Box], name: str) -> Markup:
    marked = [n for n, on in enumerate(item["superactivator"]) if on]
    layers = [
        el("use", href=f"#{name}"),
        [el("rect", _tip(item, n), **_at(boxes[n]), class_="tint") for n in marked],
        _twice(rim([boxes[n] for n in marked]), "tail") if marked else None,
    ]
    bar = item["threshold"]
    rule = "no finite threshold" if bar is None else f"score at or above {typeset(bar)}"
    count = f"{len(marked)} of {len(boxes)} patches"
    highest = max((v for v in item["scores"] if v is not None), default=None)
    title = item.get("marks", "SuperActivators")
    foot = f"Marked: {title}, {rule} ({count}; highest score {typeset(highest)})."
    return _side(title, item, boxes, layers, f"{count} marked: {rule}", [foot])


def _side(
    title: str, item: Item, boxes: Sequence[Box], layers: Sequence[Child], said: str, foot: Sequence[Child]
) -> Markup:
    height, width = item["size"]
    labelled = sum(bool(one) for one in item["in_concept"])
    mask = "; the mask is outlined" if item["outline"] else "; no mask"
    desc = f"{said}; {labelled} patches labelled{mask}."
    outline = _twice(item["outline"], "mask") if item["outline"] else None
    name = f"{title}: {item['concept']}, image {item['id']}"
    drawn = el(
        "svg",
        el("title", name),
        el("desc", desc),
        layers,
        _hatched(item, boxes),
        _unscored(item, boxes),
        outline,
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
        aria_label=name,
        class_="chart pixels",
    )
    frame = el("div", drawn, style=f"max-width:{WIDEST * min(1, width / height):.1f}rem")
    return side(title, frame, el("p", foot, class_="foot"))


def _key(item: Item, boxes: Sequence[Box]) -> str:
    mask = f" Dashed: the mask of {item['concept']}." if item["outline"] else ""
    unknown = " Hatched: label unknown." if _unknown(item) else ""
    return f"{mask}{unknown}{' Veiled: not scored by the host.' if _drops(item, boxes) else ''}"


def _unknown(item: Item) -> list[int]:
    """Patches without a label in a sample that has one; in the user's own images nothing is labelled."""
    labels = [] if item["positive"] is None else item["in_concept"]
    return [n for n, one in enumerate(labels) if one is None]


def _hatched(item: Item, boxes: Sequence[Box]) -> Markup | None:
    at = [boxes[n] for n in _unknown(item)]
    lines = "".join(f"M{left:.10g} {bottom:.10g}L{right:.10g} {top:.10g}" for top, left, bottom, right in at)
    return el("path", d=lines, class_="unknown") if at else None


def _shaded(item: Item, n: int, box: Box, limit: Real) -> Child:
    value = item["scores"][n]
    if value is None:
        return el("rect", _tip(item, n), **_at(box), class_="none")
    share = min(abs(value) / limit, 1.0) if limit else 0.0
    sign = "pos" if value >= 0 else "neg"
    tall = share * (0.75 if sign == "pos" else 0.6)
    rect = el("rect", _tip(item, n), **_at(box), class_=sign, fill_opacity=f"{tall:.2f}")
    if sign == "pos" or share < 0.25:
        return rect
    top, left, bottom, right = box
    middle, third = (top + bottom) / 2, (right - left) / 3
    return [rect, el("path", d=f"M{left + third:.1f} {middle:.1f}h{third:.1f}", class_="negative-bar")]


def _tip(item: Item, n: int) -> Markup:
    labelled = {True: ", labelled", None: ", label unknown"}.get(item["in_concept"][n], "")
    return el("title", f"score {typeset(item['scores'][n])}{labelled}")


def _within(box: Sequence[Real], size: Sequence[int]) -> Box:
    """The part of a box that lies in the image, to a hundredth of a pixel."""
    limits = (size[0], size[1], size[0], size[1])
    top, left, bottom, right = (
        round(min(max(edge, 0), most), 2) for edge, most in zip(box, limits, strict=True)
    )
    return top, left, bottom, right


def _at(box: Box) -> dict[str, str]:
    top, left, bottom, right = box
    return {
        "x": f"{left:.10g}",
        "y": f"{top:.10g}",
        "width": f"{right - left:.2f}",
        "height": f"{bottom - top:.2f}",
    }


def rim(boxes: Sequence[Box]) -> str:
    """The outline of boxes taken together: edges that two of them share are none."""
    edges: Counter[tuple[Real, Real, str, Real]] = Counter()
    for top, left, bottom, right in boxes:
        edges.update([(left, top, "H", right), (left, bottom, "H", right)])
        edges.update([(left, top, "V", bottom), (right, top, "V", bottom)])
    return "".join(f"M{x:.10g} {y:.10g}{way}{to:.10g}" for (x, y, way, to), n in edges.items() if n == 1)


def _twice(path: str, kind: str) -> Markup:
    """A line over a halo, so that it shows on any ground."""
    return el("g", el("path", d=path, class_=f"{kind} halo"), el("path", d=path, class_=f"{kind} stroke"))


def _drops(item: Item, boxes: Sequence[Box]) -> bool:
    height, width = item["size"]
    covered = sum((bottom - top) * (right - left) for top, left, bottom, right in boxes)
    return bool(covered < 0.999 * height * width)


def _unscored(item: Item, boxes: Sequence[Box]) -> Markup | None:
    if not _drops(item, boxes):
        return None
    height, width = item["size"]
    holes = "".join(
        f"M{left:.10g} {top:.10g}V{bottom:.10g}H{right:.10g}V{top:.10g}Z"
        for top, left, bottom, right in boxes
    )
    return el("path", d=f"M0 0H{width}V{height}H0Z{holes}", class_="unscored")


def mask_outline(mask: Bool[np.ndarray, "height width"]) -> str:
    """The edges between a mask's pixels and the rest, as an SVG path of closed loops.

    Corners of the outline alternate between starting and ending a straight run, along every row
    and along every column; so each corner has one partner across and one down, and following them
    in turn leads around a loop. Where two pixels touch at a corner only, two corners lie there.

    Returns:
        Loops of relative moves, to fill by the even-odd rule; empty for an empty mask.

    Example:
        >>> mask_outline(np.array([[False, True, True]]))
        'M1 0h2v1h-2z'
    """
    y, x = _corners(mask)
    n = len(y)
    across = np.arange(n) ^ 1
    down = np.empty(n, dtype=np.int64)
    column_order = np.lexsort((y, x))
    down[column_order] = column_order[np.arange(n) ^ 1]
    seen = np.zeros(n, dtype=bool)
    loops = []
    for start in range(n):
        if seen[start]:
            continue
        at, steps = start, []
        while True:
            beside = across[at]
            below = down[beside]
            seen[at] = seen[beside] = True
            steps.append(f"h{x[beside] - x[at]}")
            if below == start:
                break
            steps.append(f"v{y[below] - y[beside]}")
            at = below
        loops.append(f"M{x[start]} {y[start]}{''.join(steps)}z")
    return "".join(loops)


def _corners(
    mask: Bool[np.ndarray, "height width"],
) -> tuple[Int[np.ndarray, " corner"], Int[np.ndarray, " corner"]]:
    """Row and column of the outline's corners, row by row."""
    inside = np.pad(mask, 1)
    a, b, c, d = inside[:-1, :-1], inside[:-1, 1:], inside[1:, :-1], inside[1:, 1:]
    turns = (a ^ b ^ c ^ d) + 2 * ((a == d) & (b == c) & (a != b))
    y, x = np.nonzero(turns)
    times = turns[y, x]
    return np.repeat(y, times), np.repeat(x, times)


def shrunk(
    pixels: UInt8[np.ndarray, "height width 3"], longest: int = LONGEST_SIDE
) -> UInt8[np.ndarray, "rows columns 3"]:
    """The image with at most `longest` pixels a side; smaller ones as they are.

    A pixel is the mean over the area of the original that it stands for.
    """
    scale = longest / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    rows, columns = (_area(n, max(round(n * scale), 1)) for n in pixels.shape[:2])
    mean = np.einsum("rh,hwc,kw->rkc", rows, pixels.astype(float), columns, optimize=True)
    return np.asarray(np.round(mean), dtype=np.uint8)


def _area(n: int, m: int) -> Float[np.ndarray, "new old"]:
    """Share of each of `n` pixels in each of `m` that take their place; rows sum to 1."""
    edges, old = np.arange(m + 1) * n / m, np.arange(n)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    share: Float[np.ndarray, "new old"] = np.clip(overlap, 0, None) * m / n
    return share


def data_uri(pixels: UInt8[np.ndarray, "height width 3"]) -> str:
    """The image as a PNG within a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def png(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """The image as a PNG file: RGB of 8 bits, lossless.

    Source: PNG specification (W3C, third edition), sections 5, 9 and 11. Each row is filtered by
    none, the left, the upper, or the mean of both neighbours, whichever leaves the smallest sum.
    """
    height, width = pixels.shape[:2]
    row = pixels.reshape(height, -1).astype(np.int16)
    left, upper = np.pad(row, ((0, 0), (3, 0)))[:, :-3], np.pad(row, ((1, 0), (0, 0)))[:-1]
    tried = np.stack([row, row - left, row - upper, row - (left + upper) // 2]).astype(np.uint8)
    kind = np.abs(tried.view(np.int8).astype(np.int64)).sum(2).argmin(0)
    lines = np.column_stack([kind.astype(np.uint8), tried[kind, np.arange(height)]])
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )
