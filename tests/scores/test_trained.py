"""Probes trained through their pooling: against loops, torch's own optimiser, and a planted world."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import world

from sa_plugin.concepts import fit
from sa_plugin.detection import calibrate
from sa_plugin.scores import PROBES, score, train_poolings

# Parts that no other room uses.
inner = sys.modules[train_poolings.__module__]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def planted():
    one = world(0, n_samples=80)
    return one, score(one.host, one.data, fit(one.host, one.data, "prototype", layers=[1]))


@pytest.fixture(scope="module")
def trained(planted):
    one, scores = planted
    return train_poolings(one.host, one.data, scores)


def softmax(values):
    weights = [math.exp(v - max(values)) for v in values]
    return [w / sum(weights) for w in weights]


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


@pytest.mark.parametrize("name", PROBES)
def test_each_probe_equals_a_loop_whatever_the_padding(name):
    generator = torch.Generator().manual_seed(0)
    lengths, width, columns, heads = (3, 1, 5), 4, 2, 3 if name == "MultiMax" else 1
    h = torch.randn((3, 5, width), generator=generator, dtype=torch.float64)
    real = torch.arange(5) < torch.tensor(lengths)[:, None]
    p = {"w": torch.randn((width, heads, columns), generator=generator, dtype=torch.float64)}
    p |= {"b": torch.tensor([0.3, -0.2]).double(), "log_temperature": torch.tensor([0.5, -1.0]).double()}
    p["q"] = torch.randn((width, columns), generator=generator, dtype=torch.float64)
    z, pooled = PROBES[name](p, h, real)
    for n, c in np.ndindex(3, columns):
        rows = [h[n, t] for t in range(lengths[n])]
        own = [[dot(row, p["w"][:, k, c]) for row in rows] for k in range(heads)]
        logits = [max(each) + float(p["b"][c]) for each in zip(*own, strict=True)]
        assert z[n, : lengths[n], c].tolist() == pytest.approx(logits)
        if name == "linear probe":
            expected = max(logits)
        elif name == "MultiMax":
            expected = sum(max(each) for each in own) + float(p["b"][c])
        else:
            temperature = math.exp(p["log_temperature"][c])
            heat = [v / temperature for v in logits]
            if name == "attention probe":
                heat = [dot(row, p["q"][:, c]) / math.sqrt(width) for row in rows]
            expected = sum(w * v for w, v in zip(softmax(heat), logits, strict=True))
        assert float(pooled[n, c]) == pytest.approx(expected)


def test_every_column_steps_as_adamw_of_torch():
    rate, decay = torch.tensor([1e-3, 1e-2, 1e-2]), torch.tensor([0.0, 0.1, 1.0])
    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    now = {"w": start.clone()}
    moments = {"w": (torch.zeros_like(start), torch.zeros_like(start))}
    columns = [start[:, k].clone().requires_grad_() for k in range(3)]
    optimisers = [
        torch.optim.AdamW([c], lr=float(r), weight_decay=float(d))
        for c, r, d in zip(columns, rate, decay, strict=True)
    ]
    for step in range(1, 20):
        gradient = torch.sin(now["w"] * step)
        for k, (column, optimiser) in enumerate(zip(columns, optimisers, strict=True)):
            column.grad = torch.sin(column.detach() * step)
            optimiser.step()
            assert now["w"][:, k].shape == column.shape
        inner._step(now, moments, [gradient], step, rate, decay)
        torch.testing.assert_close(now["w"], torch.stack([c.detach() for c in columns], dim=1))


def test_a_concept_without_both_classes_held_out_is_judged_on_all_train_samples():
    labels = np.array([[1, 1], [0, 0], [1, 0], [1, 0], [0, 0]], dtype=bool)
    judged = inner._Judge(labels, inner._Part(np.array([0, 1, 2]), np.array([3, 4])))
    pooled = np.array([[9.0, 5.0], [8.0, 1.0], [7.0, 9.0], [1.0, 9.0], [0.0, 9.0]])
    # The first: sample 3 above sample 4. The second has no positive held out: sample 0 beats one of four.
    np.testing.assert_allclose(judged.areas(pooled, np.arange(5)), [1.0, 0.25])


def test_trained_poolings_stand_in_the_table_with_both_kinds_of_labels(planted, trained):
    one, scores = planted
    names = [f"{probe}, {kind} labels" for probe in PROBES for kind in ("sample", "token")]
    assert list(trained.given) == names
    detector = calibrate(one.host, one.data, scores.bank, scores=trained)
    found = detector.evaluate(one.data.test, scores=trained)
    assert list(found.methods)[-8:] == names
    deltas = len(detector.tail.deltas)
    assert found.of("attention probe, sample labels").chosen.candidates == 4 * deltas
    assert found.of("MultiMax, token labels").chosen.candidates == 8 * deltas
    # A quarter of the tokens of a positive sample carry the concept, far from the others.
    for name in names:
        assert found.of(name).weighted["auroc"].estimate > 0.8
    record = trained.given["MultiMax, token labels"].record["red"]
    assert record["layer"] == 1
    assert record["labels"] == "tokens"
    assert 1 <= record["epoch"] <= 40


def test_training_follows_its_seed_and_reads_train_documents_alone(planted, trained):
    one, scores = planted
    asked = {"probes": ["softmax probe"], "labels": ["samples"]}
    name = "softmax probe, sample labels"
    again = train_poolings(one.host, one.data, scores, **asked)
    np.testing.assert_array_equal(again.given[name].values, trained.given[name].values)
    other = train_poolings(one.host, one.data, scores, seed=1, **asked)
    assert (other.given[name].values != trained.given[name].values).any()
    # Without labels of the scored samples, and with half of these samples, the numbers are the same.
    bare = tuple(replace(s, positive=frozenset(), spans=()) for s in scores.tokens.samples)
    unlabelled = replace(scores, tokens=replace(scores.tokens, samples=bare)).select(np.arange(10))
    half = train_poolings(one.host, one.data, unlabelled, **asked)
    np.testing.assert_allclose(half.given[name].values, trained.given[name].values[:10], atol=1e-5)


def test_what_cannot_be_trained_is_refused(planted):
    one, scores = planted
    with pytest.raises(ValueError, match=r"probe 'multimax' is unknown.*did you mean 'MultiMax'"):
        train_poolings(one.host, one.data, scores, probes=["multimax"])
    with pytest.raises(ValueError, match="labels 'token' is unknown"):
        train_poolings(one.host, one.data, scores, labels=["token"])
    at = one.data.split_of
    alike = tuple(replace(s, document=f"one {of}") for s, of in zip(one.data.samples, at, strict=True))
    with pytest.raises(ValueError, match="the train split comes from 1 document: training is stopped on"):
        train_poolings(one.host, replace(one.data, samples=alike), scores)
    with pytest.raises(ValueError, match=r"candidates of the statistic 'x' is 0: give 1 or more"):
        scores.with_statistic("x", np.zeros((scores.tokens.n_samples, 4)), candidates=0)
