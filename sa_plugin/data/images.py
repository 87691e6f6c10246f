"""Images with masks, and the one geometric transform that image and mask share.

Whatever a processor does (resize, centre crop, letter-box), it maps image pixels to the model's
input plane by `input = scale * image + shift` on each axis. Its inverse gives every patch a box in
the pixels of the original image, and labels are read there: masks are never resampled, so patch
labels cannot shift against patches.

A mask pixel belongs to the box that holds its centre; a box smaller than a pixel takes the pixel
that holds the box's centre. The coverage of a box is the share of its pixels that are in the mask.

Of a void pixel nobody says what it shows. A patch is positive when its coverage suffices with its void
pixels counted as outside the concept, negative when it does not even with all of them counted as inside,
and unknown in between.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from sa_plugin._check import require, require_known, users_line
from sa_plugin._face import face
from sa_plugin.data.columns import Given, entries_of, is_missing, name_of, number_of, picture_column, scalar


@face
@dataclass(frozen=True, eq=False)
class Image:
    """Pixels with a mask for each concept.

    Attributes:
        pixels: RGB.
        masks: Concept to mask; concepts left out have none.
        min_coverage: A patch has a concept when its coverage exceeds this; at 0, when any pixel is.
        void: Pixels of which nobody says what they show, whatever the masks hold there; None where
            there are none.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    masks: Mapping[str, Bool[np.ndarray, "height width"]] = field(default_factory=dict)
    min_coverage: float = 0.0
    void: Bool[np.ndarray, "height width"] | None = None

    def __repr__(self) -> str:
        height, width = self.pixels.shape[:2]
        void = "" if self.void is None else f", {int(self.void.sum())} void pixels"
        return f"Image({width} x {height}, masks of {sorted(self.masks)}{void})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def pixel_digest(self) -> str:
        """Hash of the pixels alone."""
        found = hashlib.sha256(repr(self.pixels.shape).encode())
        found.update(np.ascontiguousarray(self.pixels).tobytes())
        return found.hexdigest()

    @cached_property
    def digest(self) -> str:
        """Hash of pixels, masks and the rule."""
        found = hashlib.sha256(f"{self.pixel_digest} {self.min_coverage}".encode())
        for concept, mask in sorted(self.masks.items()):
            found.update(concept.encode())
            found.update(np.packbits(mask).tobytes())
        if self.void is not None:
            # The null keeps it apart from a concept of this name: no name holds one.
            found.update(b"\0void" + np.packbits(self.void).tobytes())
        return found.hexdigest()

    def has(self, concept: str, boxes: Float[np.ndarray, "patch 4"]) -> Bool[np.ndarray, " patch"]:
        """Which patches have a concept that has a mask, whatever their void pixels show."""
        require_known("concept", concept, self.masks)
        mask = self.masks[concept]
        sure = mask if self.void is None else mask & ~self.void
        return coverage(sure, boxes) > self.min_coverage

    def may_have(
        self, concepts: Sequence[str], boxes: Float[np.ndarray, "patch 4"]
    ) -> Bool[np.ndarray, "patch concept"]:
        """Which patches have each concept, or would if it were in all of their void pixels."""
        void = np.zeros(self.pixels.shape[:2], dtype=bool) if self.void is None else self.void
        of_void = coverage(void, boxes)
        most = np.empty((len(boxes), len(concepts)))
        for k, concept in enumerate(concepts):
            mask = self.masks.get(concept)
            most[:, k] = of_void if mask is None else coverage(mask | void, boxes)
        return most > self.min_coverage


@face
@dataclass(frozen=True)
class PixelLabels:
    """Where concepts are in several images, and when a patch has one.

    Args:
        masks: For each image, concept to boolean mask `[height, width]` of the image's own size.
        boxes: For each image `(concept, top, left, bottom, right)` in pixels, added to the masks;
            a pixel is inside when its centre is.
        min_coverage: A patch has a concept when more than this share of its pixels is in the mask;
            0 means any pixel.
        void: For each image a boolean mask of the pixels of which nobody says what they show, or
            None. A patch whose label they could change is unknown for that concept.

    Raises:
        ValueError: `min_coverage` is outside [0, 1).
    """

    masks: Given[Sequence[Any] | None] = None
    boxes: Given[Sequence[Iterable[Any]] | None] = None
    min_coverage: Given[float] = 0.0
    void: Given[Sequence[Any] | None] = None

    def __post_init__(self) -> None:
        for name in ("masks", "boxes", "void"):
            given = getattr(self, name)
            object.__setattr__(self, name, None if given is None else picture_column(name, given))
        object.__setattr__(self, "min_coverage", number_of("min_coverage", self.min_coverage))
        if not 0 <= self.min_coverage < 1:
            raise ValueError(f"min_coverage {self.min_coverage} must lie in [0, 1).")


