"""What the commands do before any model runs: reading the user's file, choosing settings."""

import json

import pytest

from sa_plugin.cli import main
from sa_transformer_lens.demo import demo_settings, read_jsonl


def lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def rows(n=12):
    return [
        {"text": f"{k:02} a cat sat", "labels": [[3, 4, "x"]] if k % 2 else [], "document": f"d{k}"}
        for k in range(n)
    ]


def test_a_file_becomes_data(tmp_path):
    data = read_jsonl(lines(tmp_path / "a.jsonl", rows()))
    assert [s.document for s in data.samples] == [f"d{k}" for k in range(12)]
    assert data.concepts == ("x",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"document": None}, r"line 3: 'document' is missing, other lines have it"),
        ({"lables": []}, r"line 3: key 'lables' is unknown; known: text"),
        ({"labels": None}, r"line 3: expected an object with 'text' and 'labels'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, change, message):
    changed = rows()
    changed[2] = {k: v for k, v in {**changed[2], **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        read_jsonl(lines(tmp_path / "a.jsonl", changed))


def test_demo_settings():
    assert demo_settings(30, "default", 0).layers == tuple(range(1, 29, 3))
    assert demo_settings(6, "default", 0).layers == tuple(range(6))
    assert demo_settings(6, "small", 0).layers == (1, 3, 5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "nowhere.json"], "nowhere.json does not exist: run `sa-plugin demo` first."),
        (["check", "/nowhere"], "holds no config.json"),
        (["run", "--model", "/nowhere", "--data", "x"], "holds no config.json"),
    ],
)
def test_a_wrong_path_is_one_line(words, said, capsys):
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
