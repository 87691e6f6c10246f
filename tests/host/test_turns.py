"""One call at a time on a model, and a clean model for the next one; the long form is in tests/fuzz."""

import ast
import random
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import interrupts
import pytest
import tiny
import torch
from both_hosts import LIBRARIES, batch_on, new_host, read_one
from torch.utils.hooks import RemovableHandle

from sa_plugin.host import InterruptedCallWarning, Site, ZEdit, hooks_on, turns_of
from sa_plugin.scores import Wording, prompt

ROOT = Path(__file__).parents[2]
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
    for name in ("score", "watch", "pattern", "explain" if library == "transformer_lens" else "gradients"):
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


def prompted(host, batch):
    """p(yes) by the model behind a host."""
    model = getattr(host.model, "original_model", host.places.root)
    wording = Wording("{text} {concept} {concepts}", chat=False, yes=["a"], no=["b"])
    options = {"wording": wording, "reply_tokens": 0, "progress": False}
    asked = prompt(model, tiny.tokenizer("gpt2"), tiny.samples()[:1], ["cat"], **options)
    return torch.from_numpy(asked.p_yes)


@pytest.mark.filterwarnings("ignore::sa_plugin.scores.AnswerMassWarning")
@pytest.mark.parametrize("ask", [read_one, prompted])
def test_other_threads_wait_while_an_edit_is_held(host, batch, ask):
    right, seen = ask(host, batch), []
    thread = threading.Thread(target=lambda: seen.append(ask(host, batch)))
    with host.edited(EDITED):
        thread.start()
        assert not torch.equal(ask(host, batch), right)
        time.sleep(0.05)
        assert not seen
    thread.join()
    assert torch.equal(seen[0], right)


# Where a model or a module of one is called, and whose turn it then is.
RUNS = {
    "sa_plugin/generation/steer.py _cached_step": "of the context that steers",
    "sa_plugin/host/mllama.py image_states": "of `borrow`",
    "sa_plugin/host/weights.py _own_norm": "of `attention_weights` and `norms`",
    "sa_plugin/host/weights.py _tried": "of `attention_weights` and `norms`",
    "sa_plugin/scores/prompting.py _Speaker": "of `borrow`",
    "adapters/sa_nnsight/passes.py TracePasses": "of the host's method",
    "adapters/sa_nnsight/passes.py _measure_order": "of `attach`",
    "adapters/sa_nnsight/passes.py _output": "of the host's method",
    "adapters/sa_nnsight/passes.py _read_taps": "of the host's method",
    "adapters/sa_nnsight/passes.py _trace_from": "of the host's method",
    "adapters/sa_nnsight/places.py _run_shortly": "of `attach`",
    "adapters/sa_nnsight/session.py submit_reads": "a server's",
    "adapters/sa_nnsight/session.py send_gradients": "a server's",
    "adapters/sa_nnsight/session.py send_probabilities": "a server's",
    "adapters/sa_nnsight/session.py send_projection": "a server's",
    "adapters/sa_transformer_lens/explain.py _explain": "of `explain`, and of each run of the view",
    "adapters/sa_transformer_lens/explain.py _token_gradients": "of `explain`, and of each run of the view",
    "adapters/sa_transformer_lens/hooks.py logits": "of `take`",
    "adapters/sa_transformer_lens/mllama.py HookedMllama": "of who calls it, as of a bridge",
    "adapters/sa_transformer_lens/passes.py call_under": "of the host's method",
    "adapters/sa_transformer_lens/prefix.py PrefixView": "of each run of the view",
}
MODELS = ("bridge", "model", "module", "original_model", "projector", "root", "tower", "view", "whole")
METHODS = ("module", "view", "whole")
RUNNING = ("__call__", "forward", "generate", "run_with_cache", "run_with_hooks", "trace")


def test_every_place_that_runs_a_model_is_in_a_turn():
    """Found in the source: models that are called, or handed to `partial`."""
    found = set()
    for path in (*ROOT.glob("sa_plugin/**/*.py"), *ROOT.glob("adapters/**/*.py")):
        for top in ast.parse(path.read_text()).body:
            calls = [node for node in ast.walk(top) if isinstance(node, ast.Call)]
            if any(_runs(call) for call in calls):
                found.add(f"{path.relative_to(ROOT)} {top.name}")
    assert found == set(RUNS)


def _runs(call):
    called = call.func
    if isinstance(called, ast.Name) and called.id == "partial":
        called = call.args[0]
    parts = ast.unparse(called).split(".")
    if parts[-1] in RUNNING:
        return bool({*parts[-2:-1]} & {*MODELS})
    # Of something else, such as a tensor's view.
    return parts[-1] in MODELS and not (len(parts) > 1 and parts[-1] in METHODS)
