"""A view of a bridge that ends at an objective's layer, for TransformerLens's own tools.

`transformer_lens.patching` and `transformer_lens.tools.analysis.attribution_patch` ask a model for
`cfg`, `run_with_hooks`, `run_with_cache` and `hooks`, and hand what it returns to the metric. The
view answers as a model of `layer + 1` blocks whose output is the residual stream behind the
last of them; an `Objective` is a metric of exactly that. Blocks above are never computed, sweeps
have no rows for them, and no node there lacks a gradient. Inputs that those tools do not pass on,
such as the attention mask, ride in the view.

A vision model's first argument is pixels, `[batch, 3, height, width]`. The patching functions take
its last dimension for the number of tokens, so give the sweeps by position
`index_axis_names=None, index_df=view.index("layer", "pos")`.

`hook_resid_mid` is the input of a block's second norm in TransformerLens 4.3, and an edit that is
returned there reaches the MLP alone, not the residual stream that goes round it: the sweep over
resid_mid is then the one over mlp_out. (With gradients off the setters write in place, and it is
right.) In a view the edit is always written in place, so that it is one of the residual stream.

A view cannot tell a sweep over a hook that fires and changes nothing from one without effect. Ask
`host.check_writable(name)` first; in encoders and vision towers `attn.hook_pattern` is such a hook.

The alternative, the whole bridge with a metric that looks up a tensor captured on the way, needs
`tensor.clone()` in the capture: `resid_post` of one block and `resid_pre` of the next are the same
storage, and patch setters write in place.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sa_plugin._check import require, with_article
from sa_plugin._face import face
from sa_plugin.host.local import demand_writable
from sa_plugin.host.protocol import READ_AT, require_layer, require_weights
from sa_plugin.host.turns import Turns, Undo, one_turn, take, turns_of
from sa_transformer_lens.passes import named, note_tools
from sa_transformer_lens.ways import passes_of

Hook = tuple[Any, Callable[..., Any]]
HEADS, POSITIONS = ("head", "head_index"), ("pos", "src_pos", "dest_pos")


@runtime_checkable
class _Objective(Protocol):
    @property
    def layer(self) -> int: ...

    @property
    def hook_name(self) -> str: ...

    @property
    def mask(self) -> Tensor: ...


class _Reached(Exception):
    """Carries the activation at the end of the view."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


def _reach(value: Tensor, hook: Any) -> None:
    # Added after all others, so that it sees what they wrote; cloned, because the storage is shared
    # with the next block's input and the caller may write into what it gets.
    raise _Reached(value.clone())


