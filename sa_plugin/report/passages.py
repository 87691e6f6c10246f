"""Passages with their tokens: raw activations and SuperActivators side by side, and attributions.

Shades are shares of one limit, symmetrical about zero; positive and negative differ in hue and by
a dotted underline. Text outside the tokens is what the host dropped.

Images with their patches: raw activations and SuperActivators side by side, masks outlined.

Palette, limits and verdicts are those of passages. Every image is in the file once: the second
panel draws the first's again. Patches are drawn as far as the image goes; what no patch covers the
host did not score, and it is veiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sa_plugin.report.heads import heat_map
from sa_plugin.report.svg import chart
from sa_plugin.show.html import Child, Markup, Real, decimals, el, kind_label, number, percent
from sa_plugin.show.tokens import shade, tokens

ROLES: Mapping[str, str] = {
    "true_positive": "True positive",
    "raw_false_fire": "False fire of raw scores, rejected by the tail",
    "false_positive": "Failure: false positive",
    "miss": "Failure: miss",
}


def passages(items: Sequence[Mapping[str, Any]]) -> Markup:
    """Every passage twice, with what each rule says of it."""
    rule = ""
    if any(item.get("raw_threshold") is not None for item in items):
        rule = (
            "The raw rule fires on any token above the midpoint between the calibration means of "
            "in-concept and out-of-concept scores, as a reader of the bulk would. "
        )
    shown = [_passage(item, limit_of(item, items)) for item in items]
    note = "A few passages illustrate; the rates are in the tables."
    return el("div", el("p", rule, note), shown, class_="passages")


def limit_of(item: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> Real:
    """Score of the darkest shade: the item's own limit, or the largest |score| of its concept."""
    if item.get("limit"):
        return float(item["limit"])
    same = [i for i in items if (i["concept"], i["kind"]) == (item["concept"], item["kind"])]
    return max((abs(v) for i in same for v in i["scores"] if v is not None), default=0.0)


def _passage(item: Mapping[str, Any], limit: Real) -> Markup:
    role = ROLES.get(item["role"], item["role"].replace("_", " "))
    where = [kind_label(item["kind"]), f"layer {item['layer']}"]
    if item.get("delta") is not None:
        where.append(f"δ {number(item['delta'], 2)}")
    if item.get("document"):
        where.append(item["document"])
    raw = tokens(item["text"], item["offsets"], lambda n, words: _passages_raw(item, n, words, limit))
    tail = tokens(item["text"], item["offsets"], lambda n, words: _passages_tail(item, n, words))
    columns = el(
        "div",
        _passages_side("Raw activations", raw, _raw_foot(item, limit)),
        _passages_side("SuperActivators", tail, _tail_foot(item)),
        class_="sides",
    )
    heading = el("h4", el("em", item["concept"]), f" — {role}")
    comment = el("p", item["comment"], class_="comment") if item.get("comment") else None
    meta = el("p", " · ".join(where), class_="where")
    return el("article", heading, meta, columns, verdicts(item), comment, class_="passage")


def _passages_side(title: str, body: Markup, foot: Markup) -> Markup:
    return el("div", el("h5", title), el("p", body, class_="reading"), foot, class_="side")


def _passages_raw(item: Mapping[str, Any], n: int, words: str, limit: Real) -> Markup:
    value = item["scores"][n]
    bar = item.get("raw_threshold")
    fires = value is not None and bar is not None and value > bar
    return shade(words, value, limit, f"score {number(value)}", "fires" if fires else "")


def _passages_tail(item: Mapping[str, Any], n: int, words: str) -> Markup:
    inside = " labelled" if item["in_concept"][n] else ""
    tip = f"score {number(item['scores'][n])}" + (", labelled" if inside else "")
    if not item["superactivator"][n]:
        return el("span", words, class_=f"tok{inside}", title=tip)
    score = el("sup", number(item["scores"][n], 2))
    return el("mark", words, score, class_=f"tok super{inside}", title=tip)


def _raw_foot(item: Mapping[str, Any], limit: Real) -> Markup:
    bar = item.get("raw_threshold")
    boxed = f" Boxed: above the raw threshold {number(bar)}." if bar is not None else ""
    ends = [number(-limit, 2), el("span", class_="ramp"), number(limit, 2)]
    grey = " Grey: dropped by the host, not scored." if _passages_drops(item) else ""
    return el("p", ends, boxed, " Dotted: negative.", grey, class_="foot")


