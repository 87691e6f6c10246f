"""Synthetic score tables: words as tokens, scores drawn around the labels, no model."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from sa_plugin.concepts import ConceptBank, Origin, VectorSet
from sa_plugin.data import ConceptData, Splits
from sa_plugin.passes import TokenTable
from sa_plugin.scores import ScoreTable

CONCEPTS = ("animal", "food", "weather")
LAYERS = (2, 5, 9)


@dataclass(frozen=True)
class Case:
    """Data with the scores of its calibration and test samples."""

    data: ConceptData
    bank: ConceptBank
    table: ScoreTable


def words_and_labels(rng, n, concepts, bare):
    """Random words; `bare` of the samples have a concept without any token that carries it."""
    words, labels, extra = [], [], []
    for k in range(n):
        length = int(rng.integers(5, 25))
        row = [None] * length
        for concept in concepts:
            if rng.random() < 0.4:
                for at in rng.choice(length, rng.integers(1, 4), replace=False):
                    row[at] = concept
        words.append([f"w{k}_{t}" for t in range(length)])
        labels.append(row)
        extra.append([str(rng.choice(concepts))] if rng.random() < bare else [])
    return words, labels, extra


def token_table(data, names=("cal", "test")):
    """Words as tokens, for the samples of some splits."""
    rows = [(s, of) for s, of in zip(data.samples, data.split_of, strict=True) if of in names]
    offsets, labels, sample_of, position = [], [], [], []
    for n, (sample, _) in enumerate(rows):
        start = 0
        here = []
        for word in sample.text.split():
            here.append((start, start + len(word)))
            start += len(word) + 1
        labels.append(sample.token_labels(np.array(here), data.concepts))
        offsets += here
        sample_of += [n] * len(here)
        position += range(len(here))
    return TokenTable(
        tuple(s for s, _ in rows),
        tuple(of for _, of in rows),
        data.concepts,
        np.array(sample_of),
        np.array(position),
        np.array(offsets),
        np.concatenate(labels),
        {"special": 0, "sink": 0},
    )


def make_bank(concepts=CONCEPTS, layers=LAYERS, units=None, controls=True, data=None, seed=0):
    """A bank of random vectors; the tables below do not come from them."""
    generator = torch.Generator().manual_seed(seed)
    names = concepts if units is None else tuple(str(k) for k in range(units))

    def vectors(n):
        return VectorSet(
            torch.randn(len(layers), n, 4, generator=generator),
            torch.zeros(len(layers), 4),
            torch.ones(len(layers)),
            "dot",
        )

    own = vectors(len(names))
    both = controls and units is None
    return ConceptBank(
        concepts,
        names,
        layers,
        "resid_post",
        "separator" if units is None else "kmeans",
        own,
        permuted=vectors(len(names)) if both else None,
        pooled=vectors(len(names)) if controls else None,
        origin=Origin(data_hash=data.hash if data else ""),
    )


def make_case(seed=0, n=120, units=None, controls=True, bare=0.1, strength=2.0, rounded=False, documents=12):
    """Scores: noise, plus `strength` (more at later layers) on most in-concept tokens.

    With `rounded`, scores take few distinct values, so that ties abound.
    """
    rng = np.random.default_rng(seed)
    words, labels, extra = words_and_labels(rng, n, CONCEPTS, bare)
    data = ConceptData.from_words(
        words,
        labels,
        concepts=CONCEPTS,
        sample_labels=extra,
        splits=Splits(seed=seed),
        documents=[f"doc {k % documents}" for k in range(n)],
    )
    tokens = token_table(data)
    bank = make_bank(units=units, controls=controls, data=data)
    width = len(bank.units)
    scores = rng.normal(size=(len(tokens), len(LAYERS), width))
    lift = strength * np.array([0.5, 1.0, 0.9])
    heard = tokens.labels & (rng.random(tokens.labels.shape) < 0.7)
    for unit in range(width):
        scores[:, :, unit] += heard[:, unit % len(CONCEPTS), None] * lift / (1 + unit // len(CONCEPTS))
    if rounded:
        scores = np.round(scores * 2) / 2
    samples = tokens.n_samples
    pooled = permuted = None
    if bank.pooled is not None:
        pooled = rng.normal(size=(samples, len(LAYERS), width)).astype(np.float32)
        pooled += tokens.sample_labels[:, None, [u % len(CONCEPTS) for u in range(width)]]
    if bank.permuted is not None:
        permuted = rng.normal(size=(samples, len(LAYERS), width)).astype(np.float32)
    table = ScoreTable(tokens, bank, scores.astype(np.float32), permuted, pooled)
    return Case(data, bank, table)


def with_scores(table, scores):
    """The same table with other scores."""
    return replace(table, scores=scores.astype(np.float32))
