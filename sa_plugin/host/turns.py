"""One call at a time on a model, and a model that is clean when a call begins.

A *turn* is one call that touches a model: a pass, a check, an edit that is held open. Turns of one
model are taken by one thread at a time; the lock belongs to the modules, so that all hosts of a
model share it, and a thread that has it may take more turns inside.

An interrupt (`KeyboardInterrupt`) can fall between any two steps of Python, also inside the
`finally` that would have taken a hook off, and no code can catch all of them. So a turn is written
down before it puts anything on the model, with what it changes beside hooks, and struck out after
everything is off. Whoever is next finds a turn that was never struck out and cleans up: hooks whose
functions are this package's (those of the user, and of libraries, are left alone), what torch keeps
beside hooks that are off, what was noted with `Turns.note`, gradients that were switched off, and
what the adapter knows of its library.

Whether a turn is still under way cannot be counted either, since an interrupt may skip the counting
down. Each has a lock of its own that its `with` statement holds: CPython enters and leaves a `with`
of a lock in C, where no interrupt falls, so that the lock is held exactly as long as the block runs.
"""

from __future__ import annotations

import inspect
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import _GeneratorContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from threading import Lock, RLock, get_ident, local
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from sa_plugin._check import OURS
from sa_plugin.host.adapter import Places

# Where torch keeps hooks of a module, and what it keeps about them elsewhere.
HOOKS = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_backward_hooks": (),
    "_backward_pre_hooks": (),
}
# What a configuration is told so that attention shows its probabilities, and how that is put back: the
# name without this ending passes a value on to parts.
ASKED = "output_attentions"
SWITCHED = {ASKED: ASKED, "_attn_implementation": "_attn_implementation_internal"}
P = ParamSpec("P")
R = TypeVar("R")
Undo = Callable[[], str | None]
"""Puts back what a turn left; says what it was, or None where all was as it should be."""
Library = Callable[[], Undo]
"""Of the adapter, see `sa_plugin.host.adapter.Passes.left_over`: called where a turn begins."""


class InterruptedCallWarning(UserWarning):
    """A call was cut off and had left something on the model, which is off now."""


@dataclass(eq=False)
class Turn:
    """One call under way, or one that was cut off.

    Attributes:
        what: Name of the call.
        alive: Held by the call's `with` statement.
        thread: That made it.
        gradients: Whether they were enabled when it began.
        undo: What it changes beside hooks, noted before the change; first what its library may leave,
            which is put back last.
        kept: Ids of the hooks of an edit that is held open, once they are all there.
    """

    what: str
    alive: Any = field(default_factory=Lock)
    thread: int = field(default_factory=get_ident)
    gradients: bool = field(default_factory=torch.is_grad_enabled)
    undo: list[Undo] = field(default_factory=list)
    kept: frozenset[int] = frozenset()


