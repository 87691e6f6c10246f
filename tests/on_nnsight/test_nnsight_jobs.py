"""Requests come out in order, are tried again where that helps, and are never sent twice."""

import multiprocessing
import random
from functools import partial

import pytest
import torch
from kills import dying_at, moments
from safetensors.torch import save

from sa_nnsight.jobs import Journal, Patience, RemoteTimeout, Runner, digest
from sa_plugin._files import DamagedFileError
from sa_plugin.host import reducers


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Fake:
    """A request that is done at its `polls`-th poll, after failing `errors` one by one."""

    def __init__(self, k, polls=1, errors=()):
        self.key = f"{k:032d}" * 2
        self.k, self.polls, self.errors = k, polls, list(errors)
        self.sent = self.asked = 0

    def submit(self):
        self.sent += 1
        if self.errors:
            raise self.errors.pop(0)
        self.asked = 0
        return f"job {self.k}.{self.sent}"

    def poll(self, job_id):
        self.asked += 1
        if self.asked < self.polls:
            return None
        return [{"value": torch.tensor([float(self.k)])}]


def runner(folder=None, translate=lambda e: (e, True), **patience):
    clock = Clock()
    return Runner(Journal(folder), Patience(**patience), translate, clock=clock, sleep=clock.sleep)


def values(found):
    return [float(one[0]["value"]) for one in found]


def test_results_come_in_the_order_of_the_requests():
    requests = [Fake(k, polls=7 - k) for k in range(6)]
    assert values(runner(at_once=4).run(requests)) == [0, 1, 2, 3, 4, 5]
    assert all(one.sent == 1 for one in requests)


def test_no_more_than_some_are_under_way():
    most = 0
    requests = [Fake(k, polls=3) for k in range(9)]
    for _ in runner(at_once=2).run(requests):
        most = max(most, sum(0 < one.asked < one.polls for one in requests))
    assert most <= 2


def test_what_is_worth_it_is_tried_again_with_back_off():
    one = Fake(0, errors=[ConnectionError("gone"), ConnectionError("gone")])
    run = runner(tries=3, back_off=1.0)
    assert values(run.run([one])) == [0]
    assert one.sent == 3
    assert run.clock() >= 3.0


def test_what_is_not_worth_it_is_raised_at_once_as_translated():
    one = Fake(0, errors=[KeyError("secret")])
    run = runner(translate=lambda e: (RuntimeError("not deployed: deploy it"), False))
    with pytest.raises(RuntimeError, match="not deployed: deploy it"):
        list(run.run([one]))
    assert one.sent == 1


def test_tries_run_out():
    one = Fake(0, errors=[ConnectionError("gone")] * 9)
    with pytest.raises(ConnectionError):
        list(runner(tries=3).run([one]))
    assert one.sent == 3


def test_a_run_that_is_cut_off_goes_on_from_its_last_finished_request(tmp_path):
    begun = runner(tmp_path, at_once=1).run([Fake(k) for k in range(5)])
    assert values([next(begun), next(begun)]) == [0, 1]
    begun.close()
    again = [Fake(k) for k in range(5)]
    assert values(runner(tmp_path, at_once=1).run(again)) == [0, 1, 2, 3, 4]
    assert [one.sent for one in again] == [0, 0, 1, 1, 1]


def test_a_job_that_was_left_is_picked_up_by_its_id(tmp_path):
    left = Fake(0, polls=99)
    with pytest.raises(RemoteTimeout, match=r"job job 0.1 did not finish within 1 s"):
        list(runner(tmp_path, timeout=1.0).run([left]))
    again = Fake(0)
    assert values(runner(tmp_path).run([again])) == [0]
    assert again.sent == 0


def test_a_job_that_the_server_has_lost_is_sent_anew(tmp_path):
    Journal(tmp_path).note(Fake(0).key, "job of yesterday")

    class Lost(Fake):
        def poll(self, job_id):
            if job_id == "job of yesterday":
                raise KeyError(job_id)
            return super().poll(job_id)

    again = Lost(0)
    assert values(runner(tmp_path, translate=lambda e: (e, False)).run([again])) == [0]
    assert again.sent == 1


def test_the_journal_keeps_sparse_and_dense_tensors_and_no_part_files(tmp_path):
    sparse = torch.sparse_coo_tensor(torch.tensor([[1, 5]]), torch.tensor([2, 3]), (9,)).coalesce()
    journal = Journal(tmp_path)
    journal.store(
        "a" * 64, [{"x": torch.arange(3)}, {("sums", 0, ("b", 3)): sparse, "y z": torch.ones(2, 2)}]
    )
    first, second = journal.result("a" * 64)
    assert first["x"].equal(torch.arange(3))
    assert second["sums", 0, ("b", 3)].to_dense().equal(sparse.to_dense())
    assert second["y z"].equal(torch.ones(2, 2))
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    assert Journal(None).result("a" * 64) is None


