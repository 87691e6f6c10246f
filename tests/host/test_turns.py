"""One call at a time on a model, and a clean model for the next one; the long form is in tests/fuzz."""

import random
import threading
import time
import warnings
from contextlib import suppress

import interrupts
import pytest
import torch
from both_hosts import LIBRARIES, batch_on, new_host, read_one
from torch.utils.hooks import RemovableHandle

from sa_plugin.host import InterruptedCallWarning, Site, ZEdit, hooks_on
from sa_plugin.host.turns import turns_of

EDITED = {Site(0, "z"): interrupts.halved}


@pytest.fixture(params=LIBRARIES)
def library(request):
    return request.param


@pytest.fixture
def host(library):
    return new_host(library, "gpt2", progress=False)


@pytest.fixture
def batch(host):
    return batch_on(host, "gpt2")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_leaves_the_next_call_a_clean_model(library):
    case, rng = interrupts.case_on(library), random.Random(0)
    for name in ("score", "pattern", "explain" if library == "transformer_lens" else "gradients"):
        for again in (None, 10, 40):
            moment = case.moment(name, rng)
            _, _, wrong = case.interrupt(name, moment, again)
            assert not wrong, f"{name} interrupted at {moment}"


def test_what_a_dead_turn_left_is_taken_off_with_a_word_by_any_host(host, batch, library):
    other = type(host)(host.passes, host.info, host.reader)
    right = read_one(host, batch)
    mine = host.places.blocks()[1].register_forward_hook(lambda module, given, out: None)
    before = {hook.key for hook in hooks_on(host.places.root)}
    context = host.edited(EDITED)
    context.__enter__()
    # What an interrupt in __exit__ leaves: nobody holds the turn, and the edit is on.
    (turn,) = host.turns.open
    turn.alive.release()
    torch.set_grad_enabled(False)
    try:
        with pytest.warns(InterruptedCallWarning, match="'edited'.*interrupted.*hook.*gradients disabled"):
            assert torch.equal(read_one(other, batch), right)
        assert torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
    assert {hook.key for hook in hooks_on(host.places.root)} == before, "the user's hook stays, ours go"
    mine.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error", InterruptedCallWarning)
        assert torch.equal(read_one(host, batch), right)
    turn.alive.acquire()
    with pytest.raises((RuntimeError, ValueError)):
        context.__exit__(None, None, None)


def test_what_is_kept_beside_a_hook_goes_with_it(host, batch, monkeypatch):
    """torch takes off a hook, then what it keeps beside; TransformerLens then strikes it off a list."""
    edits = {Site(0, "z"): ZEdit(lambda z, seen: z * 0.5, attends=True), Site(1, "z"): interrupts.halved}
    remove, before, cut = RemovableHandle.remove, interrupts.state(host), 0
    for _ in range(12):
        at, cut = cut, 0

        def cut_off(handle, at=at):
            nonlocal cut
            cut += 1
            if cut - 1 == at:
                del handle.hooks_dict_ref()[handle.id]
                raise KeyboardInterrupt
            remove(handle)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt), host.edited(edits):
            read_one(host, batch)
            patch.setattr(RemovableHandle, "remove", cut_off)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InterruptedCallWarning)
            read_one(host, batch)
        assert not interrupts.differences(before, interrupts.state(host)), f"cut off at hook {at}"
        if cut <= at:
            break
    assert at > 4


def test_an_error_inside_an_edit_leaves_the_edit(host, batch):
    with host.edited(EDITED):
        edited = read_one(host, batch)
        with pytest.raises(ZeroDivisionError):
            host.read(batch, [Site(1, "z")], lambda found: 1 / 0)
        assert torch.equal(read_one(host, batch), edited)
    assert not torch.equal(read_one(host, batch), edited)
    assert not host.turns.open


def test_hosts_of_one_model_share_their_turns_and_others_do_not(host, library):
    assert turns_of(host.places) is host.turns
    assert new_host(library, "gpt2").turns is not host.turns


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_threads_that_find_and_one_that_ablates_are_as_one_after_the_other(library):
    case = interrupts.case_on(library)
    texts = [sample.text for sample in case.data.samples[:8]]
    right = [case.detector.find(text).table() for text in texts]
    ablated = case.work["ablate"]().table()
    found, stop, tables = {}, threading.Event(), []

    def find(k):
        found[k] = [case.detector.find(text).table() for text in texts]

    def ablate():
        while not stop.is_set():
            tables.append(case.work["ablate"]().table())

    threads = [threading.Thread(target=find, args=(k,)) for k in range(8)]
    other = threading.Thread(target=ablate)
    for thread in (other, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    other.join()
    assert len(found) == 8
    for k in found:
        assert all(mine.equals(one) for mine, one in zip(found[k], right, strict=True))
    for table in tables:
        assert table.equals(ablated)


def test_other_threads_wait_while_an_edit_is_held(host, batch):
    right, seen = read_one(host, batch), []
    thread = threading.Thread(target=lambda: seen.append(read_one(host, batch)))
    with host.edited(EDITED):
        thread.start()
        assert not torch.equal(read_one(host, batch), right)
        time.sleep(0.05)
        assert not seen
    thread.join()
    assert torch.equal(seen[0], right)
