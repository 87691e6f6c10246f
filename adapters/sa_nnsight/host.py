"""What hosts of texts and of images share: reading an nnsight model by its paths.

An nnsight model of images as a host; see `sa_plugin.host.images` for its tokens.

Check an nnsight model that runs on this machine, and wrap it.

Load a Hugging Face model folder into nnsight, without network.

What a folder becomes is said in `sa_plugin.host.folders`: the same module of transformers that a
bridge is made of, but DINOv2, which stays itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from einops import rearrange
from torch import Tensor

from sa_nnsight import places
from sa_nnsight.paths import Places, locate
from sa_nnsight.places import (
    Order,
    Tap,
    eager,
    final_tap,
    fingerprint,
    in_order,
    n_heads,
    number_format,
    output_projection,
    read_taps,
    tap_of,
)
from sa_nnsight.proofs import probe
from sa_plugin._check import require
from sa_plugin.data.sample import Sample
from sa_plugin.host import mllama, texts
from sa_plugin.host.check import Law
from sa_plugin.host.folders import load_folder
from sa_plugin.host.images import (
    Processor,
    check_images,
    context_states,
    image_batches,
    model_processor,
    noise,
    patch_law,
)
from sa_plugin.host.laws import demand, padding_law
from sa_plugin.host.protocol import (
    BATCH_TOKENS,
    FINAL_NORM,
    AttentionWeights,
    Batch,
    BlockNorms,
    Edit,
    HostInfo,
    OutputProjection,
    Point,
    Reduce,
    Site,
)


@dataclass(frozen=True, eq=False)
class EnvoyHost:
    """A checked nnsight model.

    Attributes:
        model: The user's model. It is read, never changed: a trace lives for one call.
        info: What is fixed about the model.
        places: Its modules by role.
        order: In which they run.
        batch_tokens: At most this many tokens a batch.
        progress: Whether walks over the model show a bar.
    """

    model: Any
    info: HostInfo
    places: Places
    order: Order
    batch_tokens: int
    progress: bool

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

    def read(self, batch: Batch, sites: Sequence[Site], reduce: Reduce) -> dict[Any, Tensor]:
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
            found = read_taps(self.model, self.inputs(batch), in_order(self.order, [*taps.values()]))
        with torch.no_grad():
            kept = reduce({site: self._shaped(site, found[tap]) for site, tap in taps.items()})
        return {key: value.cpu() for key, value in kept.items()}

    def _shaped(self, site: Site, value: Tensor) -> Tensor:
        return rearrange(value, "b t (h e) -> b t h e", h=self.info.n_heads) if site.point == "z" else value

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
        return places.output_projection(self.places, layer)

    def edited(self, edits: Mapping[Site, Edit]) -> AbstractContextManager[None]:
        """Replace `z` in every pass inside the context; see `sa_plugin.host.protocol.EditableHost`.

        Traces of your own see the edit too.
        """
        from sa_nnsight.edits import edited

        return edited(self, edits)

    def norms(self, layer: int) -> BlockNorms:
        """The norms of one block; see `sa_plugin.host.protocol.DescribedHost`."""
        from sa_nnsight.places import block_norms

        return block_norms(self, layer)

    def attention_weights(self, layer: int) -> AttentionWeights:
        """Query, key and value maps of one block, proved on a short input."""
        from sa_nnsight.places import attention_weights

        return attention_weights(self, layer)

    def input_values(self, batch: Batch) -> Tensor:
        """Embeddings or pixels; see `sa_plugin.host.protocol.DifferentiableHost`."""
        from sa_nnsight.gradients import input_values

        return input_values(self, batch)

    def forward_from(self, values: Tensor, batch: Batch, site: Site) -> Tensor:
        """The activations at a site as a function of embeddings or pixels.

        See `sa_plugin.host.protocol.DifferentiableHost`.

        Raises:
            ValueError: No such site, training mode, or values that are not the batch's in shape.
        """
        return self.forward_sites(values, batch, [site])[site]

    def forward_sites(self, values: Tensor, batch: Batch, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """The same for several sites in one pass, up to the deepest of them."""
        from sa_nnsight.gradients import forward_sites

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
        from sa_nnsight.proofs import parse_tap, write_effect

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
        from sa_nnsight.proofs import demand_writable, parse_tap

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
    heads = n_heads(places)
    weight = output_projection(places, 0).weight
    return {
        "host": "nnsight",
        "model": model_name(model, places),
        "architecture": places.architecture,
        "n_layers": places.n_layers,
        "d_model": weight.shape[-1],
        "n_heads": heads,
        "d_head": weight.shape[1],
        "processing": FINAL_NORM if final_norm else "none",
        "dtype": number_format(places),
        "fingerprint": fingerprint(places, context, final_norm=final_norm),
    }


def model_name(model: Any, places: Places) -> str:
    """The repository's or the folder's name, else the class's."""
    config = getattr(places.root, "config", None)
    name = model.__dict__.get("repo_id") or getattr(config, "_name_or_path", "")
    text = name if isinstance(name, str) else ""
    # A folder of the user's is named by its last part, as the other adapter has it.
    return Path(text).name if text and Path(text).is_dir() else text or places.architecture


