"""Labelled data that are read from a corpus, block by block, and never whole in memory.

`labelled_corpus(source)` reads the corpus once without a model and keeps of each document its name, its
source document, its concepts and a digest; texts, spans, pictures and masks stay where they are and are
read again, a block at a time, when a pass or a page asks for them. What it returns is a `ConceptData`:
`fit`, `score`, `calibrate`, `evaluate` and `trace` take it, and run it by its blocks.

The split of a source document follows from its name and a seed alone, so that every worker has the same
and more documents change none. Where a document has no name of its own, its text (or its pixels) decides,
so that repeats are in one split and count as one document. Fractions hold on average, and concepts are
not spread evenly over splits, as `ConceptData` spreads them: rare ones need more documents.

Memory: about a kilobyte a document, and the contents of one block.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from sa_plugin._check import users_line
from sa_plugin._face import face
from sa_plugin.data.build import read_concepts, require_concepts, validate_concept, validate_labels
from sa_plugin.data.columns import Column
from sa_plugin.data.concept_data import ConceptData, said_of
from sa_plugin.data.given import Chat, TokenIds
from sa_plugin.data.images import Image
from sa_plugin.data.sample import Sample, Span, SplitName
from sa_plugin.data.splits import Splits, sample_key, split_of_name
from sa_plugin.loaders.corpus import BLOCK_SIZE, Corpus, Document, open_corpus


class UnreadableWarning(UserWarning):
    """Documents of a corpus cannot be read, and are left out."""


class LazySample(Sample):
    """A sample whose content stays in its corpus until it is asked for.

    Name, source document and concepts are in memory; all else is read with its block.
    """

    block: int  # type: ignore[misc]
    number: int
    _digest: bytes
    _reader: _Reader

    def __init__(self, reader: _Reader, document: Document, sample: Sample, home: str) -> None:
        known = {
            "id": sample.id,
            "document": home,
            "positive": sample.positive,
            "block": document.number // reader.corpus.block_size,
            "number": document.number,
            "_reader": reader,
            "_digest": hashlib.sha256(said_of(sample, "")).digest(),
        }
        for name, value in known.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"LazySample({self.id!r}, block {self.block}, {sorted(self.positive)})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, LazySample):
            return (self.id, self.document, self.digest) == (other.id, other.document, other.digest)
        return isinstance(other, Sample) and self.loaded == other

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def digest(self) -> bytes:
        """Of content and labels, as they were when the corpus was opened."""
        return self._digest

    @property
    def loaded(self) -> Sample:
        """The sample as its corpus has it."""
        return self._reader.sample(self)

    @property
    def text(self) -> str:
        """As the corpus has it, like what follows."""
        return self.loaded.text

    @property
    def spans(self) -> tuple[Span, ...]:
        """Of the sample."""
        return self.loaded.spans

    @property
    def token_mask(self) -> Mapping[str, tuple[bool | None, ...]] | None:
        """Of the sample."""
        return self.loaded.token_mask

    @property
    def image(self) -> Image | None:
        """Of the sample."""
        return self.loaded.image

    @property
    def unknown(self) -> frozenset[str] | None:
        """Of the sample."""
        return self.loaded.unknown

    @property
    def source(self) -> Chat | TokenIds | None:
        """Of the sample."""
        return self.loaded.source

    def only(self, concepts: Any) -> Sample:
        """The same sample, in memory, with the labels of these concepts alone."""
        return self.loaded.only(concepts)


class _Reader:
    """Reads the blocks of a corpus; the last one stays in memory."""

    def __init__(self, corpus: Corpus, concepts: frozenset[str] | None) -> None:
        self.corpus, self.concepts = corpus, concepts
        self._block: tuple[int, dict[int, Sample]] = -1, {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_block": (-1, {})}

    def read(self, block: int) -> Iterator[tuple[Document, Sample | None]]:
        """Documents of a block, with the labels that are wanted."""
        for document in self.corpus.read(block):
            sample = document.sample
            if sample is not None and self.concepts is not None:
                sample = sample.only(self.concepts)
            yield document, sample

    def sample(self, lazy: LazySample) -> Sample:
        """One sample with its content.

        Raises:
            ValueError: It has changed since the corpus was opened.
        """
        if self._block[0] != lazy.block:
            found = {document.number: sample for document, sample in self.read(lazy.block)}
            self._block = lazy.block, {k: one for k, one in found.items() if one is not None}
        sample = self._block[1].get(lazy.number)
        if sample is None or hashlib.sha256(said_of(sample, "")).digest() != lazy.digest:
            raise ValueError(
                f"document {lazy.id!r} of {self.corpus.name} has changed since the corpus was opened: open "
                "it again, and run again what was run on it."
            )
        return sample if sample.document == lazy.document else replace(sample, document=lazy.document)


@dataclass(frozen=True, repr=False)
class CorpusData(ConceptData):
    """Labelled samples of a corpus, divided by the names of documents. Made by `labelled_corpus`.

    Attributes:
        corpus: Where they are read from.
    """

    corpus: Corpus | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        # Checked one by one as they were read.
        pass

    @cached_property
    def hash(self) -> str:
        """SHA-256 of every text, label, document and split: equal hashes, equal data."""
        digest = hashlib.sha256(json.dumps(self.concepts).encode())
        for sample, of in zip(self.samples, self.split_of, strict=True):
            digest.update(sample.digest + of.encode())
        return digest.hexdigest()


@face
def labelled_corpus(
    source: Any,
    concepts: Column[str] | None = None,
    *,
    splits: Splits | None = None,
    block_size: int = BLOCK_SIZE,
    columns: Mapping[str, str] | None = None,
    lines: bool = False,
    name: str = "",
) -> CorpusData:
    """Open a labelled corpus of any size. Reads it once, and runs no model.

    Args:
        source: As in `open_corpus`: files, folders, data sets, anything that can be walked again.
        concepts: Concepts and their order; other labels are left aside. By default those seen, sorted.
        splits: Fractions and seed of the division by documents.
        block_size: Documents of a block, the unit of work: constant for all who share the work. The
            contents of one block are in memory: for pictures give fewer.
        columns: Role to column; labels are "label", "spans" or "mask". By default content, id and
            document alone, so that rows need it.
        lines: Whether text files have a document a line.
        name: Of the data set, by default that of the corpus.

    Returns:
        Data for `fit`, `score`, `calibrate`, `evaluate` and `trace`.

    Raises:
        ValueError: No document has a label, or one of a concept; a label lies outside its text; an id
            stands twice; `splits` gives splits and not fractions; and what `open_corpus` raises.

    Warns:
        UnreadableWarning: Documents cannot be read; the text names the first.
        EmptySplitWarning: A concept has no positive sample in some split.

    Example:
        >>> rows = [{"text": f"{k} cats", "label": "animal"} for k in range(60)]
        >>> rows += [{"text": f"{k} days", "label": None} for k in range(60)]
        >>> data = labelled_corpus(rows, columns={"text": "text", "label": "label"}, block_size=32)
        >>> data.concepts, len(data)
        (('animal',), 120)
    """
    splits = splits or Splits()
    if splits.of is not None:
        raise ValueError(
            "splits.of names a split for each sample: a corpus is divided by the names of its documents, "
            "give Splits(fractions=..., seed=...)."
        )
    corpus = open_corpus(source, block_size=block_size, columns=columns, lines=lines)
    order = read_concepts(concepts)
    if order is not None:
        require_concepts(order)
    reader = _Reader(corpus, None if order is None else frozenset(order))
    samples, split_of, faults = _walked(reader, splits)
    if not samples:
        said = f": {faults[0].key}: {faults[0].fault}" if faults else ""
        raise ValueError(f"source {corpus.name} has no document that can be read{said}.")
    if order is None:
        order = sorted({concept for sample in samples for concept in sample.positive})
        if not order:
            raise ValueError(
                f"no document of {corpus.name} has a label: name the column that holds them, columns={{"
                "'text': 'text', 'label': 'label'}, or 'spans', or 'mask'."
            )
        require_concepts(order)
    for concept in order:
        validate_concept(samples, split_of, concept)
    skipped = {"documents that cannot be read": len(faults)} if faults else {}
    return CorpusData(
        tuple(order),
        tuple(samples),
        tuple(split_of),
        name or corpus.name,
        splits.seed,
        skipped,
        corpus=corpus,
    )


def _walked(reader: _Reader, splits: Splits) -> tuple[list[Sample], list[SplitName], list[Document]]:
    samples: list[Sample] = []
    split_of: list[SplitName] = []
    faults: list[Document] = []
    ids: set[str] = set()
    # Of documents without a name of their own: the first that has this text.
    first: dict[bytes, str] = {}
    for block in reader.corpus.blocks():
        for document, sample in reader.read(block):
            if sample is None:
                faults.append(document)
                continue
            validate_labels(sample, set(reader.concepts or sample.positive))
            if sample.id in ids:
                raise ValueError(
                    f"the id {sample.id!r} stands twice in {reader.corpus.name}: ids must be unique."
                )
            ids.add(sample.id)
            home = key = sample.document
            if home == sample.id:
                key = sample_key(sample)
                home = first.setdefault(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest(), home)
            samples.append(LazySample(reader, document, sample, home))
            split_of.append(split_of_name(key, splits))
    if faults:
        warnings.warn(
            f"{len(faults)} of {len(faults) + len(samples)} documents of {reader.corpus.name} cannot be read "
            f"and are left out, {faults[0].key!r} first: {faults[0].fault}.",
            UnreadableWarning,
            stacklevel=users_line(),
        )
    return samples, split_of, faults
