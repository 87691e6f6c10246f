"""A picture must be whole, hold no address, and keep its lists as long as its patches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

DATA_URI = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
PATH = re.compile(r"[MmHhVvLlZz0-9 .,-]*")


def picture_problems(picture: Mapping[str, Any], where: str) -> Iterator[str]:
    """What does not fit, one sentence each; the types have been checked before."""
    patches = len(picture["boxes"])
    for key in ("scores", "superactivator", "in_concept"):
        if len(picture[key]) != patches:
            yield f"{where}.{key} has {len(picture[key])} entries: expected {patches}, as boxes"
    if len(picture["size"]) != 2 or min(picture["size"]) < 1:
        yield f"{where}.size is {picture['size']}: expected [height, width] of the image"
    for n, box in enumerate(picture["boxes"]):
        if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
            yield f"{where}.boxes[{n}] is {box}: expected [top, left, bottom, right]"
    if not DATA_URI.fullmatch(picture["png"]):
        yield f"{where}.png is {picture['png']!r:.60}: expected 'data:image/png;base64,...'"
    if not PATH.fullmatch(picture["outline"]):
        yield f"{where}.outline is {picture['outline']!r:.60}: expected an SVG path of M, H, V, Z"
