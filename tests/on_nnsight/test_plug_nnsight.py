"""SuperActivator objectives in nnsight's own traces: patching between invokes, and gradients."""

from contextlib import contextmanager

import nnsight
import numpy as np
import plug_cases
import pytest
import tiny
import torch
from plug_cases import EVERY, pair, view_of
from transformer_lens import patching
from transformer_lens.tools.analysis.attribution_patching import Node, attribution_patch

from sa_nnsight import trace_ops, trace_setup
from sa_nnsight.places import envoy_path
from sa_nnsight.trace_ops import check_pair
from sa_plugin.data import Sample
from sa_plugin.host import Site

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
NAMES = ("superactivator", "superactivator_tokens", "superactivator_margin", "global")


def host_of(name):
    """nnsight's model of the same weights as TransformerLens's."""
    return tiny.nnsight_vision_host(name) if name == "vit" else tiny.nnsight_host(name)


def inputs_of(name):
    _, _, clean, corrupt, others = pair(name)
    first = "pixel_values" if name == "vit" else "input_ids"
    return {first: clean} | others, {first: corrupt} | others


@contextmanager
def calls_of(host):
    """How often each block runs."""
    counts = [0] * host.info.n_layers
    handles = []
    for layer in range(host.info.n_layers):

        def count(module, args, layer=layer):
            counts[layer] += 1

        handles.append(host.places.module("block", layer).register_forward_pre_hook(count))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def heads_of(host, layer):
    """The module whose input is z, as nnsight spells it."""
    return envoy_path(host.model, host.places.path("o_proj", layer))


def patched_head(host, made, clean, corrupt, layer, head):
    """The objective with one head's output from the clean invoke."""
    model, heads = host.model, heads_of(host, layer)
    own = slice(head * host.info.d_head, (head + 1) * host.info.d_head)
    with torch.no_grad(), model.trace() as tracer:
        both = tracer.barrier(2)
        with tracer.invoke(**clean):
            z = model.get(heads).input[..., own]
            both()
        with tracer.invoke(**corrupt):
            both()
            model.get(heads).input[..., own] = z
            value = nnsight.save(made.metric(model.get(made.hook_path)))
    return value


class Local:
    """An objective with nnsight's path of its layer."""

    def __init__(self, made, host):
        self.metric, self.hook_path = made.metric, host.hook_name(Site(made.layer, "resid_post"))


@pytest.mark.parametrize("name", plug_cases.TEXTS)
def test_patching_between_invokes_is_transformer_lens_sweep(name):
    view, made, _, corrupt, cache = view_of(name)
    swept = patching.get_act_patch_attn_head_out_all_pos(view, corrupt, cache, made.metric)
    host, (clean, broken) = host_of(name), inputs_of(name)
    check_pair(clean, broken)
    for layer, head in np.ndindex(2, tiny.N_HEADS):
        value = patched_head(host, Local(made, host), clean, broken, layer, head)
        torch.testing.assert_close(value, swept[layer, head].detach(), atol=2e-6, rtol=1e-5)


