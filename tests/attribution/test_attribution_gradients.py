"""Laws of the gradient explainers: captum, completeness, slow references, planted tokens."""

from dataclasses import replace

import attribution_cases as cases
import numpy as np
import pytest
import tiny
import torch
from captum import attr
from captum.attr._utils.approximation_methods import approximation_parameters

from sa_plugin.attribution import (
    METHODS,
    Degenerate,
    ForwardFunc,
    attribute,
    coalition_game,
    explain_game,
    forward_func,
    objective,
)
from sa_plugin.host import Site

TEXTS = ("gpt2", "gemma2", "bert")
ALL = (*TEXTS, "vit")


def player_sums(game, maps):
    """Oracle: loops over tokens, or over pixels of patches."""
    out = np.zeros(game.n_players)
    for token, player in enumerate(game.player_of.tolist()):
        if player < 0:
            continue
        if maps.ndim == 2:
            out[player] += float(maps[token].sum())
            continue
        columns = maps.shape[2] // tiny.PATCH
        special = len(game.player_of) - columns * (maps.shape[1] // tiny.PATCH)
        top, left = (tiny.PATCH * at for at in divmod(token - special, columns))
        out[player] += float(maps[:, top : top + tiny.PATCH, left : left + tiny.PATCH].sum())
    return out


def pixel_or_token_gradient(game, k, x):
    f = ForwardFunc(game, k)
    leaf = x.detach().clone().requires_grad_(True)
    return torch.autograd.grad(f(leaf).sum(), leaf)[0]


@pytest.mark.parametrize("name", ALL)
def test_forward_func_is_the_objective_of_the_sample(name):
    host, _, sample, made = cases.chosen(name)
    f = forward_func(host, made[1], sample)
    site = Site(made[1].layer, "resid_post")
    (batch,) = host.batches([sample])
    clean = host.read(batch, [site], lambda found: {"h": found[site].float()})["h"]
    torch.testing.assert_close(f(f.inputs), made[1](clean))
    assert f(torch.cat([f.inputs] * 3)).shape == (3,)
    assert f.baseline().shape == f.feature_mask.shape == f.inputs.shape
    if name != "vit":
        special = ~batch.valid[0]
        assert torch.equal(f.baseline("zero")[0, special], f.inputs[0, special])
        assert repr(f).startswith("ForwardFunc(Objective('superactivator'")


@pytest.mark.parametrize("name", ALL)
def test_integrated_gradients_are_complete_and_equal_captums(name):
    game = cases.game(name)
    found = explain_game(game, "integrated_gradients", n_steps=256)
    empty, full = game(np.stack([np.zeros(game.n_players, bool), np.ones(game.n_players, bool)]))
    if name == "vit":
        whole = replace(game, baseline=ForwardFunc(game, 0).baseline("mean"), known={})
        empty = whole(np.zeros((1, game.n_players), bool))[0]
    np.testing.assert_allclose(found.notes["difference"], full - empty, atol=1e-5)
    assert (found.notes["completeness_error"] < 0.02 * abs(full - empty) + 2e-4).all()
    for k in range(2):
        f = ForwardFunc(game, k)
        theirs = attr.IntegratedGradients(f).attribute(
            f.inputs, baselines=f.baseline("mean"), n_steps=128, internal_batch_size=64
        )
        expected = player_sums(game, theirs[0].detach())
        np.testing.assert_allclose(found.importance[:, k], expected, rtol=0.05, atol=2e-4)


def test_captums_trapezoid_does_not_add_up():
    weights, _ = approximation_parameters("riemann_trapezoid")
    assert sum(weights(5)) == pytest.approx(4 / 5)


@pytest.mark.parametrize("name", ALL)
def test_captum_methods_equal_gradients_and_loops(name):
    game = cases.game(name)
    x = game.values
    for k in range(2):
        gradient = pixel_or_token_gradient(game, k, x)
        for method, expected in (("saliency", gradient.abs()), ("input_x_gradient", gradient * x)):
            found = explain_game(game, method).importance[:, k]
            np.testing.assert_allclose(found, player_sums(game, expected[0]), rtol=1e-4, atol=1e-6)
    state = torch.get_rng_state()
    first, again = (explain_game(game, "smooth_grad", preset="fast", seed=3).importance for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first, again)
    still = explain_game(game, "smooth_grad", n_samples=2, noise=1e-6).importance
    np.testing.assert_allclose(still, explain_game(game, "saliency").importance, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "bert", "vit"])
