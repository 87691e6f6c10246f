"""Norms and attention weights of a bridge, in the convention of `sa_plugin.block`.

What is read from its modules is proved as for every host, see `sa_plugin.describe`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin import _mllama
from sa_plugin.block import AttentionWeights, BlockNorms, Norm
from sa_plugin.checks import LIMITS
from sa_plugin.describe import HeadNorm, entry_norm, norm_of, plain, prove, rotary_of
from sa_plugin.host import Site
from sa_plugin.patches import check_images
from sa_transformer_lens.capture import capture

if TYPE_CHECKING:
    from sa_transformer_lens.bridge_host import BridgeHost


def block_norms(host: BridgeHost, layer: int) -> BlockNorms:
    """The norms of one block; see `sa_plugin.block.DescribedHost`.

    Raises:
        ValueError: No such layer, a norm that is neither a LayerNorm nor an RMSNorm, or a post_norm
            block without a norm behind attention.
    """
    host.hook_name(Site(layer, "z"))
    block = host.bridge.blocks[layer]
    before, behind = _norm(block, "ln1"), _norm(block, "ln1_post")
    mlp_before, mlp_behind = _norm(block, "ln2"), _norm(block, "ln2_post")
    if host.info.block == "post_ln":
        return BlockNorms(None, None, before, mlp_before)
    if host.info.block == "post_norm" and behind is None:
        raise ValueError(
            f"{host.info.architecture} scales what attention writes at block {layer} by something "
            "that is no norm of TransformerLens's (`ln1_post` is missing): its block cannot be "
            "described by norms. Read its activations instead."
        )
    if host.info.block == "pre_norm" and mlp_before is None:
        # A parallel block with one norm for both.
        mlp_before = before
    return BlockNorms(before, mlp_before, behind, mlp_behind, _entry(host, layer))


def _entry(host: BridgeHost, layer: int) -> Norm | None:
    """The norm between two stacks; see `sa_plugin.describe.entry_norm`."""
    if host.info.block != "staged" or layer == 0:
        return None
    model = host.bridge.original_model
    norm = None
    if str(model.config.model_type) == _mllama.VISION:
        norm = _mllama.joint(model, norm_of("layernorm_post", model.layernorm_post))
    return entry_norm(host, layer, host.batches(check_images()[:1])[0], norm)


def attention_weights(host: BridgeHost, layer: int) -> AttentionWeights:
    """Query, key and value maps of one block; costs a short forward pass up to it.

    Raises:
        ValueError: No such layer, or the maps do not reproduce the block's pattern and z.
    """
    norm = block_norms(host, layer).attn_in
    attention = host.bridge.blocks[layer].attn
    if getattr(host.bridge.blocks[layer], "crosses", False):
        raise ValueError(
            f"block {layer} of {host.info.architecture} attends to an image's states: its keys and "
            "values are no maps of the stream. Take a bank of other blocks, fit(layers=...)."
        )
    heads = host.info.n_heads
    query, key, value = (_map(attention, name, heads) for name in "QKV")
    inner = _inner(attention)
    weights = AttentionWeights(
        query=query[0],
        key=key[0],
        value=value[0],
        query_bias=query[1],
        key_bias=key[1],
        value_bias=value[1],
        scale=_scale(host, inner),
        softcap=getattr(inner, "attn_logit_softcapping", None),
        query_key_norm=hasattr(attention, "q_norm"),
        rotary=rotary_of(host.bridge.original_model, getattr(inner, "layer_type", None)),
        norm=norm,
        n_key_value_heads=len(attention.W_K),
    )
    _prove(host, layer, weights)
    if weights.query_key_norm:
        return _with_head_gains(attention, weights)
    return weights


def _with_head_gains(attention: Any, weights: AttentionWeights) -> AttentionWeights:
    """Gains of the norms over each head folded in: what is left of them is a scale a token."""
    gains = [_gain_of_head(attention, name, weights.query.shape[-1]) for name in "qk"]
    query, key = weights.query * gains[0], weights.key * gains[1]
    return weights._replace(query=query, key=key)


def _gain_of_head(attention: Any, name: str, d_head: int) -> Float[Tensor, " d_head"]:
    norm = _norm(attention, f"{name}_norm")
    if norm is None or norm.centred or len(norm.gain) != d_head:
        raise ValueError(
            f"{type(attention).__name__} normalises its {name} by no RMSNorm over each head's "
            f"{d_head} dimensions: its attention cannot be described by weights. Read its pattern "
            "instead."
        )
    return norm.gain


def _norm(block: Any, name: str) -> Norm | None:
    module = getattr(block, name, None)
    if module is None:
        return None
    return norm_of(f"{name} of {type(block).__name__}", module.original_component)


def _map(attention: Any, name: str, heads: int) -> tuple[Tensor, Tensor | None]:
    """W_Q, W_K or W_V and its bias, one slice a query head."""
    weight = plain(getattr(attention, f"W_{name}"))
    # A bias-free projection has no attribute b_Q, or None.
    bias = getattr(attention, f"b_{name}", None)
    group = heads // len(weight)
    repeated = weight.repeat_interleave(group, 0)
    if bias is None:
        return repeated, None
    bias = plain(bias).reshape(len(weight), -1)
    return repeated, bias.repeat_interleave(group, 0)


def _inner(attention: Any) -> Any:
    module = attention.original_component
    return getattr(module, "self", module)


def _scale(host: BridgeHost, inner: Any) -> float:
    for name in ("scaling", "scale"):
        if isinstance(found := getattr(inner, name, None), float | int):
            return float(found)
    return float(host.info.d_head**-0.5)


def _prove(host: BridgeHost, layer: int, weights: AttentionWeights) -> None:
    names = {p: host.hook_name(Site(layer, p)) for p in ("resid_pre", "pattern", "z")}
    seen = capture(
        host.bridge, names.values(), host.probe_inputs(), host.hook_name(Site(layer, "resid_post"))
    )
    resid, pattern, z = (seen[name].float().cpu() for name in names.values())
    attention = host.bridge.blocks[layer].attn
    norms = None
    if weights.query_key_norm:
        norms = (_own_norm(attention.q_norm), _own_norm(attention.k_norm))
    where = f"{host.info.architecture}, block {layer}"
    limit = LIMITS.get(host.info.dtype, LIMITS["float32"])
    prove(where, weights, resid, pattern, z, limit, norms)


def _own_norm(bridged: Any) -> HeadNorm:
    """The model's own norm over each head."""
    module = bridged.original_component

    def norm(x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = module(x.to(next(module.parameters()))).float().cpu()
        return out

    return norm
