"""Words to the text they are of, and labels of words to spans in it.

A corpus that is cut into words has lost its spaces. In order of trust the text is what it says (`text=`),
what it says of the space after each word (`spaces_after=`), or the words joined by single spaces, with none
between two words of a script that is written without (Han, kana, Thai, Lao, Khmer, Burmese).

Spans that do not lie on words: how many, and what probably moved them.

A span cuts a word when a letter, a digit or a mark stands on both sides of one of its ends, and it is
suspect when it begins or ends with white space. Both are what spans look like that were counted in other
units: UTF-16 (JavaScript, Java), bytes of UTF-8, from 1, with the last character instead of the one after
it, in a text whose line ends or leading spaces were taken off, or moved. Each is tried, and the first under
which at most a tenth of the suspect spans stay so is named. Scripts that put no spaces between words are not
looked at, nor is Korean, whose particles are written to the word.

What this does not show: spans that were moved from one word to another.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Literal, TypedDict

from sa_plugin._check import require_known, users_line
from sa_plugin.data.columns import Column, column, flag_of, scalar, text_of, word_label_of
from sa_plugin.data.sample import Sample, Span
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


_Place = Callable[[str, int, int], tuple[int, int]]
_SHIFTS = tuple(sign * k for k in range(1, 11) for sign in (1, -1))
# Spans that a cause is looked for in.
_LOOKED_AT = 500
_HANGUL = (0xAC00, 0xD7AF)
# Signs are joined by the zero-width joiner; it, variants and skin tones belong to the sign before them.
_JOINER = "\u200d"
_BEHIND = (_JOINER, "\ufe0e", "\ufe0f", *map(chr, range(0x1F3FB, 0x1F400)))


class CutWordsWarning(UserWarning):
    """Spans cut words: the labels may be misaligned with the texts."""


def warn_of_cut_words(samples: Sequence[Sample]) -> None:
    """Count the spans that cut words, and warn with examples and the probable cause."""
    every = [(sample, start, end) for sample in samples for start, end, _ in sample.spans]
    cut = [(sample, start, end) for sample, start, end in every if is_cut(sample.text, start, end)]
    if not cut:
        return
    examples = ", ".join(f"{_marked(one.text, a, b)} (sample {one.id!r})" for one, a, b in cut[:3])
    warnings.warn(
        f"{len(cut)} of {len(every)} spans cut words, or begin or end with white space: {examples}. "
        "Tokens that a span touches have its label. "
        f"{_cause([(one.text, a, b) for one, a, b in every], [(one.text, a, b) for one, a, b in cut])}",
        CutWordsWarning,
        stacklevel=users_line(),
    )


def is_cut(text: str, start: int, end: int) -> bool:
    """Whether a span of a text cuts a word, or begins or ends with white space, or lies outside."""
    if not 0 <= start < end <= len(text):
        return True
    if (start, end) == (0, len(text)):
        return False
    if text[start].isspace() or text[end - 1].isspace():
        return True
    return any(0 < at < len(text) and _is_joined(text[at - 1], text[at]) for at in (start, end))


def other_units(text: str, start: int, end: int) -> str:
    """What a span outside its text was perhaps counted in, as the end of an error; or nothing."""
    for place, said, _ in _units():
        moved = place(text, start, end)
        if moved != (start, end) and 0 <= moved[0] < moved[1] <= len(text):
            return f" Were they counted {said}?"
    return ""


def _is_joined(before: str, after: str) -> bool:
    """Whether two characters are of one word, or of one sign that people see."""
    return before == _JOINER or after in _BEHIND or _in_word(before, after)


def _in_word(before: str, after: str) -> bool:
    return all(_is_letter(c) for c in (before, after)) and not any(
        is_unspaced(c) or _HANGUL[0] <= ord(c) <= _HANGUL[1] for c in (before, after)
    )


def _is_letter(character: str) -> bool:
    # Vowel signs and accents that follow their letter belong to it.
    return character.isalnum() or unicodedata.category(character)[0] == "M"


def _marked(text: str, start: int, end: int) -> str:
    before, after = text[max(0, start - 12) : start], text[end : end + 12]
    return repr(f"{before}[{text[start:end][:40]}]{after}")


def _cause(every: Sequence[tuple[str, int, int]], torn: Sequence[tuple[str, int, int]]) -> str:
    """What has probably happened, and how to mend it: a cause mends what is cut and spoils nothing else."""
    looked, whole = torn[:_LOOKED_AT], [one for one in every if not is_cut(*one)][:_LOOKED_AT]
    for place, said, fix in (*_units(), *_moves()):
        if len(looked) < 2 and "moved" in said:
            break
        left = sum(is_cut(text, *place(text, start, end)) for text, start, end in looked)
        spoilt = sum(is_cut(text, *place(text, start, end)) for text, start, end in whole)
        if left <= len(looked) / 10 and spoilt <= len(whole) / 10:
            return f"They lie on words when counted {said}: {fix}."
    # Nothing moved them: letters without a space that more letters of their word stand beside.
    within = [one for one in torn if not any(c.isspace() for c in one[0][one[1] : one[2]])]
    if whole and len(within) > len(torn) / 2:
        return (
            "Most lie inside of longer words: where words were searched for, search for whole ones, "
            r"re.finditer(rf'\b{word}\b', text)."
        )
    return (
        "Compare some with their texts, and give positions in characters of the text as it is; where cut "
        "words are meant, silence CutWordsWarning."
    )


def _units() -> Iterator[tuple[_Place, str, str]]:
    """Other units, from the commonest: where a span lies then, in words, and how to mend it."""
    for unit, encoding, width in (("UTF-16 units", "utf-16-le", 2), ("bytes of UTF-8", "utf-8", 1)):
        mend = f"len(text.encode({encoding!r})[: {'2 * ' if width == 2 else ''}k].decode({encoding!r}))"
        place = _counted(partial(_encoded, encoding=encoding, width=width), ".", _NOT_ASCII)
        yield place, f"in {unit}", f"make of each position k {mend}"
    yield lambda t, a, b: (a, b + 1), "with the last character as end", "add 1 to each end"
    yield lambda t, a, b: (a - 1, b), "from 1, with the last character as end", "take 1 off each start"
    for form in ("NFC", "NFD"):
        mend = f"give the texts as they were, such as unicodedata.normalize({form!r}, text)"
        place = _counted(partial(_normal, form=form), _LETTER, _NOT_ASCII)
        yield place, f"in texts of Unicode's form {form}", mend
    yield (
        _counted(lambda piece: 1, "\r\n|.", "\r\n"),
        "with line ends as one character",
        "replace '\\r\\n' by '\\n' in the texts",
    )
    yield (
        _counted(lambda piece: 1 + (piece == "\n"), "\r\n|.", r"(?<!\r)\n"),
        "with line ends as two characters",
        "replace '\\n' by '\\r\\n' in the texts",
    )
    yield (
        lambda t, a, b: (a + len(t) - len(t.lstrip(_LEADING)), b + len(t) - len(t.lstrip(_LEADING))),
        "without the white space that texts begin with",
        "strip the texts (a byte order mark too)",
    )


_LEADING = "\ufeff \t\r\n\f\v\xa0\u3000"
_NOT_ASCII = r"[^\x00-\x7f]"
# A letter with the marks that are written behind it.
_LETTER = r".[\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u093c\u3099\u309a]*"


def _counted(length: Callable[[str], int], pieces: str, where: str) -> _Place:
    """Positions in texts of which pieces count otherwise: (-1, -1) inside of a piece, or behind the text.

    Args:
        length: What a piece counts.
        pieces: How a text is cut.
        where: What a text must hold for any piece to count otherwise.
    """
    cut, holds = re.compile(pieces, re.DOTALL), re.compile(where)

    @lru_cache(maxsize=1)
    def ends(text: str) -> dict[int, int] | None:
        if not holds.search(text):
            return None
        at, counted = {0: 0}, 0
        for piece in cut.finditer(text):
            counted += length(piece[0])
            at[counted] = piece.end()
        return at

    def place(text: str, start: int, end: int) -> tuple[int, int]:
        at = ends(text)
        if at is None:
            return start, end
        return (at[start], at[end]) if start in at and end in at else (-1, -1)

    return place


def _encoded(piece: str, encoding: str, width: int) -> int:
    return len(piece.encode(encoding)) // width


def _normal(piece: str, form: Literal["NFC", "NFD"]) -> int:
    return len(unicodedata.normalize(form, piece))


def _moved(shift: int) -> _Place:
    return lambda _, start, end: (start + shift, end + shift)


def _moves() -> Iterator[tuple[_Place, str, str]]:
    for shift in _SHIFTS:
        said = f"moved by {abs(shift)} character{'s' if abs(shift) > 1 else ''}"
        fix = (
            f"{'add' if shift > 0 else 'take'} {abs(shift)} {'to' if shift > 0 else 'off'} each start and end"
        )
        yield _moved(shift), said, fix
