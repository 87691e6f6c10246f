"""What both hosts need to know of Mllama (Llama-3.2-Vision): tiles, joint, states of an image.

The vision tower takes an image in up to four tiles. As in arXiv 2512.05038 an image is fitted into
one tile (letter-box, upper left), the other tiles are empty, and rows are the patches of tile 1;
its CLS and its padding tokens (up to a multiple of 8) are none. The tower's own mask hides empty
tiles and padding from each other only, as published, so the patches do attend to them.

Local blocks come first, then gated global ones. Between them stand `layernorm_post` and, tile by
tile, an embedding of the tile: `h' = LN(h) + tanh(gate) * e[tile]`.

The text stack reads an image in blocks of cross-attention, whose keys and values are the projected
outputs of the vision tower, here those of tile 1, CLS included. A text alone skips these blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.host.protocol import Norm
from sa_plugin.host.turns import borrow

VISION, TEXT = "mllama_vision_model", "mllama_text_model"


def tile_inputs(model: Any, pixels: Float[Tensor, "image 3 height width"]) -> dict[str, Tensor]:
    """What a vision tower is called with for images of one tile, on its device and in its format.

    Args:
        model: An `MllamaVisionModel`.
        pixels: Of the first tile; the others are empty and masked.
    """
    config, like = model.config, next(model.parameters())
    values = pixels.to(like.device, like.dtype)
    first = torch.arange(config.max_num_tiles, device=like.device) == 0
    row = torch.full((len(values), 1), _square(config), device=like.device)
    return {
        "pixel_values": values[:, None, None] * first[:, None, None, None].to(like.dtype),
        "aspect_ratio_ids": row,
        "aspect_ratio_mask": torch.ones_like(row)[..., None] * first.long(),
    }


def _square(config: Any) -> int:
    """The id of one tile; 0 is no image."""
    ratios = [list(ratio) for ratio in config.supported_aspect_ratios]
    if [1, 1] not in ratios:
        raise ValueError(
            f"this Mllama takes no image of one tile (its aspect ratios are {ratios}): it cannot be attached."
        )
    return ratios.index([1, 1]) + 1


def joint(model: Any, norm: Norm) -> Norm:
    """`layernorm_post` with what is added behind it to every token of tile 1 as its bias."""
    module = model.post_tile_positional_embedding
    with torch.no_grad():
        tiles = module.embedding.weight[_square(model.config)].reshape(module.max_num_tiles, -1)
        added = (tiles[0] * module.gate.tanh()).float().cpu()
    return norm._replace(bias=added if norm.bias is None else norm.bias + added)


def eyes(model: Any) -> tuple[Any, Any]:
    """Vision tower and projector of an `MllamaModel` or `MllamaForConditionalGeneration`.

    Raises:
        ValueError: The model has none.
    """
    inner = getattr(model, "model", model)
    if not hasattr(inner, "vision_model") or not hasattr(inner, "multi_modal_projector"):
        raise ValueError(
            f"{type(model).__name__} has no vision tower and projector, so it cannot read an image "
            "itself: attach the whole MllamaForConditionalGeneration with tower='text', or give "
            "image= the states [state, d_model] that its cross-attention attends to."
        )
    return inner.vision_model, inner.multi_modal_projector


def image_states(model: Any, pixels: Float[Tensor, "1 3 height width"]) -> Float[Tensor, "state d_model"]:
    """What the text stack attends to for one image: the projected states of its tile."""
    tower, projector = eyes(model)

    def see() -> Tensor:
        seen = tower(**tile_inputs(tower, pixels)).last_hidden_state
        states: Tensor = projector(seen)[0, 0, 0]
        return states

    return borrow(tower, "image", see)


def check_states(states: Any, width: int) -> Float[Tensor, "state d_model"]:
    """States that a user gives.

    Raises:
        ValueError: They are no `[state, d_model]` of the text stack's width.
    """
    if not isinstance(states, Tensor) or states.ndim != 2 or states.shape[1] != width:
        shape = list(states.shape) if isinstance(states, Tensor) else type(states).__name__
        raise ValueError(
            f"image is {shape}: give uint8 [height, width, 3] pixels, or the states [state, "
            f"{width}] that cross-attention attends to."
        )
    return states.detach()
