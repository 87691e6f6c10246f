"""Images with their patches: raw activations and SuperActivators side by side, masks outlined.

Palette, limits and verdicts are those of passages. Every image is in the file once: the second
panel draws the first's again. Patches are drawn as far as the image goes; what no patch covers the
host did not score, and it is veiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sa_plugin.report.html import Child, Markup, el
from sa_plugin.report.passages import ROLES, limit_of, verdicts
from sa_plugin.report.svg import chart
from sa_plugin.report.words import Real, kind_label, number

WIDEST = 26
Box = tuple[Real, Real, Real, Real]
Item = Mapping[str, Any]


def pictures(items: Sequence[Item]) -> Markup:
    """Every image twice, with what each rule says of it.

    Args:
        items: `results["pictures"]`, or some of them.
    """
    rule = ""
    if any(item.get("raw_threshold") is not None for item in items):
        rule = (
            "The raw rule fires on any patch above the midpoint between the calibration means of "
            "in-concept and out-of-concept scores, as a reader of the bulk would. "
        )
    note = "A few images illustrate; the rates are in the tables."
    shown = [_picture(item, limit_of(item, items), f"image-{n}") for n, item in enumerate(items, 1)]
    return el("div", el("p", rule, note), shown, class_="passages")


def _picture(item: Item, limit: Real, name: str) -> Markup:
    role = ROLES.get(item["role"], item["role"].replace("_", " "))
    where = [kind_label(item["kind"]), f"layer {item['layer']}"]
    if item.get("delta") is not None:
        where.append(f"δ {number(item['delta'], 2)}")
    where += dict.fromkeys(word for word in (item.get("document"), item["id"]) if word)
    boxes = [_within(box, item["size"]) for box in item["boxes"]]
    sides = el("div", _raw(item, boxes, limit, name), _tail(item, boxes, name), class_="sides")
    heading = el("h4", el("em", item["concept"]), f" — {role}")
    comment = el("p", item["comment"], class_="comment") if item.get("comment") else None
    meta = el("p", " · ".join(where), class_="where")
    return el("article", heading, meta, sides, verdicts(item), comment, class_="passage")


def _raw(item: Item, boxes: Sequence[Box], limit: Real, name: str) -> Markup:
    height, width = item["size"]
    bar, scores = item.get("raw_threshold"), item["scores"]
    above = [
        box
        for box, v in zip(boxes, scores, strict=True)
        if bar is not None and v is not None and v > bar
    ]
    size = {"width": width, "height": height, "preserveAspectRatio": "none"}
    image = el("image", id=name, href=item["png"], **size)
    layers = [
        el("g", image, class_="grey"),
        el("rect", width=width, height=height, class_="veil"),
        [_shaded(item, n, box, limit) for n, box in enumerate(boxes)],
        _twice(_rim(above), "above") if above else None,
    ]
    said = f"{len(boxes)} patches shaded by score"
    foot: list[Child] = [number(-limit, 2), el("span", class_="ramp"), number(limit, 2)]
    if bar is not None:
        said += f", {len(above)} of them above the raw threshold {number(bar)}"
        foot.append(f" Outlined: above the raw threshold {number(bar)} ({len(above)} patches).")
    foot.append(f" Barred: negative.{_key(item, boxes)}")
    return _side("Raw activations", item, boxes, layers, said, foot)


def _tail(item: Item, boxes: Sequence[Box], name: str) -> Markup:
    marked = [n for n, on in enumerate(item["superactivator"]) if on]
    layers = [
        el("use", href=f"#{name}"),
        [el("rect", _tip(item, n), **_place(boxes[n]), class_="tint") for n in marked],
        _twice(_rim([boxes[n] for n in marked]), "tail") if marked else None,
    ]
    bar = item["threshold"]
    rule = "no finite threshold" if bar is None else f"score at or above {number(bar)}"
    count = f"{len(marked)} of {len(boxes)} patches"
    highest = max((v for v in item["scores"] if v is not None), default=None)
    foot = f"Marked: SuperActivators, {rule} ({count}; highest score {number(highest)})."
    return _side("SuperActivators", item, boxes, layers, f"{count} marked: {rule}", [foot])


def _side(
    title: str,
    item: Item,
    boxes: Sequence[Box],
    layers: Sequence[Child],
    said: str,
    foot: Sequence[Child],
) -> Markup:
    height, width = item["size"]
    labelled = sum(item["in_concept"])
    mask = "; the mask is outlined" if item["outline"] else "; no mask"
    desc = f"{said}; {labelled} patches labelled{mask}."
    outline = _twice(item["outline"], "mask") if item["outline"] else None
    name = f"{title}: {item['concept']}, image {item['id']}"
    drawn = chart(
        width, height, name, desc, layers, _unscored(item, boxes), outline, class_="chart pixels"
    )
    frame = el("div", drawn, style=f"max-width:{WIDEST * min(1, width / height):.1f}rem")
    return el("div", el("h5", title), frame, el("p", foot, class_="foot"), class_="side")


def _key(item: Item, boxes: Sequence[Box]) -> str:
    mask = f" Dashed: the mask of {item['concept']}." if item["outline"] else ""
    return f"{mask} Veiled: not scored by the host." if _drops(item, boxes) else mask


def _shaded(item: Item, n: int, box: Box, limit: Real) -> Child:
    value = item["scores"][n]
    if value is None:
        return el("rect", _tip(item, n), **_place(box), class_="none")
    share = min(abs(value) / limit, 1.0) if limit else 0.0
    sign = "pos" if value >= 0 else "neg"
    tall = share * (0.75 if sign == "pos" else 0.6)
    rect = el("rect", _tip(item, n), **_place(box), class_=sign, fill_opacity=f"{tall:.2f}")
    if sign == "pos" or share < 0.25:
        return rect
    top, left, bottom, right = box
    middle, third = (top + bottom) / 2, (right - left) / 3
    return [
        rect,
        el("path", d=f"M{left + third:.1f} {middle:.1f}h{third:.1f}", class_="negative-bar"),
    ]


def _tip(item: Item, n: int) -> Markup:
    labelled = ", labelled" if item["in_concept"][n] else ""
    return el("title", f"score {number(item['scores'][n])}{labelled}")


def _within(box: Sequence[Real], size: Sequence[int]) -> Box:
    """The part of a box that lies in the image, to a hundredth of a pixel."""
    limits = (size[0], size[1], size[0], size[1])
    top, left, bottom, right = (
        round(min(max(edge, 0), most), 2) for edge, most in zip(box, limits, strict=True)
    )
    return top, left, bottom, right


def _place(box: Box) -> dict[str, str]:
    top, left, bottom, right = box
    return {
        "x": f"{left:.10g}",
        "y": f"{top:.10g}",
        "width": f"{right - left:.2f}",
        "height": f"{bottom - top:.2f}",
    }


def _rim(boxes: Sequence[Box]) -> str:
    """The outline of boxes taken together: edges that two of them share are none."""
    edges: Counter[tuple[Real, Real, str, Real]] = Counter()
    for top, left, bottom, right in boxes:
        edges.update([(left, top, "H", right), (left, bottom, "H", right)])
        edges.update([(left, top, "V", bottom), (right, top, "V", bottom)])
    return "".join(
        f"M{x:.10g} {y:.10g}{way}{to:.10g}" for (x, y, way, to), n in edges.items() if n == 1
    )


def _twice(path: str, kind: str) -> Markup:
    """A line over a halo, so that it shows on any ground."""
    return el(
        "g", el("path", d=path, class_=f"{kind} halo"), el("path", d=path, class_=f"{kind} stroke")
    )


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
