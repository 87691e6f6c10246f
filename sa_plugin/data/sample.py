"""One labelled text or image, and how labels reach its tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Real

from sa_plugin.data.images import Image, coverage

SplitName = Literal["train", "cal", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "cal", "test")


class Span(NamedTuple):
    """Characters `start` to `end` (exclusive) of a text carry `concept`."""

    start: int
    end: int
    concept: str


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
            token of the text without special tokens. Replaces `spans`.
        image: Pixels and masks; its tokens are patches.
    """

    id: str
    text: str
    document: str
    spans: tuple[Span, ...] = ()
    positive: frozenset[str] = frozenset()
    token_mask: Mapping[str, tuple[bool, ...]] | None = field(default=None, hash=False)
    image: Image | None = field(default=None, repr=False)

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
    def content(self) -> str:
        """The text, or the hash of an image's pixels: equal contents, equal inputs."""
        return self.text if self.image is None else self.image.pixel_digest

    def only(self, concepts: Collection[str]) -> Sample:
        """The same sample with the labels of these concepts alone."""
        spans = tuple(span for span in self.spans if span.concept in concepts)
        tokens, image = self.token_mask, self.image
        if tokens is not None:
            tokens = {concept: mask for concept, mask in tokens.items() if concept in concepts}
        if image is not None:
            image = replace(image, masks={c: mask for c, mask in image.masks.items() if c in concepts})
        return replace(
            self, spans=spans, positive=self.positive & set(concepts), token_mask=tokens, image=image
        )

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
            for concept, pixels in self.image.masks.items():
                if concept in column:
                    share = coverage(pixels, np.asarray(offsets, dtype=np.float64))
                    labels[:, column[concept]] = share > self.image.min_coverage
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
                    labels[:, column[concept]] = mask
            return labels
        for start, end, concept in self.spans:
            if concept in column:
                # Half-open intervals overlap when each begins before the other ends.
                overlap = (offsets[:, 0] < end) & (offsets[:, 1] > start)
                labels[overlap, column[concept]] = True
        return labels


def sample_labels(samples: Sequence[Sample], concepts: Sequence[str]) -> Bool[np.ndarray, "sample concept"]:
    """Which sample has which concept."""
    rows = [[concept in sample.positive for concept in concepts] for sample in samples]
    return np.array(rows, dtype=bool).reshape(len(samples), len(concepts))
