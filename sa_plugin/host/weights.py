"""What a model's parameters say: norms and attention maps, proved, and a hash of the weights.

Names say little across architectures (Gemma's gain is 1 + weight, GPT-2 scales by an attribute), so
nothing read from a module is believed: a norm has to reproduce its module on random input, and q, k
and v of a block its pattern and z on a short input. What is not reproduced (position biases,
interleaved rotary embeddings, attention sinks in the softmax) is refused. What this does not show:
that the pattern is reproduced where a mask forbids a key; masks are taken from the pattern itself.

The hash tells one model's weights from another's, fast enough for every attach. Hosts wrap the same
weights in different modules, so each adapter lists its parameters by one set of names: those of
transformers relative to the base model (`h.0.ln_1.weight`, whatever head stands on top), with two
exceptions: a fused query, key and value is listed as `q`, `k` and `v` in the layout of `nn.Linear`,
and its output projection as `o`. Heads behind the last block (unembedding, final norm, pooler) are
left out: the residual stream does not depend on them, and `BertForMaskedLM` draws them anew each
time it loads a bare encoder. A host that reads behind the final norm lists that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sa_plugin.host.adapter import AttentionParts, NormRole, Places
from sa_plugin.host.laws import read_sites, relative_difference, tolerance
from sa_plugin.host.protocol import (
    AttentionWeights,
    Batch,
    Block,
    BlockNorms,
    Host,
    InputMap,
    Norm,
    Rotary,
    Site,
)

EPSILONS = ("eps", "variance_epsilon")
# Tried where a norm does not say its own (OLMo's).
UNSAID = (0.0, 1e-5, 1e-6, 1e-12)
# Hashed of each weight.
VALUES = 64
# States of an image that every text is read with (Mllama), listed beside the weights.
CONTEXT = "cross_attention_states"
HeadNorm = Callable[[Float[Tensor, "batch token head d_head"]], Tensor]


def block_norms(places: Places, block: Block, layer: int, entry: Norm | None = None) -> BlockNorms:
    """The norms of one block; see `sa_plugin.host.protocol.DescribedHost`.

    Args:
        places: Of the model.
        block: How its blocks add up.
        layer: Which.
        entry: From `entry_norm`.

    Raises:
        ValueError: A norm that is neither a LayerNorm nor an RMSNorm, or a post_norm block without
            a norm behind attention.
    """

    def found(role: NormRole) -> Norm | None:
        one = places.norm(role, layer)
        return None if one is None else norm_of(*one)

    first, second = found("norm1"), found("norm2")
    if block == "post_ln":
        return BlockNorms(None, None, first, second)
    if block != "post_norm":
        # A parallel block may have one norm for both.
        return BlockNorms(first, first if second is None else second, None, None, entry)
    # The norm behind attention decides whether the block can be described; one behind the MLP may lack.
    behind = found("norm1_post")
    if behind is None:
        raise ValueError(
            f"{places.architecture} scales what attention writes at block {layer} by something that is "
            "no norm known here: its block cannot be described by norms. Read its activations instead."
        )
    return BlockNorms(first, second, behind, found("norm2_post"))


def attention_weights(
    host: Host, places: Places, layer: int, norm: Norm | None, batch: Batch
) -> AttentionWeights:
    """Query, key and value maps of one block; costs a pass up to it.

    Args:
        host: The model's.
        places: The model's.
        layer: Block.
        norm: Before attention.
        batch: A short one, that the maps are proved on.

    Raises:
        ValueError: The block attends to an image, or the maps do not reproduce pattern and z.
    """
    info = host.info
    if places.crosses(layer):
        raise ValueError(
            f"block {layer} of {info.architecture} attends to an image's states: its keys and values "
            "are no maps of the stream. Take a bank of other blocks, fit(layers=...)."
        )
    parts = places.attention(layer)
    query, key, value = (_repeated(one, info.n_heads) for one in (parts.query, parts.key, parts.value))
    weights = AttentionWeights(
        query=query,
        key=key,
        value=value,
        scale=_scale(parts.module, info.d_head),
        softcap=getattr(parts.module, "attn_logit_softcapping", None),
        query_key_norm=parts.head_norms is not None,
        rotary=parts.rotary or rotary_of(places.root, getattr(parts.module, "layer_type", None)),
        norm=norm,
        n_key_value_heads=len(parts.key.weight),
    )
    where = f"{info.architecture}, block {layer}"
    for name, module in zip(("query", "key"), parts.head_norms or (), strict=False):
        width = getattr(getattr(module, "weight", None), "shape", (info.d_head,))[-1]
        if width != info.d_head:
            raise ValueError(
                f"{where} normalises each {name} over {width} dimensions, all its heads together (d_head is "
                f"{info.d_head}): its heads have no maps of their own. Read its pattern and z instead."
            )
    own = None if parts.head_norms is None else tuple(_own_norm(module) for module in parts.head_norms)
    read = read_sites(host, batch, [Site(layer, point) for point in ("resid_pre", "pattern", "z")])
    # Proved on what the model itself computes, so that no name or attribute has to be believed.
    resid, pattern, z = (tensor.float() for tensor in read.values())
    _prove(where, weights, resid, pattern, z, tolerance(info.dtype), own)
    return weights if parts.head_norms is None else _with_head_gains(where, weights, parts)


def _repeated(one: InputMap, n_heads: int) -> InputMap:
    """One slice a query head; those of grouped-query attention repeated."""
    # Query head h uses key and value h // group.
    group = n_heads // len(one.weight)
    bias = None if one.bias is None else one.bias.repeat_interleave(group, 0)
    return InputMap(one.weight.repeat_interleave(group, 0), bias)


def _scale(module: Any, d_head: int) -> float:
    # Gemma scales by another number than the head's width, and says so by either name.
    for name in ("scaling", "scale"):
        if isinstance(found := getattr(module, name, None), float | int):
            return float(found)
    return float(d_head**-0.5)


def _own_norm(module: nn.Module) -> HeadNorm:
    """The model's own norm over each head."""

    def norm(x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = module(x.to(next(module.parameters()))).float().cpu()
        return out

    return norm


def _with_head_gains(where: str, weights: AttentionWeights, parts: AttentionParts) -> AttentionWeights:
    """Gains of the norms over each head folded in: what is left of them is a scale a token."""
    gains = []
    for name, module in zip(("query", "key"), parts.head_norms or (), strict=True):
        norm = norm_of(f"the norm of each {name} of {where}", module)
        if norm.centred or len(norm.gain) != weights.query.weight.shape[-1]:
            raise ValueError(
                f"{where} normalises each {name} by no RMSNorm over its head's dimensions: its "
                "attention cannot be described by weights. Read its pattern instead."
            )
        gains.append(norm.gain)
    # A bias is added before the norm, so its gain scales it too.
    query, key = (
        InputMap(one.weight * gain, None if one.bias is None else one.bias * gain)
        for one, gain in zip((weights.query, weights.key), gains, strict=True)
    )
    return weights._replace(query=query, key=key)


def as_float32(tensor: Tensor) -> Tensor:
    """A copy in float32 on the CPU."""
    return tensor.detach().to("cpu", torch.float32, copy=True)


def norm_of(name: str, module: Any) -> Norm:
    """The norm a module computes, found by trial on random rows.

    Args:
        name: Of the module, for the error.
        module: A LayerNorm, or an RMSNorm of gain weight or 1 + weight.

    Raises:
        ValueError: It is neither.
    """
    said = [float(getattr(module, e)) for e in EPSILONS if hasattr(module, e)]
    weight = getattr(module, "weight", None)
    # A Linear has a matrix for a weight: it is no norm, whatever it would reproduce.
    vector = weight is None or weight.ndim == 1
    for eps in (said or UNSAID) if vector else ():
        x, seen = _tried(module, eps)
        limit = tolerance(str(seen.dtype).removeprefix("torch."))
        for norm in _candidates(module, x.shape[-1], eps):
            if relative_difference(apply_norm(norm, x), seen.float()) <= limit:
                return norm
    raise ValueError(
        f"{name} is a {type(module).__name__}, and neither a LayerNorm nor an RMSNorm (gain weight "
        "or 1 + weight) reproduces it: this architecture's norms are unknown."
    )


def entry_norm(host: Host, layer: int, batch: Batch, norm: Norm | None) -> Norm | None:
    """The norm that stands before a block of a staged model, proved on one batch.

    Args:
        host: An attached model, whose blocks are staged.
        layer: The block; not the first.
        batch: A short one.
        norm: What its parameters say stands there, what is added behind it as its bias.

    Returns:
        None where nothing stands there.

    Raises:
        ValueError: Something else does.
    """
    sites = [Site(layer - 1, "resid_post"), Site(layer, "resid_pre")]
    read = read_sites(host, batch, sites)
    before, after = (read[site].float()[batch.valid] for site in sites)
    if torch.equal(before, after):
        return None
    limit = tolerance(host.info.dtype)
    if norm is None or not relative_difference(apply_norm(norm, before), after) <= limit:
        raise ValueError(
            f"{host.info.architecture} changes the residual stream between blocks {layer - 1} and "
            f"{layer} by something that is no norm known here: its blocks cannot be described "
            "together. Decompose scores of blocks before it, or, on nnsight, name the norm, "
            'attach(model, paths={..., "entry": ...}).'
        )
    return norm


def _tried(module: Any, eps: float) -> tuple[Float[Tensor, "row width"], Tensor]:
    """Random rows, some small enough for `eps` to matter, and what the module makes of them."""
    weight = getattr(module, "weight", None)
    width = len(weight) if weight is not None else int(module.normalized_shape[0])
    x = torch.randn(8, width, generator=torch.Generator().manual_seed(0)) + 0.5
    # Rows of ordinary size do not tell one epsilon from another.
    x[4:] *= max(eps, 1e-12) ** 0.5
    own = x if weight is None else x.to(weight)
    with torch.no_grad():
        return own.float().cpu(), module(own).detach().cpu()


def _candidates(module: Any, width: int, eps: float) -> Iterator[Norm]:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    gain = torch.ones(width) if weight is None else as_float32(weight)
    shift = None if bias is None else as_float32(bias)
    # LayerNorm before RMSNorm, gain before 1 + gain: they agree on no random rows.
    for centred, offset in product((True, False), (0.0, 1.0)):
        yield Norm(gain + offset, shift, centred, eps)


def centre(norm: Norm, x: Float[Tensor, "*row width"]) -> Float[Tensor, "*row width"]:
    """Less the mean over the last axis, if the norm takes it off."""
    return x - x.mean(-1, keepdim=True) if norm.centred else x


def norm_scale(norm: Norm | None, x: Float[Tensor, "*row width"]) -> Float[Tensor, "*row"]:
    """What a norm divides each row by; 1 where there is none."""
    if norm is None:
        return torch.ones_like(x[..., 0])
    return (centre(norm, x).square().mean(-1) + norm.eps).sqrt()


def apply_norm(norm: Norm | None, x: Float[Tensor, "*row width"]) -> Float[Tensor, "*row width"]:
    """What a norm makes of activations; None changes nothing."""
    if norm is None:
        return x
    scaled = centre(norm, x) / norm_scale(norm, x)[..., None] * norm.gain.to(x.device)
    return scaled if norm.bias is None else scaled + norm.bias.to(x.device)


def rotary_of(root: nn.Module, layer_type: str | None) -> Rotary | None:
    """The rotary embedding that a model keeps its frequencies of.

    Args:
        root: The whole model.
        layer_type: Of the attention, where a model has several embeddings.
    """
    for module in root.modules():
        for name in ("inv_freq", f"{layer_type}_inv_freq"):
            found = getattr(module, name, None)
            if isinstance(found, Tensor):
                prefix = name.removesuffix("inv_freq")
                scaling = getattr(module, f"{prefix}attention_scaling", 1.0)
                return Rotary(as_float32(found), 2 * len(found), float(scaling))
    return None


def _rotate(
    rotary: Rotary | None, x: Float[Tensor, "batch token head d_head"]
) -> Float[Tensor, "batch token head d_head"]:
    """Rotary embedding at positions 0, 1, 2, ..."""
    if rotary is None:
        return x
    # Dimensions j and j + width / 2 turn together, so the frequencies stand twice.
    angle = torch.arange(x.shape[1])[:, None] * rotary.inverse_frequency.repeat(2)
    cos, sin = (part[:, None] * rotary.scaling for part in (angle.cos(), angle.sin()))
    # GPT-NeoX turns a part of each head only.
    turned, rest = x[..., : rotary.width], x[..., rotary.width :]
    # rotate_half: (low, high) -> (-high, low).
    low, high = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-high, low], -1) * sin, rest], -1)