@dataclass(frozen=True, eq=False, repr=False)
class NNsightVisionHost(EnvoyHost):
    """A checked nnsight model of images; make one with `sa_plugin.attach(model)`.

    Attributes:
        processor: How images become pixel values.
        n_special: Tokens before the first patch.
        n_after: Tokens behind the last one, which are no rows (Mllama pads, and has more tiles).
    """

    processor: Processor
    n_special: int
    n_after: int = 0

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
            samples,
            self.processor,
            model=self.info.model,
            n_special=self.n_special,
            n_after=self.n_after,
            batch_tokens=self.batch_tokens if batch_tokens is None else batch_tokens,
        )

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
        """Images of several sizes for `sa_plugin.host.check.check`."""
        return check_images()

    def laws(self, samples: Sequence[Sample]) -> list[Law]:
        """The laws that only this adapter can measure: those of `attach` again."""
        seen = probe(self.model, self.places, self.forward_inputs(samples[0]), self.info.dtype)
        return [*seen.laws, _patch_law(self.model, self.places, self.processor, self.n_special)]


def attach_vision(
    model: Any, places: Places, processor: Any, batch_tokens: int, progress: bool, final_norm: bool
) -> NNsightVisionHost:
    """Check a vision model; see `sa_nnsight.host.attach_local`."""
    known = describe(model, places, final_norm=final_norm)
    ours = model_processor(processor, places.root.config, places.architecture, known["model"])
    inputs = pixel_inputs(places, noise(ours.size))
    seen = probe(model, places, inputs, known["dtype"], final_norm=final_norm)
    tokens = _embed(model, places, noise(ours.size)).shape[1]
    patches = ours.size[0] * ours.size[1] // ours.patch**2
    # Everything that is no patch stands first, but in Mllama.
    n_special = 1 if places.kind == mllama.VISION else tokens - patches
    demand(places.architecture, _patch_law(model, places, ours, n_special))
    info = HostInfo(**known, block=seen.block, causal=seen.causal, bos=n_special > 0)
    after = tokens - patches - n_special
    return NNsightVisionHost(model, info, places, seen.order, batch_tokens, progress, ours, n_special, after)


def pixel_inputs(places: Places, pixels: Tensor) -> dict[str, Tensor]:
    """What a model is called with for pixels, on its device and in its number format."""
    if places.kind == mllama.VISION:
        return mllama.tile_inputs(places.root, pixels)
    like = next(places.root.parameters())
    return {"pixel_values": pixels.to(like.device, like.dtype)}


def _patch_law(model: Any, places: Places, processor: Processor, n_special: int) -> Law:
    return patch_law(processor, n_special, lambda pixels: _embed(model, places, pixels))


def _embed(model: Any, places: Places, pixels: Tensor) -> Tensor:
    tap = tap_of(model, places, 0, "resid_pre")
    return read_taps(model, pixel_inputs(places, pixels), [tap])[tap]


TOWERS = {"vision": ("vision_model", "vision_tower"), "text": ("text_model", "language_model")}


