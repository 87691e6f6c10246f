"""Figures that prose quotes, and the results they come from.

Under a paragraph or bullet of README, or of what opens a page of findings, stands a comment that nobody sees:

    F1 falls from .73 to .40; the mean of the top tenth is level (+.044 [-.020, +.108]), at power .8.
    <!-- quoted
    .73 = detection.json SmolLM2, plain / rows / SuperActivators / f1
    .40 = results.md SmolLM2, held-out lemmas / SuperActivators / F1
    +.044 [-.020, +.108] = detection.json SmolLM2, held-out lemmas / rows / Top10% / minus
    .8 = setting
    -->

Left stands what the text says, letter for letter; right a file of docs/findings/data with the way into
it, or a page of docs/findings with heading, row and column of a table that a command wrote. Several
numbers on the left are the first so many of what is found there (a list; estimate, low and high; the
numbers of a cell); one more step, a number, says from which on. What is set or chosen and not measured is a
"setting". A decimal figure without a line is a fault. `tests/docs/test_quoted.py` runs this.

    python docs/experiments/quoted.py            # says what does not agree
    python docs/experiments/quoted.py --write    # writes the figures as the results say them
"""

from __future__ import annotations

import functools
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa_plugin._files import write_text

ROOT = Path(__file__).parents[2]
FINDINGS = ROOT / "docs" / "findings"
PUBLISHED = ROOT / "sa_plugin" / "stages" / "published.json"
SETTING = "setting"
COMMENT = re.compile(r"\n[ ]*<!-- quoted\n(.*?)-->", re.S)
OPENING = re.compile(r"^- \*\*Question:.*?^- \*\*Command:.*?(?=\n\n|\Z)", re.S | re.M)
NUMBER = re.compile(
    r"(?<![\w.,])(?P<sign>[-+−±]?)(?P<digits>\d{1,3}(?:,\d{3})+|\d*\.?\d+)(?P<percent> ?%)?(?!\.?\d)"
)
DECIMAL = re.compile(r"(?<![\w.])[-+−±]?\d*\.\d+(?![\w]|\.\d)")
# What has a point and is no figure of prose: tables (a command writes them), code, links, comments, versions.
SKIPPED = re.compile(
    r"^[ ]*\|.*?$|```.*?^```|`[^`]*`|\]\([^)]*\)|<!--.*?-->"
    r"|(?:arXiv|Apache|Python|TransformerLens|nnsight)[- ]\d[\d.]*(?:(?:, | or | to )\d[\d.x]*)*",
    re.S | re.M,
)


@dataclass(frozen=True)
class Quote:
    """One line of a comment: words of the text, and where their numbers come from."""

    said: str
    source: str
    path: str

    @property
    def pattern(self) -> re.Pattern[str]:
        """The words in a text, over its line breaks."""
        words = r"\s+".join(map(re.escape, self.said.split()))
        return re.compile(rf"(?<![\w.]){words}(?!\w|\.\d)")

    @property
    def shown(self) -> list[re.Match[str]]:
        """The numbers in the words."""
        return list(NUMBER.finditer(self.said))

    def values(self) -> list[float]:
        """What the results say, as many numbers as the words hold."""
        found = of_page(self) if self.source.endswith(".md") else of_data(self)
        if not self.shown or len(found) < len(self.shown):
            given = f"{self.source} {self.path} gives {len(found)}"
            raise ValueError(f"'{self.said}' holds {len(self.shown)} numbers, {given}: name as many.")
        return found[: len(self.shown)]

    def right(self) -> str:
        """The words with the results' numbers: the same words where they agree to their last decimal."""
        if self.source == SETTING:
            return self.said
        values = iter(self.values())
        return NUMBER.sub(lambda shown: written(next(values), shown), self.said)


def number(shown: re.Match[str]) -> float:
    """A number of a text."""
    value = float(shown["digits"].replace(",", "")) * (-1 if shown["sign"] in ("-", "−") else 1)
    return value / 100 if shown["percent"] else value


def written(value: float, like: re.Match[str]) -> str:
    """A number in the style of another: its decimals, and its sign and leading zero if it has them."""
    digits, sign = like["digits"], like["sign"]
    decimals, by = len(digits.partition(".")[2]), 100 if like["percent"] else 1
    if abs(number(like) - value) * by <= 0.5 * 10**-decimals + 1e-9:
        return like[0]
    text = f"{abs(value * by):{',' if ',' in digits else ''}.{decimals}f}"
    minus = "−" if sign == "−" else "-"
    sign = minus if value < 0 else "+" if sign else ""
    return f"{sign}{text.removeprefix('0') if digits.startswith('.') else text}{like['percent'] or ''}"


