"""Beyond the concept's own tail: keeping only some heads, other concepts, the model's output."""

import numpy as np
import pytest
import tiny
import torch
from ablation_cases import make_data, standard

from sa_plugin.concepts import fit
from sa_plugin.detection import calibrate
from sa_plugin.heads import (
    OUTPUT_SAMPLES,
    TAIL_METRICS,
    HeadSets,
    Intervention,
    Reference,
    ablate_heads,
    ablation_curve,
    candidates,
    cross_ablation,
    head_ledger,
    kl_divergence,
    make_edits,
    rank_heads,
    reference,
    tail_metrics,
)
from sa_plugin.host import Site
from sa_plugin.statistics import Resampling
from sa_transformer_lens import logits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def case():
    return standard()


@pytest.fixture(scope="module")
def gpt2():
    host, data = tiny.host("gpt2"), make_data()
    bank = fit(host, data, "lda", layers=[1])
    return host, data, calibrate(host, data, bank, deltas=(0.3,))


# Sufficiency.


def test_keeping_some_is_ablating_the_others(case):
    every = candidates(case.fake, case.detector)
    kept = [(0, 1), (1, 0)]
    options = {"scores": case.scores, "resampling": Resampling(20)}
    keep = Intervention(keep=True)
    one = ablate_heads(case.fake, case.data, case.detector, kept, how=keep, **options)
    rest = [head for head in every if head not in kept]
    two = ablate_heads(case.fake, case.data, case.detector, rest, **options)
    np.testing.assert_array_equal(one.after.values, two.after.values)
    assert set(one.heads["animal"]) == set(rest)
    with pytest.raises(ValueError, match="are to be kept: nothing is ablated"):
        ablate_heads(case.fake, case.data, case.detector, every, how=keep, **options)


def test_a_curve_of_kept_heads(case):
    ranked = rank_heads(case.fake, case.data, case.detector, scores=case.scores)
    options = {"scores": case.scores, "resampling": Resampling(50)}
    curve = ablation_curve(
        case.fake,
        case.data,
        case.detector,
        ranked,
        sets=HeadSets((1, 2), ("random", "permuted"), repeats=2),
        how=Intervention(keep=True),
        **options,
    )
    (top,) = curve.of(2, "top")
    how = Intervention(keep=True)
    kept = ablate_heads(case.fake, case.data, case.detector, ranked.heads[:2], how=how, **options)
    np.testing.assert_array_equal(top.result.after.values, kept.after.values)
    margin = curve.margin(2, "random").sel(metric="tail_gap")
    others = curve.after(2, "random").sel(metric="tail_gap").estimate
    (own,) = curve.after(2, "top").sel(metric="tail_gap").estimate
    assert margin.estimate == pytest.approx(own - others.mean())
    assert curve.clear("tail_gap", 2, "random") == (margin.low > 0 and own > others.max())
    sets = [run.heads for run in curve.of(2, "permuted")]
    assert sets == [order[:2] for order in ranked.permuted]
    assert len(sets) == 5
    assert curve.ks == (1, 2)
    text = curve.summary()
    assert "none kept" in text
    assert "what keeping it saves beyond controls" in text
    assert "mean ablation of all heads but these" in text
    assert "heads with the top" in text
    assert "only k kept" in repr(curve)
    sets = HeadSets((1,), ("permuted",))
    with pytest.raises(ValueError, match="no order by permuted-label vectors"):
        ablation_curve(case.fake, case.data, case.detector, ranked.heads, sets=sets)


@pytest.mark.parametrize("kind", ["lda", "separator"])
def test_each_permutation_of_the_labels_gives_an_order(case, kind):
    """By the ledger's own control: one order a draw."""
    bank = fit(case.fake, case.data, kind, layers=[1, 2])
    detector = calibrate(case.fake, case.data, bank, deltas=(0.3,))
    ranked = rank_heads(case.fake, case.data, detector, by="ledger")
    assert len(ranked.permuted) == {"lda": 20, "separator": 5}[kind]
    three = rank_heads(case.fake, case.data, detector, by="ledger", permutations=3)
    assert len(three.permuted) == 3
    assert "control of 3 permutations" in repr(three)
    found = head_ledger(case.fake, case.data, detector, split="cal", permutations=3, resampling=Resampling(1))
    rows = [i for i, c in enumerate(found.components) if c.kind == "heads"]
    heads = [(found.components[i].block, found.components[i].head) for i in rows]
    for draw, order in zip(found.control_by_draw["control"], three.permuted, strict=True):
        mean = (draw[rows] / np.abs(found.lift.total.estimate)).mean(1)
        assert order == tuple(heads[int(i)] for i in np.argsort(-mean, kind="stable"))
    none = rank_heads(case.fake, case.data, detector, by="ledger", permutations=0)
    assert none.permuted == ()
    assert "control" not in repr(none)