def test_pixels_are_patched_from_trace_to_trace():
    """A wrapper without a tokenizer takes one input a trace: the value is handed over by saving."""
    view, made, _, corrupt, cache = view_of("vit")
    swept = patching.get_act_patch_attn_head_out_all_pos(view, corrupt, cache, made.metric)
    host, (clean, broken) = host_of("vit"), inputs_of("vit")
    path = host.hook_name(Site(made.layer, "resid_post"))
    for layer, head in np.ndindex(2, tiny.N_HEADS):
        model, heads = host.model, heads_of(host, layer)
        own = slice(head * tiny.D_HEAD, (head + 1) * tiny.D_HEAD)
        with torch.no_grad(), model.trace(**clean) as tracer:
            z = nnsight.save(model.get(heads).input[..., own])
            tracer.stop()
        with calls_of(host) as counts, torch.no_grad(), model.trace(**broken) as tracer:
            model.get(heads).input[..., own] = z
            value = nnsight.save(made.metric(model.get(path)))
            tracer.stop()
        assert counts == [1, 1, 0]
        torch.testing.assert_close(value, swept[layer, head].detach(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", plug_cases.TEXTS)
def test_later_blocks_are_not_computed_in_an_invoke_that_stops(name):
    host, (clean, broken) = host_of(name), inputs_of(name)
    made = Local(pair(name)[1], host)
    model, heads = host.model, heads_of(host, 0)
    with calls_of(host) as counts, torch.no_grad(), model.trace() as tracer:
        both = tracer.barrier(2)
        with tracer.invoke(**clean):
            z = model.get(heads).input
            both()
        with tracer.invoke(**broken):
            both()
            model.get(heads).input = z
            value = nnsight.save(made.metric(model.get(made.hook_path)))
            tracer.stop()
    assert counts == [1, 1, 0]
    assert torch.isfinite(value)


@pytest.mark.parametrize("objective_name", NAMES)
@pytest.mark.parametrize("name", EVERY)
def test_gradients_in_a_trace_are_those_of_transformer_lens(name, objective_name):
    """d objective / d z of block 0, by the objective itself and as plain tensors."""
    _, made, _, corrupt, _ = pair(name, objective_name)
    view = view_of(name, objective_name)[0]
    box = {}

    def leaf(z, hook):
        box["z"] = z.detach().requires_grad_(True)
        return box["z"]

    value = made.metric(view.run_with_hooks(corrupt, fwd_hooks=[("blocks.0.attn.hook_z", leaf)]))
    (expected,) = torch.autograd.grad(value, box["z"])
    host, (_, broken) = host_of(name), inputs_of(name)
    if name == "vit":
        found = in_trace(host, broken, Local(made, host).metric, Local(made, host).hook_path)
    else:
        goal = trace_setup.goal(made_again(name, objective_name, host))
        metric = lambda resid: trace_ops.goal_mean(resid, goal)  # noqa: E731
        found = in_trace(host, broken, metric, goal.path)
        own = in_trace(host, broken, made.metric, goal.path)
        torch.testing.assert_close(own, found, atol=1e-6, rtol=1e-3)
    size = float(expected.abs().max())
    assert size > 0
    torch.testing.assert_close(found.reshape(expected.shape), expected, atol=1e-4 * size, rtol=1e-3)


def made_again(name, objective_name, host):
    """The objective, made by nnsight's host: its tail and target agree with TransformerLens's."""
    import attribution_cases as cases

    from sa_plugin.attribution import objective

    _, _, detector = cases.case(name)
    return objective(
        objective_name,
        detector=detector,
        concept="animal",
        host=host,
        sample=Sample("short", plug_cases.SHORT, "d"),
        fallback="top_token",
    )


def in_trace(host, inputs, metric, path):
    model, heads = host.model, heads_of(host, 0)
    with calls_of(host) as counts:
        with model.trace(**inputs) as tracer:
            z = model.get(heads).input
            value = metric(model.get(path))
            gradient = nnsight.save(torch.autograd.grad(value, z)[0])
            tracer.stop()
        assert counts == [1, 1, 0]
    assert all(p.grad is None for p in model._module.parameters())
    return gradient


@pytest.mark.parametrize("name", plug_cases.TEXTS)
def test_change_times_gradient_is_attribution_patch(name):
    view, made, clean, corrupt, _ = view_of(name)
    scores = attribution_patch(view, clean, corrupt, made.metric).node_scores
    host, (whole, broken) = host_of(name), inputs_of(name)
    model, heads = host.model, heads_of(host, 0)
    with torch.no_grad(), model.trace(**whole) as tracer:
        there = nnsight.save(model.get(heads).input)
        tracer.stop()
    path = Local(made, host).hook_path
    with model.trace(**broken) as tracer:
        here = model.get(heads).input
        (gradient,) = torch.autograd.grad(made.metric(model.get(path)), here)
        change = nnsight.save(((there - here) * gradient).detach())
        tracer.stop()
    by_head = change[0].unflatten(-1, (tiny.N_HEADS, -1)).sum(-1)
    for (position, head), value in np.ndenumerate(by_head.numpy()):
        node = Node(kind="attn_head_out", layer=0, head=head, position=position)
        assert float(value) == pytest.approx(scores[node], abs=2e-6, rel=1e-3)


def test_masks_and_positions_ride_along():
    _, made, clean, _, _ = pair("gpt2")
    host = host_of("gpt2")
    path, model = host.hook_name(Site(1, "resid_post")), host.model
    pad = torch.zeros(1, 2, dtype=clean.dtype)
    mask = torch.cat([pad, torch.ones_like(clean)], dim=1)
    padded = {
        "input_ids": torch.cat([pad, clean], dim=1),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp_min(0),
    }
    with torch.no_grad(), model.trace(**padded) as tracer:
        value = nnsight.save(made.metric(model.get(path)[:, 2:]))
        tracer.stop()
    expected = made.metric(view_of("gpt2")[0](clean))
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)


def test_a_pair_of_different_lengths_is_refused():
    clean, broken = inputs_of("gpt2")
    longer = {name: torch.cat([x, x[:, -1:]], dim=1) for name, x in broken.items()}
    with pytest.raises(ValueError, match="both need the same number of tokens, because patching"):
        check_pair(clean, longer)
    with pytest.raises(ValueError, match="give the model the same arguments in both"):
        check_pair(clean, {"input_ids": broken["input_ids"]})
    hidden = broken | {"attention_mask": torch.zeros_like(broken["attention_mask"])}
    with pytest.raises(ValueError, match="hide different positions: pad both inputs alike"):
        check_pair(clean, hidden)


@pytest.mark.parametrize("objective_name", NAMES)
def test_an_objective_of_other_tokens_is_refused_in_the_trace(objective_name):
    host, (clean, _) = host_of("gpt2"), inputs_of("gpt2")
    made = made_again("gpt2", objective_name, host)
    goal = trace_setup.goal(made)
    longer = {name: torch.cat([x, x[:, -1:]], dim=1) for name, x in clean.items()}
    n = clean["input_ids"].shape[1]
    for metric in (made.metric, lambda resid: trace_ops.goal_mean(resid, goal)):
        with pytest.raises(ValueError, match=rf"{n} tokens|\[batch, {n}, 32\]"):
            in_trace(host, longer, metric, goal.path)
