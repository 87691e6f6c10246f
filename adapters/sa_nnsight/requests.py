"""What can be asked of a server, as requests that can be hashed, sent, asked after and repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from sa_nnsight import session
from sa_nnsight.journal import Result, digest
from sa_nnsight.reading import Tap
from sa_nnsight.wire import Traffic, Wire

# Of what is in a journal: results of other versions are not reused.
VERSION = 1


@dataclass(frozen=True, eq=False)
class Server:
    """Where a model is.

    Attributes:
        model: nnsight's model, its weights elsewhere.
        traffic: Counts what is sent.
        sandboxed: Whether it runs requests away from the weights.
        wire: Makes a connection, to submit with or, given an id, to ask after a job.
    """

    model: Any
    traffic: Traffic
    sandboxed: bool
    wire: Callable[[str | None], Wire]

    def submitted(self, send: Callable[[Wire], None]) -> str:
        """The id of what was sent."""
        wire = self.wire(None)
        send(wire)
        return str(wire.job_id)

    def answer(self, job_id: str) -> Result | None:
        """A job's result, or None while it runs."""
        found = self.wire(job_id).poll()
        if found is None:
            return None
        result: Result = found["result"]
        return result


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
        return digest(
            VERSION, name, self.weights, taps, list(self.inputs()), list(self.jobs), self.heads
        )

    def submit(self) -> str:
        """Send it."""
        model, inputs = self.server.model, self.inputs()
        self.server.traffic.add(traces=len(self.jobs))
        return self.server.submitted(
            lambda wire: session.submit_reads(
                model,
                wire,
                inputs,
                self.taps,
                self.jobs,
                self.heads,
                early=not self.server.sandboxed,
            )
        )

    def poll(self, job_id: str) -> Result | None:
        """Its result, or None while it runs."""
        return self.server.answer(job_id)


@dataclass(frozen=True, eq=False)
class Values:
    """Some values of the weights."""

    server: Server
    places: Mapping[str, torch.Tensor]

    @property
    def key(self) -> str:
        """Weights may be replaced under one name, so this is never answered from a journal."""
        return ""

    def submit(self) -> str:
        """Send it."""
        return self.server.submitted(
            lambda wire: session.submit_values(self.server.model, wire, self.places)
        )

    def poll(self, job_id: str) -> Result | None:
        """Its result, or None while it runs."""
        return self.server.answer(job_id)
