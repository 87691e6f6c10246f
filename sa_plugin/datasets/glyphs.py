"""Glyphs of the system's colour emoji font, with the concepts of Unicode's own groups.

The picture comes from Noto Color Emoji (SIL Open Font Licence), the concept from the subgroups of
Unicode's `emoji-test.txt`: two Debian packages. Nothing is downloaded here, nothing is copied into
this package. Only emoji of one code point count, so skin tones and joined sequences do not. One
glyph has one concept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from sa_plugin._optional import require

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
TABLE = Path("/usr/share/unicode/emoji/emoji-test.txt")
GROUPS = {
    "land mammal": ("animal-mammal",),
    "bird": ("animal-bird",),
    "sea animal": ("animal-marine",),
    "bug": ("animal-bug",),
    "plant": ("plant-flower", "plant-other"),
    "fruit": ("food-fruit",),
    "prepared food": ("food-prepared", "food-asian"),
    "ground vehicle": ("transport-ground",),
    "building": ("place-building",),
    "clothing": ("clothing",),
    "smiling face": ("face-smiling",),
    "musical instrument": ("musical-instrument",),
}
CONCEPTS = tuple(GROUPS)
# Unicode files these with the group, but they do not show the concept: parts, traces, fittings,
# things carried, and fungi.
NOT_MEANT = {
    "land mammal": ("pig nose", "paw prints"),
    "bird": ("feather", "wing"),
    "bug": ("spider web", "microbe"),
    "plant": ("rosette", "empty nest", "nest with eggs", "mushroom"),
    "ground vehicle": (
        "station", "bus stop", "motorway", "railway track", "oil drum", "fuel pump", "wheel",
        "police car light", "horizontal traffic light", "vertical traffic light", "stop sign",
        "construction", "roller skate",
    ),
    "building": ("building construction", "brick", "rock", "wood", "Statue of Liberty"),
    "clothing": (
        "folding hand fan", "purse", "handbag", "clutch bag", "shopping bags", "backpack",
        "hair pick", "prayer beads", "lipstick", "ring", "gem stone",
    ),
}  # fmt: skip

NATIVE_POINTS = 109
NATIVE_SIZE = (136, 128)
UNASSIGNED = "\U0010fffe"
VARIATION = "FE0F"
_NO_BITMAPS = (
    "{font} has no colour bitmaps of emoji: give a Noto Color Emoji with bitmaps (CBDT), such as "
    "that of the Debian package fonts-noto-color-emoji."
)


@dataclass(frozen=True, eq=False)
class Glyph:
    """A picture of one concept, cropped to what is not transparent."""

    name: str
    concept: str
    rgba: UInt8[np.ndarray, "rows columns 4"]


def read_glyphs(font: str | Path | None = None, table: str | Path | None = None) -> list[Glyph]:
    """Every glyph of every concept, in the table's order; a picture that stands twice counts once.

    Raises:
        FileNotFoundError: Font or table is not there; the text names the Debian package.
        ImportError: Pillow is not installed.
        ValueError: The font has no colour bitmaps.
    """
    font_path = _existing(font or FONT, "emoji font", "fonts-noto-color-emoji", "font")
    table_path = _existing(table or TABLE, "emoji table", "unicode-data", "table")
    draw = _pen(font_path)
    seen = {draw(UNASSIGNED).tobytes()}
    glyphs = []
    for concept, character, name in _rows(table_path.read_text(encoding="utf-8").splitlines()):
        rgba = draw(character)
        if rgba[..., 3].any() and rgba.tobytes() not in seen:
            seen.add(rgba.tobytes())
            glyphs.append(Glyph(name, concept, _cropped(rgba)))
    if not any(np.ptp(glyph.rgba[..., :3], axis=-1).any() for glyph in glyphs):
        raise ValueError(_NO_BITMAPS.format(font=font_path))
    return glyphs


def _existing(path: str | Path, what: str, package: str, argument: str) -> Path:
    found = Path(path)
    if not found.is_file():
        raise FileNotFoundError(
            f"no {what} at {found}: install the Debian package {package} (apt-get install "
            f"{package}), or give its path as `{argument}=`."
        )
    return found


def _rows(lines: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    """Concept, character and name of the fully qualified emoji of one code point."""
    concept_of = {group: concept for concept, groups in GROUPS.items() for group in groups}
    concept = None
    for line in lines:
        if line.startswith("# subgroup:"):
            concept = concept_of.get(line.split(":")[1].strip())
        elif concept is not None and "; fully-qualified" in line:
            points = [p for p in line.split(";")[0].split() if p != VARIATION]
            name = line.split("# ")[1].split(" ", 2)[2].strip()
            if len(points) == 1 and name not in NOT_MEANT.get(concept, ()):
                yield concept, chr(int(points[0], 16)), name


def _pen(font: Path) -> Callable[[str], UInt8[np.ndarray, "rows columns 4"]]:
    """A function that draws one character at the size of the font's bitmaps.

    Raises:
        ValueError: The font has no bitmaps of that size.
    """
    image, draw, fonts = (
        require(f"PIL.{name}", "demo", "emoji scenes")
        for name in ("Image", "ImageDraw", "ImageFont")
    )
    try:
        face = fonts.truetype(str(font), NATIVE_POINTS)
    except OSError as error:
        raise ValueError(_NO_BITMAPS.format(font=font)) from error

    def draw_character(character: str) -> UInt8[np.ndarray, "rows columns 4"]:
        canvas = image.new("RGBA", NATIVE_SIZE)
        draw.Draw(canvas).text((0, 0), character, font=face, embedded_color=True)
        return np.asarray(canvas)

    return draw_character


def _cropped(rgba: UInt8[np.ndarray, "rows columns 4"]) -> UInt8[np.ndarray, "_ _ 4"]:
    rows, columns = (np.flatnonzero(rgba[..., 3].any(axis)) for axis in (1, 0))
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
