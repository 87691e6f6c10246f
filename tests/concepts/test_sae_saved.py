"""Saved banks of latents: which latents of which SAE, without its weights."""

import json
import warnings

import numpy as np
import pytest
import torch
from fake_host import FakeHost
from sae_cases import PlainSAE, ReluSAE
from word_data import word_data

from sa_plugin.concepts import LatentSet, hash_of, load_bank, sae_bank, save_bank
from sa_plugin.concepts import sae as latents
from sa_plugin.detection import Detector, calibrate
from sa_plugin.scores import score

pytestmark = pytest.mark.filterwarnings("ignore::sa_plugin.statistics.FewTokensWarning")


@pytest.fixture(scope="module")
def data():
    return word_data(90, documents=18)


@pytest.fixture(scope="module")
def bank(data):
    return sae_bank(FakeHost(), data, {1: ReluSAE(k=6)}, pruning="none")


def test_a_loaded_bank_scores_the_same(tmp_path, data, bank):
    save_bank(bank, tmp_path)
    loaded = load_bank(tmp_path, sae={1: ReluSAE(k=6)})
    assert isinstance(loaded.token, LatentSet)
    assert (loaded.units, loaded.layers, loaded.kind) == (bank.units, bank.layers, "sae")
    assert loaded.token.scores_like(bank.token)
    one, other = (score(FakeHost(), data, b).scores for b in (bank, loaded))
    np.testing.assert_array_equal(one, other)
    assert load_bank(tmp_path, sae=ReluSAE(k=6)).token.scores_like(bank.token)


def test_weights_are_not_saved(tmp_path, bank):
    save_bank(bank, tmp_path)
    weights = sum(t.numel() for t in bank.token.sources[0].sae.state_dict().values())
    assert next(tmp_path.glob("tensors-*.safetensors")).stat().st_size < 4 * weights
    record = json.loads((tmp_path / "artefact.json").read_text())["bank"]
    assert record["saes"] == [{"width": 40, "digest": hash_of(ReluSAE(k=6)), "class": "ReluSAE"}]
    assert record["origin"]["options"]["layers"]["1"]["kept"] == len(bank.units)


@pytest.mark.parametrize(
    ("sae", "error", "match"),
    [
        (None, ValueError, r"not the SAE itself: load it with sae=\{1: your SAE\}"),
        ({2: ReluSAE(k=6)}, ValueError, r"given for layers \[2\], and layers \[1\] are read"),
        (ReluSAE(k=6, seed=1), ValueError, "thresholds do not carry over. Give the same SAE"),
        (ReluSAE(k=3), ValueError, "gives other latents: a setting differs"),
        (object(), TypeError, r"without encode\(activations\)"),
    ],
)
def test_another_sae_is_refused(tmp_path, bank, sae, error, match):
    save_bank(bank, tmp_path)
    with pytest.raises(error, match=match):
        load_bank(tmp_path, sae=sae)


def test_a_saved_detector_asks_for_the_sae(tmp_path, data, bank):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = calibrate(FakeHost(), data, bank)
    detector.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="not the SAE itself"):
        Detector.from_pretrained(tmp_path / "saved")
    loaded = Detector.from_pretrained(tmp_path / "saved", host=FakeHost(), sae={1: ReluSAE(k=6)})
    present = [d.detect(data.test).present for d in (loaded, detector)]
    np.testing.assert_array_equal(*present)


def test_scores_of_another_sae_are_refused(data, bank):
    other = sae_bank(FakeHost(), data, {1: ReluSAE(k=6, seed=5)}, pruning="none")
    table = score(FakeHost(), data, other)
    with pytest.raises(ValueError, match="the scores are of another bank"):
        calibrate(FakeHost(), data, bank, scores=table)


def test_the_hash_is_of_weights_and_class_alone():
    weight = torch.randn(5, 12)
    assert hash_of(PlainSAE(weight)) == hash_of(PlainSAE(weight.clone(), change=abs))
    assert hash_of(PlainSAE(weight)) != hash_of(PlainSAE(weight + 1e-6))
    assert hash_of(PlainSAE(weight)) != hash_of(PlainSAE(weight.double()))
    assert hash_of(PlainSAE(weight.numpy())) == hash_of(PlainSAE(weight))
    assert hash_of(ReluSAE(k=6)) == hash_of(ReluSAE(k=3))


def test_stored_activations_go_to_the_device_of_the_sae(monkeypatch):
    seen = []

    def encoded(sae, h):
        seen.append(h.device.type)
        return torch.ones(len(h), 5)

    monkeypatch.setattr(latents, "latents_of", encoded)
    elsewhere = PlainSAE(torch.ones(5, 12, device="meta"))
    found = LatentSet([latents.Source(elsewhere, 5, "")], [0], torch.ones(1, 1).bool(), torch.ones(1, 3, 12))
    assert seen == ["meta"]
    torch.testing.assert_close(found.expected, torch.tensor([[[5.0, 5.0, 3.0]] * 3]))
