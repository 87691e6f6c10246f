"""Samples from labelled words, spans, token masks and images, and what a data set must satisfy.

Nothing is repaired: a label that does not fit its text, a document in two splits or a concept
without a sample is an error, and what only weakens results (a repeated text, a split without
positives) is a warning of its own class.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sa_plugin._check import users_line
from sa_plugin.data.images import Image, PixelLabels, combine_masks
from sa_plugin.data.sample import SPLITS, Sample, SampleLabels, Span


class EmptySplitWarning(UserWarning):
    """A concept has no positive sample in a split."""


class RepeatedTextWarning(UserWarning):
    """The same text lies in two splits."""


def validate(samples: Sequence[Sample], split_of: Sequence[str], concepts: Sequence[str]) -> None:
    """Check labels, documents and splits of a data set.

    Raises:
        ValueError: What is wrong, the sample or concept, and the fix.
    """
    if not samples:
        raise ValueError("the data set has no samples.")
    known = set(concepts)
    labelled = {concept for sample in samples for concept in sample.positive}
    if isinstance(concepts, str) or _one_name(concepts, labelled):
        name = "".join(concepts)
        raise ValueError(f"concepts is the string {name!r}: give a list of names, [{name!r}].")
    if not known and not labelled:
        raise ValueError("no sample has a label, so there is no concept: give spans, masks or sample_labels.")
    if not known or len(known) != len(concepts):
        raise ValueError(f"concepts {concepts} must be one or more distinct names.")
    home: dict[str, str] = {}
    text_home: dict[str, tuple[str, str]] = {}
    repeated: list[tuple[str, str]] = []
    seen: set[str] = set()
    for sample, of in zip(samples, split_of, strict=True):
        if of not in SPLITS:
            raise ValueError(f"split {of!r} of sample {sample.id!r} is not one of {SPLITS}.")
        if sample.id in seen:
            raise ValueError(f"sample id {sample.id!r} stands twice: ids must be unique.")
        seen.add(sample.id)
        if home.setdefault(sample.document, of) != of:
            raise ValueError(
                f"document {sample.document!r} lies in {home[sample.document]} and in {of}: a "
                "document belongs to one split, or test results leak. Leave `split` out to divide "
                "by document."
            )
        _validate_labels(sample, known)
        first, where = text_home.setdefault(sample.content, (sample.id, of))
        if where != of:
            repeated.append((first, sample.id))
    if repeated:
        warnings.warn(
            f"{len(repeated)} text(s) stand in two splits, {repeated[0][0]!r} and "
            f"{repeated[0][1]!r} first: results on the second are too good. Give repeated texts "
            "one document.",
            RepeatedTextWarning,
            stacklevel=users_line(),
        )
    for concept in concepts:
        _validate_concept(samples, split_of, concept)


def _one_name(concepts: Sequence[str], labelled: set[str]) -> bool:
    """Whether the concepts are the letters of one label: a string read as a sequence."""
    letters = len(concepts) > 1 and all(len(concept) == 1 for concept in concepts)
    return letters and "".join(concepts) in labelled


def _validate_labels(sample: Sample, known: set[str]) -> None:
    if sample.image is None and not sample.text.strip():
        raise ValueError(
            f"sample {sample.id!r} has the text {sample.text!r:.40}, which is empty: give it a "
            "text or leave the sample out."
        )
    masked = set(sample.image.masks) if sample.image is not None else set()
    stray = (sample.positive | {s.concept for s in sample.spans} | masked) - known
    if stray:
        raise ValueError(
            f"sample {sample.id!r} is labelled {min(stray)!r}, which is not among the concepts "
            f"{sorted(known)}."
        )
    unsaid = {s.concept for s in sample.spans} - sample.positive
    if unsaid:
        raise ValueError(
            f"sample {sample.id!r} has a span of {min(unsaid)!r} but is not positive for it: add "
            "it to `positive`."
        )
    vague = (sample.unknown or frozenset()) - sample.positive
    if vague:
        raise ValueError(
            f"sample {sample.id!r} has unknown tokens of {min(vague)!r} but is not positive for it: the "
            "tokens of a sample without a concept are negative. Label the sample, or take the concept "
            "out of `unknown`."
        )
    for start, end, concept in sample.spans:
        if not 0 <= start < end <= len(sample.text):
            raise ValueError(
                f"sample {sample.id!r}: span ({start}, {end}, {concept!r}) does not lie in a text "
                f"of {len(sample.text)} characters: spans are [start, end) in characters."
            )
        if not sample.text[start:end].strip():
            raise ValueError(
                f"sample {sample.id!r}: span ({start}, {end}, {concept!r}) covers only white "
                "space: the labels are probably misaligned with the text."
            )


def _validate_concept(samples: Sequence[Sample], split_of: Sequence[str], concept: str) -> None:
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for sample, of in zip(samples, split_of, strict=True):
        counts[of] += concept in sample.positive
    if not any(counts.values()):
        raise ValueError(f"concept {concept!r} is empty: no sample is labelled with it.")
    for name, count in counts.items():
        if not count and name in split_of:
            warnings.warn(
                f"concept {concept!r} has no positive sample in the {name} split: its results "
                "there are undefined. Add samples, or leave the concept out.",
                EmptySplitWarning,
                stacklevel=users_line(),
            )


def same_length(reference: Sequence[object], **others: Sequence[object] | None) -> None:
    """Refuse columns of another length than the samples.

    Raises:
        ValueError: Which column, and both lengths.
    """
    for name, other in others.items():
        if other is not None and len(other) != len(reference):
            raise ValueError(
                f"{name} has {len(other)} entries for {len(reference)} samples: give one a sample."
            )


def word_spans(index: int, words: Sequence[str], labels: Sequence[Iterable[str] | str | None]) -> list[Span]:
    """Spans of labelled words in their text, joined by single spaces.

    Raises:
        ValueError: Words and labels differ in number, or a word is empty or holds white space.
    """
    if len(words) != len(labels):
        raise ValueError(
            f"sample {index} has {len(words)} words and {len(labels)} labels: give one label a "
            "word (None where it has none)."
        )
    spans: list[Span] = []
    start = 0
    for word, label in zip(words, labels, strict=True):
        if not word or any(character.isspace() for character in word):
            raise ValueError(f"sample {index}: word {word!r} is empty or holds white space.")
        concepts = (label,) if isinstance(label, str) else tuple(label or ())
        spans.extend(Span(start, start + len(word), concept) for concept in concepts)
        start += len(word) + 1
    return spans


def span_samples(
    texts: Sequence[str],
    spans: Sequence[Iterable[tuple[int, int, str]]],
    *,
    documents: Sequence[str] | None = None,
    sample_labels: Sequence[Iterable[str]] | SampleLabels | None = None,
    ids: Sequence[str] | None = None,
) -> list[Sample]:
    """Samples from texts with labelled character spans.

    Args:
        texts: One text a sample.
        spans: For each text its `(start, end, concept)`, end exclusive.
        documents: Source documents; by default every text is its own.
        sample_labels: Concepts of each sample, beyond those of its spans.
        ids: Unique names; by default numbers.

    Raises:
        ValueError: The lengths differ.
    """
    said = _said(texts, sample_labels)
    same_length(texts, spans=spans, documents=documents, ids=ids)
    names, homes = _names(texts, ids, documents)
    samples = []
    for k, (text, row) in enumerate(zip(texts, spans, strict=True)):
        spans_of = tuple(Span(*span) for span in row)
        positive = frozenset(s.concept for s in spans_of) | said.positive_of(k)
        samples.append(Sample(names[k], text, homes[k], spans_of, positive, unknown=said.unknown_of(k)))
    return samples


def token_mask_samples(
    texts: Sequence[str],
    sample_labels: Sequence[Iterable[str]] | SampleLabels,
    masks: Sequence[Mapping[str, Sequence[bool | None]]],
    *,
    documents: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
) -> list[Sample]:
    """Samples from sample labels with token masks of one tokenizer.

    Raises:
        ValueError: The lengths differ, or a sample has a positive token for a concept it is not
            labelled with.
    """
    said = _said(texts, sample_labels)
    same_length(texts, masks=masks, documents=documents, ids=ids)
    names, homes = _names(texts, ids, documents)
    samples = []
    for k, (text, mask) in enumerate(zip(texts, masks, strict=True)):
        positive = said.positive_of(k)
        stray = [c for c, row in mask.items() if any(row) and c not in positive]
        if stray:
            raise ValueError(
                f"sample {names[k]!r} has positive tokens for {stray[0]!r} but not the sample "
                "label: add it to sample_labels or clear the mask."
            )
        token_mask = {c: tuple(None if v is None else bool(v) for v in row) for c, row in mask.items()}
        samples.append(Sample(names[k], text, homes[k], (), positive, token_mask, unknown=said.unknown_of(k)))
    return samples


def mask_samples(
    images: Sequence[Any],
    labels: PixelLabels,
    *,
    documents: Sequence[str] | None = None,
    sample_labels: Sequence[Iterable[str]] | SampleLabels | None = None,
    ids: Sequence[str] | None = None,
) -> list[Sample]:
    """Samples from images with a pixel mask, or boxes, for each concept.

    Raises:
        ValueError: The lengths differ, or what `mask_sample` raises.
    """
    said = _said(images, sample_labels)
    masks, boxes = labels.masks, labels.boxes
    same_length(images, masks=masks, boxes=boxes, ids=ids, documents=documents)
    names, homes = _names(images, ids, documents)
    return [
        mask_sample(
            names[k],
            pixels,
            {} if masks is None else masks[k],
            boxes=boxes[k] if boxes else (),
            document=homes[k],
            labels=said.positive_of(k),
            unknown=said.unknown_of(k),
            min_coverage=labels.min_coverage,
        )
        for k, pixels in enumerate(images)
    ]


def mask_sample(
    id_: str,
    pixels: Any,
    masks: Any,
    *,
    document: str,
    boxes: Iterable[Any] = (),
    labels: Iterable[str] = (),
    unknown: frozenset[str] | None = None,
    min_coverage: float = 0.0,
) -> Sample:
    """One image with its masks; it is positive for every mask that is not empty, and for `labels`.

    Raises:
        ValueError: The image is no RGB array, or a mask or box does not fit it.
    """
    found = combine_masks(id_, pixels, masks, boxes)
    positive = {concept for concept, mask in found.items() if mask.any()} | set(labels)
    image = Image(pixels, found, min_coverage)
    return Sample(id_, "", document, (), frozenset(positive), None, image, unknown)


def _said(rows: Sequence[object], given: Sequence[Iterable[str]] | SampleLabels | None) -> SampleLabels:
    """Sample labels as their record, with an entry a sample.

    Raises:
        ValueError: A column has another length.
    """
    said = given if isinstance(given, SampleLabels) else SampleLabels(given)
    same_length(rows, sample_labels=said.of, unknown=said.unknown)
    return said


def _names(
    rows: Sequence[object], ids: Sequence[str] | None, documents: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    names = [str(i) for i in (ids or range(len(rows)))]
    return names, [str(d) for d in (documents or names)]
