"""DINOv2 as a plain ViT, exactly.

A DINOv2 block multiplies what attention and MLP write by a learned vector (LayerScale):

    x = x + lambda_1 * (W_o z + b_o);    x = x + lambda_2 * (W_2 m + b_2)

lambda * (W z + b) = (diag(lambda) W) z + lambda * b, so the rows and the bias of each block's last
linear layers take lambda up, and the block is a ViT's. Position embeddings are resampled once to
the size of the input, by the formula DINOv2 applies in every pass. What differs is float32
rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sa_plugin._optional import require

NAMES = {
    "encoder.layer.": "layers.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
WRITES = {"attention.o_proj": "layer_scale1", "mlp.fc2": "layer_scale2"}


def as_vit(model: Any, image_size: int | None = None) -> Any:
    """A `ViTModel` that computes what a `Dinov2Model` computes.

    Args:
        model: A `transformers.Dinov2Model`; it is not changed.
        image_size: Side of the input in pixels; by default the config's.

    Returns:
        The ViT in eval mode, attention unfused, its last norm the model's, without a pooler.

    Raises:
        ValueError: The model has no plain two-layer MLP, or the size is no multiple of a patch.
    """
    config = model.config
    if config.use_swiglu_ffn:
        raise ValueError(
            "a DINOv2 with a SwiGLU MLP (the giant one) is no plain ViT: use small, base or large."
        )
    size = image_size or int(config.image_size)
    if size % config.patch_size:
        raise ValueError(f"image size {size} is no multiple of the patch size {config.patch_size}.")
    transformers = require("transformers", "transformer-lens", "folding a DINOv2")
    twin = transformers.ViTConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=int(config.hidden_size * config.mlp_ratio),
        hidden_act=config.hidden_act,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=config.layer_norm_eps,
        qkv_bias=config.qkv_bias,
        image_size=size,
        patch_size=config.patch_size,
        num_channels=config.num_channels,
        attn_implementation="eager",
    )
    vit = transformers.ViTModel(twin, add_pooling_layer=False)
    vit.load_state_dict(fold(model.state_dict(), size // config.patch_size))
    return vit.to(model.dtype).eval()


def fold(state: Mapping[str, Tensor], grid: int) -> dict[str, Tensor]:
    """A DINOv2's tensors under a ViT's names, LayerScale folded in.

    Args:
        state: Of a `Dinov2Model`, in the names of transformers 4 or 5.
        grid: Patches along each side of the input.
    """
    plain = {_rename(name): tensor for name, tensor in state.items()}
    plain.pop("embeddings.mask_token", None)
    scales = {name: plain.pop(name) for name in [*plain] if ".layer_scale" in name}
    for name, tensor in plain.items():
        plain[name] = _scaled(name, tensor, scales)
    place = "embeddings.position_embeddings"
    return plain | {place: resample_positions(plain[place], grid)}


def _rename(name: str) -> str:
    for old, new in NAMES.items():
        name = name.replace(old, new)
    return name


def _scaled(name: str, tensor: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
    block, _, kind = name.rpartition(".")
    for write, scale in WRITES.items():
        if block.startswith("layers.") and block.endswith(write):
            factor = scales[f"{block.removesuffix(write)}{scale}.lambda1"]
            return tensor * (factor[:, None] if kind == "weight" else factor)
    return tensor.clone()


def resample_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings `[1, 1 + old^2, d_model]` for a square grid of another size."""
    old = round((positions.shape[1] - 1) ** 0.5)
    if old == grid:
        return positions.clone()
    plane = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    plane = torch.nn.functional.interpolate(
        plane.float(), size=(grid, grid), mode="bicubic", align_corners=False
    )
    patches = plane.to(positions.dtype).permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([positions[:, :1], patches], dim=1)
