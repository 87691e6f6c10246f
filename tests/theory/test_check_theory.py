"""`check_theory` on hosts that are the idealised model, and on hosts that are not."""

import numpy as np
import pytest
import torch
from fake_host import WIDTH as FAKE_WIDTH
from fake_host import FakeHost
from ideal_host import WIDTH, IdealHost, ideal_bank, ideal_data
from ideal_model.dynamics import IdealModel, simulate
from ideal_model.gaps import check_gaps
from theory_cases import measured

from sa_plugin.concepts import ConceptBank, VectorSet
from sa_plugin.data import ConceptData, Sample
from sa_plugin.host import Site
from sa_plugin.statistics import Resampling
from sa_plugin.theory import TITLES, Conditions, check_theory, layer_slopes

LAYERS = 14
TWO = ((0.8, 0.3), (0.3, 0.2))
DATA = ideal_data()


def ideal_report(causal=False, noise=0.0, **options):
    host = IdealHost(IdealModel(*TWO, causal), LAYERS, noise=noise)
    options = {"resampling": Resampling(200)} | options
    return check_theory(host, DATA, ideal_bank(LAYERS), **options)


@pytest.fixture(scope="module")
def report():
    return ideal_report()


@pytest.fixture(scope="module")
def causal():
    return ideal_report(causal=True)


def trajectories(model):
    host = IdealHost(model, LAYERS)
    starts = [host.embed(host.batches([s])[0].inputs["ids"][0])[:, 0] for s in DATA.samples]
    return [simulate(start, model, LAYERS).activations for start in starts]


# The idealised model itself


def test_every_verdict_holds_on_the_idealised_model(report):
    for claim in TITLES:
        for direction in ("fixed", "refitted"):
            verdict = report.verdict(claim, "c", direction)
            assert verdict.answer == "holds", verdict
            assert not verdict.against


def test_one_forward_pass_a_sample():
    host = IdealHost(IdealModel(*TWO), 2)
    check_theory(host, DATA, ideal_bank(2), resampling=Resampling(10))
    assert host.passes == len(DATA.samples)


def test_measured_is_what_the_simulation_did(report):
    runs = trajectories(IdealModel(*TWO))
    sample = np.repeat(np.arange(len(runs)), len(runs[0][0]))
    for layer in range(LAYERS):
        before, after = (np.concatenate([run[at] for run in runs]) for at in (layer, layer + 1))
        slopes = layer_slopes(before, after, sample=sample)
        for name, expected in (
            ("gap_slope", slopes.orthogonal),
            ("heads_gap_slope", slopes.orthogonal),
            ("path_gap_slope", slopes.orthogonal),
            ("gap_deviation_ratio", slopes.deviation_ratio),
        ):
            value = measured(report, name)[layer]
            assert value == pytest.approx(expected, rel=1e-9), (name, layer)


def test_predicted_is_measured_until_attention_concentrates(report):
    early = measured(report, "top_mass_plus") < 0.25
    assert early.sum() >= 4
    for name, tolerance in (
        ("gap_slope", 0.005),
        ("heads_gap_slope", 0.005),
        ("tail_gain", 0.01),
        ("skew_growth", 0.02),
    ):
        q = report.quantity(name, "c")
        np.testing.assert_allclose(q.predicted[early], q.measured.estimate[early], atol=tolerance)
    # Attention by the concept's logits alone is all there is, at every layer.
    for name in ("attention_by_sign", "top_lift_plus", "top_lift_minus", "bottom_lift_minus"):
        q = report.quantity(name, "c")
        np.testing.assert_allclose(q.predicted, q.measured.estimate, atol=1e-6)


def test_the_limit_of_equalisation_is_reached_after_concentration(report):
    q = report.quantity("equalisation", "c")
    np.testing.assert_allclose(q.predicted[11:], q.measured.estimate[11:], rtol=0.05)
    assert (q.predicted[:5] > q.measured.estimate[:5] + 0.02).all()


def test_no_gap_shrinks_and_the_path_explains_all(report):
    assert (measured(report, "gaps_shrunk") == 0).all()
    assert (measured(report, "gap_order") == 1).all()
    np.testing.assert_allclose(measured(report, "path_r2"), 1, atol=1e-9)
    np.testing.assert_allclose(measured(report, "mlp_share"), 0, atol=1e-9)


def test_a_control_that_no_head_reads_stays_as_it_is(report):
    for name in ("gap_slope", "heads_gap_slope", "gap_deviation_ratio"):
        np.testing.assert_allclose(report.quantity(name, "c").controls["permuted"], 1, atol=1e-9)
    np.testing.assert_allclose(report.quantity("gaps_grown", "c").controls["permuted"], 0.5)


