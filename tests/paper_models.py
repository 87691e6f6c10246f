"""Every model of arXiv 2512.05038 as a tiny random one, on each host, and its oracle's states.

The oracle is a second copy of the model that no host has touched, read by torch's own hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import tiny
import tiny_multimodal
import torch
from animal_data import animal_pictures, animal_texts

from sa_plugin.data import ConceptData
from sa_plugin.host import Processor


class Case(NamedTuple):
    """One model on its hosts.

    `model` builds it, `options` are those of `attach`, `blocks` finds the oracle's blocks and `run`
    calls it with a host's inputs.
    """

    model: Callable[[], Any]
    tokenizer: str | None
    options: dict[str, Any]
    blocks: Callable[[Any], list[Any]]
    run: Callable[[Any, dict[str, Any]], Any]


def picture() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (28, 20, 3), dtype=np.uint8)


def _plain(model: Any, inputs: dict[str, Any]) -> Any:
    return model(**inputs)


def _tile(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    tiles = torch.zeros(len(pixels), 1, tiny_multimodal.TILES, *pixels.shape[1:])
    tiles[:, 0, 0] = pixels
    mask = torch.zeros(len(pixels), 1, tiny_multimodal.TILES, dtype=torch.long)
    mask[..., 0] = 1
    ratio = torch.ones(len(pixels), 1, dtype=torch.long)
    return {"pixel_values": tiles, "aspect_ratio_ids": ratio, "aspect_ratio_mask": mask}


def _mllama_vision(model: Any, inputs: dict[str, Any]) -> Any:
    return model.model.vision_model(**_tile(inputs["pixel_values"]))


def _mllama_image(model: Any, inputs: dict[str, Any]) -> Any:
    """The whole model: pixels, and a mask that shows tile 1 to every token."""
    ids = inputs["input_ids"]
    pixels = tiny_multimodal.processor().pixel_values(picture())[None].repeat(len(ids), 1, 1, 1)
    tile = _tile(pixels)
    mask = tile["aspect_ratio_mask"][:, None].repeat(1, ids.shape[1], 1, 1)
    own = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "position_ids")}
    return model(**own, **tile, cross_attention_mask=mask)


def _mllama_text(model: Any, inputs: dict[str, Any]) -> Any:
    return model.model.language_model(**inputs)


def _self_attention(model: Any) -> list[Any]:
    layers = model.model.language_model.layers
    return [block for k, block in enumerate(layers) if k not in tiny_multimodal.CROSS]


MLLAMA = tiny_multimodal.mllama
TILE = tiny_multimodal.processor
CASES = {
    "gemma2": Case(lambda: tiny.hf_model("gemma2"), "gemma2", {}, lambda m: m.model.layers, _plain),
    "qwen3_embedding": Case(
        tiny_multimodal.qwen3_embedding, "qwen3", {"padding_side": "left"}, lambda m: m.layers, _plain
    ),
    "clip_vision": Case(
        lambda: tiny.vision_model("clip_vision"),
        None,
        {"processor": Processor((28, 28), 7)},
        lambda m: m.encoder.layers,
        _plain,
    ),
    "clip_text": Case(lambda: tiny.vision_model("clip_text"), "clip", {}, lambda m: m.encoder.layers, _plain),
    "llava_vision": Case(
        tiny_multimodal.llava,
        None,
        {"tower": "vision", "processor": Processor((28, 28), 7)},
        lambda m: m.model.vision_tower.encoder.layers,
        lambda m, inputs: m.model.vision_tower(**inputs),
    ),
    "mllama_vision": Case(
        MLLAMA,
        None,
        {"tower": "vision", "processor": TILE()},
        lambda m: [*m.model.vision_model.transformer.layers, *m.model.vision_model.global_transformer.layers],
        _mllama_vision,
    ),
    "mllama_text": Case(MLLAMA, "llama", {"tower": "text"}, _self_attention, _mllama_text),
    "mllama_text_image": Case(
        MLLAMA,
        "llama",
        {"tower": "text", "image": picture(), "processor": TILE()},
        lambda m: m.model.language_model.layers,
        _mllama_image,
    ),
}


def options_of(name: str) -> dict[str, Any]:
    case = CASES[name]
    if case.tokenizer is None:
        return dict(case.options)
    own = case.tokenizer
    tokenizer = tiny.clip_tokenizer() if own == "clip" else tiny.tokenizer(own)
    return {"tokenizer": tokenizer} | case.options


@cache
def nnsight_host(name: str) -> Any:
    from nnsight import NNsight

    from sa_nnsight import accept

    return accept(NNsight(CASES[name].model()), **options_of(name))


@cache
def transformer_lens_host(name: str) -> Any:
    from sa_transformer_lens import accept
    from sa_transformer_lens.towers import bare_bridge, tower_bridge

    if name == "gemma2":
        return tiny.host(name)
    if name.startswith("clip"):
        return accept(tiny.vision_bridge(name), **_kept(name, "processor"))
    options = options_of(name)
    if name == "qwen3_embedding":
        bridge = bare_bridge(CASES[name].model(), options["tokenizer"])
        return accept(bridge, **_kept(name, "padding_side"))
    tower = options.pop("tower")
    return accept(tower_bridge(CASES[name].model(), tower, **options))


def _kept(name: str, option: str) -> dict[str, Any]:
    options = CASES[name].options
    return {option: options[option]} if option in options else {}


def states(name: str, inputs: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """What goes into and comes out of each of the oracle's blocks."""
    case = CASES[name]
    model = case.model()
    before: list[Any] = []
    after: list[Any] = []
    for block in case.blocks(model):
        block.register_forward_pre_hook(
            lambda _, args, kwargs: before.append((args or tuple(kwargs.values()))[0].clone()),
            with_kwargs=True,
        )
        block.register_forward_hook(
            lambda _, args, out: after.append((out[0] if isinstance(out, tuple) else out).clone())
        )
    with torch.no_grad():
        case.run(model, inputs)
    return before, after


@cache
def data_of(name: str) -> ConceptData:
    return animal_pictures((20, 28, 28, 28), columns=2) if CASES[name].tokenizer is None else animal_texts()
