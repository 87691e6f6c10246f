"""A TransformerBridge as a host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import torch
from torch import Tensor

from sa_plugin.checks import LIMITS, Law, relative_difference
from sa_plugin.data import Sample
from sa_plugin.host import Batch, HostInfo, OutputProjection, Point, Reduce, Site
from sa_transformer_lens import tokenise
from sa_transformer_lens.capture import capture
from sa_transformer_lens.fingerprint import fingerprint
from sa_transformer_lens.probe import demand, output_projection, probe

PROBE_TEXT = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True, eq=False)
class TransformerLensHost:
    """A checked TransformerBridge; make one with `sa_plugin.attach(bridge)`.

    Attributes:
        bridge: The user's bridge. It is read, never changed: hooks live for one call.
        tokenizer: By its own rule for special tokens, see `tokenise`.
        info: What is fixed about the model.
        points: Hook of each point, inside a block.
        padding_side: Where padding goes; it changes no number.
        batch_tokens: Default size of batches.
    """

    bridge: Any
    tokenizer: Any
    info: HostInfo
    points: Mapping[Point, str]
    padding_side: tokenise.PaddingSide = "right"
    batch_tokens: int = 2048

    def __repr__(self) -> str:
        info = self.info
        return (
            f"TransformerLensHost({info.model}, {info.architecture}, {info.n_layers} blocks x "
            f"{info.d_model}, {info.n_heads} heads, {info.block}, {info.dtype})"
        )

    def batches(self, samples: Sequence[Sample], *, batch_tokens: int | None = None) -> list[Batch]:
        """Tokenise and group samples of like length, whole texts only.

        Args:
            samples: The samples.
            batch_tokens: At most this many tokens a batch, padding included (one sample at least);
                by default what the host was attached with.

        Raises:
            ValueError: A text has no token, or more than the model's context holds.
        """
        return self._batches(samples, self.batch_tokens if batch_tokens is None else batch_tokens)

    def _batches(self, samples: Sequence[Sample], most: int, extra: int = 0) -> list[Batch]:
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

    def forward_inputs(self, sample: Sample) -> dict[str, Tensor]:
        """What the bridge is called with for one sample: a batch of one, with attention mask."""
        device = next(self.bridge.parameters()).device
        inputs = self.batches([sample])[0].inputs
        return {key: value.to(device) for key, value in inputs.items()}

    def read(self, batch: Batch, sites: Sequence[Site], reduce: Reduce) -> dict[str, Tensor]:
        """Run one forward pass up to the deepest block of `sites` and reduce what was read.

        Args:
            batch: From `batches`.
            sites: What to read.
            reduce: Sees a clone of each tensor, on the model's device and in its number format.

        Returns:
            What `reduce` returned, on the CPU.

        Raises:
            ValueError: No site, an unknown one, or the model is in training mode.
            RuntimeError: A hook did not fire exactly once.
        """
        refuse_training(self.bridge)
        names = {site: self.hook_name(site) for site in sites}
        if not names:
            raise ValueError("sites is empty: name at least one Site(layer, point).")
        found = capture(self.bridge, names.values(), batch.inputs, _last_hook(sites))
        with torch.no_grad():
            kept = reduce({site: found[name] for site, name in names.items()})
        return {key: value.cpu() for key, value in kept.items()}

    def hook_name(self, site: Site) -> str:
        """TransformerLens's name of a site, such as `blocks.8.hook_resid_post`.

        Raises:
            ValueError: No such layer or point.
        """
        layer, point = site
        if point not in self.points:
            raise ValueError(f"point {point!r} is unknown: use one of {get_args(Point)}.")
        if not 0 <= layer < self.info.n_layers:
            nearest = min(max(layer, 0), self.info.n_layers - 1)
            raise ValueError(
                f"layer {layer} does not exist: {self.info.model} has blocks 0 to "
                f"{self.info.n_layers - 1}; the nearest is {nearest}."
            )
        return f"blocks.{layer}.{self.points[point]}"

    def output_projection(self, layer: int) -> OutputProjection:
        """The attention output projection of one block, one slice a query head, in float32.

        In a post_norm model the sum of the heads passes a norm before it is `attn_out`.
        """
        self.hook_name(Site(layer, "z"))
        return output_projection(self.bridge, layer)

    def laws(self, samples: Sequence[Sample]) -> list[Law]:
        """The laws that only this adapter can measure: those of `attach` again, and padding."""
        longest = max(samples, key=lambda sample: len(sample.text))
        seen = probe(self.bridge, self.forward_inputs(longest), self.info.dtype)
        return [*seen.laws, _padding_law(self, samples, get_args(tokenise.PaddingSide))]


def attach_bridge(
    bridge: Any,
    *,
    tokenizer: Any = None,
    padding_side: str = "right",
    batch_tokens: int = 2048,
    device: str | torch.device | None = None,
) -> TransformerLensHost:
    """Check a bridge once, by three forward passes over a short text, and wrap it.

    Args:
        bridge: A TransformerBridge of a text model, in eval mode.
        tokenizer: Used as it is; by default the bridge's, without a BOS token that only
            TransformerLens put there (see `tokenise`).
        padding_side: "right" or "left".
        batch_tokens: Default size of batches.
        device: Where to move the bridge; by default it stays where it is.

    Raises:
        ValueError: Training mode, no tokenizer or one without offsets, a hook that does not fire
            exactly once, a residual that is not the model's own hidden state or that padding
            changes, or blocks that add up in no known way.
    """
    if padding_side not in get_args(tokenise.PaddingSide):
        raise ValueError(f"padding_side {padding_side!r} is unknown: use 'left' or 'right'.")
    refuse_training(bridge)
    if not hasattr(bridge, "blocks"):
        raise ValueError(f"{bridge.cfg.architecture} has no single stack of blocks to read.")
    if device is not None:
        bridge.to(device)
    if tokenizer is None:
        tokenizer = tokenise.own_tokenizer(bridge.tokenizer)
    tokenise.check_tokenizer(tokenizer)
    ids = torch.from_numpy(tokenise.encode(tokenizer, [PROBE_TEXT])[0].ids)[None]
    if ids.shape[1] < 2:
        raise ValueError(f"the tokenizer makes {ids.shape[1]} token of {PROBE_TEXT!r}.")
    dtype = _dtype(bridge)
    seen = probe(bridge, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, dtype)
    info = HostInfo(
        host="transformer_lens",
        model=str(bridge.cfg.model_name),
        architecture=str(bridge.cfg.architecture),
        n_layers=bridge.cfg.n_layers,
        d_model=bridge.cfg.d_model,
        n_heads=bridge.cfg.n_heads,
        d_head=bridge.cfg.d_head,
        block=seen.block,
        causal=seen.causal,
        bos=tokenise.puts_special_first(tokenizer),
        processing=_processing(bridge),
        dtype=dtype,
        fingerprint=fingerprint(bridge),
        tokenizer=tokenise.digest(tokenizer),
    )
    side = cast(tokenise.PaddingSide, padding_side)
    host = TransformerLensHost(bridge, tokenizer, info, seen.points, side, batch_tokens)
    demand(bridge, _padding_law(host, [Sample("probe", PROBE_TEXT, "probe")], [side]))
    return host


def refuse_training(bridge: Any) -> None:
    """Dropout would make every number random.

    Raises:
        ValueError: Any module is in training mode.
    """
    if any(module.training for module in bridge.modules()):
        raise ValueError("the model is in training mode: call model.eval() first.")


def _last_hook(sites: Sequence[Site]) -> str:
    deepest = max(site.layer for site in sites)
    only_entry = all(site.point == "resid_pre" for site in sites if site.layer == deepest)
    return f"blocks.{deepest}.{'hook_resid_pre' if only_entry else 'hook_resid_post'}"


def _dtype(bridge: Any) -> str:
    formats = {str(p.dtype) for p in bridge.blocks.parameters() if p.is_floating_point()}
    return "+".join(sorted(name.removeprefix("torch.") for name in formats))


def _processing(bridge: Any) -> str:
    # compatibility_mode alone, with no_processing=True, leaves the weights as they are.
    processed = getattr(bridge, "_weights_processed", bridge.compatibility_mode)
    return "compatibility" if processed else "none"


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
