"""A whole run of a real model gives the scores of the first release, to 1e-4 of a score's deviation.

Bits are a property of the processor: three instruction sets gave three hashes of SmolLM2's hidden
states. What stands here is what every processor keeps.
"""

from pathlib import Path

import numpy as np
import pytest

from sa_plugin.concepts import fit
from sa_plugin.host import attach, find_folder
from sa_plugin.loaders import load
from sa_plugin.scores import score
from sa_transformer_lens.host import load_bridge

LAYERS = {"minilm": (1, 4), "smollm2": (10, 22)}


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_scores_are_those_of_the_first_release(name):
    with np.load(Path(__file__).with_name("whole_runs.npz"), allow_pickle=False) as held:
        golden, sd = held[name], held[f"{name}_sd"]
    host = attach(load_bridge(find_folder(name)), batch_tokens=1024, progress=False)
    data = load("supersense").subset(40)
    table = score(host, data, fit(host, data, "prototype", layers=LAYERS[name]))
    assert golden.shape == (150, 2, 14)
    assert np.abs((table.scores[:150] - golden) / sd).max() < 1e-4
