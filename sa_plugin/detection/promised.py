"""A promised rate of false alarms: guard documents scored, and thresholds that keep it.

The procedures are those of `sa_plugin.statistics.conformal`. A guard document counts for a concept if no
sample of it has the concept: its scores are those of the layer and unit that the search chose without it.
Samples longer or shorter than the promise's lengths are left out.

In bands of lengths each band has a threshold of its own, and the highest of them stands: it keeps the
promise in every band, whatever length a text that is still being written comes to. The p of a score is the
largest over bands, for the same reason.

Labels that overlook positives (silver ones) put documents with the concept among the guard's. They score
higher, if anything, so thresholds are higher: the promise holds for documents without the concept,
conservatively.

What is not promised: anything of documents that are not like the guard's (another source, language or
length); all concepts at once; how many positives are found, which `Detector.evaluate` measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int

from sa_plugin._check import position_of
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData, Split
from sa_plugin.data.loose import as_split
from sa_plugin.data.sample import Sample, sample_labels
from sa_plugin.detection.guard import Seen, check_chose_nothing, check_finite_scores, rows_of_samples
from sa_plugin.detection.methods import column_scores
from sa_plugin.detection.search import Calibrated
from sa_plugin.host.protocol import Host
from sa_plugin.host.tokens import naming_of
from sa_plugin.scores.score import score_samples
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import noun_count
from sa_plugin.statistics.conformal import (
    Losses,
    Promise,
    document_threshold,
    episode_losses,
    p_of_documents,
    p_of_tokens,
    risk_threshold,
    share_losses,
    thinned,
)

TestUnit = Literal["document", "token"]
# Samples whose scores at every chosen layer are held at once.
_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Guard:
    """What the documents leave that chose nothing: of each its highest scores, and of all their tokens' tail.

    Attributes:
        promise: What is promised.
        lengths: Shortest and longest text, in kept tokens, that it is promised for.
        maxima: Highest score of each document; NaN where it has the concept, or lies outside the lengths.
        tokens: Kept tokens of each document.
        score, loss: The tail of the documents' tokens by band: `Losses` in at most 512 steps, from which no
            p is smaller than from all; filled up with steps of no loss.
    """

    promise: Promise
    lengths: tuple[int, int]
    maxima: Float64[np.ndarray, "document concept"]
    tokens: Int[np.ndarray, " document"]
    score: Float64[np.ndarray, "band concept step"]
    loss: Float64[np.ndarray, "band concept step"]

    def __repr__(self) -> str:
        low, high = self.lengths
        return f"Guard({len(self.maxima)} documents, {low} to {high} tokens: {self.promise.words})"

    @property
    def n_documents(self) -> Int[np.ndarray, " concept"]:
        """Documents without each concept."""
        return np.asarray((~np.isnan(self.maxima)).sum(0))

    def p_values(
        self, concept: int, scores: Float64[np.ndarray, "*shape"], of: TestUnit
    ) -> Float64[np.ndarray, "*shape"]:
        """See `Calibration.p_values`.

        Args:
            concept: Place.
            scores: In float64.
            of: What is tested.
        """
        found = []
        for band, inside in enumerate(self._bands()):
            own = self.maxima[inside, concept]
            own = own[~np.isnan(own)]
            losses = Losses(self.score[band, concept], self.loss[band, concept])
            found.append(
                p_of_documents(scores, own) if of == "document" else p_of_tokens(scores, losses, len(own))
            )
        # One that holds in every band holds whatever the length will be.
        return np.asarray(np.max(found, axis=0))

    def covers(self, tokens: Int[np.ndarray, "*shape"] | Sequence[int] | int) -> Bool[np.ndarray, "*shape"]:
        """Which lengths, in kept tokens, the promise is for."""
        low, high = self.lengths
        return np.asarray((np.asarray(tokens) >= low) & (np.asarray(tokens) <= high))

    def _bands(self) -> Iterator[Bool[np.ndarray, " document"]]:
        if self.promise.kind == "sample":
            # Its lengths are those of samples, and those outside have been left out.
            yield np.ones(len(self.tokens), dtype=bool)
            return
        for low, high in self.promise.bands(self.lengths[1]):
            yield (self.tokens >= low) & (self.tokens <= high)


@dataclass(frozen=True, eq=False)
class GuardScores:
    """Samples as a promise sees them: token scores at each concept's own layer and unit.

    Attributes:
        samples: In order.
        bounds: Where each starts among the scores.
        scores: Of tokens.
        labels: Which sample has which concept.
    """

    samples: tuple[Sample, ...]
    bounds: Int[np.ndarray, " sample_and_one"]
    scores: Float64[np.ndarray, "token concept"]
    labels: Bool[np.ndarray, "sample concept"]

    @classmethod
    def of(
        cls, table: ScoreTable, scores: Float64[np.ndarray, "token concept"], concepts: Sequence[str]
    ) -> GuardScores:
        """The samples of a table with scores at each concept's own layer."""
        samples = table.tokens.samples
        return cls(samples, table.tokens.bounds, scores, sample_labels(samples, concepts))

    @cached_property
    def sizes(self) -> Int[np.ndarray, " sample"]:
        """Kept tokens of each sample."""
        return np.diff(self.bounds)

    @cached_property
    def document(self) -> Int[np.ndarray, " sample"]:
        """Number of each sample's document."""
        codes = {name: k for k, name in enumerate(dict.fromkeys(s.document for s in self.samples))}
        return np.array([codes[s.document] for s in self.samples], dtype=np.int64)

    def lengths(self, promise: Promise) -> Int[np.ndarray, " sample"]:
        """Of each sample the number of tokens that the promise's lengths are about."""
        return self.sizes if promise.kind == "sample" else self.document_sizes[self.document]

    @cached_property
    def document_sizes(self) -> Int[np.ndarray, " document"]:
        """Kept tokens of each document."""
        return np.bincount(self.document, weights=self.sizes).astype(np.int64)

    def negative(self) -> Bool[np.ndarray, "document concept"]:
        """Which document has no sample with the concept."""
        has = np.zeros((len(self.document_sizes), self.labels.shape[1]), dtype=bool)
        np.logical_or.at(has, self.document, self.labels)
        return ~has


