"""Laws of the TransformerLens host, against a Hugging Face twin read by bare torch hooks."""

import pytest
import tiny
import torch
from torch.testing import assert_close

from sa_plugin.concepts import VectorSet
from sa_plugin.host import Site

POINTS = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "pattern")
ALL = [Site(layer, point) for layer in range(tiny.N_LAYERS) for point in POINTS]
BLOCKS = {"gpt2": "transformer.h", "neox": "gpt_neox.layers", "bert": "bert.encoder.layer"}
# Inside a block: module whose output is attn_out, whose output is mlp_out, whose input is z.
MODULES = {
    "gpt2": ("attn.c_proj", "mlp", "attn.c_proj"),
    "neox": ("attention.dense", "mlp", "attention.dense"),
    "llama": ("self_attn.o_proj", "mlp", "self_attn.o_proj"),
    "qwen3": ("self_attn.o_proj", "mlp", "self_attn.o_proj"),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj"),
    "bert": ("attention.output.dense", "output.dense", "attention.output.dense"),
}


def read(host, batch, sites=ALL):
    kept = host.read(batch, sites, lambda found: {str(site): found[site] for site in sites})
    return {site: kept[str(site)] for site in sites}


def bare_hooks(architecture, inputs):
    """Every site of the unbridged model, by torch hooks on its own modules."""
    model = tiny.hf_model(architecture)
    found = {}

    def keep_out(site):
        def hook(module, args, out):
            found[site] = (out[0] if isinstance(out, tuple) else out).clone()

        return hook

    def keep_in(site):
        def hook(module, args, kwargs):
            found[site] = (args[0] if args else kwargs["hidden_states"]).clone()

        return hook

    for layer in range(tiny.N_LAYERS):
        block = model.get_submodule(f"{BLOCKS.get(architecture, 'model.layers')}.{layer}")
        attention, mlp, heads = map(block.get_submodule, MODULES[architecture])
        block.register_forward_pre_hook(keep_in(Site(layer, "resid_pre")), with_kwargs=True)
        block.register_forward_hook(keep_out(Site(layer, "resid_post")))
        attention.register_forward_hook(keep_out(Site(layer, "attn_out")))
        mlp.register_forward_hook(keep_out(Site(layer, "mlp_out")))
        heads.register_forward_pre_hook(keep_in(Site(layer, "z")), with_kwargs=True)
    with torch.no_grad():
        out = model(**inputs, output_attentions=True)
    for layer in range(tiny.N_LAYERS):
        found[Site(layer, "pattern")] = out.attentions[layer]
        z = found[Site(layer, "z")]
        found[Site(layer, "z")] = z.unflatten(-1, (tiny.N_HEADS, tiny.D_HEAD))
    return found


def valid_part(site, tensor, valid):
    if site.point != "pattern":
        return tensor[valid]
    rows = [t[:, v][:, :, v].flatten() for t, v in zip(tensor, valid, strict=True)]
    return torch.cat(rows)


def test_bridge_is_bare_hooks_on_hugging_face(architecture, tiny_host, tiny_samples):
    (batch,) = tiny_host.batches(tiny_samples)
    ours, theirs = read(tiny_host, batch), bare_hooks(architecture, batch.inputs)
    for site in ALL:
        a, b = (valid_part(site, ours[site], batch.valid), valid_part(site, theirs[site], batch.valid))
        assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda text, s=site: f"{s}: {text}")


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


def test_batch_is_loop(tiny_host, tiny_samples):
    alone = {}
    for row, sample in enumerate(tiny_samples):
        alone[row] = by_sample(tiny_host, tiny_host.batches([sample]))[0]
    assert_same(by_sample(tiny_host, tiny_host.batches(tiny_samples)), alone)
    assert_same(by_sample(tiny_host, tiny_host.batches(tiny_samples, batch_tokens=40)), alone)


def test_padding_side_and_amount_change_nothing(tiny_bridge, tiny_host, tiny_samples):
    from sa_transformer_lens import accept

    left = accept(tiny_bridge, padding_side="left")
    reference = by_sample(tiny_host, tiny_host.reader.batches(tiny_samples, 1))
    for host in (tiny_host, left):
        for extra in (0, 3, 11):
            batches = host.reader.batches(tiny_samples, 10_000, extra=extra)
            assert all(batch.inputs["input_ids"].shape[1] > extra for batch in batches)
            assert_same(by_sample(host, batches), reference)


def test_padding_is_where_it_should_be(tiny_bridge, tiny_samples):
    from sa_transformer_lens import accept

    for side, end in (("left", 0), ("right", -1)):
        (batch,) = accept(tiny_bridge, padding_side=side).batches(tiny_samples)
        shortest = batch.inputs["attention_mask"].sum(1).argmin()
        assert batch.inputs["attention_mask"][shortest, end] == 0
        assert not (batch.valid & (batch.inputs["attention_mask"] == 0)).any()
        assert (batch.offsets[~batch.valid] == 0).all()


