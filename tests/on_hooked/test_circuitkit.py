"""circuitkit's edge attribution takes a SuperActivator objective as its metric; by finite differences."""

import contextlib

# circuitkit refuses to be imported after transformer_lens, which it patches.
get_scores_eap = None
with contextlib.suppress(ImportError):
    from circuitkit.backends.eap.attribute import get_scores_eap
    from circuitkit.backends.eap.eap_utils import tokenize_batch_pair
    from circuitkit.backends.eap.graph import Graph

import pytest  # noqa: E402
import torch  # noqa: E402
from hooked_cases import hooked_model, needs_hooked  # noqa: E402
from word_data import word_data  # noqa: E402

import sa_plugin as sa  # noqa: E402
from sa_plugin.attribution import together  # noqa: E402

pytestmark = [
    needs_hooked,
    pytest.mark.skipif(get_scores_eap is None, reason="circuitkit wants TransformerLens 3.8"),
    pytest.mark.filterwarnings("ignore"),
]


class Pairs(list):
    """Batches of (clean, corrupted, labels), with what circuitkit asks of a loader."""

    pair_padding_side = "right"


@pytest.mark.parametrize("name", ["superactivator", "superactivator_tokens", "superactivator_margin"])
def test_an_edges_score_is_the_slope_along_it(name):
    model = hooked_model("llama")
    model.set_ungroup_grouped_query_attention(True)
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    host = sa.attach(model, progress=False)
    data = word_data(40)
    detector = sa.calibrate(host, data, sa.fit(host, data, "prototype", layers=[2]), deltas=(0.5,))
    found = [(s, h.concept) for s in data.test.samples for h in detector.find(s)[:1]][:2]
    goals = [sa.objective(name, detector=detector, concept=c, sample=s, host=host) for s, c in found]
    clean = [s.text for s, _ in found]
    pairs = Pairs([(clean, [text.replace("cat", "river").replace("dog", "over") for text in clean], (0, 1))])
    # circuitkit puts a BOS in front unless a chat template has: tokens must be those of the host.
    pairs.templated = not host.info.bos
    seen = {}

    def keep(resid, hook):
        seen["resid"] = resid.clone()

    def metric(logits, clean_logits, input_length, labels):
        mask = torch.arange(seen["resid"].shape[1])[None] < input_length[:, None]
        return together([goals[k] for k in labels], mask).metric(seen["resid"])

    graph = Graph.from_model(model)
    with model.hooks(fwd_hooks=[(goals[0].hook_name, keep)]):
        scores = get_scores_eap(model, graph, pairs, metric, quiet=True)
    # The edge from the embedding into block 1's MLP, by a step along it.
    tokens, corrupted, mask, _, lengths, _ = tokenize_batch_pair(
        model, *pairs[0][:2], pair_padding_side="right", templated=pairs.templated
    )
    step = model.W_E[corrupted] - model.W_E[tokens]
    assert step.abs().max() > 0

    def value(size):
        moved = ("blocks.1.hook_mlp_in", lambda x, hook: x + size * step)
        with torch.no_grad(), model.hooks(fwd_hooks=[moved, (goals[0].hook_name, keep)]):
            return metric(model(tokens, attention_mask=mask), None, lengths, (0, 1)).item()

    slope = (value(1e-2) - value(-1e-2)) / 2e-2
    place = graph.forward_index(graph.nodes["input"]), graph.backward_index(graph.nodes["m1"])
    assert abs(slope) > 1e-6
    assert scores[place].item() * len(clean) == pytest.approx(slope, rel=2e-2)
