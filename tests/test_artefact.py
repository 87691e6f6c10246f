"""Saved banks and detectors: equal to the bit when loaded, refused where they do not belong."""

import json

import numpy as np
import pytest
import torch
from fake_host import FakeHost

from sa_plugin.artefact import load_bank, save_bank
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data import ConceptData
from sa_plugin.detection import Detector, calibrate
from sa_plugin.fitting import fit
from sa_plugin.scoring import score

ANIMALS = ("cat", "dog", "cow")
WORDS = (*ANIMALS, "sat", "ran", "tall", "house", "river", "blue", "over", "under")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    words = [list(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(90)]
    return ConceptData.from_words(
        words, [["animal" if w in ANIMALS else None for w in row] for row in words]
    )


@pytest.fixture(scope="module")
def detector(data):
    host = FakeHost()
    return calibrate(host, data, fit(host, data, "prototype", progress=False))


def test_a_loaded_detector_decides_the_same(tmp_path, data, detector):
    detector.save_pretrained(tmp_path / "saved")
    loaded = Detector.from_pretrained(tmp_path / "saved", host=FakeHost())
    scores = score(FakeHost(), data, detector.bank, progress=False)
    assert (
        loaded.evaluate(data.test, scores=scores).to_dict()
        == detector.evaluate(data.test, scores=scores).to_dict()
    )
    assert loaded.threshold == detector.threshold
    assert [s.text for s in loaded.find(data.test)] == [s.text for s in detector.find(data.test)]
    assert {p.suffix for p in (tmp_path / "saved").iterdir()} == {".json", ".safetensors"}


def test_a_bank_comes_back_to_the_bit(tmp_path, detector):
    save_bank(detector.bank, tmp_path)
    bank = load_bank(tmp_path)
    assert bank.origin == detector.bank.origin or bank.origin.fingerprint
    for name in ("token", "permuted", "pooled"):
        assert torch.equal(getattr(bank, name).vectors, getattr(detector.bank, name).vectors)
    assert torch.equal(bank.component_means.z, detector.bank.component_means.z)
    assert (bank.concepts, bank.layers, bank.hook_point) == (
        detector.bank.concepts, detector.bank.layers, detector.bank.hook_point,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (FakeHost(seed=1), "do not carry over to other weights"),
        (FakeHost().with_info(processing="compatibility"), "weight processing 'none'"),
        (FakeHost().with_info(d_model=99), "d_model = 99"),
        (FakeHost(n_layers=2), "blocks 0 to 1"),
    ],
)
def test_a_detector_is_refused_on_another_model(tmp_path, detector, host, message):
    detector.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=message):
        Detector.from_pretrained(tmp_path / "saved", host=host)


def test_another_hook_point_is_refused(tmp_path, detector):
    detector.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="live at 'resid_post', not 'mlp_out'"):
        Detector.from_pretrained(tmp_path / "saved", hook_point="mlp_out")


def test_folders_are_checked(tmp_path, detector):
    with pytest.raises(FileNotFoundError, match="no saved Detector"):
        Detector.from_pretrained(tmp_path)
    save_bank(detector.bank, tmp_path / "bank")
    with pytest.raises(ValueError, match="holds a ConceptBank, not a Detector"):
        Detector.from_pretrained(tmp_path / "bank")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty and holds no artefact"):
        detector.save_pretrained(tmp_path / "other")
    path = tmp_path / "bank" / "artefact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="artefact format 99, this version reads 1"):
        load_bank(tmp_path / "bank")


def test_vectors_of_the_user_are_saved_too(tmp_path):
    bank = ConceptBank.from_vectors({("a", 0): torch.ones(3)})
    save_bank(bank, tmp_path)
    assert torch.equal(load_bank(tmp_path).token.vectors, bank.token.vectors)
