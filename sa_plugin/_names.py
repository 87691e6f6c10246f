"""Errors for a name that is not known and an argument of another type, said the same way always."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

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
    hint = did_you_mean(name, names)
    shown = f" Known: {', '.join(names)}." if len(names) <= SHOWN else f" {len(names)} are known."
    raise ValueError(f"{what} {name!r} is unknown{hint}{shown}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """How an error about an unknown name goes on: with the nearest known one, where there is any.

    Example:
        >>> did_you_mean("protoype", ["prototype", "lda"])
        ": did you mean 'prototype'?"
    """
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.0)
    return f": did you mean {near[0]!r}?" if near else "."


def require_type(
    name: str, value: object, expected: Any, fix: str, *, optional: bool = False
) -> None:
    """Refuse an argument of another type.

    Args:
        name: Of the argument.
        value: What was given.
        expected: A class or several.
        fix: What to do instead.
        optional: Whether None passes.

    Raises:
        TypeError: Names the argument, both types and the fix.
    """
    if value is None and optional:
        return
    kinds = expected if isinstance(expected, tuple) else (expected,)
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name} is a {type(value).__name__}, not a {names}: {fix}.")
