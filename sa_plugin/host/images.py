"""Images to batches: what a vision model sees of an image, and where each patch of that lies.

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

Tokens are patches, and a token's `offsets` are its patch's box in pixels of the image as the user
gave it. The class token, and a distillation token if there is one, stand first and are never rows;
nor are patches that show padding alone. That token `n_special + k` is patch k, row by row, is
measured when a model is attached: only that token's embedding may change when only that patch of
the input does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from sa_plugin._check import require, require_known
from sa_plugin._face import face
from sa_plugin.data.images import Geometry, Image, require_rgb
from sa_plugin.data.loose import PICTURES
from sa_plugin.data.sample import Sample
from sa_plugin.host import mllama, siglip2
from sa_plugin.host.laws import Law
from sa_plugin.host.protocol import Batch

MODES = ("resize", "centre_crop", "letter_box")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = 3
# Above what resampling libraries differ by; a shift by half a pixel moves the test image by nine.
GREY_LEVELS = 3.0
# What is read of an image processor of transformers.
TILES = "max_image_tiles"
NAMES = (
    "do_resize",
    "size",
    "do_center_crop",
    "crop_size",
    "do_pad",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    TILES,
)
SIDES = ("height", "width", "shortest_edge", "longest_edge")
# Upright, on its side, smaller than any input plane, square.
CHECK_SIZES = ((90, 61), (48, 200), (17, 23), (64, 64))


@face
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
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0 or self.rescale <= 0:
            raise ValueError(
                f"mean {self.mean}, std {self.std}, rescale {self.rescale}: give three numbers each, one a "
                "colour, and nothing below or at 0 to divide by."
            )
        if self.resized is not None and self.mode != "centre_crop":
            raise ValueError(f"resized is for mode 'centre_crop', the mode is {self.mode!r}.")

    def pixel_values(self, pixels: UInt8[np.ndarray, "height width 3"]) -> Float[Tensor, "3 rows columns"]:
        """The input plane of one image, float32.

        Raises:
            ImportError: Pillow is not installed.
        """
        pil = require("PIL.Image", "images", "resizing images")
        height, width = self._resized(*pixels.shape[:2])
        small = pil.fromarray(np.ascontiguousarray(pixels)).resize((width, height), self.resample)
        plane = self._place(np.asarray(small))
        # In double precision and rounded once, as transformers rescales.
        values = (plane.astype(np.float64) * self.rescale).astype(np.float32)
        mean, std = (np.array(v, dtype=np.float32) for v in (self.mean, self.std))
        return torch.from_numpy(np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1)))

    def geometry(self, image: tuple[int, int]) -> Geometry:
        """Where an image of this height and width comes to lie."""
        new = self._resized(*image)
        scale = (new[0] / image[0], new[1] / image[1])
        top, left = self._corner(new)
        return Geometry(scale, (float(top), float(left)), self.size, self.patch)

    def shown(self, image: tuple[int, int]) -> Bool[np.ndarray, " patch"]:
        """Patches that show some of an image of this height and width, row by row.

        In whole input pixels, where no rounding of floats can let padding in.
        """
        new = self._resized(*image)
        axes = []
        for corner, side, plane in zip(self._corner(new), new, self.size, strict=True):
            start = np.arange(plane // self.patch) * self.patch
            # A patch shows something if it overlaps the image by a pixel, in whole input pixels.
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

    def _place(self, small: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
        plane = np.zeros((*self.size, 3), dtype=np.uint8)
        # A corner left of the plane cuts the image; one inside pads it with zeros.
        top, left = self._corner(small.shape[:2])
        part = small[max(0, -top) :, max(0, -left) :]
        part = part[: self.size[0] - max(0, top), : self.size[1] - max(0, left)]
        top, left = max(0, top), max(0, left)
        plane[top : top + part.shape[0], left : left + part.shape[1]] = part
        return plane


def _fit(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Sides of the largest copy inside `size`, in the arithmetic of Llama's processor."""
    # The side that fits worse decides; the other is rounded down, and is one pixel at least.
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
            "config, or a sa_plugin.host.images.Processor."
        )
    processor = _from_settings(_settings(source), type(source).__name__, patch)
    _demand_same(processor, source)
    return processor


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
    said = size if isinstance(size, Mapping) else {side: getattr(size, side, None) for side in SIDES}
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
        # A tiling processor is compared on the one tile that is used here.
        one = {TILES: 1} if processor.mode == "letter_box" else {}
        theirs = torch.as_tensor(source(images=image, return_tensors="pt", **one)["pixel_values"])
        theirs = theirs.flatten(0, -4)
        ours = processor.pixel_values(image)
        if theirs.shape[1:] != ours.shape:
            raise ValueError(
                f"{type(source).__name__} gives pixels of shape {tuple(theirs.shape[1:])}, its "
                f"settings say {tuple(ours.shape)}: give a Processor that does the same."
            )
        # Back to grey levels, in which libraries of resampling differ by a few.
        level = torch.tensor(processor.std)[:, None, None] / processor.rescale
        gap = float(((theirs[0] - ours) * level).abs().max())
        if not gap <= GREY_LEVELS:
            raise ValueError(
                f"{type(source).__name__} gives other pixels than its settings say (by "
                f"{gap:.0f} grey levels): it does more than resize, crop and normalise. Give a "
                "Processor that does the same."
            )


