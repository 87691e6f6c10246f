"""captum's own classes on an objective, HookPoints as layers: loops, enumeration, and ours."""

import importlib
from itertools import combinations
from math import factorial

import attribution_cases as cases
import numpy as np
import plug_cases
import pytest
import torch
from captum import attr
from captum._utils.models.linear_model import SkLearnLinearRegression
from plug_cases import EVERY, pair, sample_of
from transformer_lens import patching

from sa_plugin.attribution import attribute, concept_score, forward_func, objective, register_objective
from sa_transformer_lens.prefix import prefix_view

module = importlib.import_module("sa_plugin.attribution.objective")
LAYERS = ("hook_out", "attn.hook_z", "hook_mlp_out")


def function(name, kind="superactivator"):
    """A host, and an objective of one sample as captum takes it."""
    host, made, *_ = pair(name, kind)
    return host, forward_func(host, made, sample_of(name))


def by_player(f, maps):
    """Sums over the input values of each token or patch."""
    of = f.feature_mask.expand(maps.shape)
    n = int(f.player_of.max()) + 1
    return np.array([float(maps[of == k].sum()) for k in range(n)])


def layer_of(host, name):
    return host.bridge.blocks[0].get_submodule(name)


def through(host, f, name, replacement):
    """The objective with one activation of block 0 replaced, by a plain hook."""
    hook = (f"blocks.0.{name}", lambda t, hook: replacement.reshape(t.shape))
    with host.bridge.hooks(fwd_hooks=[hook]):
        return f(f.inputs)


def activation(host, f, name, inputs=None):
    found = []
    hook = (f"blocks.0.{name}", lambda t, hook: found.append(t.clone()))
    with host.bridge.hooks(fwd_hooks=[hook]):
        f(f.inputs if inputs is None else inputs)
    return found[0]


@pytest.mark.parametrize("name", EVERY)
def test_integrated_gradients_are_ours(name):
    host, f = function(name)
    found = attr.IntegratedGradients(f).attribute(
        f.inputs, baselines=f.baseline("mean"), n_steps=64, internal_batch_size=64
    )
    ours = attribute(host, f.objective, sample_of(name), n_steps=128, baseline="mean")
    size = abs(ours.importance).max()
    np.testing.assert_allclose(by_player(f, found), ours.importance, atol=0.02 * size)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", EVERY)
def test_a_hook_point_is_a_layer_for_gradients_and_integrals(name, layer):
    host, f = function(name)
    start = f.baseline("mean")
    here, there = (activation(host, f, layer, x).detach() for x in (start, f.inputs))
    leaf = there.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(through(host, f, layer, leaf).sum(), leaf)
    found = attr.LayerGradientXActivation(f, layer_of(host, layer)).attribute(f.inputs)
    expected = (there * slope).reshape(found.shape)
    size = float(expected.abs().max())
    assert size > 0
    torch.testing.assert_close(found, expected, atol=1e-4 * size, rtol=1e-3)

    steps, total = 8, 0.0
    for k in range(steps):
        point = (here + (k + 0.5) / steps * (there - here)).requires_grad_(True)
        total = total + torch.autograd.grad(through(host, f, layer, point).sum(), point)[0] / steps
    found = attr.LayerIntegratedGradients(f, layer_of(host, layer)).attribute(
        f.inputs, baselines=start, n_steps=steps, method="riemann_middle"
    )
    expected = ((there - here) * total).reshape(found.shape)
    size = float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=1e-3 * size, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_layer_methods_along_a_path_are_loops(name):
    """Conductance and influence; and Grad-CAM, which takes the tokens for channels."""
    host, f = function(name)
    start, layer, steps = f.baseline("mean"), "hook_mlp_out", 6
    module_ = layer_of(host, layer)

    def slope(x):
        leaf = activation(host, f, layer, x).detach().requires_grad_(True)
        hook = (f"blocks.0.{layer}", lambda t, hook: leaf.reshape(t.shape))
        with host.bridge.hooks(fwd_hooks=[hook]):
            return leaf.detach(), torch.autograd.grad(f(x).sum(), leaf)[0]

    def close(found, expected):
        size = float(expected.abs().max())
        assert size > 0
        torch.testing.assert_close(found.reshape(expected.shape), expected, atol=1e-4 * size, rtol=1e-3)

    points = [slope(start + k / steps * (f.inputs - start)) for k in range(steps + 1)]
    expected = sum(points[k][1] * (points[k + 1][0] - points[k][0]) for k in range(steps))
    given = {"baselines": start, "n_steps": steps}
    found = attr.LayerConductance(f, module_).attribute(f.inputs, **given, method="riemann_trapezoid")
    close(found, expected)
    middle = [slope(start + (k + 0.5) / steps * (f.inputs - start))[1] for k in range(steps)]
    found = attr.InternalInfluence(f, module_).attribute(f.inputs, **given, method="riemann_middle")
    close(found, sum(middle) / steps)
    here, gradient = slope(f.inputs)
    mixed = (gradient.mean(-1, keepdim=True) * here).sum(1, keepdim=True)
    close(attr.LayerGradCam(f, module_).attribute(f.inputs), mixed)


