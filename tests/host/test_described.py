"""Norms and attention weights of both hosts against their own pattern and z, by slow loops."""

import math

import numpy as np
import pytest
import tiny
import torch
from both_hosts import EVERY, host_on, new_host, on_both, samples_of

from sa_plugin.host import RAW, DescribedHost, Site, norm_of, require_described
from sa_plugin.host import weights as describe
from sa_transformer_lens import accept

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def slow_norm(norm, x):
    if norm is None:
        return x
    if norm.centred:
        x = x - x.mean()
    y = x / math.sqrt((x * x).mean() + norm.eps) * norm.gain.numpy().astype(float)
    return y if norm.bias is None else y + norm.bias.numpy()


def slow_turn(rotary, x, position):
    """Each pair of dimensions turned by its angle, one pair at a time."""
    if rotary is None:
        return x
    y = x.copy()
    half = rotary.width // 2
    for j in range(half):
        a = position * float(rotary.inverse_frequency[j])
        cos, sin = math.cos(a) * rotary.scaling, math.sin(a) * rotary.scaling
        y[j] = x[j] * cos - x[j + half] * sin
        y[j + half] = x[j + half] * cos + x[j] * sin
    return y


def slow_head(weights, h, head, allowed):
    """Pattern and z of one head of one sample, token by token, float64."""
    x = [slow_norm(weights.norm, row) for row in h]

    def part(one):
        b = 0.0 if one.bias is None else one.bias[head].numpy().astype(float)
        return [row @ one.weight[head].numpy().astype(float) + b for row in x]

    q = part(weights.query)
    k = part(weights.key)
    v = part(weights.value)
    q, k = ([slow_turn(weights.rotary, r, t) for t, r in enumerate(rows)] for rows in (q, k))
    pattern = np.zeros((len(h), len(h)))
    for i in range(len(h)):
        logits = np.array([q[i] @ k[j] * weights.scale for j in range(len(h))])
        if weights.softcap is not None:
            logits = weights.softcap * np.tanh(logits / weights.softcap)
        e = np.where(allowed[i], np.exp(logits - logits[allowed[i]].max()), 0.0)
        pattern[i] = e / e.sum()
    return pattern, pattern @ np.array(v)


def seen_in(host, layer, sample):
    """What enters a block, its pattern and z, of one sample without padding, float64."""
    sites = [Site(layer, "resid_pre"), Site(layer, "pattern"), Site(layer, "z")]
    batch = host.batches([sample])[0]
    got = host.read(batch, sites, lambda r: {s.point: r[s] for s in sites})
    return {point: tensor[0].double().numpy() for point, tensor in got.items()}


@on_both(*EVERY)
def test_weights_reproduce_pattern_and_z(library, name):
    host = require_described(host_on(library, name))
    assert isinstance(host, DescribedHost)
    info, sample = host.info, samples_of(name)[min(1, len(samples_of(name)) - 1)]
    for layer in range(info.n_layers):
        weights = host.attention_weights(layer)
        assert weights.query.weight.shape == (info.n_heads, info.d_model, info.d_head)
        assert weights.query.weight.shape == weights.key.weight.shape == weights.value.weight.shape
        assert weights.key.weight.dtype == torch.float32
        assert weights.query_key_norm == (name == "qwen3")
        if weights.query_key_norm:
            continue
        got = seen_in(host, layer, sample)
        for head in range(info.n_heads):
            expected = got["pattern"][head]
            pattern, z = slow_head(weights, got["resid_pre"], head, expected > 0)
            np.testing.assert_allclose(pattern, expected, atol=1e-5)
            np.testing.assert_allclose(z, got["z"][:, head], atol=1e-5 * abs(z).max())


