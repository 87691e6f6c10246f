"""How numbers are shown: results, tables, pages."""

from sa_plugin.show.html import VOID, Markup, el, interval, kind_label, number, side_of_zero
from sa_plugin.show.result import as_html
from sa_plugin.show.tokens import shade, tokens

__all__ = [
    "VOID",
    "Markup",
    "as_html",
    "el",
    "interval",
    "kind_label",
    "number",
    "shade",
    "side_of_zero",
    "tokens",
]
