"""Where things are in an nnsight model: its modules, norms and weights by the names of every host.

`sa_nnsight.measure` finds the roles of modules in one pass; a user may add to them or correct them
(`sa_nnsight.paths`). Neither is trusted: when a model is attached, how its blocks add up, that every
module runs once, and in which order, are measured by other means, and norms and maps are proved where
they are used (`sa_plugin.host.weights`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from sa_nnsight import measure
from sa_nnsight.paths import KNOWN, NOT_IN_BLOCKS, REQUIRED, ROLES, SIDE_BY_SIDE, SOME_BLOCKS, Paths
from sa_plugin.host import mllama, siglip2, weights
from sa_plugin.host.adapter import FINAL, TOWERS, AttentionParts, NormRole, Part
from sa_plugin.host.laws import NORMS, RAW, relative_difference
from sa_plugin.host.protocol import InputMap, Norm, OutputProjection, Point
from sa_plugin.host.turns import ASKED, note_attention
from sa_plugin.host.weights import as_float32, norm_of

NORM_ROLES = {"norm1": "norm1", "norm2": "norm2", "norm1_post": "attn_out", "norm2_post": "mlp"}
GATES = {"attn_out": "attn_gate", RAW: "attn_gate", "mlp_out": "mlp_gate"}


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


def envoy_path(model: Any, path: str) -> str:
    """A module's path as nnsight spells it: a submodule named `output` is `E_output` there."""
    served = type(model)
    return ".".join(
        f"E_{part}" if inspect.isdatadescriptor(getattr(served, part, None)) else part
        for part in path.split(".")
    )