def test_heads_are_found_aligned_with_their_beta_and_gamma(report):
    rows = [r for r in report.head_rows() if (r["role"], r["direction"]) == ("concept", "fixed")]
    assert all(row["aligned"] for row in rows if row["head"] == 0)
    for row in rows:
        assert row["beta"] == pytest.approx(TWO[0][row["head"]], rel=1e-6)
        assert row["gamma"] == pytest.approx(TWO[1][row["head"]], rel=1e-6)
    others = [row for row in report.head_rows() if row["role"] == "permuted"]
    assert not any(row["aligned"] for row in others)


def test_the_regime_ends_in_collapse(report):
    (regime, _) = report.regimes
    assert regime.name == "collapsing"
    assert regime.smallest_spread < 0.05
    short = check_theory(IdealHost(IdealModel(*TWO), 4), DATA, ideal_bank(4), resampling=Resampling(10))
    assert short.regimes[0].name == "separating"


# A causal mask


def test_the_common_prefix_restores_zero_violations(causal):
    assert (measured(causal, "prefix_gaps_shrunk") == 0).all()
    assert (measured(causal, "prefix_left_out")[:5] < 1e-3).all()
    assert measured(causal, "gaps_shrunk")[:8].mean() > 0.03
    assert causal.verdict("T1 heads", "c").answer == "holds"
    assert "same keys for all queries" in {a.name for a in causal.assumptions}
    # Without the mask no gap shrinks at all.
    runs = trajectories(IdealModel(*TWO, True))
    shrunk = [check_gaps(run[0], run[1]).shrunk for run in runs]
    assert measured(causal, "gaps_shrunk")[0] == pytest.approx(np.mean(shrunk), abs=1e-3)


def test_the_prefix_prediction_is_t1_while_attention_is_spread_out(causal):
    q = causal.quantity("prefix_gap_slope", "c")
    np.testing.assert_allclose(q.predicted[:2], q.measured.estimate[:2], rtol=0.01)


def test_prefix_quantities_are_absent_without_a_mask(report):
    with pytest.raises(ValueError, match=r"was not measured: queries see the same keys already"):
        report.quantity("prefix_gap_slope", "c")


# Hosts that are not the idealised model


def test_a_direction_that_heads_do_not_touch_does_not_hold():
    bank = ideal_bank(LAYERS, direction=torch.eye(WIDTH)[3])
    host = IdealHost(IdealModel(*TWO), LAYERS, noise=0.3)
    found = check_theory(host, DATA, bank, resampling=Resampling(100))
    assert not [v for v in found.verdicts if v.answer == "holds"]


class NoiseHost(FakeHost):
    """The fake host with a random pattern, which has nothing to do with what is written."""

    def read(self, batch, sites, reduce):
        def with_patterns(got):
            generator = torch.Generator().manual_seed(int(batch.rows.sum()))
            shape = batch.valid.shape[0], 2, *([batch.valid.shape[1]] * 2)
            logits = torch.randn(shape, generator=generator)
            logits = logits.masked_fill(~batch.valid[:, None, None], -torch.inf)
            patterns = {site: logits.softmax(-1) for site in sites if site.point == "pattern"}
            return reduce({**got, **patterns})

        plain = [site for site in sites if site.point != "pattern"]
        return super().read(batch, plain, with_patterns)


def noise_bank(seed):
    generator = torch.Generator().manual_seed(seed)
    own, permuted = torch.randn(2, 3, 1, FAKE_WIDTH, generator=generator)
    given = ConceptBank.from_vectors({("c", layer): own[layer, 0] for layer in range(3)})
    other = VectorSet(permuted, given.token.mean, given.token.scale, "dot")
    return ConceptBank(
        given.concepts,
        given.units,
        given.layers,
        given.hook_point,
        given.kind,
        given.token,
        permuted=other,
        origin=given.origin,
    )


def noise_data(n=12):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"v{k}" for k in rng.integers(500, size=30)) for _ in range(n)]
    positive = frozenset({"c"})
    made = tuple(Sample(f"s{k}", t, f"d{k}", positive=positive) for k, t in enumerate(texts))
    return ConceptData(("c",), made, ("test",) * n)


def test_random_models_and_directions_rarely_hold():
    answers = [
        verdict.answer
        for seed in range(6)
        for verdict in check_theory(
            NoiseHost(seed=seed), noise_data(), noise_bank(seed), resampling=Resampling(100)
        ).verdicts
        if verdict.claim in ("C1", "C2", "T2", "T1 heads")
    ]
    assert len(answers) == 48
    assert answers.count("holds") <= 2


