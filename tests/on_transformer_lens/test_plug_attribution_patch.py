"""attribution_patch of TransformerLens with a SuperActivator objective, in node and edge mode.

The oracle adds eps times the change of one activation at its hook and differentiates by eps with
autograd on the whole bridge: another route than TransformerLens's backward hooks.
"""

import numpy as np
import plug_cases
import pytest
import torch
from plug_cases import pair, view_of
from transformer_lens import patching
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    attribution_patch,
    faithfulness,
)

from sa_transformer_lens.explain import corrupted, explain
from sa_transformer_lens.prefix import prefix_view

EDGE = EdgeAttributionConfig(granularity="edge")
NODES = (*plug_cases.TEXTS, "neox")
MANY_HEADS = ("gpt2", "neox")


def at(node, tensor):
    """The part of an activation that a node is."""
    return tensor[:, node.position] if node.head is None else tensor[:, node.position, node.head]


def slopes(view, made, corrupt, moves):
    """d objective / d eps of each move `(hook, part, change)`, in one pass of the whole bridge."""
    eps = torch.zeros(len(moves), requires_grad=True)
    by_hook, box = {}, {}
    for k, (hook, *move) in enumerate(moves):
        by_hook.setdefault(hook, []).append((k, *move))

    def adder(some):
        def add(tensor, hook):
            tensor = tensor.clone()
            for k, node, change in some:
                part = at(node, tensor)
                part += eps[k] * change
            return tensor

        return add

    hooks = [(hook, adder(some)) for hook, some in by_hook.items()]

    def capture(tensor, hook):
        box["r"] = tensor.clone()

    with view.bridge.hooks(fwd_hooks=[*hooks, (made.hook_name, capture)]):
        view.bridge(corrupt)
    return torch.autograd.grad(made.metric(box["r"]), eps)[0]


def activations(view, tokens, names):
    found = {}

    def keep(tensor, hook):
        found[len(found)] = tensor.detach().clone()

    for name in names:
        with view.bridge.hooks(fwd_hooks=[(name, keep)]):
            view.bridge(tokens)
    return dict(zip(names, found.values(), strict=True))


@pytest.mark.parametrize("name", NODES)
def test_nodes_are_derivatives(name):
    view, made, clean, corrupt, _ = view_of(name)
    found = attribution_patch(view, clean, corrupt, made.metric).node_scores
    assert {node.layer for node in found} == {None, 0, 1}
    names = sorted({node.hook_name for node in found})
    there, here = (activations(view, x, names) for x in (clean, corrupt))
    moves = [(n.hook_name, n, at(n, there[n.hook_name] - here[n.hook_name])) for n in found]
    expected = slopes(view, made, corrupt, moves)
    got = torch.tensor(list(found.values()))
    size = float(expected.abs().max())
    assert size > 1e-4
    torch.testing.assert_close(got, expected, atol=1e-4 * size, rtol=1e-3)


@pytest.mark.parametrize("name", MANY_HEADS)
def test_edges_are_derivatives_and_add_up_to_their_nodes(name):
    view, made, clean, corrupt, _ = view_of(name)
    nodes = attribution_patch(view, clean, corrupt, made.metric).node_scores
    found = attribution_patch(view, clean, corrupt, made.metric, EDGE)
    assert max(reader.layer for _, reader in found.edge_scores) == made.layer
    for node, value in nodes.items():
        assert found.node_scores[node] == pytest.approx(value, abs=1e-5)
    bridge = view.bridge
    flags = ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in")
    assert not any(getattr(bridge.cfg, flag) for flag in flags)
    for flag in flags:
        getattr(bridge, f"set_{flag}")(True)
    try:
        writers = sorted({writer_hook(w) for w, _ in found.edge_scores})
        there, here = (activations(view, x, writers) for x in (clean, corrupt))
        moves = [
            (reader.hook_name, reader, at(w, there[writer_hook(w)] - here[writer_hook(w)]))
            for w, reader in found.edge_scores
        ]
        expected = slopes(view, made, corrupt, moves)
    finally:
        for flag in flags:
            getattr(bridge, f"set_{flag}")(False)
    size = float(expected.abs().max())
    got = torch.tensor(list(found.edge_scores.values()))
    torch.testing.assert_close(got, expected, atol=1e-4 * size, rtol=1e-3)


