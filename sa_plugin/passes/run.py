"""The walk over a model: samples in batches, one forward pass each, reduced to what is kept.

Rows are laid out before the pass: every token that is neither padding nor special has a row, in
data order whatever the batches' order. Attention sinks are known only from the pass itself; their
rows are taken out at its end.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin.data.sample import Sample
from sa_plugin.host import reducers
from sa_plugin.host.protocol import BATCH_TOKENS as BATCH_TOKENS
from sa_plugin.host.protocol import Batch, BulkHost, Host, HostInfo, Reduce, SinkRule, Site
from sa_plugin.passes.layout import TokenTable

# Share of labelled tokens that may be sinks without a word; the count is in `dropped` in any case.
LOST = 0.05


@dataclass(frozen=True, eq=False)
class Layout:
    """Where every token that is neither padding nor special will lie.

    Attributes:
        batches: The batches, in the order they are run.
        bounds: Row where each sample starts, and the number of rows.
        position, offsets, labels: Of each row.
        special: Number of special tokens left out.
    """

    batches: tuple[Batch, ...]
    bounds: Int[np.ndarray, " sample_and_one"]
    position: Int[np.ndarray, " row"]
    offsets: Real[np.ndarray, "row edge"]
    labels: Bool[np.ndarray, "row concept"]
    special: int

    @property
    def n_rows(self) -> int:
        """Number of rows before sinks are taken out."""
        return int(self.bounds[-1])

    def rows(self, batch: Batch) -> Int[np.ndarray, " row"]:
        """Rows of a batch's valid tokens, sample by sample."""
        starts = self.bounds[batch.rows.numpy()]
        counts = batch.valid.sum(-1).numpy()
        return np.concatenate([np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)])

    def mask(self, batch: Batch, rows: Bool[np.ndarray, " row"]) -> Bool[Tensor, "batch token"]:
        """Chosen rows as tokens of a batch."""
        mask = torch.zeros_like(batch.valid)
        mask[batch.valid] = torch.from_numpy(rows[self.rows(batch)])
        return mask


def lay_out(
    host: Host, samples: Sequence[Sample], concepts: Sequence[str], *, batch_tokens: int = BATCH_TOKENS
) -> Layout:
    """Tokenise samples, group them into batches, and label their tokens.

    Raises:
        ValueError: There are no samples, or what `Host.batches` and `Sample.token_labels` raise.
    """
    if not samples:
        raise ValueError("there are no samples to run: the split or the list is empty.")
    batches = tuple(host.batches(samples, batch_tokens=batch_tokens))
    counts = np.zeros(len(samples), dtype=np.int64)
    attended = 0
    for batch in batches:
        counts[batch.rows.numpy()] = batch.valid.sum(-1).numpy()
        attended += int(_attended(batch).sum())
    bounds = np.concatenate([[0], np.cumsum(counts)])
    layout = Layout(
        batches,
        bounds,
        np.zeros(bounds[-1], dtype=np.int64),
        np.zeros((bounds[-1], batches[0].offsets.shape[-1]), batches[0].offsets.numpy().dtype),
        np.zeros((bounds[-1], len(concepts)), dtype=bool),
        attended - int(bounds[-1]),
    )
    for batch in batches:
        rows = layout.rows(batch)
        place = _attended(batch).long().cumsum(-1) - 1
        layout.position[rows] = place[batch.valid].numpy()
        layout.offsets[rows] = batch.offsets[batch.valid].numpy()
    for n, sample in enumerate(samples):
        part = slice(bounds[n], bounds[n + 1])
        layout.labels[part] = sample.token_labels(layout.offsets[part], concepts)
    return layout


def _attended(batch: Batch) -> Bool[Tensor, "batch token"]:
    mask = batch.inputs.get("attention_mask")
    return torch.ones_like(batch.valid) if mask is None else mask.bool().cpu()