@face
@dataclass(frozen=True)
class Geometry:
    """Where a processor puts an image: `input = scale * image + shift`, rows first.

    Attributes:
        scale: Input pixels an image pixel, by axis.
        shift: Input coordinate of the image's upper left corner, by axis; negative where a crop
            cuts it off, positive where a letter-box pads.
        size: Height and width of the input plane.
        patch: Side of a patch, in input pixels.
    """

    scale: tuple[float, float]
    shift: tuple[float, float]
    size: tuple[int, int]
    patch: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    def boxes(self) -> Float[np.ndarray, "patch 4"]:
        """Top, left, bottom, right of every patch, in image pixels, row by row."""
        rows, columns = self.grid
        # The transform inverted at the patch borders, axis by axis: image = (input - shift) / scale.
        edges = [
            (np.arange(n + 1) * self.patch - shift) / scale
            for n, shift, scale in zip((rows, columns), self.shift, self.scale, strict=True)
        ]
        top, left = np.meshgrid(edges[0][:-1], edges[1][:-1], indexing="ij")
        bottom, right = np.meshgrid(edges[0][1:], edges[1][1:], indexing="ij")
        return np.stack([top.ravel(), left.ravel(), bottom.ravel(), right.ravel()], axis=1)


def coverage(
    mask: Bool[np.ndarray, "height width"], boxes: Float[np.ndarray, "patch 4"]
) -> Float[np.ndarray, " patch"]:
    """Share of each box's pixels that are in the mask; 0 for a box outside the image."""
    # Summed-area table: mask pixels above and left of each corner, so that any box costs four look-ups.
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int64)
    total[1:, 1:] = mask.cumsum(0, dtype=np.int64).cumsum(1)
    top, bottom = _pixels(boxes[:, 0], boxes[:, 2], mask.shape[0])
    left, right = _pixels(boxes[:, 1], boxes[:, 3], mask.shape[1])
    inside = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    area = (bottom - top) * (right - left)
    # Boxes of padding alone have no area and keep the share 0.
    share: Float[np.ndarray, " patch"] = np.zeros(len(boxes))
    np.divide(inside, area, out=share, where=area > 0)
    return share


def _pixels(
    low: Float[np.ndarray, " patch"], high: Float[np.ndarray, " patch"], size: int
) -> tuple[Int[np.ndarray, " patch"], Int[np.ndarray, " patch"]]:
    """First pixel and the one after the last whose centres lie in [low, high)."""
    # Rounding hides that float edges such as 14 / 0.7 miss the half by an ulp.
    first = np.ceil(np.round(low - 0.5, 9)).astype(np.int64)
    after = np.ceil(np.round(high - 0.5, 9)).astype(np.int64)
    # A box smaller than a pixel may hold no centre: it takes the pixel that holds its own centre.
    middle = np.floor((low + high) / 2).astype(np.int64)
    small = after <= first
    first, after = np.where(small, middle, first), np.where(small, middle + 1, after)
    return np.clip(first, 0, size), np.clip(after, 0, size)