@dataclass(frozen=True, eq=False)
class EnvoyPlaces:
    """A model's modules by role.

    Attributes:
        model: nnsight's model.
        roles: See `sa_nnsight.paths.ROLES`.
        prefix: Path of the base model inside the root, "" or ending in a dot.
        names: Paths of the blocks that are read, inside the base model.
        context: States of the image that every text is read with (Mllama), or None.
    """

    model: Any
    roles: Paths
    prefix: str
    names: tuple[str, ...]
    context: Tensor | None = None
    library = "nnsight"

    @property
    def root(self) -> nn.Module:
        """The module that is run."""
        root: nn.Module = getattr(self.model, "_module", self.model)
        return root

    @property
    def config(self) -> Any:
        """Its configuration, or None."""
        return getattr(self.root, "config", None)

    @property
    def architecture(self) -> str:
        """Class name of the model."""
        return type(self.root).__name__

    @property
    def kind(self) -> str:
        """Its `model_type`, or "" without a config."""
        return model_type(self.root)

    @property
    def model_name(self) -> str:
        """The repository's or the folder's name, else the class's."""
        name = self.model.__dict__.get("repo_id") or getattr(self.config, "_name_or_path", "")
        text = name if isinstance(name, str) else ""
        # A folder of the user's is named by its last part, as the other adapter has it.
        return Path(text).name if text and Path(text).is_dir() else text or self.architecture

    @property
    def context_length(self) -> int | None:
        """Tokens the model takes."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def processing(self) -> str:
        """Weights are as they are."""
        return ""

    @property
    def n_layers(self) -> int:
        """Number of blocks that are read."""
        return len(self.names)

    @property
    def n_heads(self) -> int:
        """Number of query heads.

        Raises:
            ValueError: The model has no config that says so.
        """
        given = self.roles.get("n_heads", getattr(self.config, "num_attention_heads", None))
        if not isinstance(given, int):
            raise ValueError(
                f"{self.architecture} does not say how many attention heads it has: give "
                'attach(model, paths={..., "n_heads": 12}).'
            )
        return given

    @property
    def d_head(self) -> int:
        """Width of a head's value."""
        return int(as_linear(self.module("o_proj", 0)).shape[1]) // self.n_heads

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of a block's parts."""
        norms = NORMS if self.has("norm1") and self.has("norm2") else ()
        return (*get_args(Point), RAW, *norms)

    def has(self, role: str) -> bool:
        """Whether the architecture has such a module."""
        return role in self.roles

    def path(self, role: str, layer: int | None = None) -> str:
        """Path of a module inside the root; "block" is a block itself."""
        if layer is None:
            return self.prefix + str(self.roles[role])
        block = self.prefix + self.names[layer]
        if role == "block":
            return block
        paths = _alternatives(self.roles[role])
        found = (f"{block}.{path}" for path in paths if _find(self.root, f"{block}.{path}"))
        return next(found, f"{block}.{paths[0]}")

    def module(self, role: str, layer: int | None = None) -> Any:
        """The module itself."""
        return self.root.get_submodule(self.path(role, layer))

    def raw_role(self) -> str:
        """The module whose output is RAW: the projection, or the LayerScale behind it."""
        return "attn_scale" if self.has("attn_scale") else "o_proj"

    def blocks(self) -> Sequence[nn.Module]:
        """The blocks that are read."""
        return [self.module("block", layer) for layer in range(self.n_layers)]

    def gate(self, role: str, layer: int) -> tuple[str, float] | None:
        """Path and tanh of a block's gate, if it has one."""
        name = self.roles.get(role)
        parameter = getattr(self.module("block", layer), str(name), None) if name else None
        if parameter is None:
            return None
        return f"{self.path('block', layer)}.{name}", float(parameter.detach().tanh())

    def crosses(self, layer: int) -> bool:
        """Whether a block attends to other states than the tokens'."""
        return self.has("cross") and _find(self.root, self.path("cross", layer)) is not None

    def spliced(self, layer: int) -> str:
        """Nothing is."""
        return ""

    @property
    def padding_sides(self) -> tuple[str, ...]:
        """Both: positions are counted from the first token."""
        return ("left", "right")

    def tap(self, part: Part) -> Tap:
        """Where a part is read.

        Raises:
            ValueError: It is the final norm, and the architecture's paths name none.
        """
        layer, name = part
        if name == FINAL:
            self.final_norm()
            return Tap(envoy_path(self.model, self.path("final_norm")), "output")
        ends: dict[str, tuple[str, Literal["input", "output"]]] = {
            "resid_pre": ("block", "input"),
            "resid_post": ("block", "output"),
            "z": ("o_proj", "input"),
            "attn_out": ("attn_out" if self.has("attn_out") else self.raw_role(), "output"),
            RAW: (self.raw_role(), "output"),
            "mlp_out": ("mlp", "output"),
            "pattern": ("attention", "output"),
            **{norm: (norm[:5], "input" if norm.endswith("in") else "output") for norm in NORMS},
        }
        role, end = ends[name]
        gate = self.gate(GATES[name], layer) if name in GATES else None
        path = envoy_path(self.model, self.path(role, layer))
        return Tap(path, end, int(self.roles.get("pattern", 1)) if name == "pattern" else None, gate)

    def embedding(self) -> Tap:
        """Where token embeddings are read and written.

        Raises:
            ValueError: The architecture's paths name none.
        """
        if not self.has("embed"):
            raise ValueError(
                f"{self.architecture} has no token embedding among its paths: give attach(model, "
                'paths={..., "embed": ...}).'
            )
        return Tap(envoy_path(self.model, self.path("embed")), "output")

    def hook_name(self, part: Part) -> str:
        """Nnsight's path, such as `transformer.h.8.output`."""
        return str(self.tap(part))

    def output_projection(self, layer: int) -> OutputProjection:
        """W_O and b_O of one block, copied, in float32 on the CPU."""
        module = self.module("o_proj", layer)
        weight, bias = as_float32(as_linear(module)), getattr(module, "bias", None)
        bias = None if bias is None else as_float32(bias)
        if self.has("attn_scale"):
            scale = as_float32(self.module("attn_scale", layer).lambda1)
            # LayerScale multiplies what is written: rows of W_O, and its bias.
            weight, bias = weight * scale[:, None], None if bias is None else bias * scale
        gate = self.gate("attn_gate", layer)
        if gate is not None:
            weight, bias = weight * gate[1], None if bias is None else bias * gate[1]
        heads = rearrange(weight, "d (h e) -> h e d", h=self.n_heads)
        return OutputProjection(heads.contiguous(), bias)

    def norm(self, role: NormRole, layer: int) -> tuple[str, nn.Module] | None:
        """A norm of one block, and its path."""
        own = NORM_ROLES[role]
        # ModernBERT's first block has an Identity where all others have a norm.
        if not self.has(own) or isinstance(self.module(own, layer), nn.Identity):
            return None
        return self.path(own, layer), self.module(own, layer)

    def entry(self) -> Norm | None:
        """The norm between two lists of blocks."""
        if not self.has("entry"):
            return None
        norm = norm_of(self.path("entry"), self.module("entry"))
        return mllama.joint(self.root, norm) if self.kind == mllama.VISION else norm

    def attention(self, layer: int) -> AttentionParts:
        """Maps of one block, and transformers' own module.

        Raises:
            ValueError: The architecture's paths name no projections.
        """
        if self.has("qkv"):
            module = self.module("qkv", layer)
            maps, bias = _split_fused(self, as_linear(module)), getattr(module, "bias", None)
            biases = (None,) * 3 if bias is None else _split_fused(self, bias)
            pairs = list(zip(maps, biases, strict=True))
        elif all(self.has(role) for role in "qkv"):
            modules = [self.module(role, layer) for role in "qkv"]
            pairs = [(as_linear(module), getattr(module, "bias", None)) for module in modules]
        else:
            raise ValueError(
                f"{self.architecture} has no query, key and value projections among its paths: give "
                'attach(model, paths={..., "q": ..., "k": ..., "v": ...}).'
            )
        query, key, value = (_by_head(weight, bias, self.d_head) for weight, bias in pairs)
        norms = None
        if self.has("q_norm"):
            norms = self.module("q_norm", layer), self.module("k_norm", layer)
        return AttentionParts(query, key, value, self.module("attention", layer), norms)

    def parameters(self) -> Mapping[str, Tensor]:
        """Weights before and in the blocks, and an image's states that they attend to."""
        found: dict[str, Tensor] = {} if self.context is None else {weights.CONTEXT: self.context}
        for inner, parameter in self.inner_parameters().items():
            found.update(self.shared_names(inner, parameter))
        return found

    def inner_parameters(self) -> dict[str, Tensor]:
        """Weights before and in the blocks, by their path inside the base model."""
        after = tuple(f"{path}." for path in _alternatives(self.roles.get("after", ())))
        # A tied weight goes by its name before the blocks, whichever name comes first.
        every = self.root.named_parameters(remove_duplicate=False)
        named = {name.removeprefix(self.prefix): parameter for name, parameter in every}
        found = {id(p): name for name, p in reversed(named.items()) if not name.startswith(after)}
        return {name: p for name, p in named.items() if found.get(id(p)) == name}

    def shared_names(self, name: str, parameter: Tensor) -> dict[str, Tensor]:
        """A parameter by its shared name; a fused one, in three."""
        if not self.has("qkv"):
            return {name: parameter}
        fused, out = self.roles["qkv"], self.roles["o_proj"]
        owner, _, end = name.rpartition(".")
        if owner.endswith(f".{out}"):
            return {f"{owner.rpartition('.')[0]}.o.{end}": parameter}
        if not owner.endswith(f".{fused}"):
            return {name: parameter}
        # The same names as on a bridge, which keeps q, k and v apart.
        attention = owner.rpartition(".")[0]
        module = self.root.get_submodule(self.prefix + owner)
        flat = end != "weight" or isinstance(module, nn.Linear)
        parts = _split_fused(self, parameter if flat else parameter.T)
        return {f"{attention}.{part}.{end}": value for part, value in zip("qkv", parts, strict=True)}

    def final_norm(self) -> nn.Module:
        """The norm behind the last block.

        Raises:
            ValueError: The architecture's paths name none.
        """
        if not self.has("final_norm"):
            raise ValueError(
                f"{self.architecture} has no final norm among its paths: leave final_norm out, or "
                'give attach(model, paths={..., "final_norm": ...}).'
            )
        norm: nn.Module = self.module("final_norm")
        return norm


