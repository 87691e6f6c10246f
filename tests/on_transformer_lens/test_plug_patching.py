"""Every sweep of transformer_lens.patching with an objective, beside plain torch hooks."""

import inspect

import numpy as np
import plug_cases
import pytest
import tiny
import torch
from plug_cases import EVERY, Bare, pair, view_of
from transformer_lens import patching

from sa_transformer_lens.prefix import prefix_view

# Activation, axes in the order of the result, and which of them is not cut out of the activation.
BLOCK, BY_POS, ALL_POS = ("layer", "pos"), ("layer", "pos", "head"), ("layer", "head")
SWEEPS = {
    **{name: (name, BLOCK) for name in ("resid_pre", "resid_mid", "attn_out", "mlp_out")},
    **{f"attn_head_{n}_by_pos": (a, BY_POS) for n, a in (("out", "z"), ("q", "q"), ("k", "k"), ("v", "v"))},
    **{f"attn_head_{n}_all_pos": (a, ALL_POS) for n, a in (("out", "z"), ("q", "q"), ("k", "k"), ("v", "v"))},
    "attn_head_pattern_all_pos": ("pattern", ("layer", "head_index")),
    "attn_head_pattern_by_pos": ("pattern", ("layer", "head_index", "dest_pos")),
    "attn_head_pattern_dest_src_pos": ("pattern", ("layer", "head_index", "dest_pos", "src_pos")),
}
STACKED = {
    "attn_head_all_pos_every": [f"attn_head_{n}_all_pos" for n in ("out", *"qkv", "pattern")],
    "attn_head_by_pos_every": [f"attn_head_{n}_by_pos" for n in ("out", *"qkv", "pattern")],
    "block_every": ["resid_pre", "attn_out", "mlp_out"],
}
PATHS = {"direct_path", "direct_path_all_sources"}
CELLS = 10
SEALED = ("bert", "vit")


def sweep(name):
    return getattr(patching, f"get_act_patch_{name}")


def where(axes, index):
    """Positions of an activation that a cell patches, as an index of the tensor."""
    at = dict(zip(axes, index, strict=True))
    head = at.get("head", at.get("head_index", slice(None)))
    if "head_index" in at:
        return slice(None), head, at.get("dest_pos", slice(None)), at.get("src_pos", slice(None))
    return (slice(None), at.get("pos", slice(None)), *((head,) if "head" in at else ()))


def by_hooks(bare, made, clean, corrupt, kind, axes, index):
    """The objective of one cell, by plain hooks on the unwrapped model."""
    layer, spot = int(index[0]), where(axes, index)
    if kind == "pattern":
        return pattern_by_hooks(bare, made, clean, corrupt, layer, spot)
    if kind == "resid_mid" and bare.name != "bert":
        # What stands there less what the block was given is what attention must have written.
        kind, source = "attn_out", bare.read(clean, layer, "attn_out")
        source = source + bare.read(clean, layer, "resid_pre")
        source = source - bare.read(corrupt, layer, "resid_pre")
    else:
        source = bare.read(clean, layer, kind)

    def edit(value):
        value = value.clone()
        value[spot] = source[spot]
        return value

    return made.metric(bare.run(corrupt, made.layer, [(layer, kind, edit)])[0])


