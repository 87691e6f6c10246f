"""The table of tokens: every kept token of every sample is a row, in sample order.

Padding, special tokens and attention sinks are never rows; what was dropped is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int, Real

from sa_plugin.data.sample import Sample


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Rows of tokens and what is known of them.

    Attributes:
        samples: In the order of the rows.
        split_of: Split of each sample.
        concepts: Columns of the labels.
        sample_of: Sample of each token, ascending.
        position: Place of each token in the model's input sequence, without padding.
        offsets: Character offsets of each token, or the box of each patch in image pixels.
        labels: Token labels.
        dropped: Tokens that are no rows, by reason.
    """

    samples: tuple[Sample, ...]
    split_of: tuple[str, ...]
    concepts: tuple[str, ...]
    sample_of: Int[np.ndarray, " token"]
    position: Int[np.ndarray, " token"]
    offsets: Real[np.ndarray, "token edge"]
    labels: Bool[np.ndarray, "token concept"]
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.sample_of)

    def __repr__(self) -> str:
        dropped = ", ".join(f"{count} {why}" for why, count in self.dropped.items())
        return f"TokenTable({len(self.samples)} samples, {len(self)} tokens kept; dropped: {dropped})"

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return len(self.samples)

    @cached_property
    def bounds(self) -> Int[np.ndarray, " sample_and_one"]:
        """Row where each sample starts; sample n owns rows `bounds[n]:bounds[n + 1]`."""
        return np.searchsorted(self.sample_of, np.arange(self.n_samples + 1))

    @cached_property
    def sample_labels(self) -> Bool[np.ndarray, "sample concept"]:
        """Sample labels."""
        rows = [[concept in s.positive for concept in self.concepts] for s in self.samples]
        return np.array(rows, dtype=bool).reshape(self.n_samples, len(self.concepts))

    @cached_property
    def documents(self) -> Int[np.ndarray, " sample"]:
        """Number of each sample's source document."""
        code = {d: k for k, d in enumerate(dict.fromkeys(s.document for s in self.samples))}
        return np.array([code[s.document] for s in self.samples], dtype=np.int64)

    def rows_of(self, samples: Int[np.ndarray, " chosen"]) -> Int[np.ndarray, " token"]:
        """Rows of some samples, in the order given."""
        if not len(samples):
            return np.zeros(0, dtype=np.int64)
        return np.concatenate([np.arange(self.bounds[n], self.bounds[n + 1]) for n in samples])

    def select(self, samples: Int[np.ndarray, " chosen"]) -> TokenTable:
        """The table of some samples, in the order given; `dropped` stays that of the whole."""
        rows = self.rows_of(samples)
        lengths = np.diff(self.bounds)[samples]
        return TokenTable(
            tuple(self.samples[n] for n in samples),
            tuple(self.split_of[n] for n in samples),
            self.concepts,
            np.repeat(np.arange(len(samples)), lengths),
            self.position[rows],
            self.offsets[rows],
            self.labels[rows],
            self.dropped,
        )

    def text(self, row: int) -> str:
        """The characters of one token, or where a patch lies."""
        return self.samples[int(self.sample_of[row])].token_text(self.offsets[row])
