"""Laws of passes that start from embeddings or pixels: equal to reads, gradients, stops, errors."""

import pytest
import tiny
import torch
from both_hosts import EVERY, LAST, TEXT_MODELS, attended, batch_on, host_on, new_host, on_both, read_one
from fake_host import FakeHost
from nnsight import NNsight
from torch.testing import assert_close

from sa_nnsight import accept
from sa_plugin.host import DifferentiableHost, Site, require_differentiable

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TEXTS = tiny.TEXTS[:3]


@on_both(*EVERY)
def test_equals_read(library, name):
    host = host_on(library, name)
    batch = batch_on(host, name)
    assert isinstance(host, DifferentiableHost)
    values = require_differentiable(host).input_values(batch)
    assert not values.requires_grad
    for site in (Site(0, "resid_pre"), Site(1, "attn_out"), Site(1, "resid_post"), LAST):
        with torch.no_grad():
            found = host.forward_from(values, batch, site)
        expected, keep = read_one(host, batch, site), attended(batch)
        assert float((found - expected)[keep].abs().max()) <= 1e-6 * float(expected.abs().max())


@on_both(*TEXT_MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(library, name, side):
    host = new_host(library, name, padding_side=side)
    batch = batch_on(host, name)
    assert not batch.inputs["attention_mask"].all()
    site = Site(1, "resid_post")
    with torch.no_grad():
        together = host.forward_from(host.input_values(batch), batch, site)
    for k, row in enumerate(batch.rows.tolist()):
        (one,) = host.batches(tiny.samples((TEXTS[row],)))
        alone = read_one(host, one, site)[0]
        assert_close(together[k, batch.valid[k]], alone[one.valid[0]], rtol=1e-4, atol=1e-5)


@on_both(*tiny.ARCHITECTURES, "vit", "dinov2", "clip_vision")
@pytest.mark.parametrize("frozen", [True, False])
def test_gradient_equals_finite_differences(library, name, frozen):
    host = new_host(library, name)
    # In double precision Gemma's windows leave padded rows NaN, in plain reads too.
    batch = batch_on(host, name, n=1 if name == "gemma2" else 3)
    model = host.places.root
    model.double().requires_grad_(not frozen)
    site = Site(1, "resid_post")
    generator = torch.Generator().manual_seed(0)
    values = host.input_values(batch).double().requires_grad_(True)
    out = host.forward_from(values, batch, site)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.double)
    weights = weights * batch.valid[..., None]
    (gradient,) = torch.autograd.grad((out * weights).sum(), values)
    direction = torch.randn(values.shape, generator=generator, dtype=torch.double)
    # Some norms are computed in single precision, so the step is wide and the stencil of order 4.
    step = 1e-3
    with torch.no_grad():
        at = {
            k: (host.forward_from(values + k * step * direction, batch, site) * weights).sum()
            for k in (-2, -1, 1, 2)
        }
    slope = float((at[-2] - at[2] + 8 * (at[1] - at[-1])) / (12 * step))
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=5e-3, abs=1e-4)
    assert all(p.grad is None for p in model.parameters())
    if not attended(batch).all():
        assert float(gradient[~attended(batch)].abs().max()) < 1e-12


@on_both("gpt2", "bert", "vit")
def test_rows_repeat_in_turn(library, name):
    host = host_on(library, name)
    batch = batch_on(host, name)
    site = Site(1, "resid_post")
    values = host.input_values(batch)
    other = values + 0.1 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = host.forward_from(torch.cat([values, other]), batch, site)
        for k, part in enumerate((values, other)):
            alone = host.forward_from(part, batch, site)
            rows = both[k * len(values) : (k + 1) * len(values)]
            keep = attended(batch)
            torch.testing.assert_close(rows[keep], alone[keep], rtol=1e-4, atol=1e-5)


