"""What a model's parameters say, by the conventions of every host.

Norms and attention maps of one block; see `sa_plugin.host.protocol` for the conventions.

One trace that reads named places in the order of the forward pass, and stops at the deepest.

nnsight hands out values as the pass goes by, so that places must be asked for in the order in which
modules run. That order is measured once, by torch's own hooks, and with it that every module runs
exactly once. Values are cloned where they are read: nothing later in the pass can write to them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import nnsight
import torch
from einops import rearrange
from torch import Tensor, nn

from sa_nnsight.paths import Places
from sa_plugin.host import mllama
from sa_plugin.host import weights as shared
from sa_plugin.host.check import LIMITS, read_sites
from sa_plugin.host.laws import NORMS, RAW
from sa_plugin.host.protocol import AttentionWeights, BlockNorms, Norm, OutputProjection, Site
from sa_plugin.host.weights import entry_norm, norm_of, plain, prove, rotary_of

if TYPE_CHECKING:
    from sa_nnsight.host import EnvoyHost


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

    See `sa_plugin.host.weights`.
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


def block_norms(host: EnvoyHost, layer: int) -> BlockNorms:
    """The norms of one block; see `sa_plugin.host.protocol.DescribedHost`.

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
    """The norm between two lists of blocks; see `sa_plugin.host.weights.entry_norm`."""
    if host.info.block != "staged" or layer == 0:
        return None
    norm = None
    if host.places.has("entry"):
        norm = norm_of(host.places.path("entry"), host.places.module("entry"))
        if host.places.kind == mllama.VISION:
            norm = mllama.joint(host.places.root, norm)
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


def _by_head(weight: Tensor, bias: Tensor | None, heads: int, d_head: int) -> tuple[Tensor, Tensor | None]:
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


class Tap(NamedTuple):
    """A value of one module: `path.input`, `path.output` or `path.output[index]`.

    `gate` is the path of a parameter and its tanh, which the value is multiplied with.
    """

    path: str
    end: Literal["input", "output"]
    item: int | None = None
    gate: tuple[str, float] | None = None

    def __str__(self) -> str:
        place = f"{self.path}.{self.end}" + ("" if self.item is None else f"[{self.item}]")
        return place if self.gate is None else f"{place} * tanh({self.gate[0]})"


Order = Mapping[tuple[str, str], int]
"""Rank of each `(path, end)` in the forward pass."""


def tap_of(model: Any, places: Places, layer: int, part: str) -> Tap:
    """Where a point, or another part that `sa_plugin.host.laws` asks for, is read."""
    roles: dict[str, tuple[str, Literal["input", "output"]]] = {
        "resid_pre": ("block", "input"),
        "resid_post": ("block", "output"),
        "z": ("o_proj", "input"),
        "attn_out": ("attn_out" if places.has("attn_out") else "raw", "output"),
        RAW: ("raw", "output"),
        "mlp_out": ("mlp", "output"),
        "pattern": ("attention", "output"),
        **{part: (part[:5], "input" if part.endswith("in") else "output") for part in NORMS},
    }
    role, end = roles[part]
    if role == "raw":
        role = "attn_scale" if places.has("attn_scale") else "o_proj"
    path = envoy_path(model, places.path(role, layer))
    gated = {"attn_out": "attn_gate", RAW: "attn_gate", "mlp_out": "mlp_gate"}.get(part)
    gate = None if gated is None else places.gate(gated, layer)
    return Tap(path, end, 1 if part == "pattern" else None, gate)


def final_tap(model: Any, places: Places) -> Tap:
    """The residual stream behind the norm that follows the last block.

    Raises:
        ValueError: The architecture's paths name none.
    """
    if not places.has("final_norm"):
        raise ValueError(
            f"{places.architecture} has no final norm among its paths: leave final_norm out, or "
            'give attach(model, paths={..., "final_norm": ...}).'
        )
    return Tap(envoy_path(model, places.path("final_norm")), "output")


