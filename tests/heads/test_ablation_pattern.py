"""Pattern ablation: uniform attention over what the model's own mask leaves, on every kind."""

import pytest
import tiny
import torch
from ablation_cases import EVERY, any_host, residual

from sa_plugin.heads import Reference, make_edits
from sa_plugin.host import Attended, Site, ZEdit, uniform_attention
from sa_plugin.host import edits as editing
from sa_transformer_lens import ablation_hooks, accept
from sa_transformer_lens.passes import capture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
GROUPED = {"llama": 2, "gemma2": 2, "qwen3": 2}
LONG = "The dog sat. " * 4


def padded_batch(name, host):
    if name in tiny.VISION:
        return host.batches(tiny.images())[0]
    return host.batches(tiny.samples())[0]


def uniform_by_loop(name, host, batch, layer=1):
    """z of uniform attention from the library's own pattern and values, query by query."""
    hooks = [f"blocks.{layer}.attn.hook_{x}" for x in ("pattern", "v")]
    pattern, value = capture(host.bridge, hooks, batch.inputs).values()
    value = value.repeat_interleave(GROUPED.get(name) or 1, 2)
    rows = torch.ones(pattern.shape[0], pattern.shape[2], dtype=torch.bool)
    if "attention_mask" in list(batch.inputs):
        rows = batch.inputs["attention_mask"].bool()
    z = torch.zeros(*pattern.shape[:1], *pattern.shape[2:3], tiny.N_HEADS, tiny.D_HEAD)
    for b, q in torch.nonzero(rows).tolist():
        seen = pattern[b, :, q].any(0)
        z[b, q] = value[b, seen].mean(0)
    return z, rows


@pytest.mark.parametrize(
    ("name", "side"), [(name, "right") for name in EVERY] + [(name, "left") for name in tiny.ARCHITECTURES]
)
def test_z_is_the_mean_of_visible_values(name, side):
    host = tiny.host(name, padding_side=side) if name in tiny.ARCHITECTURES else any_host(name)
    batch = padded_batch(name, host)
    expected, rows = uniform_by_loop(name, host, batch)
    clean = capture(host.bridge, ["blocks.1.attn.hook_z"], batch.inputs)["blocks.1.attn.hook_z"]
    with host.edited(make_edits("pattern", [(1, 1), (1, 3)], Reference())):
        z = host.read(batch, [Site(1, "z")], lambda r: {"z": r[Site(1, "z")]})["z"]
    heads = [1, 3]
    torch.testing.assert_close(z[rows][:, heads], expected[rows][:, heads], atol=1e-5, rtol=1e-4)
    assert torch.equal(z[:, :, [0, 2]], clean[:, :, [0, 2]])
    assert (z - clean)[rows][:, heads].abs().max() > 1e-2


def test_a_sliding_window_hides_what_it_hides():
    """Gemma-2's even blocks see 16 tokens here, its odd ones all."""
    from sa_plugin.data import Sample

    host = tiny.host("gemma2")
    (batch,) = host.batches([Sample("long", LONG, "d")])
    seen = {}

    def look(layer):
        def keep(z, attended):
            seen[layer] = attended.visible[0].sum(-1)
            return z

        return ZEdit(keep, attends=True, may_keep=True)

    with host.edited({Site(layer, "z"): look(layer) for layer in (0, 1)}):
        residual(host, batch)
    full = torch.arange(1, len(seen[1]) + 1)
    assert torch.equal(seen[1], full)
    assert torch.equal(seen[0], full.clamp_max(16))
    assert len(full) > 20


