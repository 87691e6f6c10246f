"""What a user gives as a column, read into a list of plain values or refused by name.

Every constructor and loader reads its arguments through `column` and one of the readers below. A reader
takes where a value stands ("texts[3]") and the value, and gives the plain Python value or an error that
names the place, the value and the fix. Scalars of numpy, pandas and torch become Python's; an iterator is
read once, here; nothing is guessed: a text is no list of letters, 0.7 is no label, True is no position.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

from sa_plugin._check import did_you_mean, users_line

_T = TypeVar("_T")
if TYPE_CHECKING:
    Column: TypeAlias = Iterable[_T]
    Given: TypeAlias = Annotated[_T, "read by a reader of this file"]
else:

    class Column:
        """One entry a sample: a list, a tuple, an array, a Series, or an iterator, which is read once."""

        def __class_getitem__(cls, _: Any) -> Any:
            # Checked by `column`, in words of ours, and not by a checker of types.
            return Any

    class Given:
        """A value of this type when it has been read; before, what a user gives."""

        def __class_getitem__(cls, _: Any) -> Any:
            return Any


Reader: TypeAlias = Callable[[str, Any], _T]
_ONE_ENTRY = "give a list, one entry a sample"
# Marks that turn or hide what follows them: two names would look alike, or one like another.
_HIDDEN = ("Cc", "Cf", "Zl", "Zp", "Cn")
# What a missing label becomes as text, the ends of a list or mapping, and what stands between names.
_MISSING = ("nan", "none", "null", "n/a", "#n/a", "<na>", "nat", "undefined")
_BRACKETS = (("[", "]"), ("(", ")"), ("{", "}"))
_JOINTS = ";,|"


def column(name: str, given: Any, read: Reader[_T], *, n: int | None = None, fix: str = "") -> list[_T]:
    """A column as a list of plain values.

    Args:
        name: Of the argument.
        given: What was given.
        read: Reader of an entry.
        n: Number of samples, where it is known.
        fix: What to give instead, where it is no list.

    Raises:
        TypeError: A text, a mapping, a set, a table or a single value stands where a list belongs, or an
            entry is of another type.
        ValueError: Another number of entries than samples, or an entry is not as expected.

    Example:
        >>> column("texts", (one for one in ("a cat", "a dog")), text_of)
        ['a cat', 'a dog']
    """
    entries = entries_of(name, given, fix or _ONE_ENTRY)
    if n is not None and len(entries) != n:
        raise ValueError(f"{name} has {len(entries)} entries for {n} samples: give one a sample.")
    return [read(f"{name}[{k}]", one) for k, one in enumerate(entries)]


def entries_of(name: str, given: Any, fix: str) -> list[Any]:
    """Entries in their order, read once; arrays and Series as Python's scalars.

    Raises:
        TypeError: What was given has no order, or no entries.
    """
    if isinstance(given, str | bytes):
        kind = "text" if isinstance(given, str) else "bytes"
        raise TypeError(f"{name} is the {kind} {cut(repr(given))}, not a list: {fix}.")
    if getattr(given, "ndim", 1) != 1 or (hasattr(given, "columns") and hasattr(given, "to_numpy")):
        shape = " x ".join(map(str, getattr(given, "shape", ()))) or "a single value"
        raise TypeError(f"{name} is {shape} ({type(given).__name__}), not one column: {fix}.")
    if isinstance(given, Mapping | Set) or not isinstance(given, Iterable):
        raise TypeError(f"{name} is {shown(given)}, not a list: {fix}.")
    return list(given.tolist() if hasattr(given, "tolist") else given)


def picture_column(name: str, given: Any) -> list[Any]:
    """Pictures one by one, of a list or of one array `[picture, ...]`, read once."""
    if isinstance(given, str | bytes | Mapping | Set) or not isinstance(given, Iterable):
        raise TypeError(f"{name} is {shown(given)}, not a list: {_ONE_ENTRY}.")
    if getattr(given, "ndim", 1) == 0 or hasattr(given, "columns"):
        raise TypeError(f"{name} is a single {type(given).__name__}, not a list: {_ONE_ENTRY}.")
    return list(given)


def shown(value: Any) -> str:
    """A value with its type, for errors."""
    return "None" if value is None else f"{cut(repr(value))} ({type(value).__name__})"


def cut(said: str, most: int = 60) -> str:
    """A text for an error, no longer than this, and its end shown to be missing.

    Example:
        >>> cut("'a long story'", 8)
        "'a l...'"
    """
    if len(said) <= most:
        return said
    return said[: most - 4].rstrip() + "..." + (said[-1] if said[0] == said[-1] and said[0] in "'\"" else "")


def scalar(value: Any) -> Any:
    """Python's own value of a scalar of numpy or torch; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def is_missing(value: Any) -> bool:
    """Whether this is what a table holds where nothing was written: None, NaN, NaT, pandas.NA."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    value = scalar(value)
    return value is None or (isinstance(value, float) and value != value)


def text_of(where: str, value: Any) -> str:
    """A text: characters that can be encoded, and no null."""
    value = scalar(value)
    if is_missing(value):
        raise TypeError(f"{where} is {value}, where a text belongs: give it, or leave the sample out.")
    if not isinstance(value, str):
        fix = "decode it" if isinstance(value, bytes) else "give a text, such as str(value)"
        raise TypeError(f"{where} is {shown(value)}, not a text: {fix}.")
    for at, character in _suspect(value):
        what = "null character" if character == "\0" else "lone surrogate"
        raise ValueError(
            f"{where} holds a {what} ({character!a}, character {at}), which is no text: was the file "
            "read in its own encoding? Read it anew, or take the character out."
        )
    return value


def _suspect(value: str) -> list[tuple[int, str]]:
    """The first null or lone surrogate; most texts are settled by two fast looks."""
    if value.isascii() and "\0" not in value:
        return []
    found = ((at, c) for at, c in enumerate(value) if c == "\0" or "\ud800" <= c <= "\udfff")
    return [one for one in (next(found, None),) if one is not None]


def is_blank(text: str) -> bool:
    """Whether nothing of it is seen: white space, marks of format, controls."""
    return not text.strip() or (
        not text.isascii() and all(c.isspace() or unicodedata.category(c) in _HIDDEN for c in text)
    )


def name_of(where: str, value: Any) -> str:
    """A concept's name: a text that is not blank and has nothing invisible in it or around it."""
    value = scalar(value)
    if not isinstance(value, str):
        fix = f"give a text, such as {str(value)!r}" if isinstance(value, int) else "give a text"
        raise TypeError(f"{where} is {shown(value)}, not the name of a concept: {fix}.")
    if not value.strip():
        raise ValueError(f"{where} is {value!r}, a blank name: give a name, or leave it out.")
    if value != value.strip():
        raise ValueError(f"{where} is {value!r}, with white space around it: give {value.strip()!r}.")
    hidden = [c for c in value if unicodedata.category(c) in _HIDDEN or "\ud800" <= c <= "\udfff"]
    if hidden:
        raise ValueError(
            f"{where} is {value!a}, which holds {hidden[0]!a}, a character that is not seen: "
            "leave it out of the name."
        )
    return value


