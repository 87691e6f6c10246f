"""Edges of docs/experiments/circuit_net.py on tiny models: circuits against a model written out, scores
against small patches, and the controls that a circuit is compared with.
"""

import math

import circuit_net
import circuit_runs
import numpy as np
import pytest
import tiny
import torch
from plug_cases import view_of

from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData, Splits
from sa_plugin.detection import calibrate

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def case(request):
    """A net, clean and corrupted tokens, and what the corrupted run read and wrote."""
    view, made, clean, corrupted, _ = view_of(request.param, "superactivator_tokens")
    net = circuit_net.Net(view)
    return request.param, net, made, clean, corrupted, *net.recorded(corrupted)


def test_a_reader_reads_what_the_writers_before_it_wrote(case):
    _, net, _, clean, _, inputs, writes = case
    there, wrote = net.recorded(clean)
    assert len(net.readers) == 5
    assert len(net.writers) == 1 + 2 * (tiny.N_HEADS + 1)
    for r, n in enumerate(net.sees):
        torch.testing.assert_close(
            there[r] - inputs[r], (wrote[:n] - writes[:n]).sum(0), atol=1e-5, rtol=1e-4
        )


def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(case):
    _, net, _, clean, _, inputs, writes = case
    whole = net.circuit(clean, inputs, writes, net.edges)
    torch.testing.assert_close(whole, net.recorded(clean)[0][-1], atol=2e-5, rtol=1e-4)
    none = net.circuit(clean, inputs, writes, torch.zeros_like(net.edges))
    assert torch.equal(none, inputs[-1])


