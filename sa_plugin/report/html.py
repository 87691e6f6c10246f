"""Elements of HTML and SVG as escaped strings.

Every text that is not `Markup` is escaped when it becomes a child or an attribute, so whatever a
passage, a concept's name or a setting holds cannot become an element.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

VOID = frozenset({"meta", "br", "hr", "col", "link", "img", "input", "wbr"})


class Markup(str):
    """Text that is HTML already: it is not escaped again."""


Child = str | int | float | None | Iterable[Any]
Attribute = str | int | float | bool | None


def escape(text: object) -> Markup:
    """Text as HTML.

    Example:
        >>> escape("<b>")
        '&lt;b&gt;'
    """
    return text if isinstance(text, Markup) else Markup(html.escape(str(text), quote=True))


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
        opening.append(name if value is True else f'{name}="{html.escape(str(value))}"')
    start = f"<{' '.join(opening)}>"
    return Markup(start if tag in VOID else f"{start}{join(children)}</{tag}>")
