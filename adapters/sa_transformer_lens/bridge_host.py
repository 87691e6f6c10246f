"""What hosts of texts and of images share: reading a TransformerBridge by its hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from sa_plugin.block import AttentionWeights, BlockNorms
from sa_plugin.data import Sample
from sa_plugin.editing import Edit
from sa_plugin.host import FINAL_NORM, Batch, HostInfo, OutputProjection, Point, Reduce, Site
from sa_transformer_lens import described
from sa_transformer_lens.capture import capture
from sa_transformer_lens.differentiable import forward_sites, input_values
from sa_transformer_lens.probe import output_projection
from sa_transformer_lens.writable import demand_writable, write_effect

FINAL_HOOK = "ln_final.hook_out"


@dataclass(frozen=True, eq=False)
class BridgeHost:
    """A checked TransformerBridge.

    Attributes:
        bridge: The user's bridge. It is read, never changed: hooks live for one call.
        info: What is fixed about the model.
        points: Hook of each point, inside a block.
    """

    bridge: Any
    info: HostInfo
    points: Mapping[Point, str]

    def __repr__(self) -> str:
        info = self.info
        return (
            f"{type(self).__name__}({info.model}, {info.architecture}, {info.n_layers} blocks x "
            f"{info.d_model}, {info.n_heads} heads, {info.block}, {info.dtype})"
        )

    def batches(self, samples: Sequence[Sample], *, batch_tokens: int | None = None) -> list[Batch]:
        """Samples ready for the model."""
        raise NotImplementedError

    def probe_inputs(self) -> dict[str, Tensor]:
        """One short input, for checks."""
        raise NotImplementedError

    def forward_inputs(self, sample: Sample) -> dict[str, Tensor]:
        """What the bridge is called with for one sample, a batch of one, on its device.

        A text gives `input_ids` and `attention_mask`, an image `pixel_values`.
        """
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
        found = capture(self.bridge, names.values(), batch.inputs, self._last_hook(sites))
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
        if point == "pattern" and getattr(self.bridge.blocks[layer], "crosses", False):
            raise ValueError(
                f"block {layer} attends to an image's states, not to tokens, so its pattern has no "
                f"tokens for keys: read 'blocks.{layer}.attn.hook_pattern' in a run of your own."
            )
        if self._is_final(site):
            return FINAL_HOOK
        return f"blocks.{layer}.{self.points[point]}"

    def _is_final(self, site: Site) -> bool:
        last = site.layer == self.info.n_layers - 1 and site.point == "resid_post"
        return last and FINAL_NORM in self.info.processing

    def _last_hook(self, sites: Sequence[Site]) -> str:
        """Where a pass that reads sites can end."""
        if any(self._is_final(site) for site in sites):
            return FINAL_HOOK
        deepest = max(site.layer for site in sites)
        only_entry = all(site.point == "resid_pre" for site in sites if site.layer == deepest)
        return f"blocks.{deepest}.{'hook_resid_pre' if only_entry else 'hook_resid_post'}"

    def output_projection(self, layer: int) -> OutputProjection:
        """The attention output projection of one block, one slice a query head, in float32.

        In a post_norm model the sum of the heads passes a norm before it is `attn_out`.
        """
        self.hook_name(Site(layer, "z"))
        return output_projection(self.bridge, layer)

    def norms(self, layer: int) -> BlockNorms:
        """The norms of one block; see `sa_plugin.block.DescribedHost`."""
        return described.block_norms(self, layer)

    def attention_weights(self, layer: int) -> AttentionWeights:
        """Query, key and value maps of one block, proved on a short input."""
        return described.attention_weights(self, layer)

    def edited(self, edits: Mapping[Site, Edit]) -> AbstractContextManager[None]:
        """Replace `z` in every pass inside the context; see `sa_plugin.editing.EditableHost`."""
        from sa_transformer_lens.ablate import edited

        return edited(self, edits)

    def input_values(self, batch: Batch) -> Tensor:
        """Embeddings or pixels; see `sa_plugin.differentiable.DifferentiableHost`."""
        return input_values(self.bridge, batch)

    def forward_from(self, values: Tensor, batch: Batch, site: Site) -> Tensor:
        """The activations at a site as a function of embeddings or pixels.

        See `sa_plugin.differentiable.DifferentiableHost`.

        Raises:
            ValueError: No such site, training mode, or values that are not the batch's in shape.
        """
        refuse_training(self.bridge)
        name = self.hook_name(site)
        return forward_sites(self.bridge, values, batch, {site: name}, name)[site]

    def forward_sites(
        self, values: Tensor, batch: Batch, sites: Sequence[Site]
    ) -> dict[Site, Tensor]:
        """The same for several sites in one pass, up to the deepest block of them."""
        refuse_training(self.bridge)
        names = {site: self.hook_name(site) for site in sites}
        if not names:
            raise ValueError("sites is empty: name at least one Site(layer, point).")
        return forward_sites(self.bridge, values, batch, names, self._last_hook(sites))

    def hook_changes_output(self, hook_name: str) -> bool:
        """Whether the model's output changes when a hook there changes what it sees.

        Costs three forward passes over a short input.

        Raises:
            ValueError: The model has no such hook.
        """
        return bool(write_effect(self.bridge, hook_name, self.probe_inputs()))

    def check_writable(self, hook_name: str) -> None:
        """Refuse a hook whose edits the model would silently lose.

        Call it before any intervention of your own. In encoders and vision towers
        `attn.hook_pattern` and `attn.hook_attn_scores` fire and change nothing.

        Raises:
            ValueError: The hook does not exist, does not fire, or changes nothing; the text says
                which, and what to patch instead.
        """
        demand_writable(self.bridge, hook_name, self.probe_inputs())


def refuse_training(bridge: Any) -> None:
    """Dropout would make every number random.

    Raises:
        ValueError: Any module is in training mode.
    """
    if any(module.training for module in bridge.modules()):
        raise ValueError("the model is in training mode: call model.eval() first.")


def describe(bridge: Any, *, final_norm: bool = False) -> dict[str, Any]:
    """Sizes, number format and weight processing of a bridge, as `HostInfo` names them.

    Raises:
        ValueError: The final norm is to be read, and the bridge has none.
    """
    if final_norm and FINAL_HOOK not in bridge.hook_dict:
        raise ValueError(
            f"{bridge.cfg.architecture} has no hook {FINAL_HOOK!r}: leave final_norm out."
        )
    return {
        "host": "transformer_lens",
        "model": str(bridge.cfg.model_name),
        "architecture": str(bridge.cfg.architecture),
        "n_layers": bridge.cfg.n_layers,
        "d_model": bridge.cfg.d_model,
        "n_heads": bridge.cfg.n_heads,
        "d_head": bridge.cfg.d_head,
        "processing": _processing(bridge, final_norm),
        "dtype": number_format(bridge),
    }


def number_format(bridge: Any) -> str:
    """Number formats of the blocks' weights."""
    formats = {str(p.dtype) for p in bridge.blocks.parameters() if p.is_floating_point()}
    return "+".join(sorted(name.removeprefix("torch.") for name in formats))


def _processing(bridge: Any, final_norm: bool) -> str:
    # compatibility_mode alone, with no_processing=True, leaves the weights as they are.
    processed = getattr(bridge, "_weights_processed", bridge.compatibility_mode)
    done = [*(["compatibility"] if processed else []), *([FINAL_NORM] if final_norm else [])]
    return ", ".join(done) or "none"