class AlikeNamesWarning(UserWarning):
    """Two concepts are called alike: perhaps they are one, in two writings."""


def require_one_order(**given: Any) -> None:
    """Refuse columns of pandas whose rows stand in different orders: entries go by position.

    Raises:
        ValueError: Two have the same index in another order.
    """
    indices = {
        name: list(one.index)
        for name, one in given.items()
        if hasattr(one, "to_numpy") and hasattr(one, "index")
    }
    first = next(iter(indices), "")
    for name, index in indices.items():
        if index != indices[first] and sorted(map(repr, index)) == sorted(map(repr, indices[first])):
            raise ValueError(
                f"{name} and {first} have one index in two orders, and entries are taken by position: sort "
                f"them alike, such as {name}.loc[{first}.index]."
            )


def require_names(seen: Sequence[str], said: str = "concepts=[...]") -> None:
    """Refuse what stands where names belong and is none, of names that nobody said but a column of labels.

    Args:
        seen: The distinct labels of a column.
        said: What takes every name as it is.

    Raises:
        ValueError: A number, a list or a missing value that became text, or several names in one.
    """
    alike: dict[str, str] = {}
    for name in seen:
        other = alike.setdefault(name.casefold(), name)
        if other != name:
            warnings.warn(
                f"concepts {other!r} and {name!r} differ in case only and are two: write one name one way, "
                f"or say {said} where they are two.",
                AlikeNamesWarning,
                stacklevel=users_line(),
            )
        if re.fullmatch(r"[-+]?\d+([.,]\d+)?", name):
            why = "a number as text: give numbers with concepts=[...], their names in order"
        elif name.lower() in _MISSING:
            why = "what programs write where nothing was: give None"
        elif (name[0], name[-1]) in _BRACKETS:
            why = "a list as text: give the list itself, such as ast.literal_eval(label)"
        else:
            why = _joined(name, seen)
        if why:
            raise ValueError(f"label {name!r} is {why}; or say {said} where it is a name.")


def _joined(name: str, seen: Sequence[str]) -> str:
    """Whether a name holds others of the column, between separators."""
    parts = _parts(name)
    others = {part for one in seen if one != name for part in _parts(one)}
    if len(parts) < 2 or (not others.issuperset(parts) and set(seen).isdisjoint(parts)):
        return ""
    mark = next(mark for mark in _JOINTS if mark in name)
    return (
        f"several names in one: give lists, such as [part.strip() for part in label.split({mark!r})] (in a "
        "CSV file several stand with ';')"
    )


def _parts(name: str) -> list[str]:
    return [part.strip() for part in re.split(f"[{re.escape(_JOINTS)}]", name) if part.strip()]


