"""Sentences with labelled spans, of which `tail_spans` builds contexts: their sources and rules.

| source | concepts | a span is | from |
|---|---|---|---|
| embedded | animal, body, food | a noun of the embedded set (`supersense`) | embedded |
| nouns | the same | a common noun of Brown whose WordNet senses are one class (`tail_nouns.json`) | Brown |
| sentences | quoted speech, question, dated event | the quoted part of a sentence, or all of it | Brown |
| genres | learned, religion, reportage, romance | all of a sentence of that genre | Brown |

Rules of the sentences, on Brown's own marks and tags:

    quoted speech   from an opening quote to its closing one in the same sentence: at least four words, one of
                    them a verb, the first one capitalised and not all of them, as in a title
    question        a sentence that ends with a question mark, closing quotes and brackets aside
    dated event     a sentence with a year, 1000 to 1999, behind a preposition of time, a month or a comma, a
                    verb in the past tense, and no modal

One hundred sentences of each rule, drawn by seed, were read for its precision (verdicts:
docs/experiments/tail_spans_review.csv) by one reader, the language model that wrote the rules and knew them;
nobody read them again. Quoted writing counts as quoted speech. The rules for quotes and events were narrowed
after a first hundred (95 and some 80 right) and read on new ones.

| concept | sentences | right of 100 | why not |
|---|---|---|---|
| quoted speech | 1,790 | 98 | a title, a term |
| question | 1,070 | 100 | |
| dated event | 613 | 91 | citations 4, comparisons of figures 2, a forecast, an aim, a street number |

Nouns of Brown were not read; of the embedded set 210 were (docs/supersense.md). Brown is checked by the hash
of its archive when docs/experiments/brown.py fetches it; docs/experiments/tail_nouns.py makes the list.

A sentence in which a noun may have a concept and is not labelled (the "open" forms of `tail_nouns.json`) is
in none of the noun sources; one with quotes that are no speech by the rule, or run over several sentences, is
not in "sentences"; sentences of one or two words, and of more than 60, are in no source.

What the labels are not: complete. A sentence without a span may still speak of the concept by a name, a verb
or a pronoun.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from sa_plugin.loaders.brown import BrownToken, brown_folder, brown_sentences, joined_sentence
from sa_plugin.loaders.files import require_path
from sa_plugin.loaders.supersense import read_supersense

NOUNS = ("animal", "body", "food")
SENTENCES = ("quoted speech", "question", "dated event")
# By the second letter of a Brown file's name.
GENRES = {"learned": "j", "religion": "d", "reportage": "a", "romance": "p"}
_WORDS = (3, 60)
_SPOKEN = 4
_LONGEST_QUOTE = 8
_YEAR = re.compile(r"1\d{3}")
_PAST = ("vbd", "bed", "bedz", "dod", "hvd")
_MONTHS = "january february march april may june july august september october november december"
_TIMES = "in,since,until,till,by,after,before,from,between,during,spring,summer,fall,autumn,winter,sept."
_BEFORE_YEARS = frozenset(
    (",", *_TIMES.split(","), *_MONTHS.split(), *(f"{month[:3]}." for month in _MONTHS.split()))
)
_VERB = re.compile(r"(vb|be|hv|do|md)")
_BREAK = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z])")
_CLOSING = ("''", "'", ")", "]", "``")


@dataclass(frozen=True)
class TailPiece:
    """A sentence.

    Attributes:
        document: Source document.
        place: Number of the sentence in it.
        text: Of the sentence.
        spans: Start, end (characters, end exclusive) and concept.
        lemmas: Dictionary form of each span, "" where there is none.
    """

    document: str
    place: int
    text: str
    spans: tuple[tuple[int, int, str], ...] = ()
    lemmas: tuple[str, ...] = ()

    @property
    def concepts(self) -> frozenset[str]:
        """Of its spans."""
        return frozenset(concept for *_, concept in self.spans)


@cache
def _lexicon() -> tuple[dict[str, tuple[str, str]], frozenset[str]]:
    """Form to concept and lemma, and the forms that may have a concept."""
    text = files(__package__).joinpath("tail_nouns.json").read_text(encoding="utf-8")
    held: dict[str, Any] = json.loads(text)
    open_ = frozenset(held.pop("open"))
    known = {
        form: (concept, lemma)
        for concept, lemmas in held.items()
        for lemma, forms in lemmas.items()
        for form in forms
    }
    return known, open_


def embedded_nouns(root: Path | None = None) -> Iterator[TailPiece]:
    """Sentences of the embedded passages; nothing is read but what this package ships."""
    known, open_ = _lexicon()
    for passage in read_supersense()[1]:
        labels = list(zip(passage.spans, passage.lemmas, strict=True))
        ends = [match.start() for match in _BREAK.finditer(passage.text)] + [len(passage.text)]
        starts = [0, *(match.end() for match in _BREAK.finditer(passage.text))]
        for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
            text = passage.text[start:end]
            own = [(s, lemma) for s, lemma in labels if start <= s[0] < end and s[2] in NOUNS]
            labelled = {text[a - start : b - start].lower() for (a, b, _), _ in own}
            words = set(re.findall(r"[a-z]+", text.lower())) - labelled
            if words & open_ or words & known.keys() or not _fits(len(text.split())):
                continue
            spans = tuple((a - start, b - start, concept) for (a, b, concept), _ in own)
            # A passage is a paragraph or so: its number keeps the order within the document.
            number = 100 * int(passage.id.rsplit("-", 1)[1]) + place
            yield TailPiece(passage.document, number, text, spans, tuple(lemma for _, lemma in own))


def brown_nouns(root: Path | None = None) -> Iterator[TailPiece]:
    """Sentences of Brown with its common nouns of a class."""
    known, open_ = _lexicon()
    for document, place, tokens in _brown(root):
        nouns = {k: word.lower() for k, (word, tag) in enumerate(tokens) if tag in ("nn", "nns")}
        if open_ & set(nouns.values()):
            continue
        text, places = joined_sentence(tokens)
        own = [(k, *known[form]) for k, form in nouns.items() if form in known]
        spans = tuple((places[k][0], places[k][1], concept) for k, concept, _ in own)
        yield TailPiece(document, place, text, spans, tuple(lemma for *_, lemma in own))


def brown_spans(root: Path | None = None) -> Iterator[TailPiece]:
    """Sentences of Brown with quoted speech, questions and dated events."""
    home, left = "", 0
    for document, place, tokens in _brown(root, short=True):
        text, places = joined_sentence(tokens)
        quotes, opened = _quotes(tokens)
        # A quote that runs over several sentences is open until it closes, or so long that a mark is missing.
        left = left - 1 if document == home else 0
        home, running = document, left > 0
        if any(word == "''" for word, _ in tokens):
            left = 0
        if opened:
            left = _LONGEST_QUOTE
        if running or opened:
            continue
        if not _fits(len(tokens)):
            continue
        found = [(places[a][0], places[b][1], SENTENCES[0]) for a, b in quotes if _spoken(tokens[a : b + 1])]
        last = next((word for word, _ in reversed(tokens) if word not in _CLOSING), "")
        if last == "?":
            found.append((0, len(text), SENTENCES[1]))
        if _dated(tokens):
            found.append((0, len(text), SENTENCES[2]))
        # Part of a quote that is no speech by the rule is neither in the concept nor out of it.
        if quotes and not any(concept == SENTENCES[0] for *_, concept in found):
            continue
        yield TailPiece(document, place, text, tuple(found), ("",) * len(found))


def brown_genres(root: Path | None = None) -> Iterator[TailPiece]:
    """Sentences of Brown with their document's genre."""
    genre_of = {letter: genre for genre, letter in GENRES.items()}
    for document, place, tokens in _brown(root):
        text, _ = joined_sentence(tokens)
        genre = genre_of.get(document[1])
        spans = () if genre is None else ((0, len(text), genre),)
        yield TailPiece(document, place, text, spans, ("",) * len(spans))


