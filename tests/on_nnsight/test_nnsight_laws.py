"""TransformerLens = nnsight = bare hooks: sites, vectors, scores, thresholds, ledger, gradients.

Hosts differ by the rounding of float32: how many samples share a matrix product, and in which
order attention is summed. Decisions are compared for scores further than BAND from the threshold,
relative to the scores' spread; nothing is said about the others, and they are few.
"""

from functools import cache

import numpy as np
import pandas
import pytest
import tiny
import torch
from animal_data import animal_pictures, animal_texts
from bare_host import BareHost
from torch.testing import assert_close

from sa_nnsight import trace_ops, trace_setup
from sa_plugin.attribution import objective
from sa_plugin.concepts import fit
from sa_plugin.detection import calibrate
from sa_plugin.heads import head_ledger
from sa_plugin.host import Host, Site
from sa_plugin.scores import score
from sa_plugin.statistics import Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
EVERY = (*tiny.ARCHITECTURES, "vit")
POINTS = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "pattern")
ALL = [Site(layer, point) for layer in range(tiny.N_LAYERS) for point in POINTS]
NAMES = ("superactivator", "superactivator_tokens", "superactivator_margin", "global")
BAND = 1e-3


@cache
def hosts(name):
    """TransformerLens, nnsight, bare hooks."""
    if name in tiny.VISION:
        ours = tiny.nnsight_vision_host(name)
        return tiny.vision_host(name), ours, BareHost(name, ours)
    ours = tiny.nnsight_host(name)
    return tiny.host(name), ours, BareHost(name, ours)


@cache
def data_of(name):
    return animal_pictures((42,), columns=6) if name in tiny.VISION else animal_texts()


@cache
def banks(name, kind="lda"):
    return [fit(host, data_of(name), kind) for host in hosts(name)]


@cache
def detectors(name):
    """One bank, fitted by TransformerLens, calibrated by each host."""
    bank = fit(hosts(name)[0], data_of(name), "prototype", layers=[1])
    return [calibrate(host, data_of(name), bank, deltas=(0.3,)) for host in hosts(name)]


@pytest.fixture(params=EVERY)
def name(request):
    return request.param


def by_sample(host, samples):
    """Sites of each sample's valid tokens, and its offsets."""
    found = {}
    for batch in host.batches(samples):
        read = host.read(batch, ALL, lambda r: {str(s): r[s] for s in ALL})
        for k, row in enumerate(batch.rows.tolist()):
            keep = batch.valid[k]
            found[row] = {"offsets": batch.offsets[k, keep].double()}
            for site in ALL:
                value = read[str(site)][k]
                found[row][site] = value[:, keep][:, :, keep] if site.point == "pattern" else (value[keep])
    return found


def test_every_site(name):
    samples = tiny.images() if name in tiny.VISION else tiny.samples()
    lens, ours, bare = (by_sample(host, samples) for host in hosts(name))
    for row in bare:
        for key, expected in bare[row].items():
            for found in (lens, ours):
                assert_close(
                    found[row][key],
                    expected,
                    rtol=1e-4,
                    atol=1e-5,
                    msg=lambda text, k=key: f"{name} {k}: {text}",
                )


def test_what_is_fixed_about_the_model(name):
    lens, ours, _ = (host.info for host in hosts(name))
    assert isinstance(hosts(name)[1], Host)
    assert (lens.host, ours.host) == ("transformer_lens", "nnsight")
    for field in (
        "architecture",
        "n_layers",
        "d_model",
        "n_heads",
        "d_head",
        "block",
        "causal",
        "bos",
        "processing",
        "dtype",
        "fingerprint",
        "tokenizer",
    ):
        assert getattr(ours, field) == getattr(lens, field), field


def test_output_projections(name):
    for layer in range(tiny.N_LAYERS):
        lens, ours, bare = (host.output_projection(layer) for host in hosts(name))
        for other in (lens, bare):
            assert_close(ours.weight, other.weight, rtol=0, atol=0)
            assert (ours.bias is None) == (other.bias is None)
            if ours.bias is not None:
                assert_close(ours.bias, other.bias, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "kind"), [*((name, "lda") for name in EVERY), ("llama", "separator")])
