"""Every public name is on a page of the reference, with a docstring that names its arguments."""

import doctest
import importlib
import inspect
import re
import sys

import pytest
from docs_setup import ROOT

sys.path.insert(0, str(ROOT / "docs"))

import site_docstrings
import site_reference

import sa_plugin

PLACES = ["sa_plugin", *site_reference.rooms()]
DIRECTIVE = re.compile(r"^\.\. auto(?:function|class|data)::\s+(\S+)|^\s+:members:(.*)$", re.M)


def exported():
    """Every name that `sa_plugin`, a room or an adapter exports, with its object."""
    for place in PLACES:
        module = importlib.import_module(place)
        for name in getattr(module, "__all__", ()):
            yield f"{place}.{name}", getattr(module, name)


def shown():
    """Last parts of the names that the pages ask Sphinx for."""
    text = "\n".join(site_reference.pages().values())
    names = {match[1].rpartition(".")[2] for match in DIRECTIVE.finditer(text) if match[1]}
    for match in DIRECTIVE.finditer(text):
        names |= {name.strip() for name in (match[2] or "").split(",")}
    return names | set(re.findall(r"^- `(\w+)`:", text, re.M))


def parameters(function):
    kinds = inspect.signature(function).parameters
    return [name for name in kinds if name not in ("self", "cls")]


def documented(obj):
    """Functions of an exported object: itself, or the public methods of a class of ours."""
    if inspect.isclass(obj):
        for name, member in vars(obj).items():
            function = getattr(member, "__func__", member)
            if not name.startswith("_") and inspect.isfunction(function):
                yield name, function
    elif inspect.isfunction(obj):
        yield obj.__name__, obj


def test_every_exported_name_is_on_a_page():
    missing = {name.rpartition(".")[2] for name, _ in exported()} - shown()
    assert not missing, f"not in the reference: {sorted(missing)}"


def test_the_first_page_holds_the_public_names_once():
    grouped = [name for names in site_reference.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(sa_plugin.__all__)


def test_every_module_is_on_a_page_and_says_what_it_is():
    text = "\n".join(site_reference.pages().values())
    for place in PLACES:
        for name in site_reference.modules(place):
            assert f".. automodule:: {name}\n" in text
            assert importlib.import_module(name).__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("name", sa_plugin.__all__)
def test_public_functions_name_their_arguments_and_what_they_return(name):
    obj = getattr(sa_plugin, name)
    doc = inspect.getdoc(obj)
    assert doc, f"{name} has no docstring"
    if inspect.isfunction(obj):
        assert "Returns:" in doc, f"{name} does not say what it returns"
        assert "Args:" in doc or not parameters(obj), f"{name} does not say what it takes"


def test_no_docstring_forgets_an_argument():
    for full, obj in exported():
        for name, function in documented(obj):
            doc = inspect.getdoc(function)
            assert doc, f"{full}: {name} has no docstring"
            _, args, after = doc.partition("Args:")
            lost = [p for p in parameters(function) if args and p not in after]
            assert not lost, f"{full}: {name} says nothing of {lost}"


def examples():
    """Every docstring of the reference that has an example to run."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for place in PLACES:
        for name in [place, *site_reference.modules(place)]:
            found = finder.find(importlib.import_module(name), name)
            yield from (test for test in found if test.examples)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_examples_in_docstrings_hold():
    said, failed, run = [], 0, 0
    for test in examples():
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
        failed, run = failed + result.failed, run + result.attempted
    assert not failed, "".join(said)
    assert run > 50


class TestDocstrings:
    def shown(self, text):
        lines = text.split("\n")
        site_docstrings.process(None, "module", "m", None, None, lines)
        return "\n".join(lines)

    def test_signs_are_escaped_but_for_those_in_backticks(self):
        assert r"a\_ \* b \| c ``x * y``" in self.shown("a_ * b | c `x * y`")

    def test_a_formula_stays_as_it_stands(self):
        found = self.shown("Words:\n    a_i = |v| * h\n\nmore")
        assert ".. code-block:: text\n\n    Words:\n        a_i = |v| * h" in found

    def test_full_names_of_ours_stay_links(self):
        assert "`sa_plugin.statistics.quantiles`" in self.shown("See `sa_plugin.statistics.quantiles`.")
        assert "``quantiles``" in self.shown("See `quantiles`.")
