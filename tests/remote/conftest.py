"""Fixtures for tests against the server that `tests/remote/run.py` starts (`make test-remote`).

Collected only where SA_NDIF is set, to the server's mode: "trusted" or "sandboxed". Tests marked
`sandboxed` run in both modes, all others in the first. Run with `--confcutdir tests/remote`: the
import hook of the other tests wraps functions, which could then not be shipped by their source.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
MODE = os.environ.get("SA_NDIF", "")
collect_ignore_glob = [] if MODE else ["test_*.py"]
if MODE:
    sys.path[:0] = [str(HERE), str(HERE.parent)]


def pytest_configure(config):
    config.addinivalue_line("markers", "sandboxed: runs against a sandboxed server too")


def pytest_collection_modifyitems(items):
    if MODE == "sandboxed":
        items[:] = [item for item in items if item.get_closest_marker("sandboxed")]


@pytest.fixture(scope="session")
def mode():
    """The server's mode."""
    return MODE


@pytest.fixture(scope="session")
def state():
    """Folder of the server's pids and logs."""
    return Path(os.environ["SA_NDIF_STATE"])


@pytest.fixture(scope="session")
def client():
    """Makes nnsight's model of a deployed folder, without weights."""
    return make_client


@pytest.fixture(scope="session")
def tiny_gpt2_client():
    """nnsight's model of the tiny GPT-2, without weights."""
    import models

    return make_client(models.tiny("gpt2"))


def make_client(folder):
    """nnsight's model of a folder; its name is the folder, so that no hub is asked."""
    import nnsight
    import nnsight.modeling.huggingface as huggingface

    nnsight.CONFIG.APP.REMOTE_LOGGING = False
    name = str(folder)
    huggingface._ID_CACHE[name] = name
    return nnsight.TransformersModel(name, task="text-generation")
