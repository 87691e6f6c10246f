"""How a result shows itself: one base for all of them.

A result is a frozen dataclass of `Drawn` numbers and settings. A subclass says its headline, the
sheets that people read (their cells as text) and its picture; the base makes of these

    print(result)        the sheets as aligned text
    result in a notebook the same sheets as HTML tables
    result.table()       every number in long form: labels, measure, value, low, high, note
    result.to_dict()     every number and setting, ready for JSON
    result.plot()        a matplotlib figure made for the result's question
    result.save(path)    the dictionary as a file, with the user's texts or without

and `about` says under every sheet what the numbers do not show. Where an artefact was loaded with
`allow_drift=True`, all that is made from it says so, printed, in HTML and in the dictionary.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import re
import textwrap
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sa_plugin._face import Carries, face_methods
from sa_plugin.show.html import Markup, el
from sa_plugin.statistics.drawn import Drawn, few_words
from sa_plugin.statistics.interval import FEW

FORMAT = 1
"""Of the dictionaries that results become."""
WIDTH = 110
"""Of sentences."""
WIDEST = 120
"""Of tables."""
_LEAST_WORDS = 24
"""Of a column of words on a narrow page."""


@dataclass(frozen=True)
class Sheet:
    """One table as people read it: every cell is text already.

    What is to say of every interval of a column, such as "few documents", stands in its header.

    Attributes:
        header: Of the columns.
        rows: As many cells each; the first column is set to the left, as are columns of words, numbers to
            the right.
        title: A sentence above.
        notes: Sentences below.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        header, rows = list(self.header), [list(row) for row in self.rows]
        for k in range(len(header)):
            column = [row[k] for row in rows]
            said = [cell.endswith(FEW) for cell in column]
            if any(said) and not any(cell.endswith("]") for cell in column):
                header[k] = f"{header[k]}, {FEW}"
                for row in rows:
                    row[k] = row[k].removesuffix(FEW).rstrip()
        object.__setattr__(self, "header", header)
        object.__setattr__(self, "rows", rows)

    def text(self) -> str:
        """Aligned text."""
        body = [aligned(self.header, self.rows)] if self.header else []
        return "\n".join([*_wrapped([self.title]), *body, *_wrapped(self.notes)])

    def html(self) -> Markup:
        """A table that needs no style sheet: it takes the page's colours, light or dark."""
        parts = [el("p", self.title, style="margin:.4em 0") if self.title else None]
        if self.header:
            parts.append(_html_table(self.header, self.rows))
        parts += [el("p", note, style="margin:.3em 0;opacity:.8") for note in self.notes if note]
        return el("div", *parts)


def _saying(name: str, made: Any) -> Any:
    """A way of showing that also says what an artefact drifted by."""

    @functools.wraps(made)
    def said(self: Shown) -> Any:
        found = made(self)
        if not self.drift:
            return found
        if isinstance(found, dict):
            return {**found, "drift": self.drift}
        words = f"Loaded with allow_drift: {self.drift}."
        line = str(el("p", words)) if name == "_repr_html_" else "\n".join(_wrapped([words]))
        # A subclass's way may go through its base's.
        return found if line in found else f"{found}\n{line}"

    return said


@face_methods
class Shown(Carries):
    """Base of all that shows itself, results and what they are made from alike: data, banks, scores.

    Attributes:
        about: What the numbers do not show, in sentences.
        text_keys: Names in the dictionary under which texts of the user's, or parts of them, stand.
    """

    about: ClassVar[str] = ""
    text_keys: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        face_methods(cls)
        for name in ("to_dict", "summary", "_repr_html_"):
            setattr(cls, name, _saying(name, getattr(cls, name)))

    @abstractmethod
    def headline(self) -> str:
        """What this is and its main number, in one line."""

    @abstractmethod
    def sheets(self) -> Sequence[Sheet]:
        """The tables that people read."""

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """The rows of `table`."""

    @abstractmethod
    def plot(self) -> Any:
        """The picture of this, as a matplotlib figure."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The facts that are shown, JSON-ready; what is not defined is None."""

    def save(self, path: str | Path, *, texts: bool = True) -> Path:
        """Write the dictionary as a JSON file.

        Args:
            path: Where to.
            texts: Whether with texts; without them samples are their ids, and tokens their places.

        Raises:
            OSError: It cannot be written; the text names the path.
        """
        from sa_plugin._files import write_text

        content = self.to_dict() if texts else without_keys(self.to_dict(), self.text_keys)
        return write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def table(self) -> Any:
        """Every number in long form, as a DataFrame: labels, measure, value, low, high, note.

        `note` says that few documents carry a number, or why it has no interval.
        """
        return long_frame(self.rows())

    def cautions(self) -> Sequence[str]:
        """Sentences under all sheets: what the numbers do not show."""
        return [self.about]

    def summary(self) -> str:
        """The sheets as text, and what they do not show."""
        return "\n".join([*(sheet.text() for sheet in self.sheets()), *_wrapped(self.cautions())])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.headline()})"

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        notes = [el("p", one, style="margin:.3em 0;opacity:.8") for one in self.cautions() if one]
        return str(el("div", el("strong", repr(self)), *(sheet.html() for sheet in self.sheets()), *notes))


