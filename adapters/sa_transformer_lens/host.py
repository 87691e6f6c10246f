"""A TransformerBridge of a text model as a host, and `attach` for every bridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from sa_plugin import tokenise
from sa_plugin.checks import Law
from sa_plugin.data import Sample
from sa_plugin.host import Batch, HostInfo
from sa_plugin.structure import demand, padding_law
from sa_transformer_lens.bridge_host import BridgeHost, describe, number_format, refuse_training
from sa_transformer_lens.fingerprint import fingerprint
from sa_transformer_lens.probe import probe
from sa_transformer_lens.tokenise import own_tokenizer
from sa_transformer_lens.vision import TransformerLensVisionHost, attach_vision


@dataclass(frozen=True, eq=False, repr=False)
class TransformerLensHost(BridgeHost):
    """A checked TransformerBridge of a text model; make one with `sa_plugin.attach(bridge)`.

    Attributes:
        tokenizer: By its own rule for special tokens, see `tokenise`.
        padding_side: Where padding goes; it changes no number.
        batch_tokens: Default size of batches.
        add_special_tokens: Whether the tokenizer's own rule for special tokens holds.
    """

    tokenizer: Any
    padding_side: tokenise.PaddingSide = "right"
    batch_tokens: int = 2048
    add_special_tokens: bool = True

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
        return tokenise.text_batches(
            samples, self.tokenizer, model=self.info.model, context=self.bridge.cfg.n_ctx,
            batch_tokens=most, side=self.padding_side, extra=extra,
            add_special_tokens=self.add_special_tokens,
        )  # fmt: skip

    def probe_inputs(self) -> dict[str, Tensor]:
        """A short text."""
        return self.forward_inputs(Sample("probe", tokenise.PROBE_TEXT, "probe"))

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
    tower: str | None = None,
    padding_side: str = "right",
    batch_tokens: int = 2048,
    add_special_tokens: bool = True,
    final_norm: bool = False,
    device: str | torch.device | None = None,
) -> TransformerLensHost | TransformerLensVisionHost:
    """Check a bridge once, by a few forward passes over a short input, and wrap it.

    Args:
        bridge: A TransformerBridge of a text or vision model, or a
            `sa_transformer_lens.mllama.HookedMllama`, in eval mode.
        tokenizer: For texts. Used as it is; by default the bridge's, without a BOS token that only
            TransformerLens put there (see `tokenise`).
        processor: For images: an image processor of transformers, its config, or a
            `sa_plugin.processor.Processor`; by default the bridge's.
        tower: A bridge is of one tower already; `sa_transformer_lens.towers.tower_bridge` makes it.
        padding_side: Of texts: "right" or "left".
        batch_tokens: Default size of batches.
        add_special_tokens: Of texts: False puts no BOS, CLS or SEP in, as arXiv 2512.05038 does.
        final_norm: Whether `resid_post` of the last block is read behind the final norm, as
            transformers' `hidden_states[-1]` and arXiv 2512.05038 at 100 % have it.
        device: Where to move the bridge; by default it stays where it is.

    Raises:
        ValueError: Training mode, no tokenizer or one without offsets, no image processor or one
            whose geometry is unknown, a hook that does not fire exactly once, a residual that is
            not the model's own hidden state or that padding changes, or blocks that add up in no
            known way.
    """
    if padding_side not in get_args(tokenise.PaddingSide):
        raise ValueError(f"padding_side {padding_side!r} is unknown: use 'left' or 'right'.")
    if tower is not None:
        raise ValueError(
            f"a bridge reads one stack of blocks, tower={tower!r} comes too late: make it of the "
            "model of transformers, attach(sa_transformer_lens.towers.tower_bridge(model, "
            f"{tower!r}))."
        )
    refuse_training(bridge)
    if not hasattr(bridge, "blocks"):
        raise ValueError(f"{bridge.cfg.architecture} has no single stack of blocks to read.")
    if device is not None:
        bridge.to(device)
    if getattr(bridge.cfg, "is_visual_model", False):
        if tokenizer is not None:
            raise ValueError(f"{bridge.cfg.architecture} reads images: leave the tokenizer out.")
        return attach_vision(bridge, processor, batch_tokens, final_norm)
    if processor is not None:
        raise ValueError(f"{bridge.cfg.architecture} reads texts: leave the processor out.")
    options = {
        "tokenizer": own_tokenizer(bridge.tokenizer) if tokenizer is None else tokenizer,
        "padding_side": padding_side, "batch_tokens": batch_tokens,
        "add_special_tokens": add_special_tokens,
    }  # fmt: skip
    return _attach_text(bridge, final_norm, options)


def _attach_text(bridge: Any, final_norm: bool, options: dict[str, Any]) -> TransformerLensHost:
    tokenizer, special = options["tokenizer"], options["add_special_tokens"]
    tokenise.check_tokenizer(tokenizer)
    ids = torch.from_numpy(tokenise.encode(tokenizer, [tokenise.PROBE_TEXT], special)[0].ids)[None]
    if ids.shape[1] < 2:
        raise ValueError(f"the tokenizer makes {ids.shape[1]} token of {tokenise.PROBE_TEXT!r}.")
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    seen = probe(bridge, inputs, number_format(bridge))
    info = HostInfo(
        **describe(bridge, final_norm=final_norm), block=seen.block, causal=seen.causal,
        bos=tokenise.puts_special_first(tokenizer, special),
        fingerprint=fingerprint(bridge, final_norm=final_norm),
        tokenizer=tokenise.digest(tokenizer, special),
    )  # fmt: skip
    host = TransformerLensHost(bridge, info, seen.points, **options)
    sample = Sample("probe", tokenise.PROBE_TEXT, "probe")
    demand(info.architecture, _padding_law(host, [sample], [host.padding_side]))
    return host


def _padding_law(
    host: TransformerLensHost, samples: Sequence[Sample], sides: Sequence[tokenise.PaddingSide]
) -> Law:
    padded: dict[str, Sequence[Batch]] = {
        side: replace(host, padding_side=side)._batches(samples, 1_000_000, extra=5)
        for side in sides
    }
    return padding_law(host, [host._batches([sample], 1) for sample in samples], padded)
