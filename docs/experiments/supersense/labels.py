"""The labelling rule: which nouns of a tagged passage carry which concept.

A word is labelled when the tagger calls it a common noun (NN, NNS), it is not capitalised inside
a sentence, all its base forms have the same single class (`WordNet.single_class`), that class is
a concept, it is not on the exclusion list, and no WordNet collocation around it ("right hand",
"head of state") has another class. A hyphenated compound is one word, labelled only if WordNet
has it. Whatever the rule leaves open stays unlabelled: a missing label is not a negative.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from supersense.passages import Passage
from supersense.tagging import Token
from supersense.wordnet import WordNet

WORD = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*")
LONGEST_COLLOCATION = 4
PHRASES = {"in_the_event", "in_that_event", "in_either_event", "incident_to", "incident_upon"}


@dataclass(frozen=True)
class Label:
    """A labelled word: character offsets (end exclusive), concept and lemma."""

    start: int
    end: int
    concept: str
    lemma: str


@dataclass(frozen=True)
class Rule:
    """WordNet, the concepts in use, and what the two hand-made lists take away and add."""

    wordnet: WordNet
    concepts: frozenset[str]
    excluded: frozenset[tuple[str, str]]
    added: dict[str, str]

    def concept_of(self, word: str, plural: bool) -> tuple[str, str] | None:
        """Return concept and lemma of a lower-cased noun, or None if it is to stay unlabelled."""
        forms = self.wordnet.lemmas(word, plural)
        if not forms:
            return None
        concept = self.added.get(forms[0]) or self.wordnet.single_class(forms)
        if concept not in self.concepts:
            return None
        if any((form, concept) in self.excluded for form in (*forms, word)):
            return None
        return concept, forms[0]


def read_list(name: str) -> dict[tuple[str, str], str]:
    """Return the reason of each (lemma, concept) in `exclusions.tsv` or `additions.tsv`."""
    with Path(__file__).with_name(name).open(encoding="utf-8", newline="") as opened:
        rows = csv.DictReader(opened, delimiter="\t")
        return {(row["lemma"], row["concept"]): row["reason"] for row in rows}


def label(passage: Passage, tokens: list[Token], rule: Rule) -> tuple[Label, ...]:
    """Return the labels of one passage in order."""
    text = passage.text
    tags = {end: tag for _start, end, tag in tokens}
    words = [(m.start(), m.end(), tags.get(m.end(), "")) for m in WORD.finditer(text)]
    found = []
    for place, (start, end, tag) in enumerate(words):
        if tag not in ("NN", "NNS") or not _ordinary(text, start, end):
            continue
        known = rule.concept_of(text[start:end].lower(), plural=tag == "NNS")
        if known is not None and not _other_sense(text, words, place, known[0], rule):
            found.append(Label(start, end, *known))
    return tuple(found)


def _ordinary(text: str, start: int, end: int) -> bool:
    """Tell whether a word is free of digits and of capitals that a sentence start excuses not."""
    if text[start].isupper() and not re.search(r"(^|[.!?:][\"')]*\s)[\"'(]*$", text[:start]):
        return False
    around = text[start - 1 : start] + text[end : end + 1]
    return end - start > 1 and not any(mark.isdigit() or mark == "-" for mark in around)


def _other_sense(text: str, words: list[tuple[int, int, str]], place: int, concept: str, rule: Rule) -> bool:
    """Tell whether a longest collocation that covers the word is of another class."""
    for size in range(LONGEST_COLLOCATION, 1, -1):
        for first in range(max(0, place - size + 1), min(place, len(words) - size) + 1):
            run = words[first : first + size]
            gaps = (text[a[1] : b[0]] for a, b in pairwise(run))
            if any(gap != " " for gap in gaps):
                continue
            joined = text[run[0][0] : run[-1][1]].lower().replace(" ", "_")
            forms = rule.wordnet.lemmas(joined, plural=run[-1][2] == "NNS")
            if forms or joined in rule.wordnet.phrases or joined in PHRASES:
                return not any(concept in rule.wordnet.counts[form] for form in forms)
    return False
