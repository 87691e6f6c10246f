"""The one place where an optional package is imported, so that its absence names the extra."""

import importlib
from types import ModuleType


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
        >>> require("json", "plot").__name__
        'json'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        needed_for = purpose or f"the '{extra}' part of sa_plugin"
        raise ImportError(
            f"{module} is needed for {needed_for}: pip install 'sa_plugin[{extra}]'",
            name=error.name,
        ) from error
