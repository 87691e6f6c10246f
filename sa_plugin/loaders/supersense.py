"""The embedded data set: public-domain prose with silver WordNet supersense labels.

Silver: a tagger and a dictionary rule made the labels, nobody corrected them; 210 were read for
their precision. What the rule leaves open is unlabelled, so an unlabelled word may still have a
concept. Facts, counts and limits: docs/supersense.md.

The file is gzip: a header line with `format`, `concepts` and where the texts come from, then one
passage a line.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.splits import Splits

_FORMAT = 1
SUPERSENSES = (
    "animal",
    "artifact",
    "body",
    "communication",
    "event",
    "feeling",
    "food",
    "group",
    "location",
    "object",
    "person",
    "possession",
    "substance",
    "time",
)


@dataclass(frozen=True)
class SupersensePassage:
    """A passage of 30 to 100 words with its labelled nouns.

    Args:
        id: Document and place in it, such as "sotu-1862-017".
        document: One address or one chapter of Moby-Dick: the unit of splitting and resampling.
        text: The passage.
        spans: Start, end (characters, end exclusive) and concept of each labelled noun, in order.
        lemmas: The dictionary form of each labelled noun.
        plain: Whether the passage is in the plain set.
        held_out_lemma: Its split in the held-out-lemma set ("train", "cal" or "test") or None.
    """

    id: str
    document: str
    text: str
    spans: tuple[tuple[int, int, str], ...]
    lemmas: tuple[str, ...]
    plain: bool
    held_out_lemma: str | None


def load_supersense(*, split: str = "plain", seed: int = 0) -> ConceptData:
    """The embedded passages as data.

    Args:
        split: "plain", or "held_out_lemma": no labelled lemma of test is in train or cal.
        seed: Seed of the plain division.
    """
    concepts, passages = read_supersense()
    plain = split == "plain"
    passages = [p for p in passages if (p.plain if plain else p.held_out_lemma)]
    return ConceptData.from_spans(
        [p.text for p in passages],
        [p.spans for p in passages],
        concepts=concepts,
        documents=[p.document for p in passages],
        ids=[p.id for p in passages],
        splits=Splits(None if plain else [str(p.held_out_lemma) for p in passages], seed=seed),
        name=f"supersense/{split}",
    )


def read_supersense() -> tuple[tuple[str, ...], list[SupersensePassage]]:
    """Read the embedded passages; no network, no dependency.

    Returns:
        The concepts and all passages: of the plain set, of the held-out-lemma set, or of both.

    Raises:
        ValueError: The file has another format number.

    Example:
        >>> concepts, passages = read_supersense()
        >>> plain = [passage for passage in passages if passage.plain]
    """
    packed = files(__package__).joinpath("supersense.jsonl.gz").read_bytes()
    header, *lines = gzip.decompress(packed).decode("utf-8").splitlines()
    facts: dict[str, Any] = json.loads(header)
    if facts["format"] != _FORMAT:
        raise ValueError(
            f"supersense.jsonl.gz has format {facts['format']!r}, expected {_FORMAT}: install data and "
            "code of one version."
        )
    return tuple(facts["concepts"]), [_passage(line) for line in lines]


def _passage(line: str) -> SupersensePassage:
    record = json.loads(line)
    labels = record["labels"]
    return SupersensePassage(
        id=record["id"],
        document=record["document"],
        text=record["text"],
        spans=tuple((start, end, concept) for start, end, concept, _lemma in labels),
        lemmas=tuple(lemma for _start, _end, _concept, lemma in labels),
        plain=record["plain"],
        held_out_lemma=record["held_out_lemma"],
    )
