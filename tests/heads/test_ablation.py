"""What ablation is measured by: the same tokens, by plain loops, before and after."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import sklearn.metrics as skm
import tiny
from ablation_cases import standard
from fake_host import FakeHost

from sa_plugin.concepts import fit
from sa_plugin.detection import calibrate
from sa_plugin.heads import TAIL_METRICS, Intervention, ablate_heads, make_edits, reference
from sa_plugin.host import Site
from sa_plugin.scores import score
from sa_plugin.statistics import Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def case():
    return standard()


def test_rows_are_those_of_the_unablated_run(tiny_gpt2, case):
    data = case.data
    host = tiny_gpt2
    bank = fit(host, data, "prototype", layers=[1])
    clean = score(host, data, bank)

    def sink(z):
        z[:, 2] = 200.0
        return z

    with host.edited({Site(0, "z"): sink}):
        moved = score(host, data, bank)
        frozen = score(host, data, bank, keep_of=clean.tokens)
    assert len(moved.tokens) < len(clean.tokens)
    np.testing.assert_array_equal(frozen.tokens.position, clean.tokens.position)
    np.testing.assert_array_equal(frozen.tokens.labels, clean.tokens.labels)
    # Row by row: an unedited run under the mask of the edited one is the clean one's part.
    part = score(host, data, bank, keep_of=moved.tokens)
    rows = [
        a + int(np.flatnonzero(clean.tokens.position[a:b] == p)[0])
        for n, (a, b) in enumerate(pairwise(clean.tokens.bounds))
        for p in moved.tokens.position[moved.tokens.bounds[n] : moved.tokens.bounds[n + 1]]
    ]
    np.testing.assert_array_equal(part.scores, clean.scores[rows])
    again = score(host, data, bank, keep_of=clean.tokens)
    np.testing.assert_array_equal(again.scores, clean.scores)
    for field in ("pooled", "permuted_max"):
        np.testing.assert_array_equal(getattr(again, field), getattr(clean, field))


def test_a_table_of_other_samples_is_refused(case):
    fake, data, scores, *_ = case
    with pytest.raises(ValueError, match="is not in the table whose rows are to be kept"):
        score(fake, data, scores.bank, splits=["train"], keep_of=scores.tokens)


# What is measured.


def metrics_by_loop(detector, cal, test, clean_test, deltas=(0.1, 0.3, 0.5)):
    """Every metric on the split itself, concept by concept, from score tables."""
    found = {name: [] for name in TAIL_METRICS}
    for k, concept in enumerate(detector.concepts):
        at, unit = detector.tail.layer[k], detector.tail.chosen_unit[k]
        c, t, base = (x.scores[:, at, unit].astype(float) for x in (cal, test, clean_test))
        y = test.tokens.sample_labels[:, k]
        inside, negative = test.tokens.labels[:, k], ~y[test.tokens.sample_of]
        gap = np.quantile(t[inside], 1 - detector.delta[concept]) - np.quantile(t[negative], 0.995)
        found["tail_gap"].append(gap / base[negative].std())
        top = np.array([t[a:b].max() for a, b in pairwise(test.tokens.bounds)])
        cal_top = np.array([c[a:b].max() for a, b in pairwise(cal.tokens.bounds)])
        cal_y = cal.tokens.sample_labels[:, k]
        q = np.quantile(c[~cal_y[cal.tokens.sample_of]], 0.995)
        found["coverage"].append((top[y] > q).mean())
        found["negative_coverage"].append((top[~y] > q).mean())
        found["auroc"].append(skm.roc_auc_score(y, top))
        found["average_precision"].append(skm.average_precision_score(y, top))
        tau = detector.threshold[concept]
        found["f1_frozen"].append(skm.f1_score(y, top >= tau))
        cuts = [np.quantile(c[cal.tokens.labels[:, k]], 1 - d) for d in deltas]
        best = max(cuts, key=lambda cut: (skm.f1_score(cal_y, cal_top >= cut), cut))
        found["f1_recalibrated"].append(skm.f1_score(y, top >= best))
    return found


@pytest.mark.parametrize("mode", ["mean", "zero"])
def test_metrics_equal_loops_before_and_after(case, mode):
    fake, data, scores, detector = case
    heads = [(0, 1), (1, 0)]
    found = ablate_heads(
        fake, data, detector, heads, how=Intervention(mode), scores=scores, resampling=Resampling(50)
    )
    known = reference(fake, data, detector.bank, mode, {0, 1})
    with fake.edited(make_edits(mode, heads, known)):
        after = score(fake, data, detector.bank, keep_of=scores.tokens)
    clean = scores.split("test")
    for table, when in ((scores, found.before), (after, found.after)):
        expected = metrics_by_loop(detector, table.split("cal"), table.split("test"), clean)
        for name in TAIL_METRICS:
            got = when.sel(metric=name).estimate
            np.testing.assert_allclose(got, expected[name], atol=1e-4, err_msg=name)
    assert found.change.min() > 0.01
    frozen, again = (found.before.sel(metric=name).values for name in ("f1_frozen", "f1_recalibrated"))
    np.testing.assert_array_equal(frozen, again)


def test_scores_given_or_not_and_in_any_order(case):
    fake, data, scores, detector = case
    options = {"resampling": Resampling(20)}
    one = ablate_heads(fake, data, detector, [(0, 0)], scores=scores, **options)
    two = ablate_heads(fake, data, detector, [(0, 0)], **options)
    backwards = scores.select(np.arange(scores.tokens.n_samples)[::-1])
    three = ablate_heads(fake, data, detector, [(0, 0)], scores=backwards, **options)
    for other in (two, three):
        np.testing.assert_allclose(one.after.values, other.after.values, atol=1e-6)
        np.testing.assert_allclose(one.before.values, other.before.values, atol=1e-6)


def test_differences_are_paired(case):
    fake, data, scores, detector = case
    found = ablate_heads(fake, data, detector, [(0, 0)], scores=scores, resampling=Resampling(100))
    for name in TAIL_METRICS:
        after, before = (side.sel(metric=name).values for side in (found.after, found.before))
        got = found.difference.sel(metric=name, concept="animal")
        np.testing.assert_array_equal(got.values, (after - before)[0])
        assert got.kind == ("quantile" if name == "tail_gap" else "difference")
        mean = found.mean("difference").sel(metric=name)
        assert mean.estimate == pytest.approx((after - before)[:, 0].mean())


def test_heads_by_concept_and_heads_out_of_reach(case):
    fake, data, scores, detector = case
    options = {"scores": scores, "resampling": Resampling(20)}
    apart = ablate_heads(fake, data, detector, {"animal": [(0, 0)]}, **options)
    both = ablate_heads(fake, data, detector, [(0, 0)], **options)
    k, other = (detector.concepts.index(c) for c in ("animal", "food"))
    np.testing.assert_allclose(apart.after.values[:, k], both.after.values[:, k], atol=1e-6)
    np.testing.assert_array_equal(apart.after.values[:, other], apart.before.values[:, other])
    assert apart.heads == {"animal": ((0, 0),), "food": ()}
    assert apart.change[other] == 0
    assert "No head writes before the layer of food" in apart.summary()
    early = calibrate(fake, data, fit(fake, data, "lda", layers=[0]))
    with pytest.raises(ValueError, match="the scores cannot change"):
        ablate_heads(fake, data, early, [(1, 0)])


def test_refusals(case):
    fake, data, scores, detector = case
    for heads, options, text in (
        ([], {}, "ablating nothing changes nothing"),
        ({}, {}, "ablating nothing changes nothing"),
        ({"animl": [(0, 0)]}, {}, "did you mean 'animal'"),
        ([(0, 0)], {"split": "train"}, "of 'train' that vectors were fitted on"),
    ):
        with pytest.raises(ValueError, match=text):
            ablate_heads(fake, data, detector, heads, **options)
    with pytest.raises(ValueError, match="mode 'average' is unknown"):
        Intervention("average")
    with pytest.raises(TypeError, match=r"FakeHost \(fake\) cannot edit activations"):
        ablate_heads(FakeHost(), data, detector, [(0, 0)], scores=scores)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bert"])
@pytest.mark.parametrize("mode", ["mean", "zero", "resample"])
def test_every_block_kind_is_ablated_through(architecture, mode, case):
    data = case.data
    host = tiny.host(architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = fit(host, data, "prototype", layers=[0, 2])
        detector, options = calibrate(host, data, bank), {"resampling": Resampling(20)}
        found = ablate_heads(host, data, detector, [(0, 0), (0, 2)], how=Intervention(mode), **options)
    assert (found.change > 0).all()
    assert "not compared with other heads" in found.summary().lower()
    assert repr(found).startswith(f"Ablation({mode} of 2 heads, 2 concepts, test split: tail gap")
