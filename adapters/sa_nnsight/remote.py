"""A model that stays on its NDIF server: forward passes run there and are reduced there.

What travels is what a reducer keeps: scores, maxima, histograms, sums. Activations do not. A call
is cut into requests of several traces each; finished ones are in the journal, if one is named, so
that the same call, made again after it was cut off, goes on where it stopped and gives the same
numbers.

How blocks add up is measured as for a local model, on the first, the middle and the last block. The
order in which modules run is taken from a pass on the meta device, since the server cannot be asked
for it. The fingerprint is of a few values of each weight, the same that are hashed here.

What a server lets a request do is asked once, by trying each. A trusted server runs a request in
the model's own process: weights are there, and gradients flow. A sandboxed one runs it in a process
of its own: modules are on the meta device, and tensors arrive without a graph. Which one an
ordinary key gets is the operators' choice. A server may answer otherwise tomorrow, and another key
may get another mode.

Weights that cannot be read are recovered. A projection is f(x) = W x + b, so that

    b = f(0),    W e_i = f(e_i) - f(0),

by calling it on zero and on an identity: exact to the rounding of W + b in the model's format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from sa_nnsight import beside, session
from sa_nnsight.faults import RemoteFault, explain_fault
from sa_nnsight.jobs import Journal, Patience, Request, Result, Runner, digest
from sa_nnsight.passes import TracePasses, in_order
from sa_nnsight.places import EnvoyPlaces, Tap, eager, locate
from sa_nnsight.session import Once, Reads
from sa_nnsight.wire import Server, Traffic, Wire
from sa_plugin._face import face, face_methods, passing
from sa_plugin.data.sample import Sample
from sa_plugin.host import reducers
from sa_plugin.host.adapter import part_of, parts_of
from sa_plugin.host.laws import structure, tolerance
from sa_plugin.host.local import Options, text_reader
from sa_plugin.host.protocol import Batch, HostInfo, OutputProjection, Reduce, Site
from sa_plugin.host.texts import PROBE_TEXT, TextReader
from sa_plugin.host.weights import hash_values, strided_places

TRACES = 16
# A fingerprint that begins so is of the model's name, not of its weights.
UNREAD = "unread:"
INSTEAD = {
    "weights": "Output projections are recovered by calling them: host.output_projection(layer). "
    "For the rest attach a local copy of the model.",
    "gradients": "Scores, tails, ledgers and forward patching work here; for gradients attach a "
    "local copy of the model, or use a key whose requests the server trusts.",
    "attention_probabilities": "Outputs of heads (z, attn_out) can be read here; for patterns ask "
    "the operators to deploy the model with attn_implementation='eager', or attach a local copy.",
}
UNABLE = {
    "weights": "its modules hold no values",
    "gradients": "no gradient reaches the first block",
    "attention_probabilities": "attention hands back None: it is fused, and stays so",
}
TRIALS: dict[str, Callable[[EnvoyPlaces, Mapping[str, Tensor], Any], None]] = {
    "weights": session.send_weights,
    "gradients": session.send_gradients,
    "attention_probabilities": session.send_probabilities,
}


@face_methods
@dataclass(frozen=True)
class Capabilities:
    """What one request could do on the server.

    Attributes:
        weights: Read a module's weights.
        gradients: Differentiate through blocks with `torch.autograd.grad`.
        attention_probabilities: Read attention probabilities, after asking for eager attention.
        sandboxed: Whether the request ran without the model's weights beside it.
        reasons: What the server said to each that failed, by attribute.
    """

    weights: bool
    gradients: bool
    attention_probabilities: bool
    sandboxed: bool
    reasons: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        names = ("weights", "gradients", "attention_probabilities")
        can = ", ".join(f"{name} {'yes' if getattr(self, name) else 'NO'}" for name in names)
        return f"Capabilities({'sandboxed' if self.sandboxed else 'trusted'} server: {can})"

    def require(self, name: str, purpose: str) -> None:
        """Refuse at once what the server cannot do.

        Args:
            name: "weights", "gradients" or "attention_probabilities".
            purpose: What it is wanted for, as a noun phrase.

        Raises:
            RuntimeError: The server cannot; the text says what works.
        """
        if getattr(self, name):
            return
        said = dict(self.reasons).get(name, "")
        raise RuntimeError(
            f"{purpose} needs {name.replace('_', ' ')}, which this "
            f"{'sandboxed' if self.sandboxed else ''} server does not give ({said}). "
            f"{INSTEAD[name]}"
        )


@face_methods
@dataclass(frozen=True, eq=False)
class Line:
    """The way to a server.

    Attributes:
        server: Where requests go.
        runner: Sends them.
        traces: Forward passes a request.
    """

    server: Server
    runner: Runner
    traces: int = TRACES

    def now(self, request: Request) -> Result:
        """One answer, not from the journal: what a model's name stands for may have changed."""
        runner = self.runner
        fresh = Runner(Journal(None), runner.patience, runner.translate, runner.retried, runner.reused)
        (found,) = fresh.run([request])
        return found


