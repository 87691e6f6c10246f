"""Quantiles of more scores than memory holds, in one pass: exact above a cut, enclosed below it.

A score is a float32, and its *key* is an unsigned integer that orders as it does. IEEE 754 numbers of
one sign order by their bits, negative ones in reverse; so the sign bit is flipped for positive numbers
and every bit for negative ones. Both zeros get one key.

`ExactTail` keeps of every column

    counts   how many values lie in each of 4,096 bins, the high 12 bits of the key: an eighth of a
             number's size wide, over the whole range
    tail     the key of every value at or above the column's cut

A column of n values with T of them in the tail has its order statistics r >= n - T exactly, those below
within the bin that holds them. So a quantile q is exact, to the bit that of `numpy.quantile` on all
values, where both ranks that it lies between reach the tail; elsewhere it is enclosed by the edges of
bins, and the number of values in these bins bounds by how many ranks any number between them is off.

Everything kept is a number of things, and numbers add: shards merged in any order are the whole pass,
to the bit. That holds because the cut is a value, agreed on before the pass and the same for all. A cut
by rank (each shard keeps its own highest thousandth) is wrong where shards differ: what a shard throws
away may lie above what another keeps.

Memory: 32 KiB a column for the counts and some 64 MiB for keys that wait to be sorted, whatever the
number of values. Disk: 4 bytes for each value in the tail, and a few KiB a column. With a cut of -inf
all values are kept, and every quantile is exact.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Shaped, UInt32, UInt64

from sa_plugin._face import face, face_methods
from sa_plugin._files import (
    DamagedFileError,
    file_digest,
    packed_arrays,
    read_object,
    require_sealed,
    sealed,
    write_bytes,
    write_text,
    written,
)
from sa_plugin.statistics.quantile import check_finite, interpolate, positions

HIGH_BINS = 1 << 16
_SIGN = np.uint32(1 << 31)
FORMAT = 1
RECORD = "tail.json"
_SHIFT, _BINS = np.uint32(20), 1 << 12
# Values that wait to be counted: a column's part of them should fill more than a handful of bins.
_WAITING = 1 << 20
MEMORY = 64 << 20


def to_keys(values: Float[np.ndarray, "*shape"]) -> UInt32[np.ndarray, "*shape"]:
    """Keys of float32 numbers."""
    bits: np.ndarray = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    # Minus zero and zero are equal numbers, so they must be one key.
    bits = np.where(bits == _SIGN, np.uint32(0), bits)
    # An arithmetic shift spreads the sign over all 32 bits: a mask of ones for negative numbers.
    negative: np.ndarray = (bits.view(np.int32) >> 31).view(np.uint32)
    keys: np.ndarray = bits ^ (negative | _SIGN)
    return keys


def to_values(keys: UInt32[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Numbers of keys, in float64."""
    negative: np.ndarray = ~(keys.view(np.int32) >> 31).view(np.uint32)
    values: np.ndarray = (keys ^ (negative | _SIGN)).view(np.float32)
    return values.astype(np.float64)


def bin_edges(
    bins: Int[np.ndarray, "*shape"], bits: int = 16
) -> tuple[Float64[np.ndarray, "*shape"], Float64[np.ndarray, "*shape"]]:
    """The least and the largest float32 number of bins of the high bits of keys."""
    low = bins.astype(np.uint32) << np.uint32(32 - bits)
    return to_values(low), to_values(low | np.uint32((1 << (32 - bits)) - 1))


class Enclosed(NamedTuple):
    """Quantiles, each between two numbers.

    Attributes:
        low: At most the quantile; +inf for a column without values.
        high: At least the quantile; equal to `low` where it is exact.
        rank_error: By how many ranks a number between the two may be off; 0 where it is exact.
    """

    low: Float64[np.ndarray, "q column"]
    high: Float64[np.ndarray, "q column"]
    rank_error: Int64[np.ndarray, "q column"]

    @property
    def exact(self) -> Bool[np.ndarray, "q column"]:
        """Which are the quantile itself."""
        exact: np.ndarray = self.rank_error == 0
        return exact


