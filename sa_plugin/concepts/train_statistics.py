"""What one pass over the train split leaves behind for fitting, one record a layer.

Normalised embedding: `x = (h - mean) / scale`, with `mean` the mean of the train tokens and `scale`
the root mean square of their norms `|h|` ("rms"), or the mean of the norms ("mean_norm"); arXiv
2512.05038, normaliser of the authors' code.

Kinds that iterate need the rows themselves. They are stored as the model gave them, in its own number
format (two bytes a number where it computes in 16 bits, else four), in memory or in a file, at most so
many tokens of a class (`draw_rows`), and read normalised, in float32, checked once; what fits stays in
memory between readings. Nothing is rounded before the mean is taken off: half precision of a feature
whose mean is 500 times its spread moved separators by 1.5 %, and by 32 % at 5,000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int16
from torch import Tensor

from sa_plugin._face import face, face_methods
from sa_plugin.concepts.bank import ComponentMeans, HookPoint
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.host.protocol import Host
from sa_plugin.passes.layout import TokenTable

MEMORY = 2 << 30
Blocks = Callable[[], Iterable[tuple[slice, Float[Tensor, "row d_model"]]]]


@face
class RowLimits(NamedTuple):
    """How many train rows are stored, and where.

    Attributes:
        per_class: Rows of a concept's tokens, and of the other tokens, at most.
        memory: Bytes of rows, over all layers, above which they lie in a temporary file.
        folder: Where what each block of a corpus gave is kept, to go on after a kill and to share the work
            (`collect_blocks`); by default a temporary one.
    """

    per_class: int = 100_000
    memory: int = 2 << 30
    folder: Path | None = None


ROW_LIMITS = RowLimits()


@face_methods
@dataclass(frozen=True, eq=False)
class Rows:
    """Train rows of one layer, in memory or in a memory map, read normalised.

    Attributes:
        stored: The rows as read from the model, not normalised; int16 holds the bits of bfloat16.
        mean: Subtracted from every row.
        scale: Divides every row.
        chunk: Rows normalised at a time.
    """

    stored: Float[np.ndarray, "row d_model"] | Int16[np.ndarray, "row d_model"]
    mean: Float[Tensor, " d_model"]
    scale: float
    chunk: int = 32_768

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def d_model(self) -> int:
        """Width of a row."""
        return int(self.stored.shape[1])

    def chunks(self) -> Iterator[tuple[slice, Float[Tensor, "row d_model"]]]:
        """Normalised float32 rows, a chunk at a time, in order."""
        for start in range(0, len(self), self.chunk):
            part = slice(start, min(start + self.chunk, len(self)))
            yield part, self.take(part)

    def take(self, part: slice | Int[np.ndarray, " row"]) -> Float[Tensor, "row d_model"]:
        """Some rows, normalised, in float32."""
        stored = self.stored[part]
        if stored.dtype == np.int16:
            raw = torch.from_numpy(np.asarray(stored)).view(torch.bfloat16).float()
        else:
            raw = torch.from_numpy(np.asarray(stored, dtype=np.float32))
        # The mean in two parts: in float32 alone it is off by its rounding, which may exceed the spread.
        high = self.mean.float()
        low = (self.mean - high).float()
        return (raw - high).sub_(low).div_(self.scale)


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Statistics of the kept train tokens at one layer, for every concept.

    Attributes:
        n: Number of tokens behind `mean`.
        mean: Mean activation, raw.
        scale: Normaliser's scale.
        positive_count: Tokens in each concept.
        positive_mean: Mean raw activation of each concept's tokens.
        gram: Second moment `mean(h hᵀ)`, raw; only for kinds that need it.
        rows: Stored rows (at most a stated number a class); only for kinds that need them.
        labels: Labels of the stored rows.
        unknown_count: Tokens in neither class of each concept, their label unknown; None for none.
        unknown_mean: Mean raw activation of those tokens.
        known: Which labels of the stored rows are known; None where all are.
    """

    n: int
    mean: Float[Tensor, " d_model"]
    scale: float
    positive_count: Int[Tensor, " concept"]
    positive_mean: Float[Tensor, "concept d_model"]
    gram: Float[Tensor, "d_model d_model"] | None = None
    rows: Rows | None = None
    labels: Bool[np.ndarray, "row concept"] | None = None
    unknown_count: Int[Tensor, " concept"] | None = None
    unknown_mean: Float[Tensor, "concept d_model"] | None = None
    known: Bool[np.ndarray, "row concept"] | None = None

    @property
    def negative_count(self) -> Int[Tensor, " concept"]:
        """Tokens out of each concept."""
        outside = self.n - self.positive_count
        return outside if self.unknown_count is None else outside - self.unknown_count


def stored_rows(statistics: LayerStatistics, kind: str) -> Rows:
    """The rows a kind needs.

    Raises:
        ValueError: They were not collected, or there are none.
    """
    if statistics.rows is None or not len(statistics.rows):
        raise ValueError(f"{kind} needs train rows: collect the train pass with need='rows'.")
    return statistics.rows


def stored_labels(statistics: LayerStatistics, kind: str) -> Bool[np.ndarray, "row concept"]:
    """Labels of the stored rows, with both classes in every column.

    Raises:
        ValueError: No rows or labels, unequal lengths, or a column of one class.
    """
    rows, labels = stored_rows(statistics, kind), statistics.labels
    if labels is None or len(labels) != len(rows):
        got = "no labels" if labels is None else f"{len(labels):,} labels"
        raise ValueError(f"{kind} needs a label for each of {len(rows):,} rows, and got {got}.")
    positive = labels.sum(0)
    known = len(labels) if statistics.known is None else statistics.known.sum(0)
    for what, columns in (("no", positive == 0), ("nothing but", positive == known)):
        if columns.any():
            raise ValueError(
                f"{kind}: concept columns {np.flatnonzero(columns).tolist()} have {what} "
                f"in-concept rows among {len(labels):,}: both classes are needed. Label more "
                "samples or leave these concepts out."
            )
    return labels