def test_occlusion_is_the_fall_of_the_objective(name):
    game = cases.game(name)
    one_out = ~np.eye(game.n_players, dtype=bool)
    full = game(np.ones((1, game.n_players), bool))
    expected = full - game(one_out)
    np.testing.assert_allclose(explain_game(game, "occlusion").importance, expected, atol=2e-5)


def test_captums_own_classes_take_the_forward_func_and_hook_points():
    host, _, sample, made = cases.chosen("llama")
    f = forward_func(host, made[1], sample)
    mask, baseline = f.feature_mask, f.baseline("mean")
    layer = host.bridge.blocks[0].hook_out
    found = attr.LayerIntegratedGradients(f, layer).attribute(f.inputs, baselines=baseline)
    assert found.shape[:2] == f.inputs.shape[:2]
    assert float(found.abs().sum()) > 0
    for explainer in (attr.Lime(f), attr.KernelShap(f)):
        torch.manual_seed(0)
        found = explainer.attribute(
            f.inputs, baselines=baseline, feature_mask=mask, n_samples=60, perturbations_per_eval=16
        )
        special = ~host.batches([sample])[0].valid[0]
        assert float(found[0, special].abs().max()) < 0.2 * float(found.abs().max())
    neuron = attr.NeuronIntegratedGradients(f, layer)
    assert neuron.attribute(f.inputs, (2, 3), baselines=baseline).shape == f.inputs.shape
    before = sum(len(p.fwd_hooks) for p in host.bridge.hook_dict.values())
    assert before == 0


@pytest.mark.parametrize("name", ALL)
def test_grad_cam_equals_loops(name):
    game = cases.game(name)
    found = explain_game(game, "grad_cam", centre=False).importance
    at = game.sites[0]
    site = Site(at.layer, "resid_pre")
    for k in range(2):
        leaf = game.values.clone().requires_grad_(True)
        both = game.host.forward_sites(leaf, game.batch, [site, at])
        (g,) = torch.autograd.grad(game.objectives[k](both[at]).sum(), both[site])
        a = both[site].detach()
        playing = [t for t, p in enumerate(game.player_of) if p >= 0]
        alpha = [sum(float(g[0, t, d]) for t in playing) / len(playing) for d in range(a.shape[2])]
        expected = [sum(alpha[d] * float(a[0, t, d]) for d in range(a.shape[2])) for t in playing]
        np.testing.assert_allclose(found[:, k], expected, rtol=1e-3, atol=1e-5)
    centred = explain_game(game, "grad_cam").importance
    np.testing.assert_allclose(np.diff(centred, axis=0), np.diff(found, axis=0), atol=1e-5)
    with pytest.raises(ValueError, match="does not depend on Site"):
        explain_game(game, "grad_cam", site=Site(2, "resid_post"))


def test_captums_layer_grad_cam_takes_tokens_for_channels():
    host, _, sample, made = cases.chosen("gpt2")
    f = forward_func(host, made[0], sample)
    theirs = attr.LayerGradCam(f, host.bridge.blocks[0].hook_out).attribute(f.inputs)
    assert theirs.shape[-1] == host.info.d_model


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "qwen3", "bert", "vit", "dinov2"])
def test_full_grad_places_every_bias(name):
    """Summed over tokens, each bias's shares are bias times its own gradient."""
    game = cases.game(name)
    found = explain_game(game, "full_grad")
    # GPT-2's joint projection is split by TransformerLens, so not those of the original model.
    owners = [m for m in game.host.bridge.modules() if m._parameters.get("bias") is not None]
    biases = list({id(m.bias): m._parameters["bias"] for m in owners}.values())
    for bias in biases:
        bias.requires_grad_(True)
    for k in range(2):
        value = ForwardFunc(game, k)(game.values).sum()
        if not biases:
            assert found.notes["biases"][k] == 0
            plain = explain_game(game, "input_x_gradient").importance[:, k]
            np.testing.assert_allclose(found.importance[:, k], plain, rtol=1e-4, atol=1e-6)
            continue
        slopes = torch.autograd.grad(value, biases, allow_unused=True)
        total = sum(
            float((bias.detach() * slope).sum())
            for bias, slope in zip(biases, slopes, strict=True)
            if slope is not None
        )
        every = np.arange(len(game.player_of))
        shares = explain_game(replace(game, player_of=every), "full_grad").notes["biases"][k]
        assert shares == pytest.approx(total, rel=1e-3, abs=1e-5)


