"""Requests to a server: the blocks of code that are sent, and what makes each of them repeatable.

Nothing is imported inside a block, and it refers to names of its function only, so that nnsight
ships its source, the source of the two registered modules (`sa_nnsight.jobs.SHIPPED`), and plain
tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import nnsight
import torch
from torch import Tensor

from sa_nnsight import beside
from sa_nnsight.answers import checked_answer
from sa_nnsight.jobs import SHIPPED, Result, digest
from sa_nnsight.places import EnvoyPlaces, Tap
from sa_nnsight.wire import Server, Wire
from sa_plugin.host import reducers

# Of what is in a journal: results of other versions are not reused.
VERSION = 3
Inputs = Mapping[str, Tensor]


def ship_modules() -> None:
    """Have nnsight ship what runs on the server, so that this package need not be there."""
    for module in SHIPPED:
        nnsight.register(module)


@dataclass(frozen=True, eq=False)
class Reads:
    """Several traces, each read and reduced.

    Attributes:
        server: Where.
        inputs: Makes what each trace is called with, when it is sent.
        taps: What is read, in the order of the forward pass.
        jobs: Reducer of each trace.
        heads: Query heads of an attention layer.
        weights: Fingerprint and number format: other weights may take over a model's name.
    """

    server: Server
    inputs: Callable[[], Sequence[Mapping[str, torch.Tensor]]]
    taps: Sequence[tuple[tuple[int, str], Tap]]
    jobs: Sequence[Any]
    heads: int
    weights: str = ""

    @cached_property
    def key(self) -> str:
        """Hash of all that decides the result."""
        name = self.server.model.to_model_key()
        taps = [(site, tuple(tap)) for site, tap in self.taps]
        return digest(VERSION, name, self.weights, taps, list(self.inputs()), list(self.jobs), self.heads)

    def submit(self) -> str:
        """Send it."""
        model, inputs = self.server.model, self.inputs()
        self.server.traffic.add(traces=len(self.jobs))
        return self.server.submitted(
            lambda wire: submit_reads(
                model, wire, inputs, self.taps, self.jobs, self.heads, early=not self.server.sandboxed
            )
        )

    def poll(self, job_id: str) -> Result | None:
        """Its result, or None while it runs."""
        found = self.server.answer(job_id)
        return None if found is None else checked_answer(found, self.jobs)


@dataclass(frozen=True, eq=False)
class Once:
    """A request that is never answered from a journal.

    Attributes:
        server: Where.
        send: Sends it over a connection.
    """

    server: Server
    send: Callable[[Wire], None]
    key: str = ""

    def submit(self) -> str:
        """Send it."""
        return self.server.submitted(self.send)

    def poll(self, job_id: str) -> Result | None:
        """Its result, or None while it runs."""
        found = self.server.answer(job_id)
        return None if found is None else checked_answer(found)


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
    rows = [len(next(iter(given.values()))) for given in inputs]
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
                    read[site] = shaped(site, value, item, heads, rows[k])
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


def send_projection(places: EnvoyPlaces, layer: int, inputs: Inputs, backend: Any) -> None:
    """Ask what one block's output projection makes of zero and of an identity."""
    model, projection = places.model, places.model.get(places.tap((layer, "z")).path)
    width = places.n_heads * places.d_head
    eye, zeros, save, no_grad = torch.eye, torch.zeros, nnsight.save, torch.no_grad
    with model.session(backend=backend):
        with no_grad(), model.trace(**inputs) as tracer:
            z = projection.input
            image = projection(eye(width).to(z))
            zero = projection(zeros(1, width).to(z))[0]
            kept = save([{"image": image, "zero": zero}])
            tracer.stop()
        result = save(kept)  # noqa: F841 (handed back by its name)


def send_weights(places: EnvoyPlaces, inputs: Inputs, backend: Any) -> None:
    """Ask whether a module's weights can be read."""
    model, save = places.model, nnsight.save
    module = places.module("o_proj", 0)
    tensor = torch.tensor
    with model.session(backend=backend):
        weight = module.weight
        meta = weight.is_meta
        able = not meta and bool(weight.abs().sum() > 0)
        result = save([{"able": tensor(able), "sandboxed": tensor(meta)}])  # noqa: F841


def send_gradients(places: EnvoyPlaces, inputs: Inputs, backend: Any) -> None:
    """Ask whether gradients reach the first block from the last."""
    model, save, module = places.model, nnsight.save, places.module("o_proj", 0)
    first, last = (model.get(places.tap((k, "resid_post")).path) for k in (0, places.n_layers - 1))
    tensor, grad = torch.tensor, torch.autograd.grad
    with model.session(backend=backend):
        meta = module.weight.is_meta
        with model.trace(**inputs) as tracer:
            start = first.output
            start = start[0] if isinstance(start, tuple) else start
            # Parameters are frozen there, so the graph starts at what the first block gives.
            start.requires_grad_(True)
            end = last.output
            end = end[0] if isinstance(end, tuple) else end
            flows = save([grad((end * end).sum(), start)[0].abs().sum() > 0])
            tracer.stop()
        result = save([{"able": flows[0], "sandboxed": tensor(meta)}])  # noqa: F841


def send_probabilities(places: EnvoyPlaces, inputs: Inputs, backend: Any) -> None:
    """Ask whether unfused attention hands out its probabilities."""
    model, save, root = places.model, nnsight.save, places.model._module
    tap = places.tap((0, "pattern"))
    module, attention, item = places.module("o_proj", 0), model.get(tap.path), tap.item or 1
    tensor, no_grad = torch.tensor, torch.no_grad
    with model.session(backend=backend):
        meta = module.weight.is_meta
        before = root.config._attn_implementation
        root.set_attn_implementation("eager")
        with no_grad(), model.trace(**inputs) as tracer:
            out = attention.output
            able = save([isinstance(out, tuple) and len(out) > item and out[item] is not None])
            tracer.stop()
        root.set_attn_implementation(before)
        result = save([{"able": tensor(able[0]), "sandboxed": tensor(meta)}])  # noqa: F841
