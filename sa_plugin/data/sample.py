"""One labelled text or image, and how labels reach its tokens.

A token label is positive, negative or unknown. A concept that a sample has, and none of whose tokens
is labelled, says nothing about the tokens: all of them are unknown, unless the sample says otherwise
(`unknown`). Which labels a tokenizer, a crop or an attention sink lets fall makes no difference: a
sample with a labelled word stays a sample of known tokens, whether or not the word becomes a row. A patch
is unknown, too, where the void pixels of its image could change its label (`images.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Real

from sa_plugin._check import require_place
from sa_plugin._face import face
from sa_plugin.data.columns import Given, column, names_of
from sa_plugin.data.given import Chat, TokenIds
from sa_plugin.data.images import Image

SplitName = Literal["train", "cal", "test", "guard"]
SPLITS: tuple[SplitName, ...] = ("train", "cal", "test")
# What data may have besides: documents that choose nothing, from which a promise is made.
ALL_SPLITS: tuple[SplitName, ...] = (*SPLITS, "guard")


@face
class Span(NamedTuple):
    """Characters `start` to `end` (exclusive) of a text carry `concept`."""

    start: int
    end: int
    concept: str


@face
@dataclass(frozen=True)
class SampleLabels:
    """Which concepts samples have, and of which of them the token labels say nothing.

    Args:
        of: Concepts of each sample, beyond those of its spans, words or masks.
        unknown: For each sample the concepts whose tokens are unknown where they carry no label, and
            not negative: `[]` says that the token labels of a sample are complete. By default those
            concepts of a sample that label none of its tokens.

    Example:
        >>> SampleLabels([["animal"], []], unknown=[[], []]).unknown_of(0)
        frozenset()
    """

    of: Given[Sequence[Iterable[str]] | None] = None
    unknown: Given[Sequence[Iterable[str]] | None] = None

    def __post_init__(self) -> None:
        for name, shown in (("of", "sample_labels"), ("unknown", "unknown")):
            given = getattr(self, name)
            object.__setattr__(self, name, None if given is None else column(shown, given, names_of))

    def positive_of(self, k: int) -> frozenset[str]:
        """Concepts of one sample."""
        require_place("k", k, len(self.of or [None] * (abs(k) + 1)), "samples")
        return frozenset(self.of[k]) if self.of else frozenset()

    def unknown_of(self, k: int) -> frozenset[str] | None:
        """Concepts whose tokens are unknown in one sample; None where its labels say it."""
        require_place("k", k, len(self.unknown or [None] * (abs(k) + 1)), "samples")
        return None if self.unknown is None else frozenset(self.unknown[k])


@face
@dataclass(frozen=True)
class Sample:
    """One text or image with what is known of it.

    Args:
        id: Unique name of the sample.
        text: The text; empty for an image.
        document: Source document: the unit of splitting and resampling.
        spans: Labelled character spans.
        positive: Concepts the sample has (sample labels).
        token_mask: For samples labelled by token: concept to a tuple of booleans, one for each
            token of the text without special tokens; None where it is not known. Replaces `spans`.
        image: Pixels and masks; its tokens are patches.
        unknown: Concepts whose tokens are unknown where they are not positive, and not negative. By
            default those the sample has without a labelled token; an empty set says that its
            labels are complete.
        source: What the model is given, where that is not the text: a chat or token ids.
    """

    id: str
    text: str
    document: str
    spans: tuple[Span, ...] = ()
    positive: frozenset[str] = frozenset()
    token_mask: Mapping[str, tuple[bool | None, ...]] | None = field(default=None, hash=False)
    image: Image | None = field(default=None, repr=False)
    unknown: frozenset[str] | None = None
    source: Chat | TokenIds | None = None

    block: ClassVar[int | None] = None
    """Number of the block of its corpus; None for a sample that is in memory."""

    def __repr__(self) -> str:
        shown = f"{self.text[:40]!r}{'...' if len(self.text) > 40 else ''}"
        if self.image is not None:
            shown = "image {} x {}".format(*self.image.pixels.shape[:2])
        return f"Sample({self.id!r}, {shown}, {sorted(self.positive)})"

    @classmethod
    def of(cls, sample: Sample | str) -> Sample:
        """The sample itself; a text becomes a sample of its own document."""
        return cls("text", sample, "text") if isinstance(sample, str) else sample

    @property
    def loaded(self) -> Sample:
        """The sample with its content in memory, where it is."""
        return self

    @property
    def digest(self) -> bytes:
        """Of its content."""
        return hashlib.sha256(self.content.encode("utf-8", "surrogatepass")).digest()

    @property
    def content(self) -> str:
        """The text, or the hash of an image's pixels: equal contents, equal inputs."""
        return self.text if self.image is None else self.image.pixel_digest

    @property
    def labelled(self) -> frozenset[str]:
        """Concepts of which some token is labelled, whether or not it becomes a row."""
        if self.image is not None:
            return frozenset(concept for concept, mask in self.image.masks.items() if mask.any())
        if self.token_mask is not None:
            # A mask that says which of its tokens are unknown speaks for all of them.
            return frozenset(c for c, mask in self.token_mask.items() if any(v or v is None for v in mask))
        return frozenset(span.concept for span in self.spans)

    @cached_property
    def unlabelled(self) -> frozenset[str]:
        """Concepts whose tokens are unknown where they are not positive."""
        return self.positive - self.labelled if self.unknown is None else self.unknown

    @cached_property
    def vague(self) -> frozenset[str]:
        """Concepts of which the label of some token is unknown, void pixels left aside."""
        masks = self.token_mask or {}
        return self.unlabelled | {concept for concept, mask in masks.items() if None in mask}

    def only(self, concepts: Collection[str]) -> Sample:
        """The same sample with the labels of these concepts alone."""
        spans = tuple(span for span in self.spans if span.concept in concepts)
        tokens, image = self.token_mask, self.image
        if tokens is not None:
            tokens = {concept: mask for concept, mask in tokens.items() if concept in concepts}
        if image is not None:
            image = replace(image, masks={c: mask for c, mask in image.masks.items() if c in concepts})
        positive = self.positive & set(concepts)
        unknown = None if self.unknown is None else self.unknown & set(concepts)
        return replace(self, spans=spans, positive=positive, token_mask=tokens, image=image, unknown=unknown)

    def token_text(self, edges: Real[np.ndarray, " edge"]) -> str:
        """The characters of one token, or where a patch lies: rows and columns of its pixels."""
        if self.image is None:
            return self.text[int(edges[0]) : int(edges[1])]
        top, left, bottom, right = (round(float(edge)) for edge in edges)
        return f"[{top}:{bottom}, {left}:{right}]"

    def token_labels(
        self, offsets: Real[np.ndarray, "token edge"], concepts: Sequence[str]
    ) -> Bool[np.ndarray, "token concept"]:
        """Label tokens by the spans they overlap, patches by the masks they cover.

        Args:
            offsets: Character offsets `[start, end)` of the tokens, special tokens left out; for
                images the box of each patch (top, left, bottom, right) in image pixels.
            concepts: Column order of the result; labels of other concepts are not asked for.

        Raises:
            ValueError: A token mask has another length than the tokenizer's output.
        """
        labels = np.zeros((len(offsets), len(concepts)), dtype=bool)
        column = {concept: k for k, concept in enumerate(concepts)}
        if self.image is not None:
            boxes = np.asarray(offsets, dtype=np.float64)
            for concept in self.image.masks.keys() & column.keys():
                labels[:, column[concept]] = self.image.has(concept, boxes)
            return labels
        if self.token_mask is not None:
            for concept, mask in self.token_mask.items():
                if concept in column and len(mask) != len(offsets):
                    raise ValueError(
                        f"sample {self.id!r}: the token mask of {concept!r} has {len(mask)} "
                        f"entries, the tokenizer gives {len(offsets)} tokens (special tokens left "
                        "out). Make the mask with the tokenizer of the model you attach, or label "
                        "by character spans (ConceptData.from_spans)."
                    )
                if concept in column:
                    labels[:, column[concept]] = [value is True for value in mask]
            return labels
        for start, end, concept in self.spans:
            if concept in column:
                # Half-open intervals overlap when each begins before the other ends.
                overlap = (offsets[:, 0] < end) & (offsets[:, 1] > start)
                labels[overlap, column[concept]] = True
        return labels

    def token_known(
        self,
        offsets: Real[np.ndarray, "token edge"],
        labels: Bool[np.ndarray, "token concept"],
        concepts: Sequence[str],
    ) -> Bool[np.ndarray, "token concept"] | None:
        """Which of the token labels are known; None where all are.

        Args:
            offsets: Of the tokens, as `token_labels` takes them.
            labels: What it gave for them.
            concepts: Columns of the labels.
        """
        has_void = self.image is not None and self.image.void is not None
        if not has_void and self.vague.isdisjoint(concepts):
            return None
        known = np.ones_like(labels)
        for k, concept in enumerate(concepts):
            if concept in self.unlabelled:
                known[:, k] = labels[:, k]
            elif concept in self.vague and self.token_mask is not None:
                known[:, k] = [value is not None for value in self.token_mask[concept]]
        if self.image is not None and has_void:
            known &= labels | ~self.image.may_have(concepts, np.asarray(offsets, dtype=np.float64))
        return known


def sample_labels(samples: Sequence[Sample], concepts: Sequence[str]) -> Bool[np.ndarray, "sample concept"]:
    """Which sample has which concept."""
    rows = [[concept in sample.positive for concept in concepts] for sample in samples]
    return np.array(rows, dtype=bool).reshape(len(samples), len(concepts))
