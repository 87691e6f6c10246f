"""How numbers are shown: results, tables, pages."""

from typing import TYPE_CHECKING

from sa_plugin._face import face_room
from sa_plugin._lazy import lazily
from sa_plugin.show.html import VOID, Markup, el, interval, kind_label, side_of_zero, typeset
from sa_plugin.show.result import Result, Sheet, Shown, clean, long_frame

if TYPE_CHECKING:
    from sa_plugin.show.patches import data_uri, mask_outline, png, rim, shrunk
    from sa_plugin.show.shaded import shade, tokens
else:
    __getattr__ = lazily(
        __name__,
        {"patches": ("data_uri", "mask_outline", "png", "rim", "shrunk"), "shaded": ("shade", "tokens")},
    )


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
    "png",
    "rim",
    "shade",
    "shrunk",
    "side_of_zero",
    "tokens",
    "typeset",
]

face_room(globals())
