"""Laws of the coalition engine: equal to passes one by one, shared, bounded, stopped early."""

import importlib
import warnings

import numpy as np
import pytest
import tiny
import torch
from attribution_toy import SAMPLE, ManySitesHost, Readout, ToyHost, draw

from sa_plugin.attribution import (
    COALITION_METHODS,
    bernoulli,
    coalition_game,
    deletion,
    enumerated,
    explain_coalitions,
    insertion,
    kernel_shap,
    leave_one_out,
    plan_for,
    shapley,
)

TEXTS = ("gpt2", "neox", "llama", "gemma2", "bert")
IMAGES = ("vit", "deit", "dinov2", "clip_vision")


def readouts(host, sample, point="resid_post"):
    """Two concepts at one layer and one at another."""
    width = host.info.d_model
    found = [(0, 0), (1, 1), (2, 1)]
    return [Readout(draw(seed, width), layer, point, sample=sample.id) for seed, layer in found]


def one_by_one(hf, batch, inputs, values, coalitions, objectives):
    """Each coalition in a pass of its own over transformers' model; masking in plain loops."""
    valid = batch.valid[0].nonzero()[:, 0].tolist()
    out = []
    for row in coalitions:
        x = values.clone()
        for player, token in enumerate(valid):
            if not row[player]:
                _mask(x, values, valid, token, batch.valid.shape[1])
        states = hf(**inputs(x), output_hidden_states=True).hidden_states
        out.append([float(f(states[f.layer + 1])[0]) for f in objectives])
    return np.array(out)


