"""Laws of reading, on both hosts: batch = loop, padding and company change nothing, nothing is left.

That what is read is what bare hooks read is in `test_nnsight_laws.py`, for all three ways at once.
"""

import pytest
import tiny
import torch
from both_hosts import ALL, LAST, batch_on, host_on, new_host, on_both, read, read_one
from torch.testing import assert_close

from sa_plugin.concepts import VectorSet
from sa_plugin.host import Site

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SIDES = ("left", "right")


def valid_part(site, tensor, valid):
    if site.point != "pattern":
        return tensor[valid]
    rows = [t[:, v][:, :, v].flatten() for t, v in zip(tensor, valid, strict=True)]
    return torch.cat(rows)


def by_sample(host, batches):
    found = {}
    for batch in batches:
        tensors = read(host, batch)
        for k, row in enumerate(batch.rows.tolist()):
            valid = batch.valid[k : k + 1]
            parts = {s: valid_part(s, t[k : k + 1], valid) for s, t in tensors.items()}
            found[row] = (batch.offsets[k, batch.valid[k]], parts)
    return found


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for row in ours:
        assert torch.equal(ours[row][0], theirs[row][0])
        for site, tensor in ours[row][1].items():
            assert_close(tensor, theirs[row][1][site], rtol=1e-4, atol=1e-5)


@on_both(*tiny.ARCHITECTURES)
def test_batch_is_loop(library, name):
    host, samples = host_on(library, name), tiny.samples()
    alone = {row: by_sample(host, host.batches([sample]))[0] for row, sample in enumerate(samples)}
    assert_same(by_sample(host, host.batches(samples)), alone)
    assert_same(by_sample(host, host.batches(samples, batch_tokens=40)), alone)


@on_both(*tiny.ARCHITECTURES)
def test_padding_side_and_amount_change_nothing(library, name):
    samples = tiny.samples()
    reference = by_sample(host_on(library, name), host_on(library, name).reader.batches(samples, 1))
    for side in SIDES:
        host = new_host(library, name, padding_side=side)
        for extra in (0, 3, 11):
            batches = host.reader.batches(samples, 10_000, extra=extra)
            assert all(batch.inputs["input_ids"].shape[1] > extra for batch in batches)
            assert_same(by_sample(host, batches), reference)


@on_both("gpt2", "bert")
def test_padding_is_where_it_should_be(library, name):
    for side, end in zip(SIDES, (0, -1), strict=True):
        (batch,) = new_host(library, name, padding_side=side).batches(tiny.samples())
        shortest = batch.inputs["attention_mask"].sum(1).argmin()
        assert batch.inputs["attention_mask"][shortest, end] == 0
        assert not (batch.valid & (batch.inputs["attention_mask"] == 0)).any()
        assert (batch.offsets[~batch.valid] == 0).all()


@on_both(*tiny.ARCHITECTURES, "vit")
def test_which_sites_are_read_together_and_in_which_order_changes_nothing(library, name):
    host = host_on(library, name)
    batch = batch_on(host, name)
    together = read(host, batch)
    for site in ALL:
        assert torch.equal(read_one(host, batch, site), together[site])
    turned = [Site(2, "resid_post"), Site(0, "z"), Site(1, "pattern"), Site(0, "resid_pre")]
    found = read(host, batch, turned)
    assert list(found) == turned
    assert all(torch.equal(found[site], together[site]) for site in turned)


@on_both(*tiny.ARCHITECTURES)
def test_heads_and_bias_are_the_attention_output(library, name):
    host = host_on(library, name)
    found = read(host, batch_on(host, name))
    for layer in range(tiny.N_LAYERS):
        weight, bias = host.output_projection(layer)
        assert weight.shape == (tiny.N_HEADS, tiny.D_HEAD, tiny.D_MODEL)
        assert weight.dtype == torch.float32
        out = torch.einsum("bthe,hed->btd", found[Site(layer, "z")], weight)
        out = out if bias is None else out + bias
        if name == "gemma2":
            norm = tiny.hf_model(name).model.layers[layer].post_attention_layernorm
            out = norm(out).detach()
        assert_close(out, found[Site(layer, "attn_out")], rtol=1e-4, atol=1e-5)


@on_both(*tiny.ARCHITECTURES)
def test_blocks_add_up(library, name):
    host = host_on(library, name)
    found = read(host, batch_on(host, name))
    total = found[Site(0, "resid_pre")].clone()
    for layer in range(tiny.N_LAYERS):
        total += found[Site(layer, "attn_out")] + found[Site(layer, "mlp_out")]
    assert torch.allclose(total, found[LAST], atol=1e-4) == (name != "bert")


