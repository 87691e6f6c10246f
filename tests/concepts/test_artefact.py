"""Saved banks and detectors: equal to the bit when loaded, refused where they do not belong."""

import json
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from detection_cases import make_case
from fake_host import FakeHost
from kills import dying_at, moments

from sa_plugin._files import DamagedFileError, output_folder
from sa_plugin.concepts import ConceptBank, OldArtefactWarning, fit, load_bank, save_bank
from sa_plugin.data import ConceptData
from sa_plugin.detection import Detector, calibrate
from sa_plugin.scores import score

ANIMALS = ("cat", "dog", "cow")
OLD = Path(__file__).parents[1] / "golden" / "artefact_1"
WORDS = (*ANIMALS, "sat", "ran", "tall", "house", "river", "blue", "over", "under")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    words = [list(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(90)]
    return ConceptData.from_words(words, [["animal" if w in ANIMALS else None for w in row] for row in words])


@pytest.fixture(scope="module")
def detector(data):
    host = FakeHost()
    return calibrate(host, data, fit(host, data, "prototype"))


def test_a_loaded_detector_decides_the_same(tmp_path, data, detector):
    detector.save_pretrained(tmp_path / "saved")
    loaded = Detector.from_pretrained(tmp_path / "saved", host=FakeHost())
    scores = score(FakeHost(), data, detector.bank)
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
        detector.bank.concepts,
        detector.bank.layers,
        detector.bank.hook_point,
    )


def test_an_artefact_of_format_1_loads_and_decides_as_it_did():
    """Written by the code before the house was redrawn, on the case that is made here again."""
    case = make_case(n=40)
    with pytest.warns(OldArtefactWarning, match="artefact of format 1, in which nothing says"):
        loaded = Detector.from_pretrained(OLD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = calibrate(None, case.data, case.bank, scores=case.table, deltas=(0.1, 0.5))
    assert loaded.to_dict() == again.to_dict()
    np.testing.assert_array_equal(loaded.tail.thresholds, again.tail.thresholds)
    assert loaded.seen == again.seen
    assert loaded.seed == again.seed
    # RandTok's tokens are drawn by hash now.
    for name in loaded.baselines.keys() - {"RandTok"}:
        np.testing.assert_array_equal(loaded.baselines[name][0].f1, again.baselines[name][0].f1)


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
    with pytest.raises(ValueError, match="artefact format 99, this version reads 1 to 3: update"):
        load_bank(tmp_path / "bank")


def test_vectors_of_the_user_are_saved_too(tmp_path):
    bank = ConceptBank.from_vectors({("a", 0): torch.ones(3)})
    save_bank(bank, tmp_path)
    assert torch.equal(load_bank(tmp_path).token.vectors, bank.token.vectors)


def test_damaged_artefacts_are_refused(tmp_path):
    bank = ConceptBank.from_vectors({("a", 0): torch.ones(3)})
    folder = save_bank(bank, tmp_path / "bank")
    (tensors,), record = folder.glob("tensors-*.safetensors"), folder / "artefact.json"
    whole, text = tensors.read_bytes(), record.read_text()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    for cut in (whole[:-4], whole[:5], b"", flipped):
        tensors.write_bytes(cut)
        with pytest.raises(DamagedFileError, match=r"tensors-\w+.safetensors is damaged, or .*save or copy"):
            load_bank(folder)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match=r"bank holds no tensors-\w+.safetensors: save or copy"):
        load_bank(folder)
    tensors.write_bytes(whole)
    for cut in (text[:40], "", "[]", text.replace('"dot"', '"cosine"'), text.replace('"a"', '"b"')):
        record.write_text(cut)
        with pytest.raises(DamagedFileError, match=r"artefact.json is damaged .*copy"):
            load_bank(folder)


def test_tensors_of_another_artefact_are_refused(tmp_path):
    folders = [
        save_bank(ConceptBank.from_vectors({("a", 0): torch.full((3,), value)}), tmp_path / str(value))
        for value in (1.0, 2.0)
    ]
    own, other = (next(folder.glob("tensors-*")) for folder in folders)
    other.replace(own)
    with pytest.raises(DamagedFileError, match="or of another artefact"):
        load_bank(folders[0])


