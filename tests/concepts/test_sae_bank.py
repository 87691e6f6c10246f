"""Laws of SAE latents as units: against a loop over samples, latents and concepts."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from doubles import added
from fake_host import WIDTH, FakeHost, in_batches
from sae_cases import PlainSAE, ReluSAE
from word_data import word_data

from sa_plugin.attribution import objective
from sa_plugin.concepts import Activity, Pruning, fit, pruning_of, sae_bank
from sa_plugin.concepts import sae as encode
from sa_plugin.data import ConceptData
from sa_plugin.detection import Detector, calibrate
from sa_plugin.host import Site
from sa_plugin.scores import score, score_samples
from sa_plugin.statistics import FewTokensWarning, InactiveConceptWarning, Resampling, tail_thresholds_cross
from sa_plugin.tracing import Columns, cuts, trace

LOOSE = Pruning(dead=2, ubiquitous=0.6, weak=20.0)


@pytest.fixture(scope="module")
def host():
    return FakeHost()


@pytest.fixture(scope="module")
def data():
    return word_data(90, documents=18)


@pytest.fixture(scope="module")
def bank(host, data):
    return sae_bank(host, data, {1: ReluSAE()}, pruning=LOOSE, sinks="keep")


def residuals(host, samples, layer):
    """Oracle: one sample at a time, no padding."""
    found = []
    for sample in samples:
        (batch,) = host.batches([sample])
        site = Site(layer, "resid_post")
        found.append(host.read(batch, [site], lambda read: {"h": read[site]})["h"][0])  # noqa: B023
    return found


def test_pruning_equals_a_loop_over_latents(host, data, bank):
    sae = ReluSAE()
    rows = torch.cat(residuals(host, data.cal.samples, 1))
    z = sae.encode(rows).detach().double().numpy()
    kept, p99 = [], {}
    for j in range(z.shape[1]):
        above = z[:, j][z[:, j] > 0]
        if LOOSE.dead <= len(above) <= LOOSE.ubiquitous * len(z):
            p99[j] = np.quantile(above, 0.99)
    limit = np.percentile(list(p99.values()), LOOSE.weak)
    kept = [j for j, value in p99.items() if value >= limit]
    assert bank.units == tuple(f"latent {j}" for j in kept)
    about = bank.origin.options["layers"][1]
    assert about["kept"] == len(kept)
    assert about["weak"] == len(p99) - len(kept)
    assert about["dead"] + about["ubiquitous"] == z.shape[1] - len(p99)
    assert about["active_per_token"] == pytest.approx((z > 0).sum() / len(z))


def test_quantiles_of_a_latent_whose_values_are_gone_are_refused():
    activity = Activity(3, most=2.0)
    for value, latents in ((1.0, [0, 1, 2]), (2.0, [0, 1, 2]), (3.0, [0, 1])):
        latent = np.array(latents, dtype=np.int32)
        activity.add(latent, np.full(len(latent), value, dtype=np.float32))
    third = np.array([False, False, True])
    assert activity.p99(third)[2] == pytest.approx(np.quantile([1.0, 2.0], 0.99))
    with pytest.raises(ValueError, match="latent 0 was above zero at 3 tokens, and the values of 2"):
        activity.p99(np.array([True, False, True]))


@pytest.mark.parametrize("rows", [61, 120, 347])
def test_no_latent_that_may_stay_is_past_the_bound_of_the_pass(rows):
    """Its share of the kept tokens times their number, rounding of both included."""
    for commonest in range(4, rows, 4):
        most = pruning_of("adaptive", np.array([commonest]), rows, False).ubiquitous * rows + 1
        for tokens in range(commonest, rows + 1):
            share = pruning_of("adaptive", np.array([commonest]), tokens, False).ubiquitous
            assert share * tokens <= most


@pytest.mark.parametrize("bytes_at_once", [160, 1000, 1 << 20])
def test_scores_are_the_latents_however_they_are_cut(host, data, monkeypatch, bytes_at_once):
    monkeypatch.setattr(encode, "LATENT_BYTES", bytes_at_once)
    sae = ReluSAE(k=6)
    bank = sae_bank(host, data, {1: sae}, pruning="none", sinks="keep")
    sae.rows.clear()
    table = score(in_batches(host, 60), data, bank, splits=("cal",))
    assert max(sae.rows) * 40 * 4 <= bytes_at_once
    rows = torch.cat(residuals(host, data.cal.samples, 1))
    latents = [int(name.split()[1]) for name in bank.units]
    expected = sae.encode(rows)[:, latents].detach().numpy()
    np.testing.assert_allclose(table.scores[:, 0], expected, atol=1e-5)
    assert bank.token.scoring == "latent"
    assert (table.scores >= 0).all()


def test_only_the_calibration_split_is_read(data):
    host = FakeHost()
    sae_bank(host, data, {1: ReluSAE()}, pruning=LOOSE)
    assert host.passes == len(data.cal)


def test_hosts_of_both_libraries_agree(data):
    sae = ReluSAE(tiny.D_MODEL, 24, bias=0.0)
    tables = []
    for host in (tiny.host("llama"), tiny.nnsight_host("llama")):
        bank = sae_bank(host, data, {1: sae}, pruning="none")
        tables.append(score(host, data, bank, splits=("cal",)))
    np.testing.assert_allclose(tables[0].scores, tables[1].scores, atol=1e-3)
    assert tables[0].bank.units == tables[1].bank.units


def test_two_layers_share_units_and_prune_apart(host, data):
    saes = {0: ReluSAE(seed=1), 2: ReluSAE(latents=25, seed=2)}
    both = sae_bank(host, data, saes, pruning=LOOSE)
    table = score(host, data, both, splits=("test",))
    for at, layer in enumerate(both.layers):
        alone = sae_bank(host, data, {layer: saes[layer]}, pruning=LOOSE)
        # Sinks are decided from the bank's layers; these data have none.
        one = score(host, data, alone, splits=("test",))
        columns = [both.units.index(name) for name in alone.units]
        np.testing.assert_array_equal(table.scores[:, at, columns], one.scores[:, 0])
        others = np.setdiff1d(np.arange(len(both.units)), columns)
        assert not table.scores[:, at, others].any()


def oracle_detector(table, labels, samples, deltas):
    """Unit, delta, threshold and F1 of one concept by plain loops."""
    best = (-1.0, 0, 0.0, np.inf)
    maxima = np.array([table[rows].max(0) for rows in samples[0]])
    for k in range(table.shape[1]):
        inside = table[labels, k].astype(np.float64)
        inside = inside[inside > 0]
        for delta in deltas:
            tau = np.quantile(inside, 1 - delta) if len(inside) else np.inf
            fired = maxima[:, k] >= tau
            tp, wrong = (fired & samples[1]).sum(), (fired != samples[1]).sum()
            f1 = 2 * tp / (2 * tp + wrong) if tp else 0.0
            if f1 > best[0]:
                best = (f1, k, delta, tau)
    return best


def test_calibration_equals_plain_loops(host, data, bank):
    table = score(host, data, bank)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = calibrate(host, data, bank, scores=table)
    cal = table.split("cal")
    bounds = cal.tokens.bounds
    rows = [slice(bounds[n], bounds[n + 1]) for n in range(cal.tokens.n_samples)]
    for c, concept in enumerate(data.concepts):
        truth = cal.tokens.sample_labels[:, c]
        f1, unit, delta, tau = oracle_detector(
            cal.scores[:, 0], cal.tokens.labels[:, c], (rows, truth), detector.tail.deltas
        )
        one = detector.choice(concept)
        assert (one.unit, one.delta) == (bank.units[unit], delta)
        assert one.threshold == pytest.approx(tau)
        assert one.cal_f1 == pytest.approx(f1)
        inside = cal.scores[cal.tokens.labels[:, c], 0, unit]
        assert one.n_cal_tokens == (inside > 0).sum()
    found = detector.evaluate(data.test, scores=table, resampling=Resampling(draws=20))
    assert set(found.methods) >= {"SuperActivators", "MaxTok", "MaxTok permuted"}
    assert "pooled" in found.missing


def test_every_baseline_thresholds_values_above_zero(host, data, bank):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = calibrate(host, data, bank)
    for name, tables in detector.baselines.items():
        for one in tables:
            assert (one.thresholds > 0).all(), name


def test_a_concept_without_activations_never_fires_and_is_named():
    scores = np.zeros((30, 4), dtype=np.float32)
    scores[20:] = 1.0
    labels = np.zeros((30, 2), dtype=bool)
    labels[:10, 0] = labels[15:25, 1] = True
    with pytest.warns(InactiveConceptWarning, match=r"'silent'.*never fires.*Prune less"):
        found = tail_thresholds_cross(scores, labels, [0.5, 1.0], names=["silent", "loud"], positive=True)
    assert np.isinf(found[:, 0]).all()
    assert (found[:, 1] == 1.0).all()


@pytest.mark.filterwarnings("ignore::sa_plugin.statistics.FewTokensWarning")
def test_a_silent_concept_goes_through_to_the_table(host, data, bank, tmp_path):
    table = score(host, data, bank)
    scores = table.scores.copy()
    scores[table.tokens.labels[:, 0]] = 0
    silent = replace(table, scores=scores)
    with pytest.warns(InactiveConceptWarning, match=repr(data.concepts[0])):
        detector = calibrate(host, data, bank, scores=silent)
    name = data.concepts[0]
    assert detector.threshold[name] == np.inf
    assert detector.choice(name).n_cal_tokens == 0
    found = detector.evaluate(data.test, scores=silent, resampling=Resampling(draws=20)).of("SuperActivators")
    assert found.concept["recall"].estimate[0] == found.concept["f1"].estimate[0] == 0
    assert not detector.detect(data.test, scores=silent).present[:, 0].any()
    detector.save_pretrained(tmp_path / "saved")
    loaded = Detector.from_pretrained(tmp_path / "saved", sae=bank.token.sources[0].sae)
    assert loaded.threshold == detector.threshold


def test_thresholds_that_rest_on_few_active_tokens_are_named(host, data, bank):
    table = score(host, data, bank)
    scores = np.zeros_like(table.scores)
    inside = np.flatnonzero(
        table.tokens.labels[:, 0] & (np.array(table.tokens.split_of) == "cal")[table.tokens.sample_of]
    )
    scores[inside[0]] = 1.0
    lonely = replace(table, scores=scores)
    name = data.concepts[0]
    with pytest.warns(FewTokensWarning, match=rf"above zero: {name} rests on 1 \(delta 0.02\)"):
        calibrate(host, data, bank, scores=lonely)


def test_detecting_fresh_samples_uses_the_sae(host, data, bank):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = calibrate(host, data, bank)
    table = score(host, data, bank, splits=("test",))
    stored = detector.detect(data.test, scores=table)
    np.testing.assert_array_equal(detector.detect(data.test).present, stored.present)
    one = score_samples(host, data.test.samples[:3], bank)
    rows = slice(0, len(one.tokens))
    np.testing.assert_allclose(one.scores, table.scores[rows], atol=1e-5)
    picked = bank.only([0], [3, 1])
    assert picked.units == (bank.units[3], bank.units[1])
    few = score(host, data, picked, splits=("test",))
    np.testing.assert_array_equal(few.scores[:, 0], table.scores[:, 0][:, [3, 1]])


def test_a_trace_fixes_thresholds_on_active_tokens(host, data, bank):
    table = score(host, data, bank)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        column = calibrate(host, data, bank, scores=table).tail.unit
        found = trace(scores=table, columns=column, delta=0.3, resampling=Resampling(20))
    cal = table.split("cal")
    cut = cuts(Columns(cal, column, "negative"), 0, 0.3)
    for c in range(len(data.concepts)):
        inside = cal.scores[cal.tokens.labels[:, c], 0, column[0, c]].astype(np.float64)
        assert cut[c].threshold == np.quantile(inside[inside > 0], 0.7)
    assert found.layers == bank.layers


def test_what_needs_a_vector_is_refused_with_the_fix(host, data, bank):
    match = r"latents of an SAE.*ConceptBank.from_vectors"
    with pytest.raises(ValueError, match=match):
        bank.vector(bank.units[0], 1)
    with pytest.raises(ValueError, match=match):
        bank.scaled(2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = calibrate(host, data, bank)
    with pytest.raises(ValueError, match=match):
        objective(
            "superactivator",
            detector=detector,
            concept=data.concepts[0],
            sample=data.test.samples[0],
            host=host,
        )
    with pytest.raises(ValueError, match=r"kind 'sae' is not fitted.*sae_bank"):
        fit(host, data, "sae")


@pytest.mark.parametrize(
    ("sae", "error", "match"),
    [
        (object(), TypeError, r"layer 1 is a object without encode\(activations\): wrap it"),
        (ReluSAE(d_model=7), ValueError, r"layer 1 \(d_model 12\).*must have this width"),
        (PlainSAE(torch.ones(5, 12), lambda z: z - 1), ValueError, r"negative latents.*zero or ab"),
        (PlainSAE(torch.ones(5, 12), lambda z: z / 0), ValueError, r"NaN or Inf for 1 of 1 tokens"),
        (PlainSAE(torch.ones(5, 12), lambda z: (z, z)), TypeError, r"returned a tuple, not a tens"),
        (PlainSAE(torch.ones(5, 12), lambda z: z[0]), ValueError, r"returned shape \[5\]"),
        (PlainSAE(-torch.zeros(5, 12)), ValueError, r"no latent of the SAE at layer 1 is left: 5"),
    ],
)
def test_a_wrong_sae_is_refused(host, data, sae, error, match):
    with pytest.raises(error, match=match):
        sae_bank(host, data, sae, layers=1)


def test_wrong_arguments_are_refused(host, data):
    sae = ReluSAE()
    with pytest.raises(ValueError, match="layers is not given"):
        sae_bank(host, data, sae)
    with pytest.raises(ValueError, match=r"for layers \[1\], and layers \[1, 2\] are read"):
        sae_bank(host, data, {1: sae}, layers=[1, 2])
    with pytest.raises(ValueError, match="pruning 'plane' is unknown: did you mean 'plain'"):
        sae_bank(host, data, {1: sae}, pruning="plane")
    with pytest.raises(ValueError, match="dead must be 1 or more"):
        Pruning(dead=0)

    class Empty:
        def encode(self, h):
            return h.relu()

    with pytest.raises(ValueError, match=r"neither a state_dict\(\) nor attributes"):
        sae_bank(host, data, {1: Empty()})
    assert WIDTH == 12


@pytest.mark.parametrize("weights", ["tokens", "balanced"])
def test_quantiles_of_values_above_zero_equal_numpy(weights):
    rng = np.random.default_rng(0)
    scores = (rng.random((60, 2, 5)) * (rng.random((60, 2, 5)) < 0.3)).astype(np.float32)
    labels = rng.random((60, 2)) < 0.5
    # One token a sample: balanced weights are equal weights.
    found = tail_thresholds_cross(
        scores, labels, [0.1, 0.5], weights=weights, sample_of=np.arange(60), positive=True
    )
    for c, layer, unit in np.ndindex(2, 2, 5):
        inside = scores[labels[:, c], layer, unit].astype(np.float64)
        inside = inside[inside > 0]
        expected = np.quantile(inside, [0.9, 0.5])
        if weights == "tokens":
            np.testing.assert_array_equal(found[:, c, layer, unit], expected)
        else:
            assert (found[:, c, layer, unit] >= inside.min()).all()


def test_a_model_on_a_server_is_refused(data, bank):
    class Server(FakeHost):
        @added
        def read_many(self, batches, sites, reducer):
            raise AssertionError

    with pytest.raises(ValueError, match="fake is on a server, and an SAE runs where"):
        sae_bank(Server(), data, {1: ReluSAE()})
    with pytest.raises(ValueError, match="an SAE runs where the activations are"):
        score(Server(), data, bank)


def test_adaptive_limits_leave_tokens_of_unknown_label_out(host, data):
    """A concept's share is that in the tokens that are known for it, as of a copy without the others."""
    samples = [replace(s, spans=()) if k % 3 and s.positive else s for k, s in enumerate(data.samples)]
    vague = ConceptData.from_samples(samples, data.concepts, data.split_of)
    bank = sae_bank(host, vague, {1: ReluSAE()}, sinks="keep")
    tokens = score(host, vague, bank, splits=("cal",)).tokens
    known = tokens.known.sum(0)
    assert (known < len(tokens)).all()
    assert bank.origin.options["pruning"]["ubiquitous"] == min(1.0, 1.25 * max(tokens.labels.sum(0) / known))