@face_methods
@dataclass(frozen=True, eq=False)
class RemoteHost:
    """A model on a server, checked; make one with `sa_plugin.attach(model, remote=True)`.

    Attributes:
        passes: Knows the places of nnsight's model, whose weights are elsewhere, and their order.
        info: What is fixed about the model.
        reader: Cuts texts into tokens.
        line: The way to the server.
        batch_tokens: At most this many tokens a batch.
        progress: Whether walks over the model show a bar.
    """

    passes: TracePasses
    info: HostInfo
    reader: TextReader
    line: Line
    batch_tokens: int
    progress: bool

    def __repr__(self) -> str:
        return f"RemoteHost({self.info.shape}, {self.reader.encode.words}; {self.traffic})"

    @property
    def places(self) -> EnvoyPlaces:
        """Where things are in the model."""
        return self.passes.places

    @property
    def model(self) -> Any:
        """The user's own object."""
        return self.passes.places.model

    @property
    def traffic(self) -> Traffic:
        """What went over the wire so far."""
        return self.line.server.traffic

    def batches(self, samples: Sequence[Sample], *, batch_tokens: int | None = None) -> list[Batch]:
        """Tokenise and group samples of like length; see `sa_plugin.host.local.LocalHost.batches`."""
        return self.reader.batches(samples, self.batch_tokens if batch_tokens is None else batch_tokens)

    def hook_name(self, site: Site) -> str:
        """Nnsight's path of a site."""
        return self.places.hook_name(part_of(self.places, self.info, site))

    def read(self, batch: Batch, sites: Sequence[Site], reduce: Reduce) -> dict[Any, Tensor]:
        """One batch; see `read_many`."""
        ((_, found),) = self.read_many([batch], sites, lambda _: reduce)
        return found

    def read_many(
        self, batches: Sequence[Batch], sites: Sequence[Site], reducer: Callable[[Batch], Reduce]
    ) -> Iterator[tuple[Batch, dict[Any, Tensor]]]:
        """Run batches on the server, several a request, and yield what was kept, in order.

        Raises:
            TypeError: A reducer is none of `sa_plugin.host.reducers`.
            ValueError: A reducer hands over activations, or `sites` holds no or an unknown site.
            RuntimeError: What the server or the network says, in words.
        """
        parts = parts_of(self.places, self.info, sites)
        taps = {self.places.tap(part): (site.layer, str(site.point)) for site, part in parts.items()}
        ordered = [(taps[tap], tap) for tap in in_order(self.passes.order, list(taps))]
        step = self.line.traces
        cut = [batches[k : k + step] for k in range(0, len(batches), step)]
        requests = [self._request(part, ordered, reducer) for part in cut]
        for part, found in zip(cut, self.line.runner.run(requests), strict=True):
            yield from zip(part, found, strict=True)

    def _request(
        self,
        part: Sequence[Batch],
        taps: Sequence[tuple[tuple[int, str], Tap]],
        reducer: Callable[[Batch], Reduce],
    ) -> Reads:
        jobs = [reducer(batch) for batch in part]
        refuse_rows(jobs)
        digest(jobs)
        return Reads(
            self.line.server,
            lambda: [dict(batch.inputs) for batch in part],
            taps,
            jobs,
            self.info.n_heads,
            f"{self.info.fingerprint} {self.info.dtype}",
        )

    def capabilities(self) -> Capabilities:
        """What the server lets a client do, by trying each on a few tokens; ask once.

        Costs three requests, of one forward pass each at most.

        Raises:
            RuntimeError: The server or the network failed for another reason; see
                `sa_nnsight.faults`.
        """
        found, reasons, inputs = {}, {}, self.reader.probe_inputs()
        for name, send in TRIALS.items():
            try:
                (values,) = self.line.now(Once(self.line.server, partial(send, self.places, inputs)))
                found[name] = bool(values["able"])
                sandboxed = bool(values["sandboxed"])
                reasons[name] = "" if found[name] else UNABLE[name]
            except RuntimeError as error:
                # What failed for want of a server is raised, not counted.
                if getattr(error, "kind", "") not in ("weights", "order", "block"):
                    raise
                found[name], reasons[name] = False, str(error)
        said = tuple((name, reason) for name, reason in reasons.items() if reason)
        return Capabilities(**found, sandboxed=sandboxed, reasons=said)

    def output_projection(self, layer: int) -> OutputProjection:
        """W_O and b_O, asked of the server by calling the projection on an identity and on zero.

        One request, half a forward pass; exact to the rounding of W + b.

        Raises:
            RuntimeError: What the server or the network says.
        """
        part_of(self.places, self.info, Site(layer, "z"))
        return recover_projection(self.places, self.reader, self.line, layer)


