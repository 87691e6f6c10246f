"""`sa-plugin scan` and `merge`, on a folder of a tiny model."""

import json

import pandas
import pytest
import tiny
import torch

from sa_plugin.cli import main
from sa_plugin.concepts import ConceptBank
from sa_plugin.data import ConceptData, Splits
from sa_plugin.detection import Detector, calibrate
from sa_plugin.host import open_folder
from sa_plugin.statistics import Promise

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a detector and a corpus of twelve lines, as files."""
    out = tmp_path_factory.mktemp("files")
    tiny.hf_model("gpt2").save_pretrained(out / "model")
    tiny.tokenizer("gpt2").save_pretrained(out / "model")
    host = open_folder(out / "model", progress=False)
    texts = [f"The {'cat' if k % 2 else 'dog'} sat on mat {k} at night." for k in range(40)]
    data = ConceptData.from_texts(
        texts, ["cat" if "cat" in one else None for one in texts], token_labels="text", splits=Splits(seed=1)
    )
    bank = ConceptBank.from_vectors({("cat", 1): torch.arange(1.0, tiny.D_MODEL + 1)})
    calibrate(host, data, bank, deltas=(0.2, 0.5)).save_pretrained(out / "detector")
    rows = [{"body": text, "name": f"r{k}"} for k, text in enumerate(texts[:12])]
    (out / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def command(folder, out, *more):
    given = ["scan", folder / "detector", folder / "corpus.jsonl", "--model", folder / "model", "--out", out]
    columns = ["--column", "text=body", "--column", "id=name", "--block-size", "5"]
    return main([str(one) for one in (*given, *columns, *more)])


def test_shards_from_the_shell_are_the_whole(folder, tmp_path, capsys):
    assert command(folder, tmp_path / "whole", "--window", "9", "--overlap", "2") == 0
    said = capsys.readouterr().out
    assert "12 of 12 documents scanned, 0 failed, 12 cut into windows" in said
    for i in (1, 0):
        assert command(folder, tmp_path / "two", "--shard", f"{i}/2", "--window", "9", "--overlap", "2") == 0
    assert "when all are: sa-plugin merge" in capsys.readouterr().out
    assert main(["merge", str(tmp_path / "two"), "--against", str(tmp_path / "whole")]) == 0
    assert "12 of 12 documents" in capsys.readouterr().out
    for name in ("hits.parquet", "samples.parquet", "tail.keys", "manifest.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert pandas.read_parquet(tmp_path / "two" / "samples.parquet")["sample"].tolist() == [
        f"r{k}" for k in range(12)
    ]
    page = (tmp_path / "two" / "summary.html").read_text()
    assert "<svg" in page
    assert "<mark>" in page


def fitting(folder, out, *more):
    given = ["fit", folder / "labelled.jsonl", "--model", folder / "model", "--out", out, "--layers", "1"]
    columns = [
        "--column",
        "text=body",
        "--column",
        "id=name",
        "--column",
        "spans=spans",
        "--block-size",
        "16",
    ]
    return main([str(one) for one in (*given, *columns, *more)])


@pytest.fixture(scope="module")
def labelled(folder):
    """The folder, with a labelled corpus of eighty lines in five blocks."""
    rows = []
    for k in range(80):
        word = ("cat", "dog", "bird", "tree")[k % 4]
        spans = [[4, 4 + len(word), "pet"]] if k % 4 < 2 else []
        rows.append({"body": f"The {word} sat on mat {k} at night.", "name": f"r{k}", "spans": spans})
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def files_of(folder):
    return {one.name: one.read_bytes() for one in folder.iterdir() if one.is_file()}


def test_a_detector_of_a_labelled_corpus_is_the_same_in_steps_and_shards(labelled, tmp_path, capsys):
    assert fitting(labelled, tmp_path / "whole") == 0
    assert "SuperActivators" in capsys.readouterr().out
    for step in ("train", "bank", "scores", "detector"):
        for i in (1, 0) if step in ("train", "scores") else (None,):
            share = [] if i is None else ["--shard", f"{i}/2"]
            assert fitting(labelled, tmp_path / "steps", "--step", step, *share) == 0
    assert "--step scores, share 0 of 2, is done" in capsys.readouterr().out
    for name in ("train", "bank", "scores", "detector"):
        assert files_of(tmp_path / "whole" / name)
        assert files_of(tmp_path / "whole" / name) == files_of(tmp_path / "steps" / name)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--kind", "sparator"), "kind 'sparator' is unknown: did you mean 'separator'"),
        (("--shard", "0/2"), "--shard 0/2 is a share of --step train or of --step scores: name one"),
        (("--step", "scores"), "bank does not exist: --step train and --step bank come first"),
        (("--column", "spans=span"), "column of spans 'span' is unknown: did you mean 'spans'"),
        (("--device", "cuda"), "sees no GPU here; leave --device out"),
    ],
)
def test_what_cannot_be_fitted_is_refused(labelled, tmp_path, capsys, more, said):
    assert fitting(labelled, tmp_path, *more) == 2
    assert said in capsys.readouterr().err


REFUSED = {
    "corpus": ("no.jsonl", "does not exist: give a file, a folder"),
    "detector": ("no_detector", "no_detector"),
    "--column": ("text=bdy", "column of text 'bdy' is unknown: did you mean 'body'"),
    "--shard": ("2/2", "shard 2 of 2 does not exist: I goes from 0 to 1"),
    "--window": ("3", "tokens is 3: give windows of 8 tokens or more"),
    "--device": ("cuda", "sees no GPU here; leave --device out"),
    "--out": ("/proc/nothing", "/proc/nothing was not written"),
}


@pytest.mark.parametrize("changed", REFUSED)
def test_what_needs_no_model_is_refused_before_one_is_loaded(folder, tmp_path, capsys, monkeypatch, changed):
    value, words = REFUSED[changed]
    if changed == "--device" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(
        "sa_plugin.host.folders.open_folder", lambda *_, **__: pytest.fail("a model is opened")
    )
    given = {"detector": folder / "detector", "corpus": folder / "corpus.jsonl", "--model": "none"}
    given |= {"--out": tmp_path / "out", "--column": "text=body", changed: value}
    named = [str(one) for name, pair in given.items() if name.startswith("--") for one in (name, pair)]
    try:
        status = main(["scan", str(given["detector"]), str(given["corpus"]), *named])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert words in capsys.readouterr().err


def test_a_folder_of_another_run_is_refused_before_a_model_is_loaded(folder, tmp_path, capsys, monkeypatch):
    assert command(folder, tmp_path, "--shard", "0/3") == 0
    monkeypatch.setattr(
        "sa_plugin.host.folders.open_folder", lambda *_, **__: pytest.fail("a model is opened")
    )
    for more, said in {
        ("--block-size", "4"): "corpus.block_size: 5 there, 4 here",
        ("--no-texts",): "texts: True there, False here",
    }.items():
        assert command(folder, tmp_path, *more) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"holds a run with other settings ({said}): name another folder" in told


def promise(folder, out, *more):
    given = ["promise", folder / "detector", folder / "calm.jsonl", "--model", folder / "model", "--out", out]
    return main([str(one) for one in (*given, "--column", "text=body", *more)])


def test_a_promise_from_the_shell_is_that_of_python_and_a_scan_has_its_p(folder, tmp_path, capsys):
    calm = [f"A dog lay by door {k} all day." for k in range(24)]
    (folder / "calm.jsonl").write_text("".join(json.dumps({"body": one}) + "\n" for one in calm))
    asked = ("--alpha", ".05", "--lengths", "1", "200")
    assert promise(folder, tmp_path / "careful", *asked) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Promise: a new document without the concept" in said
    careful = Detector.from_pretrained(tmp_path / "careful")
    host = open_folder(folder / "model", progress=False)
    wanted = Promise("document", 0.05, lengths=(1, 200))
    own = Detector.from_pretrained(folder / "detector", host=host).with_promise(wanted, calm)
    assert careful.promise == wanted
    assert careful.threshold == own.threshold
    given = ["scan", tmp_path / "careful", folder / "corpus.jsonl", "--model", folder / "model"]
    given += ["--out", tmp_path / "scan", "--column", "text=body"]
    assert main([str(one) for one in given]) == 0
    found = pandas.read_parquet(tmp_path / "scan" / "samples.parquet")
    assert found["p"].between(1 / 25, 1).all()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--alpha", ".05", "--confidence", ".95"), "24 documents, and it takes 59 to promise"),
        (("--alpha", ".01"), "24 documents, and it takes 99 to promise"),
        (("--kind", "tokens", "--alpha", ".001"), "and it takes 999 to promise"),
        (("--alpha", "5"), "alpha is 5: expected a number between 0 and 1"),
        (("--alpha", "nan"), "alpha is nan, not a finite number"),
        (("--kind", "sample", "--alpha", ".05", "--confidence", ".9"), "0.9 with kind 'sample'"),
        (("--alpha", ".05", "--lengths", "9"), "lengths is (9,): expected the shortest and the longest"),
        (("--alpha", ".05", "--column", "text=bdy"), "did you mean 'body'"),
    ],
)
def test_a_promise_that_cannot_be_made_is_refused_before_a_model_is_loaded(
    folder, tmp_path, capsys, monkeypatch, more, words
):
    calm = [{"body": f"A dog lay by door {k} all day."} for k in range(24)]
    (folder / "calm.jsonl").write_text("".join(json.dumps(one) + "\n" for one in calm))
    monkeypatch.setattr(
        "sa_plugin.host.folders.open_folder", lambda *_, **__: pytest.fail("a model is opened")
    )
    assert promise(folder, tmp_path / "careful", *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "careful").exists()


def test_a_guard_that_chose_or_cannot_be_read_is_refused(folder, tmp_path, capsys):
    used = [f"The {'cat' if k % 2 else 'dog'} sat on mat {k} at night." for k in range(40)]
    (folder / "calm.jsonl").write_text("".join(json.dumps({"body": one}) + "\n" for one in used))
    assert promise(folder, tmp_path / "careful", "--alpha", ".05") == 2
    assert "guard samples are of the train split" in capsys.readouterr().err
    (folder / "calm.jsonl").write_text("".join(json.dumps({"body": one}) + "\n" for one in [*used, ""]))
    assert promise(folder, tmp_path / "careful", "--alpha", ".05") == 2
    assert "1 of 41 documents of" in capsys.readouterr().err
