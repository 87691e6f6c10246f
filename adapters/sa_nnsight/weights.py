"""What a model's parameters say, by the conventions of every host."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from sa_nnsight.paths import Places
from sa_plugin import fingerprint as shared
from sa_plugin.describe import plain
from sa_plugin.host import OutputProjection


def number_format(places: Places) -> str:
    """Number formats of the blocks' weights."""
    parameters = [p for block in places.blocks() for p in block.parameters()]
    formats = {str(p.dtype) for p in parameters if p.is_floating_point()}
    return "+".join(sorted(name.removeprefix("torch.") for name in formats))


def n_heads(places: Places) -> int:
    """Number of query heads.

    Raises:
        ValueError: The model has no config that says so.
    """
    given = places.roles.get("n_heads")
    count = getattr(getattr(places.root, "config", None), "num_attention_heads", None)
    if given is None and not isinstance(count, int):
        raise ValueError(
            f"{places.architecture} does not say how many attention heads it has: give "
            'attach(model, paths={..., "n_heads": 12}).'
        )
    return int(given if given is not None else count)  # type: ignore[arg-type]


def as_linear(module: Any) -> Tensor:
    """Weight `[out, in]` of a Linear or of transformers' Conv1D."""
    weight: Tensor = module.weight
    return weight if isinstance(module, nn.Linear) else weight.T


def output_projection(places: Places, layer: int) -> OutputProjection:
    """W_O and b_O of one block, copied, in float32 on the CPU."""
    module = places.module("o_proj", layer)
    weight, bias = plain(as_linear(module)), getattr(module, "bias", None)
    bias = None if bias is None else plain(bias)
    if places.has("attn_scale"):
        scale = plain(places.module("attn_scale", layer).lambda1)
        weight = weight * scale[:, None]
        bias = None if bias is None else bias * scale
    gate = places.gate("attn_gate", layer)
    if gate is not None:
        weight, bias = weight * gate[1], None if bias is None else bias * gate[1]
    heads = n_heads(places)
    return OutputProjection(rearrange(weight, "d (h e) -> h e d", h=heads).contiguous(), bias)


def fingerprint(places: Places, context: Tensor | None = None, *, final_norm: bool = False) -> str:
    """Hash of the weights before and in the blocks, and of an image's states that they attend to.

    See `sa_plugin.fingerprint`.
    """
    found: dict[str, Tensor] = {} if context is None else {shared.CONTEXT: context}
    for inner, parameter in inner_parameters(places).items():
        found.update(shared_names(places, inner, parameter))
    if final_norm and places.has("final_norm"):
        found |= shared.of_final_norm(places.module("final_norm"))
    return shared.fingerprint(places.kind, found)


def inner_parameters(places: Places) -> dict[str, Tensor]:
    """Weights before and in the blocks, by their path inside the base model."""
    after = _after(places)
    named = {k.removeprefix(places.prefix): p for k, p in places.root.named_parameters()}
    return {name: p for name, p in named.items() if name.split(".")[0] not in after}


def _after(places: Places) -> set[str]:
    after = places.roles.get("after", ())
    return {after} if isinstance(after, str) else set(after)


def shared_names(places: Places, name: str, parameter: Tensor) -> dict[str, Tensor]:
    """A parameter by its shared name; a fused one, in three."""
    if not places.has("qkv"):
        return {name: parameter}
    fused, out = places.roles["qkv"], places.roles["o_proj"]
    owner, _, end = name.rpartition(".")
    if owner.endswith(f".{out}"):
        return {f"{owner.rpartition('.')[0]}.o.{end}": parameter}
    if not owner.endswith(f".{fused}"):
        return {name: parameter}
    attention = owner.rpartition(".")[0]
    module = places.root.get_submodule(places.prefix + owner)
    flat = end != "weight" or isinstance(module, nn.Linear)
    whole = parameter if flat else parameter.T
    parts = split_fused(places, whole)
    return {f"{attention}.{part}.{end}": value for part, value in zip("qkv", parts, strict=True)}


def split_fused(places: Places, whole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a fused projection (or entries of its bias) of queries, keys and values."""
    if places.roles.get("qkv_order") == "heads":
        q, k, v = rearrange(whole, "(h part e) ... -> part (h e) ...", h=n_heads(places), part=3)
    else:
        q, k, v = whole.chunk(3)
    return q, k, v
