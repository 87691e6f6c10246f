"""What the commands do before any model runs: reading the user's file, choosing settings."""

import json

import pytest
from fake_results import small

from sa_plugin.cli import main
from sa_plugin.loaders import read_jsonl
from sa_transformer_lens.demo import demo_settings


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
        (["run", "--model", "/nowhere", "--data", "x"], "x does not exist: give a JSONL file"),
    ],
)
def test_a_wrong_path_is_one_line(words, said, capsys):
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


LABEL = r"two integers and a string"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"x": [0, 1]}}, r"line 3: 'labels' is \{'x': .*expected \[\[start, end, concept"),
        ({"labels": "x"}, r"line 3: 'labels' is 'x': expected"),
        ({"labels": [0, 4, "x"]}, rf"line 3: label 0 is not .*{LABEL}"),
        ({"labels": [[0, 4]]}, rf"line 3: label \[0, 4\] is not .*{LABEL}"),
        ({"labels": [[0, 4, "x", 1]]}, rf"line 3: label \[0, 4, 'x', 1\] is not .*{LABEL}"),
        ({"labels": [None]}, rf"line 3: label None is not .*{LABEL}"),
        ({"labels": [["0", 4, "x"]]}, rf"line 3: label .* is not .*{LABEL}"),
        ({"labels": [[0.0, 4, "x"]]}, rf"line 3: label .* is not .*{LABEL}"),
        ({"labels": [[0, True, "x"]]}, rf"line 3: label .* is not .*{LABEL}"),
        ({"labels": [[0, 4, None]]}, rf"line 3: label .* is not .*{LABEL}"),
        ({"labels": [[0, 99, "x"]]}, "line 3: label .* does not lie in a text of 12 characters"),
        ({"labels": [[4, 3, "x"]]}, "line 3: label .* does not lie in a text"),
        ({"labels": [[2, 3, "x"]]}, "line 3: label .* covers only white space"),
        ({"text": 7}, "line 3: 'text' is 7: expected a string that is not empty"),
        ({"text": "  "}, "line 3: 'text' is '  ': expected a string that is not empty"),
        ({"document": ["d"]}, r"line 3: 'document' is \['d'\]: expected a string or an integer"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(tmp_path, change, message):
    changed = rows()
    changed[2] = {**changed[2], **change}
    with pytest.raises(ValueError, match=message):
        read_jsonl(lines(tmp_path / "a.jsonl", changed))


@pytest.mark.parametrize("labels", ["null", '[[0, 4, "x"]'])
def test_null_and_broken_json_name_the_line(tmp_path, labels):
    path = lines(tmp_path / "a.jsonl", rows())
    path.write_text(path.read_text() + f'\n\n{{"text": "a cat", "labels": {labels}}}')
    with pytest.raises(ValueError, match=r"line 14: (no JSON in UTF-8 .*write one|'labels' is None)"):
        read_jsonl(path)


def test_undecodable_bytes_name_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a cat", "labels": []}\n{"text": "caf\xe9", "labels": []}\n')
    with pytest.raises(ValueError, match="line 2: no JSON in UTF-8"):
        read_jsonl(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="has no lines: write one object"):
        read_jsonl(path)


def test_a_line_separator_in_a_text_ends_no_line(tmp_path):
    changed = rows()
    changed[0]["text"] = "00 a\u2028cat"
    path = tmp_path / "a.jsonl"
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in changed)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [s.text for s in read_jsonl(path).samples] == [row["text"] for row in changed]


def test_the_report_command(tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text("{}")
    assert main(["report", str(path)]) == 2
    assert "has no 'schema', 'meta', 'kinds', 'provenance'" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert str(tmp_path) in printed
    assert printed.count("\n") == 1
    path.write_text(json.dumps(small()))
    out = tmp_path / "sub" / "dir" / "x.html"
    assert main(["report", str(path), "--out", str(out)]) == 0
    assert out.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--help"], "by their extreme high tail"),
        (["check", "--help"], "what `save_pretrained` wrote"),
        (["run", "--help"], '"labels": [[2, 5, "animal"]]'),
    ],
)
def test_help_says_what_to_give(words, said, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert said in " ".join(capsys.readouterr().out.split())