def test_values_are_those_of_the_edited_pass(tiny_gpt2):
    """An earlier ablation changes the values that a later head averages."""
    host = tiny_gpt2
    (batch,) = host.batches(tiny.samples()[1:2])
    zero = {Site(0, "z"): torch.zeros_like}
    with host.edited(zero):
        expected, _ = uniform_by_loop("gpt2", host, batch)
        with host.edited(make_edits("pattern", [(1, 0)], Reference())):
            z = host.read(batch, [Site(1, "z")], lambda r: {"z": r[Site(1, "z")]})["z"]
    torch.testing.assert_close(z[:, :, 0], expected[:, :, 0], atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing(tiny_host):
    host = tiny_host
    edits = make_edits("pattern", [(0, 0), (1, 2)], Reference())
    (together,) = host.batches(tiny.samples())
    with host.edited(edits):
        padded = residual(host, together)
        for k, row in enumerate(together.rows.tolist()):
            (alone,) = host.batches(tiny.samples()[row : row + 1])
            got = padded[k, together.valid[k]]
            torch.testing.assert_close(got, residual(host, alone)[alone.valid], atol=1e-4, rtol=1e-4)


def test_queries_without_keys_keep_their_z():
    z = torch.randn(1, 2, 1, 3)
    attended = Attended(torch.randn(1, 2, 1, 3), torch.tensor([[[False, False], [True, True]]]))
    out = uniform_attention(z, torch.tensor([0]), attended)
    assert torch.equal(out[0, 0], z[0, 0])
    torch.testing.assert_close(out[0, 1, 0], attended.value[0, :, 0].mean(0))


@pytest.mark.parametrize("name", [*tiny.ARCHITECTURES, "vit", "clip_text"])
def test_hooks_of_ones_own_runs_do_the_same(name):
    host = any_host(name)
    heads = [(0, 1), (2, 0), (2, 3)]
    batch = padded_batch(name, host)
    inputs = dict(batch.inputs)
    mask = inputs.get("attention_mask")
    hooks = ablation_hooks(host, heads, "pattern", attention_mask=mask)
    seen = []
    first = inputs.pop("pixel_values" if name == "vit" else "input_ids")
    last = ("blocks.2.hook_resid_post", lambda h, hook: seen.append(h.clone()))
    for _ in range(2):
        with torch.no_grad():
            host.bridge.run_with_hooks(first, fwd_hooks=[*hooks, last], **inputs)
    with host.edited(make_edits("pattern", heads, Reference())):
        expected = residual(host, batch)
    for got in seen:
        torch.testing.assert_close(got[batch.valid], expected[batch.valid])


def test_a_padded_encoder_without_its_mask_is_refused(tiny_bert):
    (batch,) = tiny_bert.batches(tiny.samples())
    inputs = dict(batch.inputs)
    hooks = ablation_hooks(tiny_bert, [(0, 1)], "pattern")
    with pytest.raises(RuntimeError, match=r"is padding, say.*ablation_hooks\(attention_mask"):
        tiny_bert.bridge.run_with_hooks(inputs.pop("input_ids"), fwd_hooks=hooks, **inputs)


def test_a_misread_mask_is_refused(tiny_gpt2, monkeypatch):
    real = editing.allowed
    monkeypatch.setattr(editing, "allowed", lambda mask: real(mask).tril(-1))
    (batch,) = tiny_gpt2.batches(tiny.samples()[1:2])
    with (
        pytest.raises(RuntimeError, match="to a key that its mask hides: the mask was misread"),
        tiny_gpt2.edited(make_edits("pattern", [(1, 0)], Reference())),
    ):
        residual(tiny_gpt2, batch)


def test_one_visible_key_leaves_z(tiny_gpt2):
    """The first token of a decoder sees itself alone, so nothing of it changes."""
    (batch,) = tiny_gpt2.batches(tiny.samples()[1:2])
    clean = residual(tiny_gpt2, batch, 0)
    with tiny_gpt2.edited(make_edits("pattern", [(0, 0)], Reference())):
        edited = residual(tiny_gpt2, batch, 0)
    torch.testing.assert_close(edited[:, 0], clean[:, 0])
    assert (edited - clean)[:, 1:].abs().max() > 1e-2


def test_compatibility_mode_and_bfloat16():
    bridge = tiny.bridge("gpt2")
    bridge.enable_compatibility_mode()
    for host in (accept(bridge), tiny.host("llama", dtype=torch.bfloat16)):
        batch = padded_batch("", host)
        with host.edited(make_edits("pattern", [(1, 1)], Reference())):
            found = capture(host.bridge, ["blocks.1.attn.hook_z"], batch.inputs)
        clean = capture(host.bridge, ["blocks.1.attn.hook_z"], batch.inputs)
        one, two = (x["blocks.1.attn.hook_z"] for x in (found, clean))
        assert one.dtype == two.dtype
        assert torch.equal(one[:, :, [0, 2, 3]], two[:, :, [0, 2, 3]])
        assert (one - two)[batch.valid].abs().max() > 1e-2
