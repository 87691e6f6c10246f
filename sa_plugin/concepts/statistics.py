"""What one pass over the train split leaves behind for fitting, one record a layer.

Normalised embedding: `x = (h - mean) / scale`, with `mean` the mean of the train tokens and
`scale` the root mean square of their norms `|h|` ("rms"), or the mean of the norms ("mean_norm");
arXiv 2512.05038, normaliser of the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Train rows of one layer, in half precision in memory or in a memory map, read normalised.

    Attributes:
        stored: The rows as read from the model, not normalised.
        mean: Subtracted from every row.
        scale: Divides every row.
        chunk: Rows normalised at a time.
    """

    stored: Float[np.ndarray, "row d_model"]
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
        raw = torch.from_numpy(np.asarray(self.stored[part], dtype=np.float32))
        return (raw - self.mean.float()) / self.scale


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
    """

    n: int
    mean: Float[Tensor, " d_model"]
    scale: float
    positive_count: Int[Tensor, " concept"]
    positive_mean: Float[Tensor, "concept d_model"]
    gram: Float[Tensor, "d_model d_model"] | None = None
    rows: Rows | None = None
    labels: Bool[np.ndarray, "row concept"] | None = None