def _passages_drops(item: Mapping[str, Any]) -> bool:
    kept = [slice(start, stop) for start, stop in item["offsets"]]
    rest = list(item["text"])
    for part in kept:
        rest[part] = " " * len(rest[part])
    return bool("".join(rest).strip())


def _tail_foot(item: Mapping[str, Any]) -> Markup:
    bar = item["threshold"]
    marked = "no finite threshold" if bar is None else f"score at or above {number(bar)}"
    return el("p", f"Marked: SuperActivators, {marked}. Underlined: labelled.", class_="foot")


def verdicts(item: Mapping[str, Any]) -> Markup:
    """What the label, the raw rule and the tail say of a sample."""
    label = "positive" if item["positive"] else "negative"
    parts: list[Child] = ["Label: ", el("b", label), ". "]
    bar = item.get("raw_threshold")
    if bar is not None:
        fired = any(v is not None and v > bar for v in item["scores"])
        parts += ["Raw rule: ", _call(fired, item["positive"]), ". "]
    own = any(item["superactivator"])
    parts += ["SuperActivators: ", _call(own, item["positive"]), "."]
    return el("p", parts, class_="verdicts")


def _call(fired: bool, positive: bool) -> Markup:
    right = fired == positive
    words = f"{'fires' if fired else 'silent'}, {'right' if right else 'wrong'}"
    return el("b", f"{'✓' if right else '✗'} {words}", class_="right" if right else "wrong")


def explanation(block: Mapping[str, Any]) -> Markup:
    """One passage under each objective: attribution by token and, where given, by head."""
    rows = [_objective(block, one) for one in block["explanations"]]
    has_heads = any(one.get("heads") for one in block["explanations"])
    where = f"{kind_label(block['kind'])}, layer {block['layer']}"
    coverage = block.get("coverage")
    if coverage is not None:
        where += f" · SuperActivators are {number(coverage, 2)} of its tokens"
    return el(
        "article",
        el("h4", el("em", block["concept"]), f" — passage {block['id']}"),
        el("p", where, class_="where"),
        rows,
        el("p", block["comment"], class_="comment") if block.get("comment") else None,
        _explained_caption(has_heads),
        class_="passage",
    )


def _explained_caption(heads: bool) -> Markup:
    maps = " So do head maps: each has its own palette, and the number is its end." if heads else ""
    return el(
        "p",
        "Shade: share of the largest |attribution| of that objective, so shades compare tokens, "
        "not objectives. Boxed: SuperActivators. Underlined: labelled. Dotted: negative. "
        f"The objectives differ in what they ask, and are no ground truth.{maps}",
        class_="foot",
    )


def _objective(block: Mapping[str, Any], one: Mapping[str, Any]) -> Markup:
    values = [abs(v) for v in one["tokens"] if v is not None]
    most = max(values, default=0.0)
    body = tokens(block["text"], block["offsets"], lambda n, words: _attributed(block, one, n, words, most))
    title = [el("code", one["objective"]), f" by {one['method']}, value {number(one['value'])}"]
    columns: list[Child] = [el("div", el("p", body, class_="reading"), _leading(block, one), class_="side")]
    if one.get("heads"):
        limit = max((abs(v) for row in one["heads"] for v in row if v is not None), default=0.0)
        drawn = heat_map(one["heads"], limit, f"objective {one['objective']}", 11)
        most_words = f"attribution by head, up to ±{number(limit, decimals([limit]))}"
        columns.append(el("div", drawn, el("p", most_words, class_="foot"), class_="side"))
    return el("div", el("h5", title), el("div", columns, class_="sides"), class_="objective")


def _attributed(block: Mapping[str, Any], one: Mapping[str, Any], n: int, words: str, most: Real) -> Markup:
    extra = " ".join(
        name
        for name, on in (("fires", block["superactivator"][n]), ("labelled", block["in_concept"][n]))
        if on
    )
    value = one["tokens"][n]
    return shade(words, value, most, f"attribution {number(value, 4)}", extra)


