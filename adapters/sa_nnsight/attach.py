"""Check an nnsight model that runs on this machine, and wrap it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import torch

from sa_nnsight.envoy_host import EnvoyHost, describe, refuse_unready
from sa_nnsight.paths import Places, locate
from sa_nnsight.probe import probe
from sa_nnsight.vision import NNsightVisionHost, attach_vision
from sa_plugin import tokenise
from sa_plugin.checks import Law
from sa_plugin.data import Sample
from sa_plugin.host import Batch, HostInfo
from sa_plugin.structure import demand, padding_law

TOWERS = ("vision", "text")


@dataclass(frozen=True, eq=False, repr=False)
class NNsightHost(EnvoyHost):
    """A checked nnsight model of texts; make one with `sa_plugin.attach(model)`.

    Attributes:
        tokenizer: By its own rule for special tokens.
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
        config = getattr(self.places.root, "config", None)
        return tokenise.text_batches(
            samples, self.tokenizer, model=self.info.model, batch_tokens=most,
            context=getattr(config, "max_position_embeddings", None),
            side=self.padding_side, extra=extra,
        )  # fmt: skip

    def probe_sample(self) -> Sample:
        """A short text."""
        return Sample("probe", tokenise.PROBE_TEXT, "probe")

    def laws(self, samples: Sequence[Sample]) -> list[Law]:
        """The laws that only this adapter can measure: those of `attach` again, and padding."""
        longest = max(samples, key=lambda sample: len(sample.text))
        seen = probe(self.model, self.places, self.forward_inputs(longest), self.info.dtype)
        return [*seen.laws, _padding_law(self, samples, get_args(tokenise.PaddingSide))]


def attach_local(
    model: Any,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    paths: Mapping[str, Any] | None = None,
    tower: str | None = None,
    padding_side: str = "right",
    batch_tokens: int = 2048,
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
        tower: "vision" or "text": which half of a two-tower model (CLIP) to read. Only that half
            runs.
        padding_side: Of texts: "right" or "left".
        batch_tokens: Default size of batches.

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
    if tower is not None:
        model = _tower(model, tower)
    refuse_unready(model)
    places = locate(model._module, paths)
    if _reads_images(places):
        if tokenizer is not None:
            raise ValueError(f"{places.architecture} reads images: leave the tokenizer out.")
        source = own_processor if processor is None else processor
        return attach_vision(model, places, source, batch_tokens)
    if processor is not None:
        raise ValueError(f"{places.architecture} reads texts: leave the processor out.")
    side = cast(tokenise.PaddingSide, padding_side)
    given = own_tokenizer if tokenizer is None else tokenizer
    return _attach_text(model, places, given, side, batch_tokens)


def _preprocessors(model: Any) -> tuple[Any, Any]:
    """What nnsight's pipeline brought, looked up on the wrapper alone, not inside the module."""
    own = vars(model)
    return own.get("tokenizer"), own.get("image_processor") or own.get("processor")


def _tower(model: Any, tower: str) -> Any:
    if tower not in TOWERS:
        raise ValueError(f"tower {tower!r} is unknown: use 'vision' or 'text'.")
    name = f"{tower}_model"
    if not hasattr(model._module, name):
        raise ValueError(f"{type(model._module).__name__} has no {name}: leave tower out.")
    return getattr(model, name)


def _reads_images(places: Places) -> bool:
    own = getattr(places.root, "main_input_name", "input_ids") == "pixel_values"
    return own or places.kind.endswith("vision_model")


def _attach_text(
    model: Any, places: Places, tokenizer: Any, side: tokenise.PaddingSide, batch_tokens: int
) -> NNsightHost:
    tokenise.check_tokenizer(tokenizer)
    ids = torch.from_numpy(tokenise.encode(tokenizer, [tokenise.PROBE_TEXT])[0].ids)[None]
    if ids.shape[1] < 2:
        raise ValueError(f"the tokenizer makes {ids.shape[1]} token of {tokenise.PROBE_TEXT!r}.")
    ids = ids.to(next(places.root.parameters()).device)
    known = describe(model, places)
    seen = probe(
        model, places, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, known["dtype"]
    )
    info = HostInfo(
        **known, block=seen.block, causal=seen.causal,
        bos=tokenise.puts_special_first(tokenizer), tokenizer=tokenise.digest(tokenizer),
    )  # fmt: skip
    host = NNsightHost(model, info, places, seen.order, tokenizer, side, batch_tokens)
    demand(info.architecture, _padding_law(host, [host.probe_sample()], [side]))
    return host


def _padding_law(
    host: NNsightHost, samples: Sequence[Sample], sides: Sequence[tokenise.PaddingSide]
) -> Law:
    padded: dict[str, Sequence[Batch]] = {
        side: replace(host, padding_side=side)._batches(samples, 1_000_000, extra=5)
        for side in sides
    }
    return padding_law(host, [host._batches([sample], 1) for sample in samples], padded)
