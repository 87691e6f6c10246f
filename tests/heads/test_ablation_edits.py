"""Edits of z: they reach every architecture, nest, and leave the model as it was."""

import pytest
import tiny
import torch
from ablation_cases import EVERY, any_host, residual, some_samples, standard, zero
from fake_host import FakeHost

from sa_plugin.host import Site
from sa_transformer_lens import accept
from sa_transformer_lens.passes import capture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PROJECTIONS = ("attn.c_proj", "attention.dense", "o_proj", "attention.output.dense", "self_attn.out_proj")


@pytest.fixture(scope="module", params=EVERY)
def named(request):
    return request.param, any_host(request.param)


def test_a_fake_without_edits_is_the_fake():
    fake, data, *_ = standard()
    (batch,) = fake.batches(data.test.samples[:4])
    torch.testing.assert_close(residual(fake, batch), residual(FakeHost(), batch))


def test_edit_equals_hooks_of_torch_on_the_plain_model(named):
    """One head of two blocks against pre-hooks on a copy that no bridge has touched."""
    name, host = named
    (batch,) = host.batches(some_samples(name))
    build = tiny.hf_model if name in tiny.ARCHITECTURES else tiny.vision_model
    model = build(name)
    linear = [m for n, m in model.named_modules() if n.endswith(PROJECTIONS)]
    assert len(linear) == tiny.N_LAYERS
    value = torch.linspace(-1, 1, tiny.D_HEAD)

    def before(module, args):
        z = args[0].clone()
        z[..., tiny.D_HEAD : 2 * tiny.D_HEAD] = value
        return (z, *args[1:])

    for module in linear[:2]:
        module.register_forward_pre_hook(before)
    with torch.no_grad():
        states = model(**dict(batch.inputs), output_hidden_states=True).hidden_states

    def edit(z):
        z[:, :, 1] = value
        return z

    clean = residual(host, batch, 1)
    with host.edited({Site(layer, "z"): edit for layer in (0, 1)}):
        got = residual(host, batch, 1)
    torch.testing.assert_close(got, states[2], atol=1e-4, rtol=1e-4)
    assert (got - clean).abs().max() > 1e-2


def test_zero_of_all_heads_leaves_the_bias(named):
    name, host = named
    (batch,) = host.batches(some_samples(name))
    raw = "blocks.1.attn.o.hook_out"
    with host.edited({Site(1, "z"): torch.zeros_like}):
        out = capture(host.bridge, [raw], batch.inputs)[raw]
    bias = host.output_projection(1).bias
    expected = torch.zeros(host.info.d_model) if bias is None else bias
    torch.testing.assert_close(out, expected.expand_as(out))


def test_the_model_is_as_before(named):
    name, host = named
    (batch,) = host.batches(some_samples(name))
    clean = residual(host, batch)
    hooks = {n: len(h.fwd_hooks) for n, h in host.bridge.hook_dict.items()}

    def fail(z):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), host.edited({Site(0, "z"): fail}):
        residual(host, batch)
    with host.edited({Site(0, "z"): zero(0)}):
        residual(host, batch)
    assert {n: len(h.fwd_hooks) for n, h in host.bridge.hook_dict.items()} == hooks
    assert torch.equal(residual(host, batch), clean)


def test_edits_nest(tiny_gpt2):
    (batch,) = tiny_gpt2.batches(tiny.samples()[:1])
    with tiny_gpt2.edited({Site(0, "z"): zero(0, 2), Site(1, "z"): zero(1)}):
        both = residual(tiny_gpt2, batch)
    with tiny_gpt2.edited({Site(0, "z"): zero(0), Site(1, "z"): zero(1)}):
        outer = residual(tiny_gpt2, batch)
        with tiny_gpt2.edited({Site(0, "z"): zero(2)}):
            assert torch.equal(residual(tiny_gpt2, batch), both)
        assert torch.equal(residual(tiny_gpt2, batch), outer)


def test_compatibility_mode_edits_once():
    bridge = tiny.bridge("gpt2")
    bridge.enable_compatibility_mode()
    host = accept(bridge)
    (batch,) = host.batches(tiny.samples()[:1])
    with host.edited({Site(0, "z"): lambda z: 2 * z}):
        doubled = capture(bridge, ["blocks.0.attn.hook_z"], batch.inputs)
    plain = capture(bridge, ["blocks.0.attn.hook_z"], batch.inputs)
    torch.testing.assert_close(*(2 * plain[k] if s else doubled[k] for s in (0, 1) for k in plain))


@pytest.mark.parametrize(
    ("edits", "text"),
    [
        ({Site(0, "z"): lambda z: z}, "changed nothing: it would report an effect of zero"),
        ({Site(2, "z"): zero(0)}, "fired 0 times in one forward pass, expected once"),
        ({Site(0, "z"): lambda z: z[:, 1:]}, "expected torch.float32"),
    ],
)
def test_silent_edits_raise(tiny_gpt2, edits, text):
    (batch,) = tiny_gpt2.batches(tiny.samples()[:1])
    with pytest.raises(RuntimeError, match=text), tiny_gpt2.edited(edits):
        residual(tiny_gpt2, batch, 1)


def test_an_edit_that_another_hook_takes_back_is_lost(tiny_gpt2):
    """Stands for a projection that does not see the edit."""
    (batch,) = tiny_gpt2.batches(tiny.samples()[:1])
    name = "blocks.0.attn.o.hook_in"
    clean = capture(tiny_gpt2.bridge, ["blocks.0.attn.hook_z"], batch.inputs)
    back = clean["blocks.0.attn.hook_z"]
    with (
        pytest.raises(RuntimeError, match="was lost: the output projection gave"),
        tiny_gpt2.edited({Site(0, "z"): zero(0)}),
        tiny_gpt2.bridge.hooks(fwd_hooks=[(name, lambda z, hook: back.clone())]),
    ):
        residual(tiny_gpt2, batch)


def test_refusals_of_edits(tiny_gpt2):
    for edits, text in (({}, "edits is empty"), ({Site(0, "pattern"): zero(0)}, "only 'z'")):
        with pytest.raises(ValueError, match=text), tiny_gpt2.edited(edits):
            pass
    with pytest.raises(RuntimeError, match="no forward pass ran"), tiny_gpt2.edited({Site(0, "z"): zero(0)}):
        pass
