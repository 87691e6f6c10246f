"""Samples from labelled texts, token masks and images: what every way to make data shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sa_plugin.data_checks import same_length
from sa_plugin.images import Image, combine_masks
from sa_plugin.samples import Sample, Span


def span_samples(
    texts: Sequence[str],
    spans: Sequence[Iterable[tuple[int, int, str]]],
    *,
    documents: Sequence[str] | None = None,
    sample_labels: Sequence[Iterable[str]] | None = None,
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
    same_length(texts, spans=spans, documents=documents, sample_labels=sample_labels, ids=ids)
    names, homes = _names(texts, ids, documents)
    samples = []
    for k, (text, row) in enumerate(zip(texts, spans, strict=True)):
        spans_of = tuple(Span(*span) for span in row)
        extra = frozenset(sample_labels[k]) if sample_labels else frozenset()
        positive = frozenset(s.concept for s in spans_of) | extra
        samples.append(Sample(names[k], text, homes[k], spans_of, positive))
    return samples


def token_mask_samples(
    texts: Sequence[str],
    sample_labels: Sequence[Iterable[str]],
    masks: Sequence[Mapping[str, Sequence[bool]]],
    *,
    documents: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
) -> list[Sample]:
    """Samples from sample labels with token masks of one tokenizer.

    Raises:
        ValueError: The lengths differ, or a sample has a positive token for a concept it is not
            labelled with.
    """
    same_length(texts, sample_labels=sample_labels, masks=masks, documents=documents, ids=ids)
    names, homes = _names(texts, ids, documents)
    samples = []
    for k, (text, labels, mask) in enumerate(zip(texts, sample_labels, masks, strict=True)):
        positive = frozenset(labels)
        stray = [c for c, row in mask.items() if any(row) and c not in positive]
        if stray:
            raise ValueError(
                f"sample {names[k]!r} has positive tokens for {stray[0]!r} but not the sample "
                "label: add it to sample_labels or clear the mask."
            )
        token_mask = {c: tuple(bool(v) for v in row) for c, row in mask.items()}
        samples.append(Sample(names[k], text, homes[k], (), positive, token_mask))
    return samples


def mask_samples(
    images: Sequence[Any],
    masks: Sequence[Any],
    *,
    boxes: Sequence[Iterable[Any]] | None = None,
    documents: Sequence[str] | None = None,
    sample_labels: Sequence[Iterable[str]] | None = None,
    ids: Sequence[str] | None = None,
    min_coverage: float = 0.0,
) -> list[Sample]:
    """Samples from images with a pixel mask, or boxes, for each concept.

    Raises:
        ValueError: The lengths differ, `min_coverage` is outside [0, 1), or what `mask_sample`
            raises.
    """
    same_length(images, masks=masks, boxes=boxes, sample_labels=sample_labels, ids=ids,
                documents=documents)  # fmt: skip
    if not 0 <= min_coverage < 1:
        raise ValueError(f"min_coverage {min_coverage} must lie in [0, 1).")
    names, homes = _names(images, ids, documents)
    return [
        mask_sample(
            names[k], pixels, masks[k], boxes=boxes[k] if boxes else (), document=homes[k],
            labels=sample_labels[k] if sample_labels else (), min_coverage=min_coverage,
        )
        for k, pixels in enumerate(images)
    ]  # fmt: skip


def mask_sample(
    id_: str,
    pixels: Any,
    masks: Any,
    *,
    document: str,
    boxes: Iterable[Any] = (),
    labels: Iterable[str] = (),
    min_coverage: float = 0.0,
) -> Sample:
    """One image with its masks; it is positive for every mask that is not empty, and for `labels`.

    Raises:
        ValueError: The image is no RGB array, or a mask or box does not fit it.
    """
    found = combine_masks(id_, pixels, masks, boxes)
    positive = {concept for concept, mask in found.items() if mask.any()} | set(labels)
    image = Image(pixels, found, min_coverage)
    return Sample(id_, "", document, (), frozenset(positive), None, image)


def _names(
    rows: Sequence[object], ids: Sequence[str] | None, documents: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    names = [str(i) for i in (ids or range(len(rows)))]
    return names, [str(d) for d in (documents or names)]