def envoy_path(model: Any, path: str) -> str:
    """A module's path as nnsight spells it: a submodule named `output` is `E_output` there."""
    served = type(model)
    return ".".join(
        f"E_{part}" if inspect.isdatadescriptor(getattr(served, part, None)) else part
        for part in path.split(".")
    )


def read_taps(
    model: Any,
    inputs: Mapping[str, Tensor],
    taps: Sequence[Tap],
    *,
    stop: bool = True,
    kept: Mapping[Tap, Callable[[Tensor], Tensor]] | None = None,
) -> dict[Tap, Tensor]:
    """Read in one trace without gradients.

    Args:
        model: nnsight's model.
        inputs: Keyword arguments of its forward pass.
        taps: In the order of the forward pass.
        stop: End the pass after the last of them.
        kept: What to keep of some of them, in place of the value.

    Returns:
        A clone of each value.

    Raises:
        RuntimeError: A module did not run.
    """
    envoys = [model.get(tap.path) for tap in taps]
    found: list[Tensor] = []
    reduce = kept or {}
    try:
        with torch.no_grad(), model.trace(**inputs) as tracer:
            found = nnsight.save([])
            for tap, envoy in zip(taps, envoys, strict=True):
                value = value_of(envoy, tap)
                found.append(reduce[tap](value) if tap in reduce else value)
            if stop:
                tracer.stop()
    except nnsight.intervention.interleaver.OutOfOrderError as error:
        raise RuntimeError(
            f"{error}: a module did not run, or not in the order that was measured when the model "
            "was attached."
        ) from error
    return dict(zip(taps, found, strict=True))


def value_of(envoy: Any, tap: Tap) -> Tensor:
    """A clone of a tap's value, inside a trace."""
    value = envoy.input if tap.end == "input" else envoy.output
    if tap.item is not None:
        value = value[tap.item] if isinstance(value, tuple) else None
    elif isinstance(value, tuple):
        value = value[0]
    if value is None:
        raise RuntimeError(
            f"{tap} is None: fused attention computes no pattern, and this model's attention could "
            "not be switched to 'eager'. Load it with attn_implementation='eager'."
        )
    copy: Tensor = value.clone() if tap.gate is None else value * tap.gate[1]
    return copy


def in_order(order: Order, taps: Sequence[Tap]) -> list[Tap]:
    """Taps as the forward pass comes by them, each once."""
    return sorted(set(taps), key=lambda tap: (order[tap.path, tap.end], tap.item or 0, tap.gate is not None))


def measure_order(root: nn.Module, modules: Mapping[str, nn.Module], inputs: Mapping[str, Tensor]) -> Order:
    """Run the model once and see when each module starts and ends, by torch's own hooks.

    Args:
        root: What is run.
        modules: By nnsight's path.
        inputs: Keyword arguments of the forward pass.

    Raises:
        ValueError: A module did not run exactly once.
    """
    seen: list[tuple[str, str]] = []
    handles = []
    for path, module in modules.items():

        def starts(*_: Any, path: str = path) -> None:
            seen.append((path, "input"))

        def ends(*_: Any, path: str = path) -> None:
            seen.append((path, "output"))

        handles += [module.register_forward_pre_hook(starts), module.register_forward_hook(ends)]
    try:
        with torch.no_grad():
            root(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    for path in modules:
        count = seen.count((path, "output"))
        if count != 1:
            raise ValueError(
                f"{type(root).__name__} ran module {path!r} {count} times in one forward pass, "
                "expected once: its tensor cannot be trusted. Name another module in "
                "attach(model, paths={...})."
            )
    return {event: rank for rank, event in enumerate(seen)}


@contextmanager
def eager(root: nn.Module) -> Iterator[None]:
    """Unfused attention inside the context, so that there are probabilities to read."""
    before = getattr(getattr(root, "config", None), "_attn_implementation", None)
    switch = getattr(root, "set_attn_implementation", None)
    if switch is None or before in (None, "eager"):
        yield
        return
    switch("eager")
    try:
        yield
    finally:
        switch(before)
