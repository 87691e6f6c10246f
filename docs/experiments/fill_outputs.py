"""Run a page's snippets on the real models and put behind each what a notebook would show.

    python docs/experiments/fill_outputs.py docs/tutorial.md

runs every python block of the page, in order, and fills what stands between `<!-- out -->` and `<!-- end of
out -->` behind a block (the second mark is written where it is not there yet). As in a notebook, the value of
a block's last line is shown:

    a figure             a picture, docs/pictures/PAGE_NUMBER.png
    a result             its sheets as Markdown tables; all but the first are folded away
    what was printed     text

Tables of more than ROWS rows, and text of more than LINES lines, are cut, and say so.
"""

import ast
import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from sa_plugin._files import write_text
from sa_plugin.show import Sheet, Shown

BEGIN, END = "<!-- out -->", "<!-- end of out -->"
PART = re.compile(
    r"^```python\n(?P<code>(?:(?!```).*\n)*)```\n(?P<out>\n"
    + BEGIN
    + r"\n(?:(?s:(?:(?!^```python).)*?)"
    + END
    + r"\n)?)?",
    re.M,
)
ROWS, LINES, WIDTH = 20, 12, 110
PICTURES = Path(__file__).resolve().parents[1] / "pictures"


def run(code: str, page: Path, names: dict[str, Any]) -> tuple[str, Any]:
    """What a block prints, and the value of its last line."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(tree, page.name, "exec"), names)
        value = None
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), page.name, "eval"), names)
    return said.getvalue(), value


def shown(printed: str, value: Any, picture: Path, page: Path, code: str) -> str:
    """The Markdown of one output; the line of code that drew a figure stands for it where it is not seen."""
    parts = [f"```text\n{cut(printed)}\n```"] if printed.strip() else []
    if hasattr(value, "savefig"):
        value.savefig(picture, dpi=110, bbox_inches="tight", facecolor="white")
        told = os.path.relpath(picture, page.parent)
        parts.append(f"![{marked(code.strip().splitlines()[-1])}]({told})")
    elif isinstance(value, Shown):
        parts += result(value)
    elif value is not None:
        parts.append(f"```text\n{cut(repr(value))}\n```")
    return "\n\n".join(parts)


def result(value: Shown) -> list[str]:
    """A result: its headline, its sheets, and its cautions."""
    first, *others = value.sheets()
    parts = [f"**{marked(repr(value))}**", *sheet_parts(first)]
    if others:
        folded = [one for sheet in others for one in sheet_parts(sheet)]
        parts += ["<details><summary>More of it</summary>", *folded, "</details>"]
    return [*parts, *(f"*{marked(one)}*" for one in value.cautions() if one)]


def sheet_parts(sheet: Sheet) -> list[str]:
    """A sheet's title, table and notes."""
    parts = [marked(sheet.title)] if sheet.title else []
    if sheet.header:
        rows = [list(row) for row in sheet.rows]
        if len(rows) > ROWS:
            left = [f"{len(rows) - ROWS + 1} more rows", *[""] * (len(sheet.header) - 1)]
            rows = [*rows[: ROWS - 4], left, *rows[-3:]]
        numbers = [
            k > 0 and any(re.match(r"[\[(]?[+-]?\.?\d", row[k].strip()) for row in rows)
            for k in range(len(sheet.header))
        ]
        lines = [sheet.header, ["--:" if one else ":--" for one in numbers], *rows]
        parts.append("\n".join("| " + " | ".join(marked(cell) for cell in line) + " |" for line in lines))
    return [*parts, *(f"*{marked(note)}*" for note in sheet.notes if note)]


def marked(words: str) -> str:
    """Text that Markdown leaves as it is."""
    if set(words) <= set(":-"):
        return words
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", words.strip())


def cut(text: str) -> str:
    """At most LINES lines of at most WIDTH characters."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    lines = [line if len(line) <= WIDTH else line[: WIDTH - 4].rstrip() + " ..." for line in lines]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 4], f"... {len(lines) - LINES + 1} lines ...", *lines[-3:]]
    return "\n".join(lines)


def main(page: Path) -> None:
    """Fill one page."""
    names: dict[str, Any] = {"__name__": "docs"}
    text, count = page.read_text(), 0
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)

        def filled(match: re.Match[str]) -> str:
            nonlocal count
            count += 1
            printed, value = run(match["code"], page, names)
            block = f"```python\n{match['code']}```\n"
            if not match["out"]:
                return block
            picture = PICTURES / f"{page.stem}_{count}.png"
            return f"{block}\n{BEGIN}\n\n{shown(printed, value, picture, page, match['code'])}\n\n{END}\n"

        made = PART.sub(filled, text)
        os.chdir(here)
    write_text(page, made)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