def guard_split(
    host: Host | None, data: ConceptData, bank: ConceptBank, promise: Promise | None, guard: Any
) -> Split | None:
    """The samples of the guard, once they are known to have chosen nothing; None without a promise.

    Args:
        host: Which names the characters of token ids.
        data: Whose `guard` is taken where no other is given.
        bank: The vectors.
        promise: That is to be made.
        guard: Samples, in any form that `Detector.find` takes.

    Raises:
        ValueError: There are none, they are not labelled by the detector's concepts, one of them is of
            the train or calibration split; or there is no promise to make from them.
    """
    if promise is None:
        if guard is not None:
            raise ValueError(
                "guard is given and no promise to make from it: give promise=Promise('document', 0.05)."
            )
        return None
    if guard is None and not len(data.guard):
        raise ValueError(
            f"a promise needs documents that chose nothing, and data {data.name!r} has no guard split: give "
            "guard= (texts without the concepts, or samples), or divide with "
            "Splits(fractions=(0.5, 0.15, 0.15, 0.2)), the last for the guard."
        )
    split = data.guard if guard is None else as_split(guard, bank.concepts, naming_of(host), "guard samples")
    # Names of documents are those of one data set; in another the texts are looked up.
    used = zip(data.samples, data.split_of, strict=True) if split.data_hash == data.hash else ()
    documents = {sample.document: of for sample, of in used if of in ("train", "cal")}
    check_guard(split, bank, promise, Seen.of(data), documents)
    return split


def check_guard(
    split: Split, bank: ConceptBank, promise: Promise, seen: Seen, documents: Mapping[str, str]
) -> None:
    """Refuse what no promise can be made from, before anything is scored.

    Args:
        split: The guard.
        bank: The vectors.
        promise: That is to be made.
        seen: What chose vectors, layers and deltas.
        documents: Split by name of document, where the guard is of the same data set.

    Raises:
        ValueError: A concept is unknown or not labelled, a sample chose something, or there are fewer
            documents than any data would take.
    """
    for name in promise.concepts or ():
        position_of(name, bank.concepts, "the detector's concepts")
    for concept in bank.concepts:
        position_of(concept, split.concepts, "the labelled concepts of the guard")
    check_chose_nothing(split, seen, documents)
    require_documents(promise, split.samples)


def require_documents(promise: Promise, samples: Sequence[Sample]) -> None:
    """Refuse fewer documents than the promise takes whatever their scores.

    Raises:
        ValueError: With the number that would do.
    """
    n = len({sample.document for sample in samples})
    if n < promise.least_documents:
        raise ValueError(
            f"the guard has {noun_count(n, 'document')}, and it takes {promise.least_documents} to promise "
            f"that {promise.words}. Give so many, or raise alpha."
        )


def promised(
    host: Host | None,
    bank: ConceptBank,
    tail: Calibrated,
    promise: Promise,
    guard: Split,
    scores: ScoreTable | None = None,
) -> tuple[Guard, Float64[np.ndarray, " concept"]]:
    """Score the guard where the search has chosen, and set the thresholds.

    Args:
        host: To score with, if `scores` lack the guard.
        bank: The vectors.
        tail: What the search chose.
        promise: What is to be kept.
        guard: Its samples.
        scores: Which may hold them.

    Raises:
        ValueError: There is nothing to score the guard with, or it has too few documents.
    """
    return guard_of(promise, _scored(host, guard, bank, tail, scores), bank.concepts)