def test_full_grad_adds_up_on_a_piecewise_linear_model():
    """A toy with biased linear maps and a ReLU: the shares add up to the objective."""
    host = ReluHost()
    game = toy_game(host)
    found = explain_game(game, "full_grad")
    np.testing.assert_allclose(found.notes["residual"], 0, atol=1e-5)
    assert abs(found.notes["biases"][0]) > 1e-3


class ReluHost(cases.PlantedHost):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(12, 20), torch.nn.Linear(20, 12)

    def _run(self, x, sites):
        out = self.second(torch.relu(self.first(x)))
        return dict.fromkeys(sites, out)


class Projection:
    layer, hook_name, sample = 1, "blocks.1.hook_resid_post", "s"

    def __init__(self, seed=0):
        self.direction = torch.randn(12, generator=torch.Generator().manual_seed(seed))

    def __call__(self, resid):
        return (resid @ self.direction).mean(1)


def toy_game(host, *readouts):
    from attribution_toy import SAMPLE

    return coalition_game(host, SAMPLE, list(readouts) or [Projection()])


def test_mfaba_equals_a_loop():
    host = cases.PlantedHost()
    rows = [Projection(seed) for seed in range(4)]
    start = [float(r(host.forward_from(toy_game(host).values, None, Site(1, "resid_post")))) for r in rows]
    rows = [rows[k] for k in np.argsort(start)[::-1]]
    game, rivals = toy_game(host, rows[0]), toy_game(host, *rows[1:])
    found = explain_game(game, "mfaba", rivals=rivals, n_steps=7, step=0.001)
    x = game.values.clone()
    size = 0.001 * float(x.max() - x.min())
    expected, probabilities = np.zeros(game.n_players), []
    for _ in range(7):
        leaf = x.clone().requires_grad_(True)
        scores = torch.stack([r(host._run(leaf, list(game.sites))[game.sites[0]]) for r in rows])
        if int(scores.argmax()) != 0:
            break
        p = torch.exp(scores[0, 0]) / torch.exp(scores[:, 0]).sum()
        probabilities.append(float(p))
        (g,) = torch.autograd.grad(p, leaf)
        for t in range(game.n_players):
            for d in range(x.shape[2]):
                move = size * float(np.sign(float(g[0, t, d])))
                expected[t] += move * float(g[0, t, d])
                x[0, t, d] -= move
    np.testing.assert_allclose(found.importance[:, 0], expected, rtol=1e-3)
    assert found.notes["steps"][0] == len(probabilities) > 2
    assert found.notes["probability_drop"][0] > probabilities[0] - probabilities[-1] > 0
    np.testing.assert_allclose(expected.sum(), found.notes["probability_drop"][0], rtol=0.1)


def test_mfaba_refuses_degenerate_cases():
    host = cases.PlantedHost()
    rows = [Projection(seed) for seed in range(3)]
    game = toy_game(host, rows[0])
    with pytest.raises(Degenerate, match="with one score the softmax is 1"):
        explain_game(game, "mfaba")
    with pytest.raises(Degenerate, match="its adversarial path has no length"):
        explain_game(toy_game(host, rows[0]), "mfaba", rivals=toy_game(host, *better_than(host, rows[0])))
    gpt2, detector, sample, made = cases.chosen("gpt2", kind="lda")
    rival = objective("global", detector=detector, concept="animal", sample=sample)
    with pytest.raises(Degenerate, match="mix cosines with dot products"):
        attribute(gpt2, made[1], sample, "mfaba", rivals=[rival])


def better_than(host, row):
    game = toy_game(host, row)
    own = float(row(host.forward_from(game.values, None, Site(1, "resid_post"))))
    rivals = [Projection(seed) for seed in range(1, 40)]
    at = host.forward_from(game.values, None, Site(1, "resid_post"))
    return [r for r in rivals if float(r(at)) > own][:1]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["prototype", "lda"])
