"""What is public, found in the packages: no list of names, so that a new one is met.

Functions and classes of the faces of `sa_plugin`, its rooms and the adapters, of the adapters' modules that
the reference shows, and the classes' public methods.
"""

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from docs_setup import pages

from sa_plugin.show import Shown

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))
import site_reference  # noqa: E402

PACKAGES = ("sa_plugin", *site_reference.rooms())
BASE = {name for name in vars(Shown) if not name.startswith("_")}


@functools.cache
def public() -> dict[str, Any]:
    """Functions and classes by name, "room.name"; names of two packages are met once."""
    found: dict[int, tuple[str, Any]] = {}
    # The root last: what it has is a room's.
    for package in (*PACKAGES[1:], PACKAGES[0]):
        module = importlib.import_module(package)
        for name in module.__all__:
            found.setdefault(id(getattr(module, name)), (f"{_short(package)}.{name}", getattr(module, name)))
    for package, names in site_reference.ADAPTERS.items():
        for name in names:
            module = importlib.import_module(f"{package}.{name}")
            for one, made in vars(module).items():
                if getattr(made, "__module__", "") == module.__name__ and not one.startswith("_"):
                    found.setdefault(id(inspect.unwrap(made)), (f"{_short(module.__name__)}.{one}", made))
    handed_out = {id(inspect.unwrap(made)) for _, made in found.values() if hasattr(made, "__faced__")}
    return {
        name: made
        for key, (name, made) in found.items()
        if (inspect.isfunction(made) and (key not in handed_out or hasattr(made, "__faced__")))
        or (inspect.isclass(made) and not _is_named_only(made))
    }


def calls_of(made: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What of a function or class can be called with arguments: "" is itself, then its methods."""
    if not inspect.isclass(made):
        if inspect.signature(made).parameters:
            yield "", made
        return
    if inspect.isfunction(constructor(made)):
        yield "", constructor(made)
    for name in dir(made):
        static = inspect.getattr_static(made, name)
        method = static.__func__ if isinstance(static, classmethod | staticmethod) else static
        ours = inspect.isfunction(method) and method.__module__.startswith("sa_")
        least = 0 if isinstance(static, staticmethod) else 1
        if ours and not name.startswith("_") and len(inspect.signature(method).parameters) > least:
            yield name, method


def constructor(made: type) -> Callable[..., Any]:
    """What is called when one is made."""
    return made.__new__ if issubclass(made, tuple) else made.__init__  # type: ignore[misc]


def for_people(name: str, made: Any) -> bool:
    """Whether people call it by that name: of `sa_plugin`, a page or notebook, an adapter, or all results."""
    short = name.rpartition(".")[2]
    adapter = name.startswith(("sa_nnsight", "sa_transformer_lens", "sa_interp_engine"))
    shown = inspect.isclass(made) and issubclass(made, Shown)
    return adapter or shown or name.startswith("data.") or short in _in_pages()


@functools.cache
def _in_pages() -> set[str]:
    """Names that pages and notebooks import, and those of `sa_plugin` itself."""
    notebooks = (ROOT / "docs/notebooks").glob("*.ipynb")
    text = "\n".join(page.read_text() for page in (*pages(), *notebooks))
    imported = re.findall(r"from sa_plugin[.\w]* import ([\w, ]+)", text)
    return {*importlib.import_module("sa_plugin").__all__, *re.findall(r"\w+", " ".join(imported))}


def _is_named_only(made: type) -> bool:
    """What is raised, said or described, and what torch calls."""
    foreign = any(base.__module__.startswith(("torch", "transformer_lens")) for base in made.__mro__)
    return foreign or issubclass(made, Exception) or getattr(made, "_is_protocol", False)


def _short(package: str) -> str:
    return package.removeprefix("sa_plugin.")