def test_an_entry_that_was_changed_or_moved_is_refused_by_name(tmp_path):
    journal, key, other = Journal(tmp_path), "a" * 64, "b" * 64
    journal.store(key, [{"scores": torch.ones(3, 2)}])
    entry = next(tmp_path.glob("*.safetensors"))
    whole = entry.read_bytes()
    entry.with_name(f"{other[:32]}.safetensors").write_bytes(whole)
    with pytest.raises(DamagedFileError, match=r"b{32}.safetensors is damaged, or the answer to another"):
        journal.result(other)
    for content in (whole[:-5], b"", whole[:-1] + b"\0", save({"number": torch.tensor(1)})):
        entry.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"a{32}.safetensors is damaged.*delete it, and"):
            journal.result(key)
    assert journal.result("c" * 64) is None


def test_a_note_that_was_changed_or_moved_is_refused_by_name(tmp_path):
    journal, key, other = Journal(tmp_path), "a" * 64, "b" * 64
    journal.note(key, "job 1")
    assert journal.job(key) == "job 1"
    note = next(tmp_path.glob("*.json"))
    note.with_name(f"{other[:32]}.json").write_bytes(note.read_bytes())
    with pytest.raises(DamagedFileError, match=r"b{32}.json is the note of another request: delete it"):
        journal.job(other)
    for content in ('{"job_id": "ab', "", "[]", "{}", '{"job_id": "../other"}'):
        note.write_text(content)
        with pytest.raises(DamagedFileError, match=r"a{32}.json is damaged .*delete it, and the request is"):
            journal.job(key)


def test_a_kill_leaves_an_entry_whole_or_missing(tmp_path):
    journal, key, result = Journal(tmp_path), "a" * 64, [{"scores": torch.ones(3, 2)}]
    for moment in range(1, moments(lambda: journal.store(key, result)) + 1):
        journal.note(key, "job 1")
        with dying_at(moment):
            journal.store(key, result)
        found = journal.result(key)
        assert journal.job(key) == "job 1" or found is not None
        assert found is None or found[0]["scores"].equal(torch.ones(3, 2))


def test_runs_that_share_a_journal_lose_and_mix_nothing(tmp_path):
    """Two processes write the same entries, and begin and finish the same jobs, at the same time."""
    fork = multiprocessing.get_context("fork")
    runs = [fork.Process(target=write_and_read, args=(tmp_path, run)) for run in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0]
    journal = Journal(tmp_path)
    assert all(torch.equal(journal.result(f"key {k}")[0]["x"], torch.full((50,), k)) for k in range(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"key {k}.safetensors" for k in range(5)]


def write_and_read(folder, run):
    rng = random.Random(run)
    for _ in range(60):
        journal, k = Journal(folder), rng.randrange(5)
        key = f"key {k}"
        assert journal.job(key) in (None, f"job 0 {k}", f"job 1 {k}")
        journal.note(key, f"job {run} {k}")
        journal.store(key, [{"x": torch.full((50,), k)}])
        assert torch.equal(journal.result(key)[0]["x"], torch.full((50,), k))
    for k in range(5):
        journal.store(f"key {k}", [{"x": torch.full((50,), k)}])


def test_keys_tell_apart_whatever_decides_a_result():
    valid = torch.ones(1, 3, dtype=torch.bool)
    one = partial(reducers.maxima, valid=valid, top=1)
    same = partial(reducers.maxima, valid=valid.clone(), top=1)
    others = [
        partial(reducers.maxima, valid=valid, top=2),
        partial(reducers.histogram, valid=valid, top=1),
        partial(reducers.maxima, valid=valid.long(), top=1),
        partial(reducers.maxima, valid=valid.T, top=1),
    ]
    assert digest(one, "model") == digest(same, "model")
    keys = {digest(other, "model") for other in [one, *others]} | {digest(one, "other")}
    assert len(keys) == 6
    with pytest.raises(TypeError, match="set cannot be sent to a server"):
        digest({1, 2})


def test_refusals(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(NotADirectoryError, match="is a file: name a folder"):
        Journal(file)
    with pytest.raises(ValueError, match="at_once is 0, not a whole number from 1"):
        Patience(at_once=0)
    with pytest.raises(ValueError, match=r"timeout is -1\.0, not a number from 0"):
        Patience(timeout=-1.0)
