"""Folders of output are refused before anything is computed, and a full disk loses nothing."""

import errno
import threading

import pytest
from fake_host import FakeHost
from word_data import word_data

from sa_plugin import _files
from sa_plugin._files import output_folder
from sa_plugin.cli import main
from sa_plugin.stages import CellConfig, DataPart, NotKeptWarning, Plan, RunPart, reproduce, run_plan, study
from sa_plugin.statistics import Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PLAN = Plan(("prototype",), stages=("trace",), resampling=Resampling(10))
CELL = CellConfig("toy", "A toy", data=DataPart("supersense"), run=RunPart(draws=10))


@pytest.fixture(scope="module")
def data():
    return word_data(40, documents=15)


ASKED = {
    "study": lambda host, data, out: study(host, data, PLAN, folder=out),
    "run": lambda host, data, out: run_plan(PLAN, host, data, out),
    "reproduce": lambda host, data, out: reproduce(CELL, out, host=host, data=data),
}


def elsewhere(work):
    """What another thread that does some work ends with."""
    found = []

    def done():
        try:
            work()
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=done)
    thread.start()
    thread.join()
    return found


@pytest.mark.parametrize("name", ASKED)
def test_a_second_run_and_a_file_are_refused_before_anything_is_computed(name, data, tmp_path):
    host, out = FakeHost(), tmp_path / "out"
    with output_folder(out):
        (refused,) = elsewhere(lambda: ASKED[name](host, data, out))
    assert isinstance(refused, BlockingIOError)
    assert "out is being written by another run" in str(refused)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is a file"):
        ASKED[name](host, data, tmp_path / "file" / "out")
    if name != "study":
        (out / "report.html").mkdir()
        with pytest.raises(IsADirectoryError, match=r"report.html is a folder, expected a file"):
            ASKED[name](host, data, out)
    assert host.passes == 0


@pytest.mark.parametrize(
    "command", [["demo"], ["run", "--data", "supersense"], ["reproduce", "minilm_supersense"]]
)
def test_commands_refuse_the_folder_before_the_model_is_looked_for(command, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    code = main([*command, "--model", "no such model", "--out", str(tmp_path / "file")])
    assert code == 2
    assert "file is a file, and" in capsys.readouterr().err


class Filling:
    """`os` on a disk on which some names no longer fit."""

    def __init__(self, real, ending):
        self.real, self.ending = real, ending

    def __getattr__(self, name):
        return self.replaced if name == "replace" else getattr(self.real, name)

    def replaced(self, source, target):
        if str(target).endswith(self.ending):
            raise OSError(errno.ENOSPC, "No space left on device")
        self.real.replace(source, target)


def test_a_disk_that_fills_up_costs_no_computed_number(data, tmp_path, monkeypatch):
    whole = run_plan(PLAN, FakeHost(), data, tmp_path / "whole")
    monkeypatch.setattr(_files, "os", Filling(_files.os, ("results.json", ".npz")))
    with (
        pytest.warns(NotKeptWarning, match=r"scores prototype is not kept.*npz was not written .*free some"),
        pytest.raises(OSError, match=r"results.json was not written") as raised,
    ):
        run_plan(PLAN, FakeHost(), data, tmp_path / "out", keep=True)
    assert raised.value.study.record["kinds"] == whole.record["kinds"]
    monkeypatch.undo()
    raised.value.study.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "results.json").exists()
