"""Each fault provoked against the real server, and what it is explained as.

The last four break the server or hold it up, and mend it again.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time

import models
import nnsight
import server
import torch
from nnsight.intervention.backends.remote import RemoteBackend

from sa_nnsight.faults import explain_fault


def fault_of(call):
    try:
        call()
    except Exception as error:
        return explain_fault(error)
    raise AssertionError("nothing was raised")


def one(model, remote=True):
    with model.trace("The cat sat.", remote=remote), torch.no_grad():
        got = nnsight.save(model.transformer.h[1].output)
    return got


def slow(model, seconds=6):
    """A job without a socket, asked after by its id, that takes some seconds."""
    rest, add = time.sleep, torch.add
    backend = RemoteBackend(model.to_model_key(), blocking=False)
    backend.display.enabled = False
    with model.session(backend=backend):
        found = nnsight.save([])
        for _ in range(seconds * 5):
            rest(0.2)
            with model.trace("The cat"), torch.no_grad():
                found.append(add(model.transformer.h[1].output.sum(), 0))
    for _ in range(600):
        if (got := backend()) is not None:
            return got
        time.sleep(0.1)
    raise AssertionError("the job neither finished nor failed")


def later(seconds, call):
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()


def test_wrong_host(tiny_gpt2_client):
    fault = fault_of(lambda: one(tiny_gpt2_client, "http://127.0.0.1:8999"))
    assert fault.kind == "unreachable"
    assert fault.retry


def test_no_scheme(tiny_gpt2_client):
    fault = fault_of(lambda: one(tiny_gpt2_client, "127.0.0.1:8001"))
    assert fault.kind == "address"
    assert "http://127.0.0.1:8001" in str(fault)


def test_something_else_answers(tiny_gpt2_client):
    fault = fault_of(lambda: one(tiny_gpt2_client, f"http://127.0.0.1:{server.STORE}"))
    assert fault.kind == "address"


def test_not_deployed(client, tmp_path):
    shutil.copytree(models.tiny("gpt2"), tmp_path / "elsewhere")
    fault = fault_of(lambda: one(client(tmp_path / "elsewhere")))
    assert fault.kind == "not_deployed"
    assert not fault.retry


def test_unregistered_module(tiny_gpt2_client, tmp_path, monkeypatch):
    # nnsight ships modules of the working folder unasked, but none of an installed package.
    package = tmp_path / "site-packages" / "absent_there"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def total(x):\n    return x.sum()\n")
    monkeypatch.syspath_prepend(str(package.parent))
    total = __import__("absent_there").total

    def call():
        with tiny_gpt2_client.trace("The cat", remote=True):
            got = nnsight.save(total(tiny_gpt2_client.transformer.h[1].output))
        return got

    fault = fault_of(call)
    assert fault.kind == "registration"
    assert "nnsight.register('absent_there')" in str(fault)
    nnsight.register("absent_there")
    assert call().ndim == 0
    sys.modules.pop("absent_there")


def test_another_architecture_under_the_name(client, tmp_path, monkeypatch):
    import nnsight.modeling.huggingface as huggingface

    deep = tmp_path / "deep"
    shutil.copytree(models.tiny("gpt2"), deep)
    text = (deep / "config.json").read_text().replace('"n_layer": 3', '"n_layer": 5')
    (deep / "config.json").write_text(text)
    model = client(deep)
    monkeypatch.setitem(huggingface._ID_CACHE, str(deep), str(models.tiny("gpt2")))
    fault = fault_of(lambda: one(model))
    assert fault.kind == "versions"


def test_memory(tiny_gpt2_client):
    def call():
        with tiny_gpt2_client.trace("The cat", remote=True):
            got = nnsight.save(torch.zeros(10**13))
        return got

    assert fault_of(call).kind == "memory"


def test_a_request_over_the_servers_time_limit(client, state, tmp_path):
    shutil.copytree(models.tiny("gpt2"), tmp_path / "hurried")
    server.deploy(tmp_path / "hurried", state, timeout=3)
    fault = fault_of(lambda: slow(client(tmp_path / "hurried"), seconds=8))
    assert fault.kind == "timeout"
    assert not fault.retry
    assert "3.0 s" in str(fault)


def test_model_actor_killed(tiny_gpt2_client):
    number = os.getpid
    with tiny_gpt2_client.session(remote=True):
        pid = nnsight.save([number()])
    assert pid[0] != os.getpid()
    later(2.0, lambda: os.kill(pid[0], signal.SIGKILL))
    fault = fault_of(lambda: slow(tiny_gpt2_client))
    assert fault.kind == "crashed"
    assert fault.retry
    assert slow(tiny_gpt2_client, seconds=1)


def test_api_killed_in_the_middle(tiny_gpt2_client, state):
    later(2.0, lambda: server.kill(state, "api"))
    fault = fault_of(lambda: slow(tiny_gpt2_client))
    server.restart_api(state)
    assert fault.kind in ("unreachable", "cut_off")
    assert fault.retry
    assert one(tiny_gpt2_client).shape[-1] == 32


def test_result_over_the_size_that_needs_the_store(tiny_gpt2_client, state):
    def large():
        with tiny_gpt2_client.trace("The cat", remote=True):
            got = nnsight.save(torch.rand(5_000_000))
        return got

    assert large().numel() == 5_000_000
    server.kill(state, "store")
    try:
        fault = fault_of(large)
    finally:
        server.restart_store(state)
    assert fault.kind == "size"
    assert "object store" in str(fault)
    assert large().numel() == 5_000_000
