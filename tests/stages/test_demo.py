"""What the commands do before any model runs: reading the user's file, choosing settings."""

import json
import re

import pytest
from fake_results import small

from sa_plugin.cli import main
from sa_plugin.stages import demo_plan


def test_demo_plan():
    assert demo_plan(30, "default", 0).kinds["separator"] == tuple(range(1, 29, 3))
    assert demo_plan(6, "default", 0).kinds["separator"] == tuple(range(6))
    assert demo_plan(6, "small", 0).kinds["separator"] == (1, 3, 5)
    assert demo_plan(6, "small", 0).kinds["kmeans"] == (5,)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "nowhere.json"], "nowhere.json does not exist: give the results.json of a run."),
        (["check", "/nowhere"], "holds no config.json"),
        (["run", "--model", "/nowhere", "--data", "x.jsonl"], "x.jsonl does not exist: give a JSONL file"),
    ],
)
def test_a_wrong_path_is_one_line(words, said, capsys):
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


def test_what_tokens_are_taken_for_reaches_the_file(tmp_path, capsys):
    path = tmp_path / "words.csv"
    path.write_text("sample,word,label\n" + "".join(f"{k},cat,animal\n{k},sat,\n" for k in range(6)))
    assert main(["run", "--model", "/nowhere", "--data", str(path), "--token-labels", "text"]) == 2
    assert "one word a row, which labels its tokens: leave token_labels out" in capsys.readouterr().err


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


def test_columns_of_a_file_reach_it_and_a_fix_is_said_as_the_command_has_it(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    path.write_text("review,mood\n" + "".join(f"a day {k},glad\na night {k},\n" for k in range(6)))
    run = ["run", "--model", "/nowhere", "--data", str(path)]
    assert main(run) == 2
    assert "columns={'text': 'review', 'label': ...}" in (said := capsys.readouterr().err)
    assert said.rstrip().endswith("Here: --column ROLE=NAME, once for each.")
    assert main([*run, "--column", "text=review", "--column", "label=moods"]) == 2
    assert "column of label 'moods' is unknown: did you mean 'mood'" in capsys.readouterr().err
    assert main([*run, "--column", "text=review", "--column", "label=mood"]) == 2
    assert "/nowhere holds no config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["demo", "run", "reproduce", "fit", "advise", "promise", "scan", "merge", "check", "report"]
)
def test_help_says_what_every_option_is_and_where_results_go(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    options = re.split(r"\n  (?=\S)", capsys.readouterr().out.split("options:")[1])[1:]
    for option in options:
        assert re.search(r"\S(  +|\n +)\S", option), f"no word on {option!r}"
        if option.startswith("--out"):
            assert "by default" in " ".join(option.split())
