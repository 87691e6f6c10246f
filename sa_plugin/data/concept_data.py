"""Dividing source documents over train, calibration and test; drawing a stratified subset.

Labelled samples and their train, calibration and test splits.

A *sample* is one text. Its *token labels* follow from labelled character spans: a token has the
label of every span it overlaps, by the tokenizer's offsets. Its *sample labels* say which concepts
the sample has; a sample may be positive for a concept without any positive token.

Samples are split by *source document*, the unit that is independent of the others; intervals
resample documents too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool

from sa_plugin._check import require_known
from sa_plugin.data.build import (
    mask_samples,
    same_length,
    span_samples,
    token_mask_samples,
    validate,
    word_spans,
)
from sa_plugin.data.sample import SPLITS, Sample, SplitName


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


@dataclass(frozen=True)
class Split:
    """The samples of one split, with the concepts and the hash of the data set they are from."""

    name: str
    samples: tuple[Sample, ...]
    concepts: tuple[str, ...]
    data_hash: str

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self.samples)} samples, data {self.data_hash[:8]})"

    @cached_property
    def sample_labels(self) -> Bool[np.ndarray, "sample concept"]:
        """Which sample has which concept."""
        rows = [[concept in s.positive for concept in self.concepts] for s in self.samples]
        return np.array(rows, dtype=bool).reshape(len(self.samples), len(self.concepts))


@dataclass(frozen=True)
class ConceptData:
    """Labelled samples with a fixed split by source document.

    Build one with `from_words`, `from_spans`, `from_token_masks` or `from_masks`;
    `sa_plugin.load` reads files.
    `skipped` says what a loader left out of its files, reason to count; it is not in the hash.
    """

    concepts: tuple[str, ...]
    samples: tuple[Sample, ...]
    split_of: tuple[str, ...]
    name: str = "data"
    seed: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        validate(self.samples, self.split_of, self.concepts)

    def __repr__(self) -> str:
        sizes = " / ".join(str(self.split_of.count(name)) for name in SPLITS)
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
        return (
            f"ConceptData({self.name!r}, {len(self.concepts)} concepts, train / cal / test = "
            f"{sizes} samples, hash {self.hash[:8]}{left_out and f'; skipped: {left_out}'})"
        )

    @property
    def train(self) -> Split:
        """Samples that concept vectors are fitted on."""
        return self.split("train")

    @property
    def cal(self) -> Split:
        """Samples that thresholds, deltas and layers are chosen on."""
        return self.split("cal")

    @property
    def test(self) -> Split:
        """Samples that results are reported on."""
        return self.split("test")

    def split(self, name: str) -> Split:
        """The samples of one split, in data order.

        Raises:
            ValueError: There is no split of that name.
        """
        require_known("split", name, SPLITS)
        chosen = tuple(s for s, of in zip(self.samples, self.split_of, strict=True) if of == name)
        return Split(name, chosen, self.concepts, self.hash)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of every text, label, document and split: equal hashes, equal data."""
        digest = hashlib.sha256(json.dumps(self.concepts).encode())
        for sample, of in zip(self.samples, self.split_of, strict=True):
            mask = sorted((sample.token_mask or {}).items())
            row = [sample.id, sample.text, sample.document, sorted(sample.spans)]
            digest.update(json.dumps([row, sorted(sample.positive), mask, of]).encode())
            if sample.image is not None:
                digest.update(sample.image.digest.encode())
        return digest.hexdigest()

    @classmethod
    def from_spans(
        cls,
        texts: Sequence[str],
        spans: Sequence[Iterable[tuple[int, int, str]]],
        *,
        concepts: Sequence[str] | None = None,
        documents: Sequence[str] | None = None,
        sample_labels: Sequence[Iterable[str]] | None = None,
        ids: Sequence[str] | None = None,
        split: Sequence[str] | None = None,
        fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
        seed: int = 0,
        name: str = "data",
    ) -> ConceptData:
        """Data from texts with labelled character spans.

        Args:
            texts: One text a sample.
            spans: For each text its `(start, end, concept)`, end exclusive.
            concepts: Concepts and their order; by default those seen, sorted.
            documents: Source document of each text; by default every text is its own.
            sample_labels: Concepts of each sample, beyond those of its spans.
            ids: Unique names; by default numbers.
            split: "train", "cal" or "test" for each sample. By default documents are divided by
                `fractions`, stratified over concepts.
            fractions: Shares of train, cal and test, when `split` is not given.
            seed: Seed of the division.
            name: Name of the data set in reports.

        Returns:
            The data, split and hashed.

        Raises:
            ValueError: Lengths differ, a span lies outside its text or splits a document, a
                concept is unknown or has no positive sample, or an id stands twice.

        Example:
            >>> data = ConceptData.from_spans(
            ...     ["a cat sat", "we walked home"] * 6, [[(2, 5, "animal")], []] * 6
            ... )
            >>> data.concepts
            ('animal',)
        """
        samples = span_samples(texts, spans, documents=documents, sample_labels=sample_labels, ids=ids)
        return cls.from_samples(samples, concepts, split, fractions, seed, name)

    @classmethod
    def from_words(
        cls,
        words: Sequence[Sequence[str]],
        labels: Sequence[Sequence[Iterable[str] | str | None]],
        *,
        concepts: Sequence[str] | None = None,
        documents: Sequence[str] | None = None,
        sample_labels: Sequence[Iterable[str]] | None = None,
        ids: Sequence[str] | None = None,
        split: Sequence[str] | None = None,
        fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
        seed: int = 0,
        name: str = "data",
    ) -> ConceptData:
        """Data from words with labels; the text is the words joined by single spaces.

        Args:
            words: The words of each sample.
            labels: For each word its concept, its concepts, or None.
            concepts: As in `from_spans`, like the arguments that follow.
            documents: Source documents.
            sample_labels: Concepts of each sample, beyond those of its words.
            ids: Unique names.
            split: Split of each sample.
            fractions: Shares of the splits.
            seed: Seed of the division.
            name: Name of the data set.

        Raises:
            ValueError: A sample has more words than labels or fewer, a word holds white space
                or is empty; and what `from_spans` raises.
        """
        same_length(words, labels=labels)
        rows = [word_spans(i, *row) for i, row in enumerate(zip(words, labels, strict=True))]
        return cls.from_spans(
            [" ".join(sample) for sample in words],
            rows,
            concepts=concepts,
            documents=documents,
            sample_labels=sample_labels,
            ids=ids,
            split=split,
            fractions=fractions,
            seed=seed,
            name=name,
        )

    @classmethod
    def from_token_masks(
        cls,
        texts: Sequence[str],
        sample_labels: Sequence[Iterable[str]],
        masks: Sequence[Mapping[str, Sequence[bool]]],
        *,
        concepts: Sequence[str] | None = None,
        documents: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        split: Sequence[str] | None = None,
        fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
        seed: int = 0,
        name: str = "data",
    ) -> ConceptData:
        """Data from sample labels with token masks of one tokenizer.

        Args:
            texts: One text a sample.
            sample_labels: Concepts of each sample; one may be positive with no positive token.
            masks: For each sample, concept to one boolean a token (special tokens left out).
                Their length is checked when a host tokenises the text.
            concepts: As in `from_spans`, like the arguments that follow.
            documents: Source documents.
            ids: Unique names.
            split: Split of each sample.
            fractions: Shares of the splits.
            seed: Seed of the division.
            name: Name of the data set.

        Raises:
            ValueError: A sample has a positive token for a concept it is not labelled with; and
                what `from_spans` raises.
        """
        samples = token_mask_samples(texts, sample_labels, masks, documents=documents, ids=ids)
        return cls.from_samples(samples, concepts, split, fractions, seed, name)

    @classmethod
    def from_masks(
        cls,
        images: Sequence[Any],
        masks: Sequence[Any],
        *,
        boxes: Sequence[Iterable[Any]] | None = None,
        concepts: Sequence[str] | None = None,
        documents: Sequence[str] | None = None,
        sample_labels: Sequence[Iterable[str]] | None = None,
        ids: Sequence[str] | None = None,
        split: Sequence[str] | None = None,
        fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
        min_coverage: float = 0.0,
        seed: int = 0,
        name: str = "images",
    ) -> ConceptData:
        """Data from images with a pixel mask, or boxes, for each concept.

        Patch labels are read from the masks through the very transform that the model's processor
        applies to the image; nothing is resampled.

        Args:
            images: RGB, uint8 `[height, width, 3]`.
            masks: For each image, concept to boolean mask `[height, width]` of the image's own
                size. Empty masks are allowed and make no positive.
            boxes: For each image `(concept, top, left, bottom, right)` in pixels, added to the
                masks; a pixel is inside when its centre is.
            concepts: As in `from_spans`, like the arguments that follow.
            documents: Source documents.
            sample_labels: Concepts of each image, beyond those of its masks.
            ids: Unique names.
            split: Split of each image.
            fractions: Shares of the splits.
            min_coverage: A patch has a concept when more than this share of its pixels is in the
                mask; 0 means any pixel.
            seed: Seed of the division.
            name: Name of the data set.

        Raises:
            ValueError: An image is no RGB array, a mask is not boolean or has another size than
                its image, a box is malformed or empty, `min_coverage` is outside [0, 1); and what
                `from_spans` raises.
        """
        samples = mask_samples(
            images,
            masks,
            boxes=boxes,
            documents=documents,
            sample_labels=sample_labels,
            ids=ids,
            min_coverage=min_coverage,
        )
        return cls.from_samples(samples, concepts, split, fractions, seed, name)

    def subset(self, n: int, *, seed: int = 0) -> ConceptData:
        """At most `n` samples, the splits' shares kept, samples of rare concepts drawn first.

        Serving rare concepts first raises the share of positives a little; the name says so.

        Raises:
            ValueError: `n` leaves a split without samples.
        """
        if n >= len(self.samples):
            return self
        rng = np.random.default_rng(seed)
        chosen: set[int] = set()
        for split_name in SPLITS:
            rows = [i for i, of in enumerate(self.split_of) if of == split_name]
            quota = round(n * len(rows) / len(self.samples))
            if quota <= 0:
                raise ValueError(f"{n} samples leave the {split_name} split empty: ask for more.")
            chosen.update(draw_rare_first(self.samples, rows, self.concepts, quota, rng))
        keep = sorted(chosen)
        return replace(
            self,
            name=f"{self.name}, {len(keep)} of {len(self.samples)}, rare concepts first",
            samples=tuple(self.samples[i] for i in keep),
            split_of=tuple(self.split_of[i] for i in keep),
        )

    @classmethod
    def from_samples(
        cls,
        samples: Sequence[Sample],
        concepts: Sequence[str] | None = None,
        split: Sequence[str] | None = None,
        fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
        seed: int = 0,
        name: str = "data",
        skipped: Mapping[str, int] | None = None,
    ) -> ConceptData:
        """Data from samples that are already made, as loaders make them.

        Args:
            samples: At least one.
            concepts: As in `from_spans`, like the arguments that follow.
            split: Split of each sample.
            fractions: Shares of the splits.
            seed: Seed of the division.
            name: Name of the data set.
            skipped: What was left out, reason to count.

        Raises:
            ValueError: What `from_spans` raises.
        """
        order = tuple(concepts or sorted({c for s in samples for c in s.positive}))
        if split is None:
            split = split_documents(samples, order, fractions, seed)
        same_length(samples, split=split)
        return cls(order, tuple(samples), tuple(split), name, seed, dict(skipped or {}))