def test_direct_alignment_is_each_tokens_own_value(name, kind):
    host, detector, sample, made = cases.chosen(name, kind=kind)
    game = coalition_game(host, sample, made)
    found = explain_game(game, "direct_alignment").importance
    concept, layer = made[0].concept, made[0].layer
    site = Site(layer, "resid_post")
    h = host.read(game.batch, [site], lambda r: {"h": r[site].float()})["h"][0].double().numpy()
    bank = detector.bank.token
    x = (h - bank.mean[0].double().numpy()) / float(bank.scale[0])
    v = detector.bank.vector(concept, layer).double().numpy()
    u = x[made[1].tail.numpy()].mean(0)
    for t, player in enumerate(game.player_of.tolist()):
        if player < 0:
            continue
        kept = bool(made[0].mask[0, t])
        cosines = [x[t] @ w / np.linalg.norm(x[t]) / np.linalg.norm(w) for w in (v, u)]
        score = cosines[0] if bank.scoring == "cosine" else x[t] @ v
        expected = [score, cosines[1]] if kept else [0.0, 0.0]
        np.testing.assert_allclose(found[player], expected, rtol=1e-3, atol=1e-5)
    # The mean over the tail has no other parts than the tail's scores.
    tail_only = objective("superactivator_tokens", detector=detector, concept=concept, sample=sample)
    parts = attribute(host, tail_only, sample, "direct_alignment").of_token
    scores = attribute(host, made[0], sample, "direct_alignment").of_token
    np.testing.assert_allclose(
        np.nan_to_num(parts), np.where(tail_only.tail, np.nan_to_num(scores), 0.0), rtol=1e-5
    )

    def two_at_least(resid, mask):
        raise ValueError("one token is too few")

    with pytest.raises(ValueError, match="has no value on one token alone"):
        attribute(host, replace(tail_only, measure=two_at_least), sample, "direct_alignment")


LOCAL = ("saliency", "smooth_grad", "input_x_gradient", "full_grad")


@pytest.mark.parametrize("method", [m for m in METHODS if m not in (*LOCAL, "mfaba")])
@pytest.mark.parametrize("name", ["global", "superactivator"])
def test_planted_tokens_are_found(method, name):
    """In a model that embeds animals along one direction, these explainers rank them first."""
    assert planted_hits(method, name, "prototype") == 1.0


@pytest.mark.parametrize("method", ["input_x_gradient", "full_grad"])
def test_local_gradients_find_planted_tokens_of_a_dot_product_alone(method):
    """A cosine is flat along its token: the better aligned, the smaller the gradient."""
    assert planted_hits(method, "global", "lda") == 1.0
    assert planted_hits(method, "superactivator", "prototype") < 0.5


def planted_hits(method, name, kind):
    host, data, detector = cases.planted(kind)
    hits = []
    for sample in [s for s in data.test.samples if s.positive and detector.find(s)][:4]:
        f = objective(name, detector=detector, concept="animal", sample=sample)
        found = attribute(host, f, sample, method, preset="fast")
        words = sample.text.split()
        assert len(found.importance) == len(words)
        hits.append(words[int(found.importance.argmax())] in cases.ANIMALS)
    return np.mean(hits)


def test_attribute_refuses_and_reports():
    host, _, sample, made = cases.chosen("gpt2")
    with pytest.raises(ValueError, match="method 'integrated' is unknown: did you mean"):
        attribute(host, made[0], sample, "integrated")
    with pytest.raises(ValueError, match="preset 'quick' is unknown"):
        attribute(host, made[0], sample, "saliency", preset="quick")
    with pytest.raises(ValueError, match="n_steps is 0, not a whole number from 1"):
        attribute(host, made[0], sample, n_steps=0)
    with pytest.raises(TypeError, match="has no argument 'steps': did you mean 'n_steps'"):
        attribute(host, made[0], sample, steps=5)
    with pytest.raises(ValueError, match="was made on sample"):
        attribute(host, made[0], "another text altogether")
    found = attribute(host, made[1], sample, preset="fast")
    assert repr(found).startswith("Attribution('integrated_gradients', 'superactivator' of 'animal'")
    assert "completeness_error" in repr(found)
    assert len(found.top(2)) == 2
    assert found.top(1)[0][1] == pytest.approx(found.importance.max())
    html = found._repr_html_()
    assert "rgba(230,110,0" in html
    assert "<script" not in html
    words = attribute(host, made[1], sample, "rise", preset="fast", players="word")
    assert len(sample.text.split()) <= len(words.importance) < len(found.importance)
    without = objective_without(host)
    assert without._repr_html_().count("<rect") == int((without.player_of >= 0).sum())


def objective_without(host):
    vit, _, sample, made = cases.chosen("vit")
    return attribute(vit, made[0], sample, "saliency")


def test_the_empty_coalition_keeps_special_tokens():
    game = cases.game("bert")
    start = game.emptied(game.baseline)
    special = game.player_of < 0
    assert special.sum() == 2
    assert torch.equal(start[0, special], game.values[0, special])
    assert torch.equal(start[0, ~special], game.baseline[0, ~special])
