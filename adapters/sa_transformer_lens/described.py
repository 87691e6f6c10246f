"""Norms and attention weights of a bridge, in the convention of `sa_plugin.block`, and proved.

Names say little across architectures (Gemma's gain is 1 + weight, GPT-2 scales by an attribute,
BERT's `ln1` stands behind attention), so nothing read here is believed: a norm has to reproduce its
module on random input, and q, k and v of a block its pattern and z on a short input. What is
not reproduced (position biases, interleaved rotary embeddings, attention sinks in the softmax) is
refused.

What this does not show: that the pattern is reproduced where a mask forbids a key; masks are taken
from the pattern itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.block import AttentionWeights, BlockNorms, Norm, Rotary
from sa_plugin.checks import LIMITS, relative_difference
from sa_plugin.host import Site
from sa_transformer_lens.capture import capture

if TYPE_CHECKING:
    from sa_transformer_lens.bridge_host import BridgeHost

EPSILONS = ("eps", "variance_epsilon")


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
    return BlockNorms(before, mlp_before, behind, mlp_behind)


def attention_weights(host: BridgeHost, layer: int) -> AttentionWeights:
    """Query, key and value maps of one block; costs a short forward pass up to it.

    Raises:
        ValueError: No such layer, or the maps do not reproduce the block's pattern and z.
    """
    norm = block_norms(host, layer).attn_in
    attention = host.bridge.blocks[layer].attn
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
        rotary=_rotary(host.bridge, inner),
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
    module = module.original_component
    eps = next((float(getattr(module, e)) for e in EPSILONS if hasattr(module, e)), 0.0)
    x, seen = _tried(module, eps)
    limit = LIMITS.get(str(seen.dtype).removeprefix("torch."), LIMITS["float32"])
    for norm in _candidates(module, x.shape[-1], eps):
        if relative_difference(apply_norm(norm, x), seen.float()) <= limit:
            return norm
    raise ValueError(
        f"{name} of {type(block).__name__} is a {type(module).__name__}, and neither a LayerNorm "
        "nor an RMSNorm (gain weight or 1 + weight) reproduces it: this architecture's norms are "
        "unknown."
    )


def _tried(module: Any, eps: float) -> tuple[Float[Tensor, "row d_model"], Tensor]:
    """Random rows, some small enough for `eps` to matter, and what the module makes of them."""
    weight = getattr(module, "weight", None)
    width = len(weight) if weight is not None else int(module.normalized_shape[0])
    x = torch.randn(8, width, generator=torch.Generator().manual_seed(0)) + 0.5
    x[4:] *= max(eps, 1e-12) ** 0.5
    own = x if weight is None else x.to(weight)
    with torch.no_grad():
        return own.float().cpu(), module(own).detach().cpu()


def _candidates(module: Any, width: int, eps: float) -> Iterator[Norm]:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    gain = torch.ones(width) if weight is None else _copy(weight)
    shift = None if bias is None else _copy(bias)
    for centred, offset in product((True, False), (0.0, 1.0)):
        yield Norm(gain + offset, shift, centred, eps)


def apply_norm(
    norm: Norm | None, x: Float[Tensor, "*row d_model"]
) -> Float[Tensor, "*row d_model"]:
    """What a norm makes of activations; None changes nothing."""
    if norm is None:
        return x
    if norm.centred:
        x = x - x.mean(-1, keepdim=True)
    scaled = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.gain
    return scaled if norm.bias is None else scaled + norm.bias


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _map(attention: Any, name: str, heads: int) -> tuple[Tensor, Tensor | None]:
    """W_Q, W_K or W_V and its bias, one slice a query head."""
    weight = _copy(getattr(attention, f"W_{name}"))
    # A bias-free projection has no attribute b_Q, or None.
    bias = getattr(attention, f"b_{name}", None)
    group = heads // len(weight)
    repeated = weight.repeat_interleave(group, 0)
    if bias is None:
        return repeated, None
    bias = _copy(bias).reshape(len(weight), -1)
    return repeated, bias.repeat_interleave(group, 0)


def _inner(attention: Any) -> Any:
    module = attention.original_component
    return getattr(module, "self", module)


def _scale(host: BridgeHost, inner: Any) -> float:
    for name in ("scaling", "scale"):
        if isinstance(found := getattr(inner, name, None), float | int):
            return float(found)
    return float(host.info.d_head**-0.5)


def _rotary(bridge: Any, inner: Any) -> Rotary | None:
    kind = getattr(inner, "layer_type", None)
    for module in bridge.original_model.modules():
        for name in ("inv_freq", f"{kind}_inv_freq"):
            found = getattr(module, name, None)
            if isinstance(found, Tensor):
                prefix = name.removesuffix("inv_freq")
                scaling = getattr(module, f"{prefix}attention_scaling", 1.0)
                return Rotary(_copy(found), 2 * len(found), float(scaling))
    return None


def rotate(
    rotary: Rotary | None,
    x: Float[Tensor, "batch token head d_head"],
) -> Float[Tensor, "batch token head d_head"]:
    """Rotary embedding at positions 0, 1, 2, ..."""
    if rotary is None:
        return x
    angle = torch.arange(x.shape[1])[:, None] * rotary.inverse_frequency.repeat(2)
    cos, sin = (part[:, None] * rotary.scaling for part in (angle.cos(), angle.sin()))
    turned, rest = x[..., : rotary.width], x[..., rotary.width :]
    low, high = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-high, low], -1) * sin, rest], -1)


def _prove(host: BridgeHost, layer: int, weights: AttentionWeights) -> None:
    """Refuse maps that do not reproduce pattern and z on a short input."""
    names = {p: host.hook_name(Site(layer, p)) for p in ("resid_pre", "pattern", "z")}
    seen = capture(
        host.bridge, names.values(), host.probe_inputs(), host.hook_name(Site(layer, "resid_post"))
    )
    resid, pattern, z = (seen[name].float().cpu() for name in names.values())
    normed = apply_norm(weights.norm, resid)
    parts = _project(normed, weights)
    attention = host.bridge.blocks[layer].attn
    if weights.query_key_norm:
        parts = _own_norms(attention, parts)
    made = recompute_pattern(weights, parts[0], parts[1], pattern > 0)
    mixed = torch.einsum("bhqk,bkhe->bqhe", pattern, parts[2])
    limit = LIMITS.get(host.info.dtype, LIMITS["float32"])
    for what, one, other in (("pattern", made, pattern), ("z", mixed, z)):
        gap = relative_difference(one, other)
        if not gap <= limit:
            raise ValueError(
                f"{host.info.architecture}: the attention of block {layer} is none of the known "
                f"ones. Its {what} is not reproduced from its weights (relative difference "
                f"{gap:.1e}, limit {limit:.0e}); it may have position biases, an interleaved "
                "rotary embedding, or sinks in its softmax. Read its pattern and z instead."
            )


def _project(normed: Tensor, weights: AttentionWeights) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of every query head, `[batch, token, head, d_head]`."""
    pairs = (
        (weights.query, weights.query_bias),
        (weights.key, weights.key_bias),
        (weights.value, weights.value_bias),
    )
    q, k, v = (
        torch.einsum("btd,hde->bthe", normed, weight) + (0.0 if bias is None else bias)
        for weight, bias in pairs
    )
    return q, k, v


def _own_norms(
    attention: Any, parts: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys through the model's own norms over each head."""
    normed = []
    for module, x in zip((attention.q_norm, attention.k_norm), parts[:2], strict=True):
        inner = module.original_component
        with torch.no_grad():
            normed.append(inner(x.to(next(inner.parameters()))).float().cpu())
    return normed[0], normed[1], parts[2]


def recompute_pattern(
    weights: AttentionWeights,
    q: Float[Tensor, "batch token head d_head"],
    k: Float[Tensor, "batch token head d_head"],
    allowed: Tensor,
) -> Float[Tensor, "batch head query key"]:
    """Pattern from q and k over the keys that the mask allows."""
    q, k = (rotate(weights.rotary, x) for x in (q, k))
    logits = torch.einsum("bqhe,bkhe->bhqk", q, k) * weights.scale
    if weights.softcap is not None:
        logits = weights.softcap * torch.tanh(logits / weights.softcap)
    # A row without any allowed key stays zero.
    return logits.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num(0.0)
