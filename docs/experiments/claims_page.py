"""The paper's claims, a row each, into docs/findings/claims.md: claimed, measured, detectable, verdict.

The rows stand in `claims.toml`, every number as a pattern with its place in the results, in the words of
`quoted.py`; the page shows what the results say.

    python docs/experiments/claims_page.py            # writes the table
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from between_markers import put
from quoted import Quote
from reproduction_page import DATA, claimed

from sa_plugin.stages import markdown

ROWS = Path(__file__).with_name("claims.toml")
PAGE = Path(__file__).parents[1] / "findings" / "claims.md"
BEGIN = "<!-- claims: written by docs/experiments/claims_page.py -->"
END = "<!-- end of claims -->"
HEADER = {
    "claim": "claim",
    "verdict": "verdict",
    "here": "here",
    "seen": "could have seen",
    "paper": "the paper",
    "command": "command",
}
CELLS = {
    "minilm_supersense": "MiniLM",
    "minilm_brown": "MiniLM, Brown",
    "smollm2_supersense": "SmolLM2",
    "smollm2_brown": "SmolLM2, Brown",
    "vit_shapes": "ViT, shapes",
    "vit_emoji": "ViT, emoji",
}


def filled(text: str) -> str:
    """A text with its patterns as the results say them."""
    return " ".join(re.sub(r"\{([^{}]*)\}", lambda match: _said(" ".join(match[1].split())), text).split())


def _said(pattern: str) -> str:
    word, _, rest = pattern.partition(" ")
    cells = json.loads(DATA.read_text(encoding="utf-8"))
    if word == "paper":
        return claimed()[rest]
    if word == "verdicts":
        counts = Counter(cell["claims"][rest]["verdict"] for cell in cells.values() if rest in cell["claims"])
        return (
            f"{', '.join(f'{verdict} {n}' for verdict, n in counts.most_common())} of {counts.total()} cells"
        )
    if word == "words":
        told = {cell: _at(own, rest) for cell, own in cells.items()}
        return "; ".join(f"{CELLS[cell]} {one}" for cell, one in told.items() if one is not None)
    if word == "each":
        like, _, path = rest.partition(" = ")
        # What a cell did not ask, or found, has no such number.
        named = [cell for cell, own in cells.items() if _at(own, path) is not None]
        quotes = {cell: Quote(like, DATA.name, f"{cell} / {path}") for cell in named}
        return "; ".join(f"{CELLS[cell]} {quote.right()}" for cell, quote in quotes.items())
    said, _, rest = pattern.partition(" = ")
    source, _, path = rest.partition(" ")
    return Quote(said, source, path).right()


def _at(found: Any, path: str) -> Any:
    """What stands at a path, or None."""
    for step in path.split(" / "):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def table() -> str:
    """The page's table."""
    rows = tomllib.loads(ROWS.read_text(encoding="utf-8"))["claims"]
    return markdown(list(HEADER.values()), [[filled(row[key]) for key in HEADER] for row in rows])


if __name__ == "__main__":
    put(PAGE, BEGIN, END, table())