class Result(Shown):
    """Base of every result: a frozen dataclass of `Drawn` numbers and settings, see the module's text."""

    def numbers(self) -> Mapping[str, Drawn]:
        """Every `Drawn` by name: those of the fields, and of mappings in fields."""
        found: dict[str, Drawn] = {}
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if isinstance(value, Drawn):
                found[one.name] = value
            elif isinstance(value, Mapping):
                found |= {str(name): drawn for name, drawn in value.items() if isinstance(drawn, Drawn)}
        return found

    def cautions(self) -> Sequence[str]:
        """How many of the numbers few documents carry, and what all of them do not show."""
        return [few_words(numbers_in(self)), self.about]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `table`."""
        return [row for name, drawn in self.numbers().items() for row in drawn.rows(name)]

    def to_dict(self) -> dict[str, Any]:
        """Every number and setting, JSON-ready; what is not defined is None."""
        content = {one.name: clean(getattr(self, one.name)) for one in fields(self)}  # type: ignore[arg-type]
        return {"format": FORMAT, "kind": type(self).__name__, **content}


def numbers_in(value: Any) -> list[Drawn]:
    """Every `Drawn` in a value made of results, dataclasses, mappings and sequences, at any depth."""
    if isinstance(value, Drawn):
        return [value]
    if isinstance(value, Mapping):
        return [drawn for one in value.values() for drawn in numbers_in(one)]
    if isinstance(value, list | tuple):
        # Samples and trials are many and alike: without a number in the first there is none.
        return (
            [drawn for one in value for drawn in numbers_in(one)] if any(map(numbers_in, value[:1])) else []
        )
    if is_dataclass(value) and (isinstance(value, Result) or not isinstance(value, Shown | type)):
        return numbers_in({one.name: getattr(value, one.name) for one in fields(value)})
    return []


def without_keys(value: Any, names: Sequence[str]) -> Any:
    """A JSON value without what stands under some names, at any depth.

    Example:
        >>> without_keys({"marks": [{"text": "whale", "start": 4}]}, ("text",))
        {'marks': [{'start': 4}]}
    """
    if isinstance(value, Mapping):
        return {name: without_keys(one, names) for name, one in value.items() if name not in names}
    if isinstance(value, list):
        return [without_keys(one, names) for one in value]
    return value


def long_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows in long form as a DataFrame: labels first, then measure, value, low, high, note."""
    pandas = importlib.import_module("pandas")
    last = ["measure", "value", "low", "high", "note"]
    labels = [name for name in dict.fromkeys(key for row in rows for key in row) if name not in last]
    frame = pandas.DataFrame([dict(row) for row in rows], columns=[*labels, *last])
    for name in labels:
        found = [row.get(name) for row in rows]
        # A number for whole layers has none of its own: the others stay whole numbers.
        if None in found and all(one is None or type(one) is int for one in found):
            frame[name] = frame[name].astype("Int64")
    return frame


def exact(measure: str, value: float | int | np.number, **labels: Any) -> dict[str, Any]:
    """A row in long form of a number that has no interval."""
    ends = {"low": math.nan, "high": math.nan, "note": ""}
    return {**labels, "measure": measure, "value": float(value), **ends}


def short(drawn: Drawn, digits: int = 3, *, sign: bool = False) -> str:
    """A number with its interval as text: "0.731 [0.680, 0.778]"."""
    return f"{(signed if sign else number)(drawn.estimate, digits)} {bounds_text(drawn, digits, sign=sign)}"


def bounds_text(drawn: Drawn, digits: int = 3, *, sign: bool = False) -> str:
    """An interval alone as text: "[0.680, 0.778]", and what is to say of it; or why there is none."""
    return ends_text(drawn.low, drawn.high, drawn.caution, digits, sign=sign)


def ends_text(low: float, high: float, note: str, digits: int = 3, *, sign: bool = False) -> str:
    """The same of its ends and its note."""
    if note and np.isnan(low) and np.isnan(high):
        return note
    show = signed if sign else number
    return f"[{show(low, digits)}, {show(high, digits)}] {note}".rstrip()


def star_marks(family: Drawn) -> Any:
    """One star where a cell's interval excludes zero, two where it does with all cells read as one family."""
    alone = np.where(family.excludes_zero, "*", "")
    return np.where(family.excludes_zero_in_family, "**", alone)


def star_words(n: int) -> str:
    """What the stars of a table of n differences mean."""
    return (
        "* the interval of the paired difference excludes zero, read alone; ** so it does with all "
        f"{noun_count(n, 'difference')} of the table read as one family (max-T)."
    )