def _prove(
    where: str,
    weights: AttentionWeights,
    resid: Float[Tensor, "batch token d_model"],
    pattern: Float[Tensor, "batch head query key"],
    z: Float[Tensor, "batch token head d_head"],
    limit: float,
    head_norms: tuple[HeadNorm, ...] | None = None,
) -> None:
    """Refuse maps that do not reproduce pattern and z.

    Args:
        where: Architecture and block, for the error.
        weights: The maps, gains of norms over each head not yet folded in.
        resid: What enters the block, of one unpadded input.
        pattern: What the block attends to.
        z: What its heads give.
        limit: Largest relative difference.
        head_norms: The model's own norms of queries and keys, where it has them.

    Raises:
        ValueError: They do not.
    """
    q, k, v = _project(apply_norm(weights.norm, resid), weights)
    if head_norms is not None:
        q, k = head_norms[0](q), head_norms[1](k)
    # The mask is read off the pattern itself: what is proved is the weight of visible keys.
    made = _recompute_pattern(weights, q, k, pattern > 0)
    mixed = torch.einsum("bhqk,bkhe->bqhe", pattern, v)
    for what, one, other in (("pattern", made, pattern), ("z", mixed, z)):
        gap = relative_difference(one, other)
        if not gap <= limit:
            raise ValueError(
                f"{where}: its attention is none of the known ones. Its {what} is not reproduced "
                f"from its weights (relative difference {gap:.1e}, limit {limit:.0e}); it may have "
                "position biases, an interleaved rotary embedding, or sinks in its softmax. Read "
                "its pattern and z instead."
            )