@on_both("gpt2", "gemma2", "bert", "vit")
def test_several_sites_in_one_pass(library, name):
    host = host_on(library, name)
    batch = batch_on(host, name)
    sites = [Site(2, "resid_pre"), Site(0, "resid_post"), Site(1, "attn_out"), Site(0, "mlp_out")]
    values = host.input_values(batch).requires_grad_(True)
    together = host.forward_sites(values, batch, sites)
    for site in sites:
        assert torch.equal(together[site], host.forward_from(values, batch, site))
        assert together[site].requires_grad
    with pytest.raises(ValueError, match="sites is empty"):
        host.forward_sites(values, batch, [])


@on_both("gpt2", "bert", "vit")
def test_later_blocks_are_not_computed(library, name):
    host = host_on(library, name)
    ran, handles = [], []
    for k, block in enumerate(host.places.blocks()):
        handles.append(block.register_forward_hook(lambda *_, k=k: ran.append(k)))
    batch = batch_on(host, name)
    host.forward_from(host.input_values(batch), batch, Site(1, "resid_pre"))
    for handle in handles:
        handle.remove()
    assert ran == [0]


@on_both("gpt2")
def test_the_callers_values_stay(library, name):
    host = host_on(library, name)
    batch = batch_on(host, name, n=1)
    values = host.input_values(batch)
    kept = values.clone()

    def spoil(module, args, named):
        (args[0] if args else named["hidden_states"]).mul_(3.0)

    handle = host.places.blocks()[0].register_forward_pre_hook(spoil, with_kwargs=True)
    with torch.no_grad():
        host.forward_from(values, batch, Site(0, "resid_post"))
    handle.remove()
    assert torch.equal(values, kept)


@on_both("llama")
def test_half_precision_carries_gradients_to_float32(library, name):
    host = new_host(library, name, dtype=torch.bfloat16)
    batch = batch_on(host, name, n=1)
    assert host.input_values(batch).dtype == torch.bfloat16
    values = host.input_values(batch).float().requires_grad_(True)
    out = host.forward_from(values, batch, Site(1, "resid_post"))
    (gradient,) = torch.autograd.grad(out.float().sum(), values)
    assert gradient.dtype == torch.float32
    assert torch.isfinite(gradient).all()


@on_both("gpt2")
def test_refusals(library, name):
    host, site = host_on(library, name), Site(1, "resid_post")
    batch = batch_on(host, name)
    values = host.input_values(batch)
    with pytest.raises(ValueError, match="values have 4 rows, the batch 3 samples: give a whole"):
        host.forward_from(torch.cat([values, values[:1]]), batch, site)
    with pytest.raises(ValueError, match="token by token in the same places"):
        host.forward_from(values[:, 1:], batch, site)
    with pytest.raises(ValueError, match="'z' is not"):
        host.forward_from(values, batch, Site(1, "z"))
    with pytest.raises(ValueError, match="layer 9 does not exist"):
        host.forward_from(values, batch, Site(9, "resid_post"))
    seeing = host_on(library, "vit")
    images = batch_on(seeing, "vit")
    with pytest.raises(ValueError, match="this model takes pixels"):
        seeing.forward_from(torch.zeros(3, 5, 32), images, site)


def test_what_lacks_embeddings_says_so():
    with pytest.raises(TypeError, match="gives no gradients and takes no embeddings"):
        require_differentiable(FakeHost())
    other = accept(
        NNsight(tiny.hf_model("gpt2")),
        tokenizer=tiny.tokenizer("gpt2"),
        paths={"embed": "transformer.nothing"},
    )
    with pytest.raises(AttributeError):
        other.input_values(batch_on(other, "gpt2"))


@on_both("gpt2")
def test_training_mode_is_refused(library, name):
    host = new_host(library, name)
    batch = batch_on(host, name)
    values = host.input_values(batch)
    host.places.root.train()
    with pytest.raises(ValueError, match="training mode"):
        host.forward_from(values, batch, Site(0, "resid_post"))
