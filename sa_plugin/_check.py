"""What is asked first everywhere: is the name known, the type right, the package there, the folder found.

Each refusal is worded here once, so that it says the same everywhere: the value, what was expected
and the fix. An optional package is imported through `require` alone, which names the extra.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

_SHOWN = 12
_LIKE = 0.5
"""How alike the letters of a name that is meant are to the one given: below, it is another word."""


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
    shown = f" Known: {', '.join(names[:_SHOWN])}."
    if len(names) > _SHOWN:
        shown = f" {len(names)} are known." if hint != "." else f"{shown[:-1]}, ... {len(names)} in all."
    raise ValueError(f"{what} {name!r} is unknown{hint}{shown}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """How an error about an unknown name goes on: with the nearest known one, where there is any.

    Example:
        >>> did_you_mean("protoype", ["prototype", "lda"])
        ": did you mean 'prototype'?"
    """
    near = nearest(str(name), list(known))
    return f": did you mean {near!r}?" if near else "."


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that is meant: by its initials ("ig"), its beginning, or its letters.

    Example:
        >>> nearest("ig", ["rise", "integrated_gradients"])
        'integrated_gradients'
    """
    asked = name.lower().replace("-", "_").replace(" ", "_")
    for part in (_initials, lambda one: one.lower()[: len(asked)]):
        found = [one for one in known if asked and part(one) == asked]
        if len(found) == 1:
            return found[0]
    near = difflib.get_close_matches(name, known, n=1, cutoff=_LIKE)
    return near[0] if near else None


def _initials(name: str) -> str:
    return "".join(part[:1] for part in name.lower().split("_"))


def position_of(name: str, known: Sequence[str], where: str = "the concepts") -> int:
    """Position of a name.

    Raises:
        ValueError: Unknown; the text names the nearest.
    """
    if name in known:
        return list(known).index(name)
    raise ValueError(f"{name!r} is not among {where}{did_you_mean(name, known)}")


def require_place(what: str, place: int, n: int, of: str) -> None:
    """Refuse a place behind the last of several; negative ones count from the end.

    Args:
        what: The argument.
        place: As it was given.
        n: How many there are.
        of: What they are, in the plural.

    Raises:
        ValueError: There is none; the text says how many there are.

    Example:
        >>> require_place("token", -1, 3, "tokens")
    """
    if not -n <= place < n:
        raise ValueError(f"{what} is {place}, there are {n} {of}: give one from 0 to {n - 1}.")


def require_type(name: str, value: object, expected: Any, fix: str, *, optional: bool = False) -> None:
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
        raise TypeError(f"{name} is {with_article(type(value).__name__)}, not {with_article(names)}: {fix}.")


def require_made_by(name: str, value: object, library: str, fix: str) -> None:
    """Refuse what is no object of a library, which is not imported for it.

    Args:
        name: Of the argument.
        value: What was given.
        library: Its import name.
        fix: What to do instead.

    Raises:
        TypeError: Names the argument, its type and the fix.
    """
    if not any(cls.__module__.partition(".")[0] == library for cls in type(value).__mro__):
        raise TypeError(f"{name} is {with_article(type(value).__name__)}, nothing of {library}: {fix}.")


def with_article(noun: str) -> str:
    """A noun with its article.

    Example:
        >>> with_article("array")
        'an array'
    """
    return f"{'an' if noun[0] in 'aeiouAEIO' else 'a'} {noun}"


def require(module: str, extra: str, purpose: str | None = None) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Args:
        module: Import name, dots allowed (`"transformer_lens"`, `"matplotlib.pyplot"`).
        extra: The extra of `sa_plugin` that installs it.
        purpose: What it is needed for, as a noun phrase; by default the extra's name.

    Returns:
        The imported module.

    Raises:
        ImportError: The module is not installed. An installed module that fails on an import of
            its own raises that error unchanged: installing the extra would not help.

    Example:
        >>> require("json", "images").__name__
        'json'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        needed_for = purpose or f"the '{extra}' part of sa_plugin"
        raise ImportError(
            f"{module} is needed for {needed_for}: pip install 'sa_plugin[{extra}]'", name=error.name
        ) from error


def require_version(package: str, oldest: str, differs: str) -> None:
    """Refuse an installed package that is too old; what is not installed by its name passes.

    Args:
        package: Its name to pip.
        oldest: That will do, such as "4.3".
        differs: What an older one does otherwise, for the error.

    Raises:
        TypeError: It is older; the text says what to install.

    Example:
        >>> require_version("numpy", "1.0", "its arrays differ")
    """
    # Milliseconds that a command without a model does not need.
    from importlib import metadata

    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        return
    least = tuple(map(int, oldest.split(".")))
    if tuple(int(part) for part in installed.split(".")[: len(least)] if part.isdigit()) < least:
        raise TypeError(f"{package} {installed} is too old, {differs}: install {package}>={oldest}.")


def cache_folder(chosen: str | Path | None = None) -> Path:
    """Where a bare name of a model or a corpus is looked up; nothing is written or downloaded there.

    Args:
        chosen: A folder; by default `$SA_PLUGIN_CACHE`, else `sa_plugin` in `$XDG_CACHE_HOME` or in
            `~/.cache`.
    """
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(chosen or os.environ.get("SA_PLUGIN_CACHE") or f"{shared}/sa_plugin").expanduser()


def users_line() -> int:
    """The `stacklevel` of a warning that is to name the user's line, however deep it is raised."""
    level, frame = 1, sys._getframe(1)
    # Shape checks, where they are switched on, wrap this function and those that warn.
    while frame.f_back is not None and _is_from(frame, _WRAPPERS):
        frame = frame.f_back
    while frame.f_back is not None and _is_from(frame, (*OURS, *_WRAPPERS)):
        level, frame = level + 1, frame.f_back
    return level


OURS = ("sa_plugin", "sa_transformer_lens", "sa_nnsight", "sa_interp_engine")
"""Packages of this project."""
_WRAPPERS = ("jaxtyping", "beartype")


def _is_from(frame: FrameType, packages: Sequence[str]) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in packages


def require_shard(shard: tuple[int, int]) -> None:
    """Refuse a shard i of n that does not exist.

    Raises:
        ValueError: The text shows it.
    """
    i, n = shard
    if not 0 <= i < n:
        raise ValueError(f"shard {i} of {n} does not exist: give shard=(i, n), i from 0 to n - 1.")
