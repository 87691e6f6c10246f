"""What hosts of texts and of images share: reading an nnsight model by its paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from einops import rearrange
from torch import Tensor

from sa_nnsight import weights
from sa_nnsight.paths import Places
from sa_nnsight.reading import Order, Tap, eager, final_tap, in_order, read_taps, tap_of
from sa_plugin.block import AttentionWeights, BlockNorms
from sa_plugin.data import Sample
from sa_plugin.editing import Edit
from sa_plugin.host import FINAL_NORM, Batch, HostInfo, OutputProjection, Point, Reduce, Site


@dataclass(frozen=True, eq=False)
class EnvoyHost:
    """A checked nnsight model.

    Attributes:
        model: The user's model. It is read, never changed: a trace lives for one call.
        info: What is fixed about the model.
        places: Its modules by role.
        order: In which they run.
    """

    model: Any
    info: HostInfo
    places: Places
    order: Order

    def __repr__(self) -> str:
        info = self.info
        return (
            f"{type(self).__name__}({info.model}, {info.architecture}, {info.n_layers} blocks x "
            f"{info.d_model}, {info.n_heads} heads, {info.block}, {info.dtype})"
        )

    def batches(self, samples: Sequence[Sample], *, batch_tokens: int | None = None) -> list[Batch]:
        """Samples ready for the model."""
        raise NotImplementedError

    def probe_sample(self) -> Sample:
        """One short sample, for checks."""
        raise NotImplementedError

    def probe_inputs(self) -> dict[str, Tensor]:
        """One short input, for checks."""
        return self.forward_inputs(self.probe_sample())

    def forward_inputs(self, sample: Sample) -> dict[str, Tensor]:
        """What the model is called with for one sample, a batch of one, on its device.

        A text gives `input_ids` and `attention_mask`, an image `pixel_values`:
        `with model.trace(**host.forward_inputs(sample)):`.
        """
        return self.inputs(self.batches([sample])[0])

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What the model is called with for a batch, on its device."""
        device = next(self.places.root.parameters()).device
        return {key: value.to(device) for key, value in batch.inputs.items()}

    def pixel_inputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """What a model of images is called with for pixels."""
        raise NotImplementedError

    def read(self, batch: Batch, sites: Sequence[Site], reduce: Reduce) -> dict[str, Tensor]:
        """Run one trace up to the deepest place of `sites` and reduce what was read.

        Attention is unfused for the length of the trace where a pattern is read.

        Args:
            batch: From `batches`.
            sites: What to read.
            reduce: Sees a clone of each tensor, on the model's device and in its number format.

        Returns:
            What `reduce` returned, on the CPU.

        Raises:
            ValueError: No site, an unknown one, or the model is in training mode.
            RuntimeError: A module did not run, or gave no pattern.
        """
        refuse_unready(self.model)
        taps = {site: self.tap(site) for site in sites}
        if not taps:
            raise ValueError("sites is empty: name at least one Site(layer, point).")
        pattern = any(site.point == "pattern" for site in sites)
        with eager(self.places.root) if pattern else nullcontext():
            found = read_taps(
                self.model, self.inputs(batch), in_order(self.order, [*taps.values()])
            )
        with torch.no_grad():
            kept = reduce({site: self._shaped(site, found[tap]) for site, tap in taps.items()})
        return {key: value.cpu() for key, value in kept.items()}

    def _shaped(self, site: Site, value: Tensor) -> Tensor:
        return (
            rearrange(value, "b t (h e) -> b t h e", h=self.info.n_heads)
            if site.point == "z"
            else value
        )

    def tap(self, site: Site) -> Tap:
        """Where a site is read.

        Raises:
            ValueError: No such layer or point.
        """
        layer, point = site
        if point not in get_args(Point):
            raise ValueError(f"point {point!r} is unknown: use one of {get_args(Point)}.")
        if not 0 <= layer < self.info.n_layers:
            nearest = min(max(layer, 0), self.info.n_layers - 1)
            raise ValueError(
                f"layer {layer} does not exist: {self.info.model} has blocks 0 to "
                f"{self.info.n_layers - 1}; the nearest is {nearest}."
            )
        if point == "pattern" and self.places.crosses(layer):
            raise ValueError(
                f"block {layer} attends to an image's states, not to tokens, so its pattern has no "
                f"tokens for keys: read {self.places.path('attention', layer)}.output[1] in a "
                "trace of your own."
            )
        last = layer == self.info.n_layers - 1 and point == "resid_post"
        if last and FINAL_NORM in self.info.processing:
            return final_tap(self.model, self.places)
        return tap_of(self.model, self.places, layer, point)

    def hook_name(self, site: Site) -> str:
        """Nnsight's path of a site, such as `transformer.h.8.output`.

        Inside a trace `model.get(path)` is its value; a pattern's path ends in an index, `[1]`.

        Raises:
            ValueError: No such layer or point.
        """
        return str(self.tap(site))

    def output_projection(self, layer: int) -> OutputProjection:
        """The attention output projection of one block, one slice a query head, in float32.

        In a post_norm model the sum of the heads passes a norm before it is `attn_out`; LayerScale
        (DINOv2) and tanh gates (Mllama) are folded in.
        """
        self.tap(Site(layer, "z"))
        return weights.output_projection(self.places, layer)

    def edited(self, edits: Mapping[Site, Edit]) -> AbstractContextManager[None]:
        """Replace `z` in every pass inside the context; see `sa_plugin.editing.EditableHost`.

        Traces of your own see the edit too.
        """
        from sa_nnsight.edits import edited

        return edited(self, edits)

    def norms(self, layer: int) -> BlockNorms:
        """The norms of one block; see `sa_plugin.block.DescribedHost`."""
        from sa_nnsight.block_weights import block_norms

        return block_norms(self, layer)

    def attention_weights(self, layer: int) -> AttentionWeights:
        """Query, key and value maps of one block, proved on a short input."""
        from sa_nnsight.block_weights import attention_weights

        return attention_weights(self, layer)

    def input_values(self, batch: Batch) -> Tensor:
        """Embeddings or pixels; see `sa_plugin.differentiable.DifferentiableHost`."""
        from sa_nnsight.differentiable import input_values

        return input_values(self, batch)

    def forward_from(self, values: Tensor, batch: Batch, site: Site) -> Tensor:
        """The activations at a site as a function of embeddings or pixels.

        See `sa_plugin.differentiable.DifferentiableHost`.

        Raises:
            ValueError: No such site, training mode, or values that are not the batch's in shape.
        """
        return self.forward_sites(values, batch, [site])[site]

    def forward_sites(
        self, values: Tensor, batch: Batch, sites: Sequence[Site]
    ) -> dict[Site, Tensor]:
        """The same for several sites in one pass, up to the deepest of them."""
        from sa_nnsight.differentiable import forward_sites

        refuse_unready(self.model)
        if not sites:
            raise ValueError("sites is empty: name at least one Site(layer, point).")
        return forward_sites(self, values, batch, sites)

    def hook_changes_output(self, hook_name: str) -> bool:
        """Whether the model's output changes when a trace writes to a place.

        Costs three forward passes over a short input.

        Raises:
            ValueError: The model has no such place.
        """
        from sa_nnsight.writable import parse_tap, write_effect

        with eager(self.places.root):
            tap = parse_tap(self.model, hook_name)
            return bool(write_effect(self.model, tap, self.probe_inputs()))

    def check_writable(self, hook_name: str) -> None:
        """Refuse a place whose edits the model would silently lose.

        Call it before any intervention of your own: attention probabilities can be read and not
        written in any architecture of transformers.

        Raises:
            ValueError: The model has no such place, or writing to it changes nothing.
        """
        from sa_nnsight.writable import demand_writable, parse_tap

        with eager(self.places.root):
            demand_writable(self.model, parse_tap(self.model, hook_name), self.probe_inputs())


