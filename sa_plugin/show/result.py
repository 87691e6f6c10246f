"""What people read: tables (a DataFrame where pandas is installed), text, HTML, type errors."""

from __future__ import annotations

import html
import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np


def clean(value: Any) -> Any:
    """Turn numpy, tuples, paths and dataclasses into plain JSON values, NaN and Inf into None.

    Args:
        value: Anything made of dicts, sequences, dataclasses, numbers, strings and numpy arrays.

    Returns:
        The same in dict, list, str, int, float, bool and None.

    Raises:
        TypeError: Something else is in it; the text names its type.

    Example:
        >>> clean({"f1": np.float32(0.5), "interval": (0.25, float("nan"))})
        {'f1': 0.5, 'interval': [0.25, None]}
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return clean(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: clean(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [clean(item) for item in items]
    raise TypeError(
        f"a {type(value).__name__} cannot go into results.json: give numbers, strings, lists, "
        "dicts, numpy arrays or dataclasses (a tensor as tensor.numpy())."
    )


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
