"""The report: one self-contained HTML file from the results dictionary.

`page.html` is the page and `tables.html` its tables; `parts` fills them. No network, no scripts, no
fonts from elsewhere. Every text is escaped where it is put in. Equal results give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sa_plugin._files import write_text
from sa_plugin.report.parts import context
from sa_plugin.report.record import checked, without_texts
from sa_plugin.show import html
from sa_plugin.show.result import clean
from sa_plugin.show.shaded import passage_rules

_SECTIONS = (
    ("headline", "In short"),
    ("detection", "Detection"),
    ("choices", "Chosen δ and layer"),
    ("sparsity", "Delta curve"),
    ("trace", "How the tail forms"),
    ("heads", "Heads"),
    ("passages", "Passages"),
    ("pictures", "Images"),
    ("explained", "One passage explained"),
    ("attribution", "Explaining the tail"),
    ("rates", "Localisation and rates"),
    ("kinds", "Other concept kinds"),
    ("provenance", "Provenance"),
)
_FILTERS = (
    html.typeset,
    html.interval,
    html.count,
    html.small,
    html.tick,
    html.percent,
    html.kind_label,
    html.listed,
    html.sentence,
)


def render_report(results: Mapping[str, Any]) -> str:
    """The report as a string.

    Args:
        results: What a run found, see `sa_plugin.report.schema`; every block may be missing.

    Returns:
        An HTML document.

    Raises:
        ValueError: The results do not keep the schema.
    """
    found = checked(_visible(clean(results)))
    style = html.Markup(_stylesheet() + passage_rules())
    return f"{_template().render(context(found), sections=_that_apply(found), style=style).strip()}\n"


def write_report(results: Mapping[str, Any], path: str | Path, *, texts: bool = True) -> Path:
    """Write the report.

    Args:
        results: What a run found, see `sa_plugin.report.schema`; every block may be missing.
        path: Where to; its folder is made.
        texts: Whether with the user's texts and pictures, see `sa_plugin.report.record.without_texts`.

    Returns:
        The path.

    Raises:
        ValueError: The results do not keep the schema.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> write_report({"schema": 1}, f"{folder}/report.html").name
        'report.html'
    """
    return write_text(path, render_report(results if texts else without_texts(results)))


def _visible(value: Any) -> Any:
    """A record whose names and texts hold no character that a page or a figure cannot; offsets stay."""
    if isinstance(value, str):
        return html.visible(value)
    if isinstance(value, dict):
        return {_visible(key): _visible(one) for key, one in value.items()}
    return [_visible(one) for one in value] if isinstance(value, list) else value


@cache
def _template() -> Any:
    """The page, waiting for its context; what the context lacks is an error and never a silent gap."""
    made = Environment(
        loader=PackageLoader("sa_plugin.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {each.__name__: each for each in _FILTERS}
    made.filters["shown"] = _shown
    return made.get_template("page.html")


def _stylesheet() -> str:
    """The page's CSS."""
    return files("sa_plugin.report").joinpath("style.css").read_text(encoding="utf-8")


def _shown(value: Any) -> str:
    """A recorded setting as text."""
    if value is None:
        return html.typeset(None)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return html.count(value)
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return str(value)


def _that_apply(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Sections of this run: one on images has no passages and one on texts no images, not a word of either.

    The comparison of objectives costs many passes and is asked for by name: where it was not, its
    section is left out.
    """
    out = {"passages", "explained"} if "pictures" in results else {"pictures"}
    refused = any("attribution" in block.get("absent", {}) for block in results.get("kinds", {}).values())
    if not refused:
        out.add("attribution")
    return [one for one in _SECTIONS if one[0] not in out - set(results)]
