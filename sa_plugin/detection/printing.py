"""What people read: tables (a DataFrame where pandas is installed), text, HTML, type errors."""

from __future__ import annotations

import html
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sa_plugin.results.check import clean


def frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a pandas DataFrame where pandas is installed, else as they are."""
    try:
        pandas = importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        if error.name != "pandas":
            raise
        return [dict(row) for row in rows]
    return pandas.DataFrame([dict(row) for row in rows])


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text: first column to the left, the others to the right."""
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    lines = []
    for row in [header, *rows]:
        first, *rest = (
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def as_html(text: str) -> str:
    """Plain text as notebooks show it."""
    return f"<pre>{html.escape(text)}</pre>"


def number(value: float, digits: int = 3) -> str:
    """A number for people: "-" where it is not defined."""
    return "-" if not np.isfinite(value) else f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    """The same with its sign."""
    return "-" if not np.isfinite(value) else f"{value:+.{digits}f}"


def plain(value: Any) -> Any:
    """Arrays and numbers as JSON has them: lists, and None for NaN and Inf."""
    return clean(value)
