"""A host of a model that runs on this machine: all that does not depend on its library.

An adapter gives `Passes` over the `Places` of a model (`sa_plugin.host.adapter`); `open_texts` and
`open_images` check the model by a few passes over a short input and make the host of them.

Passes that start from embeddings run over the batch's own token ids, with the output of the token
embedding replaced: positions, padding, masks and what a model does to embeddings behind it (Gemma's
scale, BERT's segments and LayerNorm) are then the model's own, whichever side the padding is on.
Gradients flow to the values whether parameters are frozen or not; take them by `torch.autograd.grad`,
which writes no parameter's `.grad`.

Whether a place can be edited at all is tried, not known: some hooks fire, take an edit and change
nothing. transformers hands out attention probabilities beside the output they were used for, so
that an edit of them reaches nobody, and is no error. The test is to add noise to the place once and
compare outputs. A place that passes is connected; this says nothing about the size of an effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from sa_plugin._face import face, face_methods
from sa_plugin.data.sample import Sample
from sa_plugin.host import weights
from sa_plugin.host.adapter import FINAL, Passes, Places, part_of, parts_of
from sa_plugin.host.edits import AttendedReader, EditWatch
from sa_plugin.host.laws import (
    BrokenLawError,
    Law,
    demand,
    in_stages,
    is_causal,
    kept_part,
    module_streams,
    padding_law,
    projection_law,
    stream_law,
    structure,
    tolerance,
)
from sa_plugin.host.protocol import (
    BATCH_TOKENS,
    FINAL_NORM,
    AttentionWeights,
    Batch,
    Block,
    BlockNorms,
    Edit,
    HostInfo,
    OutputProjection,
    Reduce,
    Site,
    ZEdit,
)
from sa_plugin.host.texts import PROBE_TEXT, PaddingSide, TextReader, positions_of, vocabulary_of
from sa_plugin.host.tokens import TextEncoder, check_tokenizer
from sa_plugin.host.turns import Turns, Undo, hold, one_turn, take, turns_of

if TYPE_CHECKING:
    from sa_plugin.host.images import ImageReader

# Where patches are counted.
EMBEDDED = (0, "resid_pre")
EDITED = ("z", "mlp_out")
RESIDUAL = ("resid_pre", "resid_post", "attn_out", "mlp_out")


@face
@dataclass(frozen=True)
class Options:
    """What every adapter takes at `attach`.

    Attributes:
        tokenizer: For texts, used as it is; by default the model's.
        processor: For images: an image processor of transformers, its config, or a
            `sa_plugin.host.images.Processor`; by default the model's.
        padding_side: Of texts: "right" or "left".
        batch_tokens: At most this many tokens a batch, padding included.
        progress: Whether walks over the model show a bar.
        add_special_tokens: Of texts: False puts no BOS, CLS or SEP in, as arXiv 2512.05038 does.
        bos: Of texts: True puts the tokenizer's BOS first, False puts none there; by default the
            tokenizer's own rule holds. One that the text holds itself stays, and is not doubled.
        final_norm: Whether `resid_post` of the last block is read behind the final norm, as
            transformers' `hidden_states[-1]` and arXiv 2512.05038 at 100 % have it.
    """

    tokenizer: Any = None
    processor: Any = None
    padding_side: str = "right"
    batch_tokens: int = BATCH_TOKENS
    progress: bool = True
    add_special_tokens: bool = True
    bos: bool | None = None
    final_norm: bool = False

    def __post_init__(self) -> None:
        if self.padding_side not in get_args(PaddingSide):
            raise ValueError(f"padding_side {self.padding_side!r} is unknown: use 'left' or 'right'.")


@face_methods
@dataclass(frozen=True, eq=False)
class LocalHost:
    """A checked model on this machine; make one with `sa_plugin.attach(model)`.

    Attributes:
        passes: How its library runs it. The model is read, never changed.
        info: What is fixed about it.
        reader: What turns samples into batches.
        batch_tokens: At most this many tokens a batch.
        progress: Whether walks over the model show a bar.
    """

    passes: Passes
    info: HostInfo
    reader: TextReader | ImageReader
    batch_tokens: int = BATCH_TOKENS
    progress: bool = True

    def __repr__(self) -> str:
        first = f", {self.reader.encode.words}" if isinstance(self.reader, TextReader) else ""
        return f"{type(self).__name__}({self.info.shape}{first})"

    @property
    def places(self) -> Any:
        """The adapter's own record of where things are in the model."""
        return self.passes.places

    @property
    def model(self) -> Any:
        """The user's own object."""
        return self.passes.places.model

    @cached_property
    def turns(self) -> Turns:
        """One call at a time on this model, by whichever host; see `sa_plugin.host.turns`."""
        return turns_of(self.passes.places)

    def left_over(self) -> Undo:
        """What puts back what the library leaves of a call that is cut off."""
        return self.passes.left_over()

    def batches(self, samples: Sequence[Sample], *, batch_tokens: int | None = None) -> list[Batch]:
        """Samples ready for the model: texts of like length together, whole; images in order.

        Args:
            samples: The samples.
            batch_tokens: At most this many tokens a batch, padding and special ones included (one
                sample at least); by default what the host was attached with.

        Raises:
            ValueError: A sample is of the other kind, a text has no token or more than the model's
                context holds, or pixels are no RGB image.
        """
        # Fast tokenizers refuse two threads at once.
        with self.turns.lock:
            return self.reader.batches(samples, self.batch_tokens if batch_tokens is None else batch_tokens)

    @one_turn
    def read(self, batch: Batch, sites: Sequence[Site], reduce: Reduce) -> dict[Any, Tensor]:
        """Run one pass up to the deepest of `sites` and reduce what was read.

        Args:
            batch: From `batches`.
            sites: What to read.
            reduce: Sees a clone of each tensor, on the model's device and in its number format.

        Returns:
            What `reduce` returned, on the CPU.

        Raises:
            ValueError: No site, an unknown one, or the model is in training mode or edited.
            RuntimeError: A part did not come by exactly once.
        """
        self.passes.refuse_unready()
        parts = parts_of(self.places, self.info, sites)
        found = self.passes.read(self.passes.inputs(batch.inputs), list(parts.values()))
        with torch.no_grad():
            kept = reduce({site: found[part] for site, part in parts.items()})
        return {key: value.cpu() for key, value in kept.items()}

    def hook_name(self, site: Site) -> str:
        """The library's own name of a site.

        TransformerLens has `blocks.8.hook_resid_post`; nnsight `transformer.h.8.output`, whose
        value inside a trace is `model.get(path)` (a pattern's path ends in an index, `[1]`).

        Raises:
            ValueError: No such layer or point.
        """
        return self.passes.places.hook_name(part_of(self.places, self.info, site))

    def output_projection(self, layer: int) -> OutputProjection:
        """The attention output projection of one block, one slice a query head, in float32.

        In a post_norm model the sum of the heads passes a norm before it is `attn_out`; LayerScale
        (DINOv2) and tanh gates (Mllama) are folded in.
        """
        part_of(self.places, self.info, Site(layer, "z"))
        return self.passes.places.output_projection(layer)

    @one_turn
    def norms(self, layer: int) -> BlockNorms:
        """The norms of one block; see `sa_plugin.host.protocol.DescribedHost`."""
        part_of(self.places, self.info, Site(layer, "z"))
        entry = None
        if self.info.block == "staged" and layer:
            entry = weights.entry_norm(self, layer, self._probe_batch(), self.places.entry())
        return weights.block_norms(self.passes.places, self.info.block, layer, entry)

    @one_turn
    def attention_weights(self, layer: int) -> AttentionWeights:
        """Query, key and value maps of one block, proved on a short input."""
        norm = self.norms(layer).attn_in
        return weights.attention_weights(self, self.passes.places, layer, norm, self._probe_batch())

    def edited(self, edits: Mapping[Site, Edit]) -> AbstractContextManager[None]:
        """Replace `z` and MLP outputs in every pass inside; see `sa_plugin.host.protocol.EditableHost`.

        Runs of your own see the edit too. Other threads wait for the model until the context is left.
        """
        return edited(self, edits)

    def forward_inputs(self, sample: Sample) -> dict[str, Tensor]:
        """What the model is called with for one sample, a batch of one, on its device.

        A text gives `input_ids` and `attention_mask`, an image `pixel_values`.
        """
        return self.passes.inputs(self.batches([sample])[0].inputs)

    @one_turn
    def input_values(self, batch: Batch) -> Tensor:
        """Embeddings or pixels; see `sa_plugin.host.protocol.DifferentiableHost`."""
        if _is_image(batch):
            return _like_weights(self.passes.places, batch.inputs["pixel_values"])
        return self.passes.embeddings(self.passes.inputs(batch.inputs))

    def forward_from(self, values: Tensor, batch: Batch, site: Site) -> Tensor:
        """The activations at a site as a function of embeddings or pixels.

        See `sa_plugin.host.protocol.DifferentiableHost`.

        Raises:
            ValueError: No such site, training mode, or values that are not the batch's in shape.
        """
        return self.forward_sites(values, batch, [site])[site]

    @one_turn
    def forward_sites(self, values: Tensor, batch: Batch, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """The same for several sites in one pass, up to the deepest of them."""
        self.passes.refuse_unready()
        other = next((site.point for site in sites if site.point not in RESIDUAL), None)
        if other is not None:
            raise ValueError(
                f"point {other!r} is not [batch, token, d_model]: use one of {', '.join(RESIDUAL)}."
            )
        parts = parts_of(self.places, self.info, sites)
        times = _times(values, batch)
        if _is_image(batch):
            if values.ndim != 4:
                raise ValueError(
                    f"values have shape {list(values.shape)}; this model takes pixels "
                    "[row, 3, height, width]."
                )
            pixels = {"pixel_values": _like_weights(self.passes.places, values)}
            found = self.passes.forward(self.passes.inputs(pixels), None, list(parts.values()))
        else:
            own = self.passes.inputs(batch.inputs)
            inputs = {name: one.repeat(times, *[1] * (one.ndim - 1)) for name, one in own.items()}
            found = self.passes.forward(inputs, values, list(parts.values()))
        return {site: found[part] for site, part in parts.items()}

    @one_turn
    def hook_changes_output(self, hook_name: str) -> bool:
        """Whether the model's output changes when its library edits a place.

        Costs three forward passes over a short input.

        Raises:
            ValueError: The model has no such place.
        """
        return bool(_write_effect(self.passes, hook_name, self._probe_inputs()))

    @one_turn
    def check_writable(self, hook_name: str) -> None:
        """Refuse a place whose edits the model would silently lose.

        Call it before any intervention of your own: in encoders and vision towers TransformerLens's
        `attn.hook_pattern` fires and changes nothing, and on nnsight attention probabilities can be
        read and not written in any architecture of transformers.

        Raises:
            ValueError: The model has no such place, does not pass it, or an edit changes nothing.
        """
        demand_writable(self.passes, hook_name, self._probe_inputs())

    def check_samples(self) -> list[Sample]:
        """Samples of unlike size for `sa_plugin.host.checks.check`."""
        return self.reader.check_samples()

    @one_turn
    def laws(self, samples: Sequence[Sample]) -> list[Law]:
        """The laws that only a local model can be held to: those of `attach` again, and padding."""
        if not samples:
            raise ValueError("samples is empty: give at least one, such as data.test.samples[:2].")
        longest = max(samples, key=lambda sample: len(sample.text))
        seen = probe(self.passes, self.forward_inputs(longest))
        if isinstance(self.reader, TextReader):
            own = _padding_law(self, self.reader, samples, self.places.padding_sides)
        else:
            own = _patch_law(self.passes, self.reader)
        return [*seen.laws, own]

    def _probe_batch(self) -> Batch:
        sample = Sample("probe", PROBE_TEXT, "probe")
        if not isinstance(self.reader, TextReader):
            sample = self.check_samples()[0]
        return self.batches([sample])[0]

    def _probe_inputs(self) -> dict[str, Tensor]:
        return self.passes.inputs(self._probe_batch().inputs)


def _is_image(batch: Batch) -> bool:
    # Not `in batch.inputs`, which would make the pixels.
    return "pixel_values" in list(batch.inputs)


def _like_weights(places: Places, values: Tensor) -> Tensor:
    weight = next(places.root.parameters())
    return values.to(weight.device, weight.dtype)


def _times(values: Tensor, batch: Batch) -> int:
    rows = len(batch.rows)
    if not len(values) or len(values) % rows:
        raise ValueError(
            f"values have {len(values)} rows, the batch {rows} samples: give a whole multiple, the "
            "samples in turn ([a, b, a, b, ...])."
        )
    return len(values) // rows


def demand_embedded(values: Tensor, embedded: Tensor) -> None:
    """Refuse embeddings that are not the batch's in shape; an adapter calls it where it has both.

    Raises:
        ValueError: They are not.
    """
    if values.shape != embedded.shape:
        raise ValueError(
            f"values have shape {list(values.shape)}, the batch's embeddings "
            f"{list(embedded.shape)} [row, token, d_embed]: perturb what input_values(batch) "
            "returns, token by token in the same places."
        )


def refuse_training(root: nn.Module) -> None:
    """Dropout would make every number random.

    Raises:
        ValueError: Any module is in training mode.
    """
    if any(module.training for module in root.modules()):
        raise ValueError("the model is in training mode: call model.eval() first.")


def refuse_altered(root: nn.Module) -> None:
    """Refuse what a library has put in the place of a model's modules, where it cannot be read.

    Raises:
        ValueError: The model is compiled, its linear layers are quantised dynamically, or its weights
            are elsewhere until a module runs (accelerate's offloading).
    """
    if hasattr(root, "_orig_mod"):
        raise ValueError(
            "the model is compiled (torch.compile): its modules do not run one by one, so nothing between "
            "them can be read. Attach the module that was compiled, model._orig_mod; it has the same weights."
        )
    for name, module in root.named_modules():
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise ValueError(
                f"{name!r} is a {type(module).__module__}.{type(module).__name__}: its weights are packed "
                "integers, which cannot be read as a projection's. Attach the model before "
                "torch.ao.quantization.quantize_dynamic."
            )
    away = next((name for name, one in root.named_parameters() if one.is_meta), None)
    if away is not None:
        raise ValueError(
            f"the weights of {away!r} are on the meta device: they are offloaded (accelerate's cpu_offload, "
            "disk_offload, a device_map with 'cpu' or 'disk') or were never loaded, so they can be neither "
            "read nor hashed. Load the whole model on one device, or on several with device_map over GPUs "
            "alone."
        )


@contextmanager
def edited(host: LocalHost, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Replace `z` and MLP outputs in every pass inside the context; see `EditableHost.edited`."""
    if not edits:
        raise ValueError("edits is empty: give at least one {Site(layer, 'z'): function}.")
    for site in edits:
        if site.point not in EDITED:
            raise ValueError(f"{site} cannot be edited: only 'z' and 'mlp_out' are causal everywhere.")
    passes, info, watches = host.passes, host.info, {}
    with hold(host.turns, "edited", host.left_over) as turn:
        for site, edit in edits.items():
            name = passes.places.hook_name(part_of(passes.places, info, site))
            if site.point == "mlp_out":
                demand_writable(passes, name, host._probe_inputs())
                watches[site] = EditWatch(name, edit, None, info.dtype)
                continue
            attends = isinstance(edit, ZEdit) and edit.attends
            reader = AttendedReader(site.layer, info.causal, info.n_heads) if attends else None
            projection = passes.places.output_projection(site.layer)
            watches[site] = EditWatch(name, edit, projection, info.dtype, reader)
        with passes.watching(watches):
            host.turns.hold(turn)
            yield
        for watch in watches.values():
            watch.finish()


def _write_effect(passes: Passes, name: str, inputs: Mapping[str, Tensor]) -> float | None:
    """Largest change of the output when noise of its own size is added at a place.

    Args:
        passes: Of an opened model; three are run.
        name: The library's own name of the place.
        inputs: What the model is called with.

    Returns:
        The change, 0.0 if it is no larger than between two clean runs; None if the place was not
        passed.

    Raises:
        ValueError: The model has no such place, or it carries no real numbers.
    """
    fired: list[bool] = []

    def disturb(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            raise ValueError(
                f"{name!r} carries {value.dtype}, which cannot be nudged: patch the embeddings behind it."
            )
        fired.append(True)
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        # Masked logits hold the format's lowest number, which would drown all others.
        size = value.float().clamp(-1e4, 1e4).std() + 0.1
        return value + (size * noise.to(value.device)).to(value.dtype)

    clean, again = (passes.output(inputs).float() for _ in range(2))
    changed = passes.output(inputs, name, disturb).float()
    if not fired:
        return None
    change, noise = ((other - clean).abs().amax() for other in (changed, again))
    # A model that the edit makes NaN is changed by it.
    return 0.0 if change <= noise else float(change.nan_to_num(torch.inf))


def demand_writable(passes: Passes, name: str, inputs: Mapping[str, Tensor]) -> None:
    """Refuse a place whose edits would be lost.

    Raises:
        ValueError: The place does not exist, is not passed, or changes nothing.
    """
    effect, architecture = _write_effect(passes, name, inputs), passes.places.architecture
    if effect is None:
        raise ValueError(
            f"{name!r} of {architecture} never fires, so an edit there would be silently lost. Patch "
            "a place that a run of the model passes."
        )
    if not effect:
        raise ValueError(
            f"{name!r} of {architecture} fires and changes nothing: an edit there would be silently lost. "
            "Edit z in its place, the input of the attention's output projection "
            f"({passes.places.hook_name((0, 'z'))!r} in block 0); an edit of the pattern is an edit of "
            "z = pattern @ v."
        )


H = TypeVar("H", bound=LocalHost)


@dataclass(frozen=True)
class Probe:
    """What the passes of a check showed.

    Attributes:
        block: How blocks add up.
        causal: Whether no token attends to a later one.
        passes: That know the order of parts.
        laws: What was measured.
    """

    block: Block
    causal: bool
    passes: Passes
    laws: tuple[Law, ...]


def probe(passes: Passes, inputs: Mapping[str, Tensor], *, final_norm: bool = False) -> Probe:
    """Read every part of every block in one pass, to the end, and measure.

    Args:
        passes: Over a model in eval mode.
        inputs: What it is called with: one unpadded text of two tokens or more, or one image.
        final_norm: Whether the norm behind the last block is to be read later.

    Raises:
        ValueError: A part is missing or does not come by once, a law does not hold, or blocks add
            up in no known way.
    """
    places, layers = passes.places, range(passes.places.n_layers)
    name, limit = places.architecture, tolerance(_number_format(places))
    parts = [(k, part) for k in layers for part in places.parts if part != "pattern" or not places.crosses(k)]
    last = [(layers[-1], FINAL)] if final_norm else []
    passes = passes.settle(inputs, [*parts, *last])
    try:
        with module_streams(places.blocks()) as own:
            found = passes.read(inputs, parts, kept_part)
    except RuntimeError as error:
        raise BrokenLawError(f"{name} cannot be attached: {error}") from error
    blocks = [{part: found[k, part] for part in places.parts if (k, part) in found} for k in layers]
    # A block that something is spliced into is no sum, and its own tensors are not what flows on.
    whole = [k for k in layers if not places.spliced(k)]
    if not whole:
        raise ValueError(f"{name}: {places.spliced(0)!r} and the like replace what every block reads.")
    stream = stream_law({k: blocks[k] for k in whole}, own)
    demand(name, stream)
    kind, gap = structure(name, [blocks[k] for k in whole], limit)
    block = in_stages(name, kind, blocks, whole)
    projection = projection_law(blocks, [places.output_projection(k) for k in layers], limit)
    laws = (
        Law("every part of a block comes by exactly once", 0.0),
        stream,
        *passes.own_laws(blocks, inputs, limit),
        Law(f"blocks add up as {kind}", gap, limit),
        projection,
    )
    for law in laws:
        demand(name, law)
    return Probe(block, is_causal(blocks), passes, laws)


def _number_format(places: Places) -> str:
    """Number formats of the blocks' weights."""
    formats = {str(p.dtype) for b in places.blocks() for p in b.parameters() if p.is_floating_point()}
    return "+".join(sorted(name.removeprefix("torch.") for name in formats))


def open_texts(host: type[H], passes: Passes, options: Options) -> H:
    """Check a model of texts and make a host of it.

    Args:
        host: Class of the host.
        passes: Over the model.
        options: With the tokenizer that is to be used.

    Raises:
        ValueError: A processor, no tokenizer or one without offsets, a part that does not come by
            exactly once, a residual that is not the model's own hidden state or that padding
            changes, or blocks that add up in no known way.
    """
    if options.processor is not None:
        raise ValueError(f"{passes.places.architecture} reads texts: leave the processor out.")
    make = partial(_open_texts, host, passes, options)
    return take(turns_of(passes.places), "attach", passes.left_over, make)


def _open_texts(host: type[H], passes: Passes, options: Options) -> H:
    refuse_altered(passes.places.root)
    reader = text_reader(passes.places, options)
    seen = probe(passes, passes.inputs(reader.probe_inputs()), final_norm=options.final_norm)
    info = replace(_describe(seen, options, reader.bos), tokenizer=reader.encode.digest)
    made = host(seen.passes, info, reader, options.batch_tokens, options.progress)
    sample = Sample("probe", PROBE_TEXT, "probe")
    demand(info.architecture, _padding_law(made, reader, [sample], [reader.padding_side]))
    return made


def text_reader(places: Places, options: Options) -> TextReader:
    """What turns texts into batches, as was asked for at `attach`.

    Raises:
        ValueError: No tokenizer, or one without offsets.
    """
    check_tokenizer(options.tokenizer)
    encode = TextEncoder(options.tokenizer, options.add_special_tokens, options.bos)
    positions = positions_of(places.root, places.context_length)
    # The lowest float64 is -inf to a softmax in float32, and a row that sees nothing else is NaN.
    pads = "float64" not in _number_format(places)
    side = cast(PaddingSide, options.padding_side)
    return TextReader(encode, places.model_name, positions, side, pads, vocabulary_of(places.root))


def open_images(host: type[H], passes: Passes, config: Any, options: Options) -> H:
    """Check a model of images and make a host of it.

    Args:
        host: Class of the host.
        passes: Over the model.
        config: The model's configuration, with its sizes.
        options: With the processor that is to be used.

    Raises:
        ValueError: A tokenizer, no image processor or one whose geometry is unknown; else as
            `open_texts`.
    """
    places = passes.places
    if options.tokenizer is not None:
        raise ValueError(f"{places.architecture} reads images: leave the tokenizer out.")
    make = partial(_open_images, host, passes, config, options)
    return take(turns_of(places), "attach", passes.left_over, make)


def _open_images(host: type[H], passes: Passes, config: Any, options: Options) -> H:
    from sa_plugin.host import mllama
    from sa_plugin.host.images import ImageReader, model_processor, noise

    places = passes.places
    refuse_altered(places.root)
    processor = model_processor(options.processor, config, places.architecture, places.model_name)
    inputs = passes.inputs({"pixel_values": noise(processor.size)})
    seen = probe(passes, inputs, final_norm=options.final_norm)
    tokens = seen.passes.read(inputs, [EMBEDDED])[EMBEDDED].shape[1]
    patches = processor.size[0] * processor.size[1] // processor.patch**2
    # Everything that is no patch stands first, but in Mllama.
    n_special = 1 if places.kind == mllama.VISION else tokens - patches
    reader = ImageReader(processor, places.model_name, n_special, tokens - patches - n_special)
    demand(places.architecture, _patch_law(seen.passes, reader))
    info = _describe(seen, options, n_special > 0)
    return host(seen.passes, info, reader, options.batch_tokens, options.progress)


def _patch_law(passes: Passes, reader: ImageReader) -> Law:
    from sa_plugin.host.images import patch_law

    def embed(pixels: Tensor) -> Tensor:
        return passes.read(passes.inputs({"pixel_values": pixels}), [EMBEDDED])[EMBEDDED]

    return patch_law(reader.processor, reader.n_special, embed)


def _padding_law(
    host: LocalHost, reader: TextReader, samples: Sequence[Sample], sides: Sequence[PaddingSide]
) -> Law:
    if not reader.pads:
        return Law("padding changes nothing", None, note="texts of a float64 model are not padded")
    padded: dict[str, Sequence[Batch]] = {
        side: replace(reader, padding_side=side).batches(samples, 1_000_000, extra=5) for side in sides
    }
    return padding_law(host, [reader.batches([sample], 1) for sample in samples], padded)


def _describe(seen: Probe, options: Options, bos: bool) -> HostInfo:
    places, final_norm = seen.passes.places, options.final_norm
    n_heads, d_head, d_model = places.output_projection(0).weight.shape
    hashed = dict(places.parameters())
    if final_norm:
        hashed |= weights.of_final_norm(places.final_norm())
    processing = [*filter(None, [places.processing]), *([FINAL_NORM] if final_norm else [])]
    return HostInfo(
        host=places.library,
        model=places.model_name,
        architecture=places.architecture,
        n_layers=places.n_layers,
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_head,
        block=seen.block,
        causal=seen.causal,
        bos=bos,
        processing=", ".join(processing) or "none",
        dtype=_number_format(places),
        fingerprint=weights.fingerprint(places.kind, hashed),
    )
