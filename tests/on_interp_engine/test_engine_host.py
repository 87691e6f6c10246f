"""interp-engine = TransformerLens = nnsight: scores, thresholds, counts; and what stays in the engine."""

from functools import cache

import numpy as np
import pytest
import tiny
import torch
from animal_data import animal_texts
from numpy.testing import assert_allclose

from sa_plugin.concepts import fit, push_vector
from sa_plugin.data import ConceptData
from sa_plugin.detection import calibrate
from sa_plugin.heads import ablate_heads, head_ledger
from sa_plugin.host import Site, attach, check
from sa_plugin.loaders import load
from sa_plugin.scores import sample_maxima, score, scores_above, tail_histogram
from sa_plugin.statistics import Resampling

pytest.importorskip("interp_engine", reason="interp-engine is not installed: the extra interp-engine")
from interp_engine.model import EagerModel
from interp_engine.sync import sync_model

from sa_interp_engine import ResidualsCrossWarning, accept, load_model, projecting

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("default::sa_interp_engine.ResidualsCrossWarning"),
]
DECODERS = ("gpt2", "neox", "llama", "gemma2", "qwen3")
TEXTS = ("The cat sat on the mat.", "Nobody walked the dog home.", "short")


def engine(name):
    """tiny.hf_model(name) in interp-engine."""
    return EagerModel(f"tiny-{name}", hf_model=tiny.hf_model(name), tokenizer=tiny.tokenizer(name))


@cache
def host_of(name):
    return accept(engine(name), progress=False)


@cache
def others(name):
    """The same weights on TransformerLens and on nnsight."""
    return tiny.host(name), tiny.nnsight_host(name)


@cache
def bank_of(name, kind):
    return fit(others(name)[1], animal_texts(), kind)


@pytest.mark.parametrize("name", DECODERS)
def test_it_is_the_same_model_and_keeps_every_law(name):
    host = host_of(name)
    for other in others(name):
        same = ("n_layers", "d_model", "n_heads", "d_head", "block", "causal", "bos", "dtype", "tokenizer")
        assert [getattr(host.info, key) for key in same] == [getattr(other.info, key) for key in same]
        assert host.info.fingerprint == other.info.fingerprint
    report = check(host, TEXTS)
    assert report.passed, report
    assert len(report.laws) == 6
    z = Site(1, "z")
    read = host.read(host.batches(tiny.samples(TEXTS))[0], [z], lambda found: {"z": found[z]})["z"]
    assert read.shape[-2:] == (tiny.N_HEADS, tiny.D_HEAD)
    assert host.hook_name(Site(1, "attn_out")) == "attn_out_post.1"


@pytest.mark.parametrize("kind", ["lda", "prototype"])
@pytest.mark.parametrize("name", DECODERS)
def test_scores_thresholds_and_counts_are_those_of_both_other_hosts(name, kind):
    host, bank, data = host_of(name), bank_of(name, kind), animal_texts()
    ours, own = score(host, data, bank), calibrate(host, data, bank, deltas=(0.3,))
    samples = data.test.samples
    for other in others(name):
        theirs = score(other, data, bank)
        spread = theirs.scores.std()
        assert_allclose(ours.scores, theirs.scores, atol=1e-5 * spread)
        assert_allclose(ours.permuted_max, theirs.permuted_max, atol=1e-5 * spread)
        assert_allclose(ours.pooled, theirs.pooled, atol=1e-5 * spread)
        assert (ours.tokens.position == theirs.tokens.position).all()
        tables = [one.tail for one in (own, calibrate(other, data, bank, deltas=(0.3,)))]
        assert_allclose(tables[0].thresholds, tables[1].thresholds, atol=1e-5 * spread)
        highest = [sample_maxima(one, samples, bank, top=2, positions=True) for one in (host, other)]
        assert_allclose(highest[0].scores, highest[1].scores, atol=1e-5 * spread)
        assert (highest[0].position == highest[1].position).all()
        columns = [(k, u) for k in range(len(bank.layers)) for u in range(len(bank.units))]
        cuts = np.full(len(columns), -1e9, dtype=np.float32)
        every = [scores_above(one, samples, bank, columns, cuts) for one in (host, other)]
        assert_allclose(every[0].score, every[1].score, atol=1e-5 * spread)
        assert (every[0].row == every[1].row).all()
    counted = tail_histogram(host, data.test, bank)
    assert counted.total(True, 1, "animal") == tail_histogram(others(name)[1], data.test, bank).total(
        True, 1, "animal"
    )


def test_of_a_dot_score_no_activation_leaves_and_of_a_cosine_they_do_with_a_warning():
    host, data = accept(engine("llama"), progress=False), animal_texts()
    score(host, data, bank_of("llama", "lda"))
    # Of 32 dimensions a sketch of 64 is no saving; in a model of 4,096 it is 1.6 % of the residual.
    assert host.shipped.activations == 0 < host.shipped.scores
    assert f"{host.shipped.scores:,} scores, 0 numbers of activations" in repr(host)
    with pytest.warns(ResidualsCrossWarning, match=r"those of 3 hook points leave the engine \(32 numbers"):
        score(host, data, bank_of("llama", "prototype"))
    assert host.shipped.activations > 0


def test_a_text_whose_sinks_the_sketches_leave_in_doubt_is_read_again(monkeypatch):
    bank, data = bank_of("gpt2", "lda"), animal_texts()
    host = accept(engine("gpt2"), progress=False)
    expected = score(host, data, bank)
    assert host.shipped.activations == 0
    monkeypatch.setattr(projecting, "DOUBT", 1e9)
    again = score(host, data, bank)
    assert host.shipped.activations > 0
    assert (again.tokens.position == expected.tokens.position).all()
    # A rule that drops much: by exact norms it drops what it drops on another host.
    monkeypatch.setattr("sa_plugin.host.reducers.SINK_FACTOR", 1.05)
    rows = [score(one, data, bank).tokens for one in (host, others("gpt2")[1])]
    assert rows[0].dropped == rows[1].dropped
    assert rows[0].dropped["sink"] > expected.tokens.dropped["sink"]