def _leading(block: Mapping[str, Any], one: Mapping[str, Any], n: int = 5) -> Markup:
    values = [(v, k) for k, v in enumerate(one["tokens"]) if v is not None]
    first = sorted(values, key=lambda pair: (-abs(pair[0]), pair[1]))[:n]
    total = sum(abs(v) for v, _ in values)
    on = sum(abs(v) for v, k in values if block["superactivator"][k])
    digits = decimals(v for v, _ in first)
    words = [
        f"“{_bare(block['text'][slice(*block['offsets'][k])])}” {number(v, digits, True)}" for v, k in first
    ]
    lost, of = "", "Share"
    if one.get("dropped") is not None:
        lost = f" {percent(one['dropped'])} of the attribution lies on dropped tokens."
        of = "Of the rest, share"
    kept = f" {of} on SuperActivators: {number(on / total, 2)}." if total else ""
    return el("p", f"Largest: {', '.join(words)}.{lost}{kept}", class_="foot")


def _bare(words: str) -> str:
    """A token without the spaces round it, unless it is nothing else."""
    return words.strip() or words.replace("\n", "↵")


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
    sides = el(
        "div", _pictures_raw(item, boxes, limit, name), _pictures_tail(item, boxes, name), class_="sides"
    )
    heading = el("h4", el("em", item["concept"]), f" — {role}")
    comment = el("p", item["comment"], class_="comment") if item.get("comment") else None
    meta = el("p", " · ".join(where), class_="where")
    return el("article", heading, meta, sides, verdicts(item), comment, class_="passage")


def _pictures_raw(item: Item, boxes: Sequence[Box], limit: Real, name: str) -> Markup:
    height, width = item["size"]
    bar, scores = item.get("raw_threshold"), item["scores"]
    above = [
        box for box, v in zip(boxes, scores, strict=True) if bar is not None and v is not None and v > bar
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
    return _pictures_side("Raw activations", item, boxes, layers, said, foot)


def _pictures_tail(item: Item, boxes: Sequence[Box], name: str) -> Markup:
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
    return _pictures_side("SuperActivators", item, boxes, layers, f"{count} marked: {rule}", [foot])


def _pictures_side(
    title: str, item: Item, boxes: Sequence[Box], layers: Sequence[Child], said: str, foot: Sequence[Child]
) -> Markup:
    height, width = item["size"]
    labelled = sum(item["in_concept"])
    mask = "; the mask is outlined" if item["outline"] else "; no mask"
    desc = f"{said}; {labelled} patches labelled{mask}."
    outline = _twice(item["outline"], "mask") if item["outline"] else None
    name = f"{title}: {item['concept']}, image {item['id']}"
    drawn = chart(width, height, name, desc, layers, _unscored(item, boxes), outline, class_="chart pixels")
    frame = el("div", drawn, style=f"max-width:{WIDEST * min(1, width / height):.1f}rem")
    return el("div", el("h5", title), frame, el("p", foot, class_="foot"), class_="side")


def _key(item: Item, boxes: Sequence[Box]) -> str:
    mask = f" Dashed: the mask of {item['concept']}." if item["outline"] else ""
    return f"{mask} Veiled: not scored by the host." if _pictures_drops(item, boxes) else mask


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
    return [rect, el("path", d=f"M{left + third:.1f} {middle:.1f}h{third:.1f}", class_="negative-bar")]


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
    return "".join(f"M{x:.10g} {y:.10g}{way}{to:.10g}" for (x, y, way, to), n in edges.items() if n == 1)


def _twice(path: str, kind: str) -> Markup:
    """A line over a halo, so that it shows on any ground."""
    return el("g", el("path", d=path, class_=f"{kind} halo"), el("path", d=path, class_=f"{kind} stroke"))


def _pictures_drops(item: Item, boxes: Sequence[Box]) -> bool:
    height, width = item["size"]
    covered = sum((bottom - top) * (right - left) for top, left, bottom, right in boxes)
    return bool(covered < 0.999 * height * width)


def _unscored(item: Item, boxes: Sequence[Box]) -> Markup | None:
    if not _pictures_drops(item, boxes):
        return None
    height, width = item["size"]
    holes = "".join(
        f"M{left:.10g} {top:.10g}V{bottom:.10g}H{right:.10g}V{top:.10g}Z"
        for top, left, bottom, right in boxes
    )
    return el("path", d=f"M0 0H{width}V{height}H0Z{holes}", class_="unscored")
