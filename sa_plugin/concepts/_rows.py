"""Stored train rows as the iterative kinds read them: checked once, kept in float32 if they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.concepts.statistics import LayerStatistics, Rows

MEMORY = 2 << 30
Blocks = Callable[[], Iterable[tuple[slice, Float[Tensor, "row d_model"]]]]


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
    for what, columns in (("no", positive == 0), ("nothing but", positive == len(labels))):
        if columns.any():
            raise ValueError(
                f"{kind}: concept columns {np.flatnonzero(columns).tolist()} have {what} "
                f"in-concept rows among {len(labels):,}: both classes are needed. Label more "
                "samples or leave these concepts out."
            )
    return labels


def blocks(rows: Rows, kind: str, memory: int = MEMORY) -> Blocks:
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
