"""The one error for a name that is not known: what was given, what is nearest, what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN = 12


def require_known(what: str, name: str, known: Iterable[str]) -> None:
    """Refuse an unknown name.

    Args:
        what: What the name names, e.g. "kind".
        name: As the user gave it.
        known: All that would do.

    Raises:
        ValueError: Unknown; the text names the nearest and, where they are few, all of them.

    Example:
        >>> require_known("kind", "prototype", ["prototype", "lda"])
    """
    names = list(known)
    if name in names:
        return
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)
    hint = f": did you mean {near[0]!r}?" if near else "."
    shown = f" Known: {', '.join(names)}." if len(names) <= SHOWN else f" {len(names)} are known."
    raise ValueError(f"{what} {name!r} is unknown{hint}{shown}")