def refuse_unready(model: Any) -> None:
    """Dropout would make every number random, an edit kept in the model every number another's.

    Raises:
        ValueError: Any module is in training mode, or the model has default edits.
    """
    if any(module.training for module in model._module.modules()):
        raise ValueError("the model is in training mode: call model.eval() first.")
    if model._edits:
        raise ValueError(
            f"the model has {len(model._edits)} default edit(s) of model.edit(), which change what "
            "every trace reads: attach the unedited model, or call model.clear_edits()."
        )


def describe(
    model: Any, places: Places, *, final_norm: bool = False, context: Tensor | None = None
) -> dict[str, Any]:
    """Sizes, number format and names, as `HostInfo` names them."""
    heads = weights.n_heads(places)
    weight = weights.output_projection(places, 0).weight
    return {
        "host": "nnsight",
        "model": model_name(model, places),
        "architecture": places.architecture,
        "n_layers": places.n_layers,
        "d_model": weight.shape[-1],
        "n_heads": heads,
        "d_head": weight.shape[1],
        "processing": FINAL_NORM if final_norm else "none",
        "dtype": weights.number_format(places),
        "fingerprint": weights.fingerprint(places, context, final_norm=final_norm),
    }


def model_name(model: Any, places: Places) -> str:
    """The repository's or the folder's name, else the class's."""
    config = getattr(places.root, "config", None)
    name = model.__dict__.get("repo_id") or getattr(config, "_name_or_path", "")
    text = name if isinstance(name, str) else ""
    # A folder of the user's is named by its last part, as the other adapter has it.
    return Path(text).name if text and Path(text).is_dir() else text or places.architecture