def of_data(quote: Quote) -> list[float]:
    """Numbers of a results file: of a list, of estimate, low and high, or one."""
    known = PUBLISHED if quote.source == PUBLISHED.name else FINDINGS / "data" / quote.source
    found: Any = parsed(known.read_text(encoding="utf-8"))
    for step in quote.path.split(" / "):
        if isinstance(found, list) and step.isdigit():
            numbers = all(isinstance(one, int | float) for one in found)
            found = found[int(step) :] if numbers else found[int(step)]
        elif isinstance(found, dict) and step in found:
            found = found[step]
        else:
            there = ", ".join(found) if isinstance(found, dict) else repr(found)
            raise ValueError(f"{quote.source} has no '{step}' of '{quote.path}', but {there:.300}.")
    if isinstance(found, dict) and "estimate" in found:
        found = [found["estimate"], found["low"], found["high"]]
    # What has no interval is kept as a number and two nulls.
    many = [one for one in found if one is not None] if isinstance(found, list) else [found]
    if not all(isinstance(one, int | float) for one in many):
        raise ValueError(f"{quote.source} {quote.path} is {found!r:.80}: name a number, or a list of them.")
    return [float(one) for one in many]


@functools.cache
def parsed(text: str) -> Any:
    """A results file."""
    return json.loads(text)


def of_page(quote: Quote) -> list[float]:
    """Numbers of a cell of a page's table: heading, row (its first cell; or two, "A | B") and column."""
    heading, row, column, *start = quote.path.split(" / ")
    cells = [
        line[header.index(column)]
        for title, header, lines in tables((FINDINGS / quote.source).read_text(encoding="utf-8"))
        if title == heading and column in header
        for line in lines
        if " | ".join(line[: row.count(" | ") + 1]) == row
    ]
    if len(cells) != 1:
        there = f"{quote.source} has {len(cells)} cells '{quote.path}'"
        raise ValueError(f"{there}, not one: write heading / row / column.")
    return [number(shown) for shown in NUMBER.finditer(cells[0])][int(start[0]) if start else 0 :]


@functools.cache
def tables(text: str) -> list[tuple[str, list[str], list[list[str]]]]:
    """Every table of a page, without stress and links: the heading above it, its header, its rows."""
    title, rows, found = "", list[list[str]](), []
    for line in [*text.splitlines(), ""]:
        bare = line.strip()
        if bare.startswith("|"):
            bare = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", bare).replace("**", "")
            rows.append([cell.strip() for cell in bare.strip("|").split("|")])
            continue
        if len(rows) > 2:
            found.append((title, rows[0], rows[2:]))
        rows = []
        if bare.startswith("#"):
            title = bare.lstrip("#").strip()
    return found


def quotes(block: str) -> list[Quote]:
    """The lines of the comments of a paragraph."""
    found = []
    for line in "\n".join(COMMENT.findall(block)).splitlines():
        if not line.strip():
            continue
        said, _, rest = line.strip().partition(" = ")
        source, _, path = rest.partition(" ")
        if source != SETTING and not path:
            raise ValueError(f"'{line}' is no quote: write FIGURE = FILE step / step, or FIGURE = setting.")
        found.append(Quote(said, source, path))
    return found


def blocks(text: str) -> list[str]:
    """Paragraphs and bullets, each with the comment under it."""
    return re.split(r"\n[ ]*\n|\n(?=[ ]*(?:[-*]|\d+\.) )", text)


def places() -> dict[Path, str]:
    """README, and what opens each page of findings: from its question to its command."""
    found = {ROOT / "README.md": (ROOT / "README.md").read_text(encoding="utf-8")}
    for page in sorted(FINDINGS.glob("*.md")):
        opening = OPENING.search(page.read_text(encoding="utf-8"))
        found |= {page: opening.group()} if opening else {}
    return found


def wrong(text: str) -> list[str]:
    """Figures of a text that are not what their results say."""
    found = []
    for block in blocks(text):
        words = one_line(COMMENT.sub("", block))
        for quote in quotes(block):
            if not quote.pattern.search(words):
                found.append(f"no '{quote.said}' in the text above its comment: {words:.90}")
            elif (right := quote.right()) != quote.said:
                found.append(f"the text says {quote.said}, {quote.source} {quote.path} says {right}")
    return found


def unnamed(text: str) -> list[str]:
    """Decimal figures of a text that name no result."""
    found = []
    for block in blocks(text):
        rest = one_line(SKIPPED.sub(" ", block))
        for quote in sorted(quotes(block), key=lambda quote: -len(quote.said)):
            rest = quote.pattern.sub(" ", rest)
        found += [f"{figure} names no result: {one_line(block):.90}" for figure in DECIMAL.findall(rest)]
    return found


def rewritten(text: str) -> str:
    """The text with every figure as its results say it, in comments too."""
    for block in blocks(text):
        changed = block
        for quote in quotes(block):
            if (right := quote.right()) != quote.said:
                changed = quote.pattern.sub(right.replace("\\", r"\\"), changed)
        text = text.replace(block, changed)
    return text


def one_line(text: str) -> str:
    """A text without its line breaks."""
    return " ".join(text.split())


def main() -> int:
    """Say what does not agree, or write it anew."""
    bad = 0
    for page, text in places().items():
        if "--write" in sys.argv:
            whole = page.read_text(encoding="utf-8")
            write_text(page, whole.replace(text, rewritten(text)))
            text = rewritten(text)
        for fault in [*wrong(text), *unnamed(text)]:
            print(f"{page.relative_to(ROOT)}: {fault}")
            bad += 1
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
