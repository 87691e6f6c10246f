"""What is checked before scores are used: the right bank, the right concepts, no train rows."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int, Shaped

from sa_plugin._check import position_of, users_line
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData, Split
from sa_plugin.data.sample import Sample
from sa_plugin.passes.layout import TokenTable
from sa_plugin.scores.table import ScoreTable


class OtherDataWarning(UserWarning):
    """Vectors, thresholds and evaluation are not all of one data set."""


class SelectionDataWarning(UserWarning):
    """Evaluated on the samples that thresholds, deltas and layers were chosen on."""


@dataclass(frozen=True)
class Seen:
    """Which samples vectors and thresholds have seen.

    Attributes:
        data_hash: Of the data set calibrated on.
        train: Ids of its train samples.
        cal: Ids of its calibration samples.
        train_texts, cal_texts: Digests of their texts, to know them again in another data set.
        guard_texts: Digests of the texts that a promise was made from.
    """

    data_hash: str
    train: frozenset[str]
    cal: frozenset[str]
    train_texts: frozenset[str]
    cal_texts: frozenset[str]
    guard_texts: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"Seen({len(self.train)} train and {len(self.cal)} cal samples of data {self.data_hash[:8]})"

    @classmethod
    def of(cls, data: ConceptData) -> Seen:
        """Remember a data set's train and calibration samples."""
        train, cal = data.train.samples, data.cal.samples
        return cls(
            data.hash,
            frozenset(s.id for s in train),
            frozenset(s.id for s in cal),
            frozenset(_text_digest(s) for s in train),
            frozenset(_text_digest(s) for s in cal),
        )

    def guarded_by(self, guard: Split | None) -> Seen:
        """With the samples that a promise was made from."""
        return replace(self, guard_texts=frozenset(_text_digest(s) for s in guard or ()))


def _text_digest(sample: Sample) -> str:
    """Digest of a sample's text or pixels."""
    return hashlib.sha256(sample.content.encode()).hexdigest()[:16]


def check_unseen(split: Split, seen: Seen) -> None:
    """Refuse samples that vectors were fitted on.

    Raises:
        TypeError: Not a split.
        ValueError: The split is the train split, or holds a train sample.
    """
    if not isinstance(split, Split):
        raise TypeError(f"evaluation takes one split, not a {type(split).__name__}: give data.test.")
    same = split.data_hash == seen.data_hash
    # Ids tell samples of one data set apart; in another one the texts are looked up.
    names = [s.id if same else _text_digest(s) for s in split.samples]
    train, cal = (seen.train, seen.cal) if same else (seen.train_texts, seen.cal_texts)
    caught = [s.id for s, name in zip(split.samples, names, strict=True) if name in train]
    if split.name == "train" or caught:
        which = (
            f"the train split ({len(split)} samples)"
            if not caught
            else (
                f"{len(caught)} sample(s) of {split.name!r} that vectors were fitted on, {caught[0]!r} first"
            )
        )
        raise ValueError(
            f"cannot evaluate on {which}: concept vectors fit their train tokens, so the result "
            "would be too good. Give data.test."
        )
    if (same and split.name == "cal") or not cal.isdisjoint(names):
        warnings.warn(
            f"split {split.name!r} holds samples that thresholds, deltas and layers were chosen "
            "on: the numbers are optimistic. Report data.test.",
            SelectionDataWarning,
            stacklevel=users_line(),
        )
    if not seen.guard_texts.isdisjoint(map(_text_digest, split.samples)):
        warnings.warn(
            f"split {split.name!r} holds samples that the promised thresholds were made from: false alarms "
            "among them are as few as was promised by construction. Report data.test.",
            SelectionDataWarning,
            stacklevel=users_line(),
        )
    if not same and split.data_hash:
        warnings.warn(
            f"data {split.data_hash[:8]} is not the data this detector was calibrated on "
            f"({seen.data_hash[:8]}): no train text is among it, but passages of the same "
            "documents cannot be ruled out.",
            OtherDataWarning,
            stacklevel=users_line(),
        )


def check_chose_nothing(guard: Split, seen: Seen, documents: Mapping[str, str]) -> None:
    """Refuse a guard that vectors were fitted on, or that chose layers, deltas and units.

    Args:
        guard: Samples.
        seen: Texts of what chose them.
        documents: Split by name of document, where the guard is of the same data set.

    Raises:
        ValueError: The first sample of it that did, or lies in one document with one that did.
    """
    texts = dict.fromkeys(seen.train_texts, "train") | dict.fromkeys(seen.cal_texts, "cal")
    caught = [
        (s, of)
        for s in guard.samples
        if (of := texts.get(_text_digest(s)) or documents.get(s.document)) is not None
    ]
    if caught:
        sample, of = caught[0]
        raise ValueError(
            f"{len(caught)} of {len(guard)} guard samples are of the {of} split, {sample.id!r} first: what "
            "chose vectors, layers or deltas is no longer like new documents, and may not carry a promise. "
            "Give documents of their own."
        )


def held_out(
    data: ConceptData, bank: ConceptBank, split: str | Sequence[Sample], what: str = "scores"
) -> Sequence[Sample]:
    """The samples of a split, or those given, unless vectors were fitted on one of them.

    Args:
        data: Labelled samples.
        bank: The vectors.
        split: A name, or samples.
        what: Of them the vectors fit too well.

    Raises:
        ValueError: They were.
    """
    chosen = data.split(split).samples if isinstance(split, str) else tuple(split)
    # Ids repeat between data sets: only the data the bank was fitted on can hold its train samples.
    fitted = {sample.id for sample in data.train.samples}
    caught = sum(sample.id in fitted for sample in chosen)
    if caught and bank.origin.data_hash == data.hash:
        raise ValueError(
            f"{caught} of {len(chosen)} samples are of the train split the vectors were fitted on, "
            f"whose {what} they fit too well: use split='test' (or 'cal')."
        )
    return chosen