@face
def recover_projection(places: EnvoyPlaces, reader: TextReader, line: Line, layer: int) -> OutputProjection:
    """W_O and b_O of one block, by calling the projection."""
    send = partial(session.send_projection, places, layer, reader.probe_inputs())
    (answer,) = line.now(Once(line.server, send))
    zero, image = answer["zero"].float(), answer["image"].float()
    weight = rearrange(image - zero, "(h e) d -> h e d", h=places.n_heads).contiguous()
    # The structure is known here, the values are not: only the weights are elsewhere.
    has_bias = getattr(places.module("o_proj", layer), "bias", None) is not None
    return OutputProjection(weight, zero if has_bias else None)


Ask = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@face
def fingerprint_of(places: EnvoyPlaces, ask: Ask) -> str:
    """The fingerprint that the same weights have on this machine.

    Args:
        places: Modules of the model, on the meta device.
        ask: Flat indices by path of a parameter, to its values there, in float32.
    """
    asked: dict[str, Tensor] = {}
    derived: dict[str, tuple[tuple[int, ...], str, slice]] = {}
    for inner, parameter in places.inner_parameters().items():
        path = places.prefix + inner
        asked[path], parts = _places(places, inner, parameter)
        start = 0
        for name, (shape, count) in parts.items():
            derived[name] = shape, path, slice(start, start + count)
            start += count
    values = ask(asked)
    found = {name: (shape, values[path][part]) for name, (shape, path, part) in derived.items()}
    return hash_values(places.kind, found)


def _places(
    places: EnvoyPlaces, inner: str, parameter: Tensor
) -> tuple[Tensor, dict[str, tuple[tuple[int, ...], int]]]:
    """Flat indices into a parameter, and the shape and count of each part that they are for."""
    names = places.shared_names(inner, parameter)
    if len(names) == 1:
        where = strided_places(parameter.numel())
        return where, {name: (tuple(one.shape), len(where)) for name, one in names.items()}
    # A fused parameter: its parts are views, so that indices are cut as values are.
    index = torch.arange(parameter.numel()).reshape(parameter.shape)
    cut = places.shared_names(inner, index)
    flat = {name: one.reshape(-1)[strided_places(one.numel())] for name, one in cut.items()}
    shapes = {name: (tuple(cut[name].shape), len(where)) for name, where in flat.items()}
    return torch.cat(list(flat.values())), shapes


@face
def refuse_rows(jobs: Sequence[Any]) -> None:
    """Refuse what would send activations home.

    Raises:
        ValueError: A reducer stores train rows.
    """
    # A pass binds its jobs to one function: what stores rows is among them.
    bound = [one for job in jobs for one in getattr(job, "keywords", {}).get("jobs", ())]
    for job in bound:
        if getattr(job, "func", None) is reducers.train and job.keywords.get("stored") is not None:
            raise ValueError(
                "this kind of concept vector is fitted from the activations themselves, which do "
                "not leave the server (30 layers of 576 dimensions are 69 KB a token). Kinds that "
                "need sums alone work: 'prototype' and 'lda'. For a separator or k-means, fit on a "
                "local copy of the same model, and score here with that bank."
            )


@passing(Options, name="attach")
def attach_remote(
    model: Any,
    *,
    paths: Mapping[str, Any] | None = None,
    journal: str | Path | None = None,
    server: str | None = None,
    traces: int = TRACES,
    fingerprint: str | None = None,
    patience: Patience | None = None,
    **options: Any,
) -> RemoteHost:
    """Check a model on a server, by a few requests, and wrap it.

    Args:
        model: A TransformersModel of a text model; its weights are not loaded here.
        paths: Where things are, see `sa_nnsight.paths.ROLES`.
        journal: Folder in which finished requests are kept; by default none are.
        server: URL, by default nnsight's configuration (`NDIF_HOST`).
        traces: Forward passes a request.
        fingerprint: Of the weights, where the server keeps them to itself and you know that they
            are those a bank was fitted on: `bank.origin.fingerprint`.
        patience: How many requests are under way at a time, how often and how long each is tried.
        **options: Of texts, see `sa_plugin.host.local.Options`.

    Raises:
        ValueError: An option out of range or that a server cannot follow, an unknown architecture,
            or blocks that add up in no known way.
        RuntimeError: What the server or the network says, in words.
    """
    chosen = Options(**options)
    for name, given in (("processor", chosen.processor is not None), ("final_norm", chosen.final_norm)):
        if given:
            raise ValueError(f"{name} is for a model on this machine: leave it out with remote=True.")
    if traces < 1:
        raise ValueError(f"traces is {traces}: give 1 or more.")
    session.ship_modules()
    places = locate(model, paths)
    if chosen.tokenizer is None:
        chosen = replace(chosen, tokenizer=model.tokenizer)
    reader = text_reader(places, chosen)
    traffic = Traffic()
    runner = _runner(Journal(journal), patience or Patience(), traffic)
    line, found = _line(places, server, runner, traffic, traces)
    passes = _settled(places, reader)
    info = _describe(passes, reader, line, fingerprint or found)
    return RemoteHost(passes, info, reader, line, chosen.batch_tokens, chosen.progress)


