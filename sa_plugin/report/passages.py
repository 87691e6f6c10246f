"""Passages with their tokens: raw activations and SuperActivators side by side, and attributions.

Shades are shares of one limit, symmetrical about zero; positive and negative differ in hue and by
a dotted underline. Text outside the tokens is what the host dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sa_plugin.report.heads import heat_map
from sa_plugin.report.html import Child, Markup, el, join
from sa_plugin.report.words import Real, decimals, kind_label, number, percent

ROLES: Mapping[str, str] = {
    "true_positive": "True positive",
    "raw_false_fire": "False fire of raw scores, rejected by the tail",
    "false_positive": "Failure: false positive",
    "miss": "Failure: miss",
}
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
    raw = tokens(item["text"], item["offsets"], lambda n, words: _raw(item, n, words, limit))
    tail = tokens(item["text"], item["offsets"], lambda n, words: _tail(item, n, words))
    columns = el(
        "div",
        _side("Raw activations", raw, _raw_foot(item, limit)),
        _side("SuperActivators", tail, _tail_foot(item)),
        class_="sides",
    )
    heading = el("h4", el("em", item["concept"]), f" — {role}")
    comment = el("p", item["comment"], class_="comment") if item.get("comment") else None
    meta = el("p", " · ".join(where), class_="where")
    return el("article", heading, meta, columns, verdicts(item), comment, class_="passage")


def _side(title: str, body: Markup, foot: Markup) -> Markup:
    return el("div", el("h5", title), el("p", body, class_="reading"), foot, class_="side")


def _raw(item: Mapping[str, Any], n: int, words: str, limit: Real) -> Markup:
    value = item["scores"][n]
    bar = item.get("raw_threshold")
    fires = value is not None and bar is not None and value > bar
    return shade(words, value, limit, f"score {number(value)}", "fires" if fires else "")


def _tail(item: Mapping[str, Any], n: int, words: str) -> Markup:
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
    grey = " Grey: dropped by the host, not scored." if _drops(item) else ""
    return el("p", ends, boxed, " Dotted: negative.", grey, class_="foot")


def _drops(item: Mapping[str, Any]) -> bool:
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
    body = tokens(
        block["text"], block["offsets"], lambda n, words: _attributed(block, one, n, words, most)
    )
    title = [el("code", one["objective"]), f" by {one['method']}, value {number(one['value'])}"]
    columns: list[Child] = [
        el("div", el("p", body, class_="reading"), _leading(block, one), class_="side")
    ]
    if one.get("heads"):
        limit = max((abs(v) for row in one["heads"] for v in row if v is not None), default=0.0)
        drawn = heat_map(one["heads"], limit, f"objective {one['objective']}", 11)
        most_words = f"attribution by head, up to ±{number(limit, decimals([limit]))}"
        columns.append(el("div", drawn, el("p", most_words, class_="foot"), class_="side"))
    return el("div", el("h5", title), el("div", columns, class_="sides"), class_="objective")


def _attributed(
    block: Mapping[str, Any], one: Mapping[str, Any], n: int, words: str, most: Real
) -> Markup:
    extra = " ".join(
        name
        for name, on in (
            ("fires", block["superactivator"][n]),
            ("labelled", block["in_concept"][n]),
        )
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
        f"“{_bare(block['text'][slice(*block['offsets'][k])])}” {number(v, digits, True)}"
        for v, k in first
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