def walk(
    host: Host,
    layout: Layout,
    sites: Sequence[Site],
    reducer: Callable[[Batch], Reduce],
    *,
    description: str,
    progress: bool,
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Run every batch once and yield what its reducer kept, in any order of the batches.

    A host that has `read_many` (one whose model is elsewhere) is given all batches at once, and may
    hand over results whose name begins with "+" summed over several of them.
    """
    bar = tqdm(total=len(layout.batches), desc=description, unit="batch", disable=not progress, leave=False)
    with bar:
        if isinstance(host, BulkHost):
            found = host.read_many(layout.batches, sites, reducer)
        else:
            found = ((batch, host.read(batch, sites, reducer(batch))) for batch in layout.batches)
        for batch, got in found:
            bar.update()
            yield batch, got


def sink_sites(layers: Sequence[int]) -> list[Site]:
    """Sites whose norms decide which tokens are sinks."""
    return [Site(layer, "resid_post") for layer in layers]


def sink_rule(info: HostInfo, layers: Sequence[int], sinks: SinkRule) -> tuple[tuple[int, ...], str, bool]:
    """What `reducers.kept` is told: which layers decide, the rule, the first token."""
    return tuple(layers), sinks, info.causal and not info.bos


def kept(
    read: Mapping[Site, Tensor],
    valid: Bool[Tensor, "batch token"],
    info: HostInfo,
    sink_layers: Sequence[int],
    sinks: SinkRule,
) -> Bool[Tensor, "batch token"]:
    """Which tokens of a batch are evidence, decided from the residual at `sink_layers`.

    Raises:
        ValueError: An activation is NaN or Inf.
    """
    return reducers.kept(read, valid, *sink_rule(info, sink_layers, sinks))


def token_table(
    layout: Layout,
    keep: Bool[np.ndarray, " row"],
    samples: Sequence[Sample],
    split_of: Sequence[str],
    concepts: Sequence[str],
) -> TokenTable:
    """The table of the rows that are kept.

    Raises:
        ValueError: A sample has no kept token.
    """
    lengths = np.add.reduceat(keep, layout.bounds[:-1]) if layout.n_rows else np.zeros(0)
    empty = np.flatnonzero((lengths == 0) | (np.diff(layout.bounds) == 0))
    if len(empty):
        sample = samples[empty[0]]
        had = int(layout.bounds[empty[0] + 1] - layout.bounds[empty[0]])
        raise ValueError(
            f"sample {sample.id!r} has {had} token(s) and none is left once special tokens and "
            "attention sinks are dropped (the first token of a decoder without BOS is one): give "
            "longer texts, or attach with a tokenizer that adds BOS, or fit with sinks='keep'."
        )
    _warn_lost_labels(layout, keep)
    return TokenTable(
        tuple(samples),
        tuple(split_of),
        tuple(concepts),
        np.repeat(np.arange(len(samples)), lengths.astype(np.int64)),
        layout.position[keep],
        layout.offsets[keep],
        layout.labels[keep],
        {
            "special": layout.special,
            "sink": int((~keep).sum()),
            "labelled sink": int(layout.labels[~keep].any(-1).sum()),
        },
    )


def rows_kept_in(table: TokenTable, layout: Layout, samples: Sequence[Sample]) -> Bool[np.ndarray, " row"]:
    """Which rows of a layout are rows of another run's table.

    Raises:
        ValueError: The table lacks a sample, or has a token that the layout has not.
    """
    place = {sample.id: n for n, sample in enumerate(table.samples)}
    keep = np.zeros(layout.n_rows, dtype=bool)
    for n, sample in enumerate(samples):
        if sample.id not in place:
            raise ValueError(
                f"sample {sample.id!r} is not in the table whose rows are to be kept "
                f"({table.n_samples} samples): score the same splits."
            )
        k = place[sample.id]
        wanted = table.position[table.bounds[k] : table.bounds[k + 1]]
        rows = slice(layout.bounds[n], layout.bounds[n + 1])
        keep[rows] = np.isin(layout.position[rows], wanted)
        if keep[rows].sum() != len(wanted):
            raise ValueError(
                f"sample {sample.id!r} has {len(wanted)} kept tokens in the table, and only "
                f"{int(keep[rows].sum())} of them in this run: other text or tokenizer."
            )
    return keep


class LostLabelWarning(UserWarning):
    """Labelled tokens were dropped as attention sinks."""


def _warn_lost_labels(layout: Layout, keep: Bool[np.ndarray, " row"]) -> None:
    labelled = layout.labels.any(-1)
    lost = int((labelled & ~keep).sum())
    if lost > LOST * labelled.sum():
        warnings.warn(
            f"{lost} of {int(labelled.sum())} labelled tokens were dropped as attention sinks (the "
            "first token of a decoder without BOS is one): their samples keep the label and lose "
            "its evidence. Attach with a tokenizer that adds BOS (TransformerLens's own: "
            "attach(bridge, tokenizer=bridge.tokenizer)), or fit with sinks='keep'.",
            LostLabelWarning,
            stacklevel=4,
        )


def allocate(shape: tuple[int, ...], dtype: type, budget: int) -> np.ndarray:
    """An array in memory, or in an unlinked temporary file when larger than `budget` bytes."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size <= budget:
        return np.empty(shape, dtype=dtype)
    # The map holds the file open; the system frees it with the last reference.
    with tempfile.TemporaryFile(prefix="sa_plugin-") as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def compact(
    array: Float[np.ndarray, "row ..."], keep: Bool[np.ndarray, " row"], chunk: int = 65_536
) -> Float[np.ndarray, "kept ..."]:
    """Move kept rows to the front, a chunk at a time, and return that part."""
    if keep.all():
        return array
    end = 0
    for start in range(0, len(array), chunk):
        rows = array[start : start + chunk][keep[start : start + chunk]]
        array[end : end + len(rows)] = rows
        end += len(rows)
    return array[:end]
