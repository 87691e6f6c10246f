"""The README's example runs, on sixty passages."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::UserWarning:sa_plugin")
def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    lines = [line for line in example.splitlines() if line.strip()]
    assert len([line for line in lines if "import" not in line]) == 10
    short = example.replace("subset(240)", "subset(60)")
    assert short != example
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(short, str(README), "exec"), {"__name__": "readme"})
    for part in ("By weighted F1 SuperActivators", "in_mass_at_fpr", "HeadLedger", "F1 - raw"):
        assert part in said.getvalue()