def combine_masks(
    name: str, pixels: Any, masks: Any, boxes: Iterable[Any]
) -> dict[str, Bool[np.ndarray, "height width"]]:
    """Masks and boxes of one image, one mask a concept.

    Args:
        name: Of the sample, for errors.
        pixels: The image, uint8 `[height, width, 3]`.
        masks: Concept to boolean mask `[height, width]`.
        boxes: `(concept, top, left, bottom, right)`.

    Raises:
        ValueError: The image is no RGB array of uint8, a mask is not boolean or has another size
            than the image, or a box is malformed or holds no pixel's centre.
    """
    require_rgb(name, pixels)
    size = pixels.shape[:2]
    if not isinstance(masks, Mapping):
        raise ValueError(
            f"sample {name!r}: its masks are a {type(masks).__name__}, not a mapping: give "
            "{concept: mask}, or {} where there is none."
        )
    read = [(concept, _mask(name, concept, mask, size)) for concept, mask in masks.items()]
    found = {str(concept): mask for concept, mask in read}
    rows, columns = (np.arange(n) + 0.5 for n in size)
    listed_boxes = entries_of(
        f"the boxes of sample {name!r}", boxes, "give (concept, top, left, bottom, right)"
    )
    for concept, top, left, bottom, right in (_box(name, box) for box in listed_boxes):
        inside = np.outer((rows >= top) & (rows < bottom), (columns >= left) & (columns < right))
        if not inside.any():
            raise ValueError(
                f"sample {name!r}: the box {(top, left, bottom, right)} of {concept!r} holds no "
                f"pixel of an image of {size[0]} x {size[1]}: boxes are (top, left, bottom, right)."
            )
        found[concept] = found.get(concept, np.zeros(size, dtype=bool)) | inside
    return found


def void_mask(name: str, void: Any, size: tuple[int, ...]) -> Bool[np.ndarray, "height width"] | None:
    """Void pixels of one image of this size; None where there are none.

    Raises:
        ValueError: It is no boolean mask, or has another size than the image.
    """
    found = None if is_missing(void) else _mask_of_size(f"sample {name!r}: the void mask", void, size)
    return found if found is not None and found.any() else None


def require_rgb(name: str, pixels: Any) -> None:
    """Refuse what is no RGB array of uint8.

    Raises:
        ValueError: It is none; the text says how to make it one.
    """
    if not isinstance(pixels, np.ndarray):
        raise ValueError(
            f"sample {name!r}: its image is a {type(pixels).__module__}.{type(pixels).__name__}, "
            "not an image: give a path, a picture of Pillow, or uint8 [height, width, 3]."
        )
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"sample {name!r}: its image is {pixels.dtype} {list(pixels.shape)}, expected uint8 "
            "[height, width, 3]: values 0 to 255, channels last, no grey and no alpha, as from "
            "np.asarray(image.convert('RGB'))."
        )


class FramesWarning(UserWarning):
    """A picture holds several frames, of which one is read."""


def opened(value: Any, where: str = "") -> Any:
    """A picture of Pillow from a path or from {"bytes": ..., "path": ...} of a data set; else the value.

    Args:
        value: What is given.
        where: What an error begins with.

    Raises:
        FileNotFoundError: No such file.
        ImportError: Pillow is not installed.
        ValueError: No picture; the text names the file.
    """
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        held = value["bytes"]
        value = value["path"] if held is None else io.BytesIO(held)
    if not isinstance(value, str | Path | io.BytesIO):
        return value
    if not isinstance(value, io.BytesIO) and not Path(value).is_file():
        raise FileNotFoundError(f"{where}{value} does not exist: give the path of a picture.")
    pillow = require("PIL.Image", "images", "reading pictures")
    try:
        # From memory: no file stays open, and frames can be counted later.
        file = value if isinstance(value, io.BytesIO) else io.BytesIO(Path(value).read_bytes())
        picture = pillow.open(file)
        picture.load()
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        named = "bytes" if isinstance(value, io.BytesIO) else value
        raise ValueError(f"{where}{named}: no picture that Pillow can read ({error}).") from error
    return picture


def pixels_of(value: Any, where: str = "") -> Any:
    """RGB pixels of a picture of Pillow, or of a path to one; anything else as it is."""
    found = opened(value, where)
    return rgb(found) if hasattr(found, "getbands") else found


def numbers_of(mask: Any, where: str = "") -> Any:
    """The numbers of a mask that is a picture or a path to one, turned upright; anything else as it is."""
    found = opened(mask, where)
    return np.asarray(upright(found)) if hasattr(found, "getbands") else found