class _Run(NamedTuple):
    """Keys sorted by column, then by size: in memory, or in a file of little-endian uint32."""

    offsets: Int64[np.ndarray, " column_and_one"]
    keys: UInt32[np.ndarray, " value"] | Path

    def columns(self, first: int, last: int) -> UInt32[np.ndarray, " value"]:
        """The keys of some columns that follow one another."""
        start, stop = int(self.offsets[first]), int(self.offsets[last])
        if isinstance(self.keys, np.ndarray):
            return self.keys[start:stop]
        if start == stop:
            return np.zeros(0, dtype=np.uint32)
        return np.memmap(self.keys, "<u4", "r", offset=4 * start, shape=(stop - start,))


@face_methods
class ExactTail:
    """Counts of scores over their whole range, and every score at or above a cut.

    Args:
        cuts: Of each column, in a list or an array, the number from which on values are kept; -inf keeps
            all. Workers whose tails are to be merged need the same: take them from calibration, below its
            thresholds.
        memory: Bytes of keys that wait to be sorted, and that are sorted at a time. What is more goes to
            a temporary folder, which goes with the object.

    Attributes:
        counts: Values by column and bin.

    Raises:
        ValueError: There is no cut, or one is NaN.

    Example:
        >>> tail = ExactTail([2.0])
        >>> tail.update(np.arange(5, dtype=np.float32)[:, None])
        >>> found = tail.quantiles([0.25, 0.75])
        >>> found.low.tolist(), found.high.round(3).tolist(), found.exact.tolist()
        ([[1.0], [3.0]], [[1.125], [3.0]], [[False], [True]])
    """

    @face
    def __init__(self, cuts: Any, memory: int = MEMORY) -> None:
        try:
            given = np.asarray(cuts, dtype=np.float64)
        except (TypeError, ValueError):
            # Refused below, with what they are.
            given = np.zeros(0)
        if given.ndim != 1 or not len(given) or np.isnan(given).any():
            raise ValueError(
                f"cuts are {cuts!r:.80}: give one number for each column, -inf to keep every value."
            )
        with np.errstate(over="ignore"):
            near = given.astype(np.float32)
        # Rounded down: whatever reaches the number that was given is kept.
        down = np.nextafter(near, np.float32(-np.inf))
        self.cuts: Float[np.ndarray, " column"] = np.where(near > given, down, near)
        self.counts: Int64[np.ndarray, "column bin"] = np.zeros((len(given), _BINS), dtype=np.int64)
        self.memory = memory
        self._cut_keys = to_keys(self.cuts)
        self._runs: list[_Run] = []
        self._uncounted: list[tuple[np.ndarray, Bool[np.ndarray, "row column"] | None]] = []
        self._unsorted: list[UInt64[np.ndarray, " value"]] = []
        # Temporary folders that runs lie in, those of merged tails too: each goes with its last holder.
        self._spilled: list[tempfile.TemporaryDirectory[str]] = []

    def __repr__(self) -> str:
        return (
            f"ExactTail({len(self.cuts)} columns, {int(self.totals.sum())} values, "
            f"{int(self.kept.sum())} of them kept)"
        )

    @property
    def totals(self) -> Int64[np.ndarray, " column"]:
        """Values seen, by column."""
        self._count()
        totals: np.ndarray = self.counts.sum(axis=1)
        return totals

    @property
    def kept(self) -> Int64[np.ndarray, " column"]:
        """Values at or above the cut, by column."""
        self._sort()
        none = np.zeros(len(self.cuts), dtype=np.int64)
        return sum((np.diff(run.offsets) for run in self._runs), start=none)

    def update(
        self, values: Shaped[np.ndarray, "row column"], mask: Bool[np.ndarray, "row concept"] | None = None
    ) -> None:
        """Count some values.

        Args:
            values: Rows of a table, float32 or float16. They are copied.
            mask: Values that count; column k has the mask of column `k % concepts`, so that one mask
                serves every layer. By default all count.

        Raises:
            ValueError: Another number of columns, another number format, NaN or Inf.
        """
        if values.ndim != 2 or values.shape[1] != len(self.cuts):
            raise ValueError(
                f"values {values.shape} must be [row, {len(self.cuts)}]: one column for each cut."
            )
        if mask is not None and (len(mask) != len(values) or len(self.cuts) % mask.shape[1]):
            raise ValueError(f"mask {mask.shape} does not fit values {values.shape}.")
        if values.dtype not in (np.float32, np.float16):
            raise ValueError(
                f"values are {values.dtype}: streams are exact for float32 and float16. Cast with "
                "astype(np.float32)."
            )
        step = max(1, _WAITING // len(self.cuts))
        for start in range(0, len(values), step):
            rows = slice(start, start + step)
            # A copy, since callers fill their buffers anew.
            block = np.array(values[rows], dtype=np.float32)
            chosen = None if mask is None else np.tile(mask[rows], (1, len(self.cuts) // mask.shape[1]))
            check_finite(block if chosen is None else block[chosen])
            self._uncounted.append((block, chosen))
            if sum(one.size for one, _ in self._uncounted) >= _WAITING:
                self._count()

    def add(
        self,
        bins: Int[np.ndarray, " bin"],
        counts: Int[np.ndarray, " bin"],
        column: Int[np.ndarray, " value"],
        values: Float[np.ndarray, " value"],
    ) -> None:
        """Take in what was counted elsewhere, beside a model.

        Args:
            bins: That hold any value, by their place in `counts` of this tail laid flat, ascending.
            counts: How many values each of them holds.
            column: Of each value at or above its column's cut.
            values: These values, float32.

        Raises:
            ValueError: Other lengths, bins that this tail does not have or twice the same, or a value is
                below its cut.
        """
        if len(bins) != len(counts) or len(column) != len(values):
            raise ValueError(
                f"{len(counts)} counts of {len(bins)} bins, and {len(column)} columns of {len(values)} values"
                ": give a count for each bin, and a column for each value."
            )
        if len(bins) and not (bins[0] >= 0 and bins[-1] < self.counts.size and (np.diff(bins) > 0).all()):
            raise ValueError(
                f"bins {bins} are not, each once and ascending, among the {self.counts.size} bins of "
                f"{len(self.cuts)} columns: count with as many columns."
            )
        if len(values) and (values < self.cuts[column]).any():
            raise ValueError("a value is below the cut of its column: it was counted with another cut.")
        self.counts.ravel()[bins] += counts
        self._unsorted.append(to_keys(values).astype(np.uint64) | column.astype(np.uint64) << np.uint64(32))
        if 16 * sum(map(len, self._unsorted)) >= self.memory:
            self._sort(spill=True)

    def merge(self, other: ExactTail) -> None:
        """Add what another shard has seen; a tail that was read from a folder stays there.

        Raises:
            ValueError: Its cuts are others: what it threw away may be missing here.
        """
        if not np.array_equal(other.cuts, self.cuts):
            raise ValueError(_other_cuts(self.cuts, other.cuts))
        other._sort()
        self.counts += other.counts
        self._runs += other._runs
        self._spilled += other._spilled

    def quantiles(self, q: Sequence[float] | Float64[np.ndarray, " q"]) -> Enclosed:
        """Quantiles of every column, exact where they lie in the tail.

        Args:
            q: Levels in [0, 1].

        Returns:
            Linear-interpolation quantiles, or what encloses them.

        Raises:
            ValueError: A level lies outside [0, 1].
        """
        totals, kept = self.totals, self.kept
        shape = (len(q), len(totals))
        low, high, error = np.full(shape, np.inf), np.full(shape, np.inf), np.zeros(shape, dtype=np.int64)
        wanted = [
            _Ranks.of(n, q, n - t) if n else None for n, t in zip(totals.tolist(), kept.tolist(), strict=True)
        ]
        for k, ranks in enumerate(wanted):
            if ranks is not None and not ranks.exact.all():
                low[:, k], high[:, k], error[:, k] = ranks.bracket(self.counts[k], float(self.cuts[k]))
        values = [np.zeros(0) if ranks is None else np.zeros(ranks.tail.shape) for ranks in wanted]
        for k, before, keys in self._pieces():
            ranks = wanted[k]
            if ranks is not None:
                here = (ranks.tail >= before) & (ranks.tail < before + len(keys))
                values[k][here] = to_values(keys[ranks.tail[here] - before])
        for k, ranks in enumerate(wanted):
            if ranks is not None:
                found = interpolate(values[k][0], values[k][1], ranks.t)
                low[:, k], high[:, k] = (np.where(ranks.exact, found, edge[:, k]) for edge in (low, high))
        return Enclosed(low, high, error)

    def reaching(
        self, thresholds: Float[np.ndarray, "*q column"] | Sequence[float]
    ) -> Int64[np.ndarray, "*q column"]:
        """How many values reach a threshold, exactly.

        Args:
            thresholds: At or above the cut of their column.

        Raises:
            ValueError: One is below its cut; the text names it.
        """
        given = np.asarray(thresholds, dtype=np.float64)
        if given.ndim < 1 or given.shape[-1] != len(self.cuts):
            raise ValueError(f"thresholds {given.shape} must be [..., {len(self.cuts)}]: one for each cut.")
        below = np.argwhere(~(given >= self.cuts))
        if len(below):
            at = tuple(below[0])
            raise ValueError(
                f"threshold {given[at]:g} of column {at[-1]} is below its cut {self.cuts[at[-1]]:g}: values "
                "below the cut were counted by bins alone. Scan again with a lower cut."
            )
        # Rounded up: a float32 reaches the number that was given if it reaches the next one above.
        with np.errstate(over="ignore"):
            near = given.astype(np.float32)
            least = to_keys(np.where(near < given, np.nextafter(near, np.float32(np.inf)), near))
        counts = np.zeros(given.shape, dtype=np.int64)
        for k, _, keys in self._pieces():
            counts[..., k] += len(keys) - np.searchsorted(keys, least[..., k], side="left")
        return counts

    # In files ---------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write all of it, the keys as one sorted run: the same bytes whatever was merged in which order.

        Raises:
            OSError: It cannot be written; the text names the file.
        """
        folder, columns = Path(folder), len(self.cuts)
        kept, run = self.kept, folder / "tail.keys"
        with written(run) as partial, partial.open("wb") as file:
            for _, _, keys in self._pieces():
                for start in range(0, len(keys), _WAITING):
                    file.write(np.ascontiguousarray(keys[start : start + _WAITING], dtype="<u4").data)
        # Most bins are empty: those that are not, by their place in [column, bin].
        place = np.flatnonzero(self.counts)
        counts = self.counts.ravel()[place]
        # In as few bytes as hold them: packing is what a block of many columns would spend its time on.
        small: dict[str, Any] = {"place": place.astype(np.uint32) if self.counts.size < 1 << 32 else place}
        small["counts"] = counts.astype(np.min_scalar_type(int(counts.max(initial=0))))
        packed = write_bytes(folder / "tail.npz", packed_arrays({"cuts": self.cuts, "kept": kept, **small}))
        record = {
            "format": FORMAT,
            "what": "ExactTail",
            "columns": columns,
            "values": int(self.totals.sum()),
            "kept": int(kept.sum()),
            "sha256": {one.name: file_digest(one) for one in (packed, run)},
        }
        write_text(folder / RECORD, json.dumps(sealed(record), indent=1))
        return folder

    @classmethod
    def open(cls, folder: str | Path, memory: int = MEMORY) -> ExactTail:
        """Read what `save` wrote; the keys stay in their file, which must stay where it is.

        Raises:
            FileNotFoundError: There is none.
            DamagedFileError: It is not as it was written.
            ValueError: It is of another format.
        """
        folder, fix = Path(folder), "scan that block again"
        path = folder / RECORD
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no {RECORD}: give a folder that ExactTail.save wrote.")
        record = read_object(path, fix)
        require_sealed(record, path, fix)
        if record.get("format") != FORMAT or record.get("what") != "ExactTail":
            raise ValueError(
                f"{path} is {record.get('what')!r} of format {record.get('format')!r}, this version reads "
                f"'ExactTail' of format {FORMAT}: {fix} with this version."
            )
        for name, digest in record["sha256"].items():
            if not (folder / name).is_file() or file_digest(folder / name) != digest:
                raise DamagedFileError(
                    f"{folder / name} is damaged or missing (not as it was written): {fix}."
                )
        with np.load(folder / "tail.npz", allow_pickle=False) as stored:
            found = cls(stored["cuts"], memory)
            found.counts.ravel()[stored["place"]] = stored["counts"]
            offsets = np.concatenate([[0], np.cumsum(stored["kept"])])
        found._runs.append(_Run(offsets, folder / "tail.keys"))
        return found

    # Counting, sorting, reading ---------------------------------------------------------------------

    def _count(self) -> None:
        """Put what waits into its bins, and aside what reaches its cut."""
        if not self._uncounted:
            return
        # Column by column, each in one piece: its bins stay in cache while it is counted.
        values = np.ascontiguousarray(np.concatenate([one for one, _ in self._uncounted]).T)
        chosen = None
        if any(one is not None for _, one in self._uncounted):
            all_of = (np.ones(one.shape, bool) if mask is None else mask for one, mask in self._uncounted)
            chosen = np.ascontiguousarray(np.concatenate(list(all_of)).T)
        self._uncounted = []
        for k, column in enumerate(values):
            keys = to_keys(column if chosen is None else column[chosen[k]])
            self.counts[k] += np.bincount(keys >> _SHIFT, minlength=_BINS)
            tail = keys[keys >= self._cut_keys[k]]
            if len(tail):
                # Sorted as one number: by column, then by key.
                self._unsorted.append(tail.astype(np.uint64) | np.uint64(k << 32))
        if 16 * sum(map(len, self._unsorted)) >= self.memory:
            self._sort(spill=True)

    def _sort(self, spill: bool = False) -> None:
        """Make a sorted run of the keys that wait, in a temporary file where there are many."""
        if not spill:
            self._count()
        if not self._unsorted:
            return
        waiting = np.concatenate(self._unsorted)
        self._unsorted = []
        waiting.sort()
        ends = np.arange(len(self.cuts) + 1, dtype=np.uint64) << np.uint64(32)
        run = _Run(np.searchsorted(waiting, ends), keys := waiting.astype(np.uint32))
        if spill:
            if not self._spilled:
                self._spilled.append(tempfile.TemporaryDirectory(prefix="sa_plugin-tail-"))
            # A name of its own: the folder may be another tail's, which goes on spilling into it.
            path = Path(self._spilled[0].name) / f"run-{secrets.token_hex(8)}.keys"
            keys.astype("<u4").tofile(path)
            run = run._replace(keys=path)
        self._runs.append(run)

    def _pieces(self) -> Iterator[tuple[int, int, UInt32[np.ndarray, " value"]]]:
        """The tail in order: a column, how many of its keys lie before, and sorted keys, some at a time."""
        kept, most = self.kept, max(1, self.memory // 8)
        first = 0
        while first < len(kept):
            # Columns follow one another in a run: as many as fit are read at once.
            last = first + max(1, int(np.searchsorted(np.cumsum(kept[first:]), most, side="right")))
            if kept[first:last].sum() > most:
                before = 0
                columns = [run.columns(first, last) for run in self._runs]
                for keys in _windows(columns, 0, 0xFFFFFFFF, most):
                    yield first, before, keys
                    before += len(keys)
            else:
                parts = [(run.offsets - run.offsets[first], run.columns(first, last)) for run in self._runs]
                for k in range(first, last):
                    keys = _in_order([keys[at[k] : at[k + 1]] for at, keys in parts])
                    if len(keys):
                        yield k, 0, keys
            first = last


def _windows(
    columns: Sequence[UInt32[np.ndarray, " _value"]], low: int, high: int, most: int
) -> Iterator[UInt32[np.ndarray, " _value"]]:
    """The keys between two, ends included, of several sorted arrays together: at most so many at a time."""
    ends = [
        (np.searchsorted(one, np.uint32(low)), np.searchsorted(one, np.uint32(high), side="right"))
        for one in columns
    ]
    count = int(sum(stop - start for start, stop in ends))
    if count > most and low < high:
        middle = (low + high) // 2
        yield from _windows(columns, low, middle, most)
        yield from _windows(columns, middle + 1, high, most)
    elif count > most:
        # One number, very often: an array of it that takes no memory.
        yield np.broadcast_to(np.uint32(low), (count,))
    elif count:
        yield _in_order([one[start:stop] for one, (start, stop) in zip(columns, ends, strict=True)])


def _in_order(parts: Sequence[UInt32[np.ndarray, " _value"]]) -> UInt32[np.ndarray, " value"]:
    """Sorted arrays as one."""
    filled = [part for part in parts if len(part)]
    if len(filled) == 1:
        return filled[0]
    together = np.concatenate([np.zeros(0, dtype=np.uint32), *filled])
    together.sort()
    return together


@dataclass(frozen=True)
class _Ranks:
    """Where the quantiles of one column lie.

    Attributes:
        at: Ranks below and above each quantile.
        tail: The same, counted from the first value of the tail; negative below it.
        t: Share of the way between the two.
    """

    at: Int64[np.ndarray, "two q"]
    tail: Int64[np.ndarray, "two q"]
    t: Float64[np.ndarray, " q"]

    @classmethod
    def of(cls, n: int, q: Sequence[float] | Float64[np.ndarray, " q"], below_cut: int) -> _Ranks:
        position = positions(n, q)
        # On a rank itself the next one is not needed, which may lie where this one does not.
        at = np.stack([position.below, np.where(position.t == 0, position.below, position.above)])
        return cls(at, at - below_cut, position.t)

    @property
    def exact(self) -> Bool[np.ndarray, " q"]:
        return np.asarray((self.tail >= 0).all(0))

    def bracket(
        self, counts: Int64[np.ndarray, " bin"], cut: float
    ) -> tuple[Float64[np.ndarray, " q"], Float64[np.ndarray, " q"], Int64[np.ndarray, " q"]]:
        """Two numbers that enclose each quantile, and the rank error; 0 where it is exact."""
        # The bin of a rank is the first whose running count exceeds it.
        (low_bin, high_bin) = np.searchsorted(np.cumsum(counts), self.at, side="right")
        low, high = bin_edges(low_bin, 12)[0], bin_edges(high_bin, 12)[1]
        error = counts[low_bin] + np.where(low_bin == high_bin, 0, counts[high_bin])
        # A rank below the cut has a value below it, however far its bin reaches.
        high = np.where(self.tail[1] < 0, np.minimum(high, cut), high)
        return low, high, np.where(self.exact, 0, error)


def _other_cuts(ours: Float[np.ndarray, " column"], theirs: Float[np.ndarray, " other"]) -> str:
    if len(ours) != len(theirs):
        return f"a tail of {len(theirs)} columns cannot be merged into one of {len(ours)}."
    k = int(np.argmax(ours != theirs))
    return (
        f"tails of other cuts cannot be merged (column {k}: {ours[k]:g} here, {theirs[k]:g} there): what "
        "lies between the two was kept by one alone. Scan all shards with the same cuts."
    )
