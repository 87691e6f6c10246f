"""Spans that do not lie on words: how many, and what probably moved them.

A span cuts a word when a letter, a digit or a mark stands on both sides of one of its ends, and it is
suspect when it begins or ends with white space. Both are what spans look like that were counted in other
units: UTF-16 (JavaScript, Java), bytes of UTF-8, from 1, with the last character instead of the one after
it, in a text whose line ends or leading spaces were taken off, or moved. Each is tried, and the first under
which at most a tenth of the suspect spans stay so is named. Scripts that put no spaces between words are not
looked at, nor is Korean, whose particles are written to the word.

What this does not show: spans that were moved from one word to another.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence

from sa_plugin._check import users_line
from sa_plugin.data.sample import Sample
from sa_plugin.data.words import is_unspaced

_Place = Callable[[str, int, int], tuple[int, int]]
_SHIFTS = tuple(sign * k for k in range(1, 11) for sign in (1, -1))
# Spans that a cause is looked for in.
_LOOKED_AT = 2000
_HANGUL = (0xAC00, 0xD7AF)


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
        f"Tokens that a span touches have its label. {_cause([(one.text, a, b) for one, a, b in cut])}",
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
    return any(0 < at < len(text) and _in_word(text[at - 1], text[at]) for at in (start, end))


def other_units(text: str, start: int, end: int) -> str:
    """What a span outside its text was perhaps counted in, as the end of an error; or nothing."""
    for place, said, _ in _units():
        moved = place(text, start, end)
        if moved != (start, end) and 0 <= moved[0] < moved[1] <= len(text):
            return f" Were they counted {said}?"
    return ""


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


def _cause(cut: Sequence[tuple[str, int, int]]) -> str:
    looked = cut[:_LOOKED_AT]
    for place, said, fix in (*_units(), *_moves()):
        if len(looked) < 2 and "moved" in said:
            break
        left = sum(is_cut(text, *place(text, start, end)) for text, start, end in looked)
        if left <= len(looked) / 10:
            return f"They lie on words when counted {said}: {fix}."
    return (
        "Compare some with their texts, and give positions in characters of the text as it is; where cut "
        "words are meant, silence CutWordsWarning."
    )


def _units() -> Iterator[tuple[_Place, str, str]]:
    """Other units, from the commonest: where a span lies then, in words, and how to mend it."""
    for unit, encoding, width in (("UTF-16 units", "utf-16-le", 2), ("bytes of UTF-8", "utf-8", 1)):
        mend = f"len(text.encode({encoding!r})[: {'2 * ' if width == 2 else ''}k].decode({encoding!r}))"
        yield _encoded(encoding, width), f"in {unit}", f"make of each position k {mend}"
    yield lambda t, a, b: (a, b + 1), "with the last character as end", "add 1 to each end"
    yield lambda t, a, b: (a - 1, b), "from 1, with the last character as end", "take 1 off each start"
    yield (
        lambda t, a, b: (_with_returns(t, a), _with_returns(t, b)),
        "with line ends as one character",
        "replace '\\r\\n' by '\\n' in the texts",
    )
    yield (
        lambda t, a, b: (a + len(t) - len(t.lstrip()), b + len(t) - len(t.lstrip())),
        "without the white space that texts begin with",
        "strip the texts",
    )


def _moved(shift: int) -> _Place:
    return lambda _, start, end: (start + shift, end + shift)


def _moves() -> Iterator[tuple[_Place, str, str]]:
    for shift in _SHIFTS:
        said = f"moved by {abs(shift)} character{'s' if abs(shift) > 1 else ''}"
        fix = (
            f"{'add' if shift > 0 else 'take'} {abs(shift)} {'to' if shift > 0 else 'off'} each start and end"
        )
        yield _moved(shift), said, fix


def _encoded(encoding: str, width: int) -> _Place:
    def place(text: str, start: int, end: int) -> tuple[int, int]:
        if text.isascii():
            return start, end
        coded = text.encode(encoding)
        try:
            first, after = (len(coded[: width * k].decode(encoding)) for k in (start, end))
        except UnicodeDecodeError:
            return -1, -1
        # Beyond the text, positions would be cut to its length.
        return (first, after) if width * end <= len(coded) else (-1, -1)

    return place


def _with_returns(text: str, position: int) -> int:
    """Where a position lies that was counted with line ends of one character."""
    if "\r\n" not in text:
        return position
    lengths = [
        2 if text[k : k + 2] == "\r\n" else 1 for k in range(len(text)) if text[k - 1 : k + 1] != "\r\n"
    ]
    return sum(lengths[:position])
