"""Dividing source documents over train, calibration and test, and drawing a part of a split.

The unit is the *source document*: samples of one document are not independent of one another, so
they stay together here, and intervals resample documents too.

    d -> argmax_s  sum_k  (want[s, k] - have[s, k]) / want[s, k]  *  counts[d, k] / total[k]

`k` runs over the concepts (positive samples) and over all samples; `want` is the split's share of
each total, `have` what it holds so far. Documents with the largest share of a rare concept choose
first, so that what is scarce is spread before what is plentiful.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sa_plugin.data.columns import Given, column, number_of, seed_of, text_of
from sa_plugin.data.sample import SPLITS, Sample, SplitName

_Fractions = tuple[float, float, float]


@dataclass(frozen=True)
class Splits:
    """How samples are divided over train, cal and test.

    Args:
        of: "train", "cal" or "test" for each sample. By default source documents are divided by
            `fractions`, stratified over concepts.
        fractions: Shares of train, cal and test, when `of` is not given.
        seed: Seed of the division.

    Raises:
        ValueError: The fractions are not three positive numbers that add up to 1.
    """

    of: Given[Sequence[str] | None] = None
    fractions: Given[_Fractions] = (0.6, 0.2, 0.2)
    seed: Given[int] = 0

    def __post_init__(self) -> None:
        if self.of is not None:
            object.__setattr__(self, "of", column("splits", self.of, text_of))
        object.__setattr__(self, "fractions", tuple(column("fractions", self.fractions, number_of)))
        object.__setattr__(self, "seed", seed_of("seed", self.seed))
        if len(self.fractions) != 3 or min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions {self.fractions} must be three positive numbers that add up to 1.")


def split_documents(
    samples: Sequence[Sample], concepts: Sequence[str], splits: Splits | None = None
) -> list[SplitName]:
    """Divide source documents by `splits.fractions` and `splits.seed`, stratified over concepts.

    Returns:
        The split of each sample.
    """
    splits = splits or Splits()
    documents = sorted({s.document for s in samples})
    row = {document: k for k, document in enumerate(documents)}
    counts = np.zeros((len(documents), len(concepts) + 1))
    for sample in samples:
        counts[row[sample.document], -1] += 1
        for k, concept in enumerate(concepts):
            counts[row[sample.document], k] += concept in sample.positive
    total = np.maximum(counts.sum(0), 1)
    rng = np.random.default_rng(splits.seed)
    # The draw breaks ties between documents that hold as much as each other, and nothing more.
    rarity = (counts / total).max(1) + rng.uniform(0, 1e-3, len(documents))
    want = np.outer(splits.fractions, total)
    have = np.zeros_like(want)
    home = np.zeros(len(documents), dtype=int)
    for d in np.argsort(-rarity, kind="stable"):
        lack = ((want - have) / want) @ (counts[d] / total)
        home[d] = int(np.argmax(lack))
        have[home[d]] += counts[d]
    return [SPLITS[home[row[s.document]]] for s in samples]


def draw_rare_first(
    samples: Sequence[Sample],
    rows: Sequence[int],
    concepts: Sequence[str],
    quota: int,
    rng: np.random.Generator,
) -> list[int]:
    """Draw `quota` of `rows` so that every concept keeps its share, rare concepts served first."""
    order = [int(i) for i in rng.permutation(rows)]
    by_concept = {c: [i for i in order if c in samples[i].positive] for c in concepts}
    drawn: dict[int, None] = {}
    for concept in sorted(concepts, key=lambda c: len(by_concept[c])):
        share = int(np.ceil(len(by_concept[concept]) * quota / len(rows)))
        # Samples drawn for a rarer concept may be positive for this one too: they count.
        missing = share - sum(concept in samples[i].positive for i in drawn)
        fresh = [i for i in by_concept[concept] if i not in drawn]
        drawn.update(dict.fromkeys(fresh[: max(0, min(missing, quota - len(drawn)))]))
    fill = [i for i in order if i not in drawn]
    return [*drawn, *fill[: quota - len(drawn)]]