def writer_hook(node):
    result = node.kind == "attn_head_out"
    return f"blocks.{node.layer}.attn.hook_result" if result else node.hook_name


@pytest.mark.parametrize("name", NODES)
def test_a_last_step_is_exact_where_the_objective_is_linear(name):
    """What the last block's MLP writes is in the residual: first order equals the patch itself."""
    view, made, clean, corrupt, cache = view_of(name)
    linear = lambda resid: resid[:, made.mask[0]].mean(1).sum() * 0.01  # noqa: E731
    found = attribution_patch(view, clean, corrupt, linear).node_scores
    swept = patching.get_act_patch_mlp_out(view, corrupt, cache, linear, baseline=True).effect()
    if name == "bert":
        return  # The norm behind it is not linear.
    for node, value in found.items():
        if node.kind == "mlp_out" and node.layer == made.layer:
            exact = float(swept[node.layer, node.position])
            assert value == pytest.approx(exact, abs=2e-6)
    if name == "neox":
        heads = patching.get_act_patch_attn_head_out_by_pos(
            view, corrupt, cache, linear, baseline=True
        ).effect()
        for node, value in found.items():
            if node.kind == "attn_head_out" and node.layer == made.layer:
                exact = float(heads[node.layer, node.position, node.head])
                assert value == pytest.approx(exact, abs=2e-6)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llama", "n_key_value_heads=2 for n_heads=4"),
        ("gemma2", "normalized or scaled before"),
        ("bert", "none of this model's attention bridges support"),
    ],
)
def test_edges_are_refused_where_a_head_is_no_write(name, text):
    view, made, clean, corrupt, _ = view_of(name)
    with pytest.raises((ValueError, NotImplementedError), match=text):
        attribution_patch(view, clean, corrupt, made.metric, EDGE)


def test_pixels_are_no_tokens_to_it():
    view, made, clean, corrupt, _ = view_of("vit")
    with pytest.raises(ValueError, match=r"expects 2D \[batch, seq\] token tensors"):
        attribution_patch(view, clean, corrupt, made.metric)


def test_the_whole_bridge_has_late_nodes_without_a_gradient():
    """Why there is a view."""
    _, made, clean, corrupt, _ = pair("gpt2")
    view, box = view_of("gpt2")[0], {}

    def capture(tensor, hook):
        box["r"] = tensor.clone()

    with (
        view.bridge.hooks(fwd_hooks=[(made.hook_name, capture)]),
        pytest.raises((ValueError, RuntimeError, KeyError), match="gradient"),
    ):
        attribution_patch(view.bridge, clean, corrupt, lambda logits: made.metric(box["r"]))


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_the_report_sums_nodes_by_head(name):
    """`sa_transformer_lens.explain`, what `sa-plugin demo` runs; post-LN blocks included."""
    host, made, clean, _, inputs = pair(name)
    replaced = made.tail.numpy()
    words = made.mask[0].numpy()
    found = explain(host, made, plug_cases.sample_of(name), replaced, None, seed=3)
    broken = corrupted(clean, replaced, 3, words)
    assert (broken != clean)[0].numpy()[~replaced].sum() == 0
    assert set(broken[0, replaced].tolist()) <= set(clean[0, words & ~replaced].tolist())
    nodes = attribution_patch(prefix_view(host, made, **inputs), clean, broken, made.metric).node_scores
    expected = np.zeros_like(found.heads)
    for node, value in nodes.items():
        if node.kind == "attn_head_out":
            expected[node.layer, node.head] += value
    np.testing.assert_allclose(found.heads, expected, atol=1e-7)
    assert abs(found.heads).max() > 0
    with pytest.raises(ValueError, match="every word of the passage is to be replaced"):
        corrupted(clean, words, 3, words)


def test_a_circuit_of_all_edges_restores_the_objective():
    view, made, clean, corrupt, _ = view_of("gpt2")
    edges = attribution_patch(view, clean, corrupt, made.metric, EDGE).top_edges(k=10**6)
    whole = faithfulness(view, clean, corrupt, made.metric, edges)
    assert whole.recovered == pytest.approx(1, abs=1e-3)
    none = faithfulness(view, clean, corrupt, made.metric, [])
    assert none.recovered == pytest.approx(0, abs=1e-3)
    assert whole.total_edges == len(edges)
