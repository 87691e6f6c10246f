"""An nnsight model of images as a host; see `sa_plugin.patches` for its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sa_nnsight.envoy_host import EnvoyHost, describe
from sa_nnsight.paths import Places
from sa_nnsight.probe import probe
from sa_nnsight.reading import read_taps, tap_of
from sa_plugin import _mllama
from sa_plugin.checks import Law
from sa_plugin.data import Sample
from sa_plugin.host import Batch, HostInfo
from sa_plugin.patches import check_images, image_batches, model_processor, noise, patch_law
from sa_plugin.processor import Processor
from sa_plugin.structure import demand


@dataclass(frozen=True, eq=False, repr=False)
class NNsightVisionHost(EnvoyHost):
    """A checked nnsight model of images; make one with `sa_plugin.attach(model)`.

    Attributes:
        processor: How images become pixel values.
        n_special: Tokens before the first patch.
        n_after: Tokens behind the last one, which are no rows (Mllama pads, and has more tiles).
        batch_tokens: Default size of batches.
    """

    processor: Processor
    n_special: int
    n_after: int = 0
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
        return image_batches(
            samples, self.processor, model=self.info.model, n_special=self.n_special,
            n_after=self.n_after,
            batch_tokens=self.batch_tokens if batch_tokens is None else batch_tokens,
        )  # fmt: skip

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What the model is called with for a batch, on its device."""
        return self.pixel_inputs(batch.inputs["pixel_values"])

    def pixel_inputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """What the model is called with for pixels `[image, 3, height, width]`."""
        return pixel_inputs(self.places, pixels)

    def probe_sample(self) -> Sample:
        """Noise."""
        return check_images()[0]

    def check_samples(self) -> list[Sample]:
        """Images of several sizes for `sa_plugin.checks.check`."""
        return check_images()

    def laws(self, samples: Sequence[Sample]) -> list[Law]:
        """The laws that only this adapter can measure: those of `attach` again."""
        seen = probe(self.model, self.places, self.forward_inputs(samples[0]), self.info.dtype)
        return [*seen.laws, _patch_law(self.model, self.places, self.processor, self.n_special)]


def attach_vision(
    model: Any, places: Places, processor: Any, batch_tokens: int, final_norm: bool = False
) -> NNsightVisionHost:
    """Check a vision model; see `sa_nnsight.attach.attach_local`."""
    known = describe(model, places, final_norm=final_norm)
    ours = model_processor(processor, places.root.config, places.architecture, known["model"])
    inputs = pixel_inputs(places, noise(ours.size))
    seen = probe(model, places, inputs, known["dtype"], final_norm=final_norm)
    tokens = _embed(model, places, noise(ours.size)).shape[1]
    patches = ours.size[0] * ours.size[1] // ours.patch**2
    # Everything that is no patch stands first, but in Mllama.
    n_special = 1 if places.kind == _mllama.VISION else tokens - patches
    demand(places.architecture, _patch_law(model, places, ours, n_special))
    info = HostInfo(**known, block=seen.block, causal=seen.causal, bos=n_special > 0)
    after = tokens - patches - n_special
    return NNsightVisionHost(model, info, places, seen.order, ours, n_special, after, batch_tokens)


def pixel_inputs(places: Places, pixels: Tensor) -> dict[str, Tensor]:
    """What a model is called with for pixels, on its device and in its number format."""
    if places.kind == _mllama.VISION:
        return _mllama.tile_inputs(places.root, pixels)
    like = next(places.root.parameters())
    return {"pixel_values": pixels.to(like.device, like.dtype)}


def _patch_law(model: Any, places: Places, processor: Processor, n_special: int) -> Law:
    return patch_law(processor, n_special, lambda pixels: _embed(model, places, pixels))


def _embed(model: Any, places: Places, pixels: Tensor) -> Tensor:
    tap = tap_of(model, places, 0, "resid_pre")
    return read_taps(model, pixel_inputs(places, pixels), [tap])[tap]
