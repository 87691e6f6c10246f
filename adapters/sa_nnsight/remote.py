"""A model that stays on its NDIF server: forward passes run there and are reduced there.

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
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor

from sa_nnsight import beside, remote_weights, session
from sa_nnsight.attach import NNsightHost
from sa_nnsight.envoy_host import model_name
from sa_nnsight.faults import RemoteFault, explain
from sa_nnsight.jobs import Patience, Runner
from sa_nnsight.journal import Journal, Result, digest
from sa_nnsight.paths import Places, locate
from sa_nnsight.reading import Order, Tap, eager, in_order, measure_order, tap_of
from sa_nnsight.requests import Reads, Server, Values
from sa_nnsight.weights import n_heads
from sa_nnsight.wire import Traffic, Wire
from sa_plugin import reducers, tokenise
from sa_plugin.checks import LIMITS
from sa_plugin.data import Sample
from sa_plugin.host import Batch, HostInfo, OutputProjection, Point, Reduce, Site
from sa_plugin.structure import NORMS, RAW, structure

if TYPE_CHECKING:
    from sa_nnsight.capabilities import Capabilities

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

    def batches(self, samples: Sequence[Sample], *, batch_tokens: int | None = None) -> list[Batch]:
        """Samples ready for the model; see `NNsightHost.batches`."""
        return self.reader.batches(samples, batch_tokens=batch_tokens)

    def hook_name(self, site: Site) -> str:
        """Nnsight's path of a site."""
        return self.reader.hook_name(site)

    def read(self, batch: Batch, sites: Sequence[Site], reduce: Reduce) -> dict[str, Tensor]:
        """One batch; see `read_many`."""
        ((_, found),) = self.read_many([batch], sites, lambda _: reduce)
        return found

    def read_many(
        self, batches: Sequence[Batch], sites: Sequence[Site], reducer: Callable[[Batch], Reduce]
    ) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        """Run batches on the server, several a request, and yield what was kept, in order.

        Raises:
            TypeError: A reducer is none of `sa_plugin.reducers`.
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
            self.server, lambda: [dict(batch.inputs) for batch in part], taps, jobs,
            self.info.n_heads, f"{self.info.fingerprint} {self.info.dtype}",
        )  # fmt: skip

    def capabilities(self) -> Capabilities:
        """What the server lets a client do, from three requests; ask once."""
        from sa_nnsight.capabilities import probe

        return probe(self)

    def output_projection(self, layer: int) -> OutputProjection:
        """W_O and b_O, asked of the server by calling the projection on an identity and on zero.

        Exact to the rounding of W + b.
        """
        from sa_nnsight.capabilities import recover_projection

        self.reader.tap(Site(layer, "z"))
        found: OutputProjection = recover_projection(self, layer)
        return found


def refuse_rows(jobs: Sequence[Any]) -> None:
    """Refuse what would send activations home.

    Raises:
        ValueError: A reducer stores train rows.
    """
    for job in jobs:
        if isinstance(job, partial) and job.func is reducers.train and (
            job.keywords.get("stored") is not None
        ):  # fmt: skip
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
    batch_tokens: int = 2048,
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
        batch_tokens: Default size of batches, padding included.
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
    if padding_side not in get_args(tokenise.PaddingSide):
        raise ValueError(f"padding_side {padding_side!r} is unknown: use 'left' or 'right'.")
    if traces < 1:
        raise ValueError(f"traces is {traces}: give 1 or more.")
    patience = Patience(at_once, tries, back_off, timeout)
    session.register()
    places = locate(model._module, paths)
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    tokenise.check_tokenizer(tokenizer)
    traffic = Traffic()
    runner = _runner(Journal(journal), patience, traffic)
    there, found = _server(model, places, traffic, server, runner)
    order = _order(model, places, tokenizer)
    info = _describe(there, places, order, tokenizer, runner, fingerprint or found)
    side = cast(tokenise.PaddingSide, padding_side)
    reader = NNsightHost(model, info, places, order, tokenizer, side, batch_tokens)
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
        return server, remote_weights.fingerprint(
            places, lambda where: _now(runner, Values(server, where))[0]
        )
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
    taps = [
        tap_of(model, places, k, part) for k in range(places.n_layers) for part in _parts(places)
    ]
    modules = {tap.path: model.get(tap.path)._module for tap in taps}
    ids = torch.from_numpy(tokenise.encode(tokenizer, [tokenise.PROBE_TEXT])[0].ids)[None]
    device = next(places.root.parameters()).device
    with eager(places.root):
        return measure_order(places.root, modules, {"input_ids": ids.to(device)})


def _parts(places: Places) -> list[str]:
    norms = NORMS if places.has("norm1") and places.has("norm2") else ()
    return [*get_args(Point), RAW, *norms]


def _describe(
    server: Server,
    places: Places,
    order: Order,
    tokenizer: Any,
    runner: Runner,
    fingerprint: str,
) -> HostInfo:
    """What a request over a short text, and its first tokens alone, say about the model."""
    model, heads = server.model, n_heads(places)
    blocks = sorted({0, places.n_layers // 2, places.n_layers - 1})
    parts = [part for part in _parts(places) if part != "pattern"]
    taps = {tap_of(model, places, k, part): (k, part) for k in blocks for part in parts}
    ordered = [(taps[tap], tap) for tap in in_order(order, list(taps))]
    # Two points may be one place (attn_out is the projection's output, say).
    twins = {(k, p): taps[tap_of(model, places, k, p)] for k in blocks for p in parts}
    ids = torch.from_numpy(tokenise.encode(tokenizer, [tokenise.PROBE_TEXT])[0].ids)[None]
    if ids.shape[1] < 3:
        raise ValueError(f"the tokenizer makes {ids.shape[1]} tokens of {tokenise.PROBE_TEXT!r}.")
    short = ids[:, : ids.shape[1] // 2]
    inputs = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in (ids, short)]
    ask = Reads(server, lambda: inputs, ordered, [beside.pick] * 2, heads)
    # Not from the journal: the model under this name may have changed.
    whole, start = _now(runner, ask)
    found = {(k, p): whole[f"{a} {b}"] for (k, p), (a, b) in twins.items()}
    dtype = str(whole["format"].dtype).removeprefix("torch.")
    read = [{part: found[k, part] for part in parts} for k in blocks]
    block, _ = structure(places.architecture, read, LIMITS.get(dtype, LIMITS["float32"]))
    last = f"{blocks[-1]} resid_post"
    n = short.shape[1]
    gap = (whole[last][:, :n] - start[last]).abs().max() / start[last].abs().max()
    causal = bool(gap < 1e-2)
    return HostInfo(
        "nnsight", model_name(model, places), places.architecture, places.n_layers,
        found[0, "resid_pre"].shape[-1], heads, found[0, "z"].shape[-1], block, causal,
        tokenise.puts_special_first(tokenizer), "none", dtype,
        fingerprint,
        tokenise.digest(tokenizer),
    )  # fmt: skip


def _now(runner: Runner, request: Any) -> Result:
    (found,) = Runner(
        Journal(None), runner.patience, runner.translate, runner.retried, runner.reused
    ).run([request])
    return found
