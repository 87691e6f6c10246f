"""Hooks over a generation: what each pass runs, which tokens are new, and a place to look and to edit.

Every library generates in a loop of its own, but all of them embed token ids and run the same blocks.
So a generation is followed from inside, by hooks, and from outside, by the functions that start one
(`generate`, of the user's own object and of the module inside it), which are wrapped while the context
lasts. What a pass runs is read off the ids that are embedded:

| loop | first pass | every later pass |
|---|---|---|
| with a cache | the prompt, `[row, n]` | the newest token, `[row, 1]` |
| without one | the prompt | everything again, `[row, n + 1]`, `[row, n + 2]`, ... |

The token chosen last is never run, so it has no activation: n + new - 1 columns are seen.

Rows are those of the batch as it is run, `num_return_sequences` repeats included. Columns count padding,
on the left, as the model does. A token is `valid` if the model's mask shows it, it is no special token,
and its row has not ended before it (rows that end first are filled up). What runs passes in another
order (beams, drafts of an assistant, guidance by a second pass) is refused by name before anything is
generated; what comes out is held against what was run.

An edit is a look that returns a tensor. At a site of a layer all columns of the pass come by, valid or
not, and those of earlier tokens again where there is no cache, so that an edit that depends on the
activation alone is made again too, and the keys and values of earlier tokens stay edited. So steering is

    def look(h, generation):                       # h[row, column, d_model]
        on = gate(h) & generation.valid_here       # [row, column] of this pass
        return h + on[..., None] * push            # what takes the place of h; None leaves it

    with following(host, "steer", {Site(12, "resid_post"): look}, follower):
        model.generate(...)

Looks run in the order of the layers; hooks of a context that was entered earlier see a part first, and
one that is entered later sees what the earlier made of it. A look must not use what a later layer saw in
the same pass. Keys and values of layers up to the lowest edited one never hold an edit.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from sa_plugin.host.adapter import Look, Looks, Part, ShowingPasses, part_of
from sa_plugin.host.local import LocalHost
from sa_plugin.host.protocol import BulkHost, Host, Site
from sa_plugin.host.texts import TextReader
from sa_plugin.host.tokens import TextEncoder
from sa_plugin.host.turns import Turn, hold

# How a generation is started; a stream hands out tokens as they come.
STARTS = ("generate", "generate_stream")
CRITERIA = "stopping_criteria"
# Ways of generating that run passes of which not every token comes out, or in which rows change places.
REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((None, 1), "beams change rows, and most of what is run is not what comes out"),
    "num_beam_groups": ((None, 1), "beams change rows, and most of what is run is not what comes out"),
    "penalty_alpha": ((None, 0, 0.0), "contrastive search runs candidates that do not come out"),
    "guidance_scale": ((None, 1, 1.0), "guidance runs a second pass over another prompt at every step"),
    "prompt_lookup_num_tokens": ((None,), "drafts are run that do not come out"),
    "assistant_model": ((None,), "drafts are run that do not come out"),
    "assistant_early_exit": ((None,), "drafts are run that do not come out"),
    "dola_layers": ((None,), "layers are contrasted by passes of their own"),
    "prefill_chunk_size": ((None,), "the prompt is run in pieces"),
    "inputs_embeds": ((None,), "embeddings have no token ids"),
    "custom_generate": ((None,), "its loop is not known"),
}


@dataclass(eq=False)
class Generation:
    """One call of `generate`, as far as it has run.

    Attributes:
        number: Which call of the context, from 0.
        prompt: Columns of the prompt.
        ids: Token ids, `[row, column]`, on the model's device; with the newest, which is not yet run.
        real: What is no padding, and not behind the end of its row.
        valid: Tokens of text: those of `real` that are not special.
        start: First column of the pass under way.
        done: Columns that earlier passes have run; those from here on are new.
    """

    number: int
    prompt: int
    ids: Int[Tensor, "row column"]
    real: Bool[Tensor, "row column"]
    valid: Bool[Tensor, "row column"]
    start: int = 0
    done: int = 0

    @property
    def rows(self) -> int:
        """Sequences that are generated at a time."""
        return len(self.ids)

    @property
    def step(self) -> int:
        """0 while the prompt runs, k while the k-th new token does."""
        return self.valid.shape[1] - self.prompt

    @property
    def valid_here(self) -> Bool[Tensor, "row column"]:
        """`valid` of the columns of the pass under way, new or not."""
        return self.valid[:, self.start :]

    @property
    def new_here(self) -> int:
        """The first new column of the pass under way, counted from its own first."""
        return self.done - self.start


Looking: TypeAlias = Callable[[Tensor, Generation], Tensor | None]
"""Of activations `[row, column, d_model]` of the pass under way: what takes their place, or None."""

Follow: TypeAlias = Callable[[Callable[..., Any], str], Callable[..., Any]]
"""Of a function that generates, and its name: the same, followed."""


def grow(generation: Generation, ids: Tensor, real: Tensor, valid: Tensor) -> None:
    """Add new columns to a generation, on its own device; `ids` are those of all columns."""
    device = generation.ids.device
    generation.ids = ids.to(device)
    generation.real = torch.cat([generation.real, real.to(device)], dim=1)
    generation.valid = torch.cat([generation.valid, valid.to(device)], dim=1)


@runtime_checkable
class Follower(Protocol):
    """What is told of generations while they run."""

    def begins(self, arguments: Mapping[str, Any]) -> None:
        """A generation is asked for, with these arguments by name; raise to refuse it."""

    def passed(self, generation: Generation) -> None:
        """A pass has shown every site; `generation.done` is as it was before it."""

    def stops(self, generation: Generation) -> Sequence[bool]:
        """Which rows are to end, asked once a step, behind the choice of the next token."""

    def ends(self, generation: Generation) -> None:
        """It is over, with all ids that came out, and nothing went wrong."""


def require_local(host: Host, what: str) -> LocalHost:
    """The host, if its passes can be followed.

    Raises:
        TypeError: The model is on a server, or its library shows no passes of the user's own.
        ValueError: It reads images, or attention is not causal.
    """
    if isinstance(host, BulkHost):
        raise TypeError(
            f"{what}: {host.info.model} runs on a server, where no hook of ours is. Read its layers in a "
            "trace of your own and score them there (sa_nnsight.trace_ops), or attach "
            "a local copy of the model."
        )
    if not (isinstance(host, LocalHost) and isinstance(host.passes, ShowingPasses)):
        raise TypeError(
            f"{what}: {type(host).__name__} ({host.info.host}) does not show the passes of a generation. "
            "Attach a TransformerLens bridge, a HookedTransformer or a local nnsight model."
        )
    if not isinstance(host.reader, TextReader) or not host.info.causal:
        kind = "reads images" if not isinstance(host.reader, TextReader) else "attends in both directions"
        raise ValueError(
            f"{what}: {host.info.architecture} {kind}, so it generates no text: use a decoder, "
            "or detector.find."
        )
    return host


@contextmanager
def following(
    host: LocalHost,
    what: str,
    looks: Mapping[Site, Looking],
    follower: Follower,
    *,
    stops: bool = False,
    idle: Callable[[], bool] = lambda: False,
) -> Iterator[Follow]:
    """Follow every generation of a model inside the context.

    It gives what follows a loop of the caller's own: `follow(function, "generate")` is that function,
    followed. The model is as it was behind the context, also after an exception or an interrupt. Runs of
    the model that no `generate` makes, and those of this package's own questions, are passed over.

    Args:
        host: From `require_local`.
        what: Name of the question; one context of a name at a time on a model.
        looks: What sees each site.
        follower: What is told.
        stops: Whether it may end rows, by the library's own stopping criteria.
        idle: Whether it is right that nothing was generated, asked where nothing was.

    Raises:
        ValueError: A site does not exist, the model is followed for the same already, or a generation
            cannot be followed; the text says which argument and what to do.
        RuntimeError: A site did not come by exactly once in a pass, or what came out is not what was run;
            or no generation was run.
    """
    others = [turn for turn in host.turns.open if turn.what == what and turn.alive.locked()]
    if others:
        raise ValueError(
            f"{what}: {host.info.model} is under {what} already: leave that context first, or give one "
            "context everything that it is to do."
        )
    with hold(host.turns, what, host.left_over) as turn:
        loop = _Loop(host, what, turn, looks, follower, stops)
        modules = {id(one): one for one in (host.model, host.places.root) if isinstance(one, nn.Module)}
        starts = [(m, name) for m in modules.values() for name in STARTS if callable(getattr(m, name, None))]
        if not starts:
            raise ValueError(
                f"{what}: {host.info.architecture} has no generate, as a model without a head for the next "
                "token has none: attach one with it (...ForCausalLM)."
            )
        before = [(module, name, module.__dict__.get(name)) for module, name in starts]
        # Written down before anything is changed, so that an interrupt at any step is cleaned up after.
        host.turns.note(functools.partial(_unwrap, before))
        try:
            with host.passes.showing(loop.looks()):  # type: ignore[attr-defined]
                for module, name in starts:
                    module.__dict__[name] = loop.wrap(getattr(module, name), name)
                host.turns.hold(turn)
                _LOOPS[turn] = loop
                yield loop.wrap_for_all
        finally:
            _unwrap(before)
    if not loop.number and not idle():
        raise RuntimeError(
            f"{what}: nothing was generated inside: call generate of the attached model ({host.info.model}) "
            "or of the module in it, inside the context."
        )


def _unwrap(before: Sequence[tuple[nn.Module, str, Any]]) -> str | None:
    """Put functions back; says what was wrapped."""
    found = []
    for module, name, own in before:
        if module.__dict__.get(name) is own:
            continue
        found.append(f"a wrapped {name} of {type(module).__name__}")
        if own is None:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = own
    return ", ".join(found) or None


@dataclass(eq=False)
class _Loop:
    """The generations of one context: what hooks and wrapped functions share."""

    host: LocalHost
    what: str
    turn: Turn
    sites: Mapping[Site, Looking]
    follower: Follower
    may_stop: bool
    number: int = 0
    running: bool = False
    ids: Tensor | None = None
    mask: Tensor | None = None
    same: Tensor | None = None
    last: Tensor | None = None
    ended: Tensor | None = None
    fills: bool = True
    ends_at: frozenset[int] = frozenset()
    generation: Generation | None = None
    waiting: set[Site] = field(default_factory=set)

    def looks(self) -> Looks:
        """For the passes, each site by its part."""
        parts: dict[Part, Look] = {}
        for site in sorted(self.sites):
            parts[part_of(self.host.places, self.host.info, site)] = functools.partial(self._look, site)
        return Looks(parts, self._see_ids, self._see_mask)

    @property
    def encode(self) -> TextEncoder:
        """What cuts the host's texts into tokens."""
        reader = self.host.reader
        assert isinstance(reader, TextReader)
        return reader.encode

    @property
    def _listens(self) -> bool:
        # A question of this package's own inside (in a callback) is a turn of its own, which holds no hooks
        # on the model; contexts inside this one, such as another that follows, hold some.
        turns = self.host.turns.open
        return self.running and all(turn.kept for turn in turns[turns.index(self.turn) :])

    def wrap_for_all(self, original: Callable[..., Any], name: str) -> Callable[..., Any]:
        """A function that starts a generation, followed by every context that is open, as a library's is."""
        for turn in self.host.turns.open:
            if turn in _LOOPS:
                original = _LOOPS[turn].wrap(original, name)
        return original

    def wrap(self, original: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function that starts a generation, followed."""
        if name == "generate_stream":

            @functools.wraps(original)
            def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
                given = self._begin(original, name, args, kwargs)
                try:
                    yield from original(*args, **given)
                    self._end(None)
                finally:
                    self.running = False

            return stream

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            if self.running:
                # A library's function that calls another one.
                return original(*args, **kwargs)
            given = self._begin(original, name, args, kwargs)
            try:
                out = original(*args, **given)
                self._end(out)
            finally:
                self.running = False
            return out

        return generate

    def _begin(
        self, original: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        settings = kwargs.get("generation_config") or getattr(
            self.host.places.root, "generation_config", None
        )
        for argument, (allowed, why) in REFUSED.items():
            value = kwargs.get(argument, getattr(settings, argument, None))
            if not any(value is one or value == one for one in allowed):
                raise ValueError(
                    f"{self.what}: {name}({argument}={_short(value)}) cannot be followed: {why}. Leave it "
                    "out, or generate first and ask detector.find of the token ids that came out."
                )
        given = dict(kwargs)
        if self.may_stop:
            if CRITERIA not in _signature(original).parameters:
                raise ValueError(
                    f"{self.what}: stop= ends a generation by the library's own stopping criteria, which "
                    f"{type(self.host.model).__name__}.{name} has not: leave stop out, or generate with a "
                    "TransformerBridge of TransformerLens 4 or with transformers."
                )
            own = given.get(CRITERIA)
            listed = [] if own is None else list(own) if isinstance(own, list | tuple) else [own]
            given[CRITERIA] = [*listed, self._criterion]
        self.follower.begins(_signature(original).bind_partial(*args, **given).arguments)
        self.ends_at = self._ends(original, given, settings)
        self.ids = self.mask = self.same = self.last = self.ended = self.generation = None
        self.waiting = set()
        self.running, self.number = True, self.number + 1
        return given

    def _ends(self, original: Callable[..., Any], given: Mapping[str, Any], settings: Any) -> frozenset[int]:
        """Ids that end a row, as the library that generates has it."""
        own = given.get("eos_token_id", getattr(settings, "eos_token_id", None))
        # A row that ends early is filled up, in transformers only where there are ids that end one.
        self.fills = own is not None
        if "stop_at_eos" in _signature(original).parameters:
            self.fills = True
            # TransformerLens goes by its tokenizer where nothing is given.
            own = given.get("eos_token_id")
            default = getattr(self.host.model.cfg, "eos_token_id", None)
            default = self.host.model.tokenizer.eos_token_id if default is None else default
            own = default if own is None else own
            own = own if given.get("stop_at_eos", True) else None
        return frozenset(() if own is None else torch.as_tensor(own).reshape(-1).tolist())

    def _end(self, out: Any) -> None:
        self._require_whole()
        generation = self.generation
        if generation is None or self.ids is None:
            raise RuntimeError(f"{self.what}: generate ran no pass that embeds token ids: nothing was seen.")
        sequences = _sequences(out, generation)
        run = self.ids[:, : generation.done]
        if sequences is not None:
            sequences = sequences.to(self.ids.device)
            if not torch.equal(sequences[:, : run.shape[1]], run):
                raise RuntimeError(
                    f"{self.what}: what came out is not what was run, token by token, so scores are of other "
                    "texts: this way of generating cannot be followed. Generate first, and ask "
                    "detector.find of the token ids that came out."
                )
        generation.ids = self.ids if sequences is None else sequences
        rest = self._real(generation, generation.real.shape[1], generation.ids)
        generation.real = torch.cat([generation.real, rest], dim=1)
        if self.same is not None and not bool(self.same):
            raise RuntimeError(
                f"{self.what}: a pass ran other tokens in front than the pass before it: this way of "
                "generating cannot be followed."
            )
        self.follower.ends(generation)

    def _see_ids(self, ids: Tensor) -> None:
        if not self._listens:
            return
        ids = ids.detach()
        before = self.ids
        if before is None:
            self.ids = ids
        elif ids.shape[1] == 1:
            self.ids = torch.cat([before, ids.to(before.device)], dim=1)
        else:
            # Everything again. Whether it is the same is asked on the device, and read once at the end.
            width = min(before.shape[1], ids.shape[1])
            same = (ids[:, :width] == before[:, :width].to(ids.device)).all()
            self.same = same if self.same is None else self.same & same
            self.ids = ids

    def _see_mask(self, mask: Tensor) -> None:
        if self._listens:
            self.mask = mask.detach()

    def _look(self, site: Site, h: Tensor) -> Tensor | None:
        if not self._listens:
            return None
        if not self.waiting:
            self._enter(h)
        elif site not in self.waiting:
            self._require_whole()
        generation = self.generation
        assert generation is not None
        self.waiting.discard(site)
        new = self.sites[site](h, generation)
        if not self.waiting:
            self.follower.passed(generation)
            generation.done = generation.valid.shape[1]
        return new

    def _require_whole(self) -> None:
        if self.waiting:
            site = min(self.waiting)
            raise RuntimeError(
                f"{self.what}: {site.point} of block {site.layer} was not run in a pass, which ended or "
                "began again before it: nothing behind the last block that runs can be "
                "read. Run the whole model."
            )

    def _enter(self, h: Tensor) -> None:
        """A pass begins: which columns it runs, and which of them are valid."""
        self.waiting = set(self.sites)
        rows, width = h.shape[:2]
        if self.ids is None:
            raise ValueError(
                f"{self.what}: the model runs embeddings that no token ids were read for (inputs_embeds): "
                "generate from token ids or text."
            )
        total = self.ids.shape[1]
        generation = self.generation
        done = 0 if generation is None else generation.done
        start = total - width
        if len(self.ids) != rows or start not in (0, total - 1) or start > done or total <= done:
            raise RuntimeError(
                f"{self.what}: a pass runs {rows} x {width} tokens where {len(self.ids)} x {total} were "
                f"embedded and {done} have been run: neither the newest token nor the whole sequence. "
                "This way of generating cannot be followed; ask detector.find of the token ids that come out."
            )
        real = self._real(generation, done, self.ids)
        valid = real & ~is_special(self.encode, self.ids[:, done:])
        if generation is None:
            self.generation = Generation(self.number - 1, total, self.ids, real, valid)
            return
        grow(generation, self.ids, real, valid)
        generation.start = start

    def _real(self, generation: Generation | None, done: int, ids: Tensor) -> Tensor:
        """Which columns behind the first `done` are no padding, and not behind the end of their row.

        Each column is asked for once.
        """
        new, total = ids[:, done:], ids.shape[1]
        real = torch.ones_like(new, dtype=torch.bool)
        if self.mask is not None and self.mask.shape[1] >= total:
            real &= self.mask[:, done:total].to(new.device).bool()
        if generation is not None:
            if self.ends_at:
                # Behind the token that ends it, a row is filled up with anything.
                ends = _among(new, self.ends_at).long()
                ended = ends.new_zeros(len(ends), 1) if self.ended is None else self.ended
                real &= ended + ends.cumsum(-1) == ends
                self.ended = ended + ends.sum(-1, keepdim=True)
            if self.last is not None:
                column = torch.arange(done, total, device=new.device)
                real &= column < self.last.to(new.device)[:, None]
        return real

    def _criterion(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        generation = self.generation
        assert generation is not None
        stopped = torch.tensor(list(self.follower.stops(generation)), dtype=torch.bool)
        # The token that was just chosen is the row's last; what follows fills it up.
        if self.fills:
            width = torch.where(stopped, input_ids.shape[1], torch.iinfo(torch.int64).max)
            self.last = width if self.last is None else torch.minimum(self.last, width)
        return stopped.to(input_ids.device)


_LOOPS: weakref.WeakKeyDictionary[Turn, _Loop] = weakref.WeakKeyDictionary()
"""Of the contexts that are open."""


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def is_special(encode: TextEncoder, ids: Int[Tensor, "row column"]) -> Bool[Tensor, "row column"]:
    """Which token ids are special tokens or marks of a chat."""
    return _among(ids, encode.special)


def _among(ids: Int[Tensor, "row column"], some: frozenset[int]) -> Bool[Tensor, "row column"]:
    """Which ids are some of the vocabulary: looked up, since they are asked for at every step."""
    table = _table(some, ids.device)
    return table[ids.clamp(max=len(table) - 1)]


@functools.lru_cache(maxsize=16)
def _table(some: frozenset[int], device: torch.device) -> Bool[Tensor, " token"]:
    """Truth values up to the highest of some ids, and one more for all ids behind it."""
    # No token has a negative id, which is how some configurations say that there is none.
    known = [one for one in some if one >= 0]
    table = torch.zeros(max(known, default=-1) + 2, dtype=torch.bool)
    table[known] = True
    return table.to(device)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else type(value).__name__


def _sequences(out: Any, generation: Generation) -> Tensor | None:
    """Token ids that came out, where they are handed out at all."""
    found = getattr(out, "sequences", out)
    if isinstance(found, tuple) and found:
        found = getattr(found[0], "sequences", found[0])
    whole = isinstance(found, Tensor) and found.ndim == 2 and not found.is_floating_point()
    if not whole or len(found) != generation.rows or found.shape[1] < generation.done:
        return None
    return found  # type: ignore[no-any-return]
