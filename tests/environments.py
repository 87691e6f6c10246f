"""Commands in environments of their own: what is installed there is found, and nothing of this process."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class FailedCommandError(RuntimeError):
    """A command ended with something else than 0; its words are above."""


def call(
    *command: str, read: bool = False, variables: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> str:
    """Run a command to its end; what it printed, where that is asked for.

    Raises:
        FailedCommandError: It did not end with 0.
    """
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    given = clean | {"HF_HUB_OFFLINE": "1"} | dict(variables or {})
    done = subprocess.run(
        command, cwd=cwd, env=given, text=True, check=False, stdout=subprocess.PIPE if read else None
    )
    if done.returncode:
        print(done.stdout or "", flush=True)
        raise FailedCommandError(f"{' '.join(command)[:200]} ended with {done.returncode}, see above")
    return done.stdout or ""


def locked() -> dict[str, str]:
    """Versions of constraints.txt by package."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {name: version for name, mark, version in (line.partition("==") for line in lines) if mark}


def built(where: Path, of: str) -> bool:
    """Whether an environment is complete and was made of this."""
    stamp = where / "made_of"
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == of


def build(
    where: Path, of: str, held: Sequence[str], *installs: Sequence[str], python: str = sys.executable
) -> Path:
    """A virtual environment's Python; made first if it is not there or was made of something else.

    Args:
        where: Its folder.
        of: What it depends on, as text.
        held: Constraints of pip, "name==version".
        installs: Arguments of `pip install`, one call each: in one call pip finds versions that go together.
        python: Makes it.

    Raises:
        FailedCommandError: pip failed, or what it installed does not go together.
    """
    made = where / "bin" / "python"
    if not built(where, of):
        where.parent.mkdir(parents=True, exist_ok=True)
        call(python, "-m", "venv", "--clear", str(where))
        constraints = where / "constraints.txt"
        constraints.write_text("\n".join(held) + "\n", encoding="utf-8")
        pip = (str(made), "-m", "pip", "install", "-q", "--disable-pip-version-check")
        for packages in installs:
            call(*pip, "-c", str(constraints), *packages)
        call(str(made), "-m", "pip", "check")
        (where / "made_of").write_text(of, encoding="utf-8")
    return made
