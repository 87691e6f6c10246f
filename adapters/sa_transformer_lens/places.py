"""One forward pass of a bridge that reads named hooks, and leaves the model as it was.

TransformerLens's `stop_at_layer` does nothing on BERT and cannot stop after the last block (the
unembedding still runs), so the pass is ended by an exception from a hook at the deepest block read.

Norms and attention weights of a bridge, in the convention of `sa_plugin.host.protocol`.

What is read from its modules is proved as for every host, see `sa_plugin.host.weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.host import mllama
from sa_plugin.host.check import LIMITS
from sa_plugin.host.images import check_images
from sa_plugin.host.protocol import AttentionWeights, BlockNorms, Norm, Site
from sa_plugin.host.weights import HeadNorm, entry_norm, norm_of, plain, prove, rotary_of

if TYPE_CHECKING:
    from sa_transformer_lens.host import BridgeHost


FIRST = ("input_ids", "pixel_values")


class _Reached(Exception):
    """Everything asked for has been read."""


def capture(
    bridge: Any,
    names: Iterable[str],
    inputs: Mapping[str, Tensor],
    stop: str | None = None,
    *,
    kept: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Read hooks in one forward pass without gradients.

    Args:
        bridge: A TransformerBridge.
        names: Hook names, aliases allowed.
        inputs: `input_ids` or `pixel_values`, and keyword arguments of the bridge.
        stop: Hook after which the pass ends; by default it runs to the end.
        kept: What to keep of some hooks' tensors; by default a clone.

    Returns:
        A clone of every tensor (an in-place hook of the user's cannot reach it), by name.

    Raises:
        ValueError: The model has no such hook.
        RuntimeError: A hook did not fire exactly once.
    """
    read: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        reduce = (kept or {}).get(name, Tensor.clone)
        return lambda tensor, hook: read[name].append(reduce(tensor))

    stops = [] if stop is None else [stop]
    canonical = canonical_names(bridge, [*read, *stops])
    hooks = [(canonical[name], keep(name)) for name in read]
    # Added last, so that it runs after what is read at the same point.
    run(bridge, inputs, [*hooks, *((canonical[name], _end) for name in stops)])
    for name, tensors in read.items():
        if len(tensors) != 1:
            raise RuntimeError(_not_once(name, len(tensors)))
    return {name: tensors[0] for name, tensors in read.items()}


def run(bridge: Any, inputs: Mapping[str, Tensor], hooks: list[tuple[str, Any]]) -> None:
    """Call the bridge under hooks, without gradients; hooks are removed whatever happens."""
    first, others = split_inputs(bridge, inputs)
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        try:
            bridge(first, **others)
        except _Reached:
            return


def split_inputs(bridge: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The bridge's first argument, token ids or pixels, and the others, on its device."""
    device = next(bridge.parameters()).device
    moved = {key: value.to(device) for key, value in inputs.items()}
    first = next(name for name in FIRST if name in moved)
    return moved.pop(first), moved


def _end(tensor: Tensor, hook: Any) -> None:
    raise _Reached


def canonical_names(bridge: Any, names: Iterable[str]) -> dict[str, str]:
    """The name each hook point has itself.

    In compatibility mode a hook added by an alias is called once for each of its names.

    Raises:
        ValueError: The model has no such hook.
    """
    known = bridge.hook_dict
    for name in names:
        if name not in known:
            block = name.rpartition(".hook_")[0]
            near = sorted(other for other in known if other.startswith(f"{block}."))
            raise ValueError(
                f"{bridge.cfg.architecture} has no hook {name!r}; hooks there: "
                f"{', '.join(near[:12]) or 'none'}."
            )
    return {name: str(known[name].name) for name in names}


def _not_once(name: str, count: int) -> str:
    text = f"hook {name!r} fired {count} times in one forward pass, expected once"
    if name.endswith("hook_pattern") and count == 0:
        return (
            f"{text}: fused attention computes no pattern. Call "
            "bridge.original_model.set_attn_implementation('eager') and attach again."
        )
    return f"{text}: its tensor cannot be trusted. This architecture needs an adapter of its own."


def block_norms(host: BridgeHost, layer: int) -> BlockNorms:
    """The norms of one block; see `sa_plugin.host.protocol.DescribedHost`.

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
    """The norm between two stacks; see `sa_plugin.host.weights.entry_norm`."""
    if host.info.block != "staged" or layer == 0:
        return None
    model = host.bridge.original_model
    norm = None
    if str(model.config.model_type) == mllama.VISION:
        norm = mllama.joint(model, norm_of("layernorm_post", model.layernorm_post))
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