Source = Callable[[Path | None], Iterator[TailPiece]]
SOURCES: dict[str, tuple[tuple[str, ...], Source]] = {
    "embedded": (NOUNS, embedded_nouns),
    "nouns": (NOUNS, brown_nouns),
    "sentences": (SENTENCES, brown_spans),
    "genres": (tuple(GENRES), brown_genres),
}


def _brown(root: Path | None, *, short: bool = False) -> Iterator[tuple[str, int, list[BrownToken]]]:
    """Document, number and tokens of Brown's sentences.

    Raises:
        FileNotFoundError: Brown is not there; the text says how to get it.
    """
    folder = brown_folder() if root is None else root
    found = sorted(folder.glob("c[a-r][0-9][0-9]"))
    if not found:
        require_path(folder / "ca01", "give the folder with Brown's files, ca01 to cr09")
    for path in found:
        for place, tokens in enumerate(brown_sentences(path)):
            if short or _fits(len(tokens)):
                yield path.name, place, tokens


def _fits(words: int) -> bool:
    return _WORDS[0] <= words <= _WORDS[1]


def _quotes(tokens: list[BrownToken]) -> tuple[list[tuple[int, int]], bool]:
    """First and last word of each quoted part, marks left out, and whether one is open at the end."""
    found: list[tuple[int, int]] = []
    start = None
    for k, (word, _) in enumerate(tokens):
        if word == "``":
            start = k + 1
        elif word == "''" and start is not None:
            found += [(start, k - 1)] if start < k else []
            start = None
    return found, start is not None


def _spoken(tokens: list[BrownToken]) -> bool:
    words = [(word, tag) for word, tag in tokens if word[0].isalnum()]
    verb = any(_VERB.match(part) for _, tag in words for part in tag.split("+"))
    titled = all(word[0].isupper() for word, _ in words)
    return len(words) >= _SPOKEN and verb and words[0][0][0].isupper() and not titled


def _dated(tokens: list[BrownToken]) -> bool:
    parts = {part for _, tag in tokens for part in re.split(r"[+*-]", tag)}
    year = any(
        tag == "cd" and _YEAR.fullmatch(word) and before.lower() in _BEFORE_YEARS
        for (before, _), (word, tag) in pairwise(tokens)
    )
    return year and "md" not in parts and bool(parts & set(_PAST))