@on_both(*tiny.ARCHITECTURES)
def test_half_precision_gives_float32_scores(library, name):
    host = new_host(library, name, dtype=torch.bfloat16)
    assert host.info.dtype == "bfloat16"
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(tiny.N_LAYERS, 2, tiny.D_MODEL, generator=generator)
    mean = torch.randn(tiny.N_LAYERS, tiny.D_MODEL, generator=generator)
    batch = host.batches(tiny.samples())[0]
    sites = [Site(layer, "resid_post") for layer in range(tiny.N_LAYERS)]
    for scoring in ("cosine", "dot"):
        bank = VectorSet(vectors, mean, torch.full((tiny.N_LAYERS,), 2.0), scoring)
        kept = host.read(
            batch, sites, lambda r, bank=bank: {str(s.layer): bank.score(s.layer, r[s]) for s in sites}
        )
        raw = read(host, batch, sites)
        for site in sites:
            assert raw[site].dtype == torch.bfloat16
            assert kept[str(site.layer)].dtype == torch.float32
            x = (raw[site].double() - mean[site.layer]) / 2
            expected = x @ vectors[site.layer].double().T
            if scoring == "cosine":
                expected /= x.norm(dim=-1, keepdim=True) * vectors[site.layer].double().norm(dim=-1)
            assert_close(kept[str(site.layer)].double(), expected, rtol=1e-4, atol=1e-5)


@on_both("gpt2", "llama", "bert")
def test_a_read_leaves_nothing_also_when_it_fails(library, name):
    host = host_on(library, name)
    batch, before = batch_on(host, name), state(host)
    expected = read(host, batch)
    assert state(host) == before
    for spoil in (fail_in_reduce, fail_in_a_users_hook, fail_on_an_unknown_token):
        spoil(host, batch)
        assert state(host) == before
        found = read(host, batch)
        assert all(torch.equal(found[site], expected[site]) for site in ALL)


def fail_in_reduce(host, batch):
    def reduce(found):
        raise KeyError("reduce")

    with pytest.raises(KeyError, match="reduce"):
        host.read(batch, ALL, reduce)


def fail_in_a_users_hook(host, batch):
    def hook(*_):
        raise ZeroDivisionError

    handle = host.places.blocks()[1].register_forward_hook(hook)
    with pytest.raises(ZeroDivisionError):
        read(host, batch)
    handle.remove()


def fail_on_an_unknown_token(host, batch):
    wrong = dict(batch.inputs) | {"input_ids": batch.inputs["input_ids"] + 10_000}
    spoilt = type(batch)(batch.rows, wrong, batch.valid, batch.offsets)
    with pytest.raises(IndexError):
        read(host, spoilt)


def state(host):
    """All that a read could leave behind, of torch and, on a bridge, of its hook points."""
    model = host.model if hasattr(host, "bridge") else host.places.root
    modules = {
        name: (
            m.training,
            len(m._forward_hooks),
            len(m._forward_pre_hooks),
            len(m._backward_hooks),
            len(getattr(m, "fwd_hooks", ())),
            len(getattr(m, "bwd_hooks", ())),
            getattr(m, "_stop_at_layer_idx", None),
        )
        for name, m in model.named_modules()
    }
    flags = (
        {key: value for key, value in vars(getattr(model, "cfg", ())).items() if key.startswith("use_")}
        if hasattr(model, "cfg")
        else {}
    )
    parameters = {n: (p.requires_grad, p.grad is None) for n, p in model.named_parameters()}
    level = getattr(model, "context_level", 0)
    return modules, flags, parameters, level, torch.is_grad_enabled()


@on_both("gpt2")
def test_what_reduce_sees_is_written_to_by_nobody(library, name):
    host = host_on(library, name)
    batch, early = batch_on(host, name), Site(0, "resid_post")
    expected, seen = read(host, batch, [early, LAST]), {}

    def in_place(module, args, named):
        (args[0] if args else named["hidden_states"]).add_(100)

    handle = host.places.blocks()[1].register_forward_pre_hook(in_place, with_kwargs=True)
    found = read(host, batch, [early, LAST])
    handle.remove()
    assert torch.equal(found[early], expected[early])
    assert not torch.allclose(found[LAST], expected[LAST])
    host.read(batch, [early], lambda got: seen.update(got) or {})
    assert not seen[early].requires_grad


@on_both(*tiny.ARCHITECTURES)
@pytest.mark.parametrize(
    ("site", "blocks_run"), [(Site(0, "z"), [0]), (Site(1, "resid_pre"), [0]), (LAST, [0, 1, 2])]
)
def test_a_read_stops_after_the_deepest_block(library, name, site, blocks_run):
    """Blocks that are entered run to their MLP; a trace of nnsight may end inside the block."""
    host, ran, handles = host_on(library, name), [], []
    for k, block in enumerate(host.places.blocks()):
        handles.append(block.register_forward_pre_hook(lambda *_, k=k: ran.append(k)))
    read_one(host, batch_on(host, name), site)
    for handle in handles:
        handle.remove()
    # What enters a block is seen in front of it, or inside.
    assert ran in (blocks_run, [*blocks_run, site.layer] if site.point == "resid_pre" else blocks_run)