def _wrapped(sentences: Iterable[str]) -> list[str]:
    return [textwrap.fill(one, WIDTH, break_on_hyphens=False) for one in sentences if one]


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    line = "border-bottom:1px solid rgba(128,128,128,.35)"

    right = _to_the_right(header, rows)

    def cell(tag: str, k: int, words: str) -> Markup:
        side = "right" if right[k] else "left"
        said = re.fullmatch(r"(.*\])( )([a-z ]+)", words)
        if said:
            # "few documents" goes below its interval where the page is narrow.
            keep = "white-space:nowrap"
            parts = (el("span", said[1], style=keep), said[2], el("span", said[3], style=keep))
            return el(tag, *parts, style=f"text-align:{side};padding:.15em .6em")
        space = "pre"
        if tag == "th" and right[k]:
            # A header is longer than its numbers: it wraps, so that more columns fit on a page.
            space = "normal"
        elif not right[k] and k:
            # Words wrap, but on a narrow page not into a column of single ones: there the table scrolls.
            space = f"pre-wrap;min-width:{min(len(words), _LEAST_WORDS)}ch"
        foot = ";vertical-align:bottom" if tag == "th" else ""
        return el(tag, words, style=f"text-align:{side};padding:.15em .6em;white-space:{space}{foot}")

    head = el("tr", *(cell("th", k, words) for k, words in enumerate(header)), style=line)
    body = [el("tr", *(cell("td", k, words) for k, words in enumerate(row))) for row in rows]
    # A notebook centres tables; the text around these stands to the left.
    look = "border-collapse:collapse;margin:0 0 .4em;color:inherit;background:none"
    look += ";font-variant-numeric:tabular-nums"
    return el("div", el("table", el("thead", head), el("tbody", *body), style=look), style="overflow-x:auto")


IF_ANY: Mapping[str, bool] = {"if_any": True}
"""Metadata of a dataclass field that a dictionary holds only where it is not empty."""


def clean(value: Any) -> Any:
    """Turn numpy, tuples, paths and dataclasses into plain JSON values, NaN and Inf into None.

    Args:
        value: Anything made of dicts, sequences, dataclasses, numbers, strings and numpy arrays.

    Returns:
        The same in dict, list, str, int, float, bool and None.

    Raises:
        TypeError: Something else is in it; the text names its type.

    Example:
        >>> clean({"f1": np.float32(0.5), "interval": (0.25, float("nan"))})
        {'f1': 0.5, 'interval': [0.25, None]}
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return clean(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Drawn | Result):
        return clean(value.to_dict())
    if is_dataclass(value) and not isinstance(value, type):
        # What most data have nothing of is said where there is some (`IF_ANY`).
        held = {f: getattr(value, f.name) for f in fields(value)}
        return {f.name: clean(one) for f, one in held.items() if not f.metadata.get("if_any") or one}
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [clean(item) for item in items]
    raise TypeError(
        f"a {type(value).__name__} cannot go into results.json: give numbers, strings, lists, "
        "dicts, numpy arrays or dataclasses (a tensor as tensor.numpy())."
    )


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text: the first column and words to the left, numbers to the right.

    A table that a terminal would break line by line is cut between columns; each piece repeats the first.
    """
    lines = [header, *rows]
    widths = [max(len(row[k]) for row in lines) for k in range(len(header))]
    pieces: list[list[int]] = [[0]]
    for k in range(1, len(header)):
        beside = pieces[-1]
        if len(beside) > 1 and sum(widths[j] + 2 for j in beside) + widths[k] > WIDEST:
            pieces.append([0])
        pieces[-1].append(k)
    right = _to_the_right(header, rows)
    return "\n\n".join(
        _piece([[row[k] for k in piece] for row in lines], [right[k] for k in piece]) for piece in pieces
    )


def _to_the_right(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns are of numbers: not the first, and some cell begins as a number or an interval does."""
    numbers = [any(re.match(r"[\[(]?[+-]?\.?\d", row[k].strip()) for row in rows) for k in range(len(header))]
    return [k > 0 and one for k, one in enumerate(numbers)]


def _piece(lines: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    found = []
    for row in lines:
        cells = zip(row, widths, right, strict=True)
        set_ = (cell.rjust(width) if number else cell.ljust(width) for cell, width, number in cells)
        found.append("  ".join(set_).rstrip())
    found.insert(1, "-" * max(map(len, found)))
    return "\n".join(found)


def noun_count(n: int, what: str) -> str:
    """A count with its noun: "1 sample", "2 samples"."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def number(value: float, digits: int = 3) -> str:
    """A number for people: "-" where it is not defined."""
    return "-" if not np.isfinite(value) else f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    """The same with its sign."""
    return "-" if not np.isfinite(value) else f"{value:+.{digits}f}"
