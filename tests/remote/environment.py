"""The server's own Python environment, in a cached folder: built when missing, else what it needs.

NDIF needs Python 3.12 and a plain torch, so it cannot share the project's environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import environments

CONSTRAINTS = Path(__file__).resolve().parent / "server" / "constraints.txt"
WANTED = ("torch", "ndif[api,ray]", "nnsight", "transformers", "moto[server,s3]")
DISK = 12e9


def cache() -> Path:
    """The cached folder: `$SA_PLUGIN_CACHE/ndif`, by default `~/.cache/sa_plugin/ndif`."""
    return Path(os.environ.get("SA_PLUGIN_CACHE", "~/.cache/sa_plugin")).expanduser() / "ndif"


def folder() -> Path:
    """The virtual environment."""
    return cache() / "env"


def ready() -> Path:
    """The environment's folder of programs.

    Raises:
        RuntimeError: It is not built, or was built from other constraints.
    """
    if missing := lacking():
        raise RuntimeError(f"the server cannot start: {'; '.join(missing)}")
    if not _built():
        raise RuntimeError(f"no complete environment in {folder()}: run tests/remote/run.py")
    return folder() / "bin"


def lacking() -> list[str]:
    """What this machine lacks, each with the way to get it; empty when all is there."""
    found = []
    if not Path("/proc/self/stat").exists():
        found.append("Linux is needed: processes are found in /proc")
    if shutil.which("redis-server") is None:
        found.append("redis-server is not on PATH (Debian: apt-get install redis-server)")
    if not _built():
        if _python() is None:
            found.append(
                "Python 3.12 with venv was not found: install it (pyenv install 3.12) or name one, "
                "SA_NDIF_PYTHON=/path/to/python3.12"
            )
        free = shutil.disk_usage(_existing(cache())).free
        if free < DISK:
            found.append(
                f"{free / 1e9:.0f} GB free round {cache()}, {DISK / 1e9:.0f} are needed: set "
                "SA_PLUGIN_CACHE to a larger disk"
            )
    return found


def build() -> Path:
    """The environment, made first if it is not there: about 3 GB to download, 5.5 GB on disk.

    Raises:
        RuntimeError: Something is missing, or pip failed.
    """
    if not _built() and (missing := lacking()):
        raise RuntimeError(f"the environment cannot be built: {'; '.join(missing)}")
    held = _constraints().splitlines()
    environments.build(folder(), _constraints(), held, WANTED, python=str(_python()))
    return ready()


def _built() -> bool:
    return environments.built(folder(), _constraints())


def _constraints() -> str:
    return CONSTRAINTS.read_text(encoding="utf-8")


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _python() -> str | None:
    versions = Path("~/.pyenv/versions").expanduser().glob("3.12.*/bin/python")
    candidates = [os.environ.get("SA_NDIF_PYTHON", ""), "python3.12", *map(str, sorted(versions))]
    test = "import sys, ensurepip, venv; sys.exit(sys.version_info[:2] != (3, 12))"
    for name in filter(None, candidates):
        path = shutil.which(name)
        if path and not subprocess.run([path, "-c", test], capture_output=True).returncode:
            return path
    return None
