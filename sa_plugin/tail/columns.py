"""Reading the columns of a table that is stored row by row.

Picking one column of a [token, column] table at a time streams the whole table through memory once
a column. Cut into blocks of tokens that stay in cache, it is read once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Shaped

_BLOCK_BYTES = 1 << 20


def block_rows(table: Shaped[np.ndarray, "token column"]) -> int:
    """Rows of a block that stays in cache."""
    return max(1, _BLOCK_BYTES // max(1, int(table.itemsize * table.shape[1])))


def blocks(table: Shaped[np.ndarray, "token column"]) -> Iterator[slice]:
    """Row ranges of blocks that stay in cache."""
    step = block_rows(table)
    for start in range(0, len(table), step):
        yield slice(start, min(start + step, len(table)))


def pick(
    block: Shaped[np.ndarray, "token column"], labels: Bool[np.ndarray, "token concept"]
) -> list[Shaped[np.ndarray, " _in_token"]]:
    """The labelled values of each column; the labels repeat: column k has those of k % concepts."""
    rows = [np.flatnonzero(column) for column in np.ascontiguousarray(labels.T)]
    return [block[:, k].take(rows[k % len(rows)]) for k in range(block.shape[1])]
