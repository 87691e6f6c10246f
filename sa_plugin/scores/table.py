"""The table of scores: concept activations of every kept token at every layer of a bank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.passes.layout import TokenTable


@dataclass(frozen=True, eq=False)
class SampleStatistic:
    """A number for every sample and concept that comes from elsewhere: a prompt, a classifier.

    Attributes:
        values: NaN where it is not known; concepts as the columns of the token labels.
        threshold: Where it fires, if that is settled beforehand; None to calibrate it with the
            same search as every other statistic.
    """

    values: Float[np.ndarray, "sample concept"]
    threshold: float | None = None


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
        given: Statistics of samples from elsewhere, by the name of their method.
    """

    tokens: TokenTable
    bank: ConceptBank
    scores: Float[np.ndarray, "token layer unit"]
    permuted_max: Float[np.ndarray, "sample layer unit"] | None = None
    pooled: Float[np.ndarray, "sample layer pooled_unit"] | None = None
    cls: Float[np.ndarray, "sample layer pooled_unit"] | None = None
    given: Mapping[str, SampleStatistic] = field(default_factory=dict)

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
        contiguous = len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all()
        scores = self.scores[rows[0] : rows[-1] + 1] if contiguous else self.scores[rows]
        return ScoreTable(
            self.tokens.select(samples),
            self.bank,
            scores,
            None if self.permuted_max is None else self.permuted_max[samples],
            None if self.pooled is None else self.pooled[samples],
            None if self.cls is None else self.cls[samples],
            {k: replace(one, values=one.values[samples]) for k, one in self.given.items()},
        )

    def with_statistic(
        self, name: str, values: Float[np.ndarray, "sample concept"], *, threshold: float | None = None
    ) -> ScoreTable:
        """The same table with one more detection method: a number for each sample and concept.

        `calibrate` searches its threshold on the grid all methods share, and `evaluate` shows it
        with its interval and its paired difference, on the same resamples of documents.

        Args:
            name: Of the method.
            values: Samples as in `tokens.samples`, concepts as in `tokens.concepts`; NaN where it
                is not known. Higher means present.
            threshold: Where it fires, if that is settled beforehand: then nothing is calibrated.

        Raises:
            ValueError: Another shape, or an infinite value.

        Example:
            >>> scores = scores.with_statistic("length", lengths)  # doctest: +SKIP
        """
        shape = (self.tokens.n_samples, len(self.tokens.concepts))
        values = np.asarray(values)
        if values.shape != shape:
            raise ValueError(
                f"the statistic {name!r} has shape {values.shape}, expected [sample, concept] = "
                f"{shape}: one number for each sample of the table and each labelled concept."
            )
        if np.isinf(values).any():
            raise ValueError(
                f"the statistic {name!r} has infinite values: give finite numbers, NaN where it is not known."
            )
        return replace(self, given={**self.given, name: SampleStatistic(values, threshold)})
