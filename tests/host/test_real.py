"""The main job on real weights and real text: at most 60 passages, parity and plain sense."""

import json

import numpy as np
import pytest
import torch

from sa_plugin.data import ConceptData
from sa_plugin.host import Site, attach, find_folder
from sa_plugin.loaders import load
from sa_plugin.report import checked, write_report
from sa_plugin.stages import Plan, study
from sa_plugin.statistics import Resampling
from sa_transformer_lens.host import load_bridge

pytestmark = pytest.mark.real
LAYERS = {"smollm2": (4, 12, 20), "minilm": (1, 4)}


@pytest.fixture(scope="module", params=[*LAYERS])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def host(name):
    return attach(load_bridge(name))


@pytest.fixture(scope="module")
def data():
    """Sixty passages, and only the concepts that most of them can tell something about."""
    full = load("supersense")
    concepts = ("person", "time", "artifact")
    samples = [s for s in full.samples if s.positive & set(concepts)][::3]
    samples = sorted(samples, key=lambda s: len(s.text))[:60]
    return ConceptData.from_samples([s.only(concepts) for s in samples], concepts, name="sixty passages")


@pytest.fixture(scope="module")
def found(host, name, data):
    return study(host, data, Plan({"separator": LAYERS[name]}, resampling=Resampling(100)))


def test_activations_equal_plain_transformers(host, name, data):
    """An independent copy of the model, run by transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(find_folder(name), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(find_folder(name))
    sample, layer = data.samples[0], LAYERS[name][-1]
    site = Site(layer, "resid_post")
    (batch,) = host.batches([sample])
    got = host.read(batch, [site], lambda read: {"h": read[site]})["h"][0]
    encoded = tokenizer(sample.text, return_tensors="pt")
    with torch.no_grad():
        states = model(**encoded, output_hidden_states=True).hidden_states
    torch.testing.assert_close(got, states[layer + 1][0], atol=2e-3, rtol=1e-3)
    assert batch.inputs["input_ids"].equal(encoded["input_ids"])


def test_labels_reach_the_words_they_are_on(found, data):
    tokens = found.scores().tokens
    covered = 0
    for row in np.flatnonzero(tokens.labels.any(1)):
        sample = tokens.samples[tokens.sample_of[row]]
        start, end = tokens.offsets[row]
        covered += any(s.start < end and s.end > start for s in sample.spans)
    assert covered == tokens.labels.any(1).sum() > 20


def test_the_tail_says_more_than_its_null(found):
    """Vectors of true labels against vectors of permuted labels, by AUROC of the same statistic."""
    methods = {m["method"]: m for m in found.record["kinds"]["separator"]["detection"]["methods"]}
    assert methods["SuperActivators"]["auroc"] > methods["MaxTok permuted"]["auroc"] + 0.05


def test_the_ledger_closes(found):
    heads = found.record["kinds"]["separator"]["heads"]
    assert heads["closes_to"] < 1e-2
    assert len(heads["strongest"]) == 10


def test_the_first_token_is_a_sink_of_smollm2_alone(found, name):
    dropped = found.record["meta"]["tokens_dropped"]
    assert (dropped["sink"] >= 60) == (name == "smollm2")


def test_one_passage_is_explained(found):
    explained = found.record["explained"]
    names = [e["objective"] for e in explained["explanations"]]
    assert names == ["superactivator", "superactivator_tokens", "superactivator_margin", "global"]
    for each in explained["explanations"]:
        assert len(each["tokens"]) == len(explained["offsets"])
        assert np.abs(each["tokens"]).max() > 0
        assert "heads" in each


def test_results_follow_the_schema_and_become_a_report(found, tmp_path):
    text = json.dumps(found.record, allow_nan=False)
    checked(json.loads(text))
    page = write_report(json.loads(text), tmp_path / "report.html").read_text()
    assert "SuperActivators" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
