"""Check an nnsight model that runs on this machine, and wrap it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from sa_nnsight.envoy_host import EnvoyHost, describe, refuse_unready
from sa_nnsight.paths import Places, locate
from sa_nnsight.probe import probe
from sa_nnsight.vision import NNsightVisionHost, attach_vision
from sa_plugin import tokenise
from sa_plugin.checks import Law
from sa_plugin.data import Sample
from sa_plugin.host import Batch, HostInfo
from sa_plugin.patches import context_states
from sa_plugin.structure import demand, padding_law

TOWERS = {"vision": ("vision_model", "vision_tower"), "text": ("text_model", "language_model")}


@dataclass(frozen=True, eq=False, repr=False)
class NNsightHost(EnvoyHost):
    """A checked nnsight model of texts; make one with `sa_plugin.attach(model)`.

    Attributes:
        tokenizer: By its own rule for special tokens.
        padding_side: Where padding goes; it changes no number.
        batch_tokens: Default size of batches.
        add_special_tokens: Whether the tokenizer's own rule for special tokens holds.
        context: States of the image that every text is read with, or None.
    """

    tokenizer: Any
    padding_side: tokenise.PaddingSide = "right"
    batch_tokens: int = 2048
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
        return tokenise.text_batches(
            samples, self.tokenizer, model=self.info.model, batch_tokens=most,
            context=getattr(config, "max_position_embeddings", None),
            side=self.padding_side, extra=extra, add_special_tokens=self.add_special_tokens,
        )  # fmt: skip

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What the model is called with for a batch, on its device."""
        return _with_context(super().inputs(batch), self.context)

    def probe_sample(self) -> Sample:
        """A short text."""
        return Sample("probe", tokenise.PROBE_TEXT, "probe")

    def laws(self, samples: Sequence[Sample]) -> list[Law]:
        """The laws that only this adapter can measure: those of `attach` again, and padding."""
        longest = max(samples, key=lambda sample: len(sample.text))
        inputs = self.forward_inputs(longest)
        seen = probe(self.model, self.places, inputs, self.info.dtype)
        return [*seen.laws, _padding_law(self, samples, get_args(tokenise.PaddingSide))]


def attach_local(
    model: Any,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    paths: Mapping[str, Any] | None = None,
    tower: str | None = None,
    image: Any = None,
    padding_side: str = "right",
    batch_tokens: int = 2048,
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
            `sa_plugin.processor.Processor`; by default the model's.
        paths: Where things are in an architecture that `sa_nnsight.paths.PATHS` does not know, or
            knows wrongly; see `sa_nnsight.paths.ROLES`.
        tower: "vision" or "text": which half of a two-tower model (CLIP, LLaVA, Mllama) to read.
            Only that half runs.
        image: Of an Mllama's text stack: an image that every text is read with, uint8 `[height,
            width, 3]` (with `processor`), or the states `[state, d_model]` that cross-attention
            attends to. Without it the model skips those blocks, and block indices count the others.
        padding_side: Of texts: "right" or "left".
        batch_tokens: Default size of batches.
        add_special_tokens: Of texts: False puts no BOS, CLS or SEP in, as arXiv 2512.05038 does.
        final_norm: Whether `resid_post` of the last block is read behind the final norm, as
            transformers' `hidden_states[-1]` and arXiv 2512.05038 at 100 % have it.

    Raises:
        ValueError: Training mode, default edits, an unknown architecture, no tokenizer or one
            without offsets, no image processor or one whose geometry is unknown, a module that
            does not run exactly once, a residual that is not the model's own hidden state or that
            padding changes, or blocks that add up in no known way.
    """
    if padding_side not in get_args(tokenise.PaddingSide):
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
        return attach_vision(model, places, source, batch_tokens, final_norm)
    if processor is not None and image is None:
        raise ValueError(f"{places.architecture} reads texts: leave the processor out.")
    host = {
        "tokenizer": own_tokenizer if tokenizer is None else tokenizer,
        "padding_side": padding_side, "batch_tokens": batch_tokens,
        "add_special_tokens": add_special_tokens,
        "context": None if image is None else context_states(whole, places.root, image, source),
    }  # fmt: skip
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


def _attach_text(
    model: Any, places: Places, final_norm: bool, options: dict[str, Any]
) -> NNsightHost:
    tokenizer, special = options["tokenizer"], options["add_special_tokens"]
    context = options["context"]
    tokenise.check_tokenizer(tokenizer)
    ids = tokenise.encode(tokenizer, [tokenise.PROBE_TEXT], special)[0].ids
    if len(ids) < 2:
        raise ValueError(f"the tokenizer makes {len(ids)} token of {tokenise.PROBE_TEXT!r}.")
    first = torch.from_numpy(ids)[None].to(next(places.root.parameters()).device)
    inputs = {"input_ids": first, "attention_mask": torch.ones_like(first)}
    known = describe(model, places, final_norm=final_norm, context=context)
    seen = probe(
        model, places, _with_context(inputs, context), known["dtype"], final_norm=final_norm
    )
    info = HostInfo(
        **known, block=seen.block, causal=seen.causal,
        bos=tokenise.puts_special_first(tokenizer, special),
        tokenizer=tokenise.digest(tokenizer, special),
    )  # fmt: skip
    host = NNsightHost(model, info, places, seen.order, **options)
    demand(info.architecture, _padding_law(host, [host.probe_sample()], [host.padding_side]))
    return host


def _with_context(inputs: dict[str, Tensor], context: Tensor | None) -> dict[str, Tensor]:
    if context is None:
        return inputs
    rows = len(inputs["input_ids"])
    return {**inputs, "cross_attention_states": context.expand(rows, -1, -1)}


def _padding_law(
    host: NNsightHost, samples: Sequence[Sample], sides: Sequence[tokenise.PaddingSide]
) -> Law:
    padded: dict[str, Sequence[Batch]] = {
        side: replace(host, padding_side=side)._batches(samples, 1_000_000, extra=5)
        for side in sides
    }
    return padding_law(host, [host._batches([sample], 1) for sample in samples], padded)