def _line(
    places: EnvoyPlaces, host: str | None, runner: Runner, traffic: Traffic, traces: int
) -> tuple[Line, str]:
    """The way to where the model is, and the fingerprint of its weights.

    A sandbox keeps weights to itself: the fingerprint is then of the model's name.
    """
    model = places.model
    key, env = model.to_model_key(), model._remoteable_get_env()

    def wire(job_id: str | None) -> Wire:
        made = Wire(key, traffic, host, env)
        made.job_id = job_id
        return made

    line = Line(Server(model, traffic, False, wire), runner, traces)

    def ask(where: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        (values,) = line.now(Once(line.server, lambda wire: session.submit_values(model, wire, where)))
        return values

    try:
        return line, fingerprint_of(places, ask)
    except RemoteFault as fault:
        if fault.kind != "weights":
            raise
    # Told by its name alone, the model may be another tomorrow: banks ask for `fingerprint=`.
    sandboxed = replace(line.server, sandboxed=True)
    return replace(line, server=sandboxed), UNREAD + hashlib.sha256(key.encode()).hexdigest()


def _runner(journal: Journal, patience: Patience, traffic: Traffic) -> Runner:
    def translate(error: Exception) -> tuple[Exception, bool]:
        fault = explain_fault(error)
        return fault, fault.retry

    again, reused = partial(traffic.add, retried=1), partial(traffic.add, reused=1)
    return Runner(journal, patience, translate, again, reused)


def _settled(places: EnvoyPlaces, reader: TextReader) -> TracePasses:
    """In which order modules run, from a pass without weights."""
    device = next(places.root.parameters()).device
    ids = reader.probe_inputs()["input_ids"].to(device)
    parts = [(k, part) for k in range(places.n_layers) for part in places.parts]
    with eager(places.root):
        return TracePasses(places).settle({"input_ids": ids}, parts)


def _describe(passes: TracePasses, reader: TextReader, line: Line, fingerprint: str) -> HostInfo:
    """What a request over a short text, and its first tokens alone, say about the model."""
    places = passes.places
    blocks = sorted({0, places.n_layers // 2, places.n_layers - 1})
    names = [name for name in places.parts if name != "pattern"]
    taps = {places.tap((k, name)): (k, name) for k in blocks for name in names}
    ordered = [(taps[tap], tap) for tap in in_order(passes.order, list(taps))]
    # Two parts may be one place (attn_out is the projection's output, say).
    twins = {(k, name): taps[places.tap((k, name))] for k in blocks for name in names}
    ids = reader.probe_inputs()["input_ids"]
    if ids.shape[1] < 3:
        raise ValueError(f"the tokenizer makes {ids.shape[1]} tokens of {PROBE_TEXT!r}.")
    short = ids[:, : ids.shape[1] // 2]
    inputs = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in (ids, short)]
    whole, start = line.now(
        Reads(line.server, lambda: inputs, ordered, [beside.pick_all] * 2, places.n_heads)
    )
    found = {part: whole[f"{k} {name}"] for part, (k, name) in twins.items()}
    dtype = str(whole["format"].dtype).removeprefix("torch.")
    read = [{name: found[k, name] for name in names} for k in blocks]
    block, _ = structure(places.architecture, read, tolerance(dtype))
    last, n = f"{blocks[-1]} resid_post", short.shape[1]
    # In a causal model the first tokens do not feel those behind them; loose, for half precision.
    gap = (whole[last][:, :n] - start[last]).abs().max() / start[last].abs().max()
    return HostInfo(
        host=places.library,
        model=places.model_name,
        architecture=places.architecture,
        n_layers=places.n_layers,
        d_model=found[0, "resid_pre"].shape[-1],
        n_heads=places.n_heads,
        d_head=found[0, "z"].shape[-1],
        block=block,
        causal=bool(gap < 1e-2),
        bos=reader.bos,
        processing="none",
        dtype=dtype,
        fingerprint=fingerprint,
        tokenizer=reader.encode.digest,
    )
