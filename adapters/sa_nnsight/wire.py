"""One request to an NDIF server: sent once, asked after by its id, every byte counted.

Requests are never waited for over a socket: they are submitted, and their status is asked for, so
that a job can be left and picked up by id, and several can run at once.

What the count leaves out: HTTP headers, and status answers, a few hundred bytes each. A result is
unpickled as nnsight does it, so the server is trusted by the client.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import zstandard
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.ndif import pull_env
from nnsight.schema.request import RequestModel

# nnsight's own.
LEVEL = 6


@dataclass
class Traffic:
    """What went over the wire, compressed as it was sent.

    Attributes:
        sent, received: Bytes of requests and results.
        requests: Requests sent, retries included.
        traces: Forward passes asked for.
        reused: Requests answered from the journal instead.
        retried: Requests that were sent again.
    """

    sent: int = 0
    received: int = 0
    requests: int = 0
    traces: int = 0
    reused: int = 0
    retried: int = 0
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **counts: int) -> None:
        """Add to some counts."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def __str__(self) -> str:
        return (
            f"{self.sent:,} bytes sent, {self.received:,} received, {self.requests} requests, "
            f"{self.traces} traces, {self.retried} retried, {self.reused} from the journal"
        )


def refuse_bytecode(blob: bytes) -> None:
    """Refuse what would end the model's process: bytecode of another version of Python.

    Raises:
        TypeError: A function in the request has no source (one of a NamedTuple or dataclass, say).
    """
    if b"_make_function" in blob:
        raise TypeError(
            "the request holds a function without source, which a server with another version of "
            "Python cannot load (its model's process would die): send tensors, tuples, strings, "
            "numbers and functions of modules, no NamedTuple, dataclass or exec'd function."
        )


class Wire(RemoteBackend):
    """nnsight's backend, submitting without waiting.

    Args:
        model_key: Names the deployed model.
        traffic: Counts bytes.
        host: URL of the server; by default nnsight's configuration.
        env: What nnsight sends along for the model.
    """

    def __init__(self, model_key: str, traffic: Traffic, host: str | None = None, env: Any = None) -> None:
        # The key comes from nnsight's configuration or the environment, and stays in nnsight.
        super().__init__(model_key, host=host, env=env, blocking=False)
        self.display.enabled = False
        self.traffic = traffic

    def _serialize(self, tracer: Any) -> bytes:
        pull_env()
        blob: bytes = RequestModel.serialize(tracer, False)
        refuse_bytecode(blob)
        if self.compress:
            blob = zstandard.ZstdCompressor(level=LEVEL).compress(blob)
        self.traffic.add(sent=len(blob), requests=1)
        return blob

    def finalize(self, content: bytes) -> Any:
        """Unpack a result."""
        self.traffic.add(received=len(content))
        return super().finalize(content)


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

    def answer(self, job_id: str) -> Any:
        """What a job left, unchecked, or None while it runs."""
        found = self.wire(job_id).poll()
        return found.get("result", found) if isinstance(found, dict) else found
