"""What a server lets a request do, asked once by trying each, and weights where they are kept away.

A trusted server runs a request in the model's own process: weights are there, and gradients flow. A
sandboxed one runs it in a process of its own: modules are on the meta device, and tensors arrive
without a graph. Which one an ordinary key gets is the operators' choice, so it is measured.

Weights that cannot be read are recovered. A projection is f(x) = W x + b, so that

    b = f(0),    W e_i = f(e_i) - f(0),

by calling it on zero and on an identity: exact to the rounding of W + b in the model's format.

What this does not show: a server may answer otherwise tomorrow, and another key may get another
mode.

Weights that are elsewhere: their fingerprint, from a few of their values.

The blocks of code that are sent to a server.

Nothing is imported inside a block, and it refers to names of its function only, so that nnsight
ships its source, the source of the two registered modules, and plain tensors.

A model that stays on its NDIF server: forward passes run there and are reduced there.

What travels is what a reducer keeps: scores, maxima, histograms, sums. Activations do not. A call
is cut into requests of several traces each; finished ones are in the journal, if one is named, so
that the same call, made again after it was cut off, goes on where it stopped and gives the same
numbers.

How blocks add up is measured as for a local model, on the first, the middle and the last block. The
order in which modules run is taken from a pass on the meta device, since the server cannot be asked
for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import nnsight
import torch
from einops import rearrange
from torch import Tensor

from sa_nnsight import beside
from sa_nnsight.faults import RemoteFault, explain
from sa_nnsight.host import NNsightHost, model_name
from sa_nnsight.jobs import SHIPPED, Journal, Patience, Result, Runner, digest
from sa_nnsight.paths import Places, locate
from sa_nnsight.places import (
    Order,
    Tap,
    eager,
    envoy_path,
    in_order,
    inner_parameters,
    measure_order,
    n_heads,
    shared_names,
    tap_of,
)
from sa_nnsight.wire import Reads, Server, Traffic, Values, Wire
from sa_plugin.data.sample import Sample
from sa_plugin.host import reducers, texts
from sa_plugin.host.check import LIMITS
from sa_plugin.host.laws import NORMS, RAW, structure
from sa_plugin.host.protocol import BATCH_TOKENS, Batch, HostInfo, OutputProjection, Point, Reduce, Site
from sa_plugin.host.weights import hash_values, strided_places


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


INSTEAD = {
    "weights": "Output projections are recovered by calling them: host.output_projection(layer). "
    "For the rest attach a local copy of the model.",
    "gradients": "Scores, tails, ledgers and forward patching work here; for gradients attach a "
    "local copy of the model, or use a key whose requests the server trusts.",
    "attention_probabilities": "Outputs of heads (z, attn_out) can be read here; for patterns ask "
    "the operators to deploy the model with attn_implementation='eager', or attach a local copy.",
}


def probe(host: RemoteHost) -> Capabilities:
    """Try each on a few tokens: three requests, of one forward pass each at most.

    Args:
        host: A host on a server.

    Returns:
        What worked. What failed for want of a server is raised, not counted.

    Raises:
        RuntimeError: The server or the network failed for another reason; see
            `sa_nnsight.faults`.
    """
    found, reasons = {}, {}
    for name, send in TRIALS.items():
        try:
            values = _capabilities_now(host, send)
            found[name] = bool(values["able"])
            sandboxed = bool(values["sandboxed"])
            reasons[name] = "" if found[name] else UNABLE[name]
        except RuntimeError as error:
            if getattr(error, "kind", "") not in ("weights", "order", "block"):
                raise
            found[name], reasons[name] = False, str(error)
    said = tuple((name, reason) for name, reason in reasons.items() if reason)
    return Capabilities(**found, sandboxed=sandboxed, reasons=said)


def recover_projection(host: RemoteHost, layer: int) -> OutputProjection:
    """W_O and b_O of one block, by calling the projection: one request, half a forward pass.

    Args:
        host: A host on a server.
        layer: Block index.

    Returns:
        In float32, exact to the rounding of W + b in the model's number format.

    Raises:
        RuntimeError: What the server or the network says.
    """
    places = host.reader.places
    local = places.module("o_proj", layer)
    width = host.info.n_heads * host.info.d_head
    path = places.path("o_proj", layer)

    def send(one: RemoteHost, backend: Any) -> None:
        _send_projection(one.model, backend, _inputs(one), _envoy(one, path), width)

    answer = _capabilities_now(host, send)
    zero, image = answer["zero"].float(), answer["image"].float()
    weight = rearrange(image - zero, "(h e) d -> h e d", h=host.info.n_heads).contiguous()
    # The structure is known here, the values are not: only the weights are elsewhere.
    has_bias = getattr(local, "bias", None) is not None
    return OutputProjection(weight, zero if has_bias else None)


def _send_projection(model: Any, backend: Any, inputs: Any, projection: Any, width: int) -> None:
    eye, zeros, save, no_grad = torch.eye, torch.zeros, nnsight.save, torch.no_grad
    with model.session(backend=backend):
        with no_grad(), model.trace(**inputs) as tracer:
            z = projection.input
            image = projection(eye(width).to(z))
            zero = projection(zeros(1, width).to(z))[0]
            kept = save([{"image": image, "zero": zero}])
            tracer.stop()
        result = save(kept)  # noqa: F841 (handed back by its name)


def _send_weights(host: RemoteHost, backend: Any) -> None:
    model, save = host.model, nnsight.save
    module = model._module.get_submodule(host.reader.places.path("o_proj", 0))
    tensor = torch.tensor
    with model.session(backend=backend):
        weight = module.weight
        meta = weight.is_meta
        able = not meta and bool(weight.abs().sum() > 0)
        result = save([{"able": tensor(able), "sandboxed": tensor(meta)}])  # noqa: F841


def _send_gradients(host: RemoteHost, backend: Any) -> None:
    model, save, inputs = host.model, nnsight.save, _inputs(host)
    places = host.reader.places
    module = model._module.get_submodule(places.path("o_proj", 0))
    first = _envoy(host, places.path("block", 0))
    last = _envoy(host, places.path("block", places.n_layers - 1))
    tensor, grad = torch.tensor, torch.autograd.grad
    with model.session(backend=backend):
        meta = module.weight.is_meta
        with model.trace(**inputs) as tracer:
            start = first.output
            start = start[0] if isinstance(start, tuple) else start
            start.requires_grad_(True)
            end = last.output
            end = end[0] if isinstance(end, tuple) else end
            flows = save([grad((end * end).sum(), start)[0].abs().sum() > 0])
            tracer.stop()
        result = save([{"able": flows[0], "sandboxed": tensor(meta)}])  # noqa: F841


def _send_probabilities(host: RemoteHost, backend: Any) -> None:
    model, save, inputs = host.model, nnsight.save, _inputs(host)
    places, root = host.reader.places, host.model._module
    module = root.get_submodule(places.path("o_proj", 0))
    attention = _envoy(host, places.path("attention", 0))
    tensor, no_grad = torch.tensor, torch.no_grad
    with model.session(backend=backend):
        meta = module.weight.is_meta
        before = root.config._attn_implementation
        root.set_attn_implementation("eager")
        with no_grad(), model.trace(**inputs) as tracer:
            out = attention.output
            able = save([isinstance(out, tuple) and len(out) > 1 and out[1] is not None])
            tracer.stop()
        root.set_attn_implementation(before)
        result = save([{"able": tensor(able[0]), "sandboxed": tensor(meta)}])  # noqa: F841


Send = Callable[["RemoteHost", Any], None]
TRIALS: dict[str, Send] = {
    "weights": _send_weights,
    "gradients": _send_gradients,
    "attention_probabilities": _send_probabilities,
}
UNABLE = {
    "weights": "its modules hold no values",
    "gradients": "no gradient reaches the first block",
    "attention_probabilities": "attention hands back None: it is fused, and stays so",
}


@dataclass(frozen=True, eq=False)
class _Once:
    """A request that is never answered from a journal."""

    host: RemoteHost
    send: Send
    key: str = ""

    def submit(self) -> str:
        return self.host.server.submitted(lambda wire: self.send(self.host, wire))

    def poll(self, job_id: str) -> Result | None:
        return self.host.server.answer(job_id)


def _capabilities_now(host: RemoteHost, send: Send) -> dict[str, Tensor]:
    answered = _remote_now

    return dict(answered(host.runner, _Once(host, send))[0])


def _inputs(host: RemoteHost) -> dict[str, Tensor]:
    ids = texts.encode(host.reader.tokenizer, [texts.PROBE_TEXT])[0].ids
    whole = torch.from_numpy(ids)[None]
    return {"input_ids": whole, "attention_mask": torch.ones_like(whole)}


def _envoy(host: RemoteHost, path: str) -> Any:
    return host.model.get(envoy_path(host.model, path))


Ask = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def fingerprint(places: Places, ask: Ask) -> str:
    """The fingerprint that the same weights have on this machine.

    Args:
        places: Modules of the model, on the meta device.
        ask: Flat indices by path of a parameter, to its values there, in float32.
    """
    asked: dict[str, Tensor] = {}
    derived: dict[str, tuple[tuple[int, ...], str, slice]] = {}
    for inner, parameter in inner_parameters(places).items():
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
    places: Places, inner: str, parameter: Tensor
) -> tuple[Tensor, dict[str, tuple[tuple[int, ...], int]]]:
    """Flat indices into a parameter, and the shape and count of each part that they are for."""
    names = shared_names(places, inner, parameter)
    if len(names) == 1:
        where = strided_places(parameter.numel())
        return where, {name: (tuple(one.shape), len(where)) for name, one in names.items()}
    # A fused parameter: its parts are views, so that indices are cut as values are.
    index = torch.arange(parameter.numel()).reshape(parameter.shape)
    cut = shared_names(places, inner, index)
    flat = {name: one.reshape(-1)[strided_places(one.numel())] for name, one in cut.items()}
    shapes = {name: (tuple(cut[name].shape), len(where)) for name, where in flat.items()}
    return torch.cat(list(flat.values())), shapes


def register() -> None:
    """Have nnsight ship what runs on the server, so that this package need not be there."""
    for module in SHIPPED:
        nnsight.register(module)


def submit_reads(
    model: Any,
    backend: Any,
    inputs: Sequence[Mapping[str, torch.Tensor]],
    taps: Sequence[tuple[tuple[int, str], Tap]],
    jobs: Sequence[Any],
    heads: int,
    early: bool,
) -> None:
    """Send one session of several traces.

    Args:
        model: nnsight's model; its weights are not sent.
        backend: Sends, and does not wait.
        inputs: What each trace is called with.
        taps: What each trace reads, by plain `(layer, point)`, in the order of the forward pass.
        jobs: Reducer of each trace.
        heads: Query heads of an attention layer.
        early: End each pass behind the deepest place. A sandbox breaks on several traces that end
            early in one session.
    """
    early = early or len(jobs) == 1
    gather, shaped, no_grad, save = reducers.gather, beside.shaped, torch.no_grad, nnsight.save
    wanted = [(site, model.get(tap.path), tap.end, tap.item) for site, tap in taps]
    # The server may ignore this; `shaped` then finds no probabilities and says so.
    unfuse = any(site[1] == "pattern" for site, _ in taps)
    with model.session(backend=backend):
        # Named here: a module is known to the server only as a part of nnsight's model.
        root = model._module
        before = root.config._attn_implementation if unfuse else None
        if unfuse:
            root.set_attn_implementation("eager")
        found = []
        for k in range(len(jobs)):
            with no_grad(), model.trace(**inputs[k]) as tracer:
                read = {}
                for site, envoy, end, item in wanted:
                    value = envoy.input if end == "input" else envoy.output
                    read[site] = shaped(site, value, item, heads)
                found.append(jobs[k](read))
                if early:
                    tracer.stop()
        if unfuse:
            root.set_attn_implementation(before)
        result = save(gather(found))  # noqa: F841 (handed back by its name)


def submit_values(model: Any, backend: Any, places: Mapping[str, torch.Tensor]) -> None:
    """Ask for some values of the weights; a server that keeps them to itself fails this."""
    values, save = beside.parameter_values, nnsight.save
    with model.session(backend=backend):
        result = save([values(model._module, places)])  # noqa: F841 (handed back by its name)


TRACES = 16
# A fingerprint that begins so is of the model's name, not of its weights.
UNREAD = "unread:"


@dataclass(frozen=True, eq=False)
class RemoteHost:
    """A model on a server, checked; make one with `sa_plugin.attach(model, remote=True)`.

    Attributes:
        model: nnsight's model; its weights are elsewhere.
        info: What is fixed about the model.
        reader: Cuts texts into tokens and knows where things are.
        server: Where requests go.
        runner: Sends them.
        traffic: What went over the wire so far.
        traces: Forward passes a request.
    """

    model: Any
    info: HostInfo
    reader: NNsightHost
    server: Server
    runner: Runner
    traffic: Traffic
    traces: int

    def __repr__(self) -> str:
        info = self.info
        return (
            f"RemoteHost({info.model}, {info.architecture}, {info.n_layers} blocks x "
            f"{info.d_model}, {info.n_heads} heads, {info.block}, {info.dtype}; {self.traffic})"
        )

    @property
    def batch_tokens(self) -> int:
        """At most this many tokens a batch."""
        return self.reader.batch_tokens

    @property
    def progress(self) -> bool:
        """Whether walks over the model show a bar."""
        return self.reader.progress

    def batches(self, samples: Sequence[Sample], *, batch_tokens: int | None = None) -> list[Batch]:
        """Samples ready for the model; see `NNsightHost.batches`."""
        return self.reader.batches(samples, batch_tokens=batch_tokens)

    def hook_name(self, site: Site) -> str:
        """Nnsight's path of a site."""
        return self.reader.hook_name(site)

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
        if not sites:
            raise ValueError("sites is empty: name at least one Site(layer, point).")
        taps = {self.reader.tap(site): (site.layer, str(site.point)) for site in sites}
        ordered = [(taps[tap], tap) for tap in in_order(self.reader.order, list(taps))]
        parts = [batches[k : k + self.traces] for k in range(0, len(batches), self.traces)]
        requests = [self._request(part, ordered, reducer) for part in parts]
        for part, found in zip(parts, self.runner.run(requests), strict=True):
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
            self.server,
            lambda: [dict(batch.inputs) for batch in part],
            taps,
            jobs,
            self.info.n_heads,
            f"{self.info.fingerprint} {self.info.dtype}",
        )

    def capabilities(self) -> Capabilities:
        """What the server lets a client do, from three requests; ask once."""
        return probe(self)

    def output_projection(self, layer: int) -> OutputProjection:
        """W_O and b_O, asked of the server by calling the projection on an identity and on zero.

        Exact to the rounding of W + b.
        """
        self.reader.tap(Site(layer, "z"))
        found: OutputProjection = recover_projection(self, layer)
        return found


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


