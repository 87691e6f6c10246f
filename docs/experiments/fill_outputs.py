"""Run a page's snippets on the real models and write what they print behind each: `out` comments.

`python docs/experiments/fill_outputs.py docs/tutorial.md` replaces every `<!-- out -->`, and what an earlier
run put behind it. Long outputs are cut, and show where.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

from sa_plugin._files import write_text

PART = re.compile(r"^```python\n(?P<code>.*?)^```\n\n<!-- out -->\n(?:\n```text\n.*?^```\n)?", re.S | re.M)
LINES, WIDTH = 24, 150


def shown(text: str) -> str:
    """At most LINES lines of at most WIDTH characters."""
    lines = [cut(line.rstrip()) for line in text.strip().splitlines()]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 4], f"... {len(lines) - LINES + 1} lines ...", *lines[-3:]]
    return "\n".join(lines)


def cut(line: str) -> str:
    """A line that says where it was cut."""
    return line if len(line) <= WIDTH else line[: WIDTH - 4].rstrip() + " ..."


def main(page: Path) -> None:
    """Fill one page."""
    names: dict[str, object] = {"__name__": "docs"}
    text = page.read_text()
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)

        def filled(match: re.Match[str]) -> str:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(match["code"], page.name, "exec"), names)
            head = f"```python\n{match['code']}```\n\n<!-- out -->\n"
            return f"{head}\n```text\n{shown(said.getvalue())}\n```\n"

        made = PART.sub(filled, text)
        os.chdir(here)
    write_text(page, made)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
