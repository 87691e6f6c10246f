"""Counts by source document, which intervals are over.

Up to 4,096 documents are counted one by one; of more, documents whose names have one hash are a group,
and the groups are what is left out: which documents share one is chance, and does not depend on their
order. Counts are whole numbers, so that whoever adds them in whatever order gets the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from sa_plugin._files import packed_arrays

DOCUMENTS = "documents.npz"
UNITS = 4096
"""So many source documents are counted one by one; more are counted in so many groups."""
_COUNTS = ("samples", "tokens", "present", "hits", "strict_hits")


@dataclass(eq=False)
class DocumentSums:
    """Counts by source document, or by group of them, that samples of any order are added to.

    Attributes:
        width: Number of concepts.
    """

    width: int

    def __post_init__(self) -> None:
        self._place: dict[str, int] | None = {}
        self._counts = self._zeros(min(64, UNITS))

    def _zeros(self, n: int) -> dict[str, Int[np.ndarray, "unit ..."]]:
        return {
            name: np.zeros((n, self.width) if name in _COUNTS[2:] else n, dtype=np.int64) for name in _COUNTS
        }

    def add(self, samples: Any) -> None:
        """Count a table of samples, which has all concepts of a sample in consecutive rows."""
        if not len(samples):
            return
        names = samples["document"].to_pylist()[:: self.width]
        unit = self._units(names)
        np.add.at(self._counts["samples"], unit, 1)
        np.add.at(self._counts["tokens"], unit, samples["tokens"].to_numpy()[:: self.width].astype(np.int64))
        for name in _COUNTS[2:]:
            values = samples[name].to_numpy().astype(np.int64).reshape(-1, self.width)
            np.add.at(self._counts[name], unit, values)

    def _units(self, names: Sequence[str]) -> Int[np.ndarray, " sample"]:
        if self._place is not None:
            for name in names:
                self._place.setdefault(name, len(self._place))
            size = len(self._counts["samples"])
            if size < len(self._place) <= UNITS:
                # Twice as many as before: few documents, little memory.
                grown = self._zeros(min(max(2 * size, len(self._place)), UNITS))
                for name, counts in self._counts.items():
                    grown[name][:size] = counts
                self._counts = grown
            if len(self._place) <= UNITS:
                return np.array([self._place[name] for name in names], dtype=np.int64)
            # Too many: what was counted one by one goes to the groups.
            before = [name for name, at in self._place.items() if at < size]
            group = np.array([_group(name) for name in before], dtype=np.int64)
            grouped = self._zeros(UNITS)
            for name, counts in self._counts.items():
                np.add.at(grouped[name], group, counts[: len(before)])
            self._counts = grouped
            self._place = None
        return np.array([_group(name) for name in names], dtype=np.int64)

    def arrays(self) -> dict[str, np.ndarray]:
        """Counts of each document in the order of their names, or of each group that has any."""
        if self._place is not None:
            order = np.array([self._place[name] for name in sorted(self._place)], dtype=np.int64)
        else:
            order = np.flatnonzero(self._counts["samples"])
        grouped = np.array(self._place is None)
        return {"grouped": grouped, **{name: counts[order] for name, counts in self._counts.items()}}

    def content(self) -> bytes:
        """The same as the bytes of an .npz file."""
        return packed_arrays(self.arrays())


def _group(name: str) -> int:
    return zlib.crc32(name.encode(errors="replace")) % UNITS
