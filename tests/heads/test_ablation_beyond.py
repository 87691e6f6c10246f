"""Beyond the concept's own tail: keeping only some heads, other concepts, the model's output."""

import numpy as np
import pytest
import tiny
import torch
from ablation_cases import any_host, make_data, standard

from sa_plugin.concepts import fit
from sa_plugin.detection import calibrate
from sa_plugin.heads import (
    METRICS,
    OUTPUT_SAMPLES,
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
)
from sa_plugin.host import Site
from sa_transformer_lens.edits import logits

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
    options = {"scores": case.scores, "draws": 20}
    one = ablate_heads(case.fake, case.data, case.detector, kept, keep=True, **options)
    rest = [head for head in every if head not in kept]
    two = ablate_heads(case.fake, case.data, case.detector, rest, **options)
    for name in METRICS:
        np.testing.assert_array_equal(one.after[name], two.after[name])
    assert set(one.heads["animal"]) == set(rest)
    with pytest.raises(ValueError, match="are to be kept: nothing is ablated"):
        ablate_heads(case.fake, case.data, case.detector, every, keep=True, **options)


def test_a_curve_of_kept_heads(case):
    ranked = rank_heads(case.fake, case.data, case.detector, scores=case.scores)
    curve = ablation_curve(
        case.fake,
        case.data,
        case.detector,
        ranked,
        ks=(1, 2),
        repeats=2,
        keep=True,
        controls=("random", "permuted"),
        scores=case.scores,
        draws=50,
    )
    (top,) = curve.of(2, "top")
    kept = ablate_heads(
        case.fake, case.data, case.detector, ranked.heads[:2], keep=True, scores=case.scores, draws=50
    )
    np.testing.assert_array_equal(top.result.after["tail_gap"], kept.after["tail_gap"])
    margin = curve.margin("tail_gap", 2, "random").estimate
    others = curve.after("tail_gap", 2, "random")[:, 0]
    own = curve.after("tail_gap", 2, "top")[0, 0]
    assert margin == pytest.approx(own - others.mean())
    interval = curve.margin("tail_gap", 2, "random")
    assert curve.clear("tail_gap", 2, "random") == (interval.low > 0 and own > others.max())
    sets = [run.heads for run in curve.of(2, "permuted")]
    assert 1 <= len(sets) <= 2
    assert sets[0] == ranked.permuted[0][:2]
    assert all(heads in [order[:2] for order in ranked.permuted] for heads in sets)
    assert curve.ks == (1, 2)
    text = curve.summary()
    assert "none kept" in text
    assert "what keeping it saves beyond controls" in text
    assert "mean ablation of all heads but these" in text
    assert "heads with the top" in text
    assert "only k kept" in repr(curve)
    with pytest.raises(ValueError, match="no order by permuted-label vectors"):
        ablation_curve(case.fake, case.data, case.detector, ranked.heads, ks=(1,), controls=("permuted",))


@pytest.mark.parametrize("kind", ["lda", "separator"])
def test_each_permutation_of_the_labels_gives_an_order(case, kind):
    """By the ledger's own control: one order a draw; separators have one unless more are asked."""
    bank = fit(case.fake, case.data, kind, layers=[1, 2])
    detector = calibrate(case.fake, case.data, bank, deltas=(0.3,))
    ranked = rank_heads(case.fake, case.data, detector)
    assert len(ranked.permuted) == {"lda": 20, "separator": 1}[kind]
    three = rank_heads(case.fake, case.data, detector, permutations=3)
    assert len(three.permuted) == 3
    assert "control of 3 permutations" in repr(three)
    found = head_ledger(case.fake, case.data, detector, split="cal", permutations=3, draws=1)
    rows = [i for i, c in enumerate(found.components) if c.kind == "heads"]
    heads = [(found.components[i].block, found.components[i].head) for i in rows]
    for draw, order in zip(found.control_by_draw["control"], three.permuted, strict=True):
        mean = (draw[rows] / np.abs(found.lift.total.value)).mean(1)
        assert order == tuple(heads[int(i)] for i in np.argsort(-mean, kind="stable"))
    none = rank_heads(case.fake, case.data, detector, permutations=0)
    assert none.permuted == ()
    assert "control" not in repr(none)
    with pytest.raises(ValueError, match="by='attribution' has no control by permuted labels"):
        rank_heads(case.fake, case.data, detector, by="attribution", permutations=3)


def test_one_permuted_set_is_said_to_be_one(case):
    bank = fit(case.fake, case.data, "separator", layers=[1, 2])
    detector = calibrate(case.fake, case.data, bank, deltas=(0.3,))
    ranked = rank_heads(case.fake, case.data, detector)
    assert "control of 1 permutation:" in repr(ranked)
    curve = ablation_curve(case.fake, case.data, detector, ranked, ks=(2,), controls=("permuted",), draws=20)
    assert "It is one permutation's: how far others would differ is not known" in curve.summary()


