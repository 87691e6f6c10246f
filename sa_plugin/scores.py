"""The table of scores: concept activations of every kept token at every layer of a bank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.tokens import TokenTable


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores that calibration, detection, tracing and reports share.

    Attributes:
        tokens: What the rows are.
        bank: The vectors the scores are of.
        scores: Float32, in memory or memory mapped.
        permuted_max: Each sample's highest score under the permuted-label vectors.
        pooled: Score of each sample's mean activation under the pooled vectors.
        cls: Score of each sample's class token under the class-token vectors.
    """

    tokens: TokenTable
    bank: ConceptBank
    scores: Float[np.ndarray, "token layer unit"]
    permuted_max: Float[np.ndarray, "sample layer unit"] | None = None
    pooled: Float[np.ndarray, "sample layer pooled_unit"] | None = None
    cls: Float[np.ndarray, "sample layer pooled_unit"] | None = None

    def __repr__(self) -> str:
        return f"ScoreTable({self.bank!r}, {self.tokens!r})"

    def split(self, name: str) -> ScoreTable:
        """The rows of one split.

        Raises:
            ValueError: No sample of that split was scored.
        """
        chosen = np.array([k for k, of in enumerate(self.tokens.split_of) if of == name], dtype=int)
        if not len(chosen):
            have = sorted(set(self.tokens.split_of))
            raise ValueError(f"no sample of split {name!r} was scored; scored: {have}.")
        return self.select(chosen)

    def select(self, samples: np.ndarray) -> ScoreTable:
        """The rows of some samples, in the order given."""
        rows = self.tokens.rows_of(samples)
        contiguous = (
            len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all()
        )
        scores = self.scores[rows[0] : rows[-1] + 1] if contiguous else self.scores[rows]
        return ScoreTable(
            self.tokens.select(samples),
            self.bank,
            scores,
            None if self.permuted_max is None else self.permuted_max[samples],
            None if self.pooled is None else self.pooled[samples],
            None if self.cls is None else self.cls[samples],
        )
