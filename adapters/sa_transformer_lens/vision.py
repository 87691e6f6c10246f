"""A TransformerBridge of a vision model as a host: its tokens are patches.

A token's `offsets` are its patch's box in pixels of the image as the user gave it. The class token,
and a distillation token if there is one, stand first and are never rows; nor are patches that show
padding alone. That token `n_special + k` is patch k, row by row, is measured when the model is
attached: only that token's embedding may change when only that patch of the input does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sa_plugin.checks import Law
from sa_plugin.data import Sample
from sa_plugin.host import Batch, HostInfo
from sa_plugin.images import Image
from sa_plugin.processor import Processor, read_processor
from sa_transformer_lens.bridge_host import BridgeHost, describe, number_format
from sa_transformer_lens.capture import capture
from sa_transformer_lens.fingerprint import fingerprint
from sa_transformer_lens.probe import demand, probe

EMBEDDED = "blocks.0.hook_resid_pre"
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


@dataclass(frozen=True, eq=False, repr=False)
class TransformerLensVisionHost(BridgeHost):
    """A checked TransformerBridge of a vision model; make one with `sa_plugin.attach(bridge)`.

    Attributes:
        processor: How images become pixel values.
        n_special: Tokens before the first patch.
        batch_tokens: Default size of batches.
    """

    processor: Processor
    n_special: int
    batch_tokens: int = 2048

    def batches(self, samples: Sequence[Sample], *, batch_tokens: int | None = None) -> list[Batch]:
        """Group images in order; all have as many tokens.

        Args:
            samples: The samples.
            batch_tokens: At most this many tokens a batch, the class token included (one image at
                least); by default what the host was attached with.

        Raises:
            ValueError: A sample is a text, or its pixels are no RGB image.
        """
        most = self.batch_tokens if batch_tokens is None else batch_tokens
        if most < 1:
            raise ValueError(f"batch_tokens is {most}; give a positive number.")
        images = [self._image(sample) for sample in samples]
        size = self.processor.size
        n_tokens = self.n_special + size[0] * size[1] // self.processor.patch**2
        step = max(1, most // n_tokens)
        starts = range(0, len(images), step)
        return [self._batch(images[start : start + step], start) for start in starts]

    def _image(self, sample: Sample) -> Image:
        if sample.image is None:
            raise ValueError(
                f"sample {sample.id!r} is a text; {self.info.model} reads images. Give samples of "
                "ConceptData.from_masks, or attach a text model."
            )
        pixels = sample.image.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
            raise ValueError(
                f"sample {sample.id!r} has pixels of {pixels.dtype} and shape {pixels.shape}: give "
                "uint8 [height, width, 3], RGB."
            )
        return sample.image

    def _batch(self, images: Sequence[Image], start: int) -> Batch:
        boxes, shown = [], []
        for image in images:
            height, width = image.pixels.shape[:2]
            shown.append(self.processor.shown((height, width)))
            boxes.append(self.processor.geometry((height, width)).boxes() * shown[-1][:, None])
        special = ((0, 0), (self.n_special, 0))
        # Double precision: in single, a box's edge at half a pixel falls on either side of it.
        offsets = np.pad(np.stack(boxes), (*special, (0, 0)))
        rows = torch.arange(start, start + len(images))
        return Batch(
            rows,
            PixelValues(images, self.processor),
            torch.from_numpy(np.pad(np.stack(shown), special)),
            torch.from_numpy(offsets),
            torch.zeros_like(rows) if self.n_special else None,
        )

    def probe_inputs(self) -> dict[str, Tensor]:
        """Noise."""
        return {"pixel_values": noise(self.processor.size)}

    def check_samples(self) -> list[Sample]:
        """Images of several sizes for `sa_plugin.checks.check`."""
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in CHECK_SIZES]
        return [Sample(f"image {k}", "", str(k), image=Image(x)) for k, x in enumerate(images)]

    def laws(self, samples: Sequence[Sample]) -> list[Law]:
        """The laws that only this adapter can measure: those of `attach` again."""
        seen = probe(self.bridge, self.forward_inputs(samples[0]), self.info.dtype)
        return [*seen.laws, patch_law(self.bridge, self.processor, self.n_special)]


def attach_vision(bridge: Any, processor: Any, batch_tokens: int) -> TransformerLensVisionHost:
    """Check a vision bridge; see `sa_transformer_lens.host.attach_bridge`."""
    source = getattr(bridge, "processor", None) if processor is None else processor
    architecture = bridge.cfg.architecture
    if source is None:
        raise ValueError(
            f"{architecture} has no image processor, so images cannot be read: attach(bridge, "
            "processor=AutoImageProcessor.from_pretrained(folder)), or give a "
            "sa_plugin.processor.Processor(size, patch, mode=...)."
        )
    config = bridge.original_model.config
    if not isinstance(config.patch_size, int):
        raise ValueError(f"{architecture} has patches {config.patch_size}: only square ones serve.")
    ours = read_processor(source, config.patch_size)
    takes = config.image_size
    takes = (takes, takes) if isinstance(takes, int) else tuple(takes)
    if ours.size != takes:
        raise ValueError(
            f"the processor makes inputs of {ours.size}, {bridge.cfg.model_name} takes {takes}: "
            "give attach(bridge, processor=...) with the model's size."
        )
    inputs = {"pixel_values": noise(takes)}
    seen = probe(bridge, inputs, number_format(bridge))
    tokens = capture(bridge, [EMBEDDED], inputs, EMBEDDED)[EMBEDDED].shape[1]
    n_special = tokens - takes[0] * takes[1] // ours.patch**2
    demand(bridge, patch_law(bridge, ours, n_special))
    info = HostInfo(
        **describe(bridge), block=seen.block, causal=seen.causal, bos=n_special > 0,
        fingerprint=fingerprint(bridge),
    )  # fmt: skip
    return TransformerLensVisionHost(bridge, info, seen.points, ours, n_special, batch_tokens)


def patch_law(bridge: Any, processor: Processor, n_special: int) -> Law:
    """Change one patch of the input, and see which token's embedding changes.

    Measured at the four corners, which tell rows from columns and show any offset.
    """
    name = f"patch k is token {n_special} + k, row by row"
    rows, columns = (side // processor.patch for side in processor.size)
    corners = sorted({0, columns - 1, (rows - 1) * columns, rows * columns - 1})
    pixels = noise(processor.size).repeat(1 + len(corners), 1, 1, 1)
    for k, patch in enumerate(corners, 1):
        top, left = (processor.patch * at for at in divmod(patch, columns))
        pixels[k, :, top : top + processor.patch, left : left + processor.patch] += 1.0
    embedded = capture(bridge, [EMBEDDED], {"pixel_values": pixels}, EMBEDDED)[EMBEDDED].float()
    change = (embedded[1:] - embedded[:1]).abs().amax(-1)
    wrong = 0
    for row, patch in zip(change, corners, strict=True):
        # Rows of one batch may differ by rounding.
        wrong += (row > 1e-3 * row.max()).nonzero().flatten().tolist() != [n_special + patch]
    return Law(name, float(wrong))


def noise(size: tuple[int, int]) -> Tensor:
    """One input plane of noise, the same each time."""
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
