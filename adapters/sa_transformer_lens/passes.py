"""Passes of a TransformerBridge that read, replace or watch named hooks, and leave it as it was.

TransformerLens's `stop_at_layer` does nothing on BERT and cannot stop after the last block (the
unembedding still runs), so a pass is ended by an exception from a hook at the deepest block that is
read; no later block is computed. Every hook that is read must fire exactly once.

`z` is what the output projection multiplies, so an edit there reaches the model in decoders,
encoders and vision towers alike. An edit of `hook_pattern` is lost in BERT and ViT: TransformerLens
wraps their attention as it stands in transformers, which returns the pattern beside its output.
Other hooks never fire at all (`hook_rot_q` of GPT-NeoX). Neither is an error to TransformerLens
(4.3 warns of the first), and a patching sweep over such a hook reports an effect of zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sa_plugin.host.adapter import FINAL, Keep, Look, Looks, Part, seeing_inputs
from sa_plugin.host.edits import AttendedReader, EditWatch
from sa_plugin.host.laws import RAW, Law, Parts
from sa_plugin.host.local import demand_embedded, refuse_training
from sa_plugin.host.protocol import Site
from sa_plugin.host.turns import HOOKS, Undo, asked, hooks_on, is_ours, take_off, turns_of
from sa_transformer_lens.places import BridgePlaces

# Behind a module's name: its output, where no hook has it.
OUTPUT = ":output"
FIRST = ("input_ids", "pixel_values")
EXPECTED = "A hook on .* returned a modified tensor"
LISTS = ("fwd_hooks", "bwd_hooks")
FLAGS = ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in")
Hook = tuple[str, Callable[..., Any]]


class _Reached(Exception):
    """Everything asked for has been read."""


def _end(tensor: Tensor, hook: Any) -> None:
    raise _Reached


@dataclass(frozen=True, eq=False)
class BridgePasses:
    """Runs a bridge.

    Attributes:
        places: Of the bridge.
    """

    places: BridgePlaces

    @property
    def bridge(self) -> Any:
        """The bridge."""
        return self.places.model

    def refuse_unready(self) -> None:
        """Refuse training mode."""
        refuse_training(self.bridge)

    def inputs(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch's inputs on the bridge's device."""
        device = next(self.bridge.parameters()).device
        return {key: value.to(device) for key, value in given.items()}

    def settle(self, inputs: Mapping[str, Tensor], parts: Sequence[Part]) -> BridgePasses:
        """Hooks need no order."""
        return self

    def read(
        self, inputs: Mapping[str, Tensor], parts: Sequence[Part], keep: Keep | None = None
    ) -> dict[Part, Tensor]:
        """One pass without gradients; it ends behind the deepest part, unless it is a check's."""
        names = {part: self.places.hook_name(part) for part in parts}
        if keep is None:
            found = capture(self.bridge, names.values(), inputs, self._last_hook(parts))
        else:
            kept = {hook: partial(keep, name) for (_, name), hook in names.items()}
            found = capture(self.bridge, names.values(), inputs, kept=kept)
        return {part: found[name] for part, name in names.items()}

    def _last_hook(self, parts: Sequence[Part]) -> str:
        """Where a pass that reads parts can end."""
        final = next((part for part in parts if part[1] == FINAL), None)
        if final is not None:
            return self.places.hook_name(final)
        deepest = max(layer for layer, _ in parts)
        only_entry = all(name == "resid_pre" for layer, name in parts if layer == deepest)
        return self.places.hook_name((deepest, "resid_pre" if only_entry else "resid_post"))

    def embeddings(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the token embedding gives."""
        name = self.places.embedding
        return capture(self.bridge, [name], inputs, name)[name]

    def forward(
        self, inputs: Mapping[str, Tensor], embeddings: Tensor | None, parts: Sequence[Part]
    ) -> dict[Part, Tensor]:
        """The hooks' own tensors, as functions of embeddings or pixels."""
        names = {part: self.places.hook_name(part) for part in parts}
        found: dict[str, list[Tensor]] = {name: [] for name in names.values()}
        entry = self.places.embedding

        def keep(name: str) -> Any:
            return lambda tensor, hook: found[name].append(tensor)

        def embed(embedded: Tensor, hook: Any) -> Tensor:
            assert embeddings is not None
            demand_embedded(embeddings, embedded)
            found[entry].append(embedded)
            # A copy: what a model or a hook writes in place must not reach the caller's tensor.
            return embeddings.to(embedded.device, embedded.dtype).clone()

        hooks: list[Hook] = [(name, keep(name)) for name in found]
        if embeddings is not None:
            found[entry] = []
            hooks.insert(0, (entry, embed))
        # Hooks at one point run in the order they were added: those that read, then the end.
        call_under(self.bridge, inputs, [*hooks, (self._last_hook(parts), _end)])
        _demand_once(found)
        return {part: found[name][0] for part, name in names.items()}

    def output(
        self,
        inputs: Mapping[str, Tensor],
        name: str | None = None,
        edit: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Logits, or what the bridge returns, with one hook edited or none."""
        hooks: list[Hook] = []
        if name is not None and edit is not None:
            hooks = [(name, lambda tensor, hook: edit(tensor))]
        turns_of(self.places).note(_filter_left_over)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", EXPECTED)
            out = call_under(self.bridge, inputs, hooks)
        assert out is not None
        return out

    @contextmanager
    def watching(self, watches: Mapping[Site, EditWatch]) -> Iterator[None]:
        """Values are `attn.hook_v`; the mask is what the attention module is called with."""

        def start(tensor: Tensor, hook: Any) -> None:
            for watch in watches.values():
                watch.start()

        hooks: list[Hook] = [(self.places.hook_name((0, "resid_pre")), start)]
        with ExitStack() as stack:
            for site, watch in watches.items():
                if watch.reader is not None:
                    handle = self._see_mask(site.layer, watch.reader)
                    stack.callback(handle.remove)
                    hooks += attended_hooks(site.layer, watch.reader)
                hooks.append((self.places.hook_name(site), lambda z, hook, w=watch: w.edited(z)))
                if site.point == "z":
                    raw = self.places.hook_name((site.layer, RAW))
                    hooks.append((raw, lambda out, hook, w=watch: w.see_output(out)))
            stack.enter_context(put_on(self.bridge, hooks))
            yield

    @contextmanager
    def showing(self, looks: Looks) -> Iterator[None]:
        """Parts by hook points, ids by the token embedding, the mask by what is called with one."""

        def hook(look: Look) -> Callable[[Tensor, Any], Tensor | None]:
            return lambda tensor, hook: look(tensor)

        hooks = [(self.places.hook_name(part), hook(look)) for part, look in looks.parts.items()]
        # A HookedTransformer generates from embeddings, and shows its mask to blocks alone.
        called = [self.bridge, self.places.root, self.places.blocks()[0]]
        with seeing_inputs(looks, self.bridge.embed, called), put_on(self.bridge, hooks):
            yield

    def _see_mask(self, layer: int, reader: AttendedReader) -> Any:
        def before(_: Any, args: Any, kwargs: Any) -> None:
            reader.see_mask(args, kwargs)

        return self.bridge.blocks[layer].attn.register_forward_pre_hook(before, with_kwargs=True)

    def left_over(self) -> Undo:
        """Entries of hook points for hooks that are off.

        The level that TransformerLens counts nested contexts with stays: a context whose generator an
        interrupt left waiting counts down when it is closed, perhaps later.
        """
        return partial(_strike_out, self.bridge, lambda handle: is_ours(asked(handle.user_hook)))

    def own_laws(self, blocks: Sequence[Parts], inputs: Mapping[str, Tensor], limit: float) -> Sequence[Law]:
        """None."""
        return ()


def _strike_out(bridge: Any, chosen: Callable[[Any], bool]) -> str | None:
    """Strike out entries of hook points whose hooks are off, and say how many.

    A hook point lists its hooks beside torch, which takes off its own first.
    """
    count = 0
    for module in bridge.modules():
        on = {key for kind in HOOKS for key in getattr(module, kind)}
        for name in LISTS:
            entries = module.__dict__.get(name, ())
            off = [entry for entry in entries if entry.hook.id not in on and chosen(entry)]
            for entry in off:
                entries.remove(entry)
            count += len(off)
    return f"{count} entr{'ies' if count > 1 else 'y'} for hooks that are off" if count else None


def _filter_left_over() -> str | None:
    left = [one for one in warnings.filters if getattr(one[1], "pattern", None) == EXPECTED]
    for one in left:
        warnings.filters.remove(one)  # type: ignore[attr-defined]
    return "a filter of warnings" if left else None


def note_tools(places: BridgePlaces) -> None:
    """Write down, for the turn under way, what tools of TransformerLens change on a bridge.

    Those put hooks of their own on it, switch flags, and tell blocks where to stop.
    """
    bridge = places.model
    before = {hook.key for hook in hooks_on(bridge)}
    flags = {name: getattr(bridge.cfg, name) for name in FLAGS if hasattr(bridge.cfg, name)}

    def undo() -> str | None:
        new = (hook for hook in hooks_on(bridge) if hook.key not in before)
        found = [take_off(hook for hook in new if _of_library(hook.function))]
        found.append(_strike_out(bridge, lambda one: one.hook.id not in before))
        changed = {name: value for name, value in flags.items() if getattr(bridge.cfg, name) != value}
        for name, value in changed.items():
            getattr(bridge, f"set_{name}")(value)
        stops = [block for block in bridge.blocks if getattr(block, "_stop_at_layer_idx", None) is not None]
        for block in stops:
            block._stop_at_layer_idx = None
        found += [f"the flag(s) {', '.join(changed)}"] * bool(changed) + ["a layer to stop at"] * bool(stops)
        return ", ".join(filter(None, found)) or None

    turns_of(places).note(undo)


def _of_library(function: Any) -> bool:
    return str(getattr(function, "__module__", None)).startswith("transformer_lens.")


def attended_hooks(layer: int, reader: AttendedReader) -> list[Hook]:
    """Hooks that show a reader values and pattern."""
    block = f"blocks.{layer}.attn"
    return [
        (f"{block}.hook_v", lambda value, hook: reader.see_value(value)),
        (f"{block}.hook_pattern", lambda pattern, hook: reader.see_pattern(pattern)),
    ]


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

    hooks = [(name, keep(name)) for name in read]
    # Added last, so that it runs after what is read at the same point.
    with torch.no_grad():
        call_under(bridge, inputs, hooks if stop is None else [*hooks, (stop, _end)])
    _demand_once(read)
    return {name: tensors[0] for name, tensors in read.items()}


def call_under(bridge: Any, inputs: Mapping[str, Tensor], hooks: Sequence[Hook]) -> Tensor | None:
    """Call the bridge under hooks, which are removed whatever happens.

    Returns:
        What it returned; None if a hook ended the pass.
    """
    first, others = split_inputs(bridge, inputs)
    with put_on(bridge, hooks):
        try:
            out: Tensor = bridge(first, **others)
        except _Reached:
            return None
    return out


@contextmanager
def put_on(bridge: Any, hooks: Sequence[Hook]) -> Iterator[None]:
    """Hooks by the names of hook points, and of modules whose outputs are seen.

    Raises:
        ValueError: The model has no such hook.
    """
    points = [hook for hook in hooks if not hook[0].endswith(OUTPUT)]
    with ExitStack() as stack, bridge.hooks(fwd_hooks=named(bridge, points)):
        for name, function in hooks:
            if name.endswith(OUTPUT):
                module = bridge.get_submodule(name.removesuffix(OUTPUT))
                handle = module.register_forward_hook(lambda _, args, out, see=function: see(out, None))
                stack.callback(handle.remove)
        yield


def named(bridge: Any, hooks: Sequence[Hook]) -> list[Hook]:
    """Hooks by the names that their points have themselves.

    In compatibility mode a hook added by an alias is called once for each of its names.

    Raises:
        ValueError: The model has no such hook.
    """
    known = bridge.hook_dict
    for name, _ in hooks:
        if name not in known:
            block = name.rpartition(".hook_")[0]
            near = sorted(other for other in known if other.startswith(f"{block}."))
            raise ValueError(
                f"{architecture_of(bridge)} has no hook {name!r}; hooks there: "
                f"{', '.join(near[:12]) or 'none'}."
            )
    return [(str(known[name].name), function) for name, function in hooks]


def architecture_of(bridge: Any) -> str:
    """Class name of the model of transformers; a HookedTransformer's configuration has another word."""
    return str(getattr(bridge.cfg, "architecture", None) or bridge.cfg.original_architecture)


def split_inputs(bridge: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The bridge's first argument, token ids or pixels, and the others, on its device."""
    device = next(bridge.parameters()).device
    moved = {key: value.to(device) for key, value in inputs.items()}
    first = next(name for name in FIRST if name in moved)
    return moved.pop(first), moved


def _demand_once(read: Mapping[str, Sequence[Tensor]]) -> None:
    for name, tensors in read.items():
        if len(tensors) == 1:
            continue
        text = f"hook {name!r} fired {len(tensors)} times in one forward pass, expected once"
        if name.endswith("hook_pattern") and not tensors:
            raise RuntimeError(
                f"{text}: fused attention computes no pattern. Call "
                "bridge.original_model.set_attn_implementation('eager') and attach again."
            )
        raise RuntimeError(
            f"{text}: its tensor cannot be trusted. This architecture needs an adapter of its own."
        )
