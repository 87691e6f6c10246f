"""Images to batches: tokens are patches, and where each patch lies in the image is measured.

A token's `offsets` are its patch's box in pixels of the image as the user gave it. The class token,
and a distillation token if there is one, stand first and are never rows; nor are patches that show
padding alone. That token `n_special + k` is patch k, row by row, is measured when a model is
attached: only that token's embedding may change when only that patch of the input does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin import _mllama
from sa_plugin.checks import Law
from sa_plugin.data import Sample
from sa_plugin.host import Batch
from sa_plugin.images import Image, require_rgb
from sa_plugin.processor import Processor, read_processor

# Upright, on its side, smaller than any input plane, square.
CHECK_SIZES = ((90, 61), (48, 200), (17, 23), (64, 64))


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


def image_batches(
    samples: Sequence[Sample],
    processor: Processor,
    *,
    model: str,
    n_special: int,
    batch_tokens: int,
    n_after: int = 0,
) -> list[Batch]:
    """Group images in order; all have as many tokens.

    Args:
        samples: The samples.
        processor: How images become pixel values.
        model: Its name, for errors.
        n_special: Tokens before the first patch.
        batch_tokens: At most this many tokens a batch, special ones included (one image at least).
        n_after: Tokens behind the last patch, which are no rows.

    Raises:
        ValueError: A sample is a text, its pixels are no RGB image, or `batch_tokens` is not
            positive.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens}; give a positive number.")
    images = [_image(sample, model) for sample in samples]
    height, width = processor.size
    step = max(1, batch_tokens // (n_special + height * width // processor.patch**2 + n_after))
    around = (n_special, n_after)
    starts = range(0, len(images), step)
    return [_batch(images[start : start + step], start, processor, around) for start in starts]


def _image(sample: Sample, model: str) -> Image:
    if sample.image is None:
        raise ValueError(
            f"sample {sample.id!r} is a text; {model} reads images. Give samples of "
            "ConceptData.from_masks, or attach a text model."
        )
    pixels = sample.image.pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
        raise ValueError(
            f"sample {sample.id!r} has pixels of {pixels.dtype} and shape {pixels.shape}: give "
            "uint8 [height, width, 3], RGB."
        )
    return sample.image


def _batch(
    images: Sequence[Image], start: int, processor: Processor, around: tuple[int, int]
) -> Batch:
    boxes, shown = [], []
    for image in images:
        height, width = image.pixels.shape[:2]
        shown.append(processor.shown((height, width)))
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


def check_images() -> list[Sample]:
    """Images of several sizes for `sa_plugin.checks.check`."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in CHECK_SIZES]
    return [Sample(f"image {k}", "", str(k), image=Image(x)) for k, x in enumerate(images)]


def model_processor(source: Any, config: Any, architecture: str, model: str) -> Processor:
    """A model's processor, once its geometry is known to be the model's.

    Args:
        source: An image processor of transformers, its config, or a `Processor`; or None.
        config: The model's configuration, with `patch_size` and `image_size`.
        architecture: Class name of the model, for errors.
        model: Its name, for errors.

    Raises:
        ValueError: There is none, its geometry is unknown, or its size is not the model's.
    """
    if source is None:
        raise ValueError(
            f"{architecture} has no image processor, so images cannot be read: attach(bridge, "
            "processor=AutoImageProcessor.from_pretrained(folder)), or give a "
            "sa_plugin.processor.Processor(size, patch, mode=...)."
        )
    if not isinstance(config.patch_size, int):
        raise ValueError(f"{architecture} has patches {config.patch_size}: only square ones serve.")
    ours = read_processor(source, config.patch_size)
    takes = config.image_size
    takes = (takes, takes) if isinstance(takes, int) else tuple(takes)
    if ours.size != takes:
        raise ValueError(
            f"the processor makes inputs of {ours.size}, {model} takes {takes}: give "
            "attach(bridge, processor=...) with the model's size."
        )
    return ours


def context_states(
    whole: Any, text: Any, image: Any, source: Any
) -> Float[Tensor, "state d_model"]:
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
    if getattr(config, "model_type", "") != _mllama.TEXT:
        raise ValueError(f"{type(text).__name__} attends to no image: leave image out.")
    pixels = image.pixels if isinstance(image, Image) else image
    if not isinstance(pixels, np.ndarray):
        states = _mllama.check_states(pixels, config.hidden_size)
        return states.to(like.device, like.dtype)
    require_rgb("image", pixels)
    vision, _ = _mllama.eyes(whole)
    ours = model_processor(source, vision.config, type(vision).__name__, type(whole).__name__)
    states = _mllama.image_states(whole, ours.pixel_values(pixels)[None])
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
