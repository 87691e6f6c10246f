"""How numbers are shown: results, tables, pages."""

from sa_plugin.show.html import VOID, Markup, el, interval, kind_label, number, side_of_zero
from sa_plugin.show.result import Result, Sheet, Shown, as_html, clean, long_frame
from sa_plugin.show.tokens import shade, tokens

__all__ = [
    "VOID",
    "Markup",
    "Result",
    "Sheet",
    "Shown",
    "as_html",
    "clean",
    "el",
    "interval",
    "kind_label",
    "long_frame",
    "number",
    "shade",
    "side_of_zero",
    "tokens",
]
