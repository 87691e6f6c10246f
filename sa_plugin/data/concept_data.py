"""Labelled samples and their train, calibration and test splits.

A *sample* is one text or image. Its *token labels* follow from labelled character spans: a token
has the label of every span it overlaps, by the tokenizer's offsets (patches: masks they cover). Its
*sample labels* say which concepts the sample has. A sample that has a concept without a labelled token
says nothing about its tokens: for that concept they are unknown, neither positive nor negative.

Every way to make data takes plain columns, one entry a sample. Where one column is not enough, the
argument also takes a small record: `splits` a list of names or `Splits`, `masks` a list of masks or
`PixelLabels`, `sample_labels` lists of names or `SampleLabels`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Unpack, overload

import numpy as np
from jaxtyping import Bool

from sa_plugin._check import require_known
from sa_plugin._face import face
from sa_plugin.data.build import (
    TokenLabels,
    mask_samples,
    read_concepts,
    said_of_tokens,
    same_length,
    sample_of,
    span_samples,
    text_labels,
    token_mask_samples,
    validate,
    whole_spans,
)
from sa_plugin.data.columns import Column, column, require_names, require_one_order, seed_of, whole_of
from sa_plugin.data.given import given_of, plain
from sa_plugin.data.images import PixelLabels
from sa_plugin.data.sample import ALL_SPLITS, SPLITS, Sample, SampleLabels, SplitName, sample_labels
from sa_plugin.data.splits import Splits, divided, draw_rare_first
from sa_plugin.data.words import Spelling, spelled, warn_of_cut_words
from sa_plugin.show.result import FORMAT, Sheet, Shown, exact

_OFFSETS = (-0.2, 0.0, 0.2, 0.4)
_MANY = 50
"""Positive samples beyond which a picture's scale is logarithmic above ten."""


@dataclass(frozen=True)
class Split:
    """The samples of one split, with the concepts and the hash of the data set they are from."""

    name: str
    samples: tuple[Sample, ...]
    concepts: tuple[str, ...]
    data_hash: str

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @overload
    def __getitem__(self, k: int) -> Sample: ...
    @overload
    def __getitem__(self, k: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, k: int | slice) -> Sample | tuple[Sample, ...]:
        return self.samples[k]

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self.samples)} samples, data {self.data_hash[:8]})"

    @cached_property
    def sample_labels(self) -> Bool[np.ndarray, "sample concept"]:
        """Which sample has which concept."""
        return sample_labels(self.samples, self.concepts)


def require_filled(*splits: Split) -> None:
    """Refuse splits none of which has a sample.

    Raises:
        ValueError: Which they are.
    """
    if splits and not any(map(len, splits)):
        names = " and ".join(split.name for split in splits)
        raise ValueError(
            f"the {names} split is empty, there are no samples to run: give it some, by splits= of the "
            "constructors, or leave splits out to divide documents."
        )


def said_of(sample: Sample, split: str) -> bytes:
    """All that is known of a sample, for digests."""
    mask = sorted((sample.token_mask or {}).items())
    row = [sample.id, sample.text, sample.document, sorted(sample.spans)]
    said = json.dumps([row, sorted(sample.positive), mask, split]).encode()
    if sample.image is not None:
        said += sample.image.digest.encode()
    if sample.unknown is not None:
        said += json.dumps(["unknown", sorted(sample.unknown)]).encode()
    if sample.source is not None:
        said += json.dumps(sample.source.record).encode()
    return said