class Turns:
    """The turns of one model; get them by `turns_of`.

    Attributes:
        lock: Held by the thread whose turn it is.
        open: Turns that are not struck out, outermost first.
        roots: Modules that hosts of this model run.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.open: list[Turn] = []
        self.roots: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def begin(self, what: str, library: Library | None = None) -> Turn:
        """Clean up after turns that were cut off, and write down a new one. The lock is held.

        Warns:
            InterruptedCallWarning: Something was left.
        """
        if _MODES.noted:
            _enable_gradients()
        if self.open:
            self._sweep()
        turn = Turn(what, undo=[] if library is None else [library()])
        self.open.append(turn)
        return turn

    def end(self, turn: Turn) -> None:
        """Strike out a turn that has put everything back itself."""
        if self.open[-1] is turn:
            self.open.pop()
        else:
            # A turn inside it was cut off, and nobody was next.
            self.recover(turn)

    def recover(self, turn: Turn) -> None:
        """Put back what a turn that an exception ends may have left, and strike it out."""
        at = self.open.index(turn)
        self._clean(self.open[at:], self.open[:at])
        del self.open[at:]

    def note(self, undo: Undo) -> None:
        """Write down how to put something back, before it is changed, for the turn under way."""
        if self.open:
            self.open[-1].undo.append(undo)

    def hold(self, turn: Turn) -> None:
        """The hooks that are on the model now belong to this turn, until it ends."""
        turn.kept = frozenset(hook.key for hook in self._hooks())

    def _sweep(self) -> None:
        _close_interrupted()
        live = [turn for turn in self.open if turn.alive.locked()]
        cut = [turn for turn in self.open if not turn.alive.locked()]
        if not cut:
            return
        found = self._clean(cut, live)
        # Only now: an interrupt of the cleaning leaves it to the next call.
        self.open[:] = live
        if found:
            calls = ", ".join(dict.fromkeys(repr(turn.what) for turn in cut))
            warnings.warn(
                f"a call ({calls}) was interrupted and had left on the model: {'; '.join(found)}. "
                "All of it has been put back; what was computed in between by runs of your own "
                "may have been changed by it.",
                InterruptedCallWarning,
                stacklevel=5,
            )

    def _clean(self, cut: Sequence[Turn], live: Sequence[Turn]) -> list[str]:
        """Put back what some turns left; says what."""
        kept = frozenset[int]().union(*(turn.kept for turn in live))
        found = []
        left = take_off(hook for hook in self._hooks() if hook.key not in kept)
        if left:
            found.append(left)
        for root in list(self.roots):
            _forget_absent(root)
        for turn in reversed(cut):
            found += filter(None, [undo() for undo in reversed(turn.undo)])
        # Threads have gradient modes of their own. The outermost turn knows how it was.
        own = [turn for turn in cut if turn.thread == get_ident()]
        if own and own[0].gradients and not torch.is_grad_enabled():
            torch.set_grad_enabled(True)
            found.append("gradients disabled")
        return found

    def _hooks(self) -> list[Hook]:
        return [hook for root in list(self.roots) for hook in hooks_on(root) if is_ours(hook.function)]


class Hook(NamedTuple):
    """A hook of torch's on a module.

    Attributes:
        module: That it is on.
        kind: Name of the dictionary that it is in.
        key: Its id, which no other hook in this process has.
        function: Who asked for it, behind TransformerLens's wrappers.
    """

    module: nn.Module
    kind: str
    key: int
    function: Any


def hooks_on(root: nn.Module) -> list[Hook]:
    """All hooks on a model."""
    return [
        Hook(module, kind, key, asked(function))
        for module in root.modules()
        for kind in HOOKS
        for key, function in list(getattr(module, kind).items())
    ]


def asked(function: Any) -> Any:
    """Who asked for a hook, behind partials and the wrappers of TransformerLens."""
    for _ in range(3):
        while isinstance(function, partial):
            function = function.func
        names = getattr(getattr(function, "__code__", None), "co_freevars", ())
        inner = next((name for name in ("full_hook", "hook") if name in names), None)
        if inner is None or not str(function.__module__).startswith("transformer_lens."):
            break
        function = function.__closure__[names.index(inner)].cell_contents
    return function


def is_ours(function: Any) -> bool:
    """Whether a function is one of this package that was not `handed_out` to the user."""
    package = str(getattr(function, "__module__", None)).partition(".")[0]
    return package in OURS and not getattr(function, "handed_out", False)


def take_off(hooks: Iterable[Hook]) -> str | None:
    """Take hooks off; says how many there were."""
    modules = []
    for module, kind, key, _ in hooks:
        modules.append(type(module).__name__)
        for name in (kind, *HOOKS[kind]):
            getattr(module, name).pop(key, None)
    if not modules:
        return None
    return f"{len(modules)} hook{'s' * (len(modules) > 1)} of {', '.join(dict.fromkeys(modules))}"


def _forget_absent(root: nn.Module) -> None:
    """Strike out what torch keeps beside hooks that are off.

    torch takes a hook off before the rest, and so does `take_off`: what an interrupt leaves of a hook
    is found through no hook.
    """
    for module in root.modules():
        for kind, beside in HOOKS.items():
            on = getattr(module, kind)
            for kept in (getattr(module, name) for name in beside):
                for key in kept.keys() - on.keys():
                    del kept[key]


def _close_interrupted() -> None:
    """Close contexts whose `with` was cut off while entering or leaving.

    Their generators wait for ever. They are closed when the last reference to them goes, but an
    interactive session keeps the last traceback, and with it their frames.
    """
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    trace = getattr(error, "__traceback__", None)
    while trace is not None:
        if trace.tb_frame.f_code in _CONTEXT:
            generator = trace.tb_frame.f_locals["self"].gen
            if inspect.getgeneratorstate(generator) == inspect.GEN_SUSPENDED:
                generator.close()
        trace = trace.tb_next


_CONTEXT = [getattr(_GeneratorContextManager, name).__code__ for name in ("__enter__", "__exit__")]
_BY_MODULE: weakref.WeakKeyDictionary[nn.Module, Turns] = weakref.WeakKeyDictionary()
_REGISTRY = Lock()


def turns_of(places: Places) -> Turns:
    """The turns of a model, the same for all of its hosts.

    Hosts wrap modules, each in its own way; those with weights of their own in the first block are
    the same in all.
    """
    return turns_over(places.blocks()[0], places.root, places.model)


def turns_over(part: nn.Module, *roots: Any) -> Turns:
    """The turns of a model of which a part is known, its first block or all of it.

    Args:
        part: Whose modules with weights the turns are of.
        roots: What hooks may be put on; those that are no modules of torch are passed over.
    """
    leaves = [module for module in part.modules() if module._parameters]
    with _REGISTRY:
        known = (_BY_MODULE.get(module) for module in leaves)
        turns = next((one for one in known if one is not None), None) or Turns()
        for module in leaves:
            _BY_MODULE[module] = turns
        turns.roots.update(root for root in roots if isinstance(root, nn.Module))
    return turns


def turns_in(model: nn.Module) -> Turns | None:
    """The turns of a model that a host has, or None."""
    with _REGISTRY:
        known = (_BY_MODULE.get(module) for module in model.modules())
        return next((one for one in known if one is not None), None)


def note_attention(root: nn.Module) -> None:
    """Write down the kind of attention of a model of transformers, before it is switched.

    Parts of a model may have configurations of their own, which an interrupt leaves half switched.
    """
    turns = turns_in(root)
    if turns is None:
        return
    configs = {id(c): c for m in root.modules() if (c := getattr(m, "config", None)) is not None}
    before = [
        (config, name, getattr(config, name))
        for config in configs.values()
        for name in SWITCHED
        if hasattr(config, name)
    ]

    def undo() -> str | None:
        left = [(config, name, kind) for config, name, kind in before if getattr(config, name) != kind]
        for config, name, kind in left:
            setattr(config, SWITCHED[name], kind)
        return "unfused attention" if left else None

    turns.note(undo)


def take(turns: Turns, what: str, library: Library | None, work: Callable[[], R]) -> R:
    """Do something with a model while nobody else does."""
    with turns.lock:
        turn = turns.begin(what, library)
        with turn.alive:
            try:
                result = work()
            except BaseException as error:
                turns.recover(turn)
                _raise_interrupt(error)
                raise
            turns.end(turn)
    return result


def _raise_interrupt(error: BaseException) -> None:
    """An interrupt stays one, whatever failed while it was handled.

    nnsight filters the tracebacks of what passes it, and fails on some of an interrupt's.
    """
    if isinstance(error, Exception) and isinstance(error.__context__, KeyboardInterrupt):
        raise error.__context__


@contextmanager
def hold(turns: Turns, what: str, library: Library | None) -> Iterator[Turn]:
    """The same for a context that hands the model to its user, with what is put on it.

    The turn that it gives is to be held (`Turns.hold`) once everything is on.
    """
    with turns.lock:
        turn = turns.begin(what, library)
        with turn.alive:
            try:
                yield turn
            except BaseException:
                turns.recover(turn)
                raise
            turns.end(turn)


class _Modes(local):
    """Gradient modes of this thread that `gradient_mode` has changed: its lock, and the mode before."""

    def __init__(self) -> None:
        self.noted: list[tuple[Any, bool]] = []


_MODES = _Modes()


@contextmanager
def gradient_mode(enabled: bool) -> Iterator[None]:
    """`torch.enable_grad` or `torch.no_grad` outside of a turn, written down as turns are.

    Those of torch are left by a function of Python, in front of which an interrupt can fall.

    Args:
        enabled: Whether gradients are, inside.
    """
    noted = _MODES.noted
    if noted:
        _enable_gradients()
    alive, before = entry = Lock(), torch.is_grad_enabled()
    noted.append(entry)
    with alive:
        torch.set_grad_enabled(enabled)
        try:
            yield
        finally:
            torch.set_grad_enabled(before)
            noted.remove(entry)


def borrow(model: nn.Module, what: str, work: Callable[[], R]) -> R:
    """Run a model without gradients that is no host's, or perhaps one's: then it is a turn of its model."""
    turns = turns_in(model)
    with gradient_mode(False):
        return work() if turns is None else take(turns, what, None, work)


def _enable_gradients() -> None:
    """Put back gradients that a context of this thread that was cut off left disabled."""
    noted = _MODES.noted
    dead = [entry for entry in noted if not entry[0].locked()]
    if not dead:
        return
    if dead[0][1] and not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        text = "a call was interrupted and had left gradients disabled. They are enabled again."
        warnings.warn(text, InterruptedCallWarning, stacklevel=4)
    noted[:] = [entry for entry in noted if entry not in dead]


@runtime_checkable
class TakesTurns(Protocol):
    """What has a model, and methods that are turns."""

    @property
    def turns(self) -> Turns:
        """Of the model."""

    def left_over(self) -> Undo:
        """See `sa_plugin.host.adapter.Passes.left_over`."""


S = TypeVar("S", bound=TakesTurns)


def one_turn(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Make a method one turn of its model."""
    what = method.__name__

    @wraps(method)
    def in_turn(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        turns = self.turns
        # `take` written out: this runs for every pass.
        with turns.lock:
            turn = turns.begin(what, self.left_over)
            with turn.alive:
                try:
                    result = method(self, *args, **kwargs)
                except BaseException as error:
                    turns.recover(turn)
                    _raise_interrupt(error)
                    raise
                turns.end(turn)
        return result

    return in_turn