def _scored(
    host: Host | None, split: Split, bank: ConceptBank, tail: Calibrated, scores: ScoreTable | None
) -> GuardScores:
    held = set() if scores is None else {sample.id for sample in scores.tokens.samples}
    if scores is not None and held.issuperset(sample.id for sample in split.samples):
        table = scores.select(rows_of_samples(scores, split.samples))
        check_finite_scores(table)
        at = column_scores(table, tail.layer, tail.chosen_unit).astype(np.float64)
        return GuardScores.of(table, at, bank.concepts)
    if host is None:
        raise ValueError(
            f"the scores hold {len(held)} samples, not the {len(split)} of the guard, and there is no host "
            "to score them with: give the host, or score(host, data, bank, splits=('cal', 'guard', 'test'))."
        )
    layers, layer = np.unique(tail.layer, return_inverse=True)
    units, unit = np.unique(tail.chosen_unit, return_inverse=True)
    narrow = bank.only(layers.tolist(), units.tolist())
    samples: list[Sample] = []
    found, bounds = [], [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(split), _AT_ONCE):
        table = score_samples(host, split.samples[start : start + _AT_ONCE], narrow)
        samples += table.tokens.samples
        found.append(column_scores(table, layer, unit).astype(np.float64))
        bounds.append(table.tokens.bounds[1:] + bounds[-1][-1])
    at = np.concatenate(found)
    return GuardScores(tuple(samples), np.concatenate(bounds), at, sample_labels(samples, bank.concepts))


def guard_of(
    promise: Promise, scored: GuardScores, concepts: Sequence[str]
) -> tuple[Guard, Float64[np.ndarray, " concept"]]:
    """The guard and the thresholds that keep the promise; NaN for concepts it is not made for.

    Raises:
        ValueError: There are too few documents, in a band or for a concept; the text says how many do.
    """
    length = scored.lengths(promise)
    low, high = promise.shortest, int(length.max()) if promise.lengths is None else promise.lengths[-1]
    fits, negative = (length >= low) & (length <= high), scored.negative()
    if not fits.any():
        raise ValueError(
            f"no guard document has {low} to {high} tokens, theirs are {length.min()} to {length.max()}: a "
            "promise is made from documents of its lengths. Give such documents, or other lengths."
        )
    maxima = _maxima(scored, fits, negative)
    bands = promise.bands(high)
    threshold = np.full(len(concepts), np.nan)
    wanted = [c for c, name in enumerate(concepts) if promise.concepts is None or name in promise.concepts]
    _refuse_few(promise, maxima, scored, bands, [concepts[c] for c in wanted], wanted)
    tails: list[list[Losses]] = []
    for band in bands:
        inside = fits if promise.kind == "sample" else fits & (length >= band[0]) & (length <= band[1])
        tails.append([])
        for c in range(len(concepts)):
            rows = np.flatnonzero(inside & negative[scored.document, c])
            tails[-1].append(thinned(_token_losses(scored, rows, c)))
            if c in wanted:
                found = _threshold(promise, scored, rows, c)
                if found == -math.inf:
                    raise ValueError(
                        f"what always alarms keeps the promise for {concepts[c]!r} that {promise.words}: it "
                        "says nothing. Give a smaller alpha."
                    )
                threshold[c] = np.fmax(threshold[c], found)
    score, loss = _filled(tails)
    guard = Guard(promise, (low, high), maxima, scored.document_sizes, score, loss)
    # An alarm lies strictly above: it reaches the next number of float64, whatever its own format.
    return guard, np.nextafter(threshold, math.inf)


def _threshold(promise: Promise, scored: GuardScores, rows: Int[np.ndarray, " row"], c: int) -> float:
    """The value that alarms of some samples lie strictly above."""
    document = scored.document[rows]
    n = len(np.unique(document))
    tops = np.array([scored.scores[scored.bounds[k] : scored.bounds[k + 1], c].max() for k in rows])
    if promise.kind == "document":
        _, home = np.unique(document, return_inverse=True)
        highest = np.full(n, -math.inf)
        np.maximum.at(highest, home, tops)
        return document_threshold(highest, promise.alpha, promise.confidence)
    if promise.kind == "sample":
        return risk_threshold(share_losses(tops, document), n, promise.alpha)
    if promise.episodes is None:
        return risk_threshold(_token_losses(scored, rows, c), n, promise.alpha)
    score, sample, home = _tokens(scored, rows, c)
    return risk_threshold(
        episode_losses(score, sample, home, promise.episodes), n, promise.alpha, promise.most
    )


def _token_losses(scored: GuardScores, rows: Int[np.ndarray, " row"], c: int) -> Losses:
    score, _, home = _tokens(scored, rows, c)
    return share_losses(score, home)


