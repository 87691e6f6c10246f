"""`make test-floors`: every lower bound of pyproject.toml installed at once, and the suite run there.

    python tests/floors.py                                  # the whole suite
    python tests/floors.py --torch 2.6.0 -- tests/concepts  # pytest's arguments after --
    python tests/floors.py --list                           # the constraints alone

One environment of Python 3.11, kept in the cache folder and made anew when bounds change. Bounds are
installed as they are written (`numpy>=1.26` as numpy 1.26), but for three: torch stands at the lock's
version if not said otherwise, since a smaller one comes with gigabytes of CUDA; TransformerLens too,
whose releases are `make test-hosts`; and transformers, with its hub, at the oldest that this
TransformerLens takes, since older ones run with nnsight alone, in an environment of `make test-hosts`.
What no bound names is the newest that pip finds, but for packages of which later releases do not run
beside a floor (`OF_THEIR_TIME`).
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from environments import ROOT, build, call, locked
from packaging.requirements import Requirement

sys.path.insert(0, str(ROOT))

from sa_plugin._check import cache_folder

# pyarrow 21 and later ask for numpy 2 when they are imported, which their metadata do not say.
OF_THEIR_TIME = ("pyarrow<21",)
BY_THE_LOCK = ("torch", "transformer-lens")
OLDEST_BESIDE = {"transformers": "5.9.0", "huggingface_hub": "1.5.0"}


def floors() -> dict[str, str]:
    """Each package that pyproject.toml names, with the least version it may have there.

    Raises:
        ValueError: A bound is missing: a package without one cannot be tested at it.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = (project["dependencies"], *project["optional-dependencies"].values())
    wanted = [Requirement(text) for group in groups for text in group]
    found = {}
    for one in (one for one in wanted if one.name != project["name"]):
        least = [part.version for part in one.specifier if part.operator == ">="]
        if len(least) != 1:
            raise ValueError(f"{one} in pyproject.toml has no lower bound: write one, as >=.")
        if found.setdefault(one.name, least[0]) != least[0]:
            raise ValueError(f"{one} in pyproject.toml has two lower bounds: {found[one.name]} is the other.")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Build the environment, then run pytest in it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--torch", default=locked()["torch"])
    parser.add_argument("--env", type=Path, default=cache_folder() / "floors")
    parser.add_argument("--list", action="store_true", help="print what would be installed")
    parser.add_argument("tests", nargs="*", default=["tests"], help="for pytest")
    args = parser.parse_args(argv)
    held = floors() | {name: locked()[name] for name in BY_THE_LOCK} | OLDEST_BESIDE | {"torch": args.torch}
    lines = [*(f"{name}=={version}" for name, version in held.items()), *OF_THEIR_TIME]
    if args.list:
        print("\n".join(lines))
        return 0
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ours = ("--no-build-isolation", "-e", f"{ROOT}[all,dev]")
    python = build(args.env, "\n".join([str(ROOT), *lines, project]), lines, ("hatchling", "editables"), ours)
    call(str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *args.tests)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