def row_blocks(rows: Rows, kind: str, memory: int = MEMORY) -> Blocks:
    """A function that iterates over the normalised rows, as often as it is called.

    Args:
        rows: Stored rows.
        kind: Named in errors.
        memory: Bytes of float32 rows above which every iteration normalises them anew.

    Raises:
        ValueError: A row holds NaN or Inf; the text names the first.
    """
    fits = 4 * len(rows) * rows.d_model <= memory
    kept = []
    for part, x in rows.chunks():
        refuse_non_finite(x, np.arange(part.start, part.stop), len(rows), kind)
        if fits:
            kept.append((part, x))
    return (lambda: kept) if fits else rows.chunks


def refuse_non_finite(
    x: Float[Tensor, "row d_model"], row: Int[np.ndarray, " row"], n_rows: int, kind: str
) -> None:
    """Refuse NaN and Inf.

    Raises:
        ValueError: The text names the first row that holds one.
    """
    # One NaN or Inf spoils the sum, which is cheaper than looking at every entry.
    if torch.isfinite(x.sum()):
        return
    bad = ~torch.isfinite(x).all(dim=1).numpy()
    if bad.any():
        raise ValueError(
            f"{kind}: stored row {row[bad][0]} of {n_rows:,} holds NaN or Inf once normalised: "
            "leave out the token, or the layer, that gave it."
        )


@dataclass(frozen=True, eq=False)
class TrainStatistics:
    """What the train pass left, for `fit`.

    Attributes:
        layers: Block indices, ascending.
        hook_point: Where activations were read.
        token, permuted, pooled: One record a layer, for token labels, permuted token labels and
            mean-pooled samples.
        cls: The same for class tokens; empty where there is none.
        component_means: Train means of what each part writes, where the ledger is defined.
        tokens: The rows.
        settings: Sink rule, seed, normaliser and limits of the pass.
        data_hash: Of the data set.
        fingerprint: Of the model.
    """

    layers: tuple[int, ...]
    hook_point: HookPoint
    token: tuple[LayerStatistics, ...]
    permuted: tuple[LayerStatistics, ...]
    pooled: tuple[LayerStatistics, ...]
    cls: tuple[LayerStatistics, ...]
    component_means: ComponentMeans | None
    tokens: TokenTable
    settings: Mapping[str, object]
    data_hash: str
    fingerprint: str

    def __repr__(self) -> str:
        kept = " with rows" if self.token and self.token[0].rows is not None else ""
        return (
            f"TrainStatistics({len(self.tokens)} train tokens, {len(self.tokens.concepts)} concepts, layers "
            f"{list(self.layers)}, {self.hook_point}{kept}, data {self.data_hash[:8]})"
        )


def check_collected(statistics: TrainStatistics, host: Host, data: ConceptData) -> None:
    """Refuse statistics of another model or of other data.

    Raises:
        ValueError: The text says which.
    """
    if statistics.fingerprint != host.info.fingerprint:
        raise ValueError("the statistics were collected on another model: collect them again.")
    if statistics.data_hash != data.hash:
        raise ValueError(
            f"the statistics were collected on data {statistics.data_hash[:8]}, not on "
            f"{data.hash[:8]}: collect them again."
        )


def draw_rows(
    labels: Bool[np.ndarray, "row label"],
    most: int,
    order: Int[np.ndarray, " row"],
    known: Bool[np.ndarray, "row label"] | None = None,
) -> Int[np.ndarray, " stored"]:
    """Rows to store: of each class of each label the first `most` of an order that says nothing of labels.

    Unknown tokens are a class of their own: kinds that read no labels need them. In the order of hashes
    the rows drawn from several blocks are among those drawn from each.

    Args:
        labels: Of the rows.
        most: Rows of a class at most.
        order: All rows, such as a permutation.
        known: Which labels are known; None where all are.
    """
    wanted = np.zeros(len(labels), dtype=bool)
    for k, column in enumerate(labels.T):
        inside = column[order]
        # Positive, negative, unknown: every token is of exactly one class.
        doubtful = np.zeros_like(inside) if known is None else ~known[order, k]
        for chosen in (inside, ~inside & ~doubtful, doubtful):
            wanted[order[chosen][:most]] = True
    return np.flatnonzero(wanted)


def with_unknown(
    statistics: LayerStatistics,
    sums: Float[Tensor, "concept d_model"],
    counts: Int[np.ndarray, " concept"],
    unknown: Bool[np.ndarray, "row concept"],
    draws: int = 1,
) -> LayerStatistics:
    """The same statistics with the tokens that are in neither class.

    Args:
        statistics: Of the concepts, or of several draws of them.
        sums: Sum of the raw activations of each concept's unknown tokens.
        counts: Their numbers.
        unknown: Which labels of the stored rows are unknown.
        draws: How often the concepts follow one another in the statistics.
    """
    number = torch.from_numpy(np.asarray(counts))
    return replace(
        statistics,
        unknown_count=number.repeat(draws),
        unknown_mean=(sums / number.clamp_min(1)[:, None]).repeat(draws, 1),
        known=None if statistics.labels is None else np.tile(~unknown, (1, draws)),
    )
