"""SmolLM2 on a real server scores, calibrates and decides as plain hooks do here."""

import sys
from pathlib import Path

import numpy as np
from clients import remote_model
from conftest import MODE

from sa_plugin.host import attach

sys.path.insert(0, str(Path(__file__).parent.parent / "hosts"))
import fidelity


def test_smollm2_is_plain_hooks(tmp_path):
    folder = fidelity.default_folder()
    if not (folder / "smollm2" / "bank").exists():
        fidelity.write_bank("smollm2", folder)
    there = attach(remote_model("smollm2"), remote=True, journal=tmp_path)
    path = fidelity.record(f"NDIF on loopback, {MODE}", "smollm2", folder, there)
    plain = folder / "smollm2" / f"{fidelity.PLAIN.replace(' ', '_')}.npz"
    found = fidelity.compare(np.load(plain), np.load(path))
    assert found["tokens"] > 2000
    assert not found["drift"], found
