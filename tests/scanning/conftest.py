"""A detector on a small model, and a corpus with good and bad documents in four blocks."""

import numpy as np
import pytest
from fake_host import FakeHost
from word_data import word_data

from sa_plugin.concepts import fit
from sa_plugin.detection import calibrate


@pytest.fixture(scope="session")
def found():
    """A host, its data and a detector of two concepts at unlike layers."""
    host, data = FakeHost(), word_data(120, documents=40)
    return host, data, calibrate(host, data, fit(host, data, "prototype"))


@pytest.fixture(scope="session")
def rows(found):
    """Thirty documents of unlike length, of ten sources; two are bad."""
    _, data, _ = found
    rng = np.random.default_rng(1)
    rows = [
        {"id": f"n{k}", "text": sample.text, "document": f"d{rng.integers(10)}"}
        for k, sample in enumerate(data.samples[:30])
    ]
    rows[7]["text"] = ""
    rows[22] = {"id": "n22", "text": 5, "document": "d1"}
    return rows
