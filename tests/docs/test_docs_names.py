"""What README, pages, notebooks, scripts and docstrings name or import exists."""

import importlib
import json
import re
from functools import cache

import pytest
from docs_setup import ROOT, pages

NAME = re.compile(r"\bsa_(?:plugin|transformer_lens|nnsight)(?:\.\w+)+")
FILE = re.compile(r"\b(?:sa_plugin|adapters|tests|docs)/[\w/]+\.(?:py|md|toml|tsv|csv|ipynb|json|gz)\b")
IMPORT = re.compile(r"^ *from (sa_[\w.]+) import (?:\(([^)]*)\)|(.*))$", re.M)
# The entry-point group, and what the site writes when it is built.
NO_MODULES = ("sa_plugin.adapters",)
BUILT = ("docs/reference/", "docs/_build/")
NAMING = [
    *pages(),
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "NOTICE", "Makefile")),
    *sorted((ROOT / "docs").glob("notebooks/*.ipynb")),
    *sorted((ROOT / "docs" / "experiments").rglob("*.py")),
]
CODE = [path for package in ("sa_plugin", "adapters") for path in sorted((ROOT / package).rglob("*.py"))]


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


def text_of(page):
    """The text of a file, of a notebook that of its cells."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return text


def imported(text):
    """Dotted names of what is imported from our packages."""
    for module, many, one in IMPORT.findall(text):
        for name in (many or one.partition("#")[0]).split(","):
            if name.strip():
                yield f"{module}.{name.split()[0]}"


@pytest.mark.parametrize("page", [*NAMING, *CODE], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_is_named_exists(page):
    text = text_of(page)
    names = {*NAME.findall(text), *imported(text)} - {*NO_MODULES}
    absent = sorted(name for name in names if not exists(name))
    assert not absent, f"{page.name} names {absent}"
    files = {file for file in FILE.findall(text) if not file.startswith(BUILT)}
    assert not [file for file in sorted(files) if not (ROOT / file).exists()]


def test_a_name_that_is_nowhere_is_seen():
    assert exists("sa_plugin.concepts.fit")
    assert exists("sa_plugin.data.Sample.text")
    assert not exists("sa_plugin.concepts.fti")
    assert not exists("sa_plugin.conceps.fit")


def test_imports_are_read_as_python_reads_them():
    code = "from sa_plugin.concepts import (\n    fit,\n    collect as many,\n)\n"
    code += "from sa_plugin import load  # why\n"
    assert [*imported(code)] == ["sa_plugin.concepts.fit", "sa_plugin.concepts.collect", "sa_plugin.load"]


@pytest.mark.parametrize(
    "page", [page for page in NAMING if page.suffix == ".ipynb"], ids=lambda page: page.stem
)
def test_what_notebooks_store_can_be_looked_at(page):
    """Pictures as pictures, and nothing of the machine that made them."""
    for cell in json.loads(page.read_text())["cells"]:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            assert "image/png" in data or not "".join(data.get("text/plain", "")).startswith("<Figure")
            assert output.get("name") != "stderr"
