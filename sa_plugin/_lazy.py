"""Names of a package that are imported when they are first used.

Beside a table of them a face needs the same imports under TYPE_CHECKING, and `__getattr__` in its
`else`: a type checker that saw it would accept every misspelt name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from sys import modules


def lazily(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """A `__getattr__` for a package.

    Args:
        package: Its `__name__`.
        homes: Module of the package to the names it holds.

    Returns:
        A function that imports a name's module and keeps the name in the package, so that it is
        called once a name; an unknown name is an AttributeError that says the nearest.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> object:
        if name not in home:
            from difflib import get_close_matches

            near = get_close_matches(name, home, n=1)
            hint = f": did you mean {near[0]!r}?" if near and not name.startswith("_") else ""
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")
        # Not before a name is asked for: the command answers --help without it.
        from sa_plugin._face import handed_out

        value = handed_out(getattr(import_module(f"{package}.{home[name]}"), name))
        setattr(modules[package], name, value)
        return value

    return get