@dataclass(frozen=True, eq=False, repr=False)
class NNsightHost(EnvoyHost):
    """A checked nnsight model of texts; make one with `sa_plugin.attach(model)`.

    Attributes:
        tokenizer: By its own rule for special tokens.
        padding_side: Where padding goes; it changes no number.
        add_special_tokens: Whether the tokenizer's own rule for special tokens holds.
        context: States of the image that every text is read with, or None.
    """

    tokenizer: Any
    padding_side: texts.PaddingSide = "right"
    add_special_tokens: bool = True
    context: Tensor | None = None

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
        config = getattr(self.places.root, "config", None)
        return texts.text_batches(
            samples,
            self.tokenizer,
            model=self.info.model,
            batch_tokens=most,
            context=getattr(config, "max_position_embeddings", None),
            side=self.padding_side,
            extra=extra,
            add_special_tokens=self.add_special_tokens,
        )

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What the model is called with for a batch, on its device."""
        return _with_context(super().inputs(batch), self.context)

    def probe_sample(self) -> Sample:
        """A short text."""
        return Sample("probe", texts.PROBE_TEXT, "probe")

    def laws(self, samples: Sequence[Sample]) -> list[Law]:
        """The laws that only this adapter can measure: those of `attach` again, and padding."""
        longest = max(samples, key=lambda sample: len(sample.text))
        inputs = self.forward_inputs(longest)
        seen = probe(self.model, self.places, inputs, self.info.dtype)
        return [*seen.laws, _padding_law(self, samples, get_args(texts.PaddingSide))]


def attach_local(
    model: Any,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    paths: Mapping[str, Any] | None = None,
    tower: str | None = None,
    image: Any = None,
    padding_side: str = "right",
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
    add_special_tokens: bool = True,
    final_norm: bool = False,
) -> NNsightHost | NNsightVisionHost:
    """Check a model once, by a few forward passes over a short input, and wrap it.

    Weights that nnsight has not loaded yet are loaded.

    Args:
        model: A TransformersModel, LanguageModel, VisionLanguageModel or NNsight wrapper of a text
            or vision model, in eval mode.
        tokenizer: For texts; by default the model's. Used as it is.
        processor: For images: an image processor of transformers, its config, or a
            `sa_plugin.host.images.Processor`; by default the model's.
        paths: Where things are in an architecture that `sa_nnsight.paths.PATHS` does not know, or
            knows wrongly; see `sa_nnsight.paths.ROLES`.
        tower: "vision" or "text": which half of a two-tower model (CLIP, LLaVA, Mllama) to read.
            Only that half runs.
        image: Of an Mllama's text stack: an image that every text is read with, uint8 `[height,
            width, 3]` (with `processor`), or the states `[state, d_model]` that cross-attention
            attends to. Without it the model skips those blocks, and block indices count the others.
        padding_side: Of texts: "right" or "left".
        batch_tokens: At most this many tokens a batch.
        progress: Whether walks over the model show a bar.
        add_special_tokens: Of texts: False puts no BOS, CLS or SEP in, as arXiv 2512.05038 does.
        final_norm: Whether `resid_post` of the last block is read behind the final norm, as
            transformers' `hidden_states[-1]` and arXiv 2512.05038 at 100 % have it.

    Raises:
        ValueError: Training mode, default edits, an unknown architecture, no tokenizer or one
            without offsets, no image processor or one whose geometry is unknown, a module that
            does not run exactly once, a residual that is not the model's own hidden state or that
            padding changes, or blocks that add up in no known way.
    """
    if padding_side not in get_args(texts.PaddingSide):
        raise ValueError(f"padding_side {padding_side!r} is unknown: use 'left' or 'right'.")
    if getattr(model, "dispatched", True) is False:
        model.dispatch()
    own_tokenizer, own_processor = _preprocessors(model)
    source = own_processor if processor is None else processor
    whole = model._module
    if tower is not None:
        model = _tower(model, tower)
    refuse_unready(model)
    places = locate(model._module, paths, every=image is not None)
    if _reads_images(places):
        if tokenizer is not None or image is not None:
            extra = "image" if tokenizer is None else "tokenizer"
            raise ValueError(f"{places.architecture} reads images: leave the {extra} out.")
        return attach_vision(model, places, source, batch_tokens, progress, final_norm)
    if processor is not None and image is None:
        raise ValueError(f"{places.architecture} reads texts: leave the processor out.")
    host = {
        "tokenizer": own_tokenizer if tokenizer is None else tokenizer,
        "padding_side": padding_side,
        "batch_tokens": batch_tokens,
        "progress": progress,
        "add_special_tokens": add_special_tokens,
        "context": None if image is None else context_states(whole, places.root, image, source),
    }
    return _attach_text(model, places, final_norm, host)


def _preprocessors(model: Any) -> tuple[Any, Any]:
    """What nnsight's pipeline brought, looked up on the wrapper alone, not inside the module."""
    own = vars(model)
    return own.get("tokenizer"), own.get("image_processor") or own.get("processor")


def _tower(model: Any, tower: str) -> Any:
    if tower not in TOWERS:
        raise ValueError(f"tower {tower!r} is unknown: use 'vision' or 'text'.")
    for name in (f"{prefix}{part}" for prefix in ("", "model.") for part in TOWERS[tower]):
        try:
            model._module.get_submodule(name)
        except AttributeError:
            continue
        return model.get(name)
    raise ValueError(f"{type(model._module).__name__} has no {TOWERS[tower][0]}: leave tower out.")


def _reads_images(places: Places) -> bool:
    own = getattr(places.root, "main_input_name", "input_ids") == "pixel_values"
    return own or places.kind.endswith("vision_model")


def _attach_text(model: Any, places: Places, final_norm: bool, options: dict[str, Any]) -> NNsightHost:
    tokenizer, special = options["tokenizer"], options["add_special_tokens"]
    context = options["context"]
    texts.check_tokenizer(tokenizer)
    ids = texts.encode(tokenizer, [texts.PROBE_TEXT], special)[0].ids
    if len(ids) < 2:
        raise ValueError(f"the tokenizer makes {len(ids)} token of {texts.PROBE_TEXT!r}.")
    first = torch.from_numpy(ids)[None].to(next(places.root.parameters()).device)
    inputs = {"input_ids": first, "attention_mask": torch.ones_like(first)}
    known = describe(model, places, final_norm=final_norm, context=context)
    seen = probe(model, places, _with_context(inputs, context), known["dtype"], final_norm=final_norm)
    info = HostInfo(
        **known,
        block=seen.block,
        causal=seen.causal,
        bos=texts.puts_special_first(tokenizer, special),
        tokenizer=texts.digest(tokenizer, special),
    )
    host = NNsightHost(model, info, places, seen.order, **options)
    demand(info.architecture, _padding_law(host, [host.probe_sample()], [host.padding_side]))
    return host


def _with_context(inputs: dict[str, Tensor], context: Tensor | None) -> dict[str, Tensor]:
    if context is None:
        return inputs
    rows = len(inputs["input_ids"])
    return {**inputs, "cross_attention_states": context.expand(rows, -1, -1)}


def _padding_law(host: NNsightHost, samples: Sequence[Sample], sides: Sequence[texts.PaddingSide]) -> Law:
    padded: dict[str, Sequence[Batch]] = {
        side: replace(host, padding_side=side)._batches(samples, 1_000_000, extra=5) for side in sides
    }
    return padding_law(host, [host._batches([sample], 1) for sample in samples], padded)


def load_model(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, tower: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """A model folder wrapped by `nnsight.NNsight`, and what `attach` needs beside it.

    Args:
        folder: What `save_pretrained` wrote.
        dtype: Number format of the weights.
        tower: "vision" or "text": which half of a model with two.

    Returns:
        The wrapper, and its tokenizer or image processor as an option of `attach`.

    Raises:
        FileNotFoundError: No model there.
        ImportError: nnsight is not installed.
        ValueError: As `sa_plugin.host.folders.load_folder`.

    Example:
        >>> model, options = load_model("minilm")  # doctest: +SKIP
    """
    nnsight = require("nnsight", "nnsight", "loading a model folder into nnsight")
    loaded = load_folder(folder, dtype=dtype, tower=tower)
    with warnings.catch_warnings():
        # BERT has modules named `output`, which nnsight calls `E_output`; nothing here uses them.
        warnings.filterwarnings("ignore", "Module '.*' has a submodule named 'output'")
        model = nnsight.NNsight(loaded.model)
    options: dict[str, Any] = {} if loaded.tower is None else {"tower": loaded.tower}
    if loaded.tokenizer is None:
        return model, options | {"processor": loaded.processor}
    return model, options | {"tokenizer": loaded.tokenizer}
