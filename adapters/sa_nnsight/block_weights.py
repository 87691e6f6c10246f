"""Norms and attention maps of one block; see `sa_plugin.block` for the conventions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor

from sa_nnsight.weights import as_linear, split_fused
from sa_plugin import _mllama
from sa_plugin.block import AttentionWeights, BlockNorms, Norm
from sa_plugin.checks import LIMITS, read_sites
from sa_plugin.describe import entry_norm, norm_of, plain, prove, rotary_of
from sa_plugin.host import Site

if TYPE_CHECKING:
    from sa_nnsight.envoy_host import EnvoyHost


def block_norms(host: EnvoyHost, layer: int) -> BlockNorms:
    """The norms of one block; see `sa_plugin.block.DescribedHost`.

    Raises:
        ValueError: No such layer, or a norm that is neither a LayerNorm nor an RMSNorm.
    """
    host.tap(Site(layer, "z"))
    first, second = (_norm(host, role, layer) for role in ("norm1", "norm2"))
    if host.info.block == "post_ln":
        return BlockNorms(None, None, first, second)
    if host.info.block == "post_norm":
        behind, mlp_behind = (_norm(host, role, layer) for role in ("attn_out", "mlp"))
        return BlockNorms(first, second, behind, mlp_behind)
    # A parallel block may have one norm for both.
    second = first if second is None else second
    return BlockNorms(first, second, None, None, _entry(host, layer))


def _entry(host: EnvoyHost, layer: int) -> Norm | None:
    """The norm between two lists of blocks; see `sa_plugin.describe.entry_norm`."""
    if host.info.block != "staged" or layer == 0:
        return None
    norm = None
    if host.places.has("entry"):
        norm = norm_of(host.places.path("entry"), host.places.module("entry"))
        if host.places.kind == _mllama.VISION:
            norm = _mllama.joint(host.places.root, norm)
    return entry_norm(host, layer, host.batches([host.probe_sample()])[0], norm)


def _norm(host: EnvoyHost, role: str, layer: int) -> Norm | None:
    if not host.places.has(role):
        return None
    return norm_of(host.places.path(role, layer), host.places.module(role, layer))


def attention_weights(host: EnvoyHost, layer: int) -> AttentionWeights:
    """Query, key and value maps of one block; costs a short forward pass up to it.

    Raises:
        ValueError: No such layer, or the maps do not reproduce the block's pattern and z.
    """
    norm = block_norms(host, layer).attn_in
    places, heads = host.places, host.info.n_heads
    if places.crosses(layer):
        raise ValueError(
            f"block {layer} of {host.info.architecture} attends to an image's states: its keys and "
            "values are no maps of the stream. Take a bank of other blocks, fit(layers=...)."
        )
    inner = places.module("attention", layer)
    maps = _maps(host, layer)
    sliced = [_by_head(weight, bias, heads, host.info.d_head) for weight, bias in maps]
    (query, query_bias), (key, key_bias), (value, value_bias) = sliced
    weights = AttentionWeights(
        query=query,
        key=key,
        value=value,
        query_bias=query_bias,
        key_bias=key_bias,
        value_bias=value_bias,
        scale=_scale(inner, host.info.d_head),
        softcap=getattr(inner, "attn_logit_softcapping", None),
        query_key_norm=places.has("q_norm"),
        rotary=rotary_of(places.root, getattr(inner, "layer_type", None)),
        norm=norm,
        n_key_value_heads=len(maps[1][0]) // host.info.d_head,
    )
    return _proved(host, layer, weights)


def _maps(host: EnvoyHost, layer: int) -> list[tuple[Tensor, Tensor | None]]:
    """Weight `[out, in]` and bias of q, k and v."""
    places = host.places
    if not places.has("qkv") and not all(places.has(role) for role in "qkv"):
        raise ValueError(
            f"{places.architecture} has no query, key and value projections among its paths: give "
            'attach(model, paths={..., "q": ..., "k": ..., "v": ...}).'
        )
    if places.has("qkv"):
        module = places.module("qkv", layer)
        weights = split_fused(places, as_linear(module))
        bias = getattr(module, "bias", None)
        biases = (None,) * 3 if bias is None else split_fused(places, bias)
        return list(zip(weights, biases, strict=True))
    modules = [places.module(role, layer) for role in "qkv"]
    return [(as_linear(module), getattr(module, "bias", None)) for module in modules]


def _by_head(
    weight: Tensor, bias: Tensor | None, heads: int, d_head: int
) -> tuple[Tensor, Tensor | None]:
    """One slice a query head; those of grouped-query attention repeated."""
    sliced = rearrange(plain(weight), "(h e) d -> h d e", e=d_head)
    group = heads // len(sliced)
    repeated = sliced.repeat_interleave(group, 0).contiguous()
    if bias is None:
        return repeated, None
    return repeated, rearrange(plain(bias), "(h e) -> h e", e=d_head).repeat_interleave(group, 0)


def _scale(inner: Any, d_head: int) -> float:
    for name in ("scaling", "scale"):
        if isinstance(found := getattr(inner, name, None), float | int):
            return float(found)
    return float(d_head**-0.5)


def _proved(host: EnvoyHost, layer: int, weights: AttentionWeights) -> AttentionWeights:
    sites = [Site(layer, point) for point in ("resid_pre", "pattern", "z")]
    batch = host.batches([host.probe_sample()])[0]
    resid, pattern, z = (read.float() for read in read_sites(host, batch, sites).values())
    where = f"{host.info.architecture}, block {layer}"
    limit = LIMITS.get(host.info.dtype, LIMITS["float32"])
    if not weights.query_key_norm:
        prove(where, weights, resid, pattern, z, limit)
        return weights
    modules = [host.places.module(role, layer) for role in ("q_norm", "k_norm")]
    prove(where, weights, resid, pattern, z, limit, (_own(modules[0]), _own(modules[1])))
    # Gains over each head folded in: what is left of the norms is a scale a token.
    gains = [norm_of(f"a head norm of {where}", module).gain for module in modules]
    return weights._replace(query=weights.query * gains[0], key=weights.key * gains[1])


def _own(module: Any) -> Any:
    def norm(x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = module(x.to(module.weight)).float().cpu()
        return out

    return norm