def pattern_by_hooks(bare, made, clean, corrupt, layer, spot):
    """A patched pattern is a patched z = pattern @ v."""
    pattern = bare.read(corrupt, layer, "pattern").clone()
    pattern[spot] = bare.read(clean, layer, "pattern")[spot]
    v = bare.read(corrupt, layer, "v").repeat_interleave(bare.n_heads // bare.n_kv, dim=2)
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
    return made.metric(bare.run(corrupt, made.layer, [(layer, "z", lambda _: z)])[0])


def test_no_sweep_is_left_out():
    found = {n.removeprefix("get_act_patch_") for n in dir(patching) if n.startswith("get_act_p")}
    assert found == SWEEPS.keys() | STACKED.keys() | PATHS
    others = {
        name
        for name, value in vars(patching).items()
        if inspect.isfunction(value)
        and value.__module__ == patching.__name__
        and "patch_setter" not in name
        and not name.startswith(("_", "get_act_patch_"))
    }
    assert others == {"generic_activation_patch", "make_df_from_ranges"}


@pytest.mark.parametrize("name", EVERY)
def test_every_sweep_equals_plain_hooks(name):
    host, _, _, _, inputs = pair(name)
    view, made, clean, corrupt, cache = view_of(name)
    bare, rng, found, before = Bare(name, inputs), np.random.default_rng(0), {}, n_hooks(host)
    with torch.no_grad():
        base = float(made.metric(view(corrupt)))
    for title, (kind, axes) in SWEEPS.items():
        cells = view.index(*axes)
        if kind in ("k", "v"):
            cells = cells[cells["head"] < bare.n_kv]
        few = cells.sample(min(CELLS, len(cells)), random_state=int(rng.integers(99)))
        # A vision tower's positions are not the pixels' last dimension; elsewhere it saves time.
        some = name == "vit" or (name != "gpt2" and len(axes) > 2)
        part = {"index_axis_names": None, "index_df": few} if some else {}
        if kind == "pattern" and name in SEALED:
            with pytest.raises(ValueError, match="fires and changes nothing: an edit there"):
                sweep(title)(view, corrupt, cache, made.metric, **part)
            continue
        swept = sweep(title)(view, corrupt, cache, made.metric, **part).detach()
        if not some:
            assert swept.shape == tuple(cells.max() + 1)
            swept = swept[tuple(few.to_numpy().T)]
        found[title] = swept
        for value, index in zip(swept.tolist(), few.to_numpy().tolist(), strict=True):
            expected = by_hooks(bare, made, clean, corrupt, kind, axes, index)
            assert value == pytest.approx(float(expected), abs=2e-6), (title, index)
        assert float((swept - base).abs().max()) > 1e-6, title
    assert len(found) == len(SWEEPS) - 3 * (name in SEALED)
    assert n_hooks(host) == before


def n_hooks(host):
    return sum(len(p.fwd_hooks) + len(p.bwd_hooks) for p in host.bridge.hook_dict.values())


def test_resid_mid_is_the_residual_stream_whether_gradients_are_on():
    """On the bridge itself it is the MLP's path alone, unless gradients are off."""
    view, made, _, corrupt, cache = view_of("gpt2")
    box = {}

    def capture(t, hook):
        box["r"] = t.clone()

    found = {}
    for on in (True, False):
        with torch.set_grad_enabled(on), view.bridge.hooks(fwd_hooks=[(made.hook_name, capture)]):
            found[on] = [
                sweep(name)(
                    view.bridge,
                    corrupt,
                    view.bridge.run_with_cache(pair("gpt2")[2])[1],
                    lambda logits: made.metric(box["r"]).detach(),
                    baseline=True,
                ).effect()[: made.layer + 1]
                for name in ("resid_mid", "mlp_out")
            ]
            ours = sweep("resid_mid")(view, corrupt, cache, made.metric, baseline=True).effect()
        torch.testing.assert_close(ours, found[False][0] if not on else ours)
    torch.testing.assert_close(found[True][0], found[True][1])
    torch.testing.assert_close(ours, found[False][0])
    assert float((found[True][0] - found[False][0]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["llama"])
def test_stacked_sweeps_are_the_sweeps(name):
    view, made, _, corrupt, cache = view_of(name)
    heads = view.cfg.n_heads
    for title, parts in STACKED.items():
        stacked = sweep(title)(view, corrupt, cache, made, reduce="none", baseline=True)
        assert stacked.values.shape[0] == len(parts)
        for part, values in zip(parts, stacked.values, strict=True):
            alone = sweep(part)(view, corrupt, cache, made, reduce="none").values
            if part == "attn_head_pattern_by_pos":
                alone = alone.transpose(1, 2)
            missing = heads - alone.shape[-2] if "head" in part else 0
            alone = torch.nn.functional.pad(alone, (0, 0, 0, missing))
            torch.testing.assert_close(values, alone)


@pytest.mark.parametrize("name", SEALED)
def test_stacked_sweeps_of_encoders(name):
    view, made, _, corrupt, cache = view_of(name)
    few = {"index_axis_names": None, "index_df": view.index("layer", "pos")[::5]}
    options = few if name == "vit" else {}
    stacked = sweep("block_every")(view, corrupt, cache, made.metric, **options)
    for part, values in zip(STACKED["block_every"], stacked, strict=True):
        torch.testing.assert_close(values, sweep(part)(view, corrupt, cache, made.metric, **options))
    with pytest.raises(ValueError, match="fires and changes nothing"):
        sweep("attn_head_all_pos_every")(view, corrupt, cache, made.metric)


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_direct_paths_equal_plain_hooks(component):
    """One head's write added to one later head's input, and to nothing else."""
    view, made, clean, corrupt, cache = view_of("gpt2")
    bare = Bare("gpt2", pair("gpt2")[4])
    _, own = view.run_with_cache(corrupt)
    arguments = (view, corrupt, cache, own, made.metric)
    view.bridge.set_use_split_qkv_input(True)
    swept = patching.get_act_patch_direct_path(*arguments, 0, 2, component, verbose=False)
    assert view.bridge.cfg.use_split_qkv_input
    view.bridge.set_use_split_qkv_input(False)
    width = tiny.D_HEAD
    projection = bare.block(0).attn.c_proj.weight[2 * width : 3 * width]
    delta = bare.read(clean, 0, "z")[:, :, 2] - bare.read(corrupt, 0, "z")[:, :, 2]
    block, resid = bare.block(1), bare.read(corrupt, 1, "resid_pre")
    with torch.no_grad():
        moved = block.attn.c_attn(block.ln_1(resid + delta @ projection))
    moved = moved.chunk(3, -1)["qkv".index(component)].unflatten(-1, (tiny.N_HEADS, -1))
    assert (swept[0] == 0).all()
    for head in range(tiny.N_HEADS):

        def edit(value, head=head):
            value = value.clone()
            value[:, :, head] = moved[:, :, head]
            return value

        expected = made.metric(bare.run(corrupt, made.layer, [(1, component, edit)])[0])
        assert float(swept[1, head]) == pytest.approx(float(expected), abs=2e-6)
    every = patching.get_act_patch_direct_path_all_sources(*arguments, component, verbose=False)
    torch.testing.assert_close(every[0, 2], swept)


@pytest.mark.parametrize("name", plug_cases.TEXTS[1:])
def test_direct_paths_are_refused_where_they_are_undefined(name):
    view, made, _, corrupt, cache = view_of(name)
    with pytest.raises((ValueError, NotImplementedError), match=r"unsupported|support"):
        patching.get_act_patch_direct_path(view, corrupt, cache, cache, made.metric, 0, 0, "k", verbose=False)


@pytest.mark.parametrize("name", EVERY)
def test_rows_above_the_objectives_layer_are_exactly_zero(name):
    """On the whole bridge; a view has no such rows."""
    view, made, clean, corrupt, _ = view_of(name)
    bridge, box = view.bridge, {}
    _, cache = bridge.run_with_cache(clean)
    rng = np.random.default_rng(1)
    whole = prefix_view(bridge, made).index

    def capture(t, hook):
        box["r"] = t.clone()

    metric = lambda logits: made.metric(box["r"])  # noqa: E731
    for title, (kind, axes) in SWEEPS.items():
        if kind == "pattern" and name in SEALED:
            continue
        cells = whole(*axes)
        cells = cells[cells.layer == made.layer]
        cells = cells.sample(min(4, len(cells)), random_state=int(rng.integers(99)))
        if kind in ("k", "v"):
            cells["head"] %= bridge.cfg.n_key_value_heads or bridge.cfg.n_heads
        above = cells.assign(layer=made.layer + 1)
        for index, zero in ((above, True), (cells, False)):
            with bridge.hooks(fwd_hooks=[(made.hook_name, capture)]):
                effect = sweep(title)(
                    bridge, corrupt, cache, metric, index_axis_names=None, index_df=index, baseline=True
                ).effect()
            assert bool((effect == 0).all()) == zero, (title, effect)
