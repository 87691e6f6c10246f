"""SigLIP-2's vision tower reads patches, not pixels: how an image becomes those.

Its own processor keeps an image's aspect and pads; here an image fills the grid that its positions are
a table of, `sqrt(num_patches)` on a side, as SigLIP's does. Patches are cut row by row, and a patch's
values are its pixels, row by row, the three colours of a pixel together.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

VISION = "siglip2_vision_model"


def input_side(config: Any) -> int:
    """Side of the square input, in pixels.

    Args:
        config: Of the tower.
    """
    return isqrt(int(config.num_patches)) * int(config.patch_size)


def patch_inputs(root: Any, pixels: Float[Tensor, "image 3 height width"]) -> dict[str, Tensor]:
    """What the tower is called with; gradients flow to the pixels.

    Args:
        root: The tower.
        pixels: Of images that fill the input.
    """
    size = int(root.config.patch_size)
    patches = rearrange(pixels, "b c (y i) (x j) -> b (y x) (i j c)", i=size, j=size)
    grid = torch.tensor([pixels.shape[-2] // size, pixels.shape[-1] // size])
    mask = torch.ones(patches.shape[:2], dtype=torch.int64, device=pixels.device)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": mask,
        "spatial_shapes": grid.expand(len(pixels), 2).clone(),
    }
