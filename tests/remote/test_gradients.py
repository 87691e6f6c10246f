"""Objectives in a user's own remote trace: gradients, patching, and what a sandbox says instead.

A trusted server runs the block in the model's process, so that `torch.autograd.grad` and nnsight's
`with value.backward()` give what they give here. On a sandboxed one tensors arrive without a graph:
both are refused, in the server's words, and patching between invokes still works.
"""

import nnsight
import numpy as np
import pytest
import torch
from clients import remote_model
from conftest import MODE
from nnsight.intervention.backends.remote import RemoteError

from sa_nnsight import trace_ops, trace_setup
from sa_plugin.attribution import objective
from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData, Splits
from sa_plugin.detection import calibrate
from sa_plugin.host import Site, attach

WORDS = ("cat", "dog", "sat", "mat", "night", "people", "home", "walked", "the", "on")
pytestmark = pytest.mark.sandboxed
trusted = pytest.mark.skipif(MODE != "trusted", reason="needs a server that trusts the key")
sandboxed = pytest.mark.skipif(MODE == "trusted", reason="what a sandbox says")


@pytest.fixture(scope="module", params=["tiny-gpt2", "tiny-llama"])
def case(request):
    """Models here and there, the sample's inputs, its objective as tensors, and paths."""
    nnsight.register("sa_nnsight")
    rng = np.random.default_rng(0)
    words = [list(rng.choice(WORDS, rng.integers(4, 9))) for _ in range(60)]
    labels = [["animal" if w in ("cat", "dog") else None for w in row] for row in words]
    data = ConceptData.from_words(words, labels, splits=Splits(seed=1))
    here = attach(remote_model(request.param, load=True))
    bank = fit(here, data, "prototype", layers=[1])
    detector = calibrate(here, data, bank, deltas=(0.5,))
    sample = next(s for s in data.test.samples if detector.find(s))
    made = objective("superactivator", detector=detector, concept="animal", sample=sample)
    goal = trace_setup.goal(made)
    return here, remote_model(request.param), here.forward_inputs(sample), goal


def in_trace(model, inputs, goal, early, remote):
    """The attribution by `torch.autograd.grad`."""
    with model.trace(**inputs, remote=remote) as tracer:
        first = model.get(early)
        first.requires_grad_(True)
        value = trace_ops.goal_mean(model.get(goal.path), goal)
        (gradient,) = torch.autograd.grad(value, first)
        attribution = nnsight.save((first * gradient).sum(-1)[0].detach())
        tracer.stop()
    return attribution


def by_backward(model, inputs, goal, early, remote):
    """The same by nnsight's own context, parameters' gradients included."""
    with model.trace(**inputs, remote=remote):
        first = model.get(early)
        first.requires_grad_(True)
        value = trace_ops.goal_mean(model.get(goal.path), goal)
        with value.backward():
            slope = first.grad
        attribution = nnsight.save((first * slope).sum(-1)[0].detach())
    return attribution


def without_gradients(host):
    """Parameters as a server holds them, so that none collects a gradient."""
    for parameter in host.model._module.parameters():
        parameter.requires_grad_(False)


@trusted
@pytest.mark.parametrize("route", [in_trace, by_backward])
def test_gradients_are_those_of_the_model_here(case, route):
    here, there, inputs, goal = case
    without_gradients(here)
    early = here.hook_name(Site(0, "resid_post"))
    ours, theirs = route(here.model, inputs, goal, early, False), route(there, inputs, goal, early, True)
    assert float(ours.abs().max()) > 0
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-4)


@sandboxed
@pytest.mark.parametrize(
    ("route", "text"),
    [
        (in_trace, "appears to not have been used in the graph"),
        (by_backward, r"OutOfOrderError: '\d+\.grad\.i0' was requested but the model already"),
    ],
)
def test_a_sandbox_refuses_gradients(case, route, text):
    here, there, inputs, goal = case
    early = here.hook_name(Site(0, "resid_post"))
    with pytest.raises(RemoteError, match=text):
        route(there, inputs, goal, early, True)


def patched(model, clean, broken, goal, heads, remote):
    """The objective of the broken input with the clean one's head outputs at one token."""
    with torch.no_grad(), model.trace(remote=remote) as tracer:
        both = tracer.barrier(2)
        with tracer.invoke(**clean):
            z = model.get(heads).input[:, -1]
            both()
        with tracer.invoke(**broken):
            both()
            model.get(heads).input[:, -1] = z
            value = nnsight.save(trace_ops.goal_mean(model.get(goal.path), goal))
    return value


def test_patching_between_invokes(case):
    here, there, clean, goal = case
    broken = clean | {"input_ids": clean["input_ids"].flip(-1)}
    heads = here.places.path("o_proj", 1)
    ours = patched(here.model, clean, broken, goal, heads, False)
    theirs = patched(there, clean, broken, goal, heads, True)
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-5)