@pytest.mark.parametrize("name", EVERY)
def test_neurons(name):
    host, f = function(name)
    layer, neuron = layer_of(host, "hook_out"), (2, 3)
    x = f.inputs.detach().clone().requires_grad_(True)
    value = activation(host, f, "hook_out", x)[0, 2, 3]
    (expected,) = torch.autograd.grad(value, x)
    found = attr.NeuronGradient(f, layer).attribute(f.inputs, neuron)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    start = f.baseline("mean")
    whole = attr.NeuronIntegratedGradients(f, layer).attribute(f.inputs, neuron, baselines=start, n_steps=128)
    change = value - activation(host, f, "hook_out", start)[0, 2, 3]
    assert float(whole.sum()) == pytest.approx(float(change), rel=0.02, abs=2e-3)


@pytest.mark.parametrize("name", EVERY)
def test_occlusion_and_ablation_are_ours_and_loops(name):
    host, f = function(name)
    ours = attribute(host, f.objective, sample_of(name), "occlusion", baseline="mean")
    mask, start = f.feature_mask, f.baseline("mean")
    with torch.no_grad():
        full = float(f(f.inputs))
        loops = [
            full - float(f(torch.where(mask == k, start, f.inputs))) for k in range(len(ours.importance))
        ]
    np.testing.assert_allclose(ours.importance, loops, atol=2e-6)
    found = attr.FeatureAblation(f).attribute(f.inputs, baselines=start, feature_mask=mask)
    at = [float(found[mask.expand(found.shape) == k][0]) for k in range(len(loops))]
    np.testing.assert_allclose(at, loops, atol=2e-6)
    if name != "vit":
        window = (1, f.inputs.shape[2])
        found = attr.Occlusion(f).attribute(
            f.inputs, sliding_window_shapes=window, strides=window, baselines=start
        )
        np.testing.assert_allclose(found[0, f.player_of >= 0, 0], loops, atol=2e-6)


