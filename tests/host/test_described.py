"""Norms and attention weights against the host's own pattern and z, by slow loops."""

import math

import numpy as np
import pytest
import tiny
import torch

from sa_plugin.host import Site, require_described
from sa_plugin.host import weights as describe
from sa_transformer_lens import accept
from sa_transformer_lens.passes import capture

ALL = (*tiny.ARCHITECTURES, *tiny.VISION, "clip_text")


def host_of(name):
    if name == "clip_text":
        return accept(tiny.vision_bridge(name))
    return tiny.host(name) if name in tiny.ARCHITECTURES else tiny.vision_host(name)


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

    def part(weight, bias):
        b = 0.0 if bias is None else bias[head].numpy().astype(float)
        return [row @ weight[head].numpy().astype(float) + b for row in x]

    q = part(weights.query, weights.query_bias)
    k = part(weights.key, weights.key_bias)
    v = part(weights.value, weights.value_bias)
    q, k = ([slow_turn(weights.rotary, r, t) for t, r in enumerate(rows)] for rows in (q, k))
    pattern = np.zeros((len(h), len(h)))
    for i in range(len(h)):
        logits = np.array([q[i] @ k[j] * weights.scale for j in range(len(h))])
        if weights.softcap is not None:
            logits = weights.softcap * np.tanh(logits / weights.softcap)
        e = np.where(allowed[i], np.exp(logits - logits[allowed[i]].max()), 0.0)
        pattern[i] = e / e.sum()
    return pattern, pattern @ np.array(v)


def read(host, layer, samples):
    sites = [Site(layer, "resid_pre"), Site(layer, "pattern"), Site(layer, "z")]
    batch = host.batches(samples)[0]
    got = host.read(batch, sites, lambda r: {s.point: r[s] for s in sites})
    mask = batch.inputs.get("attention_mask")
    n = got["z"].shape[1] if mask is None else int(mask[0].sum())
    return {p: t[0].double().numpy() for p, t in got.items()}, n


@pytest.mark.parametrize("name", ALL)
def test_weights_reproduce_pattern_and_z(name):
    host = require_described(host_of(name))
    images = name in tiny.VISION
    sample = tiny.images()[:1] if images else tiny.samples()[1:2]
    for layer in range(host.info.n_layers):
        weights = host.attention_weights(layer)
        assert weights.query.shape == weights.key.shape == weights.value.shape
        assert weights.query_key_norm == (name == "qwen3")
        if weights.query_key_norm:
            continue
        got, n = read(host, layer, sample)
        for head in range(host.info.n_heads):
            pattern, z = slow_head(weights, got["resid_pre"][:n], head, got["pattern"][head][:n, :n] > 0)
            np.testing.assert_allclose(pattern, got["pattern"][head][:n, :n], atol=1e-5)
            np.testing.assert_allclose(z, got["z"][:n, head], atol=1e-5 * abs(z).max())


@pytest.mark.parametrize("name", ALL)
def test_norms_reproduce_what_the_blocks_do(name):
    host = host_of(name)
    norms = host.norms(1)
    block = host.info.block
    assert (norms.attn_in is None) == (block == "post_ln")
    assert (norms.attn_out is None) == (block == "pre_norm")
    assert (norms.mlp_in is None) == (block == "post_ln")
    assert (norms.mlp_out is None) == (block == "pre_norm")
    modules = {"attn_in": "ln1", "mlp_in": "ln2"}
    if block == "post_norm":
        modules |= {"attn_out": "ln1_post", "mlp_out": "ln2_post"}
    if block == "post_ln":
        modules = {"attn_out": "ln1", "mlp_out": "ln2"}
    hooks = [f"blocks.1.{m}.hook_{end}" for m in modules.values() for end in ("in", "out")]
    seen = capture(host.bridge, hooks, host.forward_inputs(host.check_samples()[0]))
    for which, module in modules.items():
        before, after = (seen[f"blocks.1.{module}.hook_{end}"][0] for end in ("in", "out"))
        for x, y in zip(before.double().numpy(), after.double().numpy(), strict=True):
            np.testing.assert_allclose(slow_norm(getattr(norms, which), x), y, atol=2e-5)


def test_keys_and_values_are_repeated_for_their_queries():
    host = tiny.host("llama")
    weights = host.attention_weights(0)
    assert weights.n_key_value_heads == 2
    assert torch.equal(weights.key[0], weights.key[1])
    assert not torch.equal(weights.key[1], weights.key[2])
    assert torch.equal(weights.key[2], host.bridge.blocks[0].attn.W_K[1])


def test_gemma_is_described_whole():
    weights = tiny.host("gemma2").attention_weights(1)
    raw = tiny.host("gemma2").bridge.blocks[1].ln1.original_component.weight.detach()
    assert torch.allclose(weights.norm.gain, 1 + raw)
    assert weights.softcap == 50.0
    assert weights.scale == pytest.approx(tiny.D_HEAD**-0.5)
    assert tiny.host("neox").attention_weights(0).rotary.width == 2


def test_gains_of_query_and_key_norms_are_folded():
    host = tiny.host("qwen3")
    weights = host.attention_weights(0)
    attention = host.bridge.blocks[0].attn
    gain = attention.k_norm.original_component.weight.detach()
    assert torch.allclose(weights.key[3], attention.W_K[1] * gain)
    assert torch.allclose(weights.value[3], attention.W_V[1])


def test_compatibility_mode_is_described_too():
    bridge = tiny.bridge("gpt2")
    bridge.enable_compatibility_mode()
    weights = accept(bridge).attention_weights(1)
    assert torch.equal(weights.norm.gain, torch.ones(tiny.D_MODEL))


def test_unknown_layers_are_refused_and_scales_are_read():
    host = tiny.host("llama")
    with pytest.raises(ValueError, match=r"layer 9 does not exist: .* nearest is 2"):
        host.attention_weights(9)
    with pytest.raises(ValueError, match="layer 9 does not exist"):
        host.norms(9)
    host.bridge.blocks[1].attn.original_component.scaling *= 2
    got = host.attention_weights(1)
    assert got.scale == pytest.approx(2 * tiny.D_HEAD**-0.5)


def test_attention_that_is_not_reproduced_is_refused(monkeypatch):
    host = tiny.host("llama")
    monkeypatch.setattr(describe, "rotary_of", lambda root, kind: None)
    with pytest.raises(
        ValueError, match=r"block 1: its attention is none of the known ones\. Its pattern is not"
    ):
        host.attention_weights(1)
    monkeypatch.undo()
    monkeypatch.setattr(describe, "_candidates", lambda *a: iter(()))
    with pytest.raises(ValueError, match="neither a LayerNorm nor an RMSNorm"):
        host.norms(0)
