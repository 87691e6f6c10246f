"""An nnsight model of texts or images as a host, and model folders wrapped by nnsight.

What a folder becomes is said in `sa_plugin.host.folders`: the same module of transformers that a
bridge is made of, but DINOv2, which stays itself.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sa_nnsight.leftovers import trace_left_over
from sa_nnsight.passes import TracePasses
from sa_nnsight.places import EnvoyPlaces, locate, reads_images, require_one_tower
from sa_plugin._check import require, require_known, require_made_by
from sa_plugin._face import face, passing
from sa_plugin.host.adapter import TOWERS
from sa_plugin.host.images import context_states
from sa_plugin.host.laws import BrokenLawError
from sa_plugin.host.local import LocalHost, Options, open_images, open_texts, refuse_altered, refuse_training
from sa_plugin.host.turns import Undo, take, turns_over


@dataclass(frozen=True, eq=False, repr=False)
class NNsightHost(LocalHost):
    """A checked nnsight model; make one with `sa_plugin.attach(model)`. A trace lives for one call."""


@passing(Options, name="attach")
def attach_local(
    model: Any,
    *,
    paths: Mapping[str, Any] | None = None,
    tower: str | None = None,
    image: Any = None,
    **options: Any,
) -> NNsightHost:
    """Check a model once, by a few forward passes over a short input, and wrap it.

    Weights that nnsight has not loaded yet are loaded.

    Args:
        model: A TransformersModel, LanguageModel, VisionLanguageModel or NNsight wrapper of a text
            or vision model, in eval mode.
        paths: Where things are that one pass over the model does not show, or shows wrongly, by role;
            see `sa_nnsight.paths.ROLES`.
        tower: "vision" or "text": which half of a two-tower model (CLIP, LLaVA, Mllama) to read.
            Only that half runs.
        image: Of an Mllama's text stack: an image that every text is read with, uint8 `[height,
            width, 3]` (with `processor`), or the states `[state, d_model]` that cross-attention
            attends to. Without it the model skips those blocks, and block indices count the others.
        **options: Of every adapter, see `sa_plugin.host.local.Options`.

    Raises:
        TypeError: The model is none of nnsight's.
        ValueError: Training mode, default edits, an unknown architecture, an option of the other
            kind of model, or a check fails; see `sa_plugin.host.local.open_texts` and
            `open_images`.
    """
    require_made_by("model", model, "nnsight", "give NNsight(module) or TransformersModel(name)")
    chosen = Options(**options)
    if getattr(model, "dispatched", True) is False:
        model.dispatch()
    own_tokenizer, own_processor = _preprocessors(model)
    source = own_processor if chosen.processor is None else chosen.processor
    whole = model._module
    if tower is not None:
        model = _tower(model, tower)
    elif paths is None:
        require_one_tower(whole)
    places = _located(model, paths, every=image is not None)
    TracePasses(places).refuse_unready()
    if reads_images(places.root):
        if image is not None:
            raise ValueError(f"{places.architecture} reads images: leave the image out.")
        chosen = replace(chosen, processor=source)
        with _saying(places):
            return open_images(NNsightHost, TracePasses(places), places.config, chosen)
    if image is not None:
        places = replace(places, context=context_states(whole, places.root, image, source))
        chosen = replace(chosen, processor=None)
    if chosen.tokenizer is None:
        chosen = replace(chosen, tokenizer=own_tokenizer)
    with _saying(places):
        return open_texts(NNsightHost, TracePasses(places), chosen)


@contextmanager
def _saying(places: EnvoyPlaces) -> Iterator[None]:
    """A broken law also says what was taken to be where, so that it can be corrected."""
    try:
        yield
    except BrokenLawError as error:
        raise BrokenLawError(
            f"{error} Places were taken to be paths={dict(places.roles)}; correct them in "
            "attach(model, paths={role: path}): a norm behind attention is 'attn_out', one behind the MLP "
            "is 'mlp', as sa_nnsight.paths.ROLES says of every role."
        ) from error


def _preprocessors(model: Any) -> tuple[Any, Any]:
    """What nnsight's pipeline brought, looked up on the wrapper alone, not inside the module."""
    own = vars(model)
    return own.get("tokenizer"), own.get("image_processor") or own.get("processor")


def _tower(model: Any, tower: str) -> Any:
    require_known("tower", tower, TOWERS)
    for name in (f"{prefix}{part}" for prefix in ("", "model.") for part in TOWERS[tower]):
        try:
            model._module.get_submodule(name)
        except AttributeError:
            continue
        return model.get(name)
    raise ValueError(f"{type(model._module).__name__} has no {TOWERS[tower][0]}: leave tower out.")


def _located(model: Any, paths: Mapping[str, Any] | None, *, every: bool) -> EnvoyPlaces:
    """Places of a model, found while nobody else uses it."""
    root = model._module
    refuse_altered(root)
    refuse_training(root)

    def library() -> Undo:
        return partial(trace_left_over, model, sys.gettrace())

    return take(turns_over(root, root, model), "attach", library, lambda: locate(model, paths, every=every))


@face
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
    from sa_plugin.host.folders import load_folder

    loaded = load_folder(folder, dtype=dtype, tower=tower)
    with warnings.catch_warnings():
        # BERT has modules named `output`, which nnsight calls `E_output`; nothing here uses them.
        warnings.filterwarnings("ignore", "Module '.*' has a submodule named 'output'")
        model = nnsight.NNsight(loaded.model)
    options: dict[str, Any] = {} if loaded.tower is None else {"tower": loaded.tower}
    if loaded.tokenizer is None:
        return model, options | {"processor": loaded.processor}
    return model, options | {"tokenizer": loaded.tokenizer}
