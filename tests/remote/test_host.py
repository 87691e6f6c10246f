"""A model on a real server gives what the same model gives here."""

import numpy as np
import pandas
import pytest
import torch
from clients import remote_model
from conftest import MODE

from sa_nnsight import Patience
from sa_plugin.attribution import objective
from sa_plugin.concepts import ConceptBank, fit
from sa_plugin.data import ConceptData, Sample, Splits
from sa_plugin.detection import calibrate
from sa_plugin.heads import head_ledger
from sa_plugin.host import attach
from sa_plugin.loaders import load, open_corpus
from sa_plugin.scanning import scan
from sa_plugin.scores import sample_maxima, score, tail_histogram

WORDS = ("cat", "dog", "sat", "mat", "night", "people", "home", "walked", "the", "on")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    words = [list(rng.choice(WORDS, rng.integers(4, 9))) for _ in range(60)]
    labels = [["animal" if w in ("cat", "dog") else None for w in row] for row in words]
    return ConceptData.from_words(words, labels, splits=Splits(seed=1))


# Batches so small that there are several requests.
SMALL = {"batch_tokens": 64, "progress": False}
NAMES = ["tiny-gpt2", "tiny-llama"] if MODE == "trusted" else ["tiny-gpt2"]


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    here = attach(remote_model(request.param, load=True), **SMALL)
    return here, attach(remote_model(request.param), remote=True, traces=3, **SMALL)


@pytest.mark.sandboxed
def test_the_same_model_is_the_same_there(pair):
    here, there = pair
    if MODE == "trusted":
        assert here.info == there.info
    else:
        assert there.info.fingerprint.startswith("unread:")
        for name in (
            "architecture",
            "n_layers",
            "d_model",
            "n_heads",
            "d_head",
            "block",
            "causal",
            "bos",
            "dtype",
            "tokenizer",
        ):
            assert getattr(here.info, name) == getattr(there.info, name)


@pytest.mark.sandboxed
def test_scores_and_decisions(pair, data):
    here, there = pair
    few = data if MODE == "trusted" else data.subset(20)
    bank = fit(here, few, "prototype")
    if MODE != "trusted":
        there = attach(there.model, remote=True, traces=8, **SMALL, fingerprint=bank.origin.fingerprint)
    ours, theirs = (score(h, few, bank) for h in (here, there))
    np.testing.assert_allclose(theirs.scores, ours.scores, atol=1e-5)
    np.testing.assert_allclose(theirs.pooled, ours.pooled, atol=1e-5)
    np.testing.assert_allclose(theirs.permuted_max, ours.permuted_max, atol=1e-5)
    detector = calibrate(there, few, bank, scores=theirs)
    found, expected = detector.detect(few.test), detector.detect(few.test, scores=ours)
    np.testing.assert_allclose(found.margin, expected.margin, atol=1e-5)
    far = np.abs(expected.margin) > 1e-5
    np.testing.assert_array_equal(found.present[far], expected.present[far])


