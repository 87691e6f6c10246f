"""Pattern ablation on nnsight models: equal to TransformerLens', and its own law by loops."""

from contextlib import nullcontext
from dataclasses import replace

import nnsight
import pytest
import tiny
import torch
from test_nnsight_edits import EVERY, batch_of, make, read
from torch.testing import assert_close

from sa_plugin.heads import Reference, make_edits
from sa_plugin.host import Site
from sa_plugin.host import edits as editing
from sa_transformer_lens import accept as accept_lens

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def gpt2():
    return make("gpt2")


def pattern_pair(name):
    """The two hosts of one model; TransformerLens reads DINOv2 with its LayerScale folded."""
    if name == "clip_text":
        return accept_lens(tiny.vision_bridge(name)), make(name)
    if name in tiny.VISION:
        return tiny.vision_host(name), tiny.nnsight_vision_host(name, folded=name == "dinov2")
    return tiny.host(name), make(name)


@pytest.mark.parametrize("name", EVERY)
def test_equals_transformer_lens(name):
    lens, ours = pattern_pair(name)
    edits = make_edits("pattern", [(0, 1), (1, 3), (2, 0)], Reference())
    found = []
    for host in (lens, ours):
        batch = batch_of(host)
        with host.edited(edits):
            found.append(read(host, batch)[batch.valid])
        assert not torch.allclose(found[-1], read(host, batch)[batch.valid], atol=1e-2)
    assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "bert", "vit"])
def test_z_is_the_mean_of_visible_values(name):
    """Row by row, from the probabilities and values that the model itself hands out."""
    host = make(name)
    batch, heads = batch_of(host), host.info.n_heads
    kept = []
    role = "qkv" if host.places.has("qkv") else "v"
    handle = host.places.module(role, 1).register_forward_hook(lambda *a: kept.append(a[2]))
    pattern = read(host, batch, Site(1, "pattern"))
    with host.edited(make_edits("pattern", [(1, 1)], Reference())):
        found = read(host, batch, Site(1, "z"))
    handle.remove()
    out = kept[0]
    if role == "qkv" and name == "gpt2":
        out = out[..., -host.info.d_model :]
    if name == "neox":
        out = out.unflatten(-1, (heads, 3, -1))[..., 2, :].flatten(-2)
    value = out.unflatten(-1, (-1, host.info.d_head))
    group = heads // value.shape[2]
    for b, q in torch.nonzero(batch.valid).tolist():
        seen = pattern[b, 1, q] > 0
        assert_close(found[b, q, 1], value[b, seen, 1 // group].mean(0), rtol=1e-4, atol=1e-5)


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


def test_contexts_nest(gpt2):
    """The inner edit sees what the outer one left, also of the same block's z."""
    batch = batch_of(gpt2)
    one, two = (make_edits("pattern", [head], Reference()) for head in [(1, 0), (1, 2)])
    with gpt2.edited(one), gpt2.edited(two):
        nested = read(gpt2, batch)
    with gpt2.edited(make_edits("pattern", [(1, 0), (1, 2)], Reference())):
        assert_close(read(gpt2, batch), nested)


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
    monkeypatch.setattr("sa_nnsight.edits.eager", lambda root: nullcontext())
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


def test_a_misread_mask_is_refused(gpt2, monkeypatch):
    real = editing.allowed
    monkeypatch.setattr(editing, "allowed", lambda mask: real(mask).tril(-1))
    with (
        pytest.raises(RuntimeError, match="to a key that its mask hides: the mask was misread"),
        gpt2.edited(make_edits("pattern", [(1, 0)], Reference())),
    ):
        read(gpt2, batch_of(gpt2))