def groups(f):
    """At most four features, so that all coalitions can be listed, and the one never perturbed."""
    n = int(f.player_of.max()) + 1
    of = torch.tensor([min(k * 4 // n if n > 4 else k, 3) for k in range(n)])
    kept = int(of.max()) + 1
    return torch.cat([of, torch.tensor([kept])])[f.feature_mask], kept


def values_of_all(f, mask, n, start):
    """The game: the objective with each coalition's features kept."""
    with torch.no_grad():
        return {
            kept: float(f(torch.where(torch.isin(mask, torch.tensor([*kept, n])), f.inputs, start)))
            for size in range(n + 1)
            for kept in combinations(range(n), size)
        }


def shapley(game, n):
    out = np.zeros(n)
    for i in range(n):
        for kept in game:
            if i not in kept:
                weight = factorial(len(kept)) * factorial(n - len(kept) - 1) / factorial(n)
                out[i] += weight * (game[tuple(sorted((*kept, i)))] - game[kept])
    return out


@pytest.mark.parametrize("name", EVERY)
def test_kernel_shap_and_lime_equal_enumeration(name):
    _, f = function(name)
    mask, n = groups(f)
    start = f.baseline("mean")
    game = values_of_all(f, mask, n, start)
    options = {
        "baselines": start,
        "feature_mask": mask,
        "n_samples": 1000,
        "perturbations_per_eval": 250,
        "return_input_shape": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = attr.KernelShap(f).attribute(f.inputs, **options)[0]
        explainer = attr.Lime(
            f,
            interpretable_model=SkLearnLinearRegression(),
            similarity_func=lambda *given, **more: torch.ones(1),
        )
        surrogate = explainer.attribute(f.inputs, **options)[0]
    exact = shapley(game, n)
    size = abs(exact).max()
    np.testing.assert_allclose(found[:n], exact, atol=0.15 * size)
    rows = np.array([[k in kept for k in range(n)] for kept in game], dtype=float)
    design = np.column_stack([np.ones(len(rows)), rows])
    slopes = np.linalg.lstsq(design, np.array(list(game.values())), rcond=None)[0][1:]
    np.testing.assert_allclose(surrogate[:n], slopes, atol=0.15 * abs(slopes).max())
    if len(found) > n:
        assert abs(float(found[n])) < 0.05 * size


@pytest.mark.parametrize("by_entry_point", [False, True])
def test_a_registered_objective_goes_through_every_plug(by_entry_point, monkeypatch):
    monkeypatch.setattr(module, "_REGISTRY", dict(module._REGISTRY))

    def top_score(clean):
        return lambda x, mask: concept_score(clean.vectors, x).masked_fill(~mask, -9.0).amax(1)

    if by_entry_point:
        point = type("Point", (), {"name": "top_score", "load": staticmethod(lambda: top_score)})
        monkeypatch.setattr(module, "entry_points", lambda group: [point])
    else:
        register_objective("top_score")(top_score)
    host, data, detector = cases.case("llama")
    sample = next(s for s in data.test.samples if detector.find(s))
    made = objective("top_score", detector=detector, concept="animal", sample=sample)
    f = forward_func(host, made, sample)
    assert float(f(f.inputs)) == pytest.approx(max(hit.score for hit in detector.find(sample)), rel=1e-4)
    found = attr.IntegratedGradients(f).attribute(f.inputs, baselines=f.baseline("mean"), n_steps=128)
    with torch.no_grad():
        change = float(f(f.inputs) - f(f.baseline("mean")))
    assert float(found.sum()) == pytest.approx(change, rel=0.05, abs=0.02)
    inputs = dict(host.forward_inputs(sample))
    clean = inputs.pop("input_ids")
    corrupt = clean.clone()
    corrupt[:, 1:] = clean[:, 1:].flip(-1)
    view = prefix_view(host, made, **inputs)
    _, cache = view.run_with_cache(clean)
    swept = patching.get_act_patch_resid_pre(view, corrupt, cache, made.metric, baseline=True)
    assert swept.values.shape == (2, clean.shape[1])
    assert float(swept.effect().abs().max()) > 1e-3


def test_later_blocks_are_not_computed():
    host, f = function("gpt2")
    ran = []
    hooks = [(f"blocks.{b}.hook_in", lambda t, hook: ran.append(hook.name)) for b in range(3)]
    with host.bridge.hooks(fwd_hooks=hooks):
        attr.Saliency(f).attribute(f.inputs.clone().requires_grad_(True))
    assert len(ran) == 2
    assert plug_cases.TEXTS[0] == "gpt2"