def _project(normed: Tensor, weights: AttentionWeights) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of every query head, `[batch, token, head, d_head]`."""
    q, k, v = (
        torch.einsum("btd,hde->bthe", normed, one.weight) + (0.0 if one.bias is None else one.bias)
        for one in (weights.query, weights.key, weights.value)
    )
    return q, k, v


def _recompute_pattern(
    weights: AttentionWeights,
    q: Float[Tensor, "batch token head d_head"],
    k: Float[Tensor, "batch token head d_head"],
    allowed: Bool[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head query key"]:
    """Pattern from q and k over the keys that the mask allows."""
    q, k = (_rotate(weights.rotary, x) for x in (q, k))
    logits = torch.einsum("bqhe,bkhe->bhqk", q, k) * weights.scale
    if weights.softcap is not None:
        logits = weights.softcap * torch.tanh(logits / weights.softcap)
    # A row without any allowed key stays zero.
    return logits.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num(0.0)


def fingerprint(kind: str, parameters: Mapping[str, Tensor]) -> str:
    """SHA-256 of the kind of model, and of each weight's name, shape and 64 strided values.

    Values are hashed as float32: a model keeps its fingerprint in a wider number format, and
    changes it when its weights are rewritten or fine-tuned.

    Args:
        kind: `model_type` of the transformers configuration.
        parameters: By the names described above.
    """
    found = {}
    for name, one in parameters.items():
        # Strided, so that a few values are spread over the whole tensor.
        flat = one.detach().reshape(-1)
        values = flat[strided_places(len(flat)).to(flat.device)].to("cpu", torch.float32)
        found[name] = tuple(one.shape), values
    return hash_values(kind, found)


def of_final_norm(norm: Any) -> dict[str, Tensor]:
    """The parameters of the norm behind the last block, where it is read, by shared names."""
    named = norm.named_parameters()
    return {f"final norm.{name.rpartition('.')[2]}": parameter for name, parameter in named}


def hash_values(kind: str, found: Mapping[str, tuple[tuple[int, ...], Tensor]]) -> str:
    """The fingerprint, from shapes and from the values at `strided_places`."""
    digest = hashlib.sha256(kind.encode())
    for name, (shape, values) in sorted(found.items()):
        digest.update(f"{name}{shape}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def strided_places(size: int) -> Int[Tensor, " value"]:
    """Flat indices of the values that are hashed."""
    count = min(VALUES, size)
    return torch.arange(count) * size // max(count, 1)


def relative_name(name: str, prefix: str) -> str:
    """A parameter's name inside the base model."""
    return name.removeprefix(f"{prefix}.") if prefix else name
