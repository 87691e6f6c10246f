"""How numbers are shown: results, tables, pages."""

from sa_plugin.show.html import VOID, Markup, el, interval, kind_label, number, side_of_zero
from sa_plugin.show.patches import data_uri, mask_outline, png, shrunk
from sa_plugin.show.result import Result, Sheet, Shown, clean, long_frame
from sa_plugin.show.tokens import shade, tokens

__all__ = [
    "VOID",
    "Markup",
    "Result",
    "Sheet",
    "Shown",
    "clean",
    "data_uri",
    "el",
    "interval",
    "kind_label",
    "long_frame",
    "mask_outline",
    "number",
    "png",
    "shade",
    "shrunk",
    "side_of_zero",
    "tokens",
]
