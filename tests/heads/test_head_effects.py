"""Direct, total and first-order effects of heads: by loops, by finite differences, against each
other where they must agree, and rankings made of them."""

from itertools import pairwise

import numpy as np
import pytest
import tiny
from ablation_cases import make_data, standard, with_gradients

from sa_plugin.concepts import fit
from sa_plugin.detection import calibrate
from sa_plugin.heads import (
    agreement,
    baseline,
    candidates,
    compare_direct_total,
    first_order_effects,
    head_ledger,
    known_of,
    make_edits,
    rank_heads,
    scores_of,
    tail_objective,
    total_effects,
)
from sa_plugin.host import Site
from sa_plugin.scores import score
from sa_plugin.statistics import Resampling, resample_documents

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def data():
    return make_data()


class Case:
    """A tiny model with a detector and what its effects are computed from."""

    def __init__(self, name, data, layers=(2,)):
        self.host = with_gradients(tiny.host(name))
        bank = fit(self.host, data, "lda", layers=list(layers))
        self.scores = score(self.host, data, bank)
        self.detector = calibrate(self.host, data, bank, scores=self.scores, deltas=(0.3,))
        self.base = baseline(
            self.host, data, self.detector, split="cal", scores=self.scores, resampling=Resampling(20)
        )
        self.table = scores_of(self.scores, data.cal.samples)
        self.objective = tail_objective(self.detector, self.table)
        self.every = candidates(self.host, self.detector)
        self.known = known_of(self.base, "mean", {0, 1, 2})


@pytest.fixture(scope="module")
def gpt2(data):
    return Case("gpt2", data)


@pytest.fixture(scope="module")
def neox(data):
    return Case("neox", data)


def objective_by_loop(detector, table, clean):
    """T_c sample by sample; the tail is that of the clean table."""
    found = []
    for k, concept in enumerate(detector.concepts):
        s, s0 = (detector.token_scores(x)[:, k].astype(float) for x in (table, clean))
        top, n = 0.0, 0
        for a, b in pairwise(table.tokens.bounds):
            tail = s0[a:b] >= detector.threshold[concept]
            if tail.any() and not tail.all():
                top += tail.sum() * (s[a:b][tail].mean() - s[a:b][~tail].mean())
                n += tail.sum()
        found.append(top / n)
    return np.array(found)


def test_the_tail_objective_is_a_loops_and_the_ledgers_lift(gpt2, data):
    got = gpt2.objective.value(gpt2.objective.clean)
    np.testing.assert_allclose(got, objective_by_loop(gpt2.detector, gpt2.table, gpt2.table))
    ledger = head_ledger(gpt2.host, data, gpt2.detector, split="cal", resampling=Resampling(1))
    np.testing.assert_allclose(got, ledger.lift.total.estimate, rtol=1e-4)
    resamples = resample_documents(np.array([s.document for s in data.cal.samples]))
    columns = gpt2.objective.columns(gpt2.objective.clean[None], resamples)[0]
    np.testing.assert_allclose(columns[:, 0], got)
    rows = resamples.sample_weights[4] > 0
    without = gpt2.objective.clean[rows].sum(0) / gpt2.objective.n_tail[rows].sum(0)
    np.testing.assert_allclose(columns[:, 4], without)


def test_total_effects_are_a_loop_of_runs(gpt2, data):
    heads = [(0, 1), (2, 3)]
    sums = total_effects(gpt2.base, gpt2.objective, heads, "mean", gpt2.known)
    for i, head in enumerate(heads):
        with gpt2.host.edited(make_edits("mean", [head], gpt2.known)):
            moved = score(gpt2.host, data, gpt2.detector.bank, splits=["cal"], keep_of=gpt2.scores.tokens)
        left = objective_by_loop(gpt2.detector, scores_of(moved, data.cal.samples), gpt2.table)
        expected = objective_by_loop(gpt2.detector, gpt2.table, gpt2.table) - left
        np.testing.assert_allclose(gpt2.objective.value(sums[i]), expected, atol=1e-5)
    assert np.abs(gpt2.objective.value(sums)).max() > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_attributions_are_the_slope_of_a_partial_ablation(name, data):
    """(T(0) - T(e)) / e with z replaced by z - e (z - mean), by central differences."""
    case = Case(name, data)
    heads = [(0, 0), (1, 2), (2, 1)]
    got = case.objective.value(first_order_effects(case.base, case.objective, heads, case.known))
    for i, (layer, head) in enumerate(heads):
        mean, ends = case.known.means[layer][head], []
        for step in (-0.02, 0.02):

            def part(z, step=step, head=head, mean=mean):
                z[:, :, head] = z[:, :, head] - step * (z[:, :, head] - mean)
                return z

            with case.host.edited({Site(layer, "z"): part}):
                moved = score(case.host, data, case.detector.bank, splits=["cal"], keep_of=case.scores.tokens)
            scores = case.detector.token_scores(scores_of(moved, data.cal.samples))
            ends.append(case.objective.value(case.objective.sums(scores)))
        slope = (ends[0] - ends[1]) / 0.04
        np.testing.assert_allclose(got[i], slope, rtol=2e-2, atol=2e-3 * np.abs(got).max())