def test_vectors(name, kind):
    lens, ours, bare = banks(name, kind)
    for found in (lens, ours):
        token, expected = found.token, bare.token
        assert_close(token.mean, expected.mean, rtol=1e-3, atol=1e-4)
        assert_close(token.scale, expected.scale, rtol=1e-4, atol=1e-5)
        cosines = torch.cosine_similarity(token.vectors, expected.vectors, dim=-1)
        assert float(cosines.min()) > 1 - 1e-4
        assert found.origin.counts == bare.origin.counts


def test_scores_of_a_bank_fitted_on_another_host(name):
    data = data_of(name)
    for bank in banks(name)[1:2]:
        lens, ours, bare = (score(host, data, bank) for host in hosts(name))
        spread = float(bare.scores.std())
        for found in (lens, ours):
            np.testing.assert_array_equal(found.tokens.offsets, bare.tokens.offsets)
            np.testing.assert_array_equal(found.tokens.labels, bare.tokens.labels)
            assert found.tokens.dropped == bare.tokens.dropped
            assert np.abs(found.scores - bare.scores).max() < 1e-3 * spread
            assert np.abs(found.pooled - bare.pooled).max() < 1e-3 * np.abs(bare.pooled).std()


def test_thresholds_and_decisions(name):
    data = data_of(name)
    choices = [detector.choice("animal") for detector in detectors(name)]
    bank = detectors(name)[0].bank
    tables = [score(host, data, bank) for host in hosts(name)]
    spread = float(tables[2].scores.std())
    bare = choices[2]
    safe = np.abs(tables[2].scores[:, 0, 0] - bare.threshold) > BAND * spread
    assert safe.mean() > 0.95
    for choice, table in zip(choices, tables, strict=True):
        assert (choice.layer, choice.delta) == (bare.layer, bare.delta)
        assert abs(choice.threshold - bare.threshold) < BAND * spread
        ours = table.scores[safe, 0, 0].astype(float) >= choice.threshold
        np.testing.assert_array_equal(ours, tables[2].scores[safe, 0, 0] >= bare.threshold)