def by_hand(kept, clean, inputs, writes):
    """A circuit of GPT-2 from its own modules: every reader's input a plain sum over writers."""
    model = tiny.hf_model("gpt2").transformer
    first = model.wte(clean) + model.wpe(torch.arange(clean.shape[1]))
    change = [first - writes[0]]

    def read(r):
        return inputs[r] + sum((c for w, c in enumerate(change) if kept[r, w]), torch.zeros_like(first))

    for layer, block in enumerate(model.h[:2]):
        q, k, v = (
            one.unflatten(-1, (tiny.N_HEADS, -1)).transpose(1, 2)
            for one in block.attn.c_attn(block.ln_1(read(2 * layer))).chunk(3, -1)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(tiny.D_HEAD)
        later = torch.ones(scores.shape[-2:]).triu(1).bool()
        z = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
        weights = block.attn.c_proj.weight.unflatten(0, (tiny.N_HEADS, tiny.D_HEAD))
        heads = [z[:, h] @ weights[h] - writes[len(change) + h] for h in range(tiny.N_HEADS)]
        change += heads
        change.append(block.mlp(block.ln_2(read(2 * layer + 1))) - writes[len(change)])
    return read(4)


def test_circuits_are_a_model_written_out(case):
    name, net, _, clean, _, inputs, writes = case
    if name != "gpt2":
        return
    generator = torch.Generator().manual_seed(0)
    for k in (5, 20, 30):
        kept = circuit_runs.any_edges(net, k, generator)
        assert int(kept.sum()) == int((kept & net.edges).sum()) == k
        with torch.no_grad():
            slow = by_hand(kept, clean, inputs, writes)
        torch.testing.assert_close(net.circuit(clean, inputs, writes, kept), slow, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
def test_scores_are_small_patches_of_an_edge(case, steps):
    _, net, made, clean, corrupted, _, writes = case
    (scores,) = net.scores(clean, corrupted, [made], steps)
    change, eps, size = net.recorded(clean)[1] - writes, 0.02, float(scores.abs().max())
    for r, w in ((0, 0), (1, 3), (2, 1), (3, 8), (4, 5), (4, 10)):
        slow = 0.0
        for step in range(steps):
            start = writes[0] + step / steps * change[0]

            def value(e, start=start, r=r, w=w):
                def read(reader, x):
                    return x + e * change[w] if reader == r else None

                with torch.no_grad():
                    return float(made.metric(net.run(corrupted, read, first=start)))

            slow += (value(eps) - value(-eps)) / (2 * eps * steps)
        assert float(scores[r, w]) == pytest.approx(slow, abs=2e-3 * size, rel=2e-2)
    assert not scores[~net.edges].any()


def test_controls_have_the_circuits_size(case):
    _, net, *_ = case
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(net.edges.shape, generator=generator) * net.edges
    kept = circuit_runs.first(scores, 15)
    assert int(kept.sum()) == 15
    assert circuit_runs.with_both(scores, [kept, circuit_runs.first(scores, 1)]) == [True, False]
    assert float(scores[kept].min()) >= float(scores[~kept].max())
    alike = [circuit_runs.like_edges(net, kept, generator) for _ in range(5)]
    mlp = torch.tensor([" MLP" in name for name in net.writers])
    for one in alike:
        assert torch.equal(one.sum(1), kept.sum(1))
        assert torch.equal((one & mlp).sum(1), (kept & mlp).sum(1))
        assert not (one & ~net.edges).any()
    assert any(not torch.equal(one, kept) for one in alike)


def test_pairs_differ_in_the_concepts_words_alone():
    """As many tokens, other words in the places of the concept's, none of them ever one of its own."""
    rng = np.random.default_rng(0)
    words = [list(rng.choice(["cat", "dog", "sat", "the", "mat"], 4)) for _ in range(60)]
    of = {"cat": "animal", "dog": "animal", "sat": "other", "mat": "other"}
    data = ConceptData.from_words(words, [[of.get(w) for w in row] for row in words], splits=Splits(seed=1))
    host = tiny.host("gpt2")
    detector = calibrate(host, data, fit(host, data, "prototype", layers=[1]), deltas=(0.5,))
    found = circuit_runs.pairs(host, data, detector, "animal", "test", 4)
    assert len({pair.sample.document for pair in found}) == len(found) > 1
    for pair in found:
        swaps = iter(swap.split(" -> ") for swap in pair.swapped.split("; "))
        before = pair.sample.text.split(" ")
        after = [next(swaps)[1] if word in ("cat", "dog") else word for word in before]
        assert {"cat", "dog"}.isdisjoint(after)
        assert torch.equal(pair.corrupted, circuit_runs.tokens_of(host, " ".join(after)))
        assert len(pair.ids) == len(pair.corrupted)


def test_faithfulness_is_a_share_of_the_gap_and_leaves_documents_out():
    values = {"clean": [1.0, 2.0, 4.0], "corrupted": [0.0, 1.0, 0.0], "10|own|0": [0.5, 1.5, 4.0]}
    values |= {"10|random|0": [0.0, 1.0, 0.0], "10|random|1": [1.0, 2.0, 4.0]}
    record = {"values": {name: [v, v] for name, v in values.items()}, "documents": ["a", "b", "c"]}
    found = circuit_runs.Found(record)
    assert found.families == {"own": 1, "random": 2}
    own = found.faithfulness(10, "own")
    assert float(own.estimate) == pytest.approx(5 / 6)
    np.testing.assert_allclose(own.values, [5 / 6, 4.5 / 5, 4.5 / 5, 1 / 2])
    np.testing.assert_allclose(found.draws(10, "random"), [0, 1])
    assert float((own - found.faithfulness(10, "random")).estimate) == pytest.approx(1 / 3)
    assert circuit_runs.ranges(found.draws(10, "random"), 5 / 6) == "0.50 (0.00 to 1.00), 1 as high"
    draws = np.arange(39) / 38
    assert circuit_runs.against(1.0, draws) == (2 / 40, 37 / 38)
    assert circuit_runs.against(37 / 38 + 1e-6, draws)[0] == 2 / 40
    assert circuit_runs.against(37 / 38, draws)[0] == 3 / 40
    assert circuit_runs.against(1.0, draws[:9])[1] == np.inf


def test_a_record_becomes_tables_and_a_picture(tmp_path):
    """As it comes back from JSON."""
    rng, families = np.random.default_rng(0), ["own", *circuit_runs.BANDS]
    values = {f"10|{family}|0": rng.random((2, 5)).tolist() for family in families}
    values |= {f"10|{family}|1": rng.random((2, 5)).tolist() for family in circuit_runs.BANDS}
    scores = rng.normal(size=(5, 11))
    record = {
        "command": "run",
        "data": "toy",
        "hash": "0",
        "concept": "animal",
        "model": "tiny",
        "block": 1,
        "ks": [10],
        "cal": [1, 2],
        "documents": list("abcde"),
        "edges": 33,
        "seconds": 1,
        "gap": 2.0,
        "readers": [f"r{k}" for k in range(5)],
        "writers": [f"w{k}" for k in range(11)],
        "scores": {"own": [scores.tolist()], "own halves": [scores.tolist(), (-scores).tolist()]},
        "with both": {"10": [True, False]},
        "shared": {family: {"10": 0.5} for family in families},
        "values": values | {"clean": rng.random((2, 5)).tolist(), "corrupted": [[0.0] * 5, [0.0] * 5]},
    }
    text = circuit_runs.tables(record)
    top = np.abs(scores).argmax()
    assert f"| w{top % 11} to r{top // 11} | {scores.flat[top] / 2:+.2f} |" in text
    assert "| one half of the pairs against the other | 1.00 |" in text
    assert "| 2 other concepts | " in text
    kept = circuit_runs.Found(record).draws(10, "permuted labels")
    assert f"| 1 from {kept[0]:.2f}; 1 to {kept[1]:.2f} |" in text
    circuit_runs.draw(record, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000