def attach_remote(
    model: Any,
    *,
    tokenizer: Any = None,
    paths: Mapping[str, Any] | None = None,
    padding_side: str = "right",
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
    journal: str | Path | None = None,
    server: str | None = None,
    traces: int = TRACES,
    at_once: int = 4,
    tries: int = 4,
    back_off: float = 1.0,
    timeout: float = 600.0,
    fingerprint: str | None = None,
) -> RemoteHost:
    """Check a model on a server, by a few requests, and wrap it.

    Args:
        model: A TransformersModel of a text model; its weights are not loaded here.
        tokenizer: By default the model's. Used as it is.
        paths: Where things are, see `sa_nnsight.paths.ROLES`.
        padding_side: "right" or "left".
        batch_tokens: At most this many tokens a batch, padding included.
        progress: Whether walks over the model show a bar.
        journal: Folder in which finished requests are kept; by default none are.
        server: URL, by default nnsight's configuration (`NDIF_HOST`).
        traces: Forward passes a request.
        at_once: Requests under way at the same time.
        tries: Times a request is sent before its failure is yours.
        back_off: Seconds before the second try, doubled for each further one.
        timeout: Seconds a request may take.
        fingerprint: Of the weights, where the server keeps them to itself and you know that they
            are those a bank was fitted on: `bank.origin.fingerprint`.

    Raises:
        ValueError: An option out of range, an unknown architecture, or blocks that add up in no
            known way.
        RuntimeError: What the server or the network says, in words.
    """
    if padding_side not in get_args(texts.PaddingSide):
        raise ValueError(f"padding_side {padding_side!r} is unknown: use 'left' or 'right'.")
    if traces < 1:
        raise ValueError(f"traces is {traces}: give 1 or more.")
    patience = Patience(at_once, tries, back_off, timeout)
    register()
    places = locate(model._module, paths)
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    texts.check_tokenizer(tokenizer)
    traffic = Traffic()
    runner = _runner(Journal(journal), patience, traffic)
    there, found = _server(model, places, traffic, server, runner)
    order = _order(model, places, tokenizer)
    info = _describe(there, places, order, tokenizer, runner, fingerprint or found)
    side = cast(texts.PaddingSide, padding_side)
    reader = NNsightHost(model, info, places, order, batch_tokens, progress, tokenizer, side)
    return RemoteHost(model, info, reader, there, runner, traffic, traces)