def rgb(picture: Any) -> UInt8[np.ndarray, "height width 3"]:
    """A picture of Pillow as people see it: upright, RGB of 8 bits, grey and palette converted, no alpha.

    Raises:
        ValueError: Its numbers have no range that would say what is black and what is white.
    """
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
        warnings.warn(
            f"a picture ({picture.format}) holds {picture.n_frames} frames, number {picture.tell()} is read: "
            "give each that is meant, such as PIL.ImageSequence.all_frames(picture).",
            FramesWarning,
            stacklevel=users_line(),
        )
    shown = upright(picture)
    if shown.mode not in ("I", "F") and not shown.mode.startswith("I;"):
        return np.array(shown.convert("RGB"), dtype=np.uint8)
    # Pillow would cut off all above 255, and show 16 bits as white.
    grey = np.asarray(shown)
    most = 65535 if shown.mode != "F" and (grey.max() > 255 or shown.mode.startswith("I;16")) else 255
    if not np.isfinite(grey).all() or grey.min() < 0 or grey.max() > most or (grey != np.round(grey)).any():
        raise ValueError(
            f"a picture of mode {shown.mode} holds {grey.min():g} to {grey.max():g}: say what is white, and "
            "give uint8 [height, width, 3]."
        )
    scaled = np.round(grey * (255 / most)).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, axis=2)


def upright(image: Any) -> Any:
    """A PIL image as people see it: turned as its EXIF orientation says, which cameras write.

    Raises:
        ImportError: Pillow is not installed.
    """
    # Pillow stores the pixels as the sensor had them; viewers and annotation tools turn them.
    return require("PIL.ImageOps", "images", "turning pictures upright").exif_transpose(image)


def _mask(name: str, concept: Any, mask: Any, size: tuple[int, ...]) -> Bool[np.ndarray, "height width"]:
    if not isinstance(concept, str):
        raise ValueError(
            f"sample {name!r}: the key {concept!r} of its masks is no string: give {{concept: mask}}."
        )
    name_of(f"sample {name!r}: a concept of its masks", concept)
    return _mask_of_size(f"sample {name!r}: the mask of {concept!r}", mask, size)


def _mask_of_size(where: str, mask: Any, size: tuple[int, ...]) -> Bool[np.ndarray, "height width"]:
    mask = numbers_of(mask, f"{where}: ")
    array = bool_like(mask)
    if array is None:
        found = np.asarray(mask, dtype=object if isinstance(mask, list | tuple) else None)
        held = f" and holds {np.unique(found)[-1]}" if found.dtype.kind in "iu" and found.size else ""
        raise ValueError(
            f"{where} is {found.dtype}{held}, expected bool: say which "
            "pixels are in it, e.g. mask > 0 or mask > 0.5 (whole numbers are read where they are 0 and 1, "
            "or 0 and 255)."
        )
    if array.shape != size:
        turned = " Is it turned? Pictures are read as their EXIF orientation shows them."
        why = turned if array.shape == size[::-1] else ""
        shape = " x ".join(map(str, array.shape)) or "a single value"
        raise ValueError(
            f"{where} is {shape}, the image {size[0]} x {size[1]}: give masks of the image before any "
            f"processing.{why}"
        )
    return array


def bool_like(mask: Any) -> Bool[np.ndarray, "..."] | None:
    """A mask as truth values: of bool, or of whole numbers that are 0 and 1, or 0 and 255; else None.

    Programs that draw write 255 for what is drawn.
    """
    try:
        array = np.asarray(mask)
    except ValueError:
        return None
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iu":
        return None
    inside = array != 0
    held = array[inside]
    return inside if not held.size or ((held == held[0]).all() and held[0] in (1, 255)) else None


def _box(name: str, box: Any) -> tuple[str, float, float, float, float]:
    box = tuple(map(scalar, box)) if isinstance(box, Iterable) and not isinstance(box, str) else box
    if (
        not isinstance(box, tuple)
        or len(box) != 5
        or not isinstance(box[0], str)
        or not all(_is_edge(edge) for edge in box[1:])
    ):
        raise ValueError(
            f"sample {name!r}: the box {box!r:.80} is not (concept, top, left, bottom, right): "
            "give the concept's name first, then four finite numbers in pixels."
        )
    concept, top, left, bottom, right = box
    name_of(f"sample {name!r}: the concept of a box", concept)
    return str(concept), float(top), float(left), float(bottom), float(right)


def _is_edge(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and bool(np.isfinite(float(value)))
