"""Pattern ablation on nnsight models: what this library alone asks for, beside the laws of both."""

from contextlib import nullcontext
from dataclasses import replace

import nnsight
import pytest
import torch
from test_nnsight_edits import batch_of, make, read
from torch.testing import assert_close

from sa_plugin.heads import Reference, make_edits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def gpt2():
    return make("gpt2")


def test_unfused_attention_is_arranged_and_put_back():
    eager, fused = make("llama"), make("llama")
    root = fused.places.root
    root.set_attn_implementation("sdpa")
    edits = make_edits("pattern", [(0, 1), (1, 2)], Reference())
    found = []
    for host in (eager, fused):
        batch = batch_of(host)
        with host.edited(edits):
            found.append(read(host, batch)[batch.valid])
    assert_close(*found, rtol=1e-4, atol=1e-5)
    assert root.config._attn_implementation == "sdpa"
    with pytest.raises(ZeroDivisionError), fused.edited(edits):
        raise ZeroDivisionError
    assert root.config._attn_implementation == "sdpa"


def test_a_trace_of_the_users_own_sees_it(gpt2):
    batch = batch_of(gpt2)
    with gpt2.edited(make_edits("pattern", [(1, 0)], Reference())):
        expected = read(gpt2, batch)
        with torch.no_grad(), gpt2.model.trace(**batch.inputs) as tracer:
            found = nnsight.save(gpt2.model.transformer.h[2].output)
            tracer.stop()
    assert torch.equal(found, expected)


def test_what_cannot_be_reached_is_named(gpt2, monkeypatch):
    edits = make_edits("pattern", [(1, 0)], Reference())
    batch = batch_of(gpt2)
    before = read(gpt2, batch)
    own = gpt2.places
    roles = {role: path for role, path in own.roles.items() if role != "qkv"}
    blind = replace(gpt2, passes=replace(gpt2.passes, places=replace(own, roles=roles)))
    says = "GPT2LMHeadModel has no value projection among its paths"
    with pytest.raises(NotImplementedError, match=says), blind.edited(edits):
        pass
    monkeypatch.setattr("sa_nnsight.edits.eager", lambda root, ask: nullcontext())
    own.root.set_attn_implementation("sdpa")
    says = "GPT2LMHeadModel shows no attention pattern at block 1"
    with pytest.raises(NotImplementedError, match=says), gpt2.edited(edits):
        read(gpt2, batch)
    own.root.set_attn_implementation("eager")
    monkeypatch.setattr(
        "sa_nnsight.edits._values_by_head", lambda places, role, out: out[..., :32].unflatten(-1, (4, -1))
    )
    says = "values and pattern of GPT2LMHeadModel, block 1, do not give z"
    with pytest.raises(NotImplementedError, match=says), gpt2.edited(edits):
        read(gpt2, batch)
    assert torch.equal(read(gpt2, batch), before)