def test_which_sites_are_read_together_changes_nothing(tiny_host, tiny_samples):
    batch = tiny_host.batches(tiny_samples)[0]
    together = read(tiny_host, batch)
    for site in ALL:
        assert torch.equal(read(tiny_host, batch, [site])[site], together[site])


def test_heads_and_bias_are_the_attention_output(architecture, tiny_host, tiny_samples):
    batch = tiny_host.batches(tiny_samples)[0]
    found = read(tiny_host, batch)
    for layer in range(tiny.N_LAYERS):
        weight, bias = tiny_host.output_projection(layer)
        assert weight.shape == (tiny.N_HEADS, tiny.D_HEAD, tiny.D_MODEL)
        assert weight.dtype == torch.float32
        out = torch.einsum("bthe,hed->btd", found[Site(layer, "z")], weight)
        out = out if bias is None else out + bias
        if architecture == "gemma2":
            norm = tiny.hf_model(architecture).model.layers[layer].post_attention_layernorm
            out = norm(out).detach()
        assert_close(out, found[Site(layer, "attn_out")], rtol=1e-4, atol=1e-5)


def test_blocks_add_up(architecture, tiny_host, tiny_samples):
    found = read(tiny_host, tiny_host.batches(tiny_samples)[0])
    total = found[Site(0, "resid_pre")].clone()
    for layer in range(tiny.N_LAYERS):
        total += found[Site(layer, "attn_out")] + found[Site(layer, "mlp_out")]
    adds_up = torch.allclose(total, found[Site(tiny.N_LAYERS - 1, "resid_post")], atol=1e-4)
    assert adds_up == (architecture != "bert")


def test_half_precision_gives_float32_scores(architecture):
    host = tiny.host(architecture, dtype=torch.bfloat16)
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


def test_a_read_changes_nothing_in_the_model(tiny_host, tiny_samples):
    bridge = tiny_host.bridge
    before = state(bridge)
    read(tiny_host, tiny_host.batches(tiny_samples)[0])
    assert state(bridge) == before


def test_an_exception_changes_nothing_in_the_model(tiny_host, tiny_samples):
    bridge, batch = tiny_host.bridge, tiny_host.batches(tiny_samples)[0]
    before, expected = state(bridge), read(tiny_host, batch)
    for spoil in (fail_in_reduce, fail_in_a_users_hook, fail_on_an_unknown_token):
        spoil(tiny_host, batch)
        assert state(bridge) == before
        found = read(tiny_host, batch)
        assert all(torch.equal(found[site], expected[site]) for site in ALL)


def fail_in_reduce(host, batch):
    def reduce(found):
        raise KeyError("reduce")

    assert_raises(KeyError, lambda: host.read(batch, ALL, reduce))


def fail_in_a_users_hook(host, batch):
    def hook(tensor, hook):
        raise ZeroDivisionError

    with host.bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", hook)]):
        assert_raises(ZeroDivisionError, lambda: read(host, batch))


def fail_on_an_unknown_token(host, batch):
    wrong = dict(batch.inputs) | {"input_ids": batch.inputs["input_ids"] + 10_000}
    spoilt = type(batch)(batch.rows, wrong, batch.valid, batch.offsets)
    assert_raises(IndexError, lambda: read(host, spoilt))


def assert_raises(kind, call):
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


def state(bridge):
    """All that a read could leave behind."""
    flags = {key: value for key, value in vars(bridge.cfg).items() if key.startswith("use_")}
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
        for name, m in bridge.named_modules()
    }
    parameters = {n: (p.requires_grad, p.grad is None) for n, p in bridge.named_parameters()}
    return flags, modules, parameters, bridge.context_level, torch.is_grad_enabled()


def test_what_reduce_sees_is_written_to_by_nobody(tiny_gpt2, tiny_samples):
    batch = tiny_gpt2.batches(tiny_samples)[0]
    site = Site(0, "resid_post")
    expected = read(tiny_gpt2, batch, [site])[site]

    def in_place(tensor, hook):
        tensor += 100

    deeper = Site(2, "resid_post")
    with tiny_gpt2.bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", in_place)]):
        found = read(tiny_gpt2, batch, [site, deeper])
    assert torch.equal(found[site], expected)
    assert not torch.allclose(found[deeper], read(tiny_gpt2, batch, [deeper])[deeper])


@pytest.mark.parametrize(
    ("site", "blocks_run"),
    [(Site(0, "z"), [0]), (Site(1, "resid_pre"), [0]), (Site(2, "resid_post"), [0, 1, 2])],
)
def test_a_read_stops_after_the_deepest_block(tiny_host, tiny_samples, site, blocks_run):
    ran = []
    hooks = [
        (f"blocks.{layer}.mlp.out.hook_out", lambda tensor, hook, k=layer: ran.append(k))
        for layer in range(tiny.N_LAYERS)
    ]
    hooks.append(("unembed.hook_out", lambda tensor, hook: ran.append("logits")))
    with tiny_host.bridge.hooks(fwd_hooks=hooks):
        read(tiny_host, tiny_host.batches(tiny_samples)[0], [site])
    assert ran == blocks_run
