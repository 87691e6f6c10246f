"""Every snippet of docs/howto_circuits.md runs, in order, and what it computes equals slow loops.

First-order scores are checked against the real edit, made small: f(+eps) - f(-eps) over 2 eps.
"""

import docs_setup
import nnsight
import pytest
import tiny
import torch

from sa_plugin.attribution import forward_func
from sa_plugin.host import protocol as hosting

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PAGE = docs_setup.ROOT / "docs" / "howto_circuits.md"
EPS = 0.02
HEADS = 4


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """The page's names once all of its blocks have run."""
    from importlib.metadata import EntryPoint

    folder = tmp_path_factory.mktemp("circuits")
    codes = docs_setup.to_run(PAGE)
    found = docs_setup.names_for(codes) | {"__name__": "docs"}
    points = [
        EntryPoint(name, f"sa_{name}:accept", hosting.ADAPTERS) for name in ("nnsight", "transformer_lens")
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hosting, "entry_points", lambda group: points)
        for k, code in enumerate(codes):
            # nnsight reads a trace's source from the file that the code says it is in.
            file = folder / f"block_{k}.py"
            file.write_text(code)
            exec(compile(code, str(file), "exec"), found)
    return found


def seen_by(reader):
    """Writers that come before a reader: the embedding, then heads and MLP of each block."""
    return 11 if reader == 4 else 1 + (HEADS + 1) * (reader // 2) + HEADS * (reader % 2)


def slope(names, reader, move, start):
    """The metric's change by a small part of a move at one reader, by two runs of the edited model."""
    view, goal, values = names["view"], names["goal"], []
    for eps in (EPS, -EPS):
        hooks = [("blocks.0.hook_resid_pre", lambda x, hook: start)]
        if reader < 4:
            hooks.append((names["readers"][reader], lambda x, hook, eps=eps: x + eps * move))
        with torch.no_grad():
            resid = view.run_with_hooks(names["corrupted"], fwd_hooks=hooks)
            values.append(float(goal.metric(resid + eps * move * (reader == 4))))
    return (values[0] - values[1]) / (2 * EPS)


def test_edge_scores_are_small_patches_of_each_edge(names):
    change, start = names["there"] - names["here"], names["here"][0]
    size = float(names["eap"].abs().max())
    for reader in range(5):
        slow = [slope(names, reader, change[w], start) for w in range(seen_by(reader))]
        torch.testing.assert_close(
            names["eap"][reader, : len(slow)], torch.tensor(slow), atol=2e-3 * size, rtol=2e-2
        )


def test_integrated_scores_are_the_mean_over_the_path(names):
    change, size = names["there"] - names["here"], float(names["eap_ig"].abs().max())
    path = [names["here"][0] + k / 5 * change[0] for k in range(5)]
    for reader, writer in ((0, 0), (1, 2), (2, 3), (3, 5), (4, 7), (4, 10)):
        slow = sum(slope(names, reader, change[writer], x) for x in path) / 5
        assert float(names["eap_ig"][reader, writer]) == pytest.approx(slow, abs=2e-3 * size, rel=2e-2)


def test_the_embeddings_integrated_edges_are_complete(names):
    """All that the clean embedding causes leaves it by its own edges: in small steps they give the gap."""
    change, start, total = names["there"] - names["here"], names["here"][0], 0.0
    for k in range(32):
        gradient = names["slopes"](names["corrupted"], start + (k + 0.5) / 32 * change[0])
        total += float(torch.einsum("btd,rbtd->", change[0], gradient)) / 32
    view, goal = names["view"], names["goal"]
    gap = float(goal.metric(view(names["clean"])) - goal.metric(view(names["corrupted"])))
    assert total == pytest.approx(gap, rel=0.02)


def test_a_metric_of_the_whole_model_is_the_mean_of_the_samples_alone(names):
    host, bridge, goals = names["host"], names["bridge"], names["goals"]
    alone = []
    for one, sample in zip(goals, names["chosen"], strict=True):
        view = names["prefix_view"](bridge, one)
        alone.append(float(one.metric(view(host.forward_inputs(sample)["input_ids"]))))
    assert len({len(row) for row in names["rows"]}) > 1
    assert float(names["value"]) == pytest.approx(sum(alone) / len(alone), abs=2e-6)

    def measured(edit):
        hooks = [("blocks.0.hook_mlp_out", edit), (goals[0].hook_name, names["keep"])]
        with bridge.hooks(fwd_hooks=hooks):
            logits = bridge(names["batch"], attention_mask=names["mask"])
        return names["metric"](logits, logits, names["lengths"], range(len(goals)))

    eps = torch.zeros((), requires_grad=True)
    (gradient,) = torch.autograd.grad(measured(lambda x, hook: x * (1 + eps)), eps)
    with torch.no_grad():
        up, down = (float(measured(lambda x, hook, e=e: x * (1 + e))) for e in (EPS, -EPS))
    assert float(gradient) == pytest.approx((up - down) / (2 * EPS), rel=2e-2)
    with pytest.raises(ValueError, match="give the mask of these samples, in this order"):
        names["metric"](None, None, names["lengths"].flip(0), range(len(goals)))


def test_path_patching_is_recomputation_with_all_else_frozen(names):
    """Head 2 from the clean run, every other write of the corrupted one, the receiver recomputed."""
    view, clean, corrupted = (names[n] for n in ("view", "clean", "corrupted"))
    _, there = view.run_with_cache(clean)
    _, here = view.run_with_cache(corrupted)
    held = {}

    def sender(z, hook):
        z = here[hook.name].clone()
        z[:, :, 2] = there[hook.name][:, :, 2]
        return z

    frozen = ("blocks.0.hook_mlp_out", "blocks.1.attn.hook_z")
    hooks = [("blocks.0.attn.hook_z", sender)]
    hooks += [(name, lambda x, hook: here[hook.name]) for name in frozen]
    hooks += [("blocks.1.hook_mlp_out", lambda x, hook: held.update(x=x.clone()))]
    with torch.no_grad():
        view.run_with_hooks(corrupted, fwd_hooks=hooks)
        after = view.run_with_hooks(
            corrupted, fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: held["x"])]
        )
        torch.testing.assert_close(names["patched"], after, atol=1e-5, rtol=1e-4)
        assert float((after - view(corrupted)).abs().max()) > 1e-3