@pytest.mark.parametrize("kind", ["prototype", "lda"])
def test_vectors_are_fitted_there(pair, data, kind):
    here, there = (fit(h, data, kind) for h in pair)
    for name in ("token", "permuted", "pooled"):
        torch.testing.assert_close(
            getattr(there, name).vectors, getattr(here, name).vectors, atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(there.component_means.z, here.component_means.z, atol=1e-6, rtol=1e-5)


def test_maxima_and_histograms(pair, data):
    bank = fit(pair[0], data, "prototype")
    here, there = (sample_maxima(h, data.test.samples, bank, top=2, positions=True) for h in pair)
    np.testing.assert_allclose(there.scores, here.scores, atol=1e-5)
    here, there = (tail_histogram(h, data.cal, bank) for h in pair)
    for key, bins in here.bins.items():
        np.testing.assert_array_equal(there.counts[key].sum(), here.counts[key].sum())
        # A score at a bin's edge may fall on either side of it.
        assert abs(np.setdiff1d(bins, there.bins[key]).size) <= 0.05 * bins.size


def test_a_scan_there_is_a_scan_here_and_its_journal_answers_again(pair, data, tmp_path):
    here, there = pair
    detector = calibrate(here, data, fit(here, data, "prototype"))
    texts = [sample.text for sample in data.samples]
    journal = {"journal": tmp_path / "journal", "traces": 3, **SMALL}
    kept = attach(there.model, remote=True, **journal)
    tables = {}
    for name, host in {"here": here, "there": kept, "again": kept}.items():
        scan(host, detector, open_corpus(texts, block_size=20), tmp_path / name)
        tables[name] = [
            pandas.read_parquet(tmp_path / name / f"{one}.parquet") for one in ("hits", "samples")
        ]
    for ours, theirs, again in zip(*tables.values(), strict=True):
        pandas.testing.assert_frame_equal(again, theirs)
        if "score" in ours:
            # A score within rounding of its threshold may fall on either side.
            ours, theirs = (one[one.margin.abs() > 1e-4].reset_index(drop=True) for one in (ours, theirs))
        pandas.testing.assert_frame_equal(theirs, ours, atol=1e-4)


def test_a_run_that_was_cut_off_goes_on_and_gives_the_same(data, tmp_path, monkeypatch):
    model = remote_model("tiny-gpt2")
    options = {"remote": True, "traces": 1, "patience": Patience(at_once=2), **SMALL}
    bank = fit(attach(remote_model("tiny-gpt2", load=True)), data, "prototype")
    whole = score(attach(model, **options), data, bank)
    cut = attach(model, journal=tmp_path, **options)
    stop, seen = type(cut).read_many, 0

    def interrupted(self, *arguments):
        nonlocal seen
        for one in stop(self, *arguments):
            seen += 1
            if seen == 3:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(type(cut), "read_many", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score(cut, data, bank)
    monkeypatch.undo()
    again = attach(model, journal=tmp_path, **options)
    before = again.traffic.requests
    resumed = score(again, data, bank)
    assert again.traffic.reused >= 2
    np.testing.assert_array_equal(resumed.scores, whole.scores)
    third = attach(model, journal=tmp_path, **options)
    begun = third.traffic.requests
    score(third, data, bank)
    assert third.traffic.requests == begun
    assert again.traffic.requests > before


def test_a_job_that_was_left_is_picked_up(data, tmp_path, monkeypatch):
    model = remote_model("tiny-gpt2")
    bank = fit(attach(remote_model("tiny-gpt2", load=True)), data, "prototype")
    left = attach(model, remote=True, journal=tmp_path, traces=64)
    monkeypatch.setattr(type(left.line.server), "answer", _leave)
    with pytest.raises(KeyboardInterrupt):
        score(left, data, bank)
    monkeypatch.undo()
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
    again = attach(model, remote=True, journal=tmp_path, traces=64)
    before = again.traffic.requests
    found = score(again, data, bank)
    assert again.traffic.requests == before
    here = score(attach(remote_model("tiny-gpt2", load=True)), data, bank)
    np.testing.assert_allclose(found.scores, here.scores, atol=1e-5)


def _leave(self, job_id):
    raise KeyboardInterrupt


def test_output_projections_are_recovered(pair):
    here, there = (h.output_projection(1) for h in pair)
    torch.testing.assert_close(there.weight, here.weight, atol=1e-6, rtol=1e-5)
    if here.bias is not None:
        torch.testing.assert_close(there.bias, here.bias, atol=1e-6, rtol=1e-5)


def test_what_needs_activations_or_the_model_here_says_so(pair, data):
    _, there = pair
    with pytest.raises(ValueError, match=r"Kinds that need sums alone work: 'prototype' and 'lda'"):
        fit(there, data, "separator")
    bank = fit(there, data, "prototype")
    detector = calibrate(there, data, bank)
    with pytest.raises(TypeError, match="attach it without remote=True"):
        head_ledger(there, data, detector)


@pytest.mark.sandboxed
def test_vectors_of_the_users_own(pair):
    bank = ConceptBank.from_vectors({("animal", 1): torch.ones(pair[0].info.d_model)})
    samples = [Sample("probe", "The quick brown fox jumps over the lazy dog.", "probe")]
    here, there = (sample_maxima(h, samples, bank) for h in pair)
    assert np.isfinite(here.scores).all()
    np.testing.assert_allclose(there.scores, here.scores, atol=1e-5)


def test_objectives_are_made_there(pair, data):
    here, there = pair
    bank = fit(here, data, "prototype", layers=[1])
    detector = calibrate(here, data, bank, deltas=(0.5,))
    sample = next(s for s in data.cal.samples if detector.find(s))
    for name in ("superactivator", "superactivator_tokens", "superactivator_margin", "global"):
        ours, theirs = (
            objective(name, detector=detector, concept="animal", sample=sample, host=h) for h in (here, there)
        )
        assert theirs.hook_name == ours.hook_name
        assert theirs.tail.equal(ours.tail)
        resid = torch.randn(2, len(ours.tail), here.info.d_model)
        torch.testing.assert_close(theirs(resid), ours(resid), atol=1e-5, rtol=1e-5)


def test_smollm2_scores_as_it_does_here(tmp_path):
    data = load("supersense").subset(40)
    here = attach(remote_model("smollm2", load=True))
    there = attach(remote_model("smollm2"), remote=True, journal=tmp_path)
    assert here.info == there.info
    bank = fit(there, data, "lda", layers=[5, 20])
    torch.testing.assert_close(
        bank.token.vectors, fit(here, data, "lda", layers=[5, 20]).token.vectors, atol=1e-4, rtol=1e-3
    )
    theirs, ours = (score(h, data, bank) for h in (there, here))
    spread = ours.scores.std()
    np.testing.assert_allclose(theirs.scores, ours.scores, atol=1e-4 * spread, rtol=1e-4)
    detector = calibrate(there, data, bank, scores=theirs)
    found, expected = detector.detect(data.test), detector.detect(data.test, scores=ours)
    far = np.abs(expected.margin) > 1e-3 * spread
    np.testing.assert_array_equal(found.present[far], expected.present[far])
    kept = "".join(path.read_bytes().decode("latin1") for path in tmp_path.iterdir())
    assert data.test.samples[0].text[:20] not in kept
