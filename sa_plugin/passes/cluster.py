"""Blocks on a cluster of Ray: actors that hold an attached model each, and carry nothing else.

Ray places the actors and hands them numbers of blocks. An actor reads its block, runs it and writes it
itself, by the function that a shard in a shell calls, so that corpus, activations and scores never pass
through Ray; what comes back is what the block's record says. A block is done by whoever is free.

An actor that is lost, with its process or with its node, loses the block it was at: another one does
that block, and a new actor joins as soon as the cluster has room for it. A block that takes actors with
it again and again is named and ends the work. What is written stays, and is not done again.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sa_plugin._check import require, require_known
from sa_plugin._face import face
from sa_plugin.host.protocol import Host

MOST_LOSSES = 3
"""So many actors may die at one block, and so many in a row before they are ready."""

REACHED_WITHIN = 20.0
"""Seconds in which a cluster that has an address answers."""

# What an actor does with the number, or the name, of a block.
Work: TypeAlias = Callable[[Any], Any]


@face
@dataclass(frozen=True)
class RayPool:
    """A pool of actors of Ray.

    Attributes:
        workers: Actors, each with a model of its own.
        num_cpus: Of each; a fraction is passed through. Its torch runs on so many threads, at least one:
            equal numbers to the bit need equal threads.
        num_gpus: Of each; .25 lets four of them share one.
        address: Of a running cluster, such as "auto" or "ray://head:10001". None is the one that this
            process is connected to or that RAY_ADDRESS names, else one is begun on this machine.

    Raises:
        ValueError: A number is out of range.
    """

    workers: int = 2
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}: give 1 or more.")
        for name in ("num_cpus", "num_gpus"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}: give 0 or more.")


class LostWorkersError(RuntimeError):
    """Actors died again and again at the same work."""


class _Actor:
    """One actor: the work, made where it runs."""

    _work: Work | None = None

    def begin(self, make: Callable[[], Work], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._work = make()

    def work(self, block: Any) -> Any:
        if self._work is None:
            raise RuntimeError("begin comes first.")
        return self._work(block)


Engine: TypeAlias = Literal["here", "ray"] | RayPool


def attaching(host: Host | Callable[[], Host], engine: Engine) -> Callable[[], Host]:
    """How whoever does the work comes to a model.

    Raises:
        TypeError: The workers of an engine are to have the model that is attached in this process.
        ValueError: There is no such engine.
    """
    if isinstance(engine, str):
        require_known("engine", engine, ("here", "ray"))
    if not isinstance(host, Host):
        return host
    if engine != "here":
        raise TypeError(
            "host is a model that is attached in this process, and workers of Ray need their own: give a "
            "function that attaches it, host=lambda: sa.attach(load()), with everything imported in it."
        )
    return lambda: host


def work_through(
    engine: Engine, make: Callable[[], Work], blocks: Iterator[Hashable]
) -> Generator[tuple[Any, Any], None, None]:
    """Have every block done, here one after another or by Ray; arguments and errors are `on_ray`'s.

    Yields:
        A block's number and what was returned for it.
    """
    if engine != "here":
        yield from on_ray(RayPool() if isinstance(engine, str) else engine, make, blocks)
        return
    work = make()
    for block in blocks:
        yield block, work(block)


def on_ray(
    pool: RayPool, make: Callable[[], Work], blocks: Iterator[Hashable]
) -> Generator[tuple[Any, Any], None, None]:
    """Have every block done by the actors of a pool.

    Args:
        pool: How many, and what each needs.
        make: Sent to each actor and called there once; what it returns is called with a block's number.
        blocks: Numbers or names of blocks; asked for as actors become free.

    Yields:
        A block's number and what was returned for it, in the order in which blocks are done.

    Raises:
        ConnectionError: The cluster cannot be reached.
        ImportError: Ray is not installed.
        LostWorkersError: Actors died again and again; the text names the block.
        TypeError: What `make` holds cannot be sent to another process.
        ValueError: No node has what an actor needs.
    """
    ray = require("ray", "ray", "work on a cluster of Ray")
    _require_sendable(make)
    with _connected(ray, pool):
        _require_room(ray, pool)
        actor = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)(_Actor)
        # What each actor is at: a block, or None while it attaches its model.
        at: dict[Any, tuple[Any, Hashable]] = {}
        actors: set[Any] = set()

        def start() -> None:
            one = actor.remote()
            actors.add(one)
            at[one.begin.remote(make, max(1, int(pool.num_cpus)))] = (one, None)

        def hand(one: Any) -> bool:
            block = lost.pop() if lost else next(blocks, None)
            if block is not None:
                at[one.work.remote(block)] = (one, block)
            return block is not None

        losses: Counter[Hashable] = Counter()
        lost: list[Hashable] = []
        idle: list[Any] = []
        first = next(blocks, None)
        if first is None:
            return
        lost.append(first)
        try:
            for _ in range(pool.workers):
                start()
            while lost or any(block is not None for _, block in at.values()):
                while lost and idle:
                    hand(idle.pop())
                (done,), _ = ray.wait(list(at), num_returns=1)
                one, block = at.pop(done)
                try:
                    found = ray.get(done)
                except ray.exceptions.RayActorError as error:
                    actors.discard(one)
                    losses[block] += 1
                    _refuse_losses(losses[block], block, error)
                    if block is not None:
                        lost.append(block)
                    start()
                    continue
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                losses[None] = 0
                if block is not None:
                    yield block, found
                if not hand(one):
                    idle.append(one)
        finally:
            for one in actors:
                ray.kill(one)


def _refuse_losses(n: int, block: Hashable, error: Exception) -> None:
    if n < MOST_LOSSES:
        return
    where = "before they were ready" if block is None else f"at block {block}"
    raise LostWorkersError(
        f"{n} actors died {where}; the last: {str(error).splitlines()[0]} Most often memory ran out: give "
        "each more with fewer workers= to a node, or make blocks smaller. Blocks that are done stay done."
    ) from error


def _require_sendable(make: Callable[[], Work]) -> None:
    send = require("ray", "ray", "work on a cluster of Ray").cloudpickle.dumps
    try:
        send(make)
    except Exception as error:
        raise TypeError(
            f"what the actors need cannot be sent to them ({type(error).__name__}: {str(error)[:120]}): "
            "give the host as a function that attaches it, host=lambda: sa.attach(load()), and the corpus as "
            "files or a data set that lies on disk."
        ) from error


@contextmanager
def _connected(ray: Any, pool: RayPool) -> Iterator[None]:
    """The cluster, left as it was found."""
    if ray.is_initialized():
        yield
        return
    try:
        _knock(pool.address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(address=pool.address, logging_level="ERROR", log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConnectionError(
            f"no cluster of Ray answers at {pool.address or 'RAY_ADDRESS'!r} "
            f"({str(error).splitlines()[0][:160]}): start one (ray start --head), name its address, or leave "
            "it out for one on this machine."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ask at host and port whether anybody is there: Ray would ask for many minutes.

    Raises:
        OSError: Nobody is.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_WITHIN).close()


def _require_room(ray: Any, pool: RayPool) -> None:
    """Refuse what no node has: Ray would wait for it without an end."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, wanted, argument in (("CPU", pool.num_cpus, "num_cpus"), ("GPU", pool.num_gpus, "num_gpus")):
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if wanted > most:
            raise ValueError(
                f"{argument} is {wanted:g} for each worker, and no node of the cluster has more than "
                f"{most:g}: ask for at most that, or start a node that has it."
            )
