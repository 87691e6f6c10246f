"""Laws of the prefix view in TransformerLens's own patching and attribution functions."""

import warnings
from functools import cache, partial

import numpy as np
import pytest
import tiny
import torch
from transformer_lens import patching
from transformer_lens.tools.analysis.attribution_patching import attribution_patch

from sa_plugin.attribution import objective
from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData, Sample, Splits
from sa_plugin.detection import calibrate
from sa_transformer_lens.prefix import prefix_view

DECODERS = ("gpt2", "neox", "llama", "gemma2", "qwen3")
WORDS = ("cat", "dog", "sat", "mat", "people", "walk", "home", "night", "the", "on")
TEXT = "the cat sat on the mat"


@cache
def setup(architecture):
    """A bridge, an objective at block 1 of 3, and clean and corrupted tokens."""
    rng = np.random.default_rng(0)
    words = [list(rng.choice(WORDS, rng.integers(5, 10))) for _ in range(50)]
    labels = [["animal" if w in ("cat", "dog") else None for w in row] for row in words]
    data = ConceptData.from_words(words, labels, splits=Splits(seed=1))
    host = tiny.host(architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = fit(host, data, "prototype", layers=[1])
        detector = calibrate(host, data, bank, deltas=(0.9,))
    f = objective(
        "superactivator",
        detector=detector,
        concept="animal",
        sample=Sample("s", TEXT, "s"),
        fallback="top_token",
    )
    inputs = dict(host.forward_inputs(Sample("s", TEXT, "s")))
    clean = inputs.pop("input_ids")
    corrupt = clean.clone()
    corrupt[0, 3:5] = corrupt[0, [5, 6]]
    return host, f, clean, corrupt, inputs


@pytest.fixture(params=DECODERS)
def case(request):
    return setup(request.param)


def residual(bridge, tokens, layer, hooks=()):
    """Oracle: the whole bridge, the residual picked from a hook."""
    box = []
    name = f"blocks.{layer}.hook_resid_post"
    with bridge.hooks(fwd_hooks=[*hooks, (name, lambda t, hook: box.append(t.clone()))]):
        bridge(tokens)
    return box[0]


def n_hooks(bridge):
    return sum(len(p.fwd_hooks) + len(p.bwd_hooks) for p in bridge.hook_dict.values())


def test_returns_the_residual_of_its_layer(case):
    host, f, clean, _, inputs = case
    for layer in range(host.info.n_layers):
        view = prefix_view(host, layer, **inputs)
        torch.testing.assert_close(view(clean), residual(host.bridge, clean, layer))
        assert view.cfg.n_layers == layer + 1
    assert host.bridge.cfg.n_layers == 3
    view = prefix_view(host.bridge, f)
    torch.testing.assert_close(f(view(clean)), f(residual(host.bridge, clean, f.layer)))
    assert repr(view).endswith("up to blocks.1.hook_resid_post)")


def test_later_blocks_are_never_computed(case):
    host, f, clean, _, inputs = case
    view, ran = prefix_view(host, f, **inputs), []
    hooks = [(f"blocks.{b}.hook_resid_pre", lambda t, hook: ran.append(hook.name)) for b in range(3)]
    with host.bridge.hooks(fwd_hooks=hooks):
        view(clean)
        assert len(ran) == 2
        _, found = view.run_with_cache(clean)
    assert not any(name.startswith("blocks.2.") for name in found)
    assert "blocks.1.hook_resid_post" in found


def test_resid_pre_sweep_equals_a_loop_of_hooks(case):
    host, f, clean, corrupt, inputs = case
    view = prefix_view(host, f, **inputs)
    before = n_hooks(host.bridge)
    _, found = view.run_with_cache(clean)
    swept = patching.get_act_patch_resid_pre(view, corrupt, found, f.metric)
    assert swept.shape == (f.layer + 1, clean.shape[1])
    assert n_hooks(host.bridge) == before
    for layer, position in np.ndindex(*swept.shape):
        name = f"blocks.{layer}.hook_resid_pre"

        def patch(t, hook, name=name, position=position):
            t = t.clone()
            t[:, position] = found[name][:, position]
            return t

        with torch.no_grad():
            expected = f.metric(residual(host.bridge, corrupt, f.layer, [(name, patch)]))
        assert float(swept[layer, position]) == pytest.approx(float(expected), abs=1e-6)
    with torch.no_grad():
        assert float((swept - f.metric(view(corrupt))).abs().max()) > 1e-4


def test_other_sweeps_run(case):
    host, f, clean, corrupt, inputs = case
    view = prefix_view(host, f, **inputs)
    _, found = view.run_with_cache(clean)
    with torch.no_grad():
        base = float(f.metric(view(corrupt)))
    sweeps = {
        patching.get_act_patch_attn_head_out_all_pos: (2, host.info.n_heads),
        patching.get_act_patch_attn_head_pattern_all_pos: (2, host.info.n_heads),
        patching.get_act_patch_attn_head_v_all_pos: None,
        patching.get_act_patch_mlp_out: (2, clean.shape[1]),
        patching.get_act_patch_attn_out: (2, clean.shape[1]),
    }
    for sweep, shape in sweeps.items():
        swept = sweep(view, corrupt, found, f.metric)
        assert shape is None or swept.shape == shape
        assert float((swept - base).abs().max()) > 1e-6


def test_every_example_is_kept_with_reduce_none(case):
    host, f, clean, corrupt, inputs = case
    view = prefix_view(host, f, **inputs)
    pair, clean_pair = torch.cat([corrupt, clean]), torch.cat([clean, clean])
    _, found = view.run_with_cache(clean_pair)
    result = patching.get_act_patch_resid_pre(view, pair, found, f, reduce="none", baseline=True)
    assert result.values.shape == (f.layer + 1, clean.shape[1], 2)
    assert float(result.effect()[..., 1].abs().max()) < 1e-6
    _, single = view.run_with_cache(clean)
    alone = patching.get_act_patch_resid_pre(view, corrupt, single, f.metric)
    torch.testing.assert_close(result.values[..., 0], alone, atol=1e-5, rtol=1e-5)
    both = patching.get_act_patch_resid_pre(view, pair, found, {"a": f, "b": f}, reduce="mean", baseline=True)
    torch.testing.assert_close(both["a"].values, result.values.mean(-1))


def test_rows_above_the_layer_are_exactly_zero_on_the_whole_bridge(case):
    """The route without a view: a metric that reads a captured clone; in-place setters need it."""
    host, f, clean, corrupt, _ = case
    bridge, box = host.bridge, {}

    def capture(t, hook):
        box["r"] = t.clone()

    metric = lambda logits: f.metric(box["r"])  # noqa: E731
    _, found = bridge.run_with_cache(clean)
    with bridge.hooks(fwd_hooks=[(f.hook_name, capture)]):
        swept = patching.get_act_patch_resid_pre(bridge, corrupt, found, metric, baseline=True)
    effect = swept.effect()
    assert effect.shape[0] == 3
    assert (effect[f.layer + 1 :] == 0).all()
    view = prefix_view(host, f)
    _, ours = view.run_with_cache(clean)
    ours = patching.get_act_patch_resid_pre(view, corrupt, ours, f.metric, baseline=True).effect()
    torch.testing.assert_close(ours, effect[: f.layer + 1], atol=1e-6, rtol=1e-5)


def test_in_place_writes_do_not_reach_what_the_view_returned(case):
    host, _, clean, _, inputs = case
    view = prefix_view(host, 2, **inputs)
    kept = []

    def spoil(t, hook):
        kept.append(t)

    out = view.run_with_hooks(clean, fwd_hooks=[("blocks.2.hook_resid_post", spoil)])
    before = out.clone()
    with torch.no_grad():
        kept[0].zero_()
    assert torch.equal(out, before)


def test_attribution_patch_runs_and_is_first_order(case):
    host, f, clean, corrupt, inputs = case
    view = prefix_view(host, f, **inputs)
    found = attribution_patch(view, clean, corrupt, f.metric)
    assert {n.layer for n in found.node_scores} == {None, 0, 1}
    assert all(np.isfinite(v) for v in found.node_scores.values())
    # Towards itself a first-order effect is a derivative: patch a hundredth of the way.
    node = max((n for n in found.node_scores if n.kind == "mlp_out"), key=lambda n: abs(found.node_scores[n]))
    _, clean_cache = view.run_with_cache(clean)
    _, own = view.run_with_cache(corrupt)
    step = 0.01

    def nudge(t, hook):
        t = t.clone()
        way = clean_cache[node.hook_name] - own[node.hook_name]
        t[:, node.position] += step * way[:, node.position]
        return t

    with torch.no_grad():
        up = f.metric(view.run_with_hooks(corrupt, fwd_hooks=[(node.hook_name, nudge)]))
        slope = float(up - f.metric(view(corrupt))) / step
    assert found.node_scores[node] == pytest.approx(slope, rel=0.1, abs=1e-4)


def test_masks_ride_along():
    host, f, clean, _, inputs = setup("gpt2")
    pad = torch.zeros(1, 2, dtype=clean.dtype)
    padded = torch.cat([pad, clean], dim=1)
    mask = torch.cat([pad, torch.ones_like(clean)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    view = prefix_view(host, f.layer, attention_mask=mask, position_ids=positions)
    expected = prefix_view(host, f, **inputs)(clean)
    torch.testing.assert_close(view(padded)[:, 2:], expected, atol=1e-5, rtol=1e-5)
    twice = view(padded.expand(2, -1))
    torch.testing.assert_close(twice[1:, 2:], expected, atol=1e-5, rtol=1e-5)


def test_other_lengths_are_refused_before_anything_runs(case):
    host, f, clean, corrupt, inputs = case
    longer = torch.cat([corrupt, corrupt[:, -1:]], dim=1)
    ran = []
    with host.bridge.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda t, hook: ran.append(1))]):
        view = prefix_view(host, f)
        with pytest.raises(ValueError, match="clean and corrupted inputs must have the same numb"):
            view.run_with_cache(longer)
        with pytest.raises(ValueError, match="clean and corrupted inputs must have the same numb"):
            patching.get_act_patch_resid_pre(
                view, longer, {f"blocks.{b}.hook_resid_pre": None for b in range(3)}, f.metric
            )
        with pytest.raises(ValueError, match=r"same (length|number of tokens)"):
            attribution_patch(view, clean, longer, f.metric)
        view = prefix_view(host, 1, **inputs)
        with pytest.raises(ValueError, match="positions, the tokens"):
            view(longer)
        view = prefix_view(host, 1, attention_mask=inputs["attention_mask"].expand(2, -1))
        with pytest.raises(ValueError, match="give one row, or one for each row of the tokens"):
            view(corrupt.expand(3, -1))
    assert not ran


