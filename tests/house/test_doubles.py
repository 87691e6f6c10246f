"""A stand-in overrides what there is: a method that its bases lack is never called, and tests nothing.

Of every class of the tests that derives from one of the product or of the tests, each method stands on a
base, or is marked `@added`. Read from the syntax; classes of the product are looked at as they are.
"""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import doubles
import pytest

TESTS = Path(__file__).parents[1]
PRODUCT = ("sa_plugin", "sa_nnsight", "sa_transformer_lens", "sa_interp_engine")
MARK = doubles.added.__name__


class File(NamedTuple):
    """A file of the tests: its classes, and where the names that it imports are from."""

    path: str
    classes: dict[str, ast.ClassDef]
    imported: dict[str, tuple[str, ...]]


def read(path: str, text: str) -> File:
    """What is needed of a file."""
    nodes = list(ast.walk(ast.parse(text)))
    imported: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            imported |= {one.asname or one.name: (node.module, one.name) for one in node.names}
        elif isinstance(node, ast.Import):
            for one in node.names:
                imported[one.asname or one.name] = (one.name,)
    return File(path, {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}, imported)


def has(body: ast.ClassDef) -> set[str]:
    """Names that a class gives its objects."""
    found = set()
    for node in body.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    for node in ast.walk(body):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return found


class Tree(dict[str, File]):
    """Files of the tests by module."""

    def inherited(self, file: File, body: ast.ClassDef) -> set[str] | None:
        """What the bases of a class have; None where one is of neither the product nor the tests."""
        found: set[str] = set()
        for base in body.bases:
            name, *rest = ast.unparse(base).split("[")[0].split(".")
            module, *way = file.imported.get(name, ()) or ("",)
            way = [*way, *rest]
            if name in file.classes and not rest:
                above, its = file, file.classes[name]
            elif module.split(".")[0] in PRODUCT and way:
                made = importlib.import_module(module)
                for step in way:
                    made = getattr(made, step)
                found |= {*dir(made), *getattr(made, "__dataclass_fields__", ())}
                continue
            elif module.split(".")[-1] in self and way and way[-1] in self[module.split(".")[-1]].classes:
                above = self[module.split(".")[-1]]
                its = above.classes[way[-1]]
            else:
                return None
            found |= has(its) | (self.inherited(above, its) or set())
        return found if body.bases else None

    def faults(self) -> Iterator[str]:
        """Methods that override nothing and are not marked; marks on methods that override."""
        for file in self.values():
            for body in file.classes.values():
                there = self.inherited(file, body)
                if there is None:
                    continue
                for node in body.body:
                    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                        continue
                    marked = any(ast.unparse(one).split(".")[-1] == MARK for one in node.decorator_list)
                    known = node.name in there or (node.name.startswith("__") and node.name.endswith("__"))
                    if known == marked:
                        what = "overrides what its bases have" if known else "overrides nothing"
                        yield f"{file.path}: {body.name}.{node.name} {what}, marked {marked}"


def test_stand_ins_override_what_there_is():
    tree = Tree(
        {path.stem: read(str(path.relative_to(TESTS)), path.read_text()) for path in TESTS.rglob("*.py")}
    )
    classes = [body for file in tree.values() for body in file.classes.values() if tree.inherited(file, body)]
    assert len(classes) > 25, "bases are found no more"
    assert list(tree.faults()) == []


CASES = {
    "def wait(self): pass": "overrides nothing, marked False",
    "@added\n    def wait(self): pass": None,
    "def read_batch(self): pass": None,
    "@added\n    def read_batch(self): pass": "overrides what its bases have, marked True",
    "def __enter__(self): pass": None,
    "def lent(self): pass": None,
}


@pytest.mark.parametrize("method", CASES)
def test_the_law_sees_a_method_that_its_base_lacks(method):
    base = "class Host:\n    def __init__(self):\n        self.lent = 1\n    def read_batch(self): pass\n"
    slow = f"from far import Host\nclass Slow(Host):\n    {method}\n"
    faults = list(Tree({"far": read("far.py", base), "near": read("near.py", slow)}).faults())
    assert (not faults) if CASES[method] is None else faults[0].endswith(CASES[method])
