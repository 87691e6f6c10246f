"""Many requests, a few at once, in order, again where that is worth it, none twice.

A request is submitted and asked after until it is done. At most `at_once` are under way. Results
come out in the order of the requests, so that sums over them do not depend on the server's order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from sa_nnsight.journal import Journal, Result

FIRST_WAIT, LONGEST_WAIT = 0.02, 2.0


@runtime_checkable
class Request(Protocol):
    """Something to submit."""

    @property
    def key(self) -> str:
        """Hash of all that decides its result."""

    def submit(self) -> str:
        """Send it; returns the job's id."""

    def poll(self, job_id: str) -> Result | None:
        """Its result, or None while it runs; raises what the server said when it failed."""


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes:
        at_once: Requests under way at the same time.
        tries: Times a request is sent before its failure is the caller's.
        back_off: Seconds before the second try; doubled for each further one.
        timeout: Seconds a request may take, from its submission.
    """

    at_once: int = 4
    tries: int = 4
    back_off: float = 1.0
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for name in ("at_once", "tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 or more.")
        for name in ("back_off", "timeout"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)} seconds: give 0 or more.")


class RemoteTimeout(TimeoutError):
    """A job did not finish in time; it may still run, under the id in the text."""


@dataclass
class _UnderWay:
    request: Request
    job_id: str | None = None
    since: float = 0.0
    tries: int = 0
    not_before: float = 0.0
    result: Result | None = None


@dataclass
class Runner:
    """Runs requests.

    Attributes:
        journal: Where results are kept.
        patience: How long to try.
        translate: Turns what the server or the network raised into what the caller is told, and
            whether another try is worth it.
        retried: Called for each request that is sent again.
        reused: Called for each request that the journal answers.
        clock, sleep: Of this machine.
    """

    journal: Journal
    patience: Patience
    translate: Callable[[Exception], tuple[Exception, bool]]
    retried: Callable[[], None] = lambda: None
    reused: Callable[[], None] = lambda: None
    clock: Callable[[], float] = field(default=time.monotonic)
    sleep: Callable[[float], None] = field(default=time.sleep)

    def run(self, requests: Sequence[Request]) -> Iterator[Result]:
        """Results, in the order of the requests.

        Raises:
            RemoteTimeout: A request took longer than `patience.timeout`.
            Exception: What `translate` made of a failure that is not worth another try, or was
                tried often enough. What finished before is in the journal.
        """
        waiting = list(requests)
        under_way: list[_UnderWay] = []
        wait = FIRST_WAIT
        while waiting or under_way:
            while waiting and len(under_way) < self.patience.at_once:
                under_way.append(self._begin(waiting.pop(0)))
            # Every one moves on, so that none waits for the first.
            moved = [self._step(one) for one in under_way]
            while under_way and under_way[0].result is not None:
                result = under_way.pop(0).result
                assert result is not None
                yield result
            wait = FIRST_WAIT if any(moved) else min(wait * 1.5, LONGEST_WAIT)
            if under_way and not any(moved):
                self.sleep(wait)

    def _begin(self, request: Request) -> _UnderWay:
        one = _UnderWay(request, result=self.journal.result(request.key))
        if one.result is not None:
            self.reused()
        else:
            one.job_id = self.journal.job(request.key)
            one.since = self.clock()
        return one

    def _step(self, one: _UnderWay) -> bool:
        """Submit or ask once; whether anything happened."""
        if one.result is not None or self.clock() < one.not_before:
            return False
        try:
            if one.job_id is None:
                one.tries += 1
                one.since = self.clock()
                one.job_id = one.request.submit()
                self.journal.note(one.request.key, one.job_id)
                return True
            one.result = one.request.poll(one.job_id)
        except Exception as error:
            self._failed(one, error)
            return True
        if one.result is not None:
            self.journal.store(one.request.key, one.result)
        elif self.clock() - one.since > self.patience.timeout:
            raise RemoteTimeout(
                f"job {one.job_id} did not finish within {self.patience.timeout:g} s. It may still "
                "be queued or running: run the same call again with the same journal= to pick it "
                "up by its id, give a longer timeout=, or send fewer traces a request."
            )
        return one.result is not None

    def _failed(self, one: _UnderWay, error: Exception) -> None:
        told, again = self.translate(error)
        # A job from an earlier run may be gone from the server: it is sent anew, once for free.
        picked_up = one.tries == 0
        self.journal.forget(one.request.key)
        if not picked_up and (not again or one.tries >= self.patience.tries):
            raise told from error
        one.job_id = None
        one.not_before = self.clock() + self.patience.back_off * 2 ** max(0, one.tries - 1)
        self.retried()
