"""Laws of passes that start from embeddings or pixels: equal to reads, gradients, stops, errors."""

import pytest
import tiny
import torch
from fake_host import FakeHost

from sa_plugin.host import DifferentiableHost, Site, require_differentiable

TEXTS = tiny.TEXTS[:3]


def case(name, n=3, **options):
    if name in tiny.VISION:
        host = tiny.vision_host(name, **options)
        return host, host.batches(tiny.images())[0]
    host = tiny.host(name, **options)
    return host, host.batches(tiny.samples(TEXTS[:n]), batch_tokens=10_000)[0]


def read(host, batch, site):
    return host.read(batch, [site], lambda found: {"x": found[site].float()})["x"]


def shown(batch):
    """Tokens the mask leaves in: what padding holds is nobody's."""
    mask = batch.inputs.get("attention_mask")
    return torch.ones_like(batch.valid) if mask is None else mask.bool()


@pytest.mark.parametrize("name", [*tiny.ARCHITECTURES, *tiny.VISION])
def test_equals_read(name):
    host, batch = case(name)
    assert isinstance(host, DifferentiableHost)
    values = host.input_values(batch)
    assert not values.requires_grad
    for site in (Site(0, "resid_pre"), Site(1, "resid_post"), Site(2, "resid_post")):
        with torch.no_grad():
            found = host.forward_from(values, batch, site)
        expected = read(host, batch, site)
        keep = shown(batch)
        assert float((found - expected)[keep].abs().max()) <= 1e-6 * float(expected.abs().max())


@pytest.mark.parametrize("name", [*tiny.ARCHITECTURES, "clip_text"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(name, side):
    if name == "clip_text":
        from sa_transformer_lens import accept

        host = accept(tiny.vision_bridge(name), padding_side=side)
        batch = host.batches(tiny.samples(TEXTS), batch_tokens=10_000)[0]
    else:
        host, batch = case(name, padding_side=side)
    assert not batch.inputs["attention_mask"].all()
    site = Site(1, "resid_post")
    with torch.no_grad():
        together = host.forward_from(host.input_values(batch), batch, site)
    for k, row in enumerate(batch.rows.tolist()):
        (one,) = host.batches(tiny.samples((TEXTS[row],)))
        alone = read(host, one, site)[0]
        torch.testing.assert_close(together[k, batch.valid[k]], alone[one.valid[0]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*tiny.ARCHITECTURES, "vit", "dinov2", "clip_vision"])
@pytest.mark.parametrize("frozen", [True, False])
def test_gradient_equals_finite_differences(name, frozen):
    # In double precision Gemma's windows leave padded rows NaN, in plain reads too.
    host, batch = case(name, n=1 if name == "gemma2" else 3)
    model = host.bridge.original_model
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
    if not shown(batch).all():
        assert float(gradient[~shown(batch)].abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["gpt2", "bert", "vit"])
def test_rows_repeat_in_turn(name):
    host, batch = case(name)
    site = Site(1, "resid_post")
    values = host.input_values(batch)
    other = values + 0.1 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = host.forward_from(torch.cat([values, other]), batch, site)
        for k, part in enumerate((values, other)):
            alone = host.forward_from(part, batch, site)
            rows = both[k * len(values) : (k + 1) * len(values)]
            keep = shown(batch)
            torch.testing.assert_close(rows[keep], alone[keep], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bert", "vit"])
def test_several_sites_in_one_pass(name):
    host, batch = case(name)
    sites = [Site(2, "resid_pre"), Site(0, "resid_post"), Site(1, "attn_out"), Site(0, "mlp_out")]
    values = host.input_values(batch).requires_grad_(True)
    together = host.forward_sites(values, batch, sites)
    for site in sites:
        assert torch.equal(together[site], host.forward_from(values, batch, site))
        assert together[site].requires_grad
    with pytest.raises(ValueError, match="sites is empty"):
        host.forward_sites(values, batch, [])


@pytest.mark.parametrize("name", ["gpt2", "bert", "vit"])
def test_later_blocks_are_not_computed(name):
    host, batch = case(name)
    ran = []
    hooks = [(f"blocks.{k}.hook_resid_pre", lambda t, hook: ran.append(hook.name)) for k in range(3)]
    before = sum(len(point.fwd_hooks) for point in host.bridge.hook_dict.values())
    with host.bridge.hooks(fwd_hooks=hooks):
        host.forward_from(host.input_values(batch), batch, Site(1, "resid_post"))
    assert not any(hook.startswith("blocks.2") for hook in ran)
    assert sum(len(point.fwd_hooks) for point in host.bridge.hook_dict.values()) == before


def test_the_callers_values_stay(tiny_gpt2):
    (batch,) = tiny_gpt2.batches(tiny.samples(TEXTS[:1]))
    values = tiny_gpt2.input_values(batch)
    kept = values.clone()

    def spoil(tensor, hook):
        tensor.mul_(3.0)

    with torch.no_grad(), tiny_gpt2.bridge.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", spoil)]):
        tiny_gpt2.forward_from(values, batch, Site(0, "resid_post"))
    assert torch.equal(values, kept)


def test_half_precision_carries_gradients_to_float32(tiny_samples):
    host = tiny.host("llama", dtype=torch.bfloat16)
    (batch,) = host.batches(tiny_samples[:1])
    assert host.input_values(batch).dtype == torch.bfloat16
    values = host.input_values(batch).float().requires_grad_(True)
    out = host.forward_from(values, batch, Site(1, "resid_post"))
    (gradient,) = torch.autograd.grad(out.float().sum(), values)
    assert gradient.dtype == torch.float32
    assert torch.isfinite(gradient).all()


def test_refusals(tiny_gpt2):
    batch = tiny_gpt2.batches(tiny.samples(TEXTS), batch_tokens=10_000)[0]
    values, site = tiny_gpt2.input_values(batch), Site(1, "resid_post")
    with pytest.raises(ValueError, match="values have 4 rows, the batch 3 samples: give a whole"):
        tiny_gpt2.forward_from(torch.cat([values, values[:1]]), batch, site)
    with pytest.raises(ValueError, match="token by token in the same places"):
        tiny_gpt2.forward_from(values[:, 1:], batch, site)
    with pytest.raises(ValueError, match="'z' is not"):
        tiny_gpt2.forward_from(values, batch, Site(1, "z"))
    with pytest.raises(ValueError, match="layer 9 does not exist"):
        tiny_gpt2.forward_from(values, batch, Site(9, "resid_post"))
    host, images = case("vit")
    with pytest.raises(ValueError, match="this model takes pixels"):
        host.forward_from(torch.zeros(3, 5, 32), images, site)
    with pytest.raises(TypeError, match="gives no gradients and takes no embeddings"):
        require_differentiable(FakeHost())


def test_training_mode_is_refused():
    host, batch = case("gpt2")
    values = host.input_values(batch)
    host.bridge.train()
    with pytest.raises(ValueError, match="training mode"):
        host.forward_from(values, batch, Site(0, "resid_post"))
