"""What README, the pages, the notebooks and the scripts name by its path or dotted name exists."""

import importlib
import re
from functools import cache

import pytest
from docs_setup import ROOT, pages

NAME = re.compile(r"\bsa_(?:plugin|transformer_lens|nnsight)(?:\.\w+)+")
FILE = re.compile(r"\b(?:sa_plugin|adapters|tests|docs)/[\w/]+\.(?:py|md|toml|tsv|csv|ipynb|json|gz)\b")
# The entry-point group, and what the site writes when it is built.
NO_MODULES = ("sa_plugin.adapters",)
BUILT = ("docs/reference/", "docs/_build/")
NAMING = [
    *pages(),
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "NOTICE", "Makefile")),
    *sorted((ROOT / "docs").glob("notebooks/*.ipynb")),
    *sorted((ROOT / "docs" / "experiments").rglob("*.py")),
]


@cache
def exists(name):
    """Whether a dotted name is a module, or what a module or a class holds."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for part in parts[k:]:
            if not hasattr(found, part):
                return part in getattr(found, "__annotations__", {})
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", NAMING, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_is_named_exists(page):
    text = page.read_text()
    names = {name for name in NAME.findall(text) if name not in NO_MODULES and not exists(name)}
    files = {file for file in FILE.findall(text) if not file.startswith(BUILT)}
    assert not names, f"{page.name} names {sorted(names)}"
    assert not [file for file in sorted(files) if not (ROOT / file).exists()]


def test_a_name_that_is_nowhere_is_seen():
    assert exists("sa_plugin.concepts.fit")
    assert exists("sa_plugin.data.Sample.text")
    assert not exists("sa_plugin.concepts.fti")
    assert not exists("sa_plugin.conceps.fit")
