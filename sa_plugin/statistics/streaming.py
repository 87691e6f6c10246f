"""Exact quantiles of scores that do not fit in memory, and of shards.

Everything rests on one key: unsigned integers that order as floats do. IEEE 754 numbers of one sign
order by their bits, negative ones in reverse; so the sign bit is flipped for positive numbers and
every bit for negative ones. Both zeros get one key. 16-bit formats take the high half of a 32-bit
key, and the low half of their sign (0 or 65,535), so that one code serves all: bfloat16 is the high
half of float32.

A histogram over the high 16 bits, filled in one pass, tells in which of 65,536 bins each wanted rank
lies; its edges enclose the quantile to 2**-7 of itself, which is all that leaves a remote model
(`sa_plugin.scores.tail_histogram`, filled by the same key in torch beside the model). A second pass
over the stored scores looks at the low 16 bits of the few bins that hold a wanted rank, and gives
the quantile exactly. 16-bit scores (float16, bfloat16, or float32 that holds bfloat16 values) need
no second pass. The model is never run again. Results equal `tail_thresholds` on the whole table to
the bit, and histograms of shards add up.

Memory: 512 KiB a column for the histogram, whatever the number of tokens; in the second pass, for
each column, 12 bytes for every distinct value inside the bins that hold a wanted rank (at most two
bins a quantile, 65,536 values a bin) and a buffer of 1 MiB. 16 concepts at 30 layers: 240 MiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64, Shaped, UInt32

from sa_plugin._face import face_methods
from sa_plugin.statistics.quantile import (
    DELTAS,
    cached_blocks,
    check_finite,
    in_concept_values,
    interpolate,
    positions,
    tail_levels,
    warn_counts,
)

Format = Literal["float32", "float16", "bfloat16"]
HIGH_BINS = 1 << 16
_SIGN = np.uint32(1 << 31)


def format_of(values: Shaped[np.ndarray, "*shape"], expected: Format | None = None) -> Format:
    """The number format of an array, checked against what is expected.

    Raises:
        ValueError: It is none of float32, float16 and uint16 (the bits of bfloat16), or another
            than expected.
    """
    known = {"float32": "float32", "float16": "float16"}
    found = "bfloat16" if expected == "bfloat16" else known.get(values.dtype.name, "")
    if not found or (found == "bfloat16" and values.dtype != np.uint16):
        raise ValueError(
            f"values are {values.dtype}: streams are exact for float32, float16, and bfloat16 "
            "given as uint16 bit patterns with format='bfloat16'. Cast with astype(np.float32)."
        )
    if expected is not None and found != expected:
        raise ValueError(f"values are {found}, the histogram holds {expected}.")
    return cast(Format, found)


def to_keys(values: Shaped[np.ndarray, "*shape"], format: Format = "float32") -> UInt32[np.ndarray, "*shape"]:
    """Keys of numbers."""
    if format == "float32":
        bits: np.ndarray = np.ascontiguousarray(values).view(np.uint32)
    else:
        bits = np.ascontiguousarray(values).view(np.uint16).astype(np.uint32) << np.uint32(16)
    # Minus zero and zero are equal numbers, so they must be one key.
    bits = np.where(bits == _SIGN, np.uint32(0), bits)
    # An arithmetic shift spreads the sign over all 32 bits: a mask of ones for negative numbers.
    negative: np.ndarray = (bits.view(np.int32) >> 31).view(np.uint32)
    keys: np.ndarray = bits ^ (negative | _SIGN)
    return keys


def to_values(
    keys: UInt32[np.ndarray, "*shape"], format: Format = "float32"
) -> Float64[np.ndarray, "*shape"]:
    """Numbers of keys, in float64."""
    negative: np.ndarray = ~(keys.view(np.int32) >> 31).view(np.uint32)
    bits: np.ndarray = keys ^ (negative | _SIGN)
    if format == "float16":
        values: np.ndarray = (bits >> np.uint32(16)).astype(np.uint16).view(np.float16)
    else:
        values = bits.view(np.float32)
    return values.astype(np.float64)


def bin_edges(
    bins: Int[np.ndarray, " bin"],
) -> tuple[Float64[np.ndarray, " bin"], Float64[np.ndarray, " bin"]]:
    """The least and the largest float32 number of bins of the high 16 bits."""
    high = bins.astype(np.uint32) << np.uint32(16)
    return to_values(high), to_values(high | np.uint32(0xFFFF))


def check_finite_bits(values: Shaped[np.ndarray, "*shape"], format: Format) -> None:
    """Refuse NaN and Inf in any format.

    Raises:
        ValueError: With the number of each.
    """
    if format == "bfloat16":
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    check_finite(values)


def has_low_bits(keys: UInt32[np.ndarray, " value"]) -> bool:
    """Whether any number needs more than the high 16 bits."""
    low = keys & np.uint32(0xFFFF)
    # What the low half is where a number needs 16 bits only: negative numbers have theirs inverted.
    sign = np.where(keys >> np.uint32(31), np.uint32(0), np.uint32(0xFFFF))
    return bool((low != sign).any())


# Keys that wait to be counted: larger batches sort faster, smaller ones hold less.
_BUFFER = 1 << 18


class Tally:
    """Distinct keys and their counts, fed in chunks; memory grows with distinct keys only."""

    def __init__(self) -> None:
        self._keys: UInt32[np.ndarray, " key"] = np.zeros(0, dtype=np.uint32)
        self._counts: Int64[np.ndarray, " key"] = np.zeros(0, dtype=np.int64)
        self._pending: list[UInt32[np.ndarray, " value"]] = []
        self._size = 0

    def add(self, keys: UInt32[np.ndarray, " value"]) -> None:
        """Count some keys."""
        self._pending.append(keys)
        self._size += len(keys)
        if self._size >= _BUFFER:
            self._compact()

    def total(self) -> int:
        """Keys counted so far."""
        return int(self._counts.sum()) + self._size

    def keys_at(
        self, bins: Int64[np.ndarray, " rank"], ranks: Int64[np.ndarray, " rank"]
    ) -> UInt32[np.ndarray, " rank"]:
        """The key of each rank, counted within its bin of the high 16 bits."""
        self._compact()
        ends = np.cumsum(self._counts)
        # Keys are sorted, so a rank within a bin is a rank after all keys of the bins before it.
        first = np.searchsorted(self._keys, bins.astype(np.uint32) << np.uint32(16))
        before = np.concatenate([[0], ends])[first]
        keys: np.ndarray = self._keys[np.searchsorted(ends, before + ranks, side="right")]
        return keys

    def _compact(self) -> None:
        if not self._pending:
            return
        fresh, counts = np.unique(np.concatenate(self._pending), return_counts=True)
        keys = np.concatenate([self._keys, fresh])
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], np.concatenate([self._counts, counts])[order]
        self._pending, self._size = [], 0
        if len(keys):
            starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
            self._keys, self._counts = keys[starts], np.add.reduceat(counts, starts)


Chunk: TypeAlias = tuple[np.ndarray, np.ndarray | None]


@face_methods
class RadixHistogram:
    """Counts of values by the high 16 bits of their order-preserving keys, for several columns.

    Args:
        columns: Number of columns.
        format: "float32", "float16", or "bfloat16" (values given as their uint16 bit patterns, in
            torch `tensor.view(torch.uint16).numpy()`).

    Attributes:
        counts: Counts by column and bin; with `low_bits` all there is to save of a shard.
        low_bits: Whether any value needs more than 16 bits.

    Example:
        >>> whole = RadixHistogram(1)
        >>> whole.update(np.arange(5, dtype=np.float32)[:, None])
        >>> whole.quantiles([0.5])
        array([[2.]])
    """

    def __init__(self, columns: int, format: Format = "float32") -> None:
        self.format: Format = format
        self.counts: Int64[np.ndarray, "column bin"] = np.zeros((columns, HIGH_BINS), dtype=np.int64)
        self.low_bits = False

    def __repr__(self) -> str:
        columns, total = len(self.counts), int(self.counts.sum())
        return f"RadixHistogram({columns} columns, {self.format}, {total} values)"

    @property
    def totals(self) -> Int64[np.ndarray, " column"]:
        """Values seen, by column."""
        totals: np.ndarray = self.counts.sum(axis=1)
        return totals

    def update(
        self, values: Shaped[np.ndarray, "row column"], mask: Bool[np.ndarray, "row concept"] | None = None
    ) -> None:
        """Count a chunk.

        Args:
            values: Rows of the table.
            mask: Values that count; column k has the mask of column `k % concepts`, so that one
                mask serves every layer. By default all count.

        Raises:
            ValueError: Another number of columns or format, NaN or Inf.
        """
        for k, keys in self._keys(values, mask):
            self.low_bits = self.low_bits or has_low_bits(keys)
            self.counts[k] += np.bincount(keys >> np.uint32(16), minlength=HIGH_BINS)

    def merge(self, other: RadixHistogram) -> None:
        """Add the counts of another shard.

        Raises:
            ValueError: It has another number of columns or format.
        """
        if other.counts.shape != self.counts.shape or other.format != self.format:
            raise ValueError(f"cannot merge {other!r} into {self!r}: columns and format differ.")
        self.counts += other.counts
        self.low_bits = self.low_bits or other.low_bits

    def quantiles(
        self, q: Sequence[float] | Float64[np.ndarray, " q"], rescan: Iterable[Chunk] | None = None
    ) -> Float64[np.ndarray, "q column"]:
        """Exact quantiles of every column.

        Args:
            q: Levels in [0, 1].
            rescan: The chunks of `update` once more, as `(values, mask)`, in any order and cut;
                read once. Not needed for 16-bit values.

        Returns:
            Linear-interpolation quantiles; +inf for a column without values.

        Raises:
            ValueError: A second pass is needed and `rescan` is missing, or holds other values.
        """
        totals = self.totals
        at = [positions(int(n), q) if n else None for n in totals]
        ranks = [np.concatenate([p.below, p.above]) if p else np.zeros(0, np.int64) for p in at]
        keys = self._keys_at(ranks, rescan)
        result = np.full((len(q), len(totals)), np.inf)
        for k, position in enumerate(at):
            if position is not None:
                lower, upper = np.split(to_values(keys[k], self.format), 2)
                result[:, k] = interpolate(lower, upper, position.t)
        return result

    def _keys_at(
        self, ranks: Sequence[Int64[np.ndarray, " _rank"]], rescan: Iterable[Chunk] | None
    ) -> list[UInt32[np.ndarray, " _rank"]]:
        ends = np.cumsum(self.counts, axis=1)
        # The bin of a rank is the first whose running count exceeds it.
        homes = [np.searchsorted(e, r, side="right") for e, r in zip(ends, ranks, strict=True)]
        if not self.low_bits:
            return [_only_key(home) for home in homes]
        if rescan is None:
            raise ValueError("these values need a second pass: give `rescan`, the same chunks once more.")
        tallies = self._refine(homes, rescan)
        return [
            tally.keys_at(home, rank - (ends[k] - self.counts[k])[home])
            for k, (tally, home, rank) in enumerate(zip(tallies, homes, ranks, strict=True))
        ]

    def _refine(self, homes: Sequence[Int64[np.ndarray, " _rank"]], rescan: Iterable[Chunk]) -> list[Tally]:
        wanted = np.zeros((len(homes), HIGH_BINS), dtype=bool)
        for k, home in enumerate(homes):
            wanted[k, home] = True
        tallies = [Tally() for _ in homes]
        for values, mask in rescan:
            for k, keys in self._keys(values, mask):
                tallies[k].add(keys[wanted[k].take(keys >> np.uint32(16))])
        for k, tally in enumerate(tallies):
            expected = int(self.counts[k][wanted[k]].sum())
            if tally.total() != expected:
                raise ValueError(
                    f"rescan holds {tally.total()} values where the first pass counted {expected} "
                    f"(column {k}): give the same chunks in both passes."
                )
        return tallies

    def _keys(
        self, values: Shaped[np.ndarray, "row column"], mask: Bool[np.ndarray, "row concept"] | None
    ) -> Iterator[tuple[int, UInt32[np.ndarray, " _value"]]]:
        if values.ndim != 2 or values.shape[1] != len(self.counts):
            raise ValueError(f"a chunk {values.shape} must be [row, {len(self.counts)}].")
        if mask is not None and (len(mask) != len(values) or len(self.counts) % mask.shape[1]):
            raise ValueError(f"mask {mask.shape} does not fit a chunk {values.shape}.")
        format_of(values, self.format)
        mask = np.ones((len(values), 1), dtype=bool) if mask is None else mask
        parts: list[list[np.ndarray]] = [[] for _ in self.counts]
        for rows in cached_blocks(values):
            block = np.asarray(values[rows])
            check_finite_bits(block, self.format)
            for part, picked in zip(parts, in_concept_values(block, mask[rows]), strict=True):
                part.append(picked)
        for k, part in enumerate(parts):
            if part:
                yield k, to_keys(np.concatenate(part), self.format)


@dataclass(frozen=True)
class ScoreChunks:
    """Stored scores and labels cut into chunks of tokens, as often as they are wanted.

    Args:
        scores: In memory or memory mapped.
        labels: Token labels.
        size: Tokens a chunk.
    """

    scores: Shaped[np.ndarray, "token *layer concept"]
    labels: Bool[np.ndarray, "token concept"]
    size: int = 65_536

    def __repr__(self) -> str:
        return f"ScoreChunks({self.scores.shape} {self.scores.dtype}, {self.size} tokens a chunk)"

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if len(self.scores) != len(self.labels):
            raise ValueError(f"{len(self.scores)} rows of scores for {len(self.labels)} labels.")
        for start in range(0, len(self.scores), self.size):
            rows = slice(start, start + self.size)
            yield self.scores[rows], self.labels[rows]


def streaming_thresholds(
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    deltas: Sequence[float] = DELTAS,
    *,
    names: Sequence[str] | None = None,
    format: Format | None = None,
) -> Float64[np.ndarray, "delta *layer concept"]:
    """Thresholds of supervised concepts from stored scores, equal to `tail_thresholds` to the bit.

    Args:
        chunks: `(scores[token, *layer, concept], labels[token, concept])`, from something that can
            be read twice: `ScoreChunks`, a list, any object whose `__iter__` starts anew.
        deltas: Shares of the in-concept tokens at or above the threshold.
        names: Names of the concepts, for warnings.
        format: By default that of the chunks' dtype; "bfloat16" for uint16 bit patterns.

    Returns:
        Thresholds in float64; +inf for a concept without in-concept tokens.

    Raises:
        ValueError: No chunks, a one-shot iterator, a float64 chunk, NaN or Inf.

    Warns:
        FewTokensWarning, EmptyConceptWarning: As `tail_thresholds`.

    Example:
        >>> scores = np.arange(200, dtype=np.float32)[:, None]
        >>> streaming_thresholds(ScoreChunks(scores, scores >= 100, size=64), [0.1])
        array([[189.1]])
    """
    levels = tail_levels(deltas)
    if iter(chunks) is chunks:
        raise ValueError("chunks is a one-shot iterator and may be needed twice: give ScoreChunks or a list.")
    histogram, shape, seen = None, (0,), np.zeros(0, dtype=np.int64)
    for scores, labels in chunks:
        if histogram is None:
            shape, seen = scores.shape[1:], np.zeros(labels.shape[1], dtype=np.int64)
            histogram = RadixHistogram(int(np.prod(shape)), format or format_of(scores))
        histogram.update(scores.reshape(len(scores), -1), labels)
        seen += labels.sum(axis=0)
    if histogram is None:
        raise ValueError("chunks is empty: there is nothing to set a threshold from.")
    warn_counts(seen, deltas, names)
    rescan = ((s.reshape(len(s), -1), labels) for s, labels in chunks)
    return histogram.quantiles(levels, rescan).reshape(len(levels), *shape)


def _only_key(home: Int64[np.ndarray, " rank"]) -> UInt32[np.ndarray, " rank"]:
    """The key of a bin whose values have no low bits: negative numbers have theirs inverted."""
    keys = home.astype(np.uint32) << np.uint32(16)
    return np.where(keys >> np.uint32(31), keys, keys | np.uint32(0xFFFF)).astype(np.uint32)
