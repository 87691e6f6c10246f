"""Every python block of README and docs runs, in order, or says why it does not."""

import contextlib
import io
from pathlib import Path

import docs_setup
import pytest

from sa_plugin.host import protocol as hosting

HERE = docs_setup.ROOT / "tests" / "docs"
RUN_HERE = [
    page
    for page in docs_setup.pages()
    if page.name not in docs_setup.ELSEWHERE and any(reason is None for _, reason in docs_setup.blocks(page))
]


@pytest.fixture
def registered(monkeypatch):
    """The adapters, found also where the project is not installed."""
    from importlib.metadata import EntryPoint

    points = [
        EntryPoint(name, f"sa_{name}:accept", hosting.ADAPTERS) for name in ("nnsight", "transformer_lens")
    ]
    found = hosting.entry_points
    monkeypatch.setattr(
        hosting, "entry_points", lambda group: points if group == hosting.ADAPTERS else found(group=group)
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: page.name)
def test_every_snippet_runs(page, tmp_path, monkeypatch, registered):
    codes = docs_setup.to_run(page)
    names = docs_setup.names_for(codes) | {"__name__": "docs"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sa_transformer_lens.host.load_bridge", docs_setup.deep_bridge)
    with contextlib.redirect_stdout(io.StringIO()):
        for k, code in enumerate(codes):
            # nnsight reads a trace's source from the file that the code says it is in.
            file = tmp_path / f"{page.stem}_{k}.py"
            file.write_text(code)
            exec(compile(code, str(file), "exec"), names)


def test_what_does_not_run_says_why_and_is_counted():
    found = {}
    for page in docs_setup.pages():
        reasons = [reason for _, reason in docs_setup.blocks(page) if reason is not None]
        assert all(len(reason.split()) >= 2 for reason in reasons), (page.name, reasons)
        if reasons:
            found[page.name] = len(reasons)
    assert found == docs_setup.NOT_RUN, "blocks that do not run: count them in docs_setup.NOT_RUN"


def test_no_block_of_python_hides_under_another_name():
    for page in docs_setup.pages():
        fences = [line for line in page.read_text().splitlines() if line.startswith("```")]
        for line in fences:
            assert line.split()[0] not in ("```py", "```Python", "```pycon"), (page.name, line)
        assert sum(line.startswith("```python") for line in fences) == len(docs_setup.blocks(page))


def test_pages_run_elsewhere_are_run_there():
    for page, test in docs_setup.ELSEWHERE.items():
        assert Path(page).name in (HERE / test).read_text()


class TestUnbound:
    def test_used_before_bound(self):
        assert docs_setup.unbound(["print(host)", "host = 1"]) >= {"host"}
        assert "host" not in docs_setup.unbound(["host = 1", "print(host)"])

    def test_bound_from_itself(self):
        assert "data" in docs_setup.unbound(["data = data.subset(3)"])

    def test_imports_and_functions_bind(self):
        code = "import a.b\nfrom c import d as e\ndef f(): pass\nprint(a, e, f)"
        assert docs_setup.unbound([code]) == {"print"}
