"""Cuts the source documents into passages of 30 to 100 words, whole sentences, no overlap.

Sentences are collected in order until a passage has 30 words. A passage that would pass 100 words
is given up and the next sentence starts afresh. Passages with what is not plain prose (verse,
stage directions, headings, tables, editors' brackets) are dropped, and so are later passages that
repeat a sentence of an earlier one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SHORTEST, LONGEST = 30, 100
REPEATED = 8
ABBREVIATIONS = {
    "Mr",
    "Mrs",
    "Ms",
    "Messrs",
    "Dr",
    "St",
    "Gen",
    "Col",
    "Capt",
    "Lieut",
    "Lt",
    "Maj",
    "Sgt",
    "Hon",
    "Rev",
    "Sen",
    "Rep",
    "Jr",
    "Sr",
    "No",
    "Nos",
    "Art",
    "Sec",
    "vs",
    "Jan",
    "Feb",
    "Aug",
    "Sept",
    "Oct",
    "Nov",
    "Dec",
    "Prof",
    "Gov",
    "viz",
    "Fig",
    "Vol",
    "Esq",
    "Bros",
    "Co",
    "Pt",
    "i.e",
    "e.g",
}
_END = re.compile(r"(?<=[.!?])(?:[\"')]*)\s+(?=[\"'(]*[A-Z])")
_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
_PLAIN = str.maketrans(
    {
        "\u2019": "'",
        "\u2018": "'",
        "\u201c": '"',
        "\u201d": '"',
        "_": None,
        "\u2011": "-",
        "\u2013": "-",
        "\u00a0": " ",
    }
)
_NOT_PROSE = re.compile(
    r"[\[\]{}|*\u2022]"  # editors' brackets, tables, bullets
    r"|\((?i:applause|laughter)"
    r"|\b[A-Z]{2,}[,.]?\s+[A-Z]{2,}\b|\b[A-Z]{5,}\b"  # headings, speakers
    r"|\b[A-Z]{3,}\."
    r"|\.{3}|\$[^$]*\$[^$]*\$|(?:\d\D{0,3}){18}"  # tables of sums
    r"|[a-z]-(?:the|a|an|and|or|but|which|that|this|we|it|not|is|are|for|with|as|our|in)\s"
)  # the last line: a hyphen that stands for a dash


@dataclass(frozen=True)
class Passage:
    """One cut passage; `document` is the unit of splitting, `source` is sotu or moby."""

    id: str
    document: str
    source: str
    text: str


def count_words(text: str) -> int:
    """Count the words of a text: runs of letters, joined by apostrophes or hyphens."""
    return len(_WORD.findall(text))


def sentences(text: str) -> list[str]:
    """Split prose at final marks followed by a capital, except after known abbreviations."""
    found, start = [], 0
    for end in _END.finditer(text):
        last = text[start : end.start()].rsplit(None, 1)[-1].rstrip(".\"')").lstrip("\"'(")
        if text[end.start() - 1] == "." and (last in ABBREVIATIONS or len(last) == 1):
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    return [*found, text[start:].strip()]


def cut(document: str, source: str, paragraphs: list[str]) -> Iterator[Passage]:
    """Yield a document's passages in order; the number in the id counts kept and dropped ones."""
    held: list[str] = []
    number = 0
    for sentence in (s for paragraph in paragraphs for s in sentences(paragraph)):
        held.append(sentence)
        words = count_words(" ".join(held))
        if words < SHORTEST:
            continue
        text = " ".join(held)
        held = []
        number += 1
        if words <= LONGEST and not _NOT_PROSE.search(text) and text[-1] in ".!?\"')":
            yield Passage(f"{document}-{number:03d}", document, source, text)


def without_repeats(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Drop passages with a longer sentence of an earlier one: presidents quote themselves."""
    known: set[str] = set()
    for passage in passages:
        own = {s for s in sentences(passage.text) if count_words(s) >= REPEATED}
        if not own & known:
            yield passage
        known |= own


def read_sotu(folder: Path) -> Iterator[Passage]:
    """Yield the passages of the State of the Union addresses; two share a year at handovers."""
    files = sorted(folder.glob("*.txt"))
    years = Counter(file.name[:4] for file in files)
    for file in files:
        year, *names, _party = file.stem.split("_")
        document = f"sotu-{year}" if years[year] == 1 else f"sotu-{year}-{names[-1]}"
        yield from cut(document, "sotu", [_clean(file.read_text(encoding="utf-8"))])


def read_moby(folder: Path) -> Iterator[Passage]:
    """Yield the passages of Moby-Dick's chapters and epilogue, without headings and verse."""
    for file in sorted(folder.glob("*.txt")):
        number = re.fullmatch(r"chapter_(\d+)", file.stem)
        if number is None and file.stem != "epilogue":
            continue
        document = f"moby-{int(number[1]):03d}" if number else "moby-epilogue"
        blocks = re.split(r"\n\s*\n", file.read_text(encoding="utf-8"))[1:]
        prose = [block for block in blocks if not re.search(r"^\s{3,}|\S {3,}\S", block)]
        yield from cut(document, "moby", [_clean(block) for block in prose if block.strip()])


def _clean(text: str) -> str:
    return " ".join(text.translate(_PLAIN).split())