@face
@dataclass(frozen=True, repr=False)
class ConceptData(Shown):
    """Labelled samples with a fixed split by source document.

    Build one with `from_texts`, `from_words`, `from_spans`, `from_token_masks` or `from_masks`;
    `sa_plugin.load` reads files.
    `skipped` says what a loader left out of its files, reason to count, and `token_labels` how tokens
    were labelled where nobody labelled them; neither is in the hash.
    """

    concepts: tuple[str, ...]
    samples: tuple[Sample, ...]
    split_of: tuple[str, ...]
    name: str = "data"
    seed: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict, compare=False)
    token_labels: str = field(default="", compare=False)

    about: ClassVar[str] = (
        "Samples of one document are not independent: intervals shrink with documents, not with samples."
    )

    def __post_init__(self) -> None:
        validate(self.samples, self.split_of, self.concepts)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @overload
    def __getitem__(self, k: int) -> Sample: ...
    @overload
    def __getitem__(self, k: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, k: int | slice) -> Sample | tuple[Sample, ...]:
        return self.samples[k]

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

    @property
    def guard(self) -> Split:
        """Samples that choose nothing, from which a promise is made; most data have none."""
        return self.split("guard")

    def split(self, name: str) -> Split:
        """The samples of one split, in data order.

        Raises:
            ValueError: There is no split of that name.
        """
        require_known("split", name, ALL_SPLITS)
        chosen = tuple(s for s, of in zip(self.samples, self.split_of, strict=True) if of == name)
        return Split(name, chosen, self.concepts, self.hash)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of every text, label, document and split: equal hashes, equal data."""
        digest = hashlib.sha256(json.dumps(self.concepts).encode())
        for sample, of in zip(self.samples, self.split_of, strict=True):
            digest.update(said_of(sample, of))
        return digest.hexdigest()

    @classmethod
    def from_texts(
        cls,
        texts: Column[Any],
        labels: Any,
        *,
        token_labels: TokenLabels = None,
        documents: Column[str] | None = None,
        concepts: Column[str] | None = None,
        ids: Column[str] | None = None,
        splits: Splits | Column[str] | None = None,
        name: str = "data",
    ) -> ConceptData:
        """Data from texts that are labelled as a whole.

        Which tokens carry a concept such labels do not say. Say what to take them for, or give vectors:
        without a positive token no supervised kind can be fitted and no threshold of tokens set.

        Args:
            texts: One text a sample, of any iterable. A text may also be a chat (a list of messages, read
                by the model's template, or `Chat`, which says whose turns are rows) or token ids (a list
                of numbers, or `TokenIds`).
            labels: One column of class names (None where there is none), or of class numbers with
                `concepts`; a list of names for each text; or several 0/1 columns: a DataFrame, a mapping of
                name to column, or an array `[text, concept]` with `concepts`.
            token_labels: None: the tokens of a positive text are unknown. "text": every token of a
                positive text is positive, the paper's way for sets labelled by sentence. A mapping of
                concept to words: these words are positive in texts of the concept (weak labels), and
                the tokens of those that hold none of them are unknown.
            documents: As in `from_spans`, like the arguments that follow.
            concepts: Concepts and their order; of 0/1 columns those that are taken.
            ids: Unique names.
            splits: Split of each sample, or how documents are divided.
            name: Name of the data set.

        Raises:
            ValueError: A label is of none of these forms; the text names its row; and what
                `from_spans` raises.

        Example:
            >>> texts = ["so tired today", "what a lovely day"] * 6
            >>> data = ConceptData.from_texts(texts, ["sad", "glad"] * 6, token_labels="text")
            >>> data.concepts
            ('glad', 'sad')
        """
        require_one_order(texts=texts, labels=labels, documents=documents, ids=ids)
        given = column("texts", texts, given_of)
        concepts = read_concepts(concepts)
        rows, order = text_labels(labels, len(given), concepts)
        spans = whole_spans([plain(one) for one in given], rows, token_labels)
        samples = span_samples(given, spans, documents=documents, sample_labels=rows, ids=ids)
        return cls.from_samples(samples, order, splits, name=name, token_labels=said_of_tokens(token_labels))

    @classmethod
    def from_spans(
        cls,
        texts: Column[Any],
        spans: Column[Iterable[tuple[int, int, str]]],
        *,
        documents: Column[str] | None = None,
        concepts: Column[str] | None = None,
        sample_labels: Column[Iterable[str]] | SampleLabels | None = None,
        ids: Column[str] | None = None,
        splits: Splits | Column[str] | None = None,
        name: str = "data",
    ) -> ConceptData:
        """Data from texts with labelled character spans.

        Args:
            texts: As in `from_texts`. Spans of a chat count in `Chat(messages).text`.
            spans: For each text its `(start, end, concept)`, end exclusive.
            documents: Source document of each text; by default every text is its own.
            concepts: Concepts and their order; by default those seen, sorted.
            sample_labels: Concepts of each sample, beyond those of its spans; or `SampleLabels`, with
                the concepts whose tokens are unknown. By default those without a span.
            ids: Unique names; by default numbers.
            splits: "train", "cal", "test" or "guard" for each sample, or `Splits(fractions=..., seed=...)`.
                By default documents are divided 60 : 20 : 20, stratified over concepts.
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
        require_one_order(texts=texts, spans=spans, documents=documents, sample_labels=sample_labels, ids=ids)
        samples = span_samples(texts, spans, documents=documents, sample_labels=sample_labels, ids=ids)
        data = cls.from_samples(samples, concepts, splits, name=name)
        warn_of_cut_words(samples)
        return data

    @classmethod
    def from_words(
        cls,
        words: Column[Column[str]],
        labels: Column[Column[Iterable[str] | str | None]],
        *,
        documents: Column[str] | None = None,
        concepts: Column[str] | None = None,
        sample_labels: Column[Iterable[str]] | SampleLabels | None = None,
        ids: Column[str] | None = None,
        splits: Splits | Column[str] | None = None,
        name: str = "data",
        **spelling: Unpack[Spelling],
    ) -> ConceptData:
        """Data from words with labels; the text is the words joined by single spaces, or as `spelling` says.

        Args:
            words: The words of each sample; a word may hold spaces ("20 000").
            labels: For each word its concept, its concepts, or None; with `tags` its tag.
            documents: As in `from_spans`, like the arguments that follow.
            concepts: Concepts and their order.
            sample_labels: Concepts of each sample, beyond those of its words.
            ids: Unique names.
            splits: Split of each sample, or how documents are divided.
            name: Name of the data set.
            **spelling: `text`, the text of each sample, in which its words follow one another; or
                `spaces_after`, whether a space follows a word: True or False for all, or one a word
                (scripts without spaces between words get none by default). `tags`: labels are tags
                ("B-PER", "O"): "auto" tells their scheme from the whole column, or name it ("IOB2",
                "BIOES", "BILOU", "BMES", ..., " suffix" after it where letters stand last), or map each
                tag to its concept.

        Raises:
            TypeError: A value is of another type; the text names its place.
            ValueError: A sample has more words than labels or fewer, a word is empty or does not follow
                in its text, labels are tags; and what `from_spans` raises.

        Example:
            >>> words, tags = [["Ann", "left"], ["we", "sang"]] * 6, [["B-PER", "O"], ["O", "O"]] * 6
            >>> ConceptData.from_words(words, tags, tags="auto").concepts
            ('PER',)
        """
        require_one_order(
            words=words, labels=labels, documents=documents, sample_labels=sample_labels, ids=ids
        )
        texts, spans = spelled(words, labels, spelling)
        samples = span_samples(texts, spans, documents=documents, sample_labels=sample_labels, ids=ids)
        if concepts is None and spelling.get("tags") not in (None, "auto"):
            # What every tag means is said: names are taken as they are.
            concepts = sorted({concept for sample in samples for concept in sample.positive}) or None
        return cls.from_samples(samples, concepts, splits, name=name)

    @classmethod
    def from_token_masks(
        cls,
        texts: Column[Any],
        sample_labels: Column[Iterable[str]] | SampleLabels,
        masks: Column[Mapping[str, Iterable[bool | None]]],
        *,
        documents: Column[str] | None = None,
        concepts: Column[str] | None = None,
        ids: Column[str] | None = None,
        splits: Splits | Column[str] | None = None,
        name: str = "data",
    ) -> ConceptData:
        """Data from sample labels with token masks of one tokenizer.

        Args:
            texts: As in `from_texts`.
            sample_labels: Concepts of each sample, or `SampleLabels`. All tokens of a concept without a
                positive one are unknown.
            masks: For each sample, concept to one boolean a token (special tokens left out), None
                where it is not known. Their length is checked when a host tokenises the text.
            documents: As in `from_spans`, like the arguments that follow.
            concepts: Concepts and their order.
            ids: Unique names.
            splits: Split of each sample, or how documents are divided.
            name: Name of the data set.

        Raises:
            ValueError: A sample has a positive token for a concept it is not labelled with; and
                what `from_spans` raises.
        """
        require_one_order(texts=texts, sample_labels=sample_labels, masks=masks, documents=documents, ids=ids)
        samples = token_mask_samples(texts, sample_labels, masks, documents=documents, ids=ids)
        return cls.from_samples(samples, concepts, splits, name=name)

    @classmethod
    def from_masks(
        cls,
        images: Column[Any],
        masks: Column[Any] | PixelLabels,
        *,
        documents: Column[str] | None = None,
        concepts: Column[str] | None = None,
        sample_labels: Column[Iterable[str]] | SampleLabels | None = None,
        ids: Column[str] | None = None,
        splits: Splits | Column[str] | None = None,
        name: str = "images",
    ) -> ConceptData:
        """Data from images with a pixel mask, or boxes, for each concept.

        Patch labels are read from the masks through the very transform that the model's processor
        applies to the image; nothing is resampled.

        Args:
            images: Paths, pictures of Pillow, or RGB pixels of uint8, `[height, width, 3]`.
            masks: For each image, concept to mask: a path, a picture, or truth values `[height, width]`
                of the image's own size (empty masks are allowed and make no positive); or `PixelLabels`,
                with boxes, the share of a patch that must be covered, and void pixels.
            documents: As in `from_spans`, like the arguments that follow.
            concepts: Concepts and their order.
            sample_labels: Concepts of each image, beyond those of its masks.
            ids: Unique names.
            splits: Split of each image, or how documents are divided.
            name: Name of the data set.

        Raises:
            ValueError: An image is no RGB array, a mask is not boolean or has another size than
                its image, a box is malformed or empty; and what `from_spans` raises.
        """
        labels = masks if isinstance(masks, PixelLabels) else PixelLabels(masks)  # type: ignore[arg-type]
        samples = mask_samples(images, labels, documents=documents, sample_labels=sample_labels, ids=ids)
        return cls.from_samples(samples, concepts, splits, name=name)

    @classmethod
    def from_samples(
        cls,
        samples: Column[Sample],
        concepts: Column[str] | None = None,
        splits: Splits | Column[str] | None = None,
        *,
        name: str = "data",
        skipped: Mapping[str, int] | None = None,
        token_labels: str = "",
    ) -> ConceptData:
        """Data from samples that are already made, as loaders make them.

        Args:
            samples: At least one.
            concepts: As in `from_spans`, like the arguments that follow.
            splits: Split of each sample, or how documents are divided.
            name: Name of the data set.
            skipped: What was left out, reason to count.
            token_labels: How tokens were labelled where nobody labelled them, in words.

        Raises:
            ValueError: What `from_spans` raises.
        """
        found: Sequence[Sample] = column("samples", samples, sample_of)
        said = read_concepts(concepts)
        order = tuple(said or sorted({c for s in found for c in s.positive}))
        if said is None:
            require_names(order)
        rule = splits if isinstance(splits, Splits) else Splits(splits)  # type: ignore[arg-type]
        of: Sequence[str] | None = rule.of
        if of is None:
            found, of = divided(found, order, rule)
        same_length(found, splits=of)
        return cls(order, tuple(found), tuple(of), name, rule.seed, dict(skipped or {}), token_labels)

    def subset(self, n: int, *, seed: int = 0) -> ConceptData:
        """At most `n` samples, the splits' shares kept, samples of rare concepts drawn first.

        Serving rare concepts first raises the share of positives a little; the name says so.

        Raises:
            ValueError: `n` leaves a split without samples.
        """
        if whole_of("n", n) >= len(self.samples):
            return self
        rng = np.random.default_rng(seed_of("seed", seed))
        chosen: set[int] = set()
        for split_name in self._parts:
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

    def headline(self) -> str:
        """Name, sizes and hash, and what was skipped."""
        names = " / ".join(self._parts)
        sizes = " / ".join(str(self.split_of.count(name)) for name in self._parts)
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
        vague = len(set().union(*self._vague.values()))
        said = f"; tokens: {self.token_labels}" if self.token_labels else ""
        said += f"; token labels unknown in {vague} of {len(self)} samples" if vague else ""
        said += f"; void pixels in {self._void} of {len(self)} samples" if self._void else ""
        return (
            f"{self.name!r}, {len(self.concepts)} concepts, {names} = {sizes} samples, "
            f"hash {self.hash[:8]}{said}{left_out and f'; skipped: {left_out}'}"
        )

    def sheets(self) -> Sequence[Sheet]:
        """Positive samples and their documents, by concept and split."""
        counts = self._counts()
        rows = [
            [concept or "all samples", *("{} ({})".format(*counts[concept, split]) for split in self._parts)]
            for concept in (None, *self.concepts)
        ]
        title = "Positive samples of each concept, and in brackets the documents that they lie in."
        notes = [f"Tokens: {self.token_labels}."] if self.token_labels else []
        if self._vague:
            each = ", ".join(f"{concept} {len(own)}" for concept, own in self._vague.items())
            notes.append(f"Positive samples whose tokens are unknown, in neither class: {each}.")
        if self._void:
            notes.append(f"Samples with void pixels, whose patches may be in neither class: {self._void}.")
        notes += [f"Left out: {count} {reason}." for reason, count in self.skipped.items()]
        return [Sheet(("concept", *self._parts), rows, title, notes)]

    def rows(self) -> list[dict[str, Any]]:
        """Counts by split and concept; a row without a concept counts all samples of a split."""
        return [
            exact(measure, float(count), split=split, concept=concept)
            for (concept, split), found in self._counts().items()
            for measure, count in zip(("samples", "documents"), found, strict=True)
        ] + [
            exact("samples of unknown tokens", float(sum(s.id in own for s in self.split(split))), **of)
            for concept, own in self._vague.items()
            for split in self._parts
            for of in [{"split": split, "concept": concept}]
        ]

    def to_dict(self) -> dict[str, Any]:
        """Name, hash and counts, without the samples."""
        facts = {"name": self.name, "hash": self.hash, "seed": self.seed, "concepts": list(self.concepts)}
        counts = [{key: row[key] for key in ("split", "concept", "measure", "value")} for row in self.rows()]
        return {
            "format": FORMAT,
            "kind": "ConceptData",
            **facts,
            **({"token_labels": self.token_labels} if self.token_labels else {}),
            "skipped": dict(self.skipped),
            "counts": counts,
        }

    def plot(self) -> Any:
        """Positive samples (filled) and their documents (hollow) of every concept, by split."""
        from sa_plugin.show import plots

        counts = self._counts()
        figure, ax = plots.new_figure(7.0, 1.2 + 0.24 * len(self.concepts))
        for (split, (colour, _)), offset in zip(plots.styles(self._parts).items(), _OFFSETS, strict=False):
            at = [k + offset for k, _ in enumerate(self.concepts)]
            samples, documents = zip(*(counts[concept, split] for concept in self.concepts), strict=True)
            ax.plot(samples, at, "o", color=colour, ms=4.5, label=split)
            ax.plot(documents, at, "o", color=colour, ms=4.5, mfc="none")
        most = max(samples for samples, _ in counts.values())
        ax.set_xlim(left=-0.03 * most, right=1.05 * most + 1)
        if most > _MANY:
            # Rare concepts and those without a positive stay readable beside frequent ones.
            ax.set_xscale("symlog", linthresh=10)
            ticks = [0, 5, *(n * 10**k for k in range(1, 9) for n in (1, 2, 5) if n * 10**k <= 1.05 * most)]
            ax.set_xticks(ticks, [str(one) for one in ticks])
            ax.minorticks_off()
        plots.rows(ax, self.concepts)
        plots.words(ax, title=self.name, x="positive samples (filled), documents that they lie in (hollow)")
        plots.legend(ax)
        plots.note(figure, self.about)
        return figure

    @property
    def _parts(self) -> tuple[SplitName, ...]:
        return ALL_SPLITS if "guard" in self.split_of else SPLITS

    @cached_property
    def _vague(self) -> dict[str, set[str]]:
        """Ids of the samples with unknown tokens of each concept that has any."""
        found = {concept: {s.id for s in self.samples if concept in s.vague} for concept in self.concepts}
        return {concept: own for concept, own in found.items() if own}

    @cached_property
    def _void(self) -> int:
        """Samples with void pixels."""
        return sum(s.image is not None and s.image.void is not None for s in self.samples)

    def _counts(self) -> dict[tuple[str | None, str], tuple[int, int]]:
        """Samples and documents by concept (None: whatever their labels) and split."""
        found: dict[tuple[str | None, str], tuple[int, int]] = {}
        for split in self._parts:
            part = self.split(split).samples
            for concept in (None, *self.concepts):
                homes = [s.document for s in part if concept is None or concept in s.positive]
                found[concept, split] = len(homes), len(set(homes))
        return found
