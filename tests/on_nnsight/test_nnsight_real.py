"""TransformerLens = nnsight = plain transformers on SmolLM2 and real text, at most 60 passages."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from bare_host import BareHost
from nnsight import TransformersModel
from torch.testing import assert_close

from sa_nnsight import accept
from sa_plugin.attribution import objective
from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData
from sa_plugin.detection import calibrate
from sa_plugin.heads import ablate_heads, head_ledger
from sa_plugin.host import Site, attach, check, find_folder
from sa_plugin.host import protocol as hosting
from sa_plugin.loaders import load
from sa_plugin.scores import score
from sa_plugin.statistics import Resampling
from sa_plugin.tracing import trace
from sa_transformer_lens import accept as accept_bridge
from sa_transformer_lens.host import load_bridge

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore::UserWarning")]
LAYER = 14
# Scores closer to the threshold than this share of their spread may fall on either side.
BAND = 1e-3


@pytest.fixture(scope="module")
def lens():
    return accept_bridge(load_bridge("smollm2"))


@pytest.fixture(scope="module")
def ours():
    task = {"task": "text-generation", "dtype": torch.float32}
    return accept(TransformersModel(str(find_folder("smollm2")), **task))


@pytest.fixture(scope="module")
def bare(ours):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = find_folder("smollm2")
    model = AutoModelForCausalLM.from_pretrained(
        where, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    return BareHost("smollm2", ours, model, AutoTokenizer.from_pretrained(where), "llama")


@pytest.fixture(scope="module")
def data():
    """Sixty short passages."""
    full = load("supersense")
    concepts = ("person", "time", "artifact")
    samples = [s for s in full.samples if s.positive & set(concepts)][::3]
    samples = sorted(samples, key=lambda s: len(s.text))[:60]
    return ConceptData.from_samples([s.only(concepts) for s in samples], concepts, name="sixty passages")


@pytest.fixture(scope="module")
def bank(lens, data):
    return fit(lens, data, "lda", layers=[LAYER])


@pytest.fixture(scope="module")
def tables(lens, ours, bare, data, bank):
    return [score(host, data, bank) for host in (lens, ours, bare)]


@pytest.fixture(scope="module")
def detectors(lens, ours, bare, data, bank, tables):
    return [
        calibrate(host, data, bank, scores=table)
        for host, table in zip((lens, ours, bare), tables, strict=True)
    ]


def test_every_law_of_check_holds(ours, lens):
    report = check(ours)
    assert report.passed, str(report)
    for field in ("model", "architecture", "fingerprint", "tokenizer", "bos", "block"):
        assert getattr(ours.info, field) == getattr(lens.info, field)


def test_the_encoder_of_minilm_is_the_bridges():
    task = {"task": "feature-extraction", "dtype": torch.float32}
    ours = accept(TransformersModel(str(find_folder("minilm")), **task))
    lens = accept_bridge(load_bridge("minilm"))
    assert ours.info.fingerprint == lens.info.fingerprint
    assert ours.info.tokenizer == lens.info.tokenizer
    assert ours.info.architecture == "BertModel"


def test_vectors(ours, data, bank):
    found = fit(ours, data, "lda", layers=[LAYER])
    cosines = torch.cosine_similarity(found.token.vectors, bank.token.vectors, dim=-1)
    assert float(cosines.min()) > 1 - 1e-4
    assert_close(found.token.mean, bank.token.mean, rtol=1e-3, atol=1e-3)


def test_scores(tables):
    spread = float(tables[2].scores.std())
    for found in tables[:2]:
        np.testing.assert_array_equal(found.tokens.offsets, tables[2].tokens.offsets)
        assert found.tokens.dropped == tables[2].tokens.dropped
        assert np.abs(found.scores - tables[2].scores).max() < 1e-3 * spread


def test_thresholds_and_decisions(detectors, tables, data):
    for concept in data.concepts:
        lens, ours, bare = (detector.choice(concept) for detector in detectors)
        k = tables[2].bank.unit(bare.unit)
        scores = [table.scores[:, 0, k].astype(float) for table in tables]
        band = BAND * scores[2].std()
        safe = np.abs(scores[2] - bare.threshold) > band
        assert safe.mean() > 0.99
        for choice, found in zip((lens, ours), scores, strict=False):
            assert choice.delta == bare.delta
            assert abs(choice.threshold - bare.threshold) < band
            np.testing.assert_array_equal(found[safe] >= choice.threshold, scores[2][safe] >= bare.threshold)


def test_ledgers(lens, ours, bare, data, bank):
    a, b, c = (head_ledger(h, data, bank, resampling=Resampling(20)) for h in (lens, ours, bare))
    assert b.residue < 1e-4
    for found in (a, b):
        value, expected = found.contrast.terms.estimate, c.contrast.terms.estimate
        assert np.abs(value - expected).max() < 1e-3 * np.abs(expected).max()


def test_gradients_of_objectives(lens, ours, bare, detectors, data):
    for sample in data.test.samples:
        hits = detectors[1].find(sample)
        if hits:
            break
    goal = objective(
        "superactivator", detector=detectors[1], concept=hits[0].concept, sample=sample, host=ours
    )
    site = Site(goal.layer, "resid_post")
    (batch,) = ours.batches([sample])
    values = ours.input_values(batch).requires_grad_(True)
    (found,) = torch.autograd.grad(goal.metric(ours.forward_from(values, batch, site)), values)
    leaf = values.detach().clone().requires_grad_(True)
    resid = bare.model.model(
        inputs_embeds=leaf, attention_mask=batch.inputs["attention_mask"], output_hidden_states=True
    ).hidden_states[goal.layer + 1]
    (expected,) = torch.autograd.grad(goal.metric(resid), leaf)
    assert_close(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def test_the_whole_job(ours, data, detectors, monkeypatch):
    """Found by the entry point: evaluate, trace, ablate."""
    points = [EntryPoint("nnsight", "sa_nnsight:accept", hosting.ADAPTERS)]
    monkeypatch.setattr(hosting, "entry_points", lambda group: points)
    host = attach(ours.model)
    detector = detectors[1]
    assert len(detector.evaluate(data.test, resampling=Resampling(10)).concepts) == 3
    assert trace(host, data, detector.bank, resampling=Resampling(10)).concepts == data.concepts
    found = ablate_heads(host, data, detector, [(LAYER, 3)], resampling=Resampling(10))
    assert (found.change > 0).all()
