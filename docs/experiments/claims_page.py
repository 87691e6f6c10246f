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
    if word == "each":
        like, _, path = rest.partition(" = ")
        quotes = {
            cell: Quote(like, DATA.name, f"{cell} / {path}")
            for cell in cells
            if path.partition(" / ")[0] in cells[cell]
        }
        return "; ".join(f"{CELLS[cell]} {quote.right()}" for cell, quote in quotes.items())
    said, _, rest = pattern.partition(" = ")
    source, _, path = rest.partition(" ")
    return Quote(said, source, path).right()


def table() -> str:
    """The page's table."""
    rows = tomllib.loads(ROWS.read_text(encoding="utf-8"))["claims"]
    return markdown(list(HEADER.values()), [[filled(row[key]) for key in HEADER] for row in rows])


if __name__ == "__main__":
    put(PAGE, BEGIN, END, table())