def _tokens(
    scored: GuardScores, rows: Int[np.ndarray, " row"], c: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of the tokens of some samples, with their samples and documents."""
    if not len(rows):
        return np.zeros(0), np.zeros(0, int), np.zeros(0, int)
    at = np.concatenate([np.arange(scored.bounds[k], scored.bounds[k + 1]) for k in rows])
    sample = np.repeat(rows, scored.sizes[rows])
    return scored.scores[at, c], sample, scored.document[sample]


def _maxima(
    scored: GuardScores, fits: Bool[np.ndarray, " sample"], negative: Bool[np.ndarray, "document concept"]
) -> Float64[np.ndarray, "document concept"]:
    found = np.full(negative.shape, -math.inf)
    for k in np.flatnonzero(fits):
        own = scored.scores[scored.bounds[k] : scored.bounds[k + 1]].max(0)
        found[scored.document[k]] = np.maximum(found[scored.document[k]], own)
    return np.where(negative & (found > -math.inf), found, np.nan)


def _filled(tails: list[list[Losses]]) -> tuple[np.ndarray, np.ndarray]:
    steps = max(len(one.value) for band in tails for one in band)
    shape = (len(tails), len(tails[0]), max(steps, 1))
    score, loss = np.full(shape, -np.finfo(np.float64).max), np.zeros(shape)
    for b, band in enumerate(tails):
        for c, one in enumerate(band):
            score[b, c, : len(one.value)], loss[b, c, : len(one.value)] = one.value, one.loss
    return score, loss


def _refuse_few(
    promise: Promise,
    maxima: Float64[np.ndarray, "document concept"],
    scored: GuardScores,
    bands: Sequence[tuple[int, int]],
    names: Sequence[str],
    wanted: Sequence[int],
) -> None:
    least, sizes = promise.least_documents, scored.document_sizes
    for low, high in bands:
        inside = np.ones(len(sizes), dtype=bool)
        if promise.kind != "sample":
            inside = (sizes >= low) & (sizes <= high)
        counts = (~np.isnan(maxima[inside])).sum(0)[list(wanted)]
        short = [f"{name!r} has {n}" for name, n in zip(names, counts, strict=True) if n < least]
        if not short:
            continue
        enough = [name for name, n in zip(names, counts, strict=True) if n >= least]
        where = f" of {low} to {high} tokens" if promise.lengths is not None else ""
        hint = f", or promise it for those that have enough, concepts={tuple(enough)}" if enough else ""
        raise ValueError(
            f"{', '.join(short[:4])}{', ...' if len(short) > 4 else ''} guard documents{where} without the "
            f"concept, and it takes {least} to promise that {promise.words}. Give so many, or raise "
            f"alpha{hint}."
        )


def refuse_lengths(guard: Guard, samples: Sequence[Sample], sizes: Int[np.ndarray, " sample"]) -> None:
    """Refuse texts of lengths that the promise is not made for.

    Args:
        guard: Whose promise.
        samples: The texts.
        sizes: Kept tokens of each.

    Raises:
        ValueError: The first of them, and the lengths.
    """
    unit = "sample" if guard.promise.kind == "sample" else "document"
    total: dict[str, int] = {}
    for sample, size in zip(samples, sizes.tolist(), strict=True):
        name = sample.id if unit == "sample" else sample.document
        total[name] = total.get(name, 0) + size
    outside = [(name, n) for name, n in total.items() if not guard.covers(n)]
    if outside:
        low, high = guard.lengths
        raise ValueError(
            f"{len(outside)} of {len(total)} {unit}s lie outside the {low} to {high} tokens that the promise "
            f"is made for, {outside[0][0]!r} with {outside[0][1]} first: cut the texts, or calibrate with "
            "guard documents of such lengths (Promise(lengths=...) may part them in bands)."
        )


@dataclass(frozen=True, eq=False)
class DocumentTests:
    """p-values of samples, each taken for a document.

    Attributes:
        p: Of the highest score.
        floor: The smallest that it can be, by concept.
        documents: Of each sample.
        bands: Of lengths.
    """

    p: Float64[np.ndarray, "sample concept"]
    floor: Float64[np.ndarray, " concept"]
    documents: tuple[str, ...]
    bands: int


def tested_of(
    guard: Guard | None, highest: Float64[np.ndarray, "sample concept"], documents: tuple[str, ...]
) -> DocumentTests | None:
    """p-values of samples with these highest scores; None without a guard."""
    if guard is None:
        return None
    p = np.stack([guard.p_values(c, highest[:, c], "document") for c in range(highest.shape[1])], axis=1)
    return DocumentTests(p, 1.0 / (guard.n_documents + 1.0), documents, len(guard.score))
