"""Dividing source documents over train, calibration and test; drawing a stratified subset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sa_plugin.samples import SPLITS, Sample, SplitName


def split_documents(
    samples: Sequence[Sample],
    concepts: Sequence[str],
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
) -> list[SplitName]:
    """Divide source documents over the splits, stratified over concepts.

    Documents are taken in seeded order, those with the rarest concepts first, and each goes to the
    split that lacks most of what the document holds (positives of every concept, and samples).

    Raises:
        ValueError: The fractions are not three positive numbers that add up to 1.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions {fractions} must be three positive numbers that add up to 1.")
    documents = sorted({s.document for s in samples})
    row = {document: k for k, document in enumerate(documents)}
    counts = np.zeros((len(documents), len(concepts) + 1))
    for sample in samples:
        counts[row[sample.document], -1] += 1
        for k, concept in enumerate(concepts):
            counts[row[sample.document], k] += concept in sample.positive
    total = np.maximum(counts.sum(0), 1)
    rng = np.random.default_rng(seed)
    rarity = (counts / total).max(1) + rng.uniform(0, 1e-3, len(documents))
    want = np.outer(fractions, total)
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
    """Draw rows so that every concept keeps its share, rare concepts being served first."""
    order = [int(i) for i in rng.permutation(rows)]
    by_concept = {c: [i for i in order if c in samples[i].positive] for c in concepts}
    drawn: dict[int, None] = {}
    for concept in sorted(concepts, key=lambda c: len(by_concept[c])):
        share = int(np.ceil(len(by_concept[concept]) * quota / len(rows)))
        missing = share - sum(concept in samples[i].positive for i in drawn)
        fresh = [i for i in by_concept[concept] if i not in drawn]
        drawn.update(dict.fromkeys(fresh[: max(0, min(missing, quota - len(drawn)))]))
    fill = [i for i in order if i not in drawn]
    return [*drawn, *fill[: quota - len(drawn)]]
