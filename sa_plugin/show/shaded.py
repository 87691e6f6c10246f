"""Texts with their tokens: shaded by a score, and raw activations beside SuperActivators.

Shades are shares of one limit, symmetrical about zero; positive and negative differ in hue and by
a dotted underline, so that colour is not alone. Text outside the tokens is what the host dropped.

What is drawn of one text under one concept is an `Item`, the record that `results.json` holds too:
`text`, `offsets`, and by token `scores`, `superactivator`, `in_concept`; `threshold`,
`raw_threshold` and `positive` of the concept, `concept` and `kind` as names. A score, a threshold
or a label that is not known is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from sa_plugin.show.html import Child, Markup, Real, el, join, typeset

Render = Callable[[int, str], Markup]
Item = Mapping[str, Any]
FRAME = "sa-shown"
# Colours of the page itself, mixed with nothing: what is drawn follows any theme, light or dark.
FRAME_RULES = f"""
.{FRAME} {{
  --ink: currentColor; --soft: color-mix(in srgb, currentColor 75%, transparent);
  --faint: color-mix(in srgb, currentColor 55%, transparent);
  --hair: color-mix(in srgb, currentColor 18%, transparent); --paper: #fff;
  --own: #d9601f; --own-rgb: 222 98 30; --blue-rgb: 45 125 200; --sans: system-ui, sans-serif;
}}
.{FRAME} p {{ margin: .3em 0; }}
.{FRAME} h5 {{ font: 500 .85em/1.35 var(--sans); color: var(--soft); margin: 0 0 .3em; }}
.{FRAME} .foot, .{FRAME} .verdicts {{ font-size: .85em; color: var(--soft); }}
.{FRAME} article {{ border-top: 1px solid var(--hair); padding: .6em 0 .3em; }}
.{FRAME} svg.pixels {{ display: block; max-width: 100%; height: auto; --ink: #1d1d1b; }}
"""


def passage_rules() -> str:
    """The style of tokens and patches, as a page's style sheet takes it."""
    return files("sa_plugin.show").joinpath("passages.css").read_text(encoding="utf-8")


def framed(*children: Child) -> Markup:
    """Elements with their own style, which reaches nothing outside them."""
    bound = re.sub(
        r"([^{}]+)\{",
        lambda rule: ", ".join(f".{FRAME} {s.strip()}" for s in rule[1].split(",")) + " {",
        passage_rules(),
    )
    return el("div", el("style", Markup(FRAME_RULES + bound)), *children, class_=FRAME)


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


def limit_of(item: Item, items: Sequence[Item]) -> Real:
    """Score of the darkest shade: the item's own limit, or the largest |score| of its concept."""
    if item.get("limit"):
        return float(item["limit"])
    same = [i for i in items if (i["concept"], i["kind"]) == (item["concept"], item["kind"])]
    return max((abs(v) for i in same for v in i["scores"] if v is not None), default=0.0)


def text_sides(item: Item, limit: Real) -> Markup:
    """A text twice: raw activations, and SuperActivators."""
    raw = tokens(item["text"], item["offsets"], lambda n, words: _raw(item, n, words, limit))
    tail = tokens(item["text"], item["offsets"], lambda n, words: _tail(item, n, words))
    return el(
        "div",
        side("Raw activations", el("p", raw, class_="reading"), _raw_foot(item, limit)),
        side(item.get("marks", "SuperActivators"), el("p", tail, class_="reading"), _tail_foot(item)),
        class_="sides",
    )


def side(title: str, body: Child, foot: Child) -> Markup:
    """One half of a picture: its name, what is drawn, and how to read it."""
    return el("div", el("h5", title), body, foot, class_="side")


def _raw(item: Item, n: int, words: str, limit: Real) -> Markup:
    value = item["scores"][n]
    bar = item.get("raw_threshold")
    fires = value is not None and bar is not None and value > bar
    return shade(words, value, limit, f"score {typeset(value)}", "fires" if fires else "")


def _tail(item: Item, n: int, words: str) -> Markup:
    inside = " labelled" if item["in_concept"][n] else ""
    said = {True: ", labelled", None: ", label unknown"}.get(item["in_concept"][n], "")
    tip = f"score {typeset(item['scores'][n])}{said}"
    if not item["superactivator"][n]:
        return el("span", words, class_=f"tok{inside}", title=tip)
    score = el("sup", typeset(item["scores"][n], 2))
    return el("mark", words, score, class_=f"tok super{inside}", title=tip)


def _raw_foot(item: Item, limit: Real) -> Markup:
    bar = item.get("raw_threshold")
    boxed = f" Boxed: above the raw threshold {typeset(bar)}." if bar is not None else ""
    ends = [typeset(-limit, 2), el("span", class_="ramp"), typeset(limit, 2)]
    grey = " Grey: dropped by the host, not scored." if _drops(item) else ""
    return el("p", ends, boxed, " Dotted: negative.", grey, class_="foot")


def _drops(item: Item) -> bool:
    rest = list(item["text"])
    for start, stop in item["offsets"]:
        rest[start:stop] = " " * len(rest[start:stop])
    return bool("".join(rest).strip())


def _tail_foot(item: Item) -> Markup:
    bar = item["threshold"]
    marked = "no finite threshold" if bar is None else f"score at or above {typeset(bar)}"
    labelled = "" if item["positive"] is None else f" {_labelled(item['in_concept'])}"
    marks = item.get("marks", "SuperActivators")
    return el("p", f"Marked: {marks}, {marked}.{labelled}", class_="foot")


def _labelled(labels: Sequence[bool | None]) -> str:
    unknown = sum(one is None for one in labels)
    if not unknown:
        return "Underlined: labelled."
    if unknown == len(labels):
        return "Labels of tokens are unknown."
    return f"Underlined: labelled; of {unknown} others it is unknown."


def verdicts(item: Item) -> Markup:
    """What the label, the raw rule and the tail say of a sample."""
    known = item["positive"] is not None
    parts: list[Child] = []
    if known:
        parts += ["Label: ", el("b", "positive" if item["positive"] else "negative"), ". "]
    bar = item.get("raw_threshold")
    if bar is not None:
        fired = any(v is not None and v > bar for v in item["scores"])
        parts += ["Raw rule: ", _call(fired, item["positive"]), ". "]
    parts += ["SuperActivators: ", _call(any(item["superactivator"]), item["positive"]), "."]
    return el("p", parts, class_="verdicts")


def _call(fired: bool, positive: bool | None) -> Markup:
    words = "fires" if fired else "silent"
    if positive is None:
        return el("b", words)
    right = fired == positive
    verdict = f"{'✓' if right else '✗'} {words}, {'right' if right else 'wrong'}"
    return el("b", verdict, class_="right" if right else "wrong")


def marked_text(item: Item) -> str:
    """A text for the terminal: «marked tokens» with their scores."""
    parts, end = [], 0
    for (start, stop), on, score in zip(item["offsets"], item["superactivator"], item["scores"], strict=True):
        start = max(start, end)
        parts.append(item["text"][end:start])
        words = item["text"][start:stop]
        bare = words.strip()
        shown = f"«{bare} {typeset(score, 2)}»" if on and bare else bare
        parts.append(words.replace(bare, shown, 1) if bare else words)
        end = max(end, stop)
    return "".join([*parts, item["text"][end:]])
