"""Samples from labelled words, spans, token masks and images, and what a data set must satisfy.

Nothing is repaired: a label that does not fit its text, a document in two splits or a concept
without a sample is an error, and what only weakens results (a repeated text, a split without
positives) is a warning of its own class.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Number
from typing import Any, TypeAlias

import numpy as np

from sa_plugin._check import require_known, users_line
from sa_plugin.data.columns import (
    Column,
    column,
    entries_of,
    is_blank,
    is_missing,
    label_of,
    masks_of,
    name_of,
    picture_column,
    scalar,
    shown,
    spans_of,
    text_of,
    whole_of,
)
from sa_plugin.data.given import given_of, plain, source_or_none
from sa_plugin.data.images import Image, PixelLabels, combine_masks, pixels_of, void_mask
from sa_plugin.data.sample import ALL_SPLITS, Sample, SampleLabels, Span
from sa_plugin.data.splits import warn_of_repeats
from sa_plugin.data.words import other_units

TokenLabels: TypeAlias = str | Mapping[str, Iterable[str]] | None
"""What the tokens of a text that is labelled as a whole are taken for, see `ConceptData.from_texts`."""


class EmptySplitWarning(UserWarning):
    """A concept has no positive sample in a split."""


def validate(samples: Sequence[Sample], split_of: Sequence[str], concepts: Sequence[str]) -> None:
    """Check labels, documents and splits of a data set.

    Raises:
        ValueError: What is wrong, the sample or concept, and the fix.
    """
    if not samples:
        raise ValueError("the data set has no samples.")
    same_length(samples, split_of=split_of)
    for k, sample in enumerate(samples):
        sample_of(f"samples[{k}]", sample)
    known = set(concepts)
    labelled = {concept for sample in samples for concept in sample.positive}
    if _one_name(concepts, labelled):
        name = "".join(concepts)
        raise ValueError(f"concepts is the string {name!r}: give a list of names, [{name!r}].")
    if not known and not labelled:
        raise ValueError("no sample has a label, so there is no concept: give spans, masks or sample_labels.")
    require_concepts(concepts)
    home: dict[str, str] = {}
    seen: set[str] = set()
    for sample, of in zip(samples, split_of, strict=True):
        if of not in ALL_SPLITS:
            raise ValueError(
                f"split {of!r} of sample {sample.id!r} is not one of {ALL_SPLITS} (cal is what others call "
                "validation or dev)."
            )
        if sample.id in seen:
            raise ValueError(f"sample id {sample.id!r} stands twice: ids must be unique.")
        seen.add(sample.id)
        if home.setdefault(sample.document, of) != of:
            raise ValueError(
                f"document {sample.document!r} lies in {home[sample.document]} and in {of}: a "
                "document belongs to one split, or test results leak. Leave `split` out to divide "
                "by document."
            )
        validate_labels(sample, known)
    warn_of_repeats(samples, split_of)
    for concept in concepts:
        validate_concept(samples, split_of, concept)


def sample_of(where: str, value: Any) -> Sample:
    """A reader of samples."""
    if not isinstance(value, Sample):
        raise TypeError(f"{where} is {shown(value)}, not a Sample: make it one, or give columns.")
    return value


def read_concepts(concepts: Column[str] | None) -> list[str] | None:
    """Concepts in the order that was asked for; None where none were.

    Raises:
        TypeError: No list, or one text, whose letters would be taken for names.
    """
    if isinstance(concepts, str):
        raise TypeError(f"concepts is the text {concepts!r}, not a list of names: give [{concepts!r}].")
    if concepts is None:
        return None
    names = column("concepts", concepts, name_of, fix="give a list of names")
    if not names:
        raise ValueError("concepts is empty: name one or more, or leave it out for all that are labelled.")
    return names


def require_concepts(concepts: Sequence[str]) -> None:
    """Refuse names of concepts that are none, stand twice or look alike.

    Raises:
        ValueError: Which.
    """
    if not concepts or len(set(concepts)) != len(concepts):
        raise ValueError(f"concepts {concepts} must be one or more distinct names.")
    _require_told_apart(concepts)


def _require_told_apart(concepts: Sequence[str]) -> None:
    """Refuse names that look alike, which are one concept written in two ways."""
    first: dict[str, str] = {}
    for k, concept in enumerate(concepts):
        name_of(f"concepts[{k}]", concept)
        other = first.setdefault(" ".join(unicodedata.normalize("NFKC", concept).split()), concept)
        if other != concept:
            raise ValueError(
                f"concepts {other!a} and {concept!a} differ in spaces or Unicode form only: write "
                "one name one way."
            )


def _one_name(concepts: Sequence[str], labelled: set[str]) -> bool:
    """Whether the concepts are the letters of one label: a string read as a sequence."""
    letters = len(concepts) > 1 and all(len(concept) == 1 for concept in concepts)
    return letters and "".join(concepts) in labelled


def validate_labels(sample: Sample, known: set[str]) -> None:
    """Check one sample's text and labels.

    Raises:
        ValueError: What is wrong, and the fix.
    """
    text_of(f"the text of sample {sample.id!r}", sample.text)
    if sample.image is None and is_blank(sample.text):
        raise ValueError(
            f"sample {sample.id!r} has the text {sample.text!a:.40}, which is empty: give it a "
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
        whole_of(f"the start of a span of sample {sample.id!r}", start)
        whole_of(f"the end of a span of sample {sample.id!r}", end)
        if not 0 <= start < end <= len(sample.text):
            raise ValueError(
                f"sample {sample.id!r}: span ({start}, {end}, {concept!r}) does not lie in a text "
                f"of {len(sample.text)} characters: spans are [start, end) in characters."
                f"{other_units(sample.text, start, end)}"
            )
        if is_blank(sample.text[start:end]):
            raise ValueError(
                f"sample {sample.id!r}: span ({start}, {end}, {concept!r}) covers only white "
                "space: the labels are probably misaligned with the text."
            )


def validate_concept(samples: Sequence[Sample], split_of: Sequence[str], concept: str) -> None:
    """Refuse a concept without a sample, and warn where a split has none."""
    counts: dict[str, int] = dict.fromkeys(ALL_SPLITS, 0)
    for sample, of in zip(samples, split_of, strict=True):
        counts[of] += concept in sample.positive
    if not any(counts.values()):
        raise ValueError(f"concept {concept!r} is empty: no sample is labelled with it.")
    for name, count in counts.items():
        # A guard is of negatives.
        if not count and name in split_of and name != "guard":
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


def span_samples(
    texts: Column[Any],
    spans: Column[Iterable[tuple[int, int, str]]],
    *,
    documents: Column[str] | None = None,
    sample_labels: Column[Iterable[str]] | SampleLabels | None = None,
    ids: Column[str] | None = None,
) -> list[Sample]:
    """Samples from texts with labelled character spans.

    Args:
        texts: One text, chat or list of token ids a sample.
        spans: For each text its `(start, end, concept)`, end exclusive.
        documents: Source documents; by default every text is its own.
        sample_labels: Concepts of each sample, beyond those of its spans.
        ids: Unique names; by default numbers.

    Raises:
        ValueError: The lengths differ.
    """
    given = column("texts", texts, given_of)
    rows = column("spans", spans, spans_of, n=len(given))
    said = _said(given, sample_labels)
    names, homes = _names(given, ids, documents)
    samples = []
    for k, (one, row) in enumerate(zip(given, rows, strict=True)):
        own = tuple(Span(*span) for span in row)
        positive, unknown = frozenset(s.concept for s in own) | said.positive_of(k), said.unknown_of(k)
        source = source_or_none(one)
        samples.append(Sample(names[k], plain(one), homes[k], own, positive, unknown=unknown, source=source))
    return samples


def whole_spans(
    texts: Sequence[str], labels: Sequence[Iterable[str]], token_labels: TokenLabels
) -> list[list[tuple[int, int, str]]]:
    """Labelled spans of texts whose labels are of the whole text.

    Args:
        texts: One text a sample.
        labels: Concepts of each text.
        token_labels: See `ConceptData.from_texts`.

    Raises:
        ValueError: `token_labels` is something else, or lists words of no concept, or no words.
    """
    if isinstance(token_labels, Mapping):
        if not token_labels:
            raise ValueError("token_labels lists no words: give {concept: words}, or leave it out.")
        finders = {concept: _finder(concept, words) for concept, words in token_labels.items()}
        _require_listed(finders, labels)
        found = [
            [(*hit.span(), c) for c in row if c in finders for hit in finders[c].finditer(text)]
            for text, row in zip(texts, labels, strict=True)
        ]
        for concept in finders.keys() - {c for row in found for *_, c in row}:
            raise ValueError(
                f"token_labels: no word of {concept!r} stands in a text of {concept!r}: give words that do, "
                "or leave the concept out of token_labels."
            )
        return found
    if token_labels is not None:
        require_known("token_labels", token_labels, ("text",))
    whole = token_labels == "text"
    return [[(0, len(t), c) for c in row if whole] for t, row in zip(texts, labels, strict=True)]


def said_of_tokens(token_labels: TokenLabels) -> str:
    """How the tokens of whole texts were labelled, for the data's repr."""
    if isinstance(token_labels, Mapping):
        return "listed words of positive texts (weak labels)"
    return "" if token_labels is None else "every token of a positive text (token_labels='text')"