def _server(
    model: Any, places: Places, traffic: Traffic, host: str | None, runner: Runner
) -> tuple[Server, str]:
    """Where the model is, and the fingerprint of its weights.

    A sandbox keeps weights to itself: the fingerprint is then of the model's name.
    """
    key, env = model.to_model_key(), model._remoteable_get_env()

    def wire(job_id: str | None) -> Wire:
        made = Wire(key, traffic, host, env)
        made.job_id = job_id
        return made

    server = Server(model, traffic, False, wire)
    try:
        return server, fingerprint(places, lambda where: _remote_now(runner, Values(server, where))[0])
    except RemoteFault as fault:
        if fault.kind != "weights":
            raise
    return replace(server, sandboxed=True), UNREAD + hashlib.sha256(key.encode()).hexdigest()


def _runner(journal: Journal, patience: Patience, traffic: Traffic) -> Runner:
    def translate(error: Exception) -> tuple[Exception, bool]:
        fault = explain(error)
        return fault, fault.retry

    again, reused = partial(traffic.add, retried=1), partial(traffic.add, reused=1)
    return Runner(journal, patience, translate, again, reused)


def _order(model: Any, places: Places, tokenizer: Any) -> Order:
    """In which modules run, from a pass without weights."""
    taps = [tap_of(model, places, k, part) for k in range(places.n_layers) for part in _parts(places)]
    modules = {tap.path: model.get(tap.path)._module for tap in taps}
    ids = torch.from_numpy(texts.encode(tokenizer, [texts.PROBE_TEXT])[0].ids)[None]
    device = next(places.root.parameters()).device
    with eager(places.root):
        return measure_order(places.root, modules, {"input_ids": ids.to(device)})