def label_of(where: str, value: Any) -> str:
    """A name of a sample or a document: a text that is not blank, or a whole number."""
    value = scalar(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"{where} is {shown(value)}, not a name: give a text or a whole number.")
    if not str(value).strip():
        raise ValueError(f"{where} is {value!r}, which is empty: fill it in, or leave the column out.")
    return text_of(where, str(value))


def names_of(where: str, value: Any) -> list[str]:
    """The concepts of one sample: a list or set of names; none where nothing is written."""
    if is_missing(value):
        return []
    if isinstance(value, Set):
        value = sorted(value, key=repr)
    one = f"give [{value!r}]" if isinstance(value, str) and value.strip() else None
    return column(where, value, name_of, fix=one or "give the names of its concepts, [] for none")


def word_label_of(where: str, value: Any) -> list[str]:
    """The concepts of one word: a name, several, or none."""
    value = scalar(value)
    several = is_missing(value) or (isinstance(value, Iterable) and not isinstance(value, str | bytes))
    return names_of(where, value) if several else [name_of(where, value)]


def whole_of(where: str, value: Any) -> int:
    """A whole number, and no truth value."""
    value = scalar(value)
    if isinstance(value, bool) or not isinstance(value, int):
        fix = f", such as {int(value)}" if isinstance(value, float) and value.is_integer() else ""
        raise TypeError(f"{where} is {shown(value)}, not a whole number: give one{fix}.")
    return value


def number_of(where: str, value: Any) -> float:
    """A finite number."""
    value = scalar(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{where} is {shown(value)}, not a number: give one.")
    if not abs(float(value)) < float("inf"):
        raise ValueError(f"{where} is {value}: give a finite number.")
    return float(value)


def flag_of(where: str, value: Any) -> bool | None:
    """A token's label: True, False, or None where it is not known; 0 and 1 are as good."""
    value = scalar(value)
    if value is None or type(value).__name__ == "NAType":
        return None
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    fix = "None where it is not known"
    if isinstance(value, float) and value == value:
        fix += "; for shares choose where a label begins, such as share > 0.5"
    raise ValueError(f"{where} is {shown(value)}, not a label: give True or False, or {fix}.")


def span_of(where: str, value: Any, name: Reader[str] = name_of) -> tuple[int, int, str]:
    """A labelled span: (start, end, concept), or {"start": ..., "end": ..., "label": ...}."""
    if isinstance(value, Mapping):
        value = [_entry(where, value, key) for key in ("start", "end", "label")]
    if isinstance(value, str):
        raise ValueError(
            f"{where} is the text {cut(repr(value), 40)}: the span is not (start, end, concept): for labels "
            "of whole texts use ConceptData.from_texts(texts, labels)."
        )
    parts = entries_of(where, value, "give (start, end, concept)")
    if len(parts) != 3:
        raise ValueError(f"{where} is {cut(repr(value))}, of {len(parts)} parts: give (start, end, concept).")
    if isinstance(parts[0], str) and not isinstance(parts[2], str):
        raise TypeError(f"{where} is {cut(repr(value))}, in another order: give (start, end, concept).")
    start, end = (whole_of(f"{where}[{k}]", parts[k]) for k in (0, 1))
    return start, end, name(f"{where}[2]", parts[2])


def spans_of(where: str, value: Any, name: Reader[str] = name_of) -> list[tuple[int, int, str]]:
    """The spans of one text, one by one, or one mapping of lists, as `datasets` gives them."""
    if isinstance(value, Mapping):
        parts = [entries_of(f"{where}[{key!r}]", _entry(where, value, key), "give a list") for key in _PARTS]
        if len({len(part) for part in parts}) > 1:
            raise ValueError(
                f"{where} has {len(parts[0])} starts, {len(parts[1])} ends and {len(parts[2])} labels: "
                "give one of each a span."
            )
        value = list(zip(*parts, strict=True))
    fix = "give a list of (start, end, concept), [] for none"
    return column(where, value, lambda at, one: span_of(at, one, name), fix=fix)


_PARTS = ("start", "end", "label")


def _entry(where: str, found: Mapping[Any, Any], key: str) -> Any:
    if key not in found:
        near = did_you_mean(key, map(str, found)) if found else "."
        raise ValueError(
            f"{where} has no {key!r}{near} Found: {', '.join(map(repr, found)) or 'nothing'}. "
            "Spans are (start, end, concept), or hold 'start', 'end' and 'label'."
        )
    return found[key]


def masks_of(where: str, value: Any) -> dict[str, list[bool | None]]:
    """The token masks of one text: concept to labels."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{where} is {shown(value)}, not a mapping: give {{concept: [True, False, ...]}}.")
    fix = "give one True or False a token"
    return {
        name_of(f"a concept of {where}", concept): column(f"{where}[{concept!r}]", mask, flag_of, fix=fix)
        for concept, mask in value.items()
    }


def seed_of(where: str, value: Any) -> int:
    """A seed: a whole number from 0 that every library takes."""
    seed = whole_of(where, value)
    if not 0 <= seed < 2**32:
        raise ValueError(f"{where} is {seed}: give a whole number from 0 to {2**32 - 1}.")
    return seed
