"""Words to the text they are of, and labels of words to spans in it.

A corpus that is cut into words has lost its spaces. In order of trust the text is what it says (`text=`),
what it says of the space after each word (`spaces_after=`), or the words joined by single spaces, with none
between two words of a script that is written without (Han, kana, Thai, Lao, Khmer, Burmese).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from sa_plugin._check import require_known
from sa_plugin.data.columns import Column, column, flag_of, scalar, text_of, word_label_of
from sa_plugin.data.sample import Span
from sa_plugin.data.tags import Tags, looks_tagged, tag_concepts, tags_of

# First and last of the blocks of scripts without spaces between words, and Han beyond the first plane.
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0xA4CF), (0xF900, 0xFAFF))
_BEYOND = (0x20000, 0x3FFFF)


class Spelling(TypedDict, total=False):
    """How words are written, and how their labels are.

    Attributes:
        text: The text of each sample, in which its words follow one another.
        spaces_after: Whether a space follows a word: one truth for all, or one a word.
        tags: Labels are tags: "auto", a scheme, or a mapping of tag to concept, see `tag_concepts`.
    """

    text: Column[str] | None
    spaces_after: bool | Column[Column[bool]] | None
    tags: Tags | None


def spelled(words: Any, labels: Any, how: Mapping[str, Any]) -> tuple[list[str], list[list[Span]]]:
    """The text of each sample, and the spans of its labelled words.

    Args:
        words: The words of each sample.
        labels: For each word its concept, its concepts, its tag, or None.
        how: A `Spelling`.

    Raises:
        TypeError: A text stands where its words belong, or a value is of another type.
        ValueError: Words and labels differ in number, a word is empty, or does not follow in the text.
    """
    for name in how:
        require_known("argument", name, list(Spelling.__annotations__))
    rows = column("words", words, lambda where, row: column(where, row, text_of, fix="give its words"))
    tags = how.get("tags")
    concepts = _concepts(labels, len(rows), None if tags is None else tags_of("tags", tags))
    for k, (row, found) in enumerate(zip(rows, concepts, strict=True)):
        if len(row) != len(found):
            raise ValueError(
                f"sample {k} has {len(row)} words and {len(found)} labels: give one label a word (None where "
                "it has none)."
            )
        for word in row:
            if not word or word != word.strip():
                raise ValueError(f"sample {k}: word {word!r} is empty or has white space around it.")
    texts, places = _placed(rows, how.get("text"), how.get("spaces_after"))
    spans = [
        [Span(*edges, concept) for edges, own in zip(at, found, strict=True) for concept in own]
        for at, found in zip(places, concepts, strict=True)
    ]
    return texts, spans


def _concepts(labels: Any, n: int, tags: Tags | None) -> list[list[list[str]]]:
    """The concepts of each word of each sample."""

    def row_of(where: str, row: Any) -> list[list[str]]:
        fix = "give one label a word, None where it has none"
        return column(where, row, word_label_of if tags is None else _tag_of, fix=fix)

    rows = column("labels", labels, row_of, n=n)
    every = [name for row in rows for own in row for name in own]
    if tags is not None:
        meant = tag_concepts(every, tags)
        return [[[c for tag in own if (c := meant[tag])] for own in row] for row in rows]
    tag = looks_tagged(every)
    if tag is not None:
        raise ValueError(
            f"label {tag!r} is a tag, not the name of a concept: give None for words without one, or say "
            "tags='auto' (tags='names' where it is a name)."
        )
    return rows


def _tag_of(where: str, value: Any) -> list[str]:
    value = scalar(value)
    return [value] if value == "" else word_label_of(where, value)


def _placed(
    rows: Sequence[Sequence[str]], text: Any, spaces_after: Any
) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """Texts, and where their words stand in them."""
    if text is not None:
        if spaces_after is not None:
            raise ValueError("text and spaces_after both say where spaces are: give one of them.")
        texts = column("text", text, text_of, n=len(rows))
        both = enumerate(zip(texts, rows, strict=True))
        return texts, [places_in(f"sample {k}", one, row) for k, (one, row) in both]
    spaced = _spaces(rows, spaces_after)
    texts, places = [], []
    for row, spaces in zip(rows, spaced, strict=True):
        parts, at, edges = [], 0, []
        for word, space in zip(row, spaces, strict=True):
            edges.append((at, at + len(word)))
            parts.append(word + " " * space)
            at += len(parts[-1])
        texts.append("".join(parts).rstrip(" "))
        places.append(edges)
    return texts, places


def _spaces(rows: Sequence[Sequence[str]], given: Any) -> list[list[bool]]:
    if given is None:
        return [
            [not (is_unspaced(word[-1]) and is_unspaced(after[0])) for word, after in _pairs(row)]
            for row in rows
        ]
    if isinstance(scalar(given), bool):
        return [[bool(given)] * len(row) for row in rows]

    def row_of(where: str, row: Any) -> list[bool]:
        return column(where, row, _space_of, fix="give one True or False a word")

    found = column("spaces_after", given, row_of, n=len(rows))
    for k, (row, spaces) in enumerate(zip(rows, found, strict=True)):
        if len(row) != len(spaces):
            raise ValueError(f"spaces_after[{k}] has {len(spaces)} entries for {len(row)} words: one a word.")
    return found


def _space_of(where: str, value: Any) -> bool:
    found = flag_of(where, value)
    if found is None:
        raise ValueError(f"{where} is None: give True or False.")
    return found


def _pairs(row: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(row, [*row[1:], " "], strict=True)) if row else []


def is_unspaced(character: str) -> bool:
    """Whether it is of a script that is written without spaces between words."""
    return any(first <= ord(character) <= last for first, last in (*_UNSPACED, _BEYOND))


def places_in(where: str, text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Where words stand in their text, in which nothing but white space lies between them.

    Raises:
        ValueError: A word does not follow; the text names it, and how the text goes on.
    """
    at, places = 0, []
    for word in words:
        while at < len(text) and text[at].isspace():
            at += 1
        if not text.startswith(word, at):
            raise ValueError(
                f"{where}: word {word!r} does not follow in its text, which goes on with "
                f"{text[at : at + 20]!r} (character {at}): give the text that the words are of, or leave "
                "text out."
            )
        places.append((at, at + len(word)))
        at += len(word)
    return places