def _mask(x, values, valid, token, n_tokens):
    if x.ndim == 3:
        x[0, token] = values[0, valid].mean(0)
        return
    columns = x.shape[3] // tiny.PATCH
    special = n_tokens - columns * (x.shape[2] // tiny.PATCH)
    top, left = (tiny.PATCH * at for at in divmod(token - special, columns))
    x[0, :, top : top + tiny.PATCH, left : left + tiny.PATCH] = 0.0


@pytest.mark.parametrize("name", TEXTS)
def test_equals_masked_passes_of_transformers_on_texts(name):
    host, sample = tiny.host(name, batch_tokens=40), tiny.samples()[0]
    objectives = readouts(host, sample)
    game = coalition_game(host, sample, objectives)
    (batch,) = host.batches([sample])
    z = bernoulli(game.n_players, 12, seed=0).coalitions
    model = tiny.hf_model(name)
    embedded = model.get_input_embeddings()(batch.inputs["input_ids"]).detach()
    mask = batch.inputs["attention_mask"]
    with torch.no_grad():
        expected = one_by_one(
            model, batch, lambda x: {"inputs_embeds": x, "attention_mask": mask}, embedded, z, objectives
        )
    assert game.n_players == int(batch.valid.sum())
    np.testing.assert_allclose(game(z), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", IMAGES)
def test_equals_masked_passes_of_transformers_on_images(name):
    host, sample = tiny.vision_host(name), tiny.images()[0]
    objectives = readouts(host, sample)
    game = coalition_game(host, sample, objectives)
    (batch,) = host.batches([sample])
    z = bernoulli(game.n_players, 6, seed=0).coalitions
    pixels = batch.inputs["pixel_values"]
    with torch.no_grad():
        expected = one_by_one(
            tiny.vision_model(name), batch, lambda x: {"pixel_values": x}, pixels, z, objectives
        )
    np.testing.assert_allclose(game(z), expected, rtol=1e-4, atol=1e-4)


def planted(host=None):
    """Layer 0's entry is the embeddings: a linear game with slopes known in advance."""
    host = ToyHost() if host is None else host
    f = Readout(draw(7))
    game = coalition_game(host, SAMPLE, [f], baseline="zero")
    slopes = (host.input_values(game.batch)[0] @ f.direction).numpy() / len(game.player_of)
    return game, slopes[:, None].astype(np.float64)


def test_a_planted_linear_game_is_recovered():
    game, slopes = planted()
    z = enumerated(8).coalitions
    np.testing.assert_allclose(game(z), z @ slopes, atol=1e-6)
    for method, expected, tolerance in (
        ("kernel_shap", slopes, 1e-6),
        ("shap_iq", slopes, 1e-6),
        ("lime", slopes, 0.02),
        ("rise", slopes + (slopes.sum(0) - slopes) / 2, 0.1),
    ):
        found = explain_coalitions(game, method, seed=1)
        np.testing.assert_allclose(found, expected, atol=tolerance)
        assert found.argmax() == slopes.argmax(), method


def test_explainers_curves_and_objectives_share_passes():
    host = ManySitesHost()
    game = coalition_game(host, SAMPLE, readouts(host, SAMPLE))
    for method in COALITION_METHODS:
        explain_coalitions(game, method, seed=1)
    # 8 players have 256 coalitions: whatever is asked, no more passes than that.
    assert host.rows == len(game.known) <= 256
    order = explain_coalitions(game, "kernel_shap")[:, 0].argsort()[::-1]
    before = host.rows
    grown, shrunk = game(insertion(order)), game(deletion(order))
    assert host.rows == before
    np.testing.assert_array_equal(grown[0], shrunk[-1])
    np.testing.assert_array_equal(grown[-1], shrunk[0])
    assert repr(game) == ("CoalitionGame(8 players, 3 objectives up to layer 1, 256 coalitions known)")


def test_together_equals_one_objective_at_a_time():
    host = ToyHost()
    fs = readouts(host, SAMPLE)
    z = bernoulli(8, 20, seed=0).coalitions
    together = coalition_game(host, SAMPLE, fs)(z)
    many = coalition_game(ManySitesHost(), SAMPLE, fs)(z)
    alone = [coalition_game(host, SAMPLE, [f])(z) for f in fs]
    np.testing.assert_allclose(together, np.concatenate(alone, axis=1), atol=1e-6)
    np.testing.assert_allclose(together, many, atol=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 8, 17, 64, 100_000])
def test_memory_is_bounded_and_batching_changes_nothing(batch_tokens):
    host = ToyHost()
    host.batch_tokens = batch_tokens
    game, slopes = planted(host)
    z = bernoulli(8, 30, seed=0).coalitions
    np.testing.assert_allclose(game(z), z @ slopes, atol=1e-6)
    assert game.host.largest <= max(8, batch_tokens)
    assert len(game.known) == len(np.unique(z, axis=0))


def test_later_layers_are_never_computed():
    host = ToyHost(n_layers=3)
    coalition_game(host, SAMPLE, readouts(host, SAMPLE))(np.ones((1, 8), bool))
    assert host.deepest == 1


def test_no_gradients_and_the_input_is_left_alone():
    game, _ = planted()
    before = game.values.clone()
    game(enumerated(8).coalitions)
    torch.testing.assert_close(game.values, before, rtol=0, atol=0)
    assert not game.values.requires_grad


def test_seeds_reproduce():
    for method in COALITION_METHODS:
        first, again, other = (
            explain_coalitions(planted()[0], method, n_coalitions=40, seed=seed) for seed in (3, 3, 4)
        )
        np.testing.assert_array_equal(first, again)
        assert method in ("kernel_shap",) or not np.array_equal(first, other)


def test_presets():
    """A drawn coalition that comes twice is evaluated once, so Shapley plans may be shorter."""
    stated = {
        "paper": {"lime": 1000, "kernel_shap": 500, "rise": 1000, "shap_iq": 512},
        "fast": {"lime": 256, "kernel_shap": 400, "rise": 256, "shap_iq": 400},
    }
    for preset, sizes in stated.items():
        for method, size in sizes.items():
            found = len(plan_for(method, 100, preset=preset).coalitions)
            assert 0.95 * size <= found <= size
    assert 970 < len(plan_for("kernel_shap", 256).coalitions) <= 1024
    assert len(plan_for("kernel_shap", 196, preset="fast", n_coalitions=40).coalitions) <= 40
    few, more = (plan_for(m, 60).coalitions for m in ("kernel_shap", "shap_iq"))
    known = {row.tobytes() for row in more}
    assert np.mean([row.tobytes() in known for row in few]) == 1
    steep = explain_coalitions(planted()[0], "lime", width=None, alpha=0.0)
    np.testing.assert_allclose(steep, planted()[1], atol=1e-6)


def test_a_real_objective_and_its_own_sample():
    from sa_plugin.concepts import fit
    from sa_plugin.detection import calibrate

    objectives_test = importlib.import_module("test_objectives")
    data, host = objectives_test.make_data(), tiny.host("gpt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = fit(host, data, "prototype", layers=[1])
        detector = calibrate(host, data, bank, deltas=(0.3, 0.6))
    sample = next(s for s in data.test.samples if detector.find(s))
    make = importlib.import_module("sa_plugin.attribution.objective").objective
    fs = [
        make(name, detector=detector, concept="animal", sample=sample)
        for name in ("superactivator", "superactivator_tokens", "superactivator_margin", "global")
    ]
    game = coalition_game(host, sample, fs)
    full = game(np.ones((1, game.n_players), bool))[0]
    inputs = host.forward_inputs(sample)
    _, cache = host.bridge.run_with_cache(inputs.pop("input_ids"), **inputs)
    expected = [float(f.metric(cache[f.hook_name])) for f in fs]
    np.testing.assert_allclose(full, expected, rtol=1e-4)
    with pytest.raises(ValueError, match="an objective explains its own sample only"):
        coalition_game(host, data.train.samples[0], fs)


def test_captum_agrees_on_the_same_coalitions():
    pytest.importorskip("captum")
    from captum.attr import FeatureAblation, KernelShap

    host = ToyHost()
    f = Readout(draw(7), 1, "resid_post")
    game = coalition_game(host, SAMPLE, [f], baseline="zero")
    ids = torch.arange(8)[None, :, None].expand_as(game.values)

    def forward(x):
        return f(host.forward_from(x, game.batch, game.sites[0]))

    theirs = FeatureAblation(forward).attribute(game.values, feature_mask=ids)

    values = game(leave_one_out(8))[:, 0]
    np.testing.assert_allclose(values[0] - values[1:], theirs[0, :, 0], atol=1e-5)

    plan = shapley(8, 60, seed=0)
    rows = plan.coalitions[[1, 0, *range(2, len(plan.coalitions))]]
    shap = KernelShap(forward)

    def given(_inputs, **_options):
        yield from (torch.from_numpy(row)[None].long() for row in rows)

    shap.perturb_func = given
    got = shap.attribute(game.values, feature_mask=ids, n_samples=len(rows))[0, :, 0]
    uniform = np.where(np.isfinite(plan.weights), 1.0, np.inf)
    ours = kernel_shap(plan.coalitions, uniform, game(plan.coalitions))[:, 0]
    np.testing.assert_allclose(ours, got, atol=2e-4)


def test_bad_input():
    host = ToyHost()
    game, _ = planted()
    with pytest.raises(ValueError, match=r"coalitions are int64 \[2, 8\]: give booleans"):
        game(np.ones((2, 8), dtype=np.int64))
    with pytest.raises(ValueError, match=r"coalitions are bool \[2, 7\]"):
        game(np.ones((2, 7), dtype=bool))
    with pytest.raises(ValueError, match="one row at least"):
        game(np.ones((0, 8), dtype=bool))
    with pytest.raises(ValueError, match="objectives is empty"):
        coalition_game(host, SAMPLE, [])
    with pytest.raises(ValueError, match="has no residual of that name there"):
        coalition_game(host, SAMPLE, [Readout(draw(7), 1, "z")])
    with pytest.raises(ValueError, match="has no residual of that name there"):
        coalition_game(host, SAMPLE, [Readout(draw(7), 5)])
    with pytest.raises(ValueError, match="was made on sample 'other'"):
        coalition_game(host, SAMPLE, [Readout(draw(7), sample="other")])
    with pytest.raises(ValueError, match="method 'shap' is unknown"):
        plan_for("shap", 8)
    with pytest.raises(ValueError, match="preset 'slow' is unknown"):
        plan_for("rise", 8, preset="slow")


def test_values_that_are_no_numbers_are_refused():
    class Broken(Readout):
        def __call__(self, resid):
            return torch.full((len(resid),), torch.nan)

    class Wide(Readout):
        def __call__(self, resid):
            return resid[:, 0]

    with pytest.raises(ValueError, match="is not finite for 2 of 2 masked inputs"):
        coalition_game(ToyHost(), SAMPLE, [Broken(draw(7))])(~np.eye(2, 8, dtype=bool))
    with pytest.raises(ValueError, match="an objective gives one number a row"):
        coalition_game(ToyHost(), SAMPLE, [Wide(draw(7))])(np.ones((1, 8), bool))


def test_a_host_without_gradients_is_refused():
    from fake_host import FakeHost

    with pytest.raises(TypeError, match="gives no gradients and takes no embeddings"):
        coalition_game(FakeHost(), SAMPLE, [Readout(draw(7))])
