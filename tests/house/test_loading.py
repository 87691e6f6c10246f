"""What is loaded when: a quick door, and no report, picture or study before one is asked for."""

import json
import subprocess
import sys
import textwrap

import pytest

from sa_plugin import __all__ as public

OWN = ("sa_plugin", "sa_transformer_lens", "sa_nnsight", "sa_interp_engine")


def loaded_by(code):
    """Modules that a fresh interpreter has loaded after some code."""
    tail = "\nimport sys\nprint('\\n'.join(sys.modules))"
    run = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code) + tail]
    found = subprocess.run(run, check=True, capture_output=True, text=True, cwd="tests")
    return set(found.stdout.split())


def own(modules):
    return {name for name in modules if name.split(".")[0] in OWN}


def test_the_root_loads_nothing_heavy():
    modules = loaded_by("import sa_plugin; sa_plugin.__version__; dir(sa_plugin)")
    assert own(modules) == {"sa_plugin", "sa_plugin._lazy"}
    assert not {"torch", "numpy", "pandas", "sklearn", "scipy", "matplotlib"} & modules


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"]])
def test_help_loads_neither_torch_nor_numpy(words):
    code = f"""
        from contextlib import suppress
        from sa_plugin.cli import main
        with suppress(SystemExit):
            main({words})
        """
    modules = loaded_by(code)
    assert not {"torch", "numpy", "sklearn", "pandas"} & modules
    assert own(modules) <= {"sa_plugin", "sa_plugin._lazy", "sa_plugin.cli"}


@pytest.fixture(scope="module")
def steps():
    """Modules that one fresh interpreter has loaded after each of some steps, by name."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STEPS], check=True, capture_output=True, text=True, cwd="tests"
    )
    return {name: set(loaded) for name, loaded in json.loads(found.stdout.splitlines()[-1]).items()}


STEPS = """
import json, sys
steps = {}
def step(name):
    steps[name] = list(sys.modules)

class Watch:
    def find_spec(self, name, path=None, target=None):
        assert not name.startswith("nnsight"), name
sys.meta_path.insert(0, Watch())

from sa_transformer_lens import accept
assert accept(object()) is None
step("an adapter that declines")

import sa_plugin as sa, tiny
from word_data import word_data
host = sa.attach(tiny.bridge("gpt2"), progress=False)
data = word_data(60, documents=20)
bank = sa.fit(host, data, "separator")
sa.calibrate(host, data, bank, scores=sa.score(host, data, bank))
step("a detector")

from sa_plugin.host import Site
host, site = accept(tiny.bridge("gpt2")), Site(2, "resid_post")
out = host.read(host.batches(tiny.samples())[0], [site], lambda found: {"x": found[site]})
assert out["x"].shape[-1] == 32
step("a bridge that is read")

import sa_nnsight, sa_nnsight.trace_ops, sa_nnsight.paths
assert sa_nnsight.accept(host.bridge) is None
assert not hasattr(object, "save")
step("the package for nnsight")
print(json.dumps(steps))
"""


def test_an_adapter_that_declines_loads_no_library(steps):
    assert not {"transformer_lens", "torch"} & steps["an adapter that declines"]


def test_until_a_detector_stands_no_report_picture_or_study_is_loaded(steps):
    modules = own(steps["a detector"])
    rooms = {name.split(".")[1] for name in modules if name.count(".") > 0}
    assert not {"report", "stages", "heads", "theory", "attribution", "tracing", "loaders"} & rooms
    assert "sa_plugin.show.plots" not in modules
    core = {name for name in modules if name.startswith("sa_plugin")}
    assert len(core) < 68, sorted(core)


@pytest.mark.parametrize("step", ["a detector", "a bridge that is read", "the package for nnsight"])
def test_neither_the_package_nor_attaching_a_bridge_loads_nnsight(steps, step):
    """Nor looks for it: the steps end at the first that asks."""
    assert "torch" in steps[step]
    assert "nnsight" not in steps[step]


def test_every_public_name_is_there_and_a_misspelt_one_is_an_error():
    import sa_plugin

    for name in public:
        assert getattr(sa_plugin, name) is not None
    assert set(public) <= set(dir(sa_plugin))
    with pytest.raises(AttributeError, match=r"has no attribute 'calibrat': did you mean 'calibrate'\?"):
        sa_plugin.calibrat  # noqa: B018


def test_type_checkers_see_what_is_imported_lazily():
    """The names under TYPE_CHECKING, `__all__` and the table of rooms are the same."""
    import ast
    import inspect

    import sa_plugin

    tree = ast.parse(inspect.getsource(sa_plugin))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sa_plugin.")
        for alias in node.names
    }
    assert imported - {"lazily"} == set(public)