def test_norms_by_sketches_are_right_within_their_factor():
    directions = torch.randn(projecting.SKETCH, 576, generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        generator = torch.Generator().manual_seed(100 + seed)
        # Far from zero and close together, as residuals are.
        h = torch.randn(576, generator=generator) * 5 + torch.randn(200, 576, generator=generator)
        ratio = (h @ directions.T).norm(dim=-1) / h.norm(dim=-1) / projecting.SKETCH**0.5
        assert 1 / projecting.DOUBT < ratio.min() <= ratio.max() < projecting.DOUBT


def test_attach_finds_it_and_sinks_may_be_kept():
    model = engine("qwen3")
    data = animal_texts()
    bank = fit(others("qwen3")[1], data, "lda", layers=[1], sinks="keep")
    for given in (model, sync_model(model)):
        table = score(accept(given, progress=False), data, bank)
        assert_allclose(table.scores, score(others("qwen3")[1], data, bank).scores, atol=1e-4)


def test_what_needs_more_than_scores_is_refused_by_name():
    host, data, bank = host_of("llama"), animal_texts(), bank_of("llama", "lda")
    with pytest.raises(
        ValueError, match=r"hands out scores, and 'train' needs the activations.*one fingerprint"
    ):
        fit(host, data, "lda")
    detector = calibrate(host, data, bank, deltas=(0.3,))
    with pytest.raises((TypeError, ValueError), match=r"EngineHost|hands out scores"):
        head_ledger(host, data, detector)
    with pytest.raises(TypeError, match=r"EngineHost .* cannot edit activations"):
        ablate_heads(host, data, detector, [(0, 0)])
    with pytest.raises(ValueError, match="layer 9 does not exist"):
        host.hook_name(Site(9, "resid_post"))


def test_models_and_options_it_cannot_take_are_refused():
    with pytest.raises(ValueError, match="leave final_norm out"):
        accept(engine("llama"), final_norm=True)
    with pytest.raises(ValueError, match="reads texts: leave the processor out"):
        accept(engine("llama"), processor=object())
    training = engine("llama")
    training.hf_model.train()
    with pytest.raises(ValueError, match="training mode"):
        accept(training)
    served = type("VLLMModel", (), {"__module__": "interp_engine.vllm_backend"})()
    with pytest.raises(TypeError, match="a VLLMModel keeps its weights in another process"):
        accept(served)
    assert accept(tiny.hf_model("llama")) is None
    with pytest.raises(ValueError, match="tower is 'text': interp-engine reads decoders"):
        load_model("smollm2", tower="text")
    with pytest.raises(ValueError, match=r"takes 64\. Nothing is cut off silently"):
        score(host_of("llama"), ["word " * 80], bank_of("llama", "lda"))


@pytest.mark.real
def test_on_smollm2_every_door_of_a_detector_answers_as_on_a_bridge():
    from sa_transformer_lens.host import load_bridge

    lens = attach(load_bridge("smollm2"), progress=False)
    model, options = load_model("smollm2")
    host = accept(model, progress=False, **options)
    assert host.info.fingerprint == lens.info.fingerprint
    data = load("supersense").subset(30)
    assert isinstance(data, ConceptData)
    bank = fit(lens, data, "separator", layers=[12])
    scores = [score(one, data, bank) for one in (host, lens)]
    assert np.abs(scores[0].scores - scores[1].scores).max() < 5e-5 * scores[1].scores.std()
    detectors = [
        calibrate(one, data, bank, scores=table) for one, table in zip((host, lens), scores, strict=True)
    ]
    texts = [sample.text for sample in data.test.samples[:2]]
    found = [one.find(texts, concepts=detectors[0].concepts[:1]) for one in detectors]
    assert str(found[0]) == str(found[1])
    few = Resampling(draws=20)
    tables = [
        one.evaluate(data.test, scores=table, resampling=few).table()
        for one, table in zip(detectors, scores, strict=True)
    ]
    assert_allclose(tables[0]["value"], tables[1]["value"], atol=1e-6, equal_nan=True)
    assert host.shipped.activations == 0


def test_a_bank_as_a_direction_set_projects_its_scores_and_a_push_raises_them():
    from interp_engine.steer_specs import AddSpec, SteeringSpec

    host, bank = host_of("gemma2"), bank_of("gemma2", "lda")
    one = bank.to_direction_set(1)
    assert str(one.point) == host.hook_name(Site(1, "resid_post"))
    ids = host.reader.encode(tiny.samples(TEXTS[:1]))[0].ids.tolist()
    sync = sync_model(host.model)
    (plain,) = sync.project(ids, [one])
    (batch,) = host.batches(tiny.samples(TEXTS[:1]))
    h = host.read(batch, [Site(1, "resid_post")], lambda read: {"h": read[1, "resid_post"]})["h"][0]
    assert_allclose(plain, bank.token.score(1, h), atol=1e-4)
    push = AddSpec(push_vector(bank, "animal", 1), scale=2.0)
    (steered,) = sync.project(ids, [one], steering_spec=SteeringSpec.at(one.point, push))
    assert_allclose(steered - plain, np.full_like(plain, 2.0), atol=1e-3)
    added = fit(others("gemma2")[1], animal_texts(), "lda", layers=[1], hook_point="attn_out")
    assert str(added.to_direction_set().point) == host.hook_name(Site(1, "attn_out"))
