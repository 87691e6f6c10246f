"""`sa-plugin scan` and `merge`, on a folder of a tiny model."""

import json

import pandas
import pytest
import tiny
import torch

from sa_plugin.cli import main
from sa_plugin.concepts import ConceptBank
from sa_plugin.data import ConceptData, Splits
from sa_plugin.detection import calibrate
from sa_plugin.host import open_folder

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
