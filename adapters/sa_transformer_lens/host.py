"""A TransformerBridge of a text model as a host, and `attach` for every bridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import torch
from torch import Tensor

from sa_plugin.checks import LIMITS, Law, relative_difference
from sa_plugin.data import Sample
from sa_plugin.host import Batch, HostInfo, Site
from sa_transformer_lens import tokenise
from sa_transformer_lens.bridge_host import BridgeHost, describe, number_format, refuse_training
from sa_transformer_lens.fingerprint import fingerprint
from sa_transformer_lens.probe import demand, probe
from sa_transformer_lens.vision import TransformerLensVisionHost, attach_vision

PROBE_TEXT = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True, eq=False, repr=False)
class TransformerLensHost(BridgeHost):
    """A checked TransformerBridge of a text model; make one with `sa_plugin.attach(bridge)`.

    Attributes:
        tokenizer: By its own rule for special tokens, see `tokenise`.
        padding_side: Where padding goes; it changes no number.
        batch_tokens: Default size of batches.
    """

    tokenizer: Any
    padding_side: tokenise.PaddingSide = "right"
    batch_tokens: int = 2048

    def batches(self, samples: Sequence[Sample], *, batch_tokens: int | None = None) -> list[Batch]:
        """Tokenise and group samples of like length, whole texts only.

        Args:
            samples: The samples.
            batch_tokens: At most this many tokens a batch, padding included (one sample at least);
                by default what the host was attached with.

        Raises:
            ValueError: A sample is an image, or a text has no token or more than the model's
                context holds.
        """
        return self._batches(samples, self.batch_tokens if batch_tokens is None else batch_tokens)

    def _batches(self, samples: Sequence[Sample], most: int, extra: int = 0) -> list[Batch]:
        self._refuse_images(samples)
        tokens = tokenise.encode(self.tokenizer, [sample.text for sample in samples])
        context = self.bridge.cfg.n_ctx
        for sample, row in zip(samples, tokens, strict=True):
            if len(row.ids) > context:
                raise ValueError(
                    f"sample {sample.id!r} has {len(row.ids)} tokens; {self.info.model} takes "
                    f"{context}. Nothing is cut off silently: split the text into shorter samples."
                )
        pad = self.tokenizer.pad_token_id
        return tokenise.make_batches(
            samples, tokens, batch_tokens=most, side=self.padding_side, extra=extra,
            pad=0 if pad is None else pad,
        )  # fmt: skip

    def _refuse_images(self, samples: Sequence[Sample]) -> None:
        image = next((sample for sample in samples if sample.image is not None), None)
        if image is not None:
            raise ValueError(
                f"sample {image.id!r} is an image; {self.info.model} reads texts. Attach a vision "
                "model (load_bridge takes ViT, DINOv2 and CLIP folders)."
            )

    def probe_inputs(self) -> dict[str, Tensor]:
        """A short text."""
        return self.forward_inputs(Sample("probe", PROBE_TEXT, "probe"))

    def laws(self, samples: Sequence[Sample]) -> list[Law]:
        """The laws that only this adapter can measure: those of `attach` again, and padding."""
        longest = max(samples, key=lambda sample: len(sample.text))
        seen = probe(self.bridge, self.forward_inputs(longest), self.info.dtype)
        return [*seen.laws, _padding_law(self, samples, get_args(tokenise.PaddingSide))]


def attach_bridge(
    bridge: Any,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    padding_side: str = "right",
    batch_tokens: int = 2048,
    device: str | torch.device | None = None,
) -> TransformerLensHost | TransformerLensVisionHost:
    """Check a bridge once, by a few forward passes over a short input, and wrap it.

    Args:
        bridge: A TransformerBridge of a text or vision model, in eval mode.
        tokenizer: For texts. Used as it is; by default the bridge's, without a BOS token that only
            TransformerLens put there (see `tokenise`).
        processor: For images: an image processor of transformers, its config, or a
            `sa_plugin.processor.Processor`; by default the bridge's.
        padding_side: Of texts: "right" or "left".
        batch_tokens: Default size of batches.
        device: Where to move the bridge; by default it stays where it is.

    Raises:
        ValueError: Training mode, no tokenizer or one without offsets, no image processor or one
            whose geometry is unknown, a hook that does not fire exactly once, a residual that is
            not the model's own hidden state or that padding changes, or blocks that add up in no
            known way.
    """
    if padding_side not in get_args(tokenise.PaddingSide):
        raise ValueError(f"padding_side {padding_side!r} is unknown: use 'left' or 'right'.")
    refuse_training(bridge)
    if not hasattr(bridge, "blocks"):
        raise ValueError(f"{bridge.cfg.architecture} has no single stack of blocks to read.")
    if device is not None:
        bridge.to(device)
    if getattr(bridge.cfg, "is_visual_model", False):
        if tokenizer is not None:
            raise ValueError(f"{bridge.cfg.architecture} reads images: leave the tokenizer out.")
        return attach_vision(bridge, processor, batch_tokens)
    if processor is not None:
        raise ValueError(f"{bridge.cfg.architecture} reads texts: leave the processor out.")
    return _attach_text(bridge, tokenizer, cast(tokenise.PaddingSide, padding_side), batch_tokens)


def _attach_text(
    bridge: Any, tokenizer: Any, side: tokenise.PaddingSide, batch_tokens: int
) -> TransformerLensHost:
    if tokenizer is None:
        tokenizer = tokenise.own_tokenizer(bridge.tokenizer)
    tokenise.check_tokenizer(tokenizer)
    ids = torch.from_numpy(tokenise.encode(tokenizer, [PROBE_TEXT])[0].ids)[None]
    if ids.shape[1] < 2:
        raise ValueError(f"the tokenizer makes {ids.shape[1]} token of {PROBE_TEXT!r}.")
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    seen = probe(bridge, inputs, number_format(bridge))
    info = HostInfo(
        **describe(bridge), block=seen.block, causal=seen.causal,
        bos=tokenise.puts_special_first(tokenizer), fingerprint=fingerprint(bridge),
        tokenizer=tokenise.digest(tokenizer),
    )  # fmt: skip
    host = TransformerLensHost(bridge, info, seen.points, tokenizer, side, batch_tokens)
    demand(bridge, _padding_law(host, [Sample("probe", PROBE_TEXT, "probe")], [side]))
    return host


def _padding_law(
    host: TransformerLensHost, samples: Sequence[Sample], sides: Sequence[tokenise.PaddingSide]
) -> Law:
    limit = LIMITS.get(host.info.dtype, LIMITS["float32"])
    alone = [_residuals(host, host._batches([sample], 1))[0] for sample in samples]
    worst = 0.0
    for side in sides:
        padded = replace(host, padding_side=side)
        together = _residuals(padded, padded._batches(samples, 1_000_000, extra=5))
        for row, expected in enumerate(alone):
            worst = max(worst, relative_difference(together[row], expected))
    return Law(f"padding on the {' and the '.join(sides)} changes nothing", worst, limit)


def _residuals(host: TransformerLensHost, batches: Sequence[Batch]) -> dict[int, Tensor]:
    """The residual after the last block, of each sample's valid tokens."""
    site = Site(host.info.n_layers - 1, "resid_post")
    found = {}
    for batch in batches:
        read = host.read(batch, [site], lambda read: {"resid": read[site]})["resid"]
        for k, row in enumerate(batch.rows.tolist()):
            found[row] = read[k, batch.valid[k]]
    return found
