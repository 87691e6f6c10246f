"""How often each key occurs, for the few bins that hold a wanted rank."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt32

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