class PrefixView:
    """The first blocks of a bridge as a model whose output is the activation at `hook_name`.

    Made by `prefix_view`. Whatever it does not define is the bridge's own.

    Attributes:
        bridge: Whose blocks are run.
        layer: The last block.
        hook_name: Whose tensor is returned.
        n_tokens: Number of tokens the objective was made for; None for any.
        inputs: Passed to the bridge in every run.
    """

    def __init__(
        self, bridge: Any, layer: int, hook_name: str, n_tokens: int | None, inputs: dict[str, Tensor]
    ) -> None:
        self.bridge, self.layer, self.hook_name = bridge, layer, hook_name
        self.n_tokens, self.inputs = n_tokens, inputs
        self._writable: set[str] = set()
        self._passes = passes_of(bridge)

    def __repr__(self) -> str:
        return f"PrefixView({self.bridge.cfg.model_name}, up to {self.hook_name})"

    def __getattr__(self, name: str) -> Any:
        if name == "bridge":
            raise AttributeError(name)
        return getattr(self.bridge, name)

    def __call__(self, tokens: Tensor) -> Tensor:
        """The activation at `hook_name`, `[batch, token, d_model]`."""
        return self.run_with_hooks(tokens)

    @property
    def cfg(self) -> Any:
        """The bridge's as it is now (tools switch its flags), with as many blocks as are run."""
        cfg = copy.copy(self.bridge.cfg)
        # What is written behind resid_pre of a block does not reach it.
        cfg.n_layers = self.layer + (not self.hook_name.endswith("resid_pre"))
        return cfg

    def index(self, *axes: str) -> Any:
        """Every cell of a sweep, as `index_df`, with the model's number of tokens.

        Args:
            *axes: "layer" first; then "pos", "src_pos", "dest_pos", "head", "head_index".

        Returns:
            A pandas DataFrame, a column an axis.

        Raises:
            ValueError: An axis is unknown, or the view was made from a block index and does not
                know the number of tokens.
        """
        sizes = {"layer": self.cfg.n_layers, **dict.fromkeys(HEADS, self.cfg.n_heads)}
        if self.n_tokens is not None:
            sizes |= dict.fromkeys(POSITIONS, self.n_tokens)
        unknown = [axis for axis in axes if axis not in sizes]
        if unknown:
            raise ValueError(
                f"axis {unknown[0]!r} has no size here: use {sorted(sizes)}, and make the view "
                "from an objective where positions are swept."
            )
        ranges = [sizes[axis] for axis in axes]
        return require("transformer_lens.patching", "transformer-lens").make_df_from_ranges(
            ranges, list(axes)
        )

    def named_modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """The bridge's modules, so that checks of the model see them."""
        modules: Iterator[tuple[str, torch.nn.Module]] = self.bridge.named_modules()
        return modules

    @cached_property
    def turns(self) -> Turns:
        """Those of the bridge; every run is one."""
        return turns_of(self._passes.places)

    def left_over(self) -> Undo:
        """As of `Passes`."""
        return self._passes.left_over()

    @one_turn
    def run_with_hooks(
        self, tokens: Tensor, fwd_hooks: Sequence[Hook] = (), bwd_hooks: Sequence[Hook] = ()
    ) -> Tensor:
        """Run the blocks with hooks and return the activation at `hook_name`.

        Args:
            tokens: Token ids `[batch, token]`, or pixels `[batch, 3, height, width]`.
            fwd_hooks: As of TransformerLens.
            bwd_hooks: As of TransformerLens.

        Raises:
            ValueError: The tokens are not those of the objective in number, the inputs that ride
                along do not fit them, or an edit is made at a hook that the model does not listen
                to (checked once for each kind of hook, by three more passes).
            RuntimeError: The hook did not fire.
        """
        inputs = self._inputs(tokens)
        edited: set[str] = set()
        hooks = [*(_watch(hook, edited) for hook in fwd_hooks), (self._canonical, _reach)]
        try:
            with self.bridge.hooks(fwd_hooks=hooks, bwd_hooks=[_own(hook) for hook in bwd_hooks]):
                self.bridge(tokens, **inputs)
        except _Reached as reached:
            self._demand_writable(edited, tokens, inputs)
            return self._named(reached.value)
        raise RuntimeError(f"{self.hook_name} did not fire: the view has nothing to return.")

    def run_with_cache(self, tokens: Tensor, **options: Any) -> tuple[Tensor, Any]:
        """The activation at `hook_name`, and the bridge's cache of the blocks that were run.

        Args:
            tokens: Token ids, or pixels.
            **options: For the bridge's `run_with_cache`, such as `names_filter`.

        Raises:
            ValueError: As `run_with_hooks`.
        """
        run = partial(self._run_with_cache, tokens, options)
        return take(self.turns, "run_with_cache", self.left_over, run)

    def _run_with_cache(self, tokens: Tensor, options: dict[str, Any]) -> tuple[Tensor, Any]:
        inputs = self._inputs(tokens)
        # TransformerLens stops before a block, not behind the last one.
        last = self.layer == self.bridge.cfg.n_layers - 1
        # A HookedEncoder does not stop.
        stops = not last and not getattr(self._passes.places, "encoder", False)
        stop = {"stop_at_layer": self.layer + 1} if stops else {}
        found: list[Tensor] = []
        note_tools(self._passes.places)

        def capture(value: Tensor, hook: Any) -> None:
            found.append(value.clone())

        with self.bridge.hooks(fwd_hooks=[(self._canonical, capture)]):
            _, cache = self.bridge.run_with_cache(tokens, **stop, **inputs, **options)
        if not cache:
            raise ValueError(
                f"names_filter {options.get('names_filter')!r} matches no hook up to "
                f"{self.hook_name}: names look like 'blocks.0.attn.hook_z'."
            )
        return self._named(found[0]), cache

    def _named(self, value: Tensor) -> Tensor:
        setattr(value, READ_AT, self.hook_name)
        return value

    def _demand_writable(self, edited: set[str], tokens: Tensor, inputs: dict[str, Tensor]) -> None:
        first = "pixel_values" if tokens.ndim == 4 else "input_ids"
        for name in sorted(edited):
            kind = re.sub(r"^blocks\.\d+\.", "", name)
            if kind not in self._writable:
                one = {key: value[:1] for key, value in inputs.items()}
                demand_writable(self._passes, name, {first: tokens[:1].detach(), **one})
                self._writable.add(kind)

    @property
    def _canonical(self) -> str:
        # In compatibility mode a hook added by an alias is called once for each of its names.
        ((name, _),) = named(self.bridge, [(self.hook_name, _reach)])
        return name

    def _inputs(self, tokens: Tensor) -> dict[str, Tensor]:
        if tokens.ndim < 2:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}: give [batch, token].")
        if tokens.ndim == 4:
            return {name: _expand(name, value, tokens) for name, value in self.inputs.items()}
        length = tokens.shape[1]
        if self.n_tokens is not None and length != self.n_tokens:
            raise ValueError(
                f"these tokens are {length} long, the objective was made for {self.n_tokens}: "
                "clean and corrupted inputs must have the same number of tokens, because patching "
                "goes position by position. Replace tokens one for one, or pad both alike. If they "
                "come from bridge.to_tokens, which may add BOS: give prepend_bos=False, or take "
                "host.forward_inputs(sample)['input_ids']."
            )
        return {name: _fit(name, value, tokens) for name, value in self.inputs.items()}