def _waves(size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    # Waves of unlike length and direction: shifts, flips and swapped channels all show.
    rows, columns = np.mgrid[: size[0] + size[0] // 3, : 2 * size[1]]
    waves = [np.sin(rows / 7), np.cos(columns / 9), np.sin((rows + 2 * columns) / 15)]
    return (127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


class PixelValues(Mapping[str, Tensor]):
    """The input of one batch, made when it is asked for: pixels of a whole split fill memory."""

    def __init__(self, images: Sequence[Image], processor: Processor) -> None:
        self.images, self.processor = tuple(images), processor

    def __getitem__(self, name: str) -> Tensor:
        if name != "pixel_values":
            raise KeyError(name)
        return torch.stack([self.processor.pixel_values(image.pixels) for image in self.images])

    def __iter__(self) -> Iterator[str]:
        return iter(("pixel_values",))

    def __len__(self) -> int:
        return 1


def processor_of(host: Any) -> Processor | None:
    """How a host's images become pixel values; None where it reads texts."""
    found = getattr(getattr(host, "reader", None), "processor", None)
    return found if isinstance(found, Processor) else None


@dataclass(frozen=True, eq=False)
class ImageReader:
    """What turns images into batches.

    Attributes:
        processor: How images become pixel values.
        model: Its name, for errors.
        n_special: Tokens before the first patch.
        n_after: Tokens behind the last one, which are no rows (Mllama pads, and has more tiles).
    """

    processor: Processor
    model: str
    n_special: int
    n_after: int = 0

    def batches(self, samples: Sequence[Sample], batch_tokens: int) -> list[Batch]:
        """Group images in order; all have as many tokens.

        Args:
            samples: The samples.
            batch_tokens: At most this many tokens a batch, special ones included (one image at
                least).

        Raises:
            ValueError: A sample is a text, its pixels are no RGB image, or `batch_tokens` is not
                positive.
        """
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}; give a positive number.")
        images = [_image(sample, self.model) for sample in samples]
        height, width = self.processor.size
        around = (self.n_special, self.n_after)
        step = max(1, batch_tokens // (height * width // self.processor.patch**2 + sum(around)))
        starts = range(0, len(images), step)
        return [_batch(images[start : start + step], start, self.processor, around) for start in starts]

    def check_samples(self) -> list[Sample]:
        """Images of several sizes for `sa_plugin.host.checks.check`."""
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in CHECK_SIZES]
        return [Sample(f"image {k}", "", str(k), image=Image(x)) for k, x in enumerate(images)]


def _image(sample: Sample, model: str) -> Image:
    if sample.image is None:
        # The path of a picture that is not there cannot be told from a text before a model is asked.
        lost = sample.text.lower().endswith(PICTURES)
        why = f" No file {sample.text[-60:]!r} is there." if lost else ""
        raise ValueError(
            f"sample {sample.id!r} is a text; {model} reads images.{why} Give samples of "
            "ConceptData.from_masks, or attach a text model."
        )
    pixels = sample.image.pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
        raise ValueError(
            f"sample {sample.id!r} has pixels of {pixels.dtype} and shape {pixels.shape}: give "
            "uint8 [height, width, 3], RGB."
        )
    return sample.image


def _batch(images: Sequence[Image], start: int, processor: Processor, around: tuple[int, int]) -> Batch:
    boxes, shown = [], []
    for image in images:
        height, width = image.pixels.shape[:2]
        shown.append(processor.shown((height, width)))
        # Boxes of patches that show padding alone are zero, as those of special tokens.
        boxes.append(processor.geometry((height, width)).boxes() * shown[-1][:, None])
    special = ((0, 0), around)
    # Double precision: in single, a box's edge at half a pixel falls on either side of it.
    offsets = np.pad(np.stack(boxes), (*special, (0, 0)))
    rows = torch.arange(start, start + len(images))
    return Batch(
        rows,
        PixelValues(images, processor),
        torch.from_numpy(np.pad(np.stack(shown), special)),
        torch.from_numpy(offsets),
        torch.zeros_like(rows) if around[0] else None,
    )


def model_processor(source: Any, config: Any, architecture: str, model: str) -> Processor:
    """A model's processor, once its geometry is known to be the model's.

    Args:
        source: An image processor of transformers, its config, or a `Processor`; or None.
        config: The model's configuration, with `patch_size` and `image_size` (of SigLIP-2 `num_patches`).
        architecture: Class name of the model, for errors.
        model: Its name, for errors.

    Raises:
        ValueError: There is none, its geometry is unknown, or its size is not the model's.
    """
    if source is None:
        raise ValueError(
            f"{architecture} has no image processor, so images cannot be read: attach(bridge, "
            "processor=AutoImageProcessor.from_pretrained(folder)), or give a "
            "sa_plugin.host.images.Processor(size, patch, mode=...)."
        )
    if not isinstance(config.patch_size, int):
        raise ValueError(f"{architecture} has patches {config.patch_size}: only square ones serve.")
    ours = read_processor(source, config.patch_size)
    takes = siglip2.input_side(config) if config.model_type == siglip2.VISION else config.image_size
    takes = (takes, takes) if isinstance(takes, int) else tuple(takes)
    if ours.size != takes:
        raise ValueError(
            f"the processor makes inputs of {ours.size}, {model} takes {takes}: give "
            "attach(bridge, processor=...) with the model's size."
        )
    return ours


def context_states(whole: Any, text: Any, image: Any, source: Any) -> Float[Tensor, "state d_model"]:
    """States of an image that a text stack attends to, on its device and in its format.

    Args:
        whole: The model with both towers.
        text: The text stack.
        image: uint8 `[height, width, 3]`, an `Image`, or the states themselves.
        source: For pixels: see `model_processor`.

    Raises:
        ValueError: The stack attends to no image, or `image` is none.
    """
    like, config = next(text.parameters()), text.config
    if getattr(config, "model_type", "") != mllama.TEXT:
        raise ValueError(f"{type(text).__name__} attends to no image: leave image out.")
    pixels = image.pixels if isinstance(image, Image) else image
    if not isinstance(pixels, np.ndarray):
        states = mllama.check_states(pixels, config.hidden_size)
        return states.to(like.device, like.dtype)
    require_rgb("image", pixels)
    vision, _ = mllama.eyes(whole)
    ours = model_processor(source, vision.config, type(vision).__name__, type(whole).__name__)
    states = mllama.image_states(whole, ours.pixel_values(pixels)[None])
    return states.to(like.device, like.dtype)


def patch_law(processor: Processor, n_special: int, embed: Callable[[Tensor], Tensor]) -> Law:
    """Change one patch of the input, and see which token's embedding changes.

    Measured at the four corners, which tell rows from columns and show any offset.

    Args:
        processor: For the sizes of inputs and patches.
        n_special: Tokens before the first patch.
        embed: Pixel values to the residual stream before the first block.
    """
    name = f"patch k is token {n_special} + k, row by row"
    rows, columns = (side // processor.patch for side in processor.size)
    corners = sorted({0, columns - 1, (rows - 1) * columns, rows * columns - 1})
    # The first input is unchanged; each other has one corner patch moved.
    pixels = noise(processor.size).repeat(1 + len(corners), 1, 1, 1)
    for k, patch in enumerate(corners, 1):
        top, left = (processor.patch * at for at in divmod(patch, columns))
        pixels[k, :, top : top + processor.patch, left : left + processor.patch] += 1.0
    embedded = embed(pixels).float()
    change = (embedded[1:] - embedded[:1]).abs().amax(-1)
    wrong = 0
    for row, patch in zip(change, corners, strict=True):
        # Rows of one batch may differ by rounding.
        wrong += (row > 1e-3 * row.max()).nonzero().flatten().tolist() != [n_special + patch]
    return Law(name, float(wrong))


def noise(size: tuple[int, int]) -> Tensor:
    """One input plane of noise, the same each time."""
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