# Other concepts.


def test_own_and_other_concepts_by_loop(case):
    heads = {"animal": [(0, 0)], "food": [(0, 1), (1, 0)]}
    options = {"scores": case.scores, "draws": 30}
    found = cross_ablation(case.fake, case.data, case.detector, heads, **options)
    own, others = [], []
    for concept, some in heads.items():
        run = ablate_heads(case.fake, case.data, case.detector, some, **options)
        change = run.after["auroc"] - run.before["auroc"]
        k = case.detector.concepts.index(concept)
        own.append(change[k])
        others.append(change[1 - k])
    values = {"own": np.nanmean(own, 0), "others": np.nanmean(others, 0)}
    values["own - others"] = values["own"] - values["others"]
    for which, columns in values.items():
        got = found.interval("auroc", which)
        assert got.estimate == pytest.approx(columns[0])
        np.testing.assert_allclose([got.low, got.high], np.nanquantile(columns[1:], [0.025, 0.975]))
    assert found.matrix("auroc").shape == (2, 2)
    assert len(found.table()) == len(METRICS)
    assert "own - others" in found.summary()
    assert "CrossAblation(mean, heads of 2 concepts, 2 measured" in repr(found)
    with pytest.raises(ValueError, match="name a concept"):
        cross_ablation(case.fake, case.data, case.detector, {})
    with pytest.raises(ValueError, match="which 'mine'"):
        found.interval("auroc", "mine")


def test_directional_takes_one_direction_out_for_all(case):
    heads = {"animal": [(0, 0), (1, 1)]}
    options = {"scores": case.scores, "draws": 10, "mode": "directional"}
    found = cross_ablation(case.fake, case.data, case.detector, heads, **options)
    alone = ablate_heads(case.fake, case.data, case.detector, heads, **options)
    k = case.detector.concepts.index("animal")
    run = found.runs["animal"]
    np.testing.assert_allclose(run.after["tail_gap"][k], alone.after["tail_gap"][k], atol=1e-6)
    both = ablate_heads(case.fake, case.data, case.detector, {"food": heads["animal"]}, **options)
    assert not np.allclose(run.after["tail_gap"][1 - k], both.after["tail_gap"][1 - k])


# The model's own output.


def test_kl_of_logits_by_loop(gpt2):
    host, data, detector = gpt2
    found = ablate_heads(host, data, detector, [(0, 1)], output=logits, draws=20)
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
    np.testing.assert_allclose(found.after["output_kl"][:, 0], total / n, rtol=1e-4)
    assert not found.before["output_kl"].any()
    assert found.difference("output_kl").estimate > 0
    assert np.isfinite(found.after["output_kl"]).all()
    assert "output_kl" in found.summary()


def test_cosine_of_the_last_residual_stream(case):
    found = ablate_heads(
        case.fake, case.data, case.detector, [(0, 0)], output="hidden", scores=case.scores, draws=9
    )
    known = reference(case.fake, case.data, case.detector.bank, "mean", {0})
    site, cosines = Site(2, "resid_post"), []
    for sample in case.data.test.samples[:OUTPUT_SAMPLES]:
        (batch,) = case.fake.batches([sample])
        clean = case.fake.read(batch, [site], lambda r: {"h": r[site]})["h"]
        with case.fake.edited(make_edits("mean", [(0, 0)], known)):
            moved = case.fake.read(batch, [site], lambda r: {"h": r[site]})["h"]
        cosines.append(torch.cosine_similarity(clean, moved, dim=-1)[0])
    expected = float(torch.cat(cosines).mean())
    np.testing.assert_allclose(found.after["output_cosine"][:, 0], expected, rtol=1e-5)
    assert (found.before["output_cosine"] == 1).all()
    with pytest.raises(ValueError, match="output 'logit'"):
        ablate_heads(case.fake, case.data, case.detector, [(0, 0)], output="logit")


def test_without_a_cache_the_output_is_the_same(gpt2, monkeypatch):
    from sa_plugin.heads import ablate as output

    host, data, detector = gpt2
    options = {"output": logits, "draws": 5}
    one = ablate_heads(host, data, detector, [(0, 1)], **options)
    monkeypatch.setattr(output, "CACHE_BYTES", 0)
    two = ablate_heads(host, data, detector, [(0, 1)], **options)
    np.testing.assert_allclose(one.after["output_kl"], two.after["output_kl"], rtol=1e-6)


def test_kl_is_zero_for_a_shift_of_logits():
    x = torch.randn(4, 7)
    torch.testing.assert_close(kl_divergence(x, x + 3), torch.zeros(4), atol=1e-6, rtol=0)


def test_refusals_of_logits(case):
    host = any_host("vit")
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
        ks=(1,),
        repeats=1,
        mode="pattern",
        controls=("norm_matched",),
        draws=10,
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