@on_both(*EVERY)
def test_norms_reproduce_what_the_blocks_do(library, name):
    host = host_on(library, name)
    norms, block = host.norms(1), host.info.block
    assert (norms.attn_in is None) == (norms.mlp_in is None) == (block == "post_ln")
    assert (norms.attn_out is None) == (norms.mlp_out is None) == (block == "pre_norm")
    first, second = ("attn_out", "mlp_out") if block == "post_ln" else ("attn_in", "mlp_in")
    ends = {first: ("norm1_in", "norm1_out"), second: ("norm2_in", "norm2_out")}
    if block == "post_norm":
        ends["attn_out"] = (RAW, "attn_out")
        # What leaves the MLP before its norm is no part: any rows do.
        (_, module), x = host.places.norm("norm2_post", 1), torch.randn(5, host.info.d_model)
        np.testing.assert_allclose(slow_norms(norms.mlp_out, x), module(x).detach(), atol=2e-5)
    if not {"norm1_in", "norm2_in"} <= set(host.places.parts):
        # Parallel blocks of one norm.
        ends.pop(second)
    inputs = host.forward_inputs(samples_of(name)[0])
    seen = host.passes.read(inputs, [(1, part) for pair in ends.values() for part in pair])
    for which, (before, after) in ends.items():
        made = slow_norms(getattr(norms, which), seen[1, before][0])
        np.testing.assert_allclose(made, seen[1, after][0], atol=2e-5)


def slow_norms(norm, rows):
    return np.stack([slow_norm(norm, row) for row in rows.double().numpy()])


def test_a_norm_that_is_none():
    with pytest.raises(ValueError, match=r"ln is a Linear, and neither a LayerNorm nor an RMS"):
        norm_of("ln", torch.nn.Linear(4, 4))


@on_both("llama")
def test_keys_and_values_are_repeated_for_their_queries(library, name):
    host = host_on(library, name)
    weights = host.attention_weights(0)
    assert weights.n_key_value_heads == 2
    assert torch.equal(weights.key.weight[0], weights.key.weight[1])
    assert not torch.equal(weights.key.weight[1], weights.key.weight[2])
    own = tiny.hf_model("llama").model.layers[0].self_attn.k_proj.weight.detach().unflatten(0, (2, -1))
    assert torch.equal(weights.key.weight[2], own[1].T)


@on_both("gemma2")
def test_gemma_is_described_whole(library, name):
    host = host_on(library, name)
    weights = host.attention_weights(1)
    _, module = host.places.norm("norm1", 1)
    assert torch.allclose(weights.norm.gain, 1 + module.weight.detach())
    assert weights.softcap == 50.0
    assert weights.scale == pytest.approx(tiny.D_HEAD**-0.5)
    assert host_on(library, "neox").attention_weights(0).rotary.width == 2


@on_both("qwen3")
def test_gains_of_query_and_key_norms_are_folded(library, name):
    host = host_on(library, name)
    weights, own = host.attention_weights(0), tiny.hf_model(name).model.layers[0].self_attn
    query, key, value = (
        getattr(own, f"{part}_proj").weight.detach().unflatten(0, (-1, 8)).transpose(1, 2) for part in "qkv"
    )
    torch.testing.assert_close(weights.query.weight, query * own.q_norm.weight.detach())
    torch.testing.assert_close(weights.key.weight[3], key[1] * own.k_norm.weight.detach())
    assert torch.equal(weights.value.weight[3], value[1])


def test_compatibility_mode_is_described_too():
    bridge = tiny.bridge("gpt2")
    bridge.enable_compatibility_mode()
    weights = accept(bridge).attention_weights(1)
    assert torch.equal(weights.norm.gain, torch.ones(tiny.D_MODEL))


@on_both("llama")
def test_unknown_layers_are_refused_and_scales_are_read(library, name):
    host = new_host(library, name)
    with pytest.raises(ValueError, match=r"layer 9 does not exist: .* nearest is 2"):
        host.attention_weights(9)
    with pytest.raises(ValueError, match="layer 9 does not exist"):
        host.norms(9)
    host.places.attention(1).module.scaling *= 2
    assert host.attention_weights(1).scale == pytest.approx(2 * tiny.D_HEAD**-0.5)


@on_both("llama")
def test_attention_that_is_not_reproduced_is_refused(library, name, monkeypatch):
    host = new_host(library, name)
    monkeypatch.setattr(describe, "rotary_of", lambda root, kind: None)
    with pytest.raises(
        ValueError, match=r"block 1: its attention is none of the known ones\. Its pattern is not"
    ):
        host.attention_weights(1)
    monkeypatch.undo()
    monkeypatch.setattr(describe, "_candidates", lambda *a: iter(()))
    with pytest.raises(ValueError, match="neither a LayerNorm nor an RMSNorm"):
        host.norms(0)