def _finder(concept: str, words: Iterable[str]) -> re.Pattern[str]:
    where = f"token_labels[{concept!r}]"
    given = [words] if isinstance(words, str) else sorted(words) if isinstance(words, Set) else words
    each = column(where, given, text_of, fix="give its words")
    if not each or not all(word.strip() for word in each):
        raise ValueError(f"token_labels lists no word, or an empty one, for {concept!r}: give its words.")
    # An accent may be written into its letter or behind it, in the word and in the text.
    forms = {unicodedata.normalize(form, word) for word in each for form in ("NFC", "NFD")}
    # Longer phrases first, or a word of theirs would be found instead.
    alternatives = "|".join(re.escape(word) for word in sorted(forms, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{alternatives})(?![\w\u0300-\u036f])", re.IGNORECASE)


def _require_listed(finders: Mapping[str, object], labels: Sequence[Iterable[str]]) -> None:
    for concept in finders:
        require_known("concept of token_labels", concept, sorted({c for row in labels for c in row}))


def text_labels(
    labels: Any, n: int, concepts: Sequence[str] | None
) -> tuple[list[list[str]], Sequence[str] | None]:
    """The concepts of each text from whatever form they have, and the concepts in their order.

    Args:
        labels: See `ConceptData.from_texts`.
        n: Number of texts.
        concepts: Asked for, or None.

    Raises:
        ValueError: Another number of labels, or a value of none of the forms; the text names the row.
    """
    columns = _flag_columns(labels, concepts)
    if columns is not None:
        return _rows_of_columns(columns, n, concepts)
    entries = entries_of("labels", labels, "give one label a text")
    if len(entries) != n:
        raise ValueError(f"labels has {len(entries)} entries for {n} texts: give one a text.")
    given = [one for one in entries if not is_missing(one)]
    numbers = bool(given) and all(isinstance(one, Number | np.generic) for one in given)
    if numbers and concepts is not None and len(concepts) == 1:
        return _rows_of_columns({concepts[0]: entries}, n, concepts)
    return [_names_of(k, one, concepts) for k, one in enumerate(entries)], concepts


def _flag_columns(labels: Any, concepts: Sequence[str] | None) -> dict[str, list[Any]] | None:
    """Columns by name, of a mapping, a DataFrame or a two-dimensional array; None for anything else."""
    if hasattr(labels, "columns") and hasattr(labels, "to_numpy"):
        if len(set(labels.columns)) < len(labels.columns):
            raise ValueError(f"labels has a column twice: {list(labels.columns)}. Rename one.")
        return {name_of("a column of labels", name): labels[name].tolist() for name in labels.columns}
    if isinstance(labels, Mapping):
        return {
            name_of("a name of labels", c): entries_of(f"labels[{c!r}]", one, "give one entry a text")
            for c, one in labels.items()
        }
    shape: tuple[int, ...] = tuple(getattr(labels, "shape", ()))
    if len(shape) == 2:
        if concepts is None or len(concepts) != shape[1]:
            said = "no names" if concepts is None else f"{len(concepts)} names"
            raise ValueError(
                f"labels is an array of {shape[1]} columns and concepts has {said}: give concepts=[...], "
                "one name a column, or a mapping of name to column."
            )
        return dict(zip(concepts, labels.T.tolist(), strict=True))
    return None


def _rows_of_columns(
    columns: Mapping[str, Sequence[Any]], n: int, concepts: Sequence[str] | None
) -> tuple[list[list[str]], Sequence[str] | None]:
    for name in concepts or ():
        require_known("concept", name, list(columns))
    chosen = {name: columns[name] for name in concepts or columns}
    first = next(iter(chosen.values()), [])
    for name, cells in chosen.items():
        if len(cells) != n:
            raise ValueError(f"labels has {len(cells)} entries in {name!r} for {n} texts: give one a text.")
    classes = len(chosen) == 1 and all(isinstance(v, str) or is_missing(v) for v in first)
    if classes and concepts is None:
        # A table of one column of names: the names are the concepts.
        return [_names_of(k, one, None) for k, one in enumerate(first)], None
    rows = [[name for name, cells in chosen.items() if _flag(k, name, cells[k])] for k in range(n)]
    return rows, list(chosen)


def _flag(k: int, name: str, value: Any) -> bool:
    value = scalar(value)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise ValueError(
        f"label {value!r:.40} of text {k} in {name!r} is not 0 or 1: give 0/1 columns, one column of "
        "class names, or a list of names for each text."
    )


def _names_of(k: int, one: Any, concepts: Sequence[str] | None) -> list[str]:
    """The concepts of one text: a name, several, the number of a class, or none."""
    if is_missing(one):
        return []
    one, where = scalar(one), f"labels[{k}]"
    if isinstance(one, str):
        if concepts and one not in concepts and one.strip().lstrip("-").isdigit():
            raise ValueError(
                f"label {one!r} of text {k} is a number as text and none of concepts: give the number, such "
                "as int(label)."
            )
        return [name_of(where, one)] if one else []
    if isinstance(one, int | float) and not isinstance(one, bool) and concepts is not None:
        # A column in which labels are missing has its class numbers as floats.
        if one in range(len(concepts)):
            return [concepts[int(one)]]
        raise ValueError(
            f"label {one!r} of text {k} is none of 0 to {len(concepts) - 1}, the classes of concepts: give "
            "None where nobody labelled (-1 often says so), or name every class."
        )
    if isinstance(one, Iterable) and not isinstance(one, bytes | Mapping):
        names = list(one)
        if all(isinstance(name, str) and name.strip() for name in names):
            return [name_of(where, name) for name in dict.fromkeys(names)]
        if concepts is not None and len(names) == len(concepts):
            return [c for c, value in zip(concepts, names, strict=True) if _flag(k, c, value)]
    raise ValueError(
        f"label {one!r:.60} of text {k} is no name of a concept: give a name, a list of names, or None; "
        "for class numbers concepts=[...], their names in order, for several a text "
        "[[concepts[n] for n in row] for row in labels]; for 0/1 a mapping {name: column}."
    )


def token_mask_samples(
    texts: Column[Any],
    sample_labels: Column[Iterable[str]] | SampleLabels,
    masks: Column[Mapping[str, Iterable[bool | None]]],
    *,
    documents: Column[str] | None = None,
    ids: Column[str] | None = None,
) -> list[Sample]:
    """Samples from sample labels with token masks of one tokenizer.

    Raises:
        ValueError: The lengths differ, or a sample has a positive token for a concept it is not
            labelled with.
    """
    given = column("texts", texts, given_of)
    rows = column("masks", masks, masks_of, n=len(given))
    said = _said(given, sample_labels)
    names, homes = _names(given, ids, documents)
    samples = []
    for k, (one, mask) in enumerate(zip(given, rows, strict=True)):
        positive = said.positive_of(k)
        stray = [c for c, row in mask.items() if any(row) and c not in positive]
        if stray:
            raise ValueError(
                f"sample {names[k]!r} has positive tokens for {stray[0]!r} but not the sample "
                "label: add it to sample_labels or clear the mask."
            )
        token_mask = {c: tuple(row) for c, row in mask.items()}
        source, unknown = source_or_none(one), said.unknown_of(k)
        samples.append(
            Sample(names[k], plain(one), homes[k], (), positive, token_mask, unknown=unknown, source=source)
        )
    return samples


def mask_samples(
    images: Column[Any],
    labels: PixelLabels,
    *,
    documents: Column[str] | None = None,
    sample_labels: Column[Iterable[str]] | SampleLabels | None = None,
    ids: Column[str] | None = None,
) -> list[Sample]:
    """Samples from images with a pixel mask, or boxes, for each concept.

    Raises:
        ValueError: The lengths differ, or what `mask_sample` raises.
    """
    images = picture_column("images", images)
    said = _said(images, sample_labels)
    masks, boxes, void = labels.masks, labels.boxes, labels.void
    same_length(images, masks=masks, boxes=boxes, void=void)
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
            void=None if void is None else void[k],
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
    void: Any = None,
) -> Sample:
    """One image with its masks; it is positive for every mask that is not empty, and for `labels`.

    Raises:
        ValueError: The image is no RGB array, or a mask, box or void mask does not fit it.
    """
    pixels = pixels_of(pixels, f"sample {id_!r}: ")
    found = combine_masks(id_, pixels, masks, boxes)
    positive = {concept for concept, mask in found.items() if mask.any()} | set(labels)
    image = Image(pixels, found, min_coverage, void_mask(id_, void, pixels.shape[:2]))
    return Sample(id_, "", document, (), frozenset(positive), None, image, unknown)


def _said(rows: Sequence[object], given: Column[Iterable[str]] | SampleLabels | None) -> SampleLabels:
    """Sample labels as their record, with an entry a sample.

    Raises:
        ValueError: A column has another length.
    """
    said = given if isinstance(given, SampleLabels) else SampleLabels(given)  # type: ignore[arg-type]
    same_length(rows, sample_labels=said.of, unknown=said.unknown)
    return said


def _names(
    rows: Sequence[object], ids: Column[str] | None, documents: Column[str] | None
) -> tuple[list[str], list[str]]:
    n = len(rows)
    names = [str(k) for k in range(n)] if ids is None else column("ids", ids, label_of, n=n)
    return names, names if documents is None else column("documents", documents, label_of, n=n)