def check_bank_data(bank: ConceptBank, data: ConceptData) -> None:
    """Refuse a bank of concepts the data do not know; warn when it was fitted on other data.

    Raises:
        ValueError: A concept is not among the data's; the text names the nearest.
    """
    for concept in bank.concepts:
        position_of(concept, data.concepts, "the concepts of the data")
    fitted = bank.origin.data_hash
    if fitted and fitted != data.hash:
        warnings.warn(
            f"the bank was fitted on data {fitted[:8]}, calibration runs on {data.hash[:8]}: if "
            "the two share documents, calibration or test may hold samples the vectors were "
            "fitted on. Fit and calibrate on one ConceptData.",
            OtherDataWarning,
            stacklevel=users_line(),
        )


def check_scores(table: ScoreTable, bank: ConceptBank, concepts: Sequence[str]) -> None:
    """Refuse scores of other vectors, and scores that cannot be thresholded.

    Raises:
        ValueError: The scores are of another bank, lack the label of a concept, or hold a sample
            without tokens.
    """
    difference = _bank_difference(table.bank, bank)
    if difference:
        raise ValueError(
            f"the scores are of another bank ({difference}): score with detector.bank, or "
            "calibrate on these scores' bank."
        )
    if table.scores.shape != (len(table.tokens), len(bank.layers), len(bank.units)):
        raise ValueError(
            f"scores have shape {table.scores.shape}, expected [token, layer, unit] = "
            f"{(len(table.tokens), len(bank.layers), len(bank.units))}."
        )
    for concept in concepts:
        position_of(concept, table.tokens.concepts, "the labelled concepts of the scores")
    empty = np.flatnonzero(np.diff(table.tokens.bounds) == 0)
    if len(empty):
        name = table.tokens.samples[empty[0]].id
        raise ValueError(f"sample {name!r} has no kept token: leave it out, or give a longer text.")


def check_finite_scores(table: ScoreTable) -> None:
    """Refuse NaN and infinite scores.

    Raises:
        ValueError: A score is NaN or infinite; the text names the sample and layer.
    """
    for k, layer in enumerate(table.bank.layers):
        bad = ~np.isfinite(table.scores[:, k]).all(-1)
        if bad.any():
            sample = table.tokens.samples[table.tokens.sample_of[int(bad.argmax())]]
            raise ValueError(
                f"{int(bad.sum())} token(s) have NaN or infinite scores at layer {layer}, the "
                f"first in sample {sample.id!r}: mend the vectors or the activations first."
            )


def _bank_difference(one: ConceptBank, other: ConceptBank) -> str:
    """In what two banks differ, or "" where they score alike."""
    if one is other:
        return ""
    for name in ("units", "layers", "hook_point", "kind"):
        a, b = getattr(one, name), getattr(other, name)
        if a != b:
            return f"{name} {_short(a)} instead of {_short(b)}"
    if one.origin.fingerprint != other.origin.fingerprint:
        return f"model {one.origin.model!r} instead of {other.origin.model!r}"
    return "" if one.token.scores_like(other.token) else "its vectors differ"


def rows_of_samples(table: ScoreTable, samples: Iterable[Sample]) -> Int[np.ndarray, " sample"]:
    """Where some samples stand in a table, in the table's order.

    Raises:
        ValueError: A sample was not scored, or another one under its id.
    """
    wanted = {s.id: s for s in samples}
    have = {s.id: k for k, s in enumerate(table.tokens.samples)}
    missing = sorted(set(wanted) - set(have))
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} samples were not scored, {missing[0]!r} first: "
            "score the split they are in, with the data set they are from."
        )
    rows = np.array(sorted(have[i] for i in wanted), dtype=int)
    for k in rows:
        scored = table.tokens.samples[k]
        if scored != wanted[scored.id]:
            raise ValueError(
                f"the scores of sample {scored.id!r} are of another text or other labels: they "
                "were made with another data set. Score this one."
            )
    return rows


def document_names(tokens: TokenTable) -> Shaped[np.ndarray, " sample"]:
    """Source document of each sample by name, so that resamples do not depend on sample order."""
    return np.array([s.document for s in tokens.samples])


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def labels_of(
    table: ScoreTable, concepts: tuple[str, ...]
) -> tuple[Bool[np.ndarray, "token concept"], Bool[np.ndarray, "sample concept"]]:
    """Token and sample labels, columns in the detector's order."""
    columns = [position_of(c, table.tokens.concepts, "the labelled concepts") for c in concepts]
    return table.tokens.labels[:, columns], table.tokens.sample_labels[:, columns]


def known_tokens(tokens: TokenTable, concepts: tuple[str, ...]) -> Bool[np.ndarray, "token concept"] | None:
    """Which token labels are known, columns in the detector's order; None where all are."""
    if tokens.known is None:
        return None
    return tokens.known[:, [position_of(c, tokens.concepts) for c in concepts]]


def unknown_of(tokens: TokenTable, concepts: tuple[str, ...]) -> dict[str, int]:
    """Tokens whose label is unknown, of each of the detector's concepts that has any."""
    return {concept: n for concept, n in tokens.unknown.items() if concept in concepts}
