"""What an image goes through before a vision model sees it, and the geometry of exactly that.

| mode | the image is | the input plane holds |
|---|---|---|
| `resize` | squashed to `size` | all of it |
| `centre_crop` | resized to `resized`, then cut | its centre; zeros where it is smaller |
| `letter_box` | the largest copy that fits `size` | all of it, upper left, zeros elsewhere |

Then pixels are multiplied by `rescale` and normalised by `mean` and `std`, as transformers' image
processors do it with Pillow, to the bit. Resized sides are whole pixels, rounded down as there:
`int(shortest * long / short)` for a crop (torchvision's rule), `floor(side * scale)` for a
letter-box (Llama's). The two axes therefore have slightly different scales; `geometry` says which.

torchvision's own resampling, which transformers uses where torchvision is installed, differs from
Pillow's by a grey level here and there; ours is Pillow's wherever it runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from sa_plugin._names import require_known
from sa_plugin._optional import require
from sa_plugin.images import Geometry

MODES = ("resize", "centre_crop", "letter_box")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = 3
# Above what resampling libraries differ by; a shift by half a pixel moves the test image by nine.
GREY_LEVELS = 3.0


@dataclass(frozen=True)
class Processor:
    """How images become pixel values.

    Attributes:
        size: Height and width of the input plane.
        patch: Side of a patch, in input pixels.
        mode: "resize", "centre_crop" or "letter_box".
        resized: For a crop: length of the shorter side before it, or height and width; by default
            the shorter side of `size`.
        mean: By channel, of pixels from 0 to 1.
        std: By channel.
        resample: Pillow's number of the filter (2 bilinear, 3 bicubic).
        rescale: Factor from grey levels to pixels.

    Example:
        >>> Processor((224, 224), 14, mode="centre_crop", resized=256).geometry((512, 300)).grid
        (16, 16)
    """

    size: tuple[int, int]
    patch: int
    mode: str = "resize"
    resized: int | tuple[int, int] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resample: int = BICUBIC
    rescale: float = 1 / 255

    def __post_init__(self) -> None:
        require_known("mode", self.mode, MODES)
        if min(self.size) < self.patch or self.patch < 1:
            raise ValueError(f"size {self.size} holds no patch of side {self.patch}.")
        if any(side % self.patch for side in self.size):
            raise ValueError(
                f"size {self.size} is no multiple of the patch {self.patch}: pixels at the end "
                "would reach no token."
            )
        if self.resized is not None and self.mode != "centre_crop":
            raise ValueError(f"resized is for mode 'centre_crop', the mode is {self.mode!r}.")

    def pixel_values(
        self, pixels: UInt8[np.ndarray, "height width 3"]
    ) -> Float[Tensor, "3 rows columns"]:
        """The input plane of one image, float32.

        Raises:
            ImportError: Pillow is not installed.
        """
        pil = require("PIL.Image", "images", "resizing images")
        height, width = self._resized(*pixels.shape[:2])
        small = pil.fromarray(np.ascontiguousarray(pixels)).resize((width, height), self.resample)
        plane = self._place(np.asarray(small))
        values = (plane.astype(np.float64) * self.rescale).astype(np.float32)
        mean, std = (np.array(v, dtype=np.float32) for v in (self.mean, self.std))
        return torch.from_numpy(np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1)))

    def geometry(self, image: tuple[int, int]) -> Geometry:
        """Where an image of this height and width comes to lie."""
        new = self._resized(*image)
        scale = (new[0] / image[0], new[1] / image[1])
        top, left = self._corner(new)
        return Geometry(scale, (float(top), float(left)), self.size, self.patch, image)

    def shown(self, image: tuple[int, int]) -> Bool[np.ndarray, " patch"]:
        """Patches that show some of an image of this height and width, row by row.

        `Geometry.inside` in whole input pixels, where no rounding of floats can let padding in.
        """
        new = self._resized(*image)
        axes = []
        for corner, side, plane in zip(self._corner(new), new, self.size, strict=True):
            start = np.arange(plane // self.patch) * self.patch
            axes.append((start < corner + side) & (start + self.patch > corner))
        return np.outer(*axes).ravel()

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.mode == "resize":
            return self.size
        if self.mode == "letter_box":
            return _fit(height, width, self.size)
        if isinstance(self.resized, tuple):
            return self.resized
        side = min(self.size) if self.resized is None else self.resized
        longer = int(side * max(height, width) / min(height, width))
        return (longer, side) if width <= height else (side, longer)

    def _corner(self, new: tuple[int, int]) -> tuple[int, int]:
        """Where the resized image's upper left corner comes to lie."""
        if self.mode != "centre_crop":
            return 0, 0
        return -((new[0] - self.size[0]) // 2), -((new[1] - self.size[1]) // 2)

    def _place(
        self, small: UInt8[np.ndarray, "height width 3"]
    ) -> UInt8[np.ndarray, "rows columns 3"]:
        plane = np.zeros((*self.size, 3), dtype=np.uint8)
        top, left = self._corner(small.shape[:2])
        part = small[max(0, -top) :, max(0, -left) :]
        part = part[: self.size[0] - max(0, top), : self.size[1] - max(0, left)]
        top, left = max(0, top), max(0, left)
        plane[top : top + part.shape[0], left : left + part.shape[1]] = part
        return plane


def _fit(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Sides of the largest copy inside `size`, in the arithmetic of Llama's processor."""
    by_height, by_width = size[0] / height, size[1] / width
    if by_width < by_height:
        return min(math.floor(height * by_width) or 1, size[0]), size[1]
    return size[0], min(math.floor(width * by_height) or 1, size[1])


def read_processor(source: Any, patch: int) -> Processor:
    """A `Processor` that does what an image processor of transformers does.

    Of Mllama's, which cuts an image into tiles, it is what it does with one tile.

    Args:
        source: A `Processor`, an image processor of transformers (or what holds one, such as a
            `CLIPProcessor`), or its config as a mapping.
        patch: Side of the model's patches.

    Raises:
        ValueError: It does something that a `Processor` cannot say, or, when it can be called,
            gives other pixels for a test image; the text says what to do.
    """
    if isinstance(source, Processor):
        if source.patch != patch:
            raise ValueError(f"the processor's patch is {source.patch}, the model's {patch}.")
        return source
    source = getattr(source, "image_processor", source)
    if isinstance(source, Mapping):
        return _from_settings(dict(source), "the config", patch)
    if not hasattr(source, "image_mean"):
        raise ValueError(
            f"a {type(source).__name__} is no image processor: give one of transformers, its "
            "config, or a sa_plugin.processor.Processor."
        )
    processor = _from_settings(_settings(source), type(source).__name__, patch)
    _demand_same(processor, source)
    return processor


TILES = "max_image_tiles"
NAMES = (
    "do_resize", "size", "do_center_crop", "crop_size", "do_pad", "resample",
    "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", TILES,
)  # fmt: skip
SIDES = ("height", "width", "shortest_edge", "longest_edge")


def _settings(source: Any) -> dict[str, Any]:
    return {name: getattr(source, name, None) for name in NAMES}


def _from_settings(given: Mapping[str, Any], name: str, patch: int) -> Processor:
    size, crop = _sides(given.get("size")), _sides(given.get("crop_size"))
    exact, shorter = _pair(size), size.get("shortest_edge") if len(size) == 1 else None
    cut, tiled = bool(given.get("do_center_crop")), given.get(TILES) is not None
    target = _pair(crop) if cut else exact
    if bool(given.get("do_pad")) != tiled or not given.get("do_resize", True) or (cut and tiled):
        raise ValueError(_unknown(name, given))
    if target is None or (exact is None and shorter is None):
        raise ValueError(_unknown(name, given))
    normal = given.get("do_normalize", True)
    factor = given.get("rescale_factor") or 1 / 255
    return Processor(
        target,
        patch,
        mode="centre_crop" if cut else "letter_box" if tiled else "resize",
        resized=(exact or shorter) if cut else None,
        mean=tuple(given["image_mean"]) if normal else (0.0, 0.0, 0.0),
        std=tuple(given["image_std"]) if normal else (1.0, 1.0, 1.0),
        resample=int(given["resample"]),
        rescale=factor if given.get("do_rescale", True) else 1.0,
    )


def _sides(size: Any) -> dict[str, int]:
    """What is said of the sides; a single number, which old configs hold, says too little."""
    if size is None or isinstance(size, int):
        return {}
    said = (
        size if isinstance(size, Mapping) else {side: getattr(size, side, None) for side in SIDES}
    )
    return {side: int(value) for side, value in said.items() if value}


def _pair(sides: Mapping[str, int]) -> tuple[int, int] | None:
    return (sides["height"], sides["width"]) if sides.keys() == {"height", "width"} else None


def _unknown(name: str, given: Mapping[str, Any]) -> str:
    shown = ("do_resize", "size", "do_center_crop", "crop_size", "do_pad")
    settings = ", ".join(f"{key}={given.get(key)}" for key in shown)
    return (
        f"{name} places images in a way that is not known here ({settings}), so patches could not "
        "be labelled: give attach(bridge, processor=Processor(size, patch, mode=...)) that does "
        f"the same; modes are {', '.join(MODES)}."
    )


def _demand_same(processor: Processor, source: Any) -> None:
    """Compare pixels of a test image, upright and on its side."""
    for turn in (0, 1):
        image = np.ascontiguousarray(np.rot90(_waves(processor.size), turn))
        one = {TILES: 1} if processor.mode == "letter_box" else {}
        theirs = torch.as_tensor(source(images=image, return_tensors="pt", **one)["pixel_values"])
        theirs = theirs.flatten(0, -4)
        ours = processor.pixel_values(image)
        if theirs.shape[1:] != ours.shape:
            raise ValueError(
                f"{type(source).__name__} gives pixels of shape {tuple(theirs.shape[1:])}, its "
                f"settings say {tuple(ours.shape)}: give a Processor that does the same."
            )
        level = torch.tensor(processor.std)[:, None, None] / processor.rescale
        gap = float(((theirs[0] - ours) * level).abs().max())
        if not gap <= GREY_LEVELS:
            raise ValueError(
                f"{type(source).__name__} gives other pixels than its settings say (by "
                f"{gap:.0f} grey levels): it does more than resize, crop and normalise. Give a "
                "Processor that does the same."
            )


def _waves(size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    rows, columns = np.mgrid[: size[0] + size[0] // 3, : 2 * size[1]]
    waves = [np.sin(rows / 7), np.cos(columns / 9), np.sin((rows + 2 * columns) / 15)]
    return (127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
