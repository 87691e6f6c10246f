"""The report: one self-contained HTML file from the results dictionary.

No network, no scripts, no fonts from elsewhere; charts are inline SVG of our own. Equal results
give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sa_plugin.report.page import page
from sa_plugin.report.verdict import verdict
from sa_plugin.results import check, clean

__all__ = ["render_report", "verdict", "write_report"]


def render_report(results: Mapping[str, Any]) -> str:
    """The report as a string.

    Args:
        results: What a run found, see `sa_plugin.results`; every block may be missing.

    Returns:
        An HTML document.

    Raises:
        ValueError: The results do not keep the schema.
    """
    return page(check(clean(results)))


def write_report(results: Mapping[str, Any], path: str | Path) -> Path:
    """Write the report.

    Args:
        results: What a run found, see `sa_plugin.results`; every block may be missing.
        path: Where to; its folder is made.

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
    path, text = Path(path), render_report(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