def test_bad_layers_and_inputs_are_refused():
    host, f, clean, _, _ = setup("gpt2")
    with pytest.raises(ValueError, match="layer 7 does not exist: the model has blocks 0 to 2"):
        prefix_view(host, 7)
    with pytest.raises(ValueError, match="input_ids is the input itself"):
        prefix_view(host, f, input_ids=clean)

    class Odd:
        layer, hook_name, mask = 1, "hook_embed", torch.ones(1, 3)

    with pytest.raises(ValueError, match="'hook_embed' is no hook of block 1"):
        prefix_view(host, Odd())
    with pytest.raises(ValueError, match=r"give \[batch, token\]"):
        prefix_view(host, f)(clean[0])


def test_an_exception_in_a_hook_leaves_no_hook_behind(case):
    host, f, clean, _, inputs = case
    before = n_hooks(host.bridge)

    def fail(t, hook):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        prefix_view(host, f, **inputs).run_with_hooks(clean, fwd_hooks=[("blocks.0.hook_mlp_out", fail)])
    assert n_hooks(host.bridge) == before


def test_resid_pre_ends_before_its_block():
    host, _, clean, corrupt, inputs = setup("llama")

    class Before:
        layer, hook_name, mask = 2, "blocks.2.hook_resid_pre", torch.ones(1, clean.shape[1])

    view = prefix_view(host, Before(), **inputs)
    assert view.cfg.n_layers == 2
    torch.testing.assert_close(view(clean), residual(host.bridge, clean, 1))
    _, found = view.run_with_cache(clean)
    swept = patching.get_act_patch_attn_head_out_all_pos(view, corrupt, found, lambda r: r.square().mean())
    assert swept.shape == (2, host.info.n_heads)


