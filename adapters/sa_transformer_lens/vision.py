"""A TransformerBridge of a vision model as a host; see `sa_plugin.patches` for its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sa_plugin import _mllama
from sa_plugin.checks import Law
from sa_plugin.data import Sample
from sa_plugin.host import Batch, HostInfo
from sa_plugin.patches import check_images, image_batches, model_processor, noise, patch_law
from sa_plugin.processor import Processor
from sa_plugin.structure import demand
from sa_transformer_lens.bridge_host import BridgeHost, describe, number_format
from sa_transformer_lens.capture import capture
from sa_transformer_lens.fingerprint import fingerprint
from sa_transformer_lens.probe import probe

EMBEDDED = "blocks.0.hook_resid_pre"


@dataclass(frozen=True, eq=False, repr=False)
class TransformerLensVisionHost(BridgeHost):
    """A checked TransformerBridge of a vision model; make one with `sa_plugin.attach(bridge)`.

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

    def probe_inputs(self) -> dict[str, Tensor]:
        """Noise."""
        return {"pixel_values": noise(self.processor.size)}

    def check_samples(self) -> list[Sample]:
        """Images of several sizes for `sa_plugin.checks.check`."""
        return check_images()

    def laws(self, samples: Sequence[Sample]) -> list[Law]:
        """The laws that only this adapter can measure: those of `attach` again."""
        seen = probe(self.bridge, self.forward_inputs(samples[0]), self.info.dtype)
        return [*seen.laws, _patch_law(self.bridge, self.processor, self.n_special)]


def attach_vision(
    bridge: Any, processor: Any, batch_tokens: int, final_norm: bool = False
) -> TransformerLensVisionHost:
    """Check a vision bridge; see `sa_transformer_lens.host.attach_bridge`."""
    source = getattr(bridge, "processor", None) if processor is None else processor
    architecture = bridge.cfg.architecture
    config = bridge.original_model.config
    ours = model_processor(source, config, architecture, bridge.cfg.model_name)
    inputs = {"pixel_values": noise(ours.size)}
    seen = probe(bridge, inputs, number_format(bridge))
    tokens = capture(bridge, [EMBEDDED], inputs, EMBEDDED)[EMBEDDED].shape[1]
    patches = ours.size[0] * ours.size[1] // ours.patch**2
    # Everything that is no patch stands first, but in Mllama.
    mllama = str(config.model_type) == _mllama.VISION
    n_special = 1 if mllama else tokens - patches
    demand(architecture, _patch_law(bridge, ours, n_special))
    info = HostInfo(
        **describe(bridge, final_norm=final_norm), block=seen.block, causal=seen.causal,
        bos=n_special > 0, fingerprint=fingerprint(bridge, final_norm=final_norm),
    )  # fmt: skip
    after = tokens - patches - n_special
    return TransformerLensVisionHost(
        bridge, info, seen.points, ours, n_special, after, batch_tokens
    )


def _patch_law(bridge: Any, processor: Processor, n_special: int) -> Law:
    def embed(pixels: Tensor) -> Tensor:
        return capture(bridge, [EMBEDDED], {"pixel_values": pixels}, EMBEDDED)[EMBEDDED]

    return patch_law(processor, n_special, embed)
