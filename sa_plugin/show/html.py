"""Elements of HTML and SVG as escaped strings.

Every text that is not `Markup` is escaped when it becomes a child or an attribute, so whatever a
passage, a concept's name or a setting holds cannot become an element.

How names and numbers are written for people, in the report and the plots alike.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

VOID = frozenset({"meta", "br", "hr", "col", "link", "img", "input", "wbr"})


class Markup(str):
    """Text that is HTML already: it is not escaped again, here or in a template."""

    def __html__(self) -> str:
        return str(self)


# What a page cannot hold (null bytes and other controls, lone surrogates), and what turns round the text
# that follows it, outside its own element too. Marks of direction that override nothing stay.
_UNSEEN = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"},
    0x7F: 0x2421,
    **dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), 0xFFFD),
    **dict(zip((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), map(ord, "↦↤↥↠↞⇥⇤⇔⇧"), strict=True)),
}
_HOLDS_UNSEEN = re.compile(f"[{''.join(re.escape(chr(code)) for code in _UNSEEN)}]")


def visible(text: str) -> str:
    """Text with a picture in the place of every control character, so that offsets into it stay.

    Overrides of direction become arrows: `↞` is U+202E, right to left.

    Example:
        >>> visible("a" + chr(0) + "b")
        'a␀b'
    """
    return text.translate(_UNSEEN) if _HOLDS_UNSEEN.search(text) else text


Child = str | int | float | None | Iterable[Any]
Attribute = str | int | float | bool | None


def escape(text: object) -> Markup:
    """Text as HTML.

    Example:
        >>> escape("<b>")
        '&lt;b&gt;'
    """
    return text if isinstance(text, Markup) else Markup(html.escape(visible(str(text)), quote=True))


def join(children: Iterable[Child]) -> Markup:
    """Children one after another; None is nothing."""
    parts = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str | int | float):
            parts.append(escape(child))
        elif child is not None:
            parts.append(join(child))
    return Markup("".join(parts))


def el(tag: str, *children: Child, **attributes: Attribute) -> Markup:
    """One element.

    Args:
        tag: Its name.
        children: Texts (escaped), `Markup`, numbers, None, or iterables of these.
        attributes: A trailing underscore is dropped, other underscores become hyphens; None and
            False leave the attribute out.

    Example:
        >>> el("p", "a < b", class_="note")
        '<p class="note">a &lt; b</p>'
    """
    opening = [tag]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        name = key.removesuffix("_").replace("_", "-")
        opening.append(name if value is True else f'{name}="{html.escape(visible(str(value)))}"')
    start = f"<{' '.join(opening)}>"
    return Markup(start if tag in VOID else f"{start}{join(children)}</{tag}>")


Real = float | int
"""A JSON number: 1.0 may come back as 1."""

DASH = "–"

KIND_LABELS: Mapping[str, str] = {
    "prototype": "mean prototype",
    "separator": "linear separator",
    "separator_adam": "linear separator (Adam recipe)",
    "lda": "LDA",
    "kmeans": "k-means cluster",
    "kmeans_separator": "k-means separator",
    "given": "vectors given by the user",
}

OWN = "SuperActivators"
MAXTOK = "MaxTok"
ALWAYS = "always-positive"


def kind_label(name: str) -> str:
    """The name of a concept kind in a sentence.

    Example:
        >>> kind_label("prototype"), kind_label("my_kind")
        ('mean prototype', 'my kind')
    """
    return KIND_LABELS.get(name, name.replace("_", " "))


def typeset(value: Real | None, digits: int = 3, signed: bool = False) -> str:
    """A number with a fixed number of decimals, a true minus, and a dash where there is none.

    Example:
        >>> typeset(0.7314), typeset(-0.0001), typeset(None), typeset(-0.02, 2, signed=True)
        ('0.731', '0.000', '–', '−0.02')
    """
    if value is None or value != value:
        return DASH
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
        return f"±{text}" if signed else text
    if text.startswith("-"):
        return f"−{text[1:]}"
    return f"+{text}" if signed else text


def interval(bounds: Sequence[Real | None] | None, digits: int = 3, signed: bool = False) -> str:
    """An interval in brackets.

    Example:
        >>> interval([0.1, 0.25], 2), interval(None)
        ('[0.10, 0.25]', '–')
    """
    if not known(bounds):
        return DASH
    assert bounds is not None
    low, high = (typeset(bound, digits, signed) for bound in bounds)
    return f"[{low}, {high}]"


def known(bounds: Sequence[Real | None] | None) -> bool:
    """Whether an interval has both its ends."""
    return bounds is not None and len(bounds) == 2 and None not in bounds


def side_of_zero(bounds: Sequence[Real | None] | None) -> int:
    """-1 or 1 where an interval lies wholly below or above zero, else 0."""
    if not known(bounds):
        return 0
    assert bounds is not None
    low, high = (float(bound) for bound in bounds if bound is not None)
    return 1 if low > 0 else -1 if high < 0 else 0


def small(value: Real | None) -> str:
    """A number of unknown size, in three significant digits.

    Example:
        >>> small(3.7e-8), small(12345.6), small(0.25)
        ('3.7e−08', '12346', '0.25')
    """
    if value is None or value != value:
        return DASH
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


def tick(value: Real) -> str:
    """A number of an axis or a grid, as short as it can be.

    Example:
        >>> tick(0.05), tick(-2.0)
        ('0.05', '−2')
    """
    return f"{value:.10g}".replace("-", "−")


def decimals(values: Iterable[Real | None], significant: int = 3) -> int:
    """How many decimals give the largest of some numbers so many significant digits.

    Example:
        >>> decimals([0.0123, -0.5]), decimals([142.0])
        (3, 0)
    """
    largest = max((abs(v) for v in values if v is not None), default=1.0) or 1.0
    return min(max(significant - 1 - math.floor(math.log10(largest)), 0), 8)


def count(value: int | None) -> str:
    """A count with thin spaces between thousands."""
    return DASH if value is None else f"{value:,}".replace(",", "\u202f")


def sentence(words: str) -> str:
    """Words with one full stop at their end, or nothing.

    Example:
        >>> sentence("a note."), sentence("a note"), sentence("")
        ('a note.', 'a note.', '')
    """
    bare = words.strip().rstrip(".")
    return f"{bare}." if bare else ""


def percent(share: Real | None, digits: int = 0) -> str:
    """A share as a percentage.

    Example:
        >>> percent(0.476), percent(None)
        ('48 %', '–')
    """
    return DASH if share is None or share != share else f"{typeset(100 * share, digits)} %"


def listed(items: Iterable[str]) -> str:
    """Words as a list in a sentence.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    words = list(items)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def method_of(rows: Iterable[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """The row of a method, if it is there."""
    return next((row for row in rows if row["method"] == name), None)


def by_weighted_f1(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of the detection table, best first, undefined last."""

    def place(row: Mapping[str, Any]) -> tuple[bool, Real, str]:
        value = row["weighted_f1"]
        return value is None, -(value or 0.0), row["method"]

    return sorted(rows, key=place)