def _watch(hook: Hook, edited: set[str]) -> Hook:
    """The same hook, its name noted when it returns an edit."""
    name, function = hook
    in_place = isinstance(name, str) and name.endswith(".hook_resid_mid")

    def watched(value: Tensor, hook: Any) -> Any:
        out = function(value.clone() if in_place else value, hook)
        if out is not None and isinstance(name, str):
            edited.add(name)
        # The block keeps this very tensor to add the MLP's output to.
        return value.copy_(out) if in_place and out is not None else out

    return name, watched


def _own(hook: Hook) -> Hook:
    """The same hook, put on as one of this package, so that it is known if a run is cut off."""
    name, function = hook
    return name, lambda value, hook: function(value, hook)


@face
def prefix_view(model: Any, objective: _Objective | int, **inputs: Tensor) -> PrefixView:
    """A model that ends at an objective's layer and returns the residual stream there.

    Args:
        model: A TransformerBridge, or the host that `sa_plugin.attach` made of it.
        objective: An `Objective`, or a block index (then `resid_post`, any number of tokens).
        **inputs: What every run passes beside the tokens: `attention_mask`, `position_ids`,
            `[1 or batch, token]`.

    Returns:
        The view. Give it to `transformer_lens.patching` functions with `objective.metric` (or the
        objective itself under `reduce="mean"` and `"none"`), and to `attribution_patch`.

    Raises:
        ValueError: The layer does not exist, the hook is none of a block's, the inputs hold the
            tokens, or the objective is of another model than a host's.

    Example:
        >>> view = prefix_view(bridge, objective)  # doctest: +SKIP
        >>> _, cache = view.run_with_cache(clean)  # doctest: +SKIP
        >>> patching.get_act_patch_resid_pre(
        ...     view, corrupted, cache, objective.metric)  # doctest: +SKIP
    """
    bridge = getattr(model, "bridge", model)
    if not hasattr(bridge, "cfg") or not hasattr(bridge, "run_with_hooks"):
        raise TypeError(
            f"prefix_view: model is {with_article(type(model).__name__)}, not a TransformerBridge: give "
            "TransformerBridge.boot_transformers(name), or attach(...) of it."
        )
    if isinstance(objective, int):
        require_layer(objective, bridge.cfg.n_layers, "the model")
        hook_name = passes_of(bridge).places.hook_name((objective, "resid_post"))
        layer, n_tokens = objective, None
    else:
        layer, hook_name = objective.layer, objective.hook_name
        n_tokens = int(objective.mask.shape[-1])
        require_weights(objective, getattr(model, "info", None))
    require_layer(layer, bridge.cfg.n_layers, "the model")
    if not hook_name.startswith(f"blocks.{layer}."):
        raise ValueError(f"{hook_name!r} is no hook of block {layer}: a view ends at a block.")
    given = sorted({"input_ids", "input", "tokens", "pixel_values"} & inputs.keys())
    if given:
        raise ValueError(f"{given[0]} is the input itself, which patching functions pass: leave it out here.")
    return PrefixView(bridge, layer, hook_name, n_tokens, dict(inputs))


def _expand(name: str, value: Tensor, tokens: Tensor) -> Tensor:
    """One row, or the batch's rows."""
    if value.ndim == 0 or value.shape[0] not in (1, len(tokens)):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, the tokens {tuple(tokens.shape)}: give one "
            "row, or one for each row of the tokens."
        )
    return value.expand(len(tokens), *value.shape[1:])


def _fit(name: str, value: Tensor, tokens: Tensor) -> Tensor:
    """One row, or the batch's rows, as many positions as tokens."""
    per_token = name in ("attention_mask", "one_zero_attention_mask", "position_ids", "token_type_ids")
    if per_token and value.shape[1:] != tokens.shape[1:2]:
        raise ValueError(
            f"{name} has {value.shape[-1]} positions, the tokens {tokens.shape[1]}: clean and "
            "corrupted inputs must have the same number of tokens as what rides along."
        )
    return _expand(name, value, tokens)
