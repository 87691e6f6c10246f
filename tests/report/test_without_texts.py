"""What is written without texts holds no word of a sample: hits, results, records and reports."""

import json

import numpy as np
import pytest
from fake_host import FakeHost

from sa_plugin.attribution import Attribution
from sa_plugin.cli import main
from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData, Splits
from sa_plugin.detection import Localisation, SuperActivators, calibrate
from sa_plugin.heads import TokenLedger
from sa_plugin.report import read_results, write_report
from sa_plugin.scores import PromptAnswers
from sa_plugin.stages import CellConfig, Plan, RunPart, reproduce, study
from sa_plugin.statistics import Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


WORDS = [f"qx{k}zj" for k in range(12)]


@pytest.fixture(scope="module")
def data():
    """Words that stand in no page of ours; the first three are animals, the next two food."""
    rng = np.random.default_rng(0)
    rows = [list(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(60)]
    named = dict(zip(WORDS, ["animal"] * 3 + ["food"] * 2, strict=False))
    labels = [[named.get(word) for word in row] for row in rows]
    documents = [f"d{k % 20}" for k in range(60)]
    return ConceptData.from_words(rows, labels, splits=Splits(seed=1), documents=documents)


def quoted(path):
    # Words as JSON and HTML write them whole: between anything that is no letter.
    text = "".join(c if c.isalnum() else " " for c in path.read_text(encoding="utf-8"))
    return set(WORDS) & set(text.split())


def test_hits_and_localised_tokens(data, tmp_path):
    host = FakeHost()
    detector = calibrate(host, data, fit(host, data, "prototype"))
    asked = (detector.find, detector.localise, detector.detect)
    for k, found in enumerate(ask(data.test) for ask in asked):
        bare = found.save(tmp_path / f"{k}.json", texts=False)
        assert quoted(bare) == set()
        assert json.loads(bare.read_text())["kind"] == type(found).__name__
        if found.text_keys:
            assert quoted(found.save(tmp_path / f"{k} whole.json"))
    assert len(json.loads((tmp_path / "0.json").read_text())["marks"]) == len(detector.find(data.test))
    # An artefact knows samples by their ids and digests.
    assert quoted(detector.save_pretrained(tmp_path / "saved") / "artefact.json") == set()


def test_a_study(data, tmp_path):
    plan = Plan(("prototype",), stages=("trace", "examples"), resampling=Resampling(10))
    found = study(FakeHost(), data, plan)
    found.save(tmp_path / "whole")
    found.save(tmp_path / "bare", texts=False)
    for name in ("results.json", "report.html"):
        assert quoted(tmp_path / "whole" / name)
        assert quoted(tmp_path / "bare" / name) == set()
    whole = read_results(tmp_path / "whole" / "results.json")
    assert read_results(tmp_path / "bare" / "results.json")["kinds"] == whole["kinds"]
    assert quoted(write_report(whole, tmp_path / "again.html", texts=False)) == set()
    command = ["report", str(tmp_path / "whole" / "results.json"), "--out", str(tmp_path / "command.html")]
    assert main([*command, "--no-texts"]) == 0
    assert quoted(tmp_path / "command.html") == set()


def test_a_folder_holds_none_whatever_an_earlier_run_left(data, tmp_path):
    """Stages, cell and figures too; what was kept and does not quote is read again."""
    run = RunPart(stages=("detection", "trace", "examples", "explanation"), draws=10)
    cell = CellConfig("toy", "A toy", run=run, kinds={"prototype": {}})

    def files(**options):
        reproduce(cell, tmp_path, host=FakeHost(), data=data, **options)
        return [path for path in tmp_path.rglob("*") if path.is_file()]

    whole = {path.name: quoted(path) for path in files() if path.suffix in (".json", ".html")}
    assert sum(map(bool, whole.values())) >= 4
    bare = files(texts=False)
    words = [word.encode() for word in WORDS]
    assert not [path for path in bare if any(word in path.read_bytes() for word in words)]
    kept = {path.name for path in bare}
    assert {name for name in whole if name not in kept} == {n for n in whole if n.startswith("examples-")}
    held = json.loads((tmp_path / "stages" / "stages.json").read_text())["files"]
    assert all(":" not in note for one in held.values() for note in one["warnings"])


def test_what_holds_texts_says_where_they_stand():
    for kind in (SuperActivators, Localisation, TokenLedger, Attribution, PromptAnswers):
        assert kind.text_keys, kind
