"""Versions and machine, as results carry them."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = (
    "sa_plugin", "torch", "transformers", "transformer-lens", "nnsight", "numpy", "scikit-learn",
    "captum",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python and of what computes, where installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Processor kind, cores and threads."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
