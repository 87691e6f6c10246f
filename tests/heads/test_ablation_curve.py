"""Rankings, controls and curves."""

import numpy as np
import pytest
import torch
from ablation_cases import standard
from fake_host import WIDTH

from sa_plugin.heads import (
    PROBE,
    TAIL_METRICS,
    HeadSets,
    Intervention,
    ablate_heads,
    ablation_curve,
    baseline,
    candidates,
    control_set,
    head_changes,
    head_ledger,
    known_of,
    make_edits,
    rank_heads,
)
from sa_plugin.host import Site
from sa_plugin.statistics import Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def case():
    return standard()


def test_a_ranking_by_the_ledger_is_the_ledgers_on_calibration(case):
    fake, data, scores, detector = case
    ranked = rank_heads(fake, data, detector, by="ledger", scores=scores)
    ledger = head_ledger(fake, data, detector, split="cal", resampling=Resampling(1))
    share = ledger.excess.terms.estimate / np.abs(ledger.lift.total.estimate)
    values = {
        (c.block, c.head): share[i].mean() for i, c in enumerate(ledger.components) if c.kind == "heads"
    }
    assert list(ranked.heads) == sorted(values, key=lambda head: -values[head])
    assert set(ranked.heads) == set(candidates(fake, detector))
    size = rank_heads(fake, data, detector, by="ledger", size=True)
    assert (size.values >= 0).all()


def test_control_sets():
    ranked = [(layer, head) for head in range(6) for layer in range(5)]
    top, sizes = ranked[:7], {head: float(1 + head[0]) for head in ranked}
    counts = np.bincount([layer for layer, _ in top], minlength=5)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for family in ("random", "layer_matched", "norm_matched", "bottom"):
            others = control_set(family, top, ranked, sizes, rng)
            assert len(set(others)) == 7
            assert not set(others) & set(top)
            if family in ("layer_matched", "norm_matched"):
                # Size is a function of the layer here, so matching either matches both.
                assert (np.bincount([layer for layer, _ in others], minlength=5) == counts).all()
            if family == "bottom":
                assert others == tuple(ranked[-7:])


def test_sizes_are_direct_changes(case):
    """One head at a time: the change of attn_out in its own block, kept tokens alone."""
    fake, data, scores, detector = case
    base = baseline(fake, data, detector, split="test", scores=scores, resampling=Resampling(10))
    known = known_of(base, "mean", {0, 1, 2})
    sizes = head_changes(base, "mean", known)
    site, tokens = Site(1, "attn_out"), base.frozen.cal
    squares = []
    for n, sample in enumerate(data.cal.samples[:PROBE]):
        (batch,) = fake.batches([sample])
        keep = tokens.position[tokens.bounds[n] : tokens.bounds[n + 1]]
        clean = fake.read(batch, [site], lambda r: {"a": r[site]})["a"]
        with fake.edited(make_edits("mean", [(1, 0)], known)):
            moved = fake.read(batch, [site], lambda r: {"a": r[site]})["a"]
        squares.append((moved - clean)[0, keep].square().sum(-1))
    assert sizes[1, 0] == pytest.approx(float(torch.cat(squares).mean().sqrt()), rel=1e-4)
    assert fake.w_o.shape[-1] == WIDTH


def test_curve(case):
    fake, data, scores, detector = case
    ranked = rank_heads(fake, data, detector, scores=scores)
    options = {"scores": scores, "resampling": Resampling(50)}
    curve = ablation_curve(fake, data, detector, ranked, sets=HeadSets((1, 2), repeats=2), **options)
    for k in (1, 2):
        for family in ("random", "layer_matched", "norm_matched"):
            sets = [frozenset(run.heads) for run in curve.of(k, family)]
            assert 1 <= len(set(sets)) == len(sets) <= 2
        assert len(curve.of(k, "top")) == len(curve.of(k, "bottom")) == 1
    top = ablate_heads(fake, data, detector, ranked.heads[:2], **options)
    (run,) = curve.of(2, "top")
    np.testing.assert_array_equal(run.result.after.values, top.after.values)
    for name in TAIL_METRICS:
        others, own = (curve.after(2, family).sel(metric=name).values for family in ("random", "top"))
        left = others.mean(0) - own[0]
        margin = curve.margin(2, "random").sel(metric=name)
        assert margin.estimate == pytest.approx(left[0])
        np.testing.assert_array_equal(margin.values, left)
        clear = bool(margin.low > 0 and others[:, 0].min() > own[0, 0])
        assert curve.clear(name, 2, "random") == clear
    text = curve.summary()
    assert "Top 2, what controls leave beyond it:" in text
    assert "ranked by patching (total) on cal" in text
    assert "AblationCurve(mean, k [1, 2] of" in repr(curve)
    table = curve.table()
    assert (table.measure == "residual_change").sum() == len(curve.runs)
    assert (table.measure == "margin").sum() == 2 * 5 * len(TAIL_METRICS)
    with pytest.raises(ValueError, match="nothing was ablated at k = 3"):
        curve.of(3, "top")


def test_refusals_of_curves(case):
    fake, data, _, detector = case
    every = candidates(fake, detector)
    for ranking, ks, text in (
        (every, (4,), "k = 4 lies outside 1 to"),
        (every[:1], (1,), "its bottom is unknown"),
    ):
        with pytest.raises(ValueError, match=text):
            ablation_curve(fake, data, detector, ranking, sets=HeadSets(ks))
    with pytest.raises(ValueError, match="at least one of each"):
        HeadSets(())
    with pytest.raises(ValueError, match="did you mean 'random'"):
        HeadSets((1,), ("rand",))


def test_directional_curve_runs_one_concept_at_a_time(case):
    fake, data, scores, detector = case
    fake.passes = 0
    found = ablate_heads(
        fake,
        data,
        detector,
        [(0, 0)],
        how=Intervention("directional"),
        scores=scores,
        resampling=Resampling(10),
    )
    n = len(data.cal.samples) + len(data.test.samples)
    probe = min(PROBE, len(data.cal.samples))
    assert fake.passes == 2 * (n + probe) + probe
    assert (found.change > 0).all()
