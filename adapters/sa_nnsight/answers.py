"""What came back from a server, held against what was asked for.

An answer is a list with a dictionary of tensors for each trace. Which names there are, and how many rows
and columns, follows from the request: a row for each token that is neither padding nor special, one for
each sample, a column for each layer and vector. Numbers are finite; -inf is the highest score where no
token is evidence. What a reducer of another kind keeps is held to rows, samples and finiteness alone.

A server that answers wrongly on purpose can answer rightly in shape: this finds faults, not fraud.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sa_nnsight.faults import Fault, RemoteFault
from sa_nnsight.jobs import Result
from sa_plugin.host import reducers

Shape = tuple[int | None, ...]
GROUPS = ("rows", "sums", "samples", "picked")


def checked_answer(answer: Any, jobs: Sequence[Any] = ()) -> Result:
    """An answer, once it is known to be one.

    Args:
        answer: As it was unpacked.
        jobs: Reducer of each trace; none where only types can be known.

    Raises:
        RemoteFault: It is none; the text says what is wrong.
    """
    for problem in _problems(answer, jobs):
        told = (
            f"the server's answer is not what was asked for: {problem}. Send it again; if it comes again, "
            "the server's versions differ from this machine's: from nnsight import ndif; "
            "print(ndif.compare())."
        )
        raise RemoteFault(Fault("answer", told, False))
    found: Result = answer
    return found


def _problems(answer: Any, jobs: Sequence[Any]) -> Iterator[str]:
    if not isinstance(answer, list) or not all(isinstance(one, dict) for one in answer):
        yield f"it is a {type(answer).__name__}, expected a list of dictionaries"
    if jobs and len(answer) != len(jobs):
        yield f"it holds {len(answer)} results, expected {len(jobs)}"
    for k, one in enumerate(answer):
        for name, value in one.items():
            if not isinstance(value, Tensor):
                yield f"{name!r} of result {k} is a {type(value).__name__}, expected a tensor"
            yield from _numbers(name, value, k)
    for k, job in enumerate(jobs):
        if getattr(job, "func", None) is reducers.reduce:
            yield from _reduced(answer[k], job.keywords, k, last=k == len(jobs) - 1)


def _numbers(name: Any, value: Tensor, k: int) -> Iterator[str]:
    # Padding may hold anything: what is read whole is cut later, by whoever asked for it.
    if not isinstance(name, tuple) or name[0] not in GROUPS:
        return
    dense = value.coalesce().values() if value.is_sparse else value
    if dense.is_floating_point() and (dense.isnan().any() or dense.isposinf().any()):
        yield f"{name!r} of result {k} holds NaN or Inf: have the model loaded in float32 or bfloat16"


def _reduced(one: Mapping[Any, Tensor], given: Mapping[str, Any], k: int, *, last: bool) -> Iterator[str]:
    valid: Tensor = given["valid"]
    rows, samples = int(valid.sum()), len(valid)
    keep = one.get(reducers.KEEP)
    if keep is None or keep.dtype != torch.bool or tuple(keep.shape) != (rows,):
        yield f"result {k} does not say which of its {rows} tokens are evidence"
    for name, value in one.items():
        at = name[1] if isinstance(name, tuple) and len(name) == 3 and name[0] in GROUPS else None
        if not isinstance(at, int) or not -1 <= at < len(given["jobs"]):
            yield f"{name!r:.60} of result {k} was not asked for"
            continue
        length = {"rows": rows, "samples": samples}.get(name[0])
        if length is not None and (value.ndim == 0 or len(value) != length):
            yield f"{name!r:.60} of result {k} has shape {list(value.shape)}, expected {length} {name[0]}"
    for n, job in enumerate(given["jobs"]):
        expect = EXPECTED.get(getattr(job, "func", None))
        for (group, name), shape in expect(job.keywords).items() if expect is not None else ():
            # Sums come with the last of several batches.
            found = one.get((group, n, name))
            if found is None and (group != "sums" or last):
                yield f"result {k} lacks {name!r:.60} of {group}"
            if found is not None and not _fits(found.shape, shape):
                yield f"{name!r:.60} of result {k} has shape {list(found.shape)}, expected {list(shape)}"


def _fits(found: Sequence[int], expected: Shape) -> bool:
    return len(found) == len(expected) and all(m in (None, n) for m, n in zip(expected, found, strict=True))


Expected = dict[tuple[str, Any], Shape]


def _of_scores(given: Mapping[str, Any]) -> Expected:
    found: Expected = {}
    for k, (layers, _, sets) in enumerate(given["banks"]):
        names = [name for name in sets if name != "cls" or given.get("class_index") is not None]
        columns = {name: (len(layers), len(sets[name][0][0])) for name in names}
        found["rows", k] = (None, *columns.pop("token"))
        found |= {("samples", (name, k)): (None, *shape) for name, shape in columns.items()}
    return found


def _of_maxima(given: Mapping[str, Any]) -> Expected:
    columns = (len(given["layers"]), len(given["vectors"][0][0]))
    best: Shape = (None, given.get("top", 1), *columns)
    found: Expected = {("samples", "best"): best, ("samples", "count"): (None,)}
    return found | ({("samples", "place"): best} if given.get("places") else {})


def _of_histogram(given: Mapping[str, Any]) -> Expected:
    columns = len(given["layers"]) * len(given["vectors"][0][0])
    return {("sums", "bins"): (2 * columns * reducers.SCORE_BINS,)}


def _of_above(given: Mapping[str, Any]) -> Expected:
    columns = len(given["cuts"])
    found: Expected = {("picked", name): (None,) for name in (reducers.AT, "column", "score")}
    found |= {("samples", name): (None, columns) for name in ("best", "place")}
    return found | {("samples", "count"): (None,), ("sums", "bins"): (columns * reducers.TAIL_BINS,)}


EXPECTED: dict[Any, Callable[[Mapping[str, Any]], Expected]] = {
    reducers.token_scores: _of_scores,
    reducers.maxima: _of_maxima,
    reducers.histogram: _of_histogram,
    reducers.above: _of_above,
}
