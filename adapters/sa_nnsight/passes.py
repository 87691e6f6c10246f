"""Traces that read, replace or edit named places of an nnsight model, in the order of its pass.

nnsight hands out values as the pass goes by, so that places must be asked for in the order in which
modules run. That order is measured once, by torch's own hooks, and with it that every module runs
exactly once. Values are cloned where they are read: nothing later in the pass can write to them.

transformers hands out attention probabilities beside the output they were used for, so that writing
to `attention.output[1]` is no error and reaches nobody. They exist in unfused attention alone, which
a pass that reads them arranges for its own length.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import nnsight
import torch
from einops import rearrange
from torch import Tensor, nn

from sa_nnsight.edits import showing, watching
from sa_nnsight.leftovers import trace_left_over
from sa_nnsight.places import EnvoyPlaces, Tap, by_row, eager, model_inputs
from sa_plugin.host.adapter import Keep, Looks, Part
from sa_plugin.host.edits import EditWatch
from sa_plugin.host.laws import BrokenLawError, Law, Parts, relative_difference
from sa_plugin.host.local import demand_embedded, refuse_training
from sa_plugin.host.protocol import Site
from sa_plugin.host.turns import Undo

Order = Mapping[tuple[str, str], int]
"""Rank of each `(path, end)` in the forward pass."""


@dataclass(frozen=True, eq=False)
class TracePasses:
    """Runs an nnsight model.

    Attributes:
        places: Of the model.
        order: In which its modules run, from `settle`.
    """

    places: EnvoyPlaces
    order: Order = field(default_factory=dict)

    def refuse_unready(self) -> None:
        """Refuse training mode, and edits that are kept in the model."""
        refuse_training(self.places.root)
        edits = self.places.model._edits
        if edits:
            raise ValueError(
                f"the model has {len(edits)} default edit(s) of model.edit(), which change what "
                "every trace reads: attach the unedited model, or call model.clear_edits()."
            )

    def inputs(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch's inputs on the model's device, with the image that its texts are read with."""
        context, inputs = self.places.context, model_inputs(self.places.root, given)
        if context is not None:
            inputs["cross_attention_states"] = context.expand(len(inputs["input_ids"]), -1, -1)
        return inputs

    def settle(self, inputs: Mapping[str, Tensor], parts: Sequence[Part]) -> TracePasses:
        """Measure in which order modules run."""
        paths = dict.fromkeys(self.places.tap(part).path for part in parts)
        modules = {path: self.places.model.get(path)._module for path in paths}
        return replace(self, order=_measure_order(self.places.root, modules, inputs))

    def read(
        self, inputs: Mapping[str, Tensor], parts: Sequence[Part], keep: Keep | None = None
    ) -> dict[Part, Tensor]:
        """One trace without gradients; it ends behind the deepest part, unless it is a check's."""
        taps = {part: self.places.tap(part) for part in parts}
        kept = {}
        if keep is not None:
            kept = {tap: partial(keep, name) for (_, name), tap in taps.items() if name == "pattern"}
        # A check compares what unfused attention gives, whether it reads a pattern or not.
        unfused = keep is not None or any(name == "pattern" for _, name in parts)
        with self._unfused() if unfused else nullcontext():
            wanted = in_order(self.order, list(taps.values()))
            found = _read_taps(self.places.model, inputs, wanted, stop=keep is None, kept=kept)
        rows = _rows(inputs)
        return {part: self._shaped(part, found[tap], rows) for part, tap in taps.items()}

    def _unfused(self) -> AbstractContextManager[None]:
        return eager(self.places.root, ask=bool(self.places.roles.get("output_attentions")))

    def _shaped(self, part: Part, value: Tensor, rows: int) -> Tensor:
        if part[1] != "z":
            return by_row(value, rows)
        return rearrange(value, "b t (h e) -> b t h e", h=self.places.n_heads)

    def embeddings(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the token embedding gives."""
        tap = self.places.embedding()
        return _read_taps(self.places.model, inputs, [tap])[tap]

    def forward(
        self, inputs: Mapping[str, Tensor], embeddings: Tensor | None, parts: Sequence[Part]
    ) -> dict[Part, Tensor]:
        """The model's own tensors, as functions of embeddings or pixels."""
        model, taps = self.places.model, {part: self.places.tap(part) for part in parts}
        embed = None if embeddings is None else model.get(self.places.embedding().path)
        found = _trace_from(model, inputs, embed, embeddings, in_order(self.order, list(taps.values())))
        return {part: found[tap] for part, tap in taps.items()}

    def output(
        self,
        inputs: Mapping[str, Tensor],
        name: str | None = None,
        edit: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Logits, or what else the model returns first, with one place edited or none."""
        tap = None if name is None else _parse_tap(self.places.model, name)
        with self._unfused():
            return _output(self.places.model, inputs, tap, edit)

    def watching(self, watches: Mapping[Site, EditWatch]) -> AbstractContextManager[None]:
        """Edits by hooks of torch's own, with unfused attention where one attends."""
        return watching(self.places, watches)

    def showing(self, looks: Looks) -> AbstractContextManager[None]:
        """Parts by hooks of torch's own, under which traces run too."""
        return showing(self.places, looks)

    def left_over(self) -> Undo:
        """Workers, depth and trace function of a trace that was cut off."""
        return partial(trace_left_over, self.places.model, sys.gettrace())

    def own_laws(self, blocks: Sequence[Parts], inputs: Mapping[str, Tensor], limit: float) -> Sequence[Law]:
        """That transformers says the same of the residual stream."""
        name = "the residual before each block is what transformers calls its hidden state"
        if self.places.config is None:
            return [Law(name, None, note="the model is none of transformers'")]
        # Unfused, as the blocks were read: in bfloat16 the two kinds of attention differ by per cents.
        with torch.no_grad(), self._unfused():
            out = self.places.root(**inputs, output_hidden_states=True)
        states = getattr(out, "hidden_states", None)
        if not states or len(states) != len(blocks) + 1:
            return [Law(name, None, note="the model returns none")]
        # The last one is read behind the final norm in most models.
        pairs = zip(blocks, states, strict=False)
        gaps = [relative_difference(block["resid_pre"], state) for block, state in pairs]
        return [Law(name, max(gaps), limit)]


def _rows(inputs: Mapping[str, Tensor]) -> int:
    return len(next(iter(inputs.values())))


def _read_taps(
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
                value = _value_of(envoy, tap)
                found.append(reduce[tap](value) if tap in reduce else value)
            if stop:
                tracer.stop()
    except nnsight.intervention.interleaver.OutOfOrderError as error:
        raise RuntimeError(
            f"{error}: a module did not run, or not in the order that was measured when the model "
            "was attached."
        ) from error
    return dict(zip(taps, found, strict=True))


def _value_of(envoy: Any, tap: Tap) -> Tensor:
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


def _trace_from(
    model: Any,
    inputs: Mapping[str, Tensor],
    embed: Any,
    values: Tensor | None,
    wanted: Sequence[Tap],
    apart: frozenset[Tap] = frozenset(),
) -> dict[Tap, Tensor]:
    """The model's own tensors, as functions of what its embedding gives or of its pixels.

    Args:
        model: nnsight's model.
        inputs: Keyword arguments of its forward pass.
        embed: Envoy of the token embedding, or None.
        values: In place of what it gives.
        wanted: What to read, in the order of the forward pass.
        apart: Outputs that the model goes on with a copy of, since it writes into them.
    """
    envoys, rows = [model.get(tap.path) for tap in wanted], _rows(inputs)
    with model.trace(**inputs) as tracer:
        found = nnsight.save([])
        if embed is not None and values is not None:
            demand_embedded(values, embed.output)
            # A copy: what a model writes in place must not reach the caller's tensor.
            embed.output = values.to(embed.output).clone()
        for tap, envoy in zip(wanted, envoys, strict=True):
            own, copy = _own(envoy, tap), _value_of(envoy, tap)
            if tap in apart or (own.ndim == 2 and tap.end == "output"):
                # What goes on is made of what is handed out, so that gradients flow between them.
                shape, own, copy = own.shape, by_row(own, rows), by_row(copy, rows)
                _write(envoy, tap, own.reshape(shape).clone())
            found.append((own, own._version, copy))
        tracer.stop()
    written = {
        tap
        for tap, (own, then, _) in zip(wanted, found, strict=True)
        if tap.end == "output" and own._version != then
    }
    if written - apart:
        # Once more: a copy of what was overwritten has nothing of the pass behind it (Falcon's MLP).
        return _trace_from(model, inputs, embed, values, wanted, apart | written)
    # The copy is for inputs that the model writes into after they were read.
    whole = [own if own._version == then else copy for own, then, copy in found]
    return dict(zip(wanted, whole, strict=True))


def _own(envoy: Any, tap: Tap) -> Tensor:
    """The model's own tensor: later sites depend on it, so that gradients reach it; a copy none."""
    if tap.gate is not None:
        return _value_of(envoy, tap)
    value = envoy.input if tap.end == "input" else envoy.output
    own: Tensor = value[tap.item or 0] if isinstance(value, tuple) else value
    return own


def _output(
    model: Any, inputs: Mapping[str, Tensor], tap: Tap | None, edit: Callable[[Tensor], Tensor] | None
) -> Tensor:
    envoy = None if tap is None else model.get(tap.path)
    with torch.no_grad(), model.trace(**inputs) as tracer:
        if tap is not None and edit is not None:
            _write(envoy, tap, edit(_value_of(envoy, tap)))
        out = nnsight.save(tracer.result)
    first: Tensor = out[0] if isinstance(out, tuple) else next(iter(out.values()))
    return first


def _write(envoy: Any, tap: Tap, new: Any) -> None:
    """Put a value into its place, inside a trace."""
    if tap.end == "input":
        envoy.input = new
        return
    whole, place = envoy.output, tap.item or 0
    if isinstance(whole, tuple):
        new = (*whole[:place], new, *whole[place + 1 :])
    envoy.output = new


_NAME = re.compile(r"(?P<path>.+)\.(?P<end>input|output)(\[(?P<item>\d+)\])?")


def _parse_tap(model: Any, name: str) -> Tap:
    """A place by its name: `transformer.h.8.output`, `transformer.h.8.attn.output[1]`.

    Raises:
        ValueError: It is no such name, or the model has no such module.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} names no place: give the path of a module and '.input', '.output' or "
            "'.output[1]', as host.hook_name(Site(8, 'resid_post')) does."
        )
    try:
        model.get(match["path"])
    except AttributeError as error:
        raise ValueError(f"the model has no module {match['path']!r}.") from error
    item = None if match["item"] is None else int(match["item"])
    return Tap(match["path"], "input" if match["end"] == "input" else "output", item)


def in_order(order: Order, taps: Sequence[Tap]) -> list[Tap]:
    """Taps as the forward pass comes by them, each once."""
    return sorted(set(taps), key=lambda tap: (order[tap.path, tap.end], tap.item or 0, tap.gate is not None))


def _measure_order(root: nn.Module, modules: Mapping[str, nn.Module], inputs: Mapping[str, Tensor]) -> Order:
    """Run the model once and see when each module starts and ends, by torch's own hooks.

    Args:
        root: What is run.
        modules: By nnsight's path.
        inputs: Keyword arguments of the forward pass.

    Raises:
        BrokenLawError: A module did not run exactly once.
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
            raise BrokenLawError(
                f"{type(root).__name__} ran module {path!r} {count} times in one forward pass, "
                "expected once: its tensor cannot be trusted."
            )
    return {event: rank for rank, event in enumerate(seen)}