def _parts(places: Places) -> list[str]:
    norms = NORMS if places.has("norm1") and places.has("norm2") else ()
    return [*get_args(Point), RAW, *norms]


def _describe(
    server: Server, places: Places, order: Order, tokenizer: Any, runner: Runner, fingerprint: str
) -> HostInfo:
    """What a request over a short text, and its first tokens alone, say about the model."""
    model, heads = server.model, n_heads(places)
    blocks = sorted({0, places.n_layers // 2, places.n_layers - 1})
    parts = [part for part in _parts(places) if part != "pattern"]
    taps = {tap_of(model, places, k, part): (k, part) for k in blocks for part in parts}
    ordered = [(taps[tap], tap) for tap in in_order(order, list(taps))]
    # Two points may be one place (attn_out is the projection's output, say).
    twins = {(k, p): taps[tap_of(model, places, k, p)] for k in blocks for p in parts}
    ids = torch.from_numpy(texts.encode(tokenizer, [texts.PROBE_TEXT])[0].ids)[None]
    if ids.shape[1] < 3:
        raise ValueError(f"the tokenizer makes {ids.shape[1]} tokens of {texts.PROBE_TEXT!r}.")
    short = ids[:, : ids.shape[1] // 2]
    inputs = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in (ids, short)]
    ask = Reads(server, lambda: inputs, ordered, [beside.pick] * 2, heads)
    # Not from the journal: the model under this name may have changed.
    whole, start = _remote_now(runner, ask)
    found = {(k, p): whole[f"{a} {b}"] for (k, p), (a, b) in twins.items()}
    dtype = str(whole["format"].dtype).removeprefix("torch.")
    read = [{part: found[k, part] for part in parts} for k in blocks]
    block, _ = structure(places.architecture, read, LIMITS.get(dtype, LIMITS["float32"]))
    last = f"{blocks[-1]} resid_post"
    n = short.shape[1]
    gap = (whole[last][:, :n] - start[last]).abs().max() / start[last].abs().max()
    causal = bool(gap < 1e-2)
    return HostInfo(
        "nnsight",
        model_name(model, places),
        places.architecture,
        places.n_layers,
        found[0, "resid_pre"].shape[-1],
        heads,
        found[0, "z"].shape[-1],
        block,
        causal,
        texts.puts_special_first(tokenizer),
        "none",
        dtype,
        fingerprint,
        texts.digest(tokenizer),
    )


def _remote_now(runner: Runner, request: Any) -> Result:
    (found,) = Runner(Journal(None), runner.patience, runner.translate, runner.retried, runner.reused).run(
        [request]
    )
    return found
