"""Edits of z: they reach every architecture on both hosts, nest, and leave the model as it was."""

import pytest
import tiny
import torch
from both_hosts import EVERY, batch_on, host_on, new_host, on_both, read_one
from torch.testing import assert_close

from sa_plugin.host import RAW, EditableHost, Site, local, require_editable
from sa_transformer_lens import accept
from sa_transformer_lens.passes import capture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PROJECTIONS = ("attn.c_proj", "attention.dense", "o_proj", "attention.output.dense", "self_attn.out_proj")


def zero(*heads):
    return lambda z: z.index_fill(2, torch.tensor(heads), 0.0)


@on_both(*EVERY)
def test_edit_equals_hooks_of_torch_on_the_plain_model(library, name):
    """One head of two blocks against pre-hooks on a copy that no library has touched."""
    host = host_on(library, name)
    batch = batch_on(host, name, n=1)
    model = tiny.hf_model(name) if name in tiny.ARCHITECTURES else tiny.vision_model(name)
    linear = [m for n, m in model.named_modules() if n.endswith(PROJECTIONS)]
    assert len(linear) == tiny.N_LAYERS
    value, width = torch.linspace(-1, 1, host.info.d_head), host.info.d_head

    def before(module, args):
        z = args[0].clone()
        z[..., width : 2 * width] = value
        return (z, *args[1:])

    for module in linear[:2]:
        module.register_forward_pre_hook(before)
    with torch.no_grad():
        states = model(**dict(batch.inputs), output_hidden_states=True).hidden_states

    def edit(z):
        z[:, :, 1] = value
        return z

    site = Site(1, "resid_post")
    clean = read_one(host, batch, site)
    assert isinstance(host, EditableHost)
    with require_editable(host).edited({Site(layer, "z"): edit for layer in (0, 1)}):
        got, z = read_one(host, batch, site), read_one(host, batch, Site(1, "z"))
    assert_close(got, states[2], atol=1e-4, rtol=1e-4)
    assert (got - clean).abs().max() > 1e-2
    assert_close(z[:, :, 1], value.expand_as(z[:, :, 1]))
    assert torch.equal(read_one(host, batch, site), clean)


@on_both(*EVERY)
def test_an_edited_mlp_is_what_the_block_adds(library, name):
    """Beside an edit of z in the same block; elsewhere the block adds what it added."""
    host = host_on(library, name)
    batch = batch_on(host, name, n=1)
    value = torch.linspace(-1, 1, host.info.d_model)
    parts = [Site(1, point) for point in ("resid_pre", "attn_out", "mlp_out", "resid_post")]

    def read():
        found = host.read(batch, parts, lambda got: {part.point: got[part] for part in parts})
        return [found[part.point] for part in parts]

    clean = read()
    edits = {Site(1, "mlp_out"): lambda out: out * 0 + value, Site(1, "z"): zero(0)}
    with host.edited(edits):
        before, attention, mlp, after = read()
    if library == "transformer_lens":
        assert_close(mlp, value.expand_as(mlp), atol=1e-5, rtol=1e-5)
    assert torch.equal(before, clean[0])
    assert (attention - clean[1]).abs().max() > 1e-4
    assert (after - clean[3]).abs().max() > 1e-2
    if host.info.block in ("pre_norm", "post_norm"):
        assert_close(after - before - attention, value.expand_as(mlp), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(one, other) for one, other in zip(read(), clean, strict=True))


@on_both("gpt2")
def test_an_edit_of_an_mlp_that_is_lost_is_refused(library, name, monkeypatch):
    host = new_host(library, name)
    monkeypatch.setattr(local, "_write_effect", lambda *args: 0.0)
    edits = {Site(1, "mlp_out"): torch.zeros_like}
    with pytest.raises(ValueError, match="fires and changes nothing"), host.edited(edits):
        pass


@on_both(*EVERY)
def test_zero_of_all_heads_leaves_the_bias(library, name):
    host = host_on(library, name)
    inputs = host.passes.inputs(batch_on(host, name, n=1).inputs)
    with host.edited({Site(1, "z"): torch.zeros_like}):
        out = host.passes.read(inputs, [(1, RAW)])[1, RAW]
    bias = host.output_projection(1).bias
    expected = torch.zeros(host.info.d_model) if bias is None else bias
    assert_close(out, expected.expand_as(out))