def test_one_permuted_set_is_said_to_be_one(case):
    bank = fit(case.fake, case.data, "separator", layers=[1, 2])
    detector = calibrate(case.fake, case.data, bank, deltas=(0.3,))
    ranked = rank_heads(case.fake, case.data, detector, permutations=1)
    assert "control of 1 permutation:" in repr(ranked)
    sets = HeadSets((2,), ("permuted",))
    curve = ablation_curve(case.fake, case.data, detector, ranked, sets=sets, resampling=Resampling(20))
    words = "It is one permutation's: how far others would differ is not known"
    text = " ".join(curve.summary().split())
    assert words in text
    assert "cannot tell (1 permuted, 5 are needed, could have told" in text


# Other concepts.


def test_own_and_other_concepts_by_loop(case):
    heads = {"animal": [(0, 0)], "food": [(0, 1), (1, 0)]}
    options = {"scores": case.scores, "resampling": Resampling(30)}
    found = cross_ablation(case.fake, case.data, case.detector, heads, **options)
    own, others = [], []
    for concept, some in heads.items():
        run = ablate_heads(case.fake, case.data, case.detector, some, **options)
        change = run.after.sel(metric="auroc").values - run.before.sel(metric="auroc").values
        k = case.detector.concepts.index(concept)
        own.append(change[k])
        others.append(change[1 - k])
    values = {"own": np.nanmean(own, 0), "others": np.nanmean(others, 0)}
    values["own - others"] = values["own"] - values["others"]
    for which, columns in values.items():
        got = found.effect(which).sel(metric="auroc")
        assert got.estimate == pytest.approx(columns[0])
        np.testing.assert_allclose(got.values, columns)
    assert found.changes.sel(metric="auroc").estimate.shape == (2, 2)
    table = found.table()
    assert (table.measure == "own - others").sum() == len(TAIL_METRICS)
    assert (table.measure == "difference").sum() == 4 * len(TAIL_METRICS)
    assert "own - others" in found.summary()
    assert "CrossAblation(mean, heads of 2 concepts, 2 measured" in repr(found)
    with pytest.raises(ValueError, match="name a concept"):
        cross_ablation(case.fake, case.data, case.detector, {})
    with pytest.raises(ValueError, match="side 'mine'"):
        found.effect("mine")


def test_directional_takes_one_direction_out_for_all(case):
    heads = {"animal": [(0, 0), (1, 1)]}
    options = {"scores": case.scores, "resampling": Resampling(10)}
    how = Intervention("directional")
    found = cross_ablation(case.fake, case.data, case.detector, heads, mode="directional", **options)
    alone = ablate_heads(case.fake, case.data, case.detector, heads, how=how, **options)
    k = case.detector.concepts.index("animal")
    run = found.runs["animal"].after.sel(metric="tail_gap").values
    np.testing.assert_allclose(run[k], alone.after.sel(metric="tail_gap").values[k], atol=1e-6)
    both = ablate_heads(case.fake, case.data, case.detector, {"food": heads["animal"]}, how=how, **options)
    assert not np.allclose(run[1 - k], both.after.sel(metric="tail_gap").values[1 - k])


# The model's own output.


