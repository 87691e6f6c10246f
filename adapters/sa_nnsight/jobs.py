"""Many requests, a few at once, in order, again where that is worth it, none twice.

A request is submitted and asked after until it is done. At most `at_once` are under way. Results
come out in the order of the requests, so that sums over them do not depend on the server's order.

Finished requests are kept on disk, so that a run that was cut off goes on where it stopped. A
request's key is a hash of all that decides its result: model, sites, inputs and the reducer with
its tensors. The same call finds its own results; any other finds none. Files are safetensors, one a
request, written whole or not at all, and bound to their request: an entry says whose it is and what
digest its tensors have, and one that was edited, cut or renamed is refused by name. The journal
holds what reducers keep (scores, sums, maxima) and ids of submitted jobs; no text, no activation
that a reducer does not return, no API key.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sa_plugin._face import face
from sa_plugin._files import (
    DamagedFileError,
    read_object,
    require_sealed,
    sealed,
    writable_folder,
    write_bytes,
    write_text,
)

Result = list[dict[Any, Tensor]]
_AGAIN = "delete it, and the request is sent again"
# Modules that run on the server, shipped by their source.
SHIPPED = ("sa_plugin.host.reducers", "sa_nnsight.beside")


class Journal:
    """A folder of results by key.

    Args:
        folder: Made if missing; None keeps nothing.

    Raises:
        NotADirectoryError: The path is a file.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            if self.folder.exists() and not self.folder.is_dir():
                raise NotADirectoryError(f"journal={str(folder)!r} is a file: name a folder.")
            writable_folder(self.folder)

    def result(self, key: str) -> Result | None:
        """What a finished request left, or None.

        Raises:
            DamagedFileError: The entry is damaged, or of another request; the text names the file.
        """
        path = self._path(key, "safetensors")
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise DamagedFileError(f"{path} is damaged ({error}): {_AGAIN}.") from error
        if about != {"request": key, "digest": digest(flat)}:
            raise DamagedFileError(
                f"{path} is damaged, or the answer to another request (its content is not what was "
                f"written): {_AGAIN}."
            )
        return _unflatten(flat)

    def store(self, key: str, result: Result) -> None:
        """Keep a finished request."""
        path = self._path(key, "safetensors")
        if path is None:
            return
        flat = _flatten(result)
        write_bytes(path, save(flat, {"request": key, "digest": digest(flat)}))
        self.forget(key)

    def job(self, key: str) -> str | None:
        """The id of a submitted job that had not finished, or None.

        Raises:
            DamagedFileError: The note is damaged, or of another request; the text names the file.
        """
        path = self._path(key, "json")
        if path is None:
            return None
        try:
            found = read_object(path, _AGAIN)
        except FileNotFoundError:
            # There was none, or another run that shares the journal is just done with the job.
            return None
        require_sealed(found, path, _AGAIN)
        if found.get("request") != key:
            raise DamagedFileError(f"{path} is the note of another request: {_AGAIN}.")
        return str(found["job_id"])

    def note(self, key: str, job_id: str) -> None:
        """Remember a submitted job."""
        path = self._path(key, "json")
        if path is not None:
            write_text(path, json.dumps(sealed({"request": key, "job_id": job_id})) + "\n")

    def forget(self, key: str) -> None:
        """A job is done with."""
        path = self._path(key, "json")
        if path is not None:
            path.unlink(missing_ok=True)

    def _path(self, key: str, suffix: str) -> Path | None:
        return self.folder / f"{key[:32]}.{suffix}" if self.folder and key else None


def digest(*parts: Any) -> str:
    """SHA-256 of tensors, numbers, strings, functions by name, and nestings of them.

    Raises:
        TypeError: Something else is in it.
    """
    state = hashlib.sha256()
    for part in parts:
        _feed(state, part)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        whole = value.detach().cpu().contiguous()
        state.update(f"tensor {whole.dtype} {tuple(whole.shape)}".encode())
        state.update(whole.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, functools.partial):
        _feed(state, [value.func, value.args, dict(value.keywords)])
    elif isinstance(value, Mapping):
        state.update(f"map {len(value)}".encode())
        for key in sorted(value, key=repr):
            _feed(state, key)
            _feed(state, value[key])
    elif isinstance(value, str | bytes | int | float | None):
        state.update(f"{type(value).__name__} {value!r};".encode())
    elif isinstance(value, Sequence):
        state.update(f"list {len(value)}".encode())
        for one in value:
            _feed(state, one)
    elif getattr(value, "__module__", None) in SHIPPED and "<" not in value.__qualname__:
        state.update(f"function {value.__module__}.{value.__qualname__}".encode())
    else:
        name = getattr(value, "__qualname__", type(value).__name__)
        raise TypeError(
            f"{name} cannot be sent to a server, which takes the functions of "
            f"{' and '.join(SHIPPED)} with tensors, tuples, strings and numbers. What you called "
            "needs the model on this machine: attach it without remote=True."
        )


def _flatten(result: Result) -> dict[str, Tensor]:
    """One flat dictionary of dense tensors; a key is written as JSON, since it may be a tuple."""
    flat = {"number": torch.tensor(len(result))}
    for k, one in enumerate(result):
        for key, value in one.items():
            path = f"{k}/{json.dumps(key)}"
            if value.is_sparse:
                value = value.coalesce()
                flat[f"{path}/sparse/indices"] = value.indices()
                flat[f"{path}/sparse/values"] = value.values()
                flat[f"{path}/sparse/size"] = torch.tensor(value.shape)
            else:
                flat[path] = value.contiguous()
    return flat


def _unflatten(flat: dict[str, Tensor]) -> Result:
    result: Result = [{} for _ in range(int(flat.pop("number")))]
    for path, value in flat.items():
        at, _, rest = path.partition("/")
        key, sparse, part = rest.partition("/sparse/")
        if not sparse:
            result[int(at)][_as_key(json.loads(key))] = value
        elif part == "indices":
            size = tuple(flat[f"{at}/{key}/sparse/size"].tolist())
            values = flat[f"{at}/{key}/sparse/values"]
            result[int(at)][_as_key(json.loads(key))] = torch.sparse_coo_tensor(
                value, values, size, check_invariants=True
            ).coalesce()
    return result


def _as_key(written: Any) -> Any:
    return tuple(map(_as_key, written)) if isinstance(written, list) else written


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


@face
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
                "up by its id, give Patience(timeout=...) a longer time, or send fewer traces a request."
            )
        return one.result is not None

    def _failed(self, one: _UnderWay, error: Exception) -> None:
        told, again = self.translate(error)
        # A job from an earlier run may be gone from the server: it is sent anew, once for free.
        picked_up = one.tries == 0
        self.journal.forget(one.request.key)
        if not picked_up and (not again or one.tries >= self.patience.tries):
            # A fault names its own cause where a key could not be struck from the error.
            raise told from (told.__cause__ or error)
        one.job_id = None
        one.not_before = self.clock() + self.patience.back_off * 2 ** max(0, one.tries - 1)
        self.retried()