@on_both(*EVERY)
def test_the_model_is_as_before(library, name):
    host = host_on(library, name)
    batch = batch_on(host, name, n=1)
    clean, hooks = read_one(host, batch), _hooks_of(host)

    def fail(z):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), host.edited({Site(0, "z"): fail}):
        read_one(host, batch)
    with host.edited({Site(0, "z"): zero(0)}):
        read_one(host, batch)
    assert _hooks_of(host) == hooks
    assert torch.equal(read_one(host, batch), clean)


def _hooks_of(host):
    """Of torch, and, on a bridge, of its hook points."""
    return {
        name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(getattr(m, "fwd_hooks", ())))
        for name, m in host.places.root.named_modules()
    }


@on_both("gpt2")
def test_edits_nest(library, name):
    host = host_on(library, name)
    batch, site = batch_on(host, name), Site(0, "z")
    with host.edited({site: zero(0, 2), Site(1, "z"): zero(1)}):
        both = read_one(host, batch)
    with host.edited({site: zero(0), Site(1, "z"): zero(1)}):
        outer = read_one(host, batch)
        with host.edited({site: zero(2)}):
            assert torch.equal(read_one(host, batch), both)
        assert torch.equal(read_one(host, batch), outer)
    # The inner edit sees what the outer one returned.
    with host.edited({site: lambda z: z + 1}), host.edited({site: lambda z: z * 2}):
        nested = read_one(host, batch)
    with host.edited({site: lambda z: (z + 1) * 2}):
        assert_close(read_one(host, batch), nested)


def test_compatibility_mode_edits_once():
    bridge = tiny.bridge("gpt2")
    bridge.enable_compatibility_mode()
    host = accept(bridge)
    (batch,) = host.batches(tiny.samples()[:1])
    with host.edited({Site(0, "z"): lambda z: 2 * z}):
        doubled = capture(bridge, ["blocks.0.attn.hook_z"], batch.inputs)
    plain = capture(bridge, ["blocks.0.attn.hook_z"], batch.inputs)
    torch.testing.assert_close(*(2 * plain[k] if s else doubled[k] for s in (0, 1) for k in plain))


@on_both("gpt2")
@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda z: z, "' changed nothing: it would report an effect of zero"),
        (lambda z: z[:, :1], r"returned torch\.float32 .* expected torch\.float32"),
        (lambda z: z.double(), r"returned torch\.float64"),
    ],
)
def test_what_would_be_a_wrong_number_is_an_error(library, name, edit, says):
    host, site = host_on(library, name), Site(1, "z")
    batch = batch_on(host, name)
    before = read_one(host, batch)
    with pytest.raises(RuntimeError, match=says) as caught, host.edited({site: edit}):
        read_one(host, batch)
    assert f"the edit of {host.hook_name(site)!r}" in str(caught.value)
    assert torch.equal(read_one(host, batch), before)


@on_both("gpt2")
def test_an_edit_behind_what_is_read(library, name):
    host = host_on(library, name)
    batch = batch_on(host, name)
    late = {Site(2, "z"): zero(0)}
    with pytest.raises(RuntimeError, match="fired 0 times in one forward pass"), host.edited(late):
        read_one(host, batch, Site(0, "resid_post"))
    with pytest.raises(RuntimeError, match="no forward pass ran while"), host.edited(late):
        pass


@on_both("gpt2")
def test_an_edit_that_is_lost(library, name):
    """A hook that takes the edit back stands for a projection that does not see it."""
    host = new_host(library, name)
    batch, linear = batch_on(host, name), host.places.blocks()[1].attn.c_proj
    # On a bridge the edit is made inside the component, in front of transformers' own module.
    linear = getattr(linear, "original_component", linear)
    clean, handles = [], [linear.register_forward_pre_hook(lambda m, args: clean.append(args[0]))]
    read_one(host, batch)
    handles.pop().remove()

    def lose():
        with host.edited({Site(1, "z"): zero(1)}):
            handles.append(linear.register_forward_pre_hook(lambda m, args: (clean[0],)))
            read_one(host, batch)

    with pytest.raises(RuntimeError, match="was lost: the output projection gave what the"):
        lose()
    handles.pop().remove()


@on_both("gpt2")
def test_refusals(library, name):
    host = host_on(library, name)
    with pytest.raises(ValueError, match="edits is empty"), host.edited({}):
        pass
    pattern, missing = {Site(0, "pattern"): zero(0)}, {Site(9, "z"): zero(0)}
    with (
        pytest.raises(ValueError, match="only 'z' and 'mlp_out' are causal everywhere"),
        host.edited(pattern),
    ):
        pass
    with pytest.raises(ValueError, match="layer 9 does not exist"), host.edited(missing):
        pass