def test_kl_of_logits_by_loop(gpt2):
    host, data, detector = gpt2
    how = Intervention(output=logits)
    found = ablate_heads(host, data, detector, [(0, 1)], how=how, resampling=Resampling(20))
    known = reference(host, data, detector.bank, "mean", {0})
    edits = make_edits("mean", [(0, 1)], known)
    total, n = 0.0, 0
    for sample in data.test.samples[:OUTPUT_SAMPLES]:
        (batch,) = host.batches([sample])
        clean = logits(host, batch)[0]
        with host.edited(edits):
            moved = logits(host, batch)[0]
        # Without BOS the first token is a sink and no row.
        p, q = (torch.softmax(x[1:].double(), -1) for x in (clean, moved))
        total, n = total + float((p * (p / q).log()).sum()), n + len(p)
    after = found.after.sel(metric="output_kl")
    np.testing.assert_allclose(after.estimate, total / n, rtol=1e-4)
    documents = len({sample.document for sample in data.test.samples})
    assert not found.before.sel(metric="output_kl").values[:, : 1 + documents].any()
    assert found.mean("difference").sel(metric="output_kl").estimate > 0
    assert np.isfinite(after.values[:, : 1 + documents]).all()
    assert "output_kl" in found.summary()


def test_cosine_of_the_last_residual_stream(case):
    options = {"how": Intervention(output="hidden"), "scores": case.scores, "resampling": Resampling(9)}
    found = ablate_heads(case.fake, case.data, case.detector, [(0, 0)], **options)
    known = reference(case.fake, case.data, case.detector.bank, "mean", {0})
    site, cosines = Site(2, "resid_post"), []
    for sample in case.data.test.samples[:OUTPUT_SAMPLES]:
        (batch,) = case.fake.batches([sample])
        clean = case.fake.read(batch, [site], lambda r: {"h": r[site]})["h"]
        with case.fake.edited(make_edits("mean", [(0, 0)], known)):
            moved = case.fake.read(batch, [site], lambda r: {"h": r[site]})["h"]
        cosines.append(torch.cosine_similarity(clean, moved, dim=-1)[0])
    expected = float(torch.cat(cosines).mean())
    np.testing.assert_allclose(found.after.sel(metric="output_cosine").estimate, expected, rtol=1e-5)
    assert (found.before.sel(metric="output_cosine").estimate == 1).all()
    with pytest.raises(ValueError, match="output 'logit'"):
        ablate_heads(case.fake, case.data, case.detector, [(0, 0)], how=Intervention(output="logit"))


def test_without_a_cache_the_output_is_the_same(gpt2, monkeypatch):
    host, data, detector = gpt2
    options = {"how": Intervention(output=logits), "resampling": Resampling(5)}
    one = ablate_heads(host, data, detector, [(0, 1)], **options)
    monkeypatch.setattr(tail_metrics, "CACHE_BYTES", 0)
    two = ablate_heads(host, data, detector, [(0, 1)], **options)
    np.testing.assert_allclose(one.after.values, two.after.values, rtol=1e-6)


def test_kl_is_zero_for_a_shift_of_logits():
    x = torch.randn(4, 7)
    torch.testing.assert_close(kl_divergence(x, x + 3), torch.zeros(4), atol=1e-6, rtol=0)


def test_refusals_of_logits(case):
    host = tiny.vision_host("vit")
    (batch,) = host.batches(tiny.images()[:1])
    with pytest.raises(ValueError, match="no logits over a vocabulary for each token: give output='hidden'"):
        logits(host, batch)
    with pytest.raises(TypeError, match="EditableFake is no TransformerLens host"):
        logits(case.fake, batch)


def test_pattern_sizes_and_curves_on_a_real_attention(gpt2):
    """Norm-matched controls are matched on what uniform attention changes."""
    host, data, detector = gpt2
    curve = ablation_curve(
        host,
        data,
        detector,
        candidates(host, detector),
        sets=HeadSets((1,), ("norm_matched",), repeats=1),
        how=Intervention("pattern"),
        resampling=Resampling(10),
    )
    head, site = (0, 2), Site(0, "attn_out")
    total, n = 0.0, 0
    for sample in data.cal.samples[:16]:
        (batch,) = host.batches([sample])
        clean = host.read(batch, [site], lambda r: {"a": r[site]})["a"]
        with host.edited(make_edits("pattern", [head], Reference())):
            moved = host.read(batch, [site], lambda r: {"a": r[site]})["a"]
        off = (moved - clean)[0, 1:].double().square().sum(-1)
        total, n = total + float(off.sum()), n + len(off)
    assert curve.sizes[head] == pytest.approx((total / n) ** 0.5, rel=1e-4)