def test_edges_of_both_hosts_are_equal(names):
    """Heads of a block together are its attention: biases are no part of a change."""
    start, end = names["kept"][1][0], names["kept"][0][0]
    path = [names["edges_from"](start + k / 5 * (end - start)) for k in range(5)]
    for scores, found in ((names["eap"], path[0]), (names["eap_ig"], sum(path) / 5)):
        for reader, row in enumerate(scores):
            heads = [row[1 + 5 * b : 5 + 5 * b].sum() for b in (0, 1)]
            expected = torch.stack([row[0], heads[0], row[5], heads[1], row[10]])[: reader + 1]
            torch.testing.assert_close(found[reader, : reader + 1], expected, atol=1e-5, rtol=1e-4)


def test_path_patching_in_traces(names):
    model, layer, broken = names["model"], names["layers"][1], names["broken"]
    change, path = names["change"], names["plain"].path
    with torch.no_grad(), model.trace(**broken) as tracer:
        layer.ln_2.input = layer.ln_2.input + change
        held = nnsight.save(layer.mlp.output)
        tracer.stop()
    with torch.no_grad(), model.trace(**broken) as tracer:
        layer.mlp.output = held
        found = nnsight.save(model.get(path))
        tracer.stop()
    torch.testing.assert_close(found, names["patched"], atol=1e-5, rtol=1e-4)


class TestWrongPlace:
    def test_a_view_of_another_layer(self, names):
        low = names["prefix_view"](names["bridge"], 0)
        with pytest.raises(
            ValueError, match=r"resid is blocks\.0\.hook_resid_post, where the view of the model ends, and"
        ):
            names["goal"].metric(low(names["clean"]))
        joint = names["together"]([names["goal"]])
        with pytest.raises(ValueError, match="make the view of the objective it is for"):
            joint(low.run_with_cache(names["clean"])[0])

    def test_another_model(self, names):
        other = tiny.host("neox")
        with pytest.raises(ValueError, match=r"was made on weights \w{12}, this model is tiny-neox"):
            names["prefix_view"](other, names["goal"])
        with pytest.raises(ValueError, match=r"target and tail are the other model's\. Make it with"):
            forward_func(other, names["goal"], names["sample"])

    def test_another_length(self, names):
        longer = torch.cat([names["clean"], names["clean"][:, -1:]], 1)
        with pytest.raises(ValueError, match="the objective was made for"):
            names["view"](longer)
        with pytest.raises(ValueError, match="the same tokens in the same places"):
            names["goal"].metric(torch.zeros(1, longer.shape[1], 32))

    def test_another_width_in_a_trace(self, names):
        with pytest.raises(ValueError, match="activations have 16 dimensions, the vector 32: it is of anoth"):
            names["trace_ops"].goal_mean(torch.zeros(1, 3, 16), names["plain"])
