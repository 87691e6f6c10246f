"""Artefacts, mutated: damage is refused by name, and nothing is taken that gives other results.

A mutation that is sealed again is a forgery, which no digest stops: of these only an error from deep
inside is a fault. Artefacts of format 1 have no digest and say so when they are loaded.
"""

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from detection_cases import make_case
from fuzzing import Tally, mutated_bytes, mutated_json, mutated_tensors, tries
from safetensors.torch import load_file, save

from sa_plugin._files import DamagedFileError, sealed
from sa_plugin.detection import Detector, calibrate

NAMED = (DamagedFileError, ValueError, FileNotFoundError)
OLD = Path(__file__).parents[1] / "golden" / "artefact_1"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    case = make_case(n=40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = calibrate(None, case.data, case.bank, scores=case.table, deltas=(0.1, 0.5))
    return detector.save_pretrained(tmp_path_factory.mktemp("whole") / "detector")


def content(detector):
    """All that a loaded detector decides by, as bytes."""
    parts = [json.dumps(detector.to_dict(), sort_keys=True), str(detector), repr(detector.bank.to_dict())]
    for found in detector.methods.values():
        for one in found:
            arrays = (one.thresholds, one.f1, one.unit, one.layer, one.delta)
            parts.append(f"{one.method} {one.deltas} {one.candidates} {[a.tobytes().hex() for a in arrays]}")
    bank = detector.bank
    sets = [one for one in (bank.token, bank.permuted, bank.pooled, bank.cls) if one is not None]
    parts += [part.numpy().tobytes().hex() for one in sets for part in (one.vectors, one.mean, one.scale)]
    parts += [
        repr(getattr(detector.cuts, name).tolist()) for name in ("midpoint", "located", "raw", "n_tokens")
    ]
    parts += [
        repr(sorted(part)) for part in (detector.seen.train, detector.seen.cal, detector.seen.cal_texts)
    ]
    return hashlib.sha256(
        "\n".join([*parts, repr(detector.missing), str(detector.seed)]).encode()
    ).hexdigest()


def outcome(folder, whole):
    try:
        found = content(Detector.from_pretrained(folder))
    except (ValueError, OSError) as error:
        named = folder.name in str(error) and type(error) in NAMED
        return ("refused" if named else "unnamed"), f"{type(error).__name__}: {error}"
    except Exception as error:
        return "unnamed", f"{type(error).__name__}: {error}"
    return ("same" if found == whole else "other"), ""


def copied(folder, tmp_path):
    target = tmp_path / "artefact"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    return target


def tensors_of(folder):
    return next(folder.glob("tensors*.safetensors"))


def mutate(rng, folder, *, resealed=False):
    """Change an artefact in place: the bytes of a file, its JSON, or its tensors."""
    record, tensors = folder / "artefact.json", tensors_of(folder)
    match int(rng.integers(4)):
        case 0:
            path = record if rng.integers(2) else tensors
            path.write_bytes(mutated_bytes(rng, path.read_bytes()))
        case 1 | 2:
            known = json.loads(record.read_bytes())
            found = mutated_json(rng, known, ("digest", "format", "what", "tensors") if resealed else ())
            reseal(record, found, resealed)
        case _:
            found = save(mutated_tensors(rng, load_file(tensors)))
            tensors.write_bytes(found)
            if resealed:
                known = json.loads(record.read_bytes())
                digest = hashlib.sha256(found).hexdigest()
                known["tensors"] = {"file": f"tensors-{digest[:16]}.safetensors", "sha256": digest}
                tensors.rename(folder / known["tensors"]["file"])
                reseal(record, known, True)


def reseal(path, record, again):
    if again:
        record = sealed({key: value for key, value in record.items() if key != "digest"})
    path.write_text(json.dumps(record))


def test_mutated_artefacts(folder, tmp_path):
    rng, tally = np.random.default_rng(0), Tally()
    whole = content(Detector.from_pretrained(folder))
    for k in range(tries(300, 3000)):
        target = copied(folder, tmp_path)
        mutate(rng, target)
        kind, about = outcome(target, whole)
        tally.add(kind, f"mutation {k}: {about}")
    tally.require("refused", "same")
    assert tally["refused"] > 0.7 * tally.total()


def test_parts_of_two_artefacts(folder, tmp_path):
    whole = content(Detector.from_pretrained(folder))
    for draws in (30, 60):
        case = make_case(n=draws)
        other = calibrate(None, case.data, case.bank, scores=case.table, deltas=(0.1, 0.5))
        other = other.save_pretrained(tmp_path / f"other {draws}")
        for part in ("tensors", "record"):
            target = copied(folder, tmp_path)
            if part == "tensors":
                shutil.copy(tensors_of(other), tensors_of(target))
            else:
                shutil.copy(other / "artefact.json", target / "artefact.json")
            assert outcome(target, whole)[0] == "refused"


def test_forged_artefacts_end_in_no_error_from_deep_inside(folder, tmp_path):
    rng, tally = np.random.default_rng(1), Tally()
    whole = content(Detector.from_pretrained(folder))
    for k in range(tries(200, 3000)):
        target = copied(folder, tmp_path)
        mutate(rng, target, resealed=True)
        kind, about = outcome(target, whole)
        tally.add(kind, f"mutation {k}: {about}")
    tally.require("refused", "same", "other")


def test_mutated_artefacts_of_format_1_end_in_no_error_from_deep_inside(tmp_path):
    rng, tally = np.random.default_rng(2), Tally()
    whole = content(Detector.from_pretrained(OLD))
    for k in range(tries(100, 3000)):
        target = copied(OLD, tmp_path)
        mutate(rng, target)
        kind, about = outcome(target, whole)
        tally.add(kind, f"mutation {k}: {about}")
    tally.require("refused", "same", "other")
