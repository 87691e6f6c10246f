"""What hosts of texts and of images share: reading a TransformerBridge by its hooks.

The weights of a bridge by the names that every host uses, and their hash.

The tokenizer of a bridge as it was before TransformerLens made it add a BOS token.

TransformerLens rebuilds a tokenizer that has a BOS token so that it always puts it first, also for
models never trained with it (SmolLM2, GPT-2); `own_tokenizer` gives the tokenizer as it was.
`attach(bridge, tokenizer=bridge.tokenizer)` keeps the BOS of TransformerLens. How texts become
batches is `sa_plugin.host.texts`.

A TransformerBridge of a vision model as a host; see `sa_plugin.host.images` for its tokens.

A TransformerBridge of a text model as a host, and `attach` for every bridge.

Load a Hugging Face model folder into a TransformerBridge, without network.

What a folder becomes is said in `sa_plugin.host.folders`; TransformerLens has no DINOv2, so its
LayerScale is folded and it is a ViT, and no CLIP, so `sa_transformer_lens.towers` brings both
towers, and those of LLaVA and Mllama.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin._check import require
from sa_plugin.data.sample import Sample
from sa_plugin.host import mllama, texts
from sa_plugin.host import weights as shared
from sa_plugin.host.check import Law
from sa_plugin.host.folders import Loaded, load_folder
from sa_plugin.host.images import Processor, check_images, image_batches, model_processor, noise, patch_law
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
    Owed,
    Point,
    Reduce,
    Site,
)
from sa_plugin.host.texts import check_tokenizer
from sa_transformer_lens import places
from sa_transformer_lens.gradients import forward_sites, input_values
from sa_transformer_lens.places import capture
from sa_transformer_lens.proofs import demand_writable, output_projection, probe, write_effect

FINAL_HOOK = "ln_final.hook_out"


@dataclass(frozen=True, eq=False)
class BridgeHost:
    """A checked TransformerBridge.

    Attributes:
        bridge: The user's bridge. It is read, never changed: hooks live for one call.
        info: What is fixed about the model.
        points: Hook of each point, inside a block.
        batch_tokens: At most this many tokens a batch.
        progress: Whether walks over the model show a bar.
    """

    bridge: Any
    info: HostInfo
    points: Mapping[Point, str]
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

    def read(self, batch: Batch, sites: Sequence[Site], reduce: Reduce) -> dict[Any, Tensor]:
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
        """The norms of one block; see `sa_plugin.host.protocol.DescribedHost`."""
        return places.block_norms(self, layer)

    def attention_weights(self, layer: int) -> AttentionWeights:
        """Query, key and value maps of one block, proved on a short input."""
        return places.attention_weights(self, layer)

    def explain(
        self,
        objective: Any,
        sample: Sample,
        replaced: Bool[np.ndarray, " token"],
        mean_embedding: Float[Tensor, " d_model"] | None,
        *,
        seed: int = 0,
    ) -> Owed:
        """What an objective owes to tokens and heads; see `sa_plugin.host.protocol.ExplainingHost`."""
        from sa_transformer_lens.explain import explain

        return explain(self, objective, sample, replaced, mean_embedding, seed=seed)

    def edited(self, edits: Mapping[Site, Edit]) -> AbstractContextManager[None]:
        """Replace `z` in every pass inside; see `sa_plugin.host.protocol.EditableHost`."""
        from sa_transformer_lens.edits import edited

        return edited(self, edits)

    def input_values(self, batch: Batch) -> Tensor:
        """Embeddings or pixels; see `sa_plugin.host.protocol.DifferentiableHost`."""
        return input_values(self.bridge, batch)

    def forward_from(self, values: Tensor, batch: Batch, site: Site) -> Tensor:
        """The activations at a site as a function of embeddings or pixels.

        See `sa_plugin.host.protocol.DifferentiableHost`.

        Raises:
            ValueError: No such site, training mode, or values that are not the batch's in shape.
        """
        refuse_training(self.bridge)
        name = self.hook_name(site)
        return forward_sites(self.bridge, values, batch, {site: name}, name)[site]

    def forward_sites(self, values: Tensor, batch: Batch, sites: Sequence[Site]) -> dict[Site, Tensor]:
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
        raise ValueError(f"{bridge.cfg.architecture} has no hook {FINAL_HOOK!r}: leave final_norm out.")
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


HEADS = ("ln_final", "unembed", "mlm_head", "nsp_head", "pooler")


def fingerprint(bridge: Any, *, final_norm: bool = False) -> str:
    """Hash of the weights before and in the blocks; see `sa_plugin.host.weights`.

    It changes when compatibility mode rewrites the weights.
    """
    model = bridge.original_model
    behind = _behind_the_last_block(bridge)
    context = getattr(bridge, "context", None)
    found: dict[str, Tensor] = {} if context is None else {shared.CONTEXT: context}
    for name, parameter in model.named_parameters():
        plain = name.replace("._original_component", "")
        # The bridge keeps a fused map beside the parts it computes with.
        if id(parameter) not in behind and ".qkv." not in plain:
            found[shared.relative_name(plain, model.base_model_prefix)] = parameter
    if final_norm:
        found |= shared.of_final_norm(bridge.ln_final)
    return shared.fingerprint(str(model.config.model_type), found)


def _behind_the_last_block(bridge: Any) -> set[int]:
    def parameters(component: Any) -> set[int]:
        return {id(p) for p in component.parameters()} if component is not None else set()

    behind = set().union(*(parameters(getattr(bridge, name, None)) for name in HEADS))
    # A tied unembedding is the embedding.
    return behind - parameters(getattr(bridge, "embed", None))


LACKING = (
    "the bridge has no tokenizer, so texts cannot be read: boot it with tokenizer=..., or "
    "attach(bridge, tokenizer=...)."
)


def own_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer by its own rule for special tokens.

    Raises:
        ValueError: There is none, it gives no offsets, or it cannot be told whether the BOS it
            puts first is its own.
    """
    check_tokenizer(tokenizer, LACKING)
    if not getattr(tokenizer, "add_bos_token", False):
        return tokenizer
    text = "The cat sat."
    ids = tokenizer(text).input_ids
    if not ids or ids[0] != tokenizer.bos_token_id:
        return tokenizer
    fresh = _as_saved(tokenizer)
    # The rebuilt tokenizer may also have lost a token it should put last.
    same = fresh(text).input_ids == ids
    plain, ours = (tok(text, add_special_tokens=False).input_ids for tok in (fresh, tokenizer))
    if not same and plain != ours:
        raise ValueError(
            f"the tokenizer at {tokenizer.name_or_path!r} and the bridge's differ beyond the BOS "
            "token that TransformerLens adds: say which to use, attach(bridge, tokenizer=...)."
        )
    return fresh


