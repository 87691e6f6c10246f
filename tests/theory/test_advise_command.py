"""`sa-plugin advise`, on a folder of a tiny model."""

import json

import pytest
import tiny
import torch

import sa_plugin as sa
from sa_plugin.cli import main
from sa_plugin.concepts import ConceptBank
from sa_plugin.data import Splits
from sa_plugin.detection import calibrate
from sa_plugin.host import open_folder
from sa_plugin.loaders import labelled_corpus
from sa_plugin.scores import score

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
COLUMNS = {"text": "text", "spans": "spans"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a detector and forty labelled lines, as files."""
    out = tmp_path_factory.mktemp("files")
    tiny.hf_model("gpt2").save_pretrained(out / "model")
    tiny.tokenizer("gpt2").save_pretrained(out / "model")
    texts = [f"The {'cat' if k % 2 else 'dog'} sat on mat {k} at night." for k in range(40)]
    rows = [{"text": one, "spans": [[4, 7, "cat"]] if "cat" in one else []} for one in texts]
    (out / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    host = open_folder(out / "model", progress=False)
    data = labelled_corpus(out / "corpus.jsonl", columns=COLUMNS)
    bank = ConceptBank.from_vectors({("cat", 1): torch.arange(1.0, tiny.D_MODEL + 1)})
    calibrate(host, data, bank, deltas=(0.2, 0.5)).save_pretrained(out / "detector")
    return out


def command(folder, out, *more):
    given = ["advise", folder / "detector", folder / "corpus.jsonl", "--model", folder / "model"]
    columns = [word for role in COLUMNS for word in ("--column", f"{role}={COLUMNS[role]}")]
    return main([str(one) for one in (*given, "--out", out, *columns, *more)])


def test_advice_from_the_shell_is_that_of_python(folder, tmp_path, capsys):
    assert command(folder, tmp_path, "--tokens", "90", "--in-concept", "2", "--seed", "3") == 0
    said = capsys.readouterr().out
    host = open_folder(folder / "model", progress=False)
    data = labelled_corpus(folder / "corpus.jsonl", splits=Splits(seed=3), columns=COLUMNS)
    bank = sa.Detector.from_pretrained(folder / "detector").bank
    own = sa.advise(score(host, data, bank), tokens=90, in_concept=2, resampling=sa.Resampling(seed=3))
    assert json.loads((tmp_path / "advice.json").read_text()) == json.loads(json.dumps(own.to_dict()))
    assert own.headline() in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--tokens", "0"), "tokens is 0: a context has at least one"),
        (("--tokens", "many"), "tokens is 'many', not a whole number"),
        (("--tokens", "8", "--in-concept", "9"), "in_concept is 9: a positive context of 8 tokens"),
        (("--tokens", "90", "--runs", "0"), "runs is 0"),
        (("--tokens", "90", "--concepts", "cats"), "did you mean 'cat'"),
        (("--tokens", "90", "--layer", "7"), "layer 7"),
        (("--tokens", "90", "--column", "spans=spams"), "did you mean 'spans'"),
    ],
)
def test_what_cannot_be_advised_is_refused_before_a_model_is_loaded(
    folder, tmp_path, capsys, monkeypatch, more, words
):
    monkeypatch.setattr(
        "sa_plugin.host.folders.open_folder", lambda *_, **__: pytest.fail("a model is opened")
    )
    try:
        status = command(folder, tmp_path / "out", *more)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
