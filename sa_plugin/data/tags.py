"""Tags of words ("B-PER", "E-LOC", "O") to the concepts they mean (PER, LOC, none).

A tag is a letter, a mark between and a type; the letter says where in a name the word stands, and says
nothing of the concept. Which letters there are depends on the scheme:

| scheme | letters | |
|---|---|---|
| IOB1, IOB2 (BIO) | B I | begin, inside |
| IOE1, IOE2 | I E | inside, end |
| BIOES (IOBES) | B I E S | begin, inside, end, single |
| BILOU | B I L U | begin, inside, last, unit |
| BMES, BMEWO | B M E S, B M E W | begin, middle, end, single or word |

The letter stands first, or last ("PER-B"), upper or lower case, before or after `-`, `_`, `:`, `/`, `.` or
`|`. "O", "o", "_", "-" and nothing are words without a concept. Which it is, is told from the whole column:
a single tag does not tell whether "B-cell" is a cell that begins, or a kind of cell. What the column leaves
open is refused, and `tags=` says it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

from sa_plugin._check import did_you_mean, require_known
from sa_plugin.data.columns import is_missing, name_of, require_names, shown, text_of

Tags: TypeAlias = str | Mapping[str, str | None]

TAG_SCHEMES: dict[str, frozenset[str]] = {
    "IO": frozenset("I"),
    "IOB1": frozenset("BI"),
    "IOB2": frozenset("BI"),
    "BIO": frozenset("BI"),
    "IOE1": frozenset("IE"),
    "IOE2": frozenset("IE"),
    "BIOES": frozenset("BIES"),
    "IOBES": frozenset("BIES"),
    "BILOU": frozenset("BILU"),
    "BMES": frozenset("BMES"),
    "BMEWO": frozenset("BMEW"),
}
OUTSIDE = ("O", "o", "_", "-", "")
_SUFFIX = " suffix"
_MARKS = "-_:/.|"
# BIOES and BILOU say the same in other letters: a column that joins two corpora may hold both.
_TOGETHER = (frozenset("BIESLU"), frozenset("BMES"), frozenset("BMEW"))
_ENOUGH_LAST = (frozenset("BI"), frozenset("BME"))
# A tag with another one behind it, of words in names in names: "B-PER|I-ORG".
_SEVERAL = re.compile(r"^[BIESLUMW][-_:].+[^\w\s-][BIESLUMW][-_:]\w", re.IGNORECASE)
_Parsed = dict[str, tuple[str, str]]


def tag_concepts(found: Iterable[str], tags: Tags = "auto") -> dict[str, str | None]:
    """What each tag of a column means.

    Args:
        found: Every tag of the column, repeats allowed.
        tags: "auto" tells the scheme from the column; "names" takes tags as names of concepts; a scheme
            of `TAG_SCHEMES`, with " suffix" after it where letters stand last; or a mapping of each tag
            to its concept, or to None.

    Returns:
        Each tag's concept, None where it has none.

    Raises:
        ValueError: The column leaves the scheme open, or a tag is not of it; the text says the fix.

    Example:
        >>> tag_concepts(["B-PER", "E-PER", "O"])["E-PER"]
        'PER'
    """
    distinct = list(dict.fromkeys(found))
    if isinstance(tags, Mapping):
        return {tag: _said(tag, tags) for tag in distinct}
    if tags not in ("auto", "names"):
        require_known("tags", tags.removesuffix(_SUFFIX), ["auto", "names", *TAG_SCHEMES])
    inside = [tag for tag in distinct if tag not in OUTSIDE]
    outside: dict[str, str | None] = {tag: None for tag in distinct if tag in OUTSIDE}
    several = next((tag for tag in inside if tags != "names" and _SEVERAL.search(tag)), None)
    if several is not None:
        raise ValueError(
            f"tag {several!r} is several tags in one: give the concepts of each word as a list, without "
            "tags, or tags={tag: concept}."
        )
    if tags == "names":
        return outside | {tag: tag for tag in inside}
    if tags == "auto":
        told = _told(inside, any(tag in ("O", "o") for tag in outside))
        require_names(sorted({name for name in told.values() if name}), "tags='names', or {tag: concept},")
        return outside | told
    return outside | _of_scheme(inside, tags)


def tags_of(where: str, value: Any) -> Tags:
    """A reader of `tags`: a scheme, or a mapping of each tag to its concept or None."""
    if isinstance(value, str):
        return text_of(where, value)
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{where} is {shown(value)}, not a scheme: give 'auto', one such as 'IOB2', or a mapping."
        )
    return {
        text_of(f"a tag of {where}", tag): None
        if is_missing(one) or one == ""
        else name_of(f"{where}[{tag!r}]", one)
        for tag, one in value.items()
    }


def looks_tagged(found: Iterable[str]) -> str | None:
    """A tag among what should be names of concepts: an "O", or letters of a scheme before types."""
    distinct = list(dict.fromkeys(found))
    nothing = [tag for tag in distinct if tag in OUTSIDE and tag]
    if nothing:
        return nothing[0]
    pairs = [pair for last in (False, True) for mark in _MARKS for pair in [_parse(distinct, mark, last)]]
    for parsed in pairs:
        of_type: dict[str, set[str]] = {}
        for letter, kind in parsed.values():
            of_type.setdefault(kind, set()).add(letter)
        for tag, (_, kind) in parsed.items():
            if {"B", "I"} <= of_type[kind]:
                return tag
    return None


def _said(tag: str, tags: Mapping[str, str | None]) -> str | None:
    if tag in tags:
        return tags[tag] or None
    if tag in OUTSIDE:
        return None
    raise ValueError(f"tag {tag!r} is not in tags{did_you_mean(tag, tags) if tags else '.'}")


def _of_scheme(inside: Collection[str], tags: str) -> dict[str, str | None]:
    letters = TAG_SCHEMES[tags.removesuffix(_SUFFIX)]
    last = tags.endswith(_SUFFIX)
    readings = [_parse(inside, mark, last, letters) for mark in _MARKS]
    best = max(readings, key=len)
    for tag in inside:
        if tag not in best:
            where = "after" if last else "before"
            raise ValueError(
                f"tag {tag!r} is none of {tags}, which has one of {', '.join(sorted(letters))} {where} a "
                "type, or O: give its scheme, or tags={tag: concept} for every tag."
            )
    return {tag: kind for tag, (_, kind) in best.items()}


def _parse(
    inside: Iterable[str], mark: str, last: bool, letters: Collection[str] = frozenset("BIESLUMW")
) -> _Parsed:
    """Letter and type of the tags that are written so."""
    found = {}
    for tag in inside:
        kind, there, letter = tag.rpartition(mark) if last else tag.partition(mark)[::-1]
        if there and kind and len(letter) == 1 and letter.upper() in letters:
            found[tag] = letter.upper(), kind
    return found


def _told(inside: list[str], has_outside: bool) -> dict[str, str | None]:
    """The one way in which the whole column can be read.

    Raises:
        ValueError: There are two, or none is sure.
    """
    if not inside:
        return {}
    readings = [(last, _parse(inside, mark, last)) for last in (False, True) for mark in _MARKS]
    some = [(last, parsed) for last, parsed in readings if parsed]
    whole = [(last, parsed) for last, parsed in some if len(parsed) == len(inside)]
    if not some:
        _require_no_bare_letters(inside, has_outside)
        return {tag: tag for tag in inside}
    if len(whole) > 1:
        raise _open(inside[0], "its letter may stand first or last")
    if not whole:
        last, parsed = max(some, key=lambda one: len(one[1]))
        other = next(tag for tag in inside if tag not in parsed)
        raise _open(next(iter(parsed)), f"{other!r} is not written like it")
    ((last, parsed),) = whole
    letters = {letter for letter, _ in parsed.values()}
    kinds = [kind for _, kind in parsed.values()]
    if not any(letters <= together for together in _TOGETHER):
        raise _open(inside[0], f"no scheme has the letters {', '.join(sorted(letters))}")
    if last and not any(enough <= letters for enough in _ENOUGH_LAST):
        raise _open(inside[0], "too few letters stand last")
    if not letters & set("BI") or not (has_outside or len(set(kinds)) < len(kinds)):
        raise _open(inside[0], "no O and no other letter of a type stands beside it")
    return {tag: kind for tag, (_, kind) in parsed.items()}


def _require_no_bare_letters(inside: list[str], has_outside: bool) -> None:
    if any(tag.upper() in "BI" for tag in inside) and all(tag.upper() in "BIESLUMW" for tag in inside):
        raise ValueError(
            f"tag {inside[0]!r} is a letter of a tag scheme and says no concept: give "
            f"tags={{{', '.join(f'{tag!r}: concept' for tag in inside)}}}, or tags='names' where it is one."
        )
    # "BPER" and "IPER": letters without a mark between.
    glued = {tag[1:] for tag in inside if tag[0] in "Bb"} & {tag[1:] for tag in inside if tag[0] in "IiEe"}
    if has_outside and glued - {""}:
        tag = next(tag for tag in inside if tag[1:] in glued)
        raise _open(tag, "no mark stands between letter and type")


def _open(tag: str, why: str) -> ValueError:
    return ValueError(
        f"tag {tag!r} may be a concept's name or of a tag scheme, since {why}: say which with tags='names', "
        f"tags='IOB2' or another of {', '.join(TAG_SCHEMES)} ('IOB2{_SUFFIX}' where letters stand last), or "
        "tags={tag: concept}."
    )
