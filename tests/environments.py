"""Commands in environments of their own: what is installed there is found, and nothing of this process."""

import os
import subprocess
from collections.abc import Mapping
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
