"""Journals of a server and stages of a study, mutated: refused by name or made again, nothing else."""

import json
import shutil

import numpy as np
import pytest
import torch
from fake_host import FakeHost
from fuzzing import Tally, mutated_bytes, mutated_json, mutated_tensors, tries
from safetensors.torch import load_file, save
from word_data import word_data

from sa_nnsight.jobs import Journal
from sa_plugin._files import DamagedFileError
from sa_plugin.stages import Plan, study
from sa_plugin.statistics import Resampling

KEY, OTHER = "a" * 64, "b" * 64


def answer(value):
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[1, 5]]), torch.tensor([2, 3]), (9,), check_invariants=True
    )
    one = {("rows", -1, "keep"): torch.tensor([True, False]), ("rows", 0, 0): torch.full((2, 3, 4), value)}
    return [one, {("sums", 1, ("b", 3)): sparse.coalesce(), ("samples", 0, "best"): torch.ones(2)}]


def told(result):
    dense = [[(name, value.to_dense().tolist()) for name, value in one.items()] for one in result or ()]
    return sorted(map(repr, dense))


def test_mutated_journals(tmp_path):
    rng, tally = np.random.default_rng(0), Tally()
    journal = Journal(tmp_path)
    journal.store(OTHER, answer(2.0))
    journal.note(OTHER, "job 2")
    entry, note = (tmp_path / f"{KEY[:32]}.{ending}" for ending in ("safetensors", "json"))
    for k in range(tries(300, 3000)):
        journal.store(KEY, answer(1.0))
        journal.note(KEY, "job 1")
        match int(rng.integers(5)):
            case 0:
                entry.write_bytes(mutated_bytes(rng, entry.read_bytes()))
            case 1:
                note.write_bytes(mutated_bytes(rng, note.read_bytes()))
            case 2:
                entry.write_bytes(save(mutated_tensors(rng, load_file(entry))))
            case 3:
                note.write_text(json.dumps(mutated_json(rng, json.loads(note.read_text()))))
            case _:
                path = entry if rng.integers(2) else note
                shutil.copy(tmp_path / f"{OTHER[:32]}{path.suffix}", path)
        try:
            found = told(journal.result(KEY)), journal.job(KEY)
        except DamagedFileError as error:
            tally.add("refused" if str(tmp_path / KEY[:32]) in str(error) else "unnamed", f"{k}: {error}")
        except Exception as error:
            tally.add("unnamed", f"{k}: {type(error).__name__}: {error}")
        else:
            tally.add("same" if found == (told(answer(1.0)), "job 1") else "other", f"{k}: {found}")
    tally.require("refused", "same")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mutated_stages(tmp_path):
    rng, tally = np.random.default_rng(0), Tally()
    data, plan = (
        word_data(40, documents=15),
        Plan(("prototype",), stages=("trace",), resampling=Resampling(10)),
    )
    whole, target = tmp_path / "whole", tmp_path / "target"
    expected = without_times(study(FakeHost(), data, plan, folder=whole).record)
    for k in range(tries(5, 200)):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(whole, target)
        files = sorted(path for path in target.rglob("*") if path.is_file())
        path = files[int(rng.integers(len(files)))]
        if path.suffix == ".json" and rng.integers(2):
            path.write_text(json.dumps(mutated_json(rng, json.loads(path.read_text()))))
        else:
            path.write_bytes(mutated_bytes(rng, path.read_bytes()))
        said = []
        try:
            found = without_times(study(FakeHost(), data, plan, folder=target, say=said.append).record)
        except ValueError as error:
            tally.add("refused" if path.name in str(error) else "unnamed", f"{k} {path.name}: {error}")
        except Exception as error:
            tally.add("unnamed", f"{k} {path.name}: {type(error).__name__}: {error}")
        else:
            tally.add("same" if found == expected else "other", f"{k} {path.name}")
            assert any("damaged" in line for line in said) or all("kept" in line for line in said), said
    tally.require("refused", "same")


def without_times(record):
    about = {name: value for name, value in record["provenance"].items() if name != "timings"}
    return json.loads(json.dumps({**record, "provenance": about}))
