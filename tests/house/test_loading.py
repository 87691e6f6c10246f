"""What is loaded when: a quick door, and no report, picture or study before one is asked for."""

import subprocess
import sys
import textwrap

import pytest

from sa_plugin import __all__ as public

OWN = ("sa_plugin", "sa_transformer_lens", "sa_nnsight")


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


def test_until_a_detector_stands_no_report_picture_or_study_is_loaded():
    code = """
        import sa_plugin as sa, tiny
        from word_data import word_data
        host = sa.attach(tiny.bridge("gpt2"), progress=False)
        data = word_data(60, documents=20)
        bank = sa.fit(host, data, "separator")
        sa.calibrate(host, data, bank, scores=sa.score(host, data, bank))
        """
    modules = own(loaded_by(code))
    rooms = {name.split(".")[1] for name in modules if name.count(".") > 0}
    assert not {"report", "stages", "heads", "theory", "attribution", "tracing", "loaders"} & rooms
    assert "sa_plugin.show.plots" not in modules
    core = {name for name in modules if name.startswith("sa_plugin")}
    assert len(core) < 60, sorted(core)


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
