"""Passages and images of a report: raw activations and SuperActivators side by side, attributions.

What is drawn of one text or image is in `sa_plugin.show`; here stand the roles in which a report
shows it, and passages explained under each objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sa_plugin.report.heads import heat_map
from sa_plugin.show.html import Child, Markup, Real, decimals, el, kind_label, number, percent
from sa_plugin.show.patches import picture_sides
from sa_plugin.show.tokens import Item, limit_of, shade, text_sides, tokens, verdicts

ROLES: Mapping[str, str] = {
    "true_positive": "True positive",
    "raw_false_fire": "False fire of raw scores, rejected by the tail",
    "false_positive": "Failure: false positive",
    "miss": "Failure: miss",
}


def passages(items: Sequence[Item]) -> Markup:
    """Every passage twice, with what each rule says of it.

    Args:
        items: `results["passages"]`, or some of them.
    """
    return _articles(items, "token", "passages", lambda item, _, limit: text_sides(item, limit))


def pictures(items: Sequence[Item]) -> Markup:
    """Every image twice, with what each rule says of it.

    Args:
        items: `results["pictures"]`, or some of them.
    """
    return _articles(
        items, "patch", "images", lambda item, n, limit: picture_sides(item, limit, f"image-{n}")
    )


def _articles(
    items: Sequence[Item], part: str, what: str, sides: Callable[[Item, int, Real], Markup]
) -> Markup:
    rule = ""
    if any(item.get("raw_threshold") is not None for item in items):
        rule = (
            f"The raw rule fires on any {part} above the midpoint between the calibration means of "
            "in-concept and out-of-concept scores, as a reader of the bulk would. "
        )
    note = f"A few {what} illustrate; the rates are in the tables."
    shown = [_article(item, sides(item, n, limit_of(item, items))) for n, item in enumerate(items, 1)]
    return el("div", el("p", rule, note), shown, class_="passages")


def _article(item: Item, sides: Markup) -> Markup:
    role = ROLES.get(item["role"], item["role"].replace("_", " "))
    where = [kind_label(item["kind"]), f"layer {item['layer']}"]
    if item.get("delta") is not None:
        where.append(f"δ {number(item['delta'], 2)}")
    names = (item.get("document"), item["id"] if "png" in item else None)
    where += dict.fromkeys(word for word in names if word)
    heading = el("h4", el("em", item["concept"]), f" — {role}")
    comment = el("p", item["comment"], class_="comment") if item.get("comment") else None
    meta = el("p", " · ".join(where), class_="where")
    return el("article", heading, meta, sides, verdicts(item), comment, class_="passage")


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
