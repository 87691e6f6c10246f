"""The embedded data set: public-domain prose with silver WordNet supersense labels.

Silver: a tagger and a dictionary rule made the labels, nobody corrected them; 210 were read for
their precision (`supersense_review.csv`). What the rule leaves open is unlabelled, so an unlabelled
word may still have a concept. Facts, counts and limits: docs/supersense.md.
"""

import gzip
import json
from dataclasses import dataclass
from importlib.resources import files

CONCEPTS = (
    "animal", "artifact", "body", "communication", "event", "feeling", "food", "group", "location",
    "object", "person", "possession", "substance", "time",
)  # fmt: skip


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


def read_supersense() -> tuple[tuple[str, ...], list[SupersensePassage]]:
    """Read the embedded passages; no network, no dependency.

    Returns:
        The concepts and all passages: of the plain set, of the held-out-lemma set, or of both.

    Example:
        >>> concepts, passages = read_supersense()
        >>> plain = [passage for passage in passages if passage.plain]
    """
    packed = files(__package__).joinpath("supersense.jsonl.gz").read_bytes()
    header, *lines = gzip.decompress(packed).decode("utf-8").splitlines()
    concepts = tuple(json.loads(header)["concepts"])
    return concepts, [_passage(line) for line in lines]


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