def test_without_weights_predictions_are_absent_and_say_why():
    found = check_theory(NoiseHost(), noise_data(), noise_bank(0), resampling=Resampling(20))
    assert found.quantity("gap_slope", "c").predicted is None
    assert "does not hand out its blocks' weights" in found.absent["predicted"]
    with pytest.raises(ValueError, match="predicted_factor was not measured: the host"):
        found.quantity("predicted_factor", "c")
    causal = NoiseHost(causal=True).with_info(bos=True)
    verdict = check_theory(causal, noise_data(), noise_bank(0), resampling=Resampling(20)).verdict(
        "T1 heads", "c"
    )
    assert (verdict.answer, verdict.because) == (
        "cannot be said",
        "prefix_gap_deviation_ratio needs the heads' weights; could have seen no change without them",
    )


def test_mlps_that_write_are_named():
    found = ideal_report(noise=0.5)
    named = {a.name: a for a in found.assumptions}
    assert "mean mlp_share" in named["no MLP"].evidence
    assert "MLPs'" in named["no MLP"].then


def test_weights_of_another_model_are_refused():
    host = IdealHost(IdealModel(*TWO), 2)
    host.output_projection = lambda layer: IdealHost(IdealModel(TWO[0], (0.9, 0.9)), 2).output_projection(
        layer
    )
    with pytest.raises(ValueError, match=r"miss what the attention layers of ideal added by"):
        check_theory(host, DATA, ideal_bank(2), resampling=Resampling(10))


# What counts, and laws


def test_samples_without_the_concept_do_not_count():
    data = ConceptData(
        ("c",),
        tuple(
            Sample(s.id, s.text, s.document, positive=s.positive if k < 6 else frozenset())
            for k, s in enumerate(DATA.samples)
        ),
        DATA.split_of,
    )
    host, bank = IdealHost(IdealModel(*TWO), 3), ideal_bank(3)
    options = {"resampling": Resampling(20)}
    positive = check_theory(host, data, bank, **options)
    alone = check_theory(host, data, bank, split=data.samples[:6], **options)
    everything = check_theory(host, data, bank, how=Conditions(which="all"), **options)
    for name in ("gap_slope", "attention_by_sign", "spread", "skew", "tail_gain"):
        a, b, c = (measured(r, name) for r in (positive, alone, everything))
        np.testing.assert_allclose(a, b, rtol=1e-12)
        assert not np.allclose(a, c)


def test_short_samples_are_left_out_and_counted():
    short = Sample("short", "only four words here", "d9", positive=frozenset({"c"}))
    n = len(DATA.samples)
    data = ConceptData(("c",), (*DATA.samples, short), ("test",) * (n + 1))
    host, bank = IdealHost(IdealModel(*TWO), 2), ideal_bank(2)
    found = check_theory(host, data, bank, resampling=Resampling(20))
    assert (found.settings["n_samples"], found.settings["left_out"]) == (n, 1)
    without = check_theory(host, DATA, bank, resampling=Resampling(20))
    for name in ("gap_slope", "spread", "top_lift_plus"):
        np.testing.assert_allclose(measured(found, name), measured(without, name), rtol=1e-12)


def test_layers_checked_alone_are_the_same(report):
    found = ideal_report(layers=[2, 5])
    for name in ("gap_slope", "attention_by_sign", "tail_gain", "skew"):
        np.testing.assert_allclose(measured(found, name), measured(report, name)[[2, 5]], rtol=1e-12)
    assert Site(5, "pattern").layer in found.layers


def test_intervals_are_of_documents_and_shrink_with_equal_ones(report):
    q = report.quantity("gap_slope", "c")
    assert (q.measured.low <= q.measured.estimate).all()
    assert (q.measured.estimate <= q.measured.high).all()
    assert report.settings["n_documents"] == 12
    again = ideal_report()
    np.testing.assert_array_equal(again.quantity("gap_slope", "c").measured.low, q.measured.low)


def test_more_samples_change_no_control_of_the_seed():
    one, other = (ideal_report(resampling=Resampling(200, seed), layers=[0]) for seed in (1, 2))
    assert not np.allclose(
        one.quantity("skew", "c").controls["random"], other.quantity("skew", "c").controls["random"]
    )
    np.testing.assert_array_equal(measured(one, "gap_slope"), measured(other, "gap_slope"))
