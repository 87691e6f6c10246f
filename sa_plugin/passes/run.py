"""One pass over a model for all that wants something of it, and the one loop that collects it.

A question is a `Job`: the sites it reads and, for each batch, a function of what was read and of
which tokens are evidence. That function runs beside the model and keeps four groups of tensors:

| group | first axis | what the loop does |
|---|---|---|
| sums | none: summed over the batch already | adds, in float64 (whole numbers stay whole) |
| rows | tokens of the batch that are neither padding nor special | scatters by row |
| samples | samples of the batch | scatters by sample |
| picked | any number of things, each of some token | joins, with the row of each, in their order |

Rows and samples come out in the order of the data whatever the batches' order; rows only of tokens
that are evidence, which the sink rule decides from the pass itself. Sums are added in the order of
the batches, so that the same batches give the same bits. A host whose model is elsewhere may add
sums of several batches itself, also in float64, and hand them over with the last of these.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin.host import reducers
from sa_plugin.host.protocol import Batch, BulkHost, Host, HostInfo, Reduce, SinkRule, Site
from sa_plugin.passes.layout import Layout

MEMORY_BUDGET = 1 << 30

Sinks: TypeAlias = tuple[tuple[int, ...], str, bool]
Name: TypeAlias = Hashable
# Of what was read, and of which tokens of the batch are evidence.
Reducer: TypeAlias = Callable[[Mapping[Site, Tensor], Bool[Tensor, "batch token"]], reducers.Keeping]


@dataclass(frozen=True, eq=False)
class Job:
    """What one question wants of a pass.

    Attributes:
        sites: What it reads.
        reducer: Makes for each batch the function that keeps something of it, with
            `reducers.keeping`.
        chosen: The rows, ascending, that its rows are of; by default all.
        budget: Bytes of one array above which it lies in a temporary file.
        each: Looks at what each batch keeps of its samples, to refuse it at once.
    """

    sites: Collection[Site]
    reducer: Callable[[Batch], Reducer]
    chosen: Int[np.ndarray, " stored"] | None = None
    budget: int = MEMORY_BUDGET
    each: Callable[[Batch, Mapping[Name, np.ndarray]], None] | None = None


@dataclass(frozen=True, eq=False)
class Kept:
    """What a job kept of a pass, by name.

    Attributes:
        keep: Which rows of the layout are evidence.
        sums: Over all batches.
        rows: Of the chosen rows that are evidence, in the order of the data; bfloat16 as its bits, int16.
        samples: Of every sample, in the order of the data; 0 where a batch kept nothing.
        picked: In the order of the rows that they are of, which `reducers.AT` holds.
    """

    keep: Bool[np.ndarray, " row"]
    sums: dict[Name, Tensor] = field(default_factory=dict)
    rows: dict[Name, Shaped[np.ndarray, "row ..."]] = field(default_factory=dict)
    samples: dict[Name, Shaped[np.ndarray, "sample ..."]] = field(default_factory=dict)
    picked: dict[Name, Shaped[np.ndarray, "entry ..."]] = field(default_factory=dict)


class NonFiniteRowError(ArithmeticError):
    """A row that a job stores is NaN or Inf.

    Attributes:
        name: Of the array.
    """

    def __init__(self, name: Name) -> None:
        self.name = name
        super().__init__(
            f"a row of {name!r} holds NaN or Inf: the model's activations, or the vectors they are held "
            "against, do."
        )


def run_jobs(
    host: Host,
    layout: Layout,
    jobs: Sequence[Job],
    sinks: Sinks | Bool[np.ndarray, " row"],
    *,
    description: str,
    quiet: bool = False,
) -> tuple[Kept, ...]:
    """Run every batch once, for several jobs.

    Costs one forward pass a sample, up to the deepest site of any job.

    Args:
        host: An attached model.
        layout: Of the samples.
        jobs: What is kept.
        sinks: How tokens are judged (`sink_rule`); or the rows of an earlier run that are evidence
            whatever this run's norms, since an intervention must not change which tokens are sinks.
        description: Of the bar.
        quiet: Whether there is none, whatever the host says: a larger walk shows its own.

    Returns:
        For each job what it kept.

    Raises:
        ValueError: An activation is NaN or Inf.
        NonFiniteRowError: A kept row is.
    """
    frozen = sinks if isinstance(sinks, np.ndarray) else None
    rule = None if isinstance(sinks, np.ndarray) else sinks
    sites = {site for job in jobs for site in job.sites} | set(sink_sites(rule[0] if rule else ()))

    def reducer(batch: Batch) -> Reduce:
        return partial(
            reducers.reduce,
            valid=batch.valid,
            sinks=rule,
            frozen=None if frozen is None else layout.mask(batch, frozen),
            jobs=tuple(job.reducer(batch) for job in jobs),
        )

    # Filled batch by batch; every store holds the same array, and reads its own batch's part of it.
    keep = np.zeros(layout.n_rows, dtype=bool)
    stores = [_Store(job, layout, Kept(keep)) for job in jobs]
    for batch, got in _walk(host, layout, sorted(sites), reducer, "" if quiet else description):
        rows = layout.rows(batch)
        # First, since stores look at which of their rows are evidence.
        keep[rows] = got.pop(reducers.KEEP).numpy()
        for k, store in enumerate(stores):
            store.add(batch, rows, {(group, name): v for (group, at, name), v in got.items() if at == k})
    return tuple(store.finished() for store in stores)


def _walk(
    host: Host, layout: Layout, sites: Sequence[Site], reducer: Callable[[Batch], Reduce], description: str
) -> Iterator[tuple[Batch, dict[reducers.Key, Tensor]]]:
    quiet = not host.progress or not description
    # A pass over one text is over before a bar would be of use.
    look = {"desc": description, "unit": "batch", "leave": False, "delay": 0.5}
    with tqdm(total=len(layout.batches), disable=quiet, **look) as bar:
        if isinstance(host, BulkHost):
            found = host.read_many(layout.batches, sites, reducer)
        else:
            found = ((batch, host.read(batch, sites, reducer(batch))) for batch in layout.batches)
        for batch, got in found:
            bar.update()
            yield batch, got


class _Store:
    """The arrays of one job, made when its first batch says their shape and number format."""

    def __init__(self, job: Job, layout: Layout, kept: Kept) -> None:
        self.job, self.kept = job, kept
        self.n_samples = len(layout.bounds) - 1
        self.n_rows = layout.n_rows if job.chosen is None else len(job.chosen)
        self.picked: dict[Name, list[np.ndarray]] = {}

    def add(
        self, batch: Batch, rows: Int[np.ndarray, " row"], got: Mapping[tuple[str, Name], Tensor]
    ) -> None:
        """Take in one batch."""
        at, evidence = rows, self.kept.keep[rows]
        if self.job.chosen is not None:
            stored = np.isin(rows, self.job.chosen)
            at, evidence = np.searchsorted(self.job.chosen, rows[stored]), evidence[stored]
        samples = {}
        for (group, name), value in got.items():
            if group == "sums":
                # A host that merges sums hands them over with some batches only.
                total = self.kept.sums.get(name)
                self.kept.sums[name] = reducers.wide(value) if total is None else total + reducers.wide(value)
            elif group == "rows":
                # Sinks may overflow a format: they are no evidence, and are taken out in the end.
                if not torch.isfinite(value[torch.from_numpy(evidence)]).all():
                    raise NonFiniteRowError(name)
                # NumPy has no bfloat16: its bits are kept as whole numbers.
                array = (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
                self._into(self.kept.rows, name, array, self.n_rows)[at] = array
            elif group == "picked":
                array = value.numpy()
                self.picked.setdefault(name, []).append(rows[array] if name == reducers.AT else array)
            else:
                samples[name] = array = value.numpy()
                self._into(self.kept.samples, name, array, self.n_samples)[batch.rows.numpy()] = array
        if self.job.each is not None:
            self.job.each(batch, samples)

    def _into(self, arrays: dict[Name, np.ndarray], name: Name, part: np.ndarray, n: int) -> np.ndarray:
        if name not in arrays:
            arrays[name] = allocate((n, *part.shape[1:]), part.dtype, self.job.budget)
        elif not np.can_cast(part.dtype, arrays[name].dtype):
            # A longer batch may say positions in more bytes than the first.
            arrays[name] = arrays[name].astype(part.dtype)
        return arrays[name]

    def finished(self) -> Kept:
        """With the rows that are no evidence taken out."""
        keep = self.kept.keep if self.job.chosen is None else self.kept.keep[self.job.chosen]
        for name, array in self.kept.rows.items():
            self.kept.rows[name] = compact(array, keep)
        picked = {name: np.concatenate(parts) for name, parts in self.picked.items()}
        if picked:
            # Entries of one token stay in the order in which they were picked.
            order = np.argsort(picked[reducers.AT], kind="stable")
            self.kept.picked.update({name: array[order] for name, array in picked.items()})
        return self.kept


def sink_sites(layers: Sequence[int]) -> list[Site]:
    """Sites whose norms decide which tokens are sinks."""
    return [Site(layer, "resid_post") for layer in layers]


def sink_rule(info: HostInfo, layers: Sequence[int], sinks: SinkRule) -> Sinks:
    """What `reducers.evidence` is told: which layers decide, the rule, the first token.

    A decoder without BOS makes a sink of its first token, whatever that token is.
    """
    return tuple(layers), sinks, info.causal and not info.bos


def allocate(shape: tuple[int, ...], dtype: np.dtype | type, budget: int) -> np.ndarray:
    """Zeros in memory, or in an unlinked temporary file when larger than `budget` bytes."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size <= budget:
        return np.zeros(shape, dtype=dtype)
    # The map holds the file open; the system frees it with the last reference.
    with tempfile.TemporaryFile(prefix="sa_plugin-") as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def compact(
    array: Shaped[np.ndarray, "row ..."], keep: Bool[np.ndarray, " row"], chunk: int = 65_536
) -> Shaped[np.ndarray, "kept ..."]:
    """Move kept rows to the front, a chunk at a time, and return that part."""
    if keep.all():
        return array
    end = 0
    for start in range(0, len(array), chunk):
        rows = array[start : start + chunk][keep[start : start + chunk]]
        array[end : end + len(rows)] = rows
        end += len(rows)
    return array[:end]
