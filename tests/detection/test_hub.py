"""Artefacts on the hub: what is pushed is read back at its commit, with a card; no network.

Pushing goes to a stand-in of `HfApi` that keeps commits as huggingface_hub's own cache does, and reading is
huggingface_hub's own, offline.
"""

import hashlib
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from detection_cases import make_case

from sa_plugin.concepts import load_bank, push_bank
from sa_plugin.detection import Detector, calibrate
from sa_plugin.statistics import Resampling

NAME = "someone/animals"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder as hub."""
    cache = tmp_path / "hub"
    calls = []

    class Api:
        def create_repo(self, repo_id, *, private, exist_ok):
            calls.append(("repo", repo_id, private))

        def create_branch(self, repo_id, *, branch, exist_ok):
            calls.append(("branch", branch))

        def upload_folder(
            self, *, repo_id, folder_path, revision, commit_message, allow_patterns, delete_patterns
        ):
            place = cache / f"models--{repo_id.replace('/', '--')}"
            ref = place / "refs" / (revision or "main")
            ref.parent.mkdir(parents=True, exist_ok=True)
            files = {}
            if ref.exists():
                before = place / "snapshots" / ref.read_text()
                kept = [
                    one for one in before.iterdir() if not any(fnmatch(one.name, p) for p in delete_patterns)
                ]
                files |= {one.name: one for one in kept}
            new = [
                one
                for one in Path(folder_path).iterdir()
                if any(fnmatch(one.name, p) for p in allow_patterns)
            ]
            files |= {one.name: one for one in new}
            content = b"".join(name.encode() + one.read_bytes() for name, one in sorted(files.items()))
            commit = hashlib.sha1(content).hexdigest()
            shutil.rmtree(place / "snapshots" / commit, ignore_errors=True)
            (place / "snapshots" / commit).mkdir(parents=True)
            for name, one in files.items():
                shutil.copy(one, place / "snapshots" / commit / name)
            ref.write_text(commit)
            calls.append(("commit", commit_message))
            return SimpleNamespace(oid=commit)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(cache=cache, calls=calls)


def detector_of(seed):
    case = make_case(seed, n=200, documents=80)
    return case, calibrate(None, case.data, case.bank, scores=case.table)


def files_at(hub, commit):
    return {
        one.name: one for one in (hub.cache / "models--someone--animals" / "snapshots" / commit).iterdir()
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_detector_is_read_back_at_the_commit_that_push_returned(hub):
    case, first = detector_of(0)
    evaluation = first.evaluate(case.data.test, scores=case.table, resampling=Resampling(draws=40))
    one = first.push_to_hub(NAME, evaluation=evaluation, message="first")
    two = detector_of(1)[1].push_to_hub(NAME)
    assert one != two
    assert hub.calls == [
        ("repo", NAME, True),
        ("commit", "first"),
        ("repo", NAME, True),
        ("commit", "Artefact of sa_plugin"),
    ]
    pinned, latest = Detector.from_pretrained(NAME, revision=one), Detector.from_pretrained(NAME)
    assert pinned.threshold == first.threshold
    assert str(pinned) == str(first)
    assert latest.threshold != first.threshold
    # A push takes the tensors that nothing names any more away.
    assert [len(files_at(hub, commit)) for commit in (one, two)] == [3, 3]
    branched = first.push_to_hub(NAME, branch="v1", private=False)
    assert ("branch", "v1") in hub.calls
    assert hub.calls[-3] == ("repo", NAME, False)
    assert str(Detector.from_pretrained(NAME, revision="v1")) == str(first)
    assert branched
    # A folder here comes first, whatever the hub has.
    first.save_pretrained("someone/animals")
    assert str(Detector.from_pretrained(NAME)) == str(first)
    with pytest.raises(ValueError, match="someone/animals is a folder and has no revision 'v1'"):
        Detector.from_pretrained(NAME, revision="v1")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_card_is_written_from_the_artefact(hub):
    case, detector = detector_of(0)
    origin = replace(detector.bank.origin, model="org/model", fingerprint="f" * 64, counts={"kept": 1234})
    detector = replace(detector, bank=replace(detector.bank, origin=origin))
    table = replace(case.table, bank=detector.bank)
    evaluation = detector.evaluate(case.data.test, scores=table, resampling=Resampling(draws=40))
    card = files_at(hub, detector.push_to_hub(NAME, evaluation=evaluation))["README.md"].read_text()
    assert card.startswith("---\nlibrary_name: sa_plugin\nbase_model: org/model\ntags:\n- interpretability\n")
    assert "animal, food, weather" in card
    header = next(line for line in card.splitlines() if line.startswith("| method |"))
    row = next(line for line in card.splitlines() if line.startswith("| SuperActivators |"))
    low, high = evaluation.weighted["f1"].sel(method=evaluation.methods[0]).bounds
    assert f"\\[{low:.3f}, {high:.3f}\\]" in row
    assert header.count("|") == row.count("|")
    assert "Calibration F1 is optimistic" in card
    assert "of these weights and this tokenizer: another model is refused" in card
    assert "from_pretrained('someone/animals', host=host, revision=...)" in card
    assert f"- weights: {'f' * 64}" in card
    assert "- train tokens: 1,234 kept" in card
    assert "- versions: " in card
    assert "torch 2." in card
    # No text of the data: the synthetic words are w1_2 and so on.
    assert case.data.samples[0].text.split()[0] not in card
    only = replace(case.bank.only(range(3), [0]), concepts=("animal",))
    other = replace(detector, bank=only, concepts=("animal",))
    with pytest.raises(ValueError, match=r"evaluation is of animal, food, weather, the detector of animal\W"):
        other.push_to_hub(NAME, evaluation=evaluation)


def test_a_bank_goes_and_comes_back_and_its_names_are_no_markdown(hub):
    bank = make_case().bank
    named = replace(bank, concepts=("a|b", "<b>", "x_y"), units=("a|b", "<b>", "x_y"))
    commit = push_bank(named, NAME)
    again = load_bank(NAME, revision=commit)
    assert again.units == named.units
    assert again.token.scores_like(named.token)
    card = files_at(hub, commit)["README.md"].read_text()
    assert r"a\|b, \<b\>, x\_y" in card
    assert "load_bank('someone/animals', host=host, revision=...)" in card


def test_what_is_not_there_is_refused_and_a_mistyped_folder_asks_nobody(hub, tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=r"'someone/none' is no folder here, and the hub gave no artefact"
    ):
        load_bank("someone/none")
    with pytest.raises(FileNotFoundError, match="at 'v9'"):
        load_bank("someone/none", revision="v9")
    with pytest.raises(ValueError, match=r"repo_id is 'animals': give 'user/name'"):
        push_bank(make_case().bank, "animals")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    (tmp_path / "runs").mkdir()
    for place in ("runs/detecter", "runs/a/b", Path("someone/none"), "./x/y"):
        with pytest.raises(FileNotFoundError, match=r"no|No"):
            load_bank(place)