def _as_saved(tokenizer: Any) -> Any:
    from sa_plugin._check import require

    transformers = require("transformers", "transformer-lens", "reading a tokenizer")
    source = tokenizer.name_or_path
    try:
        return transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"TransformerLens makes tokenizers add BOS, and {source!r} cannot be read again to "
            "see whether this one does so itself: say which to use, attach(bridge, tokenizer=tok) "
            "or, to keep the BOS, attach(bridge, tokenizer=bridge.tokenizer)."
        ) from error


EMBEDDED = "blocks.0.hook_resid_pre"


@dataclass(frozen=True, eq=False, repr=False)
class TransformerLensVisionHost(BridgeHost):
    """A checked TransformerBridge of a vision model; make one with `sa_plugin.attach(bridge)`.

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

    def probe_inputs(self) -> dict[str, Tensor]:
        """Noise."""
        return {"pixel_values": noise(self.processor.size)}

    def check_samples(self) -> list[Sample]:
        """Images of several sizes for `sa_plugin.host.check.check`."""
        return check_images()

    def laws(self, samples: Sequence[Sample]) -> list[Law]:
        """The laws that only this adapter can measure: those of `attach` again."""
        seen = probe(self.bridge, self.forward_inputs(samples[0]), self.info.dtype)
        return [*seen.laws, _patch_law(self.bridge, self.processor, self.n_special)]


def attach_vision(
    bridge: Any, processor: Any, batch_tokens: int, progress: bool, final_norm: bool
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
    n_special = 1 if str(config.model_type) == mllama.VISION else tokens - patches
    demand(architecture, _patch_law(bridge, ours, n_special))
    info = HostInfo(
        **describe(bridge, final_norm=final_norm),
        block=seen.block,
        causal=seen.causal,
        bos=n_special > 0,
        fingerprint=fingerprint(bridge, final_norm=final_norm),
    )
    after = tokens - patches - n_special
    return TransformerLensVisionHost(
        bridge, info, seen.points, batch_tokens, progress, ours, n_special, after
    )


def _patch_law(bridge: Any, processor: Processor, n_special: int) -> Law:
    def embed(pixels: Tensor) -> Tensor:
        return capture(bridge, [EMBEDDED], {"pixel_values": pixels}, EMBEDDED)[EMBEDDED]

    return patch_law(processor, n_special, embed)


@dataclass(frozen=True, eq=False, repr=False)
class TransformerLensHost(BridgeHost):
    """A checked TransformerBridge of a text model; make one with `sa_plugin.attach(bridge)`.

    Attributes:
        tokenizer: By its own rule for special tokens, see `tokenise`.
        padding_side: Where padding goes; it changes no number.
        add_special_tokens: Whether the tokenizer's own rule for special tokens holds.
    """

    tokenizer: Any
    padding_side: texts.PaddingSide = "right"
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
        return texts.text_batches(
            samples,
            self.tokenizer,
            model=self.info.model,
            context=self.bridge.cfg.n_ctx,
            batch_tokens=most,
            side=self.padding_side,
            extra=extra,
            add_special_tokens=self.add_special_tokens,
        )

    def probe_inputs(self) -> dict[str, Tensor]:
        """A short text."""
        return self.forward_inputs(Sample("probe", texts.PROBE_TEXT, "probe"))

    def laws(self, samples: Sequence[Sample]) -> list[Law]:
        """The laws that only this adapter can measure: those of `attach` again, and padding."""
        longest = max(samples, key=lambda sample: len(sample.text))
        seen = probe(self.bridge, self.forward_inputs(longest), self.info.dtype)
        return [*seen.laws, _padding_law(self, samples, get_args(texts.PaddingSide))]


def attach_bridge(
    bridge: Any,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    tower: str | None = None,
    padding_side: str = "right",
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
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
            `sa_plugin.host.images.Processor`; by default the bridge's.
        tower: A bridge is of one tower already; `sa_transformer_lens.towers.tower_bridge` makes it.
        padding_side: Of texts: "right" or "left".
        batch_tokens: At most this many tokens a batch.
        progress: Whether walks over the model show a bar.
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
    if padding_side not in get_args(texts.PaddingSide):
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
        return attach_vision(bridge, processor, batch_tokens, progress, final_norm)
    if processor is not None:
        raise ValueError(f"{bridge.cfg.architecture} reads texts: leave the processor out.")
    options = {
        "tokenizer": own_tokenizer(bridge.tokenizer) if tokenizer is None else tokenizer,
        "padding_side": padding_side,
        "batch_tokens": batch_tokens,
        "progress": progress,
        "add_special_tokens": add_special_tokens,
    }
    return _attach_text(bridge, final_norm, options)


def _attach_text(bridge: Any, final_norm: bool, options: dict[str, Any]) -> TransformerLensHost:
    tokenizer, special = options["tokenizer"], options["add_special_tokens"]
    texts.check_tokenizer(tokenizer)
    ids = torch.from_numpy(texts.encode(tokenizer, [texts.PROBE_TEXT], special)[0].ids)[None]
    if ids.shape[1] < 2:
        raise ValueError(f"the tokenizer makes {ids.shape[1]} token of {texts.PROBE_TEXT!r}.")
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    seen = probe(bridge, inputs, number_format(bridge))
    info = HostInfo(
        **describe(bridge, final_norm=final_norm),
        block=seen.block,
        causal=seen.causal,
        bos=texts.puts_special_first(tokenizer, special),
        fingerprint=fingerprint(bridge, final_norm=final_norm),
        tokenizer=texts.digest(tokenizer, special),
    )
    host = TransformerLensHost(bridge, info, seen.points, **options)
    sample = Sample("probe", texts.PROBE_TEXT, "probe")
    demand(info.architecture, _padding_law(host, [sample], [host.padding_side]))
    return host


def _padding_law(
    host: TransformerLensHost, samples: Sequence[Sample], sides: Sequence[texts.PaddingSide]
) -> Law:
    padded: dict[str, Sequence[Batch]] = {
        side: replace(host, padding_side=side)._batches(samples, 1_000_000, extra=5) for side in sides
    }
    return padding_law(host, [host._batches([sample], 1) for sample in samples], padded)


def load_bridge(folder: str | Path, *, dtype: torch.dtype = torch.float32, tower: str | None = None) -> Any:
    """A text or vision model as a TransformerBridge in eval mode.

    Args:
        folder: What `save_pretrained` wrote, with the tokenizer or the image processor; or a name
            that `sa_plugin.host.find_folder` knows.
        dtype: Number format of the weights.
        tower: "vision" or "text": which half of a model with two to load.

    Returns:
        The bridge, or of Mllama a `HookedMllama`. One of a vision model has the folder's image
        processor as `bridge.processor`, or None if the folder holds none.

    Raises:
        FileNotFoundError: As `find_folder`.
        ImportError: TransformerLens is not installed.
        ValueError: A folder of two towers and no tower, or a tower and no such folder; a DINOv2
            that is no plain ViT.

    Example:
        >>> bridge = load_bridge("smollm2")  # doctest: +SKIP
    """
    require("transformer_lens", "transformer-lens", "loading a bridge")
    loaded = load_folder(folder, dtype=dtype, tower=tower, fold=True)
    if loaded.tower is not None:
        from sa_transformer_lens.towers import tower_bridge

        return tower_bridge(
            loaded.model,
            loaded.tower,
            tokenizer=loaded.tokenizer,
            processor=loaded.processor,
            name=loaded.name,
        )
    if type(loaded.model).__name__.startswith("CLIP"):
        from sa_transformer_lens.towers import register

        register()
        return _module_bridge(loaded)
    return _module_bridge(loaded) if loaded.tokenizer is None else _text_bridge(loaded, dtype)


def load_model(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, tower: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """What `sa_plugin.host.folders` calls: the bridge, and no options for `attach`.

    Args:
        folder: What `save_pretrained` wrote.
        dtype: Number format of the weights.
        tower: Which half of a model with two.

    Raises:
        FileNotFoundError: No model there.
        ImportError: TransformerLens is not installed.
        ValueError: As `load_bridge`.
    """
    return load_bridge(folder, dtype=dtype, tower=tower), {}


def _text_bridge(loaded: Loaded, dtype: torch.dtype) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        loaded.name, hf_model=loaded.model, tokenizer=loaded.tokenizer, device="cpu", dtype=dtype
    )


def _module_bridge(loaded: Loaded) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = loaded.model
    # boot_transformers would look for an image processor of the folder's name on the hub.
    bridge = build_bridge_from_module(
        model,
        type(model).__name__,
        hf_config=model.config,
        model_name=loaded.name,
        tokenizer=loaded.tokenizer,
    )
    if loaded.tokenizer is None:
        bridge.processor = loaded.processor
    return bridge