def as_linear(module: Any) -> Tensor:
    """Weight `[out, in]` of a Linear or of transformers' Conv1D."""
    weight: Tensor = module.weight
    return weight if isinstance(module, nn.Linear) else weight.T


def _split_fused(places: EnvoyPlaces, whole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a fused projection (or entries of its bias) of queries, keys and values."""
    q, k, v = split_heads(places, whole, str(places.roles.get("qkv_order")))
    return q, k, v


def split_heads(places: EnvoyPlaces, whole: Tensor, order: str) -> tuple[Tensor, Tensor, Tensor]:
    """The first axis of a fused projection cut into queries, keys and values.

    With h query heads and g of keys and values, "parts" is h queries, g keys, g values; in "heads" each
    of g groups has h / g queries, its key and its value side by side (GPT-NeoX, Falcon).
    """
    width, heads = places.d_head, places.n_heads
    groups = (len(whole) // width - heads) // 2
    if order == "heads":
        cut = rearrange(whole, "(g part e) ... -> g part e ...", g=groups, e=width)
        return cut[:, :-2].flatten(0, 2), cut[:, -2].flatten(0, 1), cut[:, -1].flatten(0, 1)
    q, k, v = torch.split(whole, [heads * width, groups * width, groups * width])
    return q, k, v


def _by_head(weight: Tensor, bias: Tensor | None, d_head: int) -> InputMap:
    """One slice a head."""
    sliced = rearrange(as_float32(weight), "(h e) d -> h d e", e=d_head).contiguous()
    return InputMap(sliced, None if bias is None else rearrange(as_float32(bias), "(h e) -> h e", e=d_head))


def locate(model: Any, given: Paths | None, *, every: bool = False) -> EnvoyPlaces:
    """Find a model's modules, in one or two passes over a short input.

    Args:
        model: nnsight's model, or the module inside it.
        given: Roles that the user adds or replaces.
        every: Whether blocks run that a text alone skips (Mllama's cross-attention).

    Raises:
        ValueError: Something is not found, or a path leads nowhere; the text names the modules that
            there are.
    """
    root: nn.Module = getattr(model, "_module", model)
    kind, own = model_type(root), dict(given or {})
    unknown = sorted(set(own) - set(ROLES))
    if unknown:
        raise ValueError(f"paths has {unknown[0]!r}, which is no role; roles: {', '.join(ROLES)}.")
    roles = dict(KNOWN.get(kind, {}))
    if not all(role in roles for role in REQUIRED):
        roles = {**_measured(root, own), **roles}
    prefix = roles.pop("prefix", None)
    roles |= own
    wanted = None if every else roles.get("block_class")
    base = f"{getattr(root, 'base_model_prefix', '')}."
    for start in ("", base, "model.") if prefix is None else (prefix,):
        paths = _alternatives(roles["blocks"])
        lists = [_find(root, start + path) for path in paths]
        if all(isinstance(one, nn.ModuleList | nn.Sequential) for one in lists):
            names = [
                f"{path}.{number}"
                for path, one in zip(paths, lists, strict=True)
                for number, block in getattr(one, "_modules", {}).items()
                if wanted in (None, type(block).__name__)
            ]
            if not names:
                break
            places = EnvoyPlaces(model, roles, start, tuple(names))
            _check(places)
            return _with_order(places)
    raise ValueError(f"{type(root).__name__} has no list of blocks at {roles['blocks']!r}. {_found(root)}")


def model_type(root: nn.Module) -> str:
    """A model's `model_type`, or "" without a config."""
    return str(getattr(getattr(root, "config", None), "model_type", "") or "")


def model_inputs(root: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a model is called with for token ids or pixels, on its device and in its format."""
    like = next(root.parameters())
    # Not `in given`, which would make the pixels.
    if "pixel_values" not in list(given):
        return {name: value.to(like.device) for name, value in given.items()}
    pixels, kind = given["pixel_values"], model_type(root)
    if kind == mllama.VISION:
        return mllama.tile_inputs(root, pixels)
    pixels = pixels.to(like.device, like.dtype)
    return siglip2.patch_inputs(root, pixels) if kind == siglip2.VISION else {"pixel_values": pixels}


def by_row(value: Tensor, rows: int) -> Tensor:
    """`[row, token, d_model]` of a value that some blocks (OPT) pass on as `[row * token, d_model]`."""
    return rearrange(value, "(b t) d -> b t d", b=rows) if value.ndim == 2 else value


def reads_images(root: nn.Module) -> bool:
    """Whether a model is called with pixels."""
    own = getattr(root, "main_input_name", "input_ids") == "pixel_values"
    return own or model_type(root).endswith("vision_model")


def _measured(root: nn.Module, given: Paths) -> dict[str, Any]:
    """Roles found in a pass; none of them where that fails and the user has given all that is needed."""
    run = partial(_run_shortly, root)
    blocks = str(given["blocks"]) if isinstance(given.get("blocks"), str) else None
    try:
        return _described(root, run, blocks)
    except measure.NotFound as error:
        if all(role in given for role in REQUIRED):
            return {}
        raise ValueError(_unknown(root, error)) from error


def _described(root: nn.Module, run: Callable[[], Any], blocks: str | None) -> dict[str, Any]:
    fused = ""
    try:
        with eager(root):
            fused = str(getattr(getattr(root, "config", None), "_attn_implementation", None) or "eager")
            return measure.find_roles(root, run, blocks)
    except measure.NoAttention as error:
        if fused != "eager":
            raise measure.NoAttention(
                f"fused attention ({fused}) computes no pattern, and it could not be switched to 'eager'. "
                "Load the model with attn_implementation='eager'"
            ) from error
        # Older classes hand probabilities out when they are told to.
        with eager(root, ask=True):
            try:
                return measure.find_roles(root, run, blocks) | {"output_attentions": True}
            except measure.NotFound:
                raise error from None


def _run_shortly(root: nn.Module) -> None:
    """One pass over nine tokens, or over an image of noise."""
    config = getattr(root, "config", None)
    if reads_images(root):
        side = (
            siglip2.input_side(config)
            if model_type(root) == siglip2.VISION
            else getattr(config, "image_size", 224)
        )
        height, width = (side, side) if isinstance(side, int) else side
        given = {"pixel_values": torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))}
    else:
        tables = [one.num_embeddings for one in root.modules() if isinstance(one, nn.Embedding)]
        ids = (3 + torch.arange(9)) % max(tables, default=12)
        # No mask: models ask whether it hides anything, which one without values cannot say.
        given = {"input_ids": ids[None]}
    try:
        root(**model_inputs(root, given))
    except Exception as error:
        raise measure.NotFound(
            f"a pass over {'an image of noise' if reads_images(root) else 'nine tokens'} fails "
            f"({type(error).__name__}: {error})"
        ) from error


def _with_order(places: EnvoyPlaces) -> EnvoyPlaces:
    """Places that know how a fused projection is cut, by which cut its values and the pattern give z."""
    if not places.has("qkv") or places.has("qkv_order"):
        return places
    if next(places.root.parameters()).is_meta:
        order = "heads" if places.kind in SIDE_BY_SIDE else "parts"
        return replace(places, roles={**places.roles, "qkv_order": order})
    item, (fused, pattern, z) = int(places.roles.get("pattern", 1)), _attention_of(places)
    for order in ("parts", "heads"):
        value = split_heads(places, fused[0].movedim(-1, 0), order)[2]
        value = rearrange(value, "(g e) t -> t g e", e=places.d_head).float()
        value = value.repeat_interleave(places.n_heads // value.shape[1], 1)
        made = torch.einsum("hqk,khe->qhe", pattern[item][0].float(), value).flatten(1)
        if relative_difference(z[0].float(), made) < 1e-2:
            return replace(places, roles={**places.roles, "qkv_order": order})
    # In no known order: read all the same, and described by no maps.
    return replace(places, roles={role: path for role, path in places.roles.items() if role != "qkv"})


def _attention_of(places: EnvoyPlaces) -> list[Any]:
    """What the fused projection, attention and the input of the output projection are in block 0."""
    seen: dict[str, Any] = {}
    handles = [
        places.module("qkv", 0).register_forward_hook(lambda _, __, out: seen.update(qkv=out)),
        places.module("attention", 0).register_forward_hook(lambda _, __, out: seen.update(attention=out)),
        places.module("o_proj", 0).register_forward_pre_hook(lambda _, args: seen.update(z=args[0])),
    ]
    try:
        with torch.no_grad(), eager(places.root, ask=bool(places.roles.get("output_attentions"))):
            _run_shortly(places.root)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[name] for name in ("qkv", "attention", "z")]


def _alternatives(path: Any) -> tuple[str, ...]:
    return tuple(path) if isinstance(path, list | tuple) else (str(path),)


def _check(places: EnvoyPlaces) -> None:
    """Every role in the first block; in the others too where paths have alternatives."""
    for role in sorted(set(places.roles) - NOT_IN_BLOCKS - SOME_BLOCKS):
        several = len(_alternatives(places.roles[role])) > 1
        for layer in range(places.n_layers if several else 1):
            path = places.path(role, layer)
            if _find(places.root, path) is None:
                raise ValueError(
                    f"{places.architecture} has no module {path!r} ({role}: {ROLES[role]}). "
                    f"{_found(places.root)}"
                )


def _find(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def require_one_tower(root: nn.Module) -> None:
    """Refuse a model of two towers of which none was chosen.

    Raises:
        ValueError: It has both; the text says how to choose.
    """
    inner = getattr(root, "model", root)
    if all(any(hasattr(inner, name) for name in names) for names in TOWERS.values()):
        raise ValueError(
            f"{type(root).__name__} has two towers: say which to read, attach(model, tower='vision') or "
            "tower='text'."
        )


def _unknown(root: nn.Module, error: measure.NotFound) -> str:
    architecture = type(root).__name__
    if isinstance(error, measure.NoModule):
        return f"{architecture} cannot be attached: {error}."
    if isinstance(error, measure.NoAttention):
        lacking = not hasattr(getattr(root, "config", None), "num_attention_heads")
        return (
            f"{architecture} has no attention{'' if lacking else ' that can be read'}, and everything here "
            f"reads attention: it cannot be attached. {error}."
        )
    wanted = ", ".join(f"{role!r} ({ROLES[role]})" for role in REQUIRED)
    return (
        f"where things are in {architecture} ({model_type(root) or 'no config'}) was not found: {error}. "
        f'{_found(root)} Say where, paths inside a block: attach(model, paths={{"blocks": ..., '
        '"attention": ..., "o_proj": ..., "mlp": ..., "norm1": ..., "norm2": ...}); needed: '
        f"{wanted}; the others are in sa_nnsight.paths.ROLES."
    )


def _found(root: nn.Module) -> str:
    """Lists of blocks and what is in the first of each."""
    lists = []
    for name, module in root.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            inner = [path for path, _ in module[0].named_modules() if path]
            lists.append(f"{name!r} ({len(module)} x {type(module[0]).__name__}: {', '.join(inner[:16])})")
    return f"Lists of blocks found: {'; '.join(lists[:4]) or 'none'}."


@contextmanager
def eager(root: nn.Module, *, ask: bool = False) -> Iterator[None]:
    """Unfused attention inside the context, so that there are probabilities to read.

    Args:
        root: The model.
        ask: Whether it is also told to hand them out.
    """
    config = getattr(root, "config", None)
    before = getattr(config, "_attn_implementation", None)
    switch = getattr(root, "set_attn_implementation", None)
    fused = switch is not None and before not in (None, "eager")
    ask = ask and getattr(config, "output_attentions", True) is False
    if fused or ask:
        note_attention(root)
    if fused and switch is not None:
        switch("eager")
    if ask:
        setattr(config, ASKED, True)
    try:
        yield
    finally:
        if ask:
            setattr(config, ASKED, False)
        if fused and switch is not None:
            switch(before)
