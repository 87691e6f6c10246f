"""The README's example runs as it stands, and its tables come from the demo's results."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.real
def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 11
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(example, str(README), "exec"), {"__name__": "readme"})
    assert "By weighted F1 SuperActivators" in said.getvalue()
    assert "in_mass_at_fpr" in said.getvalue()


def test_the_picture_and_the_pages_exist():
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