def test_a_kill_of_a_save_at_any_moment_leaves_the_old_or_the_new(tmp_path):
    one, other = (ConceptBank.from_vectors({("a", 0): torch.full((3,), value)}) for value in (1.0, 2.0))
    folder, left = tmp_path / "bank", []
    save_bank(one, folder)
    for moment in range(1, moments(lambda: save_bank(other, folder)) + 1):
        save_bank(one, folder)
        with dying_at(moment):
            save_bank(other, folder)
        left.append(float(load_bank(folder).token.vectors[0, 0, 0]))
    assert sorted(left) == left
    assert set(left) == {1.0, 2.0}
    save_bank(other, folder)
    assert len([*folder.iterdir()]) == 2


def test_a_first_save_that_was_killed_can_be_made_again(tmp_path):
    bank = ConceptBank.from_vectors({("a", 0): torch.ones(3)})
    for moment in range(1, moments(lambda: save_bank(bank, tmp_path / "all")) + 1):
        folder = tmp_path / str(moment)
        with dying_at(moment):
            save_bank(bank, folder)
        save_bank(bank, folder)
        assert torch.equal(load_bank(folder).token.vectors, bank.token.vectors)
        assert len([*folder.iterdir()]) == 2


def test_a_folder_that_is_being_written_is_refused(tmp_path):
    bank = ConceptBank.from_vectors({("a", 0): torch.ones(3)})
    found = []

    def save():
        try:
            save_bank(bank, tmp_path / "bank")
        except BlockingIOError as error:
            found.append(str(error))

    with output_folder(tmp_path / "bank"):
        thread = threading.Thread(target=save)
        thread.start()
        thread.join()
    assert "bank is being written by another run" in found[0]


def test_a_file_is_no_folder(tmp_path):
    bank = ConceptBank.from_vectors({("a", 0): torch.ones(3)})
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="notes is a file, an artefact is a folder: name"):
        save_bank(bank, tmp_path / "notes")
    with pytest.raises(ValueError, match="notes is a file, a saved ConceptBank is a folder"):
        load_bank(tmp_path / "notes")


def test_vectors_may_be_numpy():
    given = np.arange(1.0, 4.0)
    bank = ConceptBank.from_vectors(
        {("a", np.int64(2)): given[::-1]}, normaliser={2: (given, np.float32(2.0))}
    )
    assert bank.layers == (2,)
    assert bank.token.vectors.tolist() == [[[3.0, 2.0, 1.0]]]
    assert bank.token.mean.tolist() == [[1.0, 2.0, 3.0]]
    assert bank.token.scale.tolist() == [2.0]


@pytest.mark.parametrize(
    ("vectors", "normaliser", "message"),
    [
        ({"a": torch.ones(3)}, None, r"key 'a' of vectors is not \(concept, layer\)"),
        ({(0, "a"): torch.ones(3)}, None, r"key \(0, 'a'\) of vectors is not \(concept, layer\)"),
        ([torch.ones(3)], None, "vectors is a list, not a mapping"),
        ({("a", 0): torch.zeros(3)}, None, r"vector of \('a', 0\) is zero, it has no direction"),
        ({("a", 0): ["x"]}, None, r"vector of \('a', 0\) is a list .*give numbers"),
        ({("a", 0): torch.ones(3)}, (0, 1), r"normaliser is a tuple, not a mapping: give \{layer"),
        ({("a", 0): torch.ones(3)}, {"0": (torch.ones(3), 1)}, "key '0' of normaliser is no layer"),
        ({("a", 0): torch.ones(3)}, {0: torch.ones(3)}, "normaliser of layer 0 is tensor"),
        ({("a", 0): torch.ones(3)}, {0: (torch.ones(2), 1)}, r"has shape \[2\] .*expected \[3\]"),
        ({("a", 0): torch.ones(3)}, {0: (torch.ones(3), 0)}, "scale at layer 0 is 0: give"),
    ],
)
def test_malformed_vectors_are_refused(vectors, normaliser, message):
    with pytest.raises(ValueError, match=message):
        ConceptBank.from_vectors(vectors, normaliser=normaliser)
