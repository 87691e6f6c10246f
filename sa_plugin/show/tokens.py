"""A text with its tokens shaded.

Shades are shares of one limit, symmetrical about zero; positive and negative differ in hue and by
a dotted underline. Text outside the tokens is what the host dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sa_plugin.show.html import Child, Markup, Real, el, join

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
