"""The one drawing stack: matplotlib, imported when a picture is asked for, and its palette."""

from __future__ import annotations

TAIL_COLOUR = "#ce5410"
IN_COLOUR = "#1a6fae"
OUT_COLOUR = "#a9a79f"
TEXT_COLOUR = "#1d1d1b"
OTHERS = (
    ("#0b7d5e", "--"),
    ("#a34a83", ":"),
    ("#9a6a00", "-."),
    ("#55606b", "-"),
    ("#77756e", ":"),
    ("#0b7d5e", "-."),
    ("#a34a83", "--"),
)
