"""Pattern ablation: uniform attention over what the model's own mask leaves, on every kind and host."""

import pytest
import tiny
import torch
from ablation_cases import residual
from both_hosts import EVERY, LIBRARIES, host_on, new_host, on_both, read_one

from sa_plugin.data import Sample
from sa_plugin.heads import Reference, make_edits
from sa_plugin.host import Attended, Site, ZEdit, uniform_attention
from sa_plugin.host import edits as editing
from sa_transformer_lens import ablation_hooks, accept
from sa_transformer_lens.passes import capture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
# How nnsight's own modules lay out values is known here for these.
READABLE = ("gpt2", "neox", "llama", "bert", "vit")
LONG = "The dog sat. " * 4


def padded_batch(name, host):
    samples = tiny.images() if name in tiny.VISION else tiny.samples()
    return host.batches(samples)[0]


def z_of(host, batch, layer=1):
    return read_one(host, batch, Site(layer, "z"))


def patterned(*heads):
    return make_edits("pattern", list(heads), Reference())


def uniform_by_loop(name, host, batch, layer=1):
    """z of uniform attention from the library's own pattern and values, query by query.

    Returns z and its rows, those that are no padding.
    """
    by_library = _lens_values if host.info.host == "transformer_lens" else _module_values
    pattern, value = by_library(name, host, batch, layer)
    value = value.repeat_interleave(host.info.n_heads // value.shape[2], 2)
    mask = batch.inputs["attention_mask"] if "attention_mask" in list(batch.inputs) else None
    rows = torch.ones_like(pattern[:, 0, :, 0], dtype=torch.bool) if mask is None else mask.bool()
    z = torch.zeros(*rows.shape, host.info.n_heads, host.info.d_head)
    for b, q in torch.nonzero(rows).tolist():
        z[b, q] = value[b, (pattern[b, :, q] > 0).any(0)].mean(0)
    return z, rows


def _lens_values(name, host, batch, layer):
    hooks = [f"blocks.{layer}.attn.hook_{x}" for x in ("pattern", "v")]
    return capture(host.bridge, hooks, batch.inputs).values()


def _module_values(name, host, batch, layer):
    """By a hook of torch on the module that makes values, split as the architecture does."""
    kept, role = [], "qkv" if host.places.has("qkv") else "v"
    handle = host.places.module(role, layer).register_forward_hook(lambda *a: kept.append(a[2]))
    pattern = read_one(host, batch, Site(layer, "pattern"))
    handle.remove()
    out = kept[0]
    if name == "gpt2":
        out = out[..., -host.info.d_model :]
    if name == "neox":
        out = out.unflatten(-1, (host.info.n_heads, 3, -1))[..., 2, :].flatten(-2)
    return pattern, out.unflatten(-1, (-1, host.info.d_head))


CASES = [("transformer_lens", name, "right") for name in EVERY]
CASES += [("transformer_lens", name, "left") for name in tiny.ARCHITECTURES]
CASES += [("nnsight", name, "right") for name in READABLE]
CASES += [("nnsight", name, "left") for name in READABLE if name != "vit"]


@pytest.mark.parametrize(("library", "name", "side"), CASES)
def test_z_is_the_mean_of_visible_values(library, name, side):
    host = host_on(library, name) if side == "right" else new_host(library, name, padding_side=side)
    batch = padded_batch(name, host)
    expected, rows = uniform_by_loop(name, host, batch)
    clean = z_of(host, batch)
    with host.edited(patterned((1, 1), (1, 3))):
        z = z_of(host, batch)
    heads = [1, 3]
    torch.testing.assert_close(z[rows][:, heads], expected[rows][:, heads], atol=1e-5, rtol=1e-4)
    assert torch.equal(z[:, :, [0, 2]], clean[:, :, [0, 2]])
    assert (z - clean)[rows][:, heads].abs().max() > 1e-2


@pytest.mark.parametrize("name", EVERY)
def test_both_libraries_give_the_same(name):
    edits, found = patterned((0, 1), (1, 3), (2, 0)), []
    for library in LIBRARIES:
        # TransformerLens reads DINOv2 with its LayerScale folded.
        folded = library == "nnsight" and name == "dinov2"
        host = new_host(library, name, folded=True) if folded else host_on(library, name)
        batch = padded_batch(name, host)
        with host.edited(edits):
            found.append(residual(host, batch)[batch.valid])
        assert not torch.allclose(found[-1], residual(host, batch)[batch.valid], atol=1e-2)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@on_both("gemma2")
def test_a_sliding_window_hides_what_it_hides(library, name):
    """Gemma-2's even blocks see 16 tokens here, its odd ones all."""
    host = host_on(library, name)
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


@on_both("gpt2")
def test_values_are_those_of_the_edited_pass(library, name):
    """An earlier ablation changes the values that a later head averages."""
    host = host_on(library, name)
    (batch,) = host.batches(tiny.samples()[1:2])
    with host.edited({Site(0, "z"): torch.zeros_like}):
        expected, _ = uniform_by_loop(name, host, batch)
        with host.edited(patterned((1, 0))):
            z = z_of(host, batch)
    torch.testing.assert_close(z[:, :, 0], expected[:, :, 0], atol=1e-5, rtol=1e-4)


@on_both("gpt2")
def test_contexts_nest(library, name):
    """The inner edit sees what the outer one left, also of the same block's z."""
    host = host_on(library, name)
    batch = padded_batch(name, host)
    with host.edited(patterned((1, 0))), host.edited(patterned((1, 2))):
        nested = residual(host, batch)
    with host.edited(patterned((1, 0), (1, 2))):
        torch.testing.assert_close(residual(host, batch), nested)


@pytest.mark.parametrize(
    ("library", "name"),
    [("transformer_lens", name) for name in tiny.ARCHITECTURES]
    + [("nnsight", name) for name in ("gpt2", "llama", "bert")],
)
def test_padding_changes_nothing(library, name):
    host = host_on(library, name)
    (together,) = host.batches(tiny.samples())
    with host.edited(patterned((0, 0), (1, 2))):
        padded = residual(host, together)
        for k, row in enumerate(together.rows.tolist()):
            (alone,) = host.batches(tiny.samples()[row : row + 1])
            got = padded[k, together.valid[k]]
            torch.testing.assert_close(got, residual(host, alone)[alone.valid], atol=1e-4, rtol=1e-4)


@on_both("gpt2")
def test_one_visible_key_leaves_z(library, name):
    """The first token of a decoder sees itself alone, so nothing of it changes."""
    host = host_on(library, name)
    (batch,) = host.batches(tiny.samples()[1:2])
    clean = residual(host, batch, 0)
    with host.edited(patterned((0, 0))):
        edited = residual(host, batch, 0)
    torch.testing.assert_close(edited[:, 0], clean[:, 0])
    assert (edited - clean)[:, 1:].abs().max() > 1e-2


@on_both("gpt2")
def test_a_misread_mask_is_refused(library, name, monkeypatch):
    real = editing.allowed
    monkeypatch.setattr(editing, "allowed", lambda mask: real(mask).tril(-1))
    host = host_on(library, name)
    (batch,) = host.batches(tiny.samples()[1:2])
    with (
        pytest.raises(RuntimeError, match="to a key that its mask hides: the mask was misread"),
        host.edited(patterned((1, 0))),
    ):
        residual(host, batch)


def test_queries_without_keys_keep_their_z():
    z = torch.randn(1, 2, 1, 3)
    attended = Attended(torch.randn(1, 2, 1, 3), torch.tensor([[[False, False], [True, True]]]))
    out = uniform_attention(z, torch.tensor([0]), attended)
    assert torch.equal(out[0, 0], z[0, 0])
    torch.testing.assert_close(out[0, 1, 0], attended.value[0, :, 0].mean(0))


@pytest.mark.parametrize("name", [*tiny.ARCHITECTURES, "vit", "clip_text"])
def test_hooks_of_ones_own_runs_do_the_same(name):
    host = host_on("transformer_lens", name)
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
