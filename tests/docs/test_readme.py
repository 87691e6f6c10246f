"""The README's example runs, on sixty passages, and the commands it names exist."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::UserWarning:sa_plugin")
def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    lines = [line for line in example.splitlines() if line.strip()]
    assert len([line for line in lines if "import" not in line]) <= 10
    assert {"sa.load(", "sa.study("} <= {*re.findall(r"sa\.\w+\(", example)}
    short = example.replace("subset(240)", "subset(60)")
    assert short != example
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(short, str(README), "exec"), {"__name__": "readme"})
    for part in ("By weighted F1 SuperActivators", "MaxTok", "Highest raw activations", "'captain'"):
        assert part in said.getvalue()
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "my_detector").is_dir()


def test_the_two_commands_of_a_clone_stand_alone():
    """Each on a line of its own in a fence, so that a person or a script finds and runs it."""
    fenced = "".join(re.findall(r"```\n(.*?)```", README.read_text(), flags=re.DOTALL))
    commands = {line.partition("#")[0].strip() for line in fenced.splitlines()}
    assert {"make demo", "make test"} <= commands