def test_a_leaf_hook_gives_gradients(case):
    """What `sa_transformer_lens.explain` does: differentiate by the residual entering block 0."""
    host, f, clean, _, inputs = case
    view, box = prefix_view(host, f, **inputs), {}

    def leaf(t, hook):
        box["x"] = t.detach().requires_grad_(True)
        return box["x"]

    out = view.run_with_hooks(clean, fwd_hooks=[("blocks.0.hook_resid_pre", leaf)])
    (gradient,) = torch.autograd.grad(f.metric(out), box["x"])
    shift = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
    step = 1e-3

    def value(sign):
        add = partial(lambda t, hook, s: t + s * step * shift, s=sign)
        with torch.no_grad():
            return float(f.metric(view.run_with_hooks(clean, fwd_hooks=[("blocks.0.hook_resid_pre", add)])))

    slope = (value(1) - value(-1)) / 2 / step
    assert float((gradient * shift).sum()) == pytest.approx(slope, rel=5e-2, abs=1e-3)


def test_a_sweep_over_a_hook_that_changes_nothing_is_refused():
    """BERT's pattern fires and takes an edit that reaches nobody: a sweep would report zeros."""
    host = tiny.host("bert")
    inputs = dict(host.forward_inputs(Sample("s", TEXT, "s")))
    tokens = inputs.pop("input_ids")
    view = prefix_view(host, 1, **inputs)
    _, cache_ = view.run_with_cache(tokens)
    with pytest.raises(ValueError, match="fires and changes nothing"):
        patching.get_act_patch_attn_head_pattern_all_pos(view, tokens, cache_, lambda r: r.sum())


def test_a_sweep_over_a_dead_hook_of_a_vision_tower_is_refused():
    host = tiny.vision_host("vit")
    (batch,) = host.batches(tiny.images()[:1])
    pixels = batch.inputs["pixel_values"]
    view = prefix_view(host, 1)
    with pytest.raises(ValueError, match="fires and changes nothing"):
        view.run_with_hooks(pixels, fwd_hooks=[("blocks.0.attn.hook_pattern", lambda t, hook: t * 0.5)])
    assert (
        view.run_with_hooks(pixels, fwd_hooks=[("blocks.0.attn.hook_z", lambda t, hook: t * 0.5)])
        .isfinite()
        .all()
    )


def test_a_filter_that_matches_no_hook_is_refused():
    host, f, clean, _, inputs = setup("gpt2")
    view = prefix_view(host, f, **inputs)
    with pytest.raises(ValueError, match=r"matches no hook up to blocks\.1"):
        view.run_with_cache(clean, names_filter=lambda name: name == "nope")
    with pytest.raises((KeyError, ValueError)):
        view.run_with_cache(clean, names_filter="nope")
