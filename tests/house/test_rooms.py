"""Tests use what users and other rooms may use: faces of rooms, no files of theirs."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.relative_to(TESTS).as_posix()
)
def test_tests_import_faces_of_rooms(path):
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert not [one for one in modules if one.startswith("sa_plugin.") and one.count(".") > 1]


def test_no_two_files_of_tests_have_one_name():
    """Pytest imports a file by its own name: of two that share one, the second is not run."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(one for one in set(names) if names.count(one) > 1) == []