def test_evaluations(name):
    found = [d.evaluate(data_of(name).test, resampling=Resampling(draws=10)).table() for d in detectors(name)]
    for table in found[:2]:
        pandas.testing.assert_frame_equal(table, found[2], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", EVERY)
def test_ledgers(name):
    bank = banks(name)[0]
    # Bare hooks know no norm, so behind one the two hosts are held against each other.
    compared = hosts(name) if name in (*tiny.PRE_NORM, "vit") else hosts(name)[:2]
    *others, bare = (head_ledger(host, data_of(name), bank, resampling=Resampling(20)) for host in compared)
    assert all(found.residue < 1e-5 for found in (*others, bare))
    for found in others:
        assert found.components == bare.components
        for effect in bare.effects:
            value, expected = found.effects[effect].terms.estimate, bare.effects[effect].terms.estimate
            scale = np.nanmax(np.abs(expected))
            assert np.nanmax(np.abs(value - expected)) < 1e-3 * scale
            np.testing.assert_array_equal(np.isnan(value), np.isnan(expected))


def explained(name):
    # A threshold is a quantile of calibration tokens, so some of them reach it.
    for sample in data_of(name).cal.samples:
        if detectors(name)[0].find(sample):
            return sample
    raise AssertionError("no sample with a SuperActivator")


def input_gradients(name, goal, sample):
    """Gradient of the objective on embeddings or pixels, three ways."""
    lens, ours, bare = hosts(name)
    site = Site(goal.layer, "resid_post")
    inputs = ours.forward_inputs(sample)
    grads = [by_bridge(lens, goal, inputs), by_hooks(bare, goal, inputs, site)]
    (batch,) = ours.batches([sample])
    values = ours.input_values(batch).requires_grad_(True)
    (found,) = torch.autograd.grad(goal.metric(ours.forward_from(values, batch, site)), values)
    return [grads[0], found, grads[1]]


def by_bridge(host, goal, inputs):
    leaves, found = [], []

    def leaf(tensor, hook):
        leaves.append(tensor.detach().requires_grad_(True))
        return leaves[0]

    first, *_ = inputs.values()
    hooks = [(f"blocks.{goal.layer}.hook_resid_post", lambda t, hook: found.append(t.clone()))]
    if "pixel_values" in inputs:
        leaves.append(first.clone().requires_grad_(True))
        first = leaves[0]
    else:
        hooks.append(("embed.hook_out", leaf))
    others = {k: v for k, v in inputs.items() if k == "attention_mask"}
    with host.bridge.hooks(fwd_hooks=hooks):
        host.bridge(first, **others)
    return torch.autograd.grad(goal.metric(found[0]), leaves[0])[0]


def by_hooks(host, goal, inputs, site):
    leaves = []

    def leaf(module, args, out):
        leaves.append(out.detach().requires_grad_(True))
        return leaves[0]

    if "pixel_values" in inputs:
        leaves.append(inputs["pixel_values"].clone().requires_grad_(True))
        resid = host.run({"pixel_values": leaves[0]}, [site])[site]
    else:
        handle = host.model.get_input_embeddings().register_forward_hook(leaf)
        resid = host.run(inputs, [site])[site]
        handle.remove()
    return torch.autograd.grad(goal.metric(resid), leaves[0])[0]


@pytest.mark.parametrize("objective_name", NAMES)
def test_objectives_and_their_gradients(name, objective_name):
    sample = explained(name)
    goals = [
        objective(objective_name, detector=detector, concept="animal", sample=sample, host=host)
        for detector, host in zip(detectors(name), hosts(name), strict=True)
    ]
    for goal in goals[1:]:
        assert torch.equal(goal.tail, goals[0].tail)
        assert goal.coverage == goals[0].coverage
    lens, ours, bare = input_gradients(name, goals[1], sample)
    size = float(bare.abs().max())
    assert size > 0
    assert_close(ours, bare, rtol=1e-3, atol=1e-4 * size)
    assert_close(lens, bare, rtol=1e-3, atol=1e-4 * size)


def plain_goal(name, objective_name):
    sample, detector, host = explained(name), detectors(name)[1], hosts(name)[1]
    made = objective(objective_name, detector=detector, concept="animal", sample=sample, host=host)
    return made, trace_setup.goal(made), host, sample


@pytest.mark.parametrize("objective_name", NAMES)
def test_trace_ops_are_the_objectives(name, objective_name):
    import nnsight

    made, goal, host, sample = plain_goal(name, objective_name)
    model, inputs = host.model, host.forward_inputs(sample)
    with model.trace(**inputs) as tracer:
        resid = nnsight.save(model.get(goal.path))
        value = nnsight.save(trace_ops.goal_mean(resid, goal))
        gradient = nnsight.save(torch.autograd.grad(value, resid)[0])
        tracer.stop()
    leaf = resid.detach().requires_grad_(True)
    expected = made.metric(leaf)
    assert_close(value, expected)
    (slope,) = torch.autograd.grad(expected, leaf)
    assert_close(gradient, slope, rtol=1e-4, atol=1e-4 * float(slope.abs().max()))
    copies = torch.cat([leaf, leaf + 0.1]).detach()
    assert_close(trace_ops.goal_mean(copies, goal), made.metric(copies))


def test_trace_ops_find_what_the_detector_finds(name):
    import nnsight

    sample, detector, host = explained(name), detectors(name)[1], hosts(name)[1]
    concept = trace_setup.concept(detector, "animal", host)
    inputs, keep = trace_setup.inputs_of(detector, sample, host)
    model = host.model
    with torch.no_grad(), model.trace(**inputs) as tracer:
        found = trace_ops.scores(model.get(concept.path), concept)
        tail = nnsight.save(trace_ops.mask(found, concept, keep))
        tracer.stop()
    places = [hit.position for hit in detector.find(sample)]
    assert places == tail[0].nonzero()[:, 0].tolist()