def test_all_three_agree_where_nothing_follows(neox, data):
    """A head of the last, parallel block: no MLP sees it, so direct, total and slope are one."""
    found = compare_direct_total(
        neox.host, data, neox.detector, scores=neox.scores, resampling=Resampling(20)
    )
    last = [i for i, (layer, _) in enumerate(found.heads) if layer == 2]
    np.testing.assert_allclose(found.total.estimate[last], found.direct[last], atol=2e-5)
    np.testing.assert_allclose(found.attribution[last], found.direct[last], atol=2e-5)
    early = [i for i, (layer, _) in enumerate(found.heads) if layer == 0]
    assert np.abs(found.total.estimate - found.direct)[early].max() > 1e-3
    assert (found.total.low <= found.total.estimate + 1e-9).all()
    assert (found.total.high >= found.total.estimate - 1e-9).all()
    assert set(found.agreement()) == {"direct", "attribution"}
    assert found.of("animal")["spearman"] <= 1
    table = found.table()
    for measure in ("direct", "total", "attribution"):
        assert (table.measure == measure).sum() == len(found.heads) * 2
    assert "against total" in found.summary()
    assert "DirectTotal(12 heads, 2 concepts, test: direct against total" in repr(found)


def test_agreement_of_known_numbers():
    total = np.array([1.0, -2.0, 3.0, 0.5])
    assert agreement(total, total) == pytest.approx(
        {"spearman": 1, "pearson": 1, "same_sign": 1, "indirect_share": 0}
    )
    found = agreement(np.array([1.0, 2.0, 3.0, 0.5]), total)
    assert found["same_sign"] == pytest.approx(4.5 / 6.5)
    assert found["indirect_share"] == pytest.approx(4 / 6.5)
    assert np.isnan(agreement(np.ones(4), total)["pearson"])


def test_heads_behind_a_concept_have_no_effect(data):
    case = Case("gpt2", data, layers=(0, 2))
    late = [c for c in case.detector.concepts if case.detector.layer[c] == 0]
    found = compare_direct_total(case.host, data, case.detector, resampling=Resampling(10))
    for k, concept in enumerate(found.concepts):
        behind = np.array([layer > case.detector.layer[concept] for layer, _ in found.heads])
        for values in (found.direct, found.total.estimate, found.attribution):
            assert np.isnan(values[behind, k]).all()
            assert np.isfinite(values[~behind, k]).all()
    assert found.lift.shape == (2,)
    assert len(late) <= 2


# Rankings.


def test_patching_ranks_by_mean_share_of_total_effects(gpt2, data):
    ranked = rank_heads(gpt2.host, data, gpt2.detector, by="patching", scores=gpt2.scores)
    sums = total_effects(gpt2.base, gpt2.objective, gpt2.every, "mean", gpt2.known)
    lift = gpt2.objective.value(gpt2.objective.clean)
    share = dict(zip(gpt2.every, (gpt2.objective.value(sums) / lift).mean(1).tolist(), strict=True))
    assert list(ranked.heads) == sorted(share, key=lambda head: -share[head])
    assert ranked.exact.all()
    k = gpt2.detector.concepts.index("food")
    own = dict(zip(gpt2.every, (gpt2.objective.value(sums) / lift)[:, k].tolist(), strict=True))
    assert list(ranked.of("food")) == sorted(own, key=lambda head: -own[head])


def test_a_budget_verifies_the_best_until_it_is_spent(gpt2, data):
    options = {"scores": gpt2.scores}
    exact = rank_heads(gpt2.host, data, gpt2.detector, by="patching", **options)
    known = dict(zip(exact.heads, exact.values, strict=True))
    for budget in (0, 3, len(gpt2.every)):
        ranked = rank_heads(gpt2.host, data, gpt2.detector, by="attribution", budget=budget, **options)
        assert ranked.exact.sum() == budget
        for head, value, sure in zip(ranked.heads, ranked.values, ranked.exact, strict=True):
            if sure:
                assert value == pytest.approx(known[head], abs=1e-6)
    assert ranked.heads == exact.heads
    assert "by attribution, total on cal" in repr(ranked)


def test_refusals_of_rankings(gpt2, data):
    fake = standard()
    for options, text in (
        ({"by": "size"}, "ranking 'size'|did you mean|is unknown"),
        ({"by": "patching", "budget": 3}, "takes one for each of 12 heads: use by='attribution'"),
        ({"by": "attribution", "budget": -1}, "budget is -1, not a whole number from 0"),
        ({"by": "ledger", "budget": 3}, "spends no passes on single heads"),
    ):
        with pytest.raises(ValueError, match=text):
            rank_heads(gpt2.host, data, gpt2.detector, **options)
    with pytest.raises(TypeError, match="gives no gradients"):
        rank_heads(fake.fake, fake.data, fake.detector, by="attribution", scores=fake.scores)
    with pytest.raises(ValueError, match="takes out one concept at a time"):
        total_effects(gpt2.base, gpt2.objective, [(0, 0)], "directional", gpt2.known)
