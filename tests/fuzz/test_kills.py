"""Processes that are killed while they write: what they leave is old or new, and can be continued."""

import itertools
import json
import os
import random
import shutil
import signal
import time
import warnings

import pytest
from detection_cases import make_case
from fake_host import FakeHost
from fuzzing import tries
from word_data import word_data

from sa_plugin.detection import Detector, calibrate
from sa_plugin.stages import CellConfig, DataPart, Plan, RunPart, reproduce, study
from sa_plugin.statistics import Resampling

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]
KINDS = {"kmeans": {"k": 6}, "kmeans_separator": {"k": 6}}
CELL = CellConfig("toy", "A toy", data=DataPart("supersense"), run=RunPart(draws=20), kinds=KINDS)
PLAN = Plan(("prototype", "separator"), stages=("trace",), resampling=Resampling(20))


def begin(work):
    """A process of its own that does some work; its id."""
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        warnings.simplefilter("ignore")
        work()
    finally:
        os._exit(0)


def kill(process):
    """Kill a process; whether it was still at work."""
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def until(holds, most=60):
    """Wait for something, so many seconds at the most."""
    begun = time.monotonic()
    while not holds() and time.monotonic() - begun < most:
        time.sleep(0.002)


def saved(n, folder):
    case = make_case(n=n)
    return calibrate(None, case.data, case.bank, scores=case.table, deltas=(0.1, 0.5)).save_pretrained(
        folder / str(n)
    )


def test_no_moment_of_a_save_over_a_save_is_a_mixture(tmp_path):
    """What lies there while the process stands still is what a kill leaves; every tenth is one."""
    rng, met, target = random.Random(0), {}, tmp_path / "target"
    found = [Detector.from_pretrained(saved(n, tmp_path)) for n in (40, 60)]
    known = {
        (tmp_path / str(n) / "artefact.json").read_bytes(): one
        for n, one in zip((40, 60), found, strict=True)
    }
    shutil.copytree(tmp_path / "40", target)

    def save_for_ever():
        for k in itertools.count():
            found[k % 2].save_pretrained(target)

    process = begin(save_for_ever)
    for k in itertools.count():
        # A busy machine may give the process no time to come to its second save: go on until both were met.
        if k >= tries(60, 300) and (len(met) == 2 or k >= 6000):
            break
        time.sleep(rng.random() * 0.02)
        os.kill(process, signal.SIGSTOP)
        time.sleep(0.001)
        content = (target / "artefact.json").read_bytes()
        if k % 10 == 9:
            assert kill(process)
        assert Detector.from_pretrained(target).to_dict() == known[content].to_dict()
        met[content] = met.get(content, 0) + 1
        if k % 10 == 9:
            process = begin(save_for_ever)
        else:
            os.kill(process, signal.SIGCONT)
    kill(process)
    print([*met.values()])
    assert len(met) == 2
    found[0].save_pretrained(target)
    assert len([*target.iterdir()]) == 2


def cell(folder):
    return reproduce(CELL, folder, host=FakeHost(), data=word_data(60, documents=20), figures=False).record


def whole_study(folder):
    found = study(FakeHost(), word_data(60, documents=20), PLAN, folder=folder)
    found.save(folder)
    return found.record


@pytest.mark.slow
@pytest.mark.parametrize("work", [cell, whole_study])
def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path, work):
    rng, kills, n = random.Random(0), 0, tries(2, 20)
    begun = time.monotonic()
    expected = without_times(work(tmp_path / "whole"))
    lasted = time.monotonic() - begun
    for k in range(n):
        # A few kills a folder: each goes on where the one before was stopped.
        folder = tmp_path / str(k // 4)
        process = begin(lambda: work(folder))  # noqa: B023
        # The first when something is written; the others at any moment of as long as a run took.
        if k:
            time.sleep(rng.random() * lasted)
        else:
            until(lambda: any(folder.rglob("*")))  # noqa: B023
        kills += kill(process)
    for folder in {tmp_path / str(k // 4) for k in range(n)}:
        assert without_times(work(folder)) == expected
        name = "cell.json" if work is cell else "results.json"
        assert without_times(json.loads((folder / name).read_text())) == expected
    print(kills)
    assert kills


def without_times(record):
    about = {name: value for name, value in record["provenance"].items() if name != "timings"}
    return json.loads(json.dumps({**record, "provenance": about}))
