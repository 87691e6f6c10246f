"""What can be said of the remote side without a server: what is asked, sent and refused."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch

from sa_nnsight import beside
from sa_nnsight.places import locate
from sa_nnsight.remote import fingerprint_of, refuse_rows
from sa_nnsight.session import Reads
from sa_nnsight.wire import Server, Traffic, refuse_bytecode
from sa_plugin.host import fingerprint, reducers

HERE = Path(__file__).parents[1]


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_the_fingerprint_of_weights_elsewhere_is_that_of_the_same_weights_here(name):
    root = tiny.hf_model(name)
    here = fingerprint(root.config.model_type, locate(root, None).parameters())
    asked = []

    def ask(where):
        asked.append(sum(len(one) for one in where.values()))
        return beside.parameter_values(root, where)

    empty = locate(tiny.hf_model(name).to("meta"), None)
    assert fingerprint_of(empty, ask) == here
    other = tiny.hf_model(name, seed=1)
    there = fingerprint_of(empty, lambda where: beside.parameter_values(other, where))
    assert there != here
    assert asked[0] <= 64 * 3 * len(list(root.parameters()))


def test_missing_attention_probabilities_are_an_error():
    with pytest.raises(ValueError, match=r"probabilities of block 2 are None.*attach locally"):
        beside.shaped((2, "pattern"), (torch.ones(1), None), 1, 4)
    with pytest.raises(ValueError, match="are None"):
        beside.shaped((2, "pattern"), torch.ones(1), 1, 4)
    z = torch.arange(24.0).reshape(1, 3, 8)
    assert beside.shaped((0, "z"), z, None, 4).equal(z.unflatten(-1, (4, 2)))
    assert beside.shaped((0, "mlp_out"), z.flatten(0, 1), None, 4, len(z)).equal(z)


def test_kinds_that_need_activations_are_refused_before_anything_is_sent():
    rows = partial(reducers.reduce, jobs=(partial(reducers.train, stored=torch.ones(3, dtype=torch.bool)),))
    with pytest.raises(ValueError, match=r"do not leave the server.*'prototype' and 'lda'"):
        refuse_rows([rows])
    others = partial(reducers.train, stored=None), partial(reducers.maxima)
    refuse_rows([partial(reducers.reduce, jobs=others), reducers.at_site])


def test_bytecode_is_refused_here_before_it_ends_a_process_there():
    with pytest.raises(TypeError, match="function without source"):
        refuse_bytecode(b"... cloudpickle.cloudpickle _make_function ...")
    refuse_bytecode(b"tensors")


def test_the_journal_knows_other_weights_under_the_same_name():
    class Model:
        def to_model_key(self):
            return "org/model"

    server = Server(Model(), Traffic(), False, lambda job_id: None)
    valid = torch.ones(1, 3, dtype=torch.bool)
    keys = {
        Reads(server, lambda n=n: [{"input_ids": torch.arange(n)}], [], [job], 4, weights).key
        for n in (3, 4)
        for job in (partial(reducers.maxima, valid=valid, top=k) for k in (1, 2))
        for weights in ("aa float32", "aa bfloat16", "bb float32")
    }
    assert len(keys) == 12


def test_traffic_counts_and_says_so():
    traffic = Traffic()
    traffic.add(sent=1234, requests=1)
    traffic.add(received=5, traces=2)
    assert str(traffic).startswith("1,234 bytes sent, 5 received, 1 requests, 2 traces")


PAYLOAD = """
import functools, sys, torch, tiny
import nnsight.modeling.huggingface as huggingface
from nnsight import TransformersModel
from nnsight.schema.request import RequestModel
from sa_nnsight import session, trace_ops, wire
from sa_nnsight.places import locate
from sa_plugin.host import reducers

folder = sys.argv[1]
tiny.hf_model("llama").save_pretrained(folder)
tiny.tokenizer("llama").save_pretrained(folder)
huggingface._ID_CACHE[folder] = folder
model = TransformersModel(folder, task="text-generation")
session.ship_modules()
taps = [((k, "resid_post"), locate(model, None).tap((k, "resid_post")))
        for k in range(3)]
ids = torch.tensor([[0, 5, 6]])
valid = torch.ones_like(ids, dtype=torch.bool)
vectors = (torch.ones(3, 2, 32), torch.zeros(3, 32), torch.ones(3), False)
one = functools.partial(reducers.maxima, layers=(0, 1, 2), point="resid_post", vectors=vectors)
job = functools.partial(reducers.reduce, valid=valid, sinks=((0, 1, 2), "drop", False), frozen=None,
                        jobs=(one,))
sent = {}

class Backend:
    def __call__(self, tracer):
        sent["blob"] = RequestModel.serialize(tracer, False)

session.submit_reads(model, Backend(), [{"input_ids": ids}], taps, [job], 4, early=True)
wire.refuse_bytecode(sent["blob"])
# Shipped modules travel by value: no module of ours is named (paths of files, with slashes, are).
for package in (b"sa_plugin.", b"sa_nnsight.", b"jaxtyping"):
    assert package not in sent["blob"], package
assert b"def maxima" in sent["blob"] and b"def evidence" in sent["blob"]
assert len(sent["blob"]) < 60_000, len(sent["blob"])

# Functions for a trace of the user's own: a module that is shipped ships all that its names stand for.
session.nnsight.register("sa_nnsight.trace_ops")
path = "model.layers.1.output"
goal = trace_ops.Goal(torch.ones(32), torch.zeros(32), 1.0, False, valid[0], path)
with model.trace(input_ids=ids, backend=Backend()):
    value = session.nnsight.save(trace_ops.goal_mean(model.model.layers[1].output, goal))
wire.refuse_bytecode(sent["blob"])
for name in (b"sa_plugin", b"jaxtyping"):
    assert name not in sent["blob"], name
assert b"def goal_mean" in sent["blob"]
"""


def test_a_request_holds_source_and_tensors_and_nothing_of_this_package(tmp_path):
    # In a process of its own: the import hook of these tests wraps functions.
    path = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parent / "adapters")])
    done = subprocess.run(
        [sys.executable, "-c", PAYLOAD, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
