"""Direct, total and first-order effects of heads: by loops, by finite differences, against each
other where they must agree, and rankings made of them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from ablation_cases import EditableFake, make_data, standard, with_gradients
from fake_host import FakeHost

from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData
from sa_plugin.detection import calibrate
from sa_plugin.heads import (
    NoTailWarning,
    agreement,
    baseline,
    block_effects,
    block_reference,
    candidates,
    compare_direct_total,
    first_order_effects,
    head_ledger,
    known_of,
    make_edits,
    permuted_vectors,
    rank,
    rank_heads,
    scores_of,
    tail_objective,
    tail_waterfall,
    total_effects,
    with_draws,
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
def draws(gpt2, data):
    return permuted_vectors(gpt2.host, data, gpt2.detector.bank, draws=2)


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
    last = [i for i, part in enumerate(found.parts) if part.block == 2]
    np.testing.assert_allclose(found.total.estimate[last], found.direct[last], atol=2e-5)
    np.testing.assert_allclose(found.attribution[last], found.direct[last], atol=2e-5)
    early = [i for i, part in enumerate(found.parts) if part.block == 0]
    assert np.abs(found.total.estimate - found.direct)[early].max() > 1e-3
    assert (found.total.low <= found.total.estimate + 1e-9).all()
    assert (found.total.high >= found.total.estimate - 1e-9).all()
    assert set(found.agreement()) == {"direct", "attribution"}
    assert found.of("animal")["spearman"] <= 1
    table = found.table()
    for measure in ("direct", "total", "attribution"):
        assert (table.measure == measure).sum() == len(found.parts) * 2
    assert "against total" in found.summary()
    assert "DirectTotal(12 heads, 2 concepts, test: direct against total" in repr(found)


@pytest.fixture(scope="module")
def blocks(gpt2, data):
    options = {"scores": gpt2.scores, "permutations": 2, "resampling": Resampling(20)}
    return compare_direct_total(gpt2.host, data, gpt2.detector, parts="blocks", **options)


def test_blocks_direct_is_the_waterfall_and_total_where_nothing_follows(gpt2, data, blocks):
    steps = tail_waterfall(gpt2.host, data, gpt2.detector, directions=["fixed"], resampling=Resampling(1))
    names = [part.name for part in blocks.parts]
    assert names == [f"L{k} {name}" for k in range(3) for name in ("attention", "MLP")]
    for k, concept in enumerate(blocks.concepts):
        heights = steps.heights(concept)
        expected = [float(heights.sel(step=name).estimate) for name in names]
        np.testing.assert_allclose(blocks.direct[:, k], expected, atol=2e-5)
    np.testing.assert_allclose(blocks.total.estimate[-1], blocks.direct[-1], atol=2e-5)
    assert np.abs(blocks.total.estimate - blocks.direct)[:-1].max() > 1e-3
    share = (blocks.total.estimate / np.abs(blocks.lift)).mean(1)
    np.testing.assert_allclose(blocks.share.estimate, share)
    assert blocks.attribution is None


def test_a_blocks_effects_are_those_of_its_edit(gpt2, data, blocks, draws):
    """The attention as all its heads at once; the MLP by what it adds; the control on its own tails."""
    known = block_reference(gpt2.host, data, gpt2.detector.bank, 3)
    base = baseline(gpt2.host, data, gpt2.detector, split="test", scores=None, resampling=Resampling(2))
    clean = scores_of(base.tokens, data.test.samples)
    every = [(1, h) for h in range(gpt2.host.info.n_heads)]
    value = known.mlps[1]
    for name, edits in (
        ("L1 attention", make_edits("mean", every, known)),
        ("L1 MLP", {Site(1, "mlp_out"): lambda out: value.expand_as(out)}),
    ):
        with gpt2.host.edited(edits):
            moved = score(gpt2.host, data, gpt2.detector.bank, splits=["test"], keep_of=base.tokens.tokens)
        left = objective_by_loop(gpt2.detector, scores_of(moved, data.test.samples), clean)
        expected = objective_by_loop(gpt2.detector, clean, clean) - left
        np.testing.assert_allclose(blocks.total.sel(part=name).estimate, expected, atol=1e-5)
    bank = with_draws(gpt2.detector.bank, draws)
    scored = score(gpt2.host, data, bank, splits=["test"], keep_of=base.tokens.tokens)
    objective = tail_objective(gpt2.detector, clean, scores_of(scored, data.test.samples))
    sums = block_effects(base, objective, [Site(1, "mlp_out")], known)
    share = (objective.value(sums)[0] / objective.value(objective.clean))[2:].reshape(2, 2).mean(1)
    np.testing.assert_allclose(blocks.permuted[:, 3], share)
    beyond = share.max() < blocks.share.estimate[3]
    assert blocks.beyond[3] == beyond
    assert "by chance 2.0 would" in " ".join(blocks.summary().split())


def test_means_of_mlps_are_those_of_the_train_split(gpt2, data):
    """With the bank's own means and without them."""
    bank = gpt2.detector.bank
    assert bank.component_means is not None
    one = block_reference(gpt2.host, data, bank, 2)
    other = block_reference(gpt2.host, data, replace(bank, component_means=None), 2)
    for k in range(2):
        torch.testing.assert_close(one.mlps[k], other.mlps[k], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.means[k], other.means[k], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"parts 'block' .*blocks"):
        compare_direct_total(gpt2.host, data, gpt2.detector, parts="block")


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
        behind = np.array([part.block > case.detector.layer[concept] for part in found.parts])
        for values in (found.direct, found.total.estimate, found.attribution):
            assert np.isnan(values[behind, k]).all()
            assert np.isfinite(values[~behind, k]).all()
    assert found.lift.shape == (2,)
    assert len(late) <= 2


# Rankings.


def test_patching_ranks_by_mean_share_of_total_effects(gpt2, data):
    ranked = rank_heads(gpt2.host, data, gpt2.detector, scores=gpt2.scores, permutations=0)
    sums = total_effects(gpt2.base, gpt2.objective, gpt2.every, "mean", gpt2.known)
    lift = gpt2.objective.value(gpt2.objective.clean)
    share = dict(zip(gpt2.every, (gpt2.objective.value(sums) / lift).mean(1).tolist(), strict=True))
    assert list(ranked.heads) == sorted(share, key=lambda head: -share[head])
    assert ranked.exact.all()
    k = gpt2.detector.concepts.index("food")
    own = dict(zip(gpt2.every, (gpt2.objective.value(sums) / lift)[:, k].tolist(), strict=True))
    assert list(ranked.of("food")) == sorted(own, key=lambda head: -own[head])


def test_a_budget_verifies_the_best_until_it_is_spent(gpt2, data):
    options = {"scores": gpt2.scores, "permutations": 0}
    exact = rank_heads(gpt2.host, data, gpt2.detector, by="patching", **options)
    known = dict(zip(exact.heads, exact.values, strict=True))
    for budget in (1, 3, 11):
        ranked = rank_heads(gpt2.host, data, gpt2.detector, budget=budget, **options)
        assert ranked.exact.sum() == budget
        for head, value, sure in zip(ranked.heads, ranked.values, ranked.exact, strict=True):
            if sure:
                assert value == pytest.approx(known[head], abs=1e-6)
        first = ranked.estimated
        assert ranked.exact[: first - 1].all()
        assert not ranked.exact[first - 1]
        words = f"Budget {budget} passes: {budget} of 12 heads verified"
        assert words in ranked.summary()
        assert f"{budget} verified" in repr(ranked)
    assert "by attribution, total on cal" in repr(ranked)


def test_a_budget_for_all_heads_is_patching_and_takes_no_gradient(gpt2, data):
    plain = tiny.host("gpt2")
    options = {"scores": gpt2.scores, "permutations": 2}
    one, two = (rank_heads(h, data, gpt2.detector, **options) for h in (gpt2.host, plain))
    three = rank_heads(plain, data, gpt2.detector, by="patching", **options)
    for other in (two, three):
        assert (one.heads, one.permuted, one.by) == (other.heads, other.permuted, other.by)
    assert one.by == "patching"
    assert one.estimated is None
    assert "Budget 12 passes: every head by a real one." in one.summary()


def unablated(case, data, bank):
    scored = score(case.host, data, bank, splits=["cal"], keep_of=case.scores.tokens)
    return scores_of(scored, data.cal.samples)


def shares_by_loop(case, data, vectors):
    """Each head's mean share of the lift of other vectors, with their own tails of the same size."""
    bank, detector = replace(case.detector.bank, token=vectors), case.detector
    clean = scores_of(
        score(case.host, data, bank, splits=["cal"], keep_of=case.scores.tokens), data.cal.samples
    )
    own, cuts = detector.token_scores(case.table), {}
    for k, concept in enumerate(detector.concepts):
        n = int((own[:, k] >= detector.threshold[concept]).sum())
        cuts[concept] = float(np.sort(clean.scores[:, 0, k])[-n])

    class Drawn:
        concepts, threshold = detector.concepts, cuts

        @staticmethod
        def token_scores(table):
            return table.scores[:, 0]

    lift, found = objective_by_loop(Drawn, clean, clean), {}
    for head in case.every:
        with case.host.edited(make_edits("mean", [head], case.known)):
            moved = score(case.host, data, bank, splits=["cal"], keep_of=case.scores.tokens)
        left = objective_by_loop(Drawn, scores_of(moved, data.cal.samples), clean)
        found[head] = ((lift - left) / np.abs(lift)).mean()
    return found


def test_each_permutation_orders_heads_by_the_same_rule(gpt2, data, draws):
    options = {"scores": gpt2.scores, "permutations": 2}
    ranked = rank_heads(gpt2.host, data, gpt2.detector, **options)
    share = shares_by_loop(gpt2, data, draws[1])
    assert list(ranked.permuted[1]) == sorted(share, key=lambda head: -share[head])
    assert "control of 2 permutations" in repr(ranked)
    # The concepts' own order does not know of permutations.
    alone = rank_heads(gpt2.host, data, gpt2.detector, scores=gpt2.scores, permutations=0)
    assert ranked.heads == alone.heads


@pytest.mark.parametrize("size", [False, True])
def test_each_permutation_has_the_same_budget(gpt2, data, draws, size):
    options = {"scores": gpt2.scores, "permutations": 2, "budget": 1, "size": size}
    ranked = rank_heads(gpt2.host, data, gpt2.detector, **options)
    assert ranked.permuted == tuple(guessed(gpt2, data, draws, size))


def guessed(case, data, draws, size):
    """Column by column, without mixing; the first head has its exact share."""
    clean = unablated(case, data, with_draws(case.detector.bank, draws))
    objective = tail_objective(case.detector, case.table, clean)
    lift = objective.value(objective.clean)
    first = objective.value(first_order_effects(case.base, objective, case.every, case.known)) / lift
    for k in range(len(draws)):
        columns = slice(2 * (k + 1), 2 * (k + 2))
        value = (np.abs(first) if size else first)[:, columns].mean(1)
        i = int(value.argmax())
        exact = (
            objective.value(total_effects(case.base, objective, [case.every[i]], "mean", case.known)) / lift
        )
        value[i] = (np.abs(exact) if size else exact)[0, columns].mean()
        yield tuple(case.every[int(j)] for j in np.argsort(-value, kind="stable"))


def test_refusals_of_rankings(gpt2, data, monkeypatch):
    fake = standard()
    for options, text in (
        ({"by": "size"}, "ranking 'size'|did you mean|is unknown"),
        ({"by": "patching", "budget": 3}, "takes one for each of 12 heads: use by='attribution'"),
        ({"budget": -1}, "budget is -1, not a whole number from 0"),
        ({"budget": 0}, "budget is 0 passes, below one patching run: .* or by='ledger'"),
        ({"by": "ledger", "budget": 3}, "spends no passes on single heads"),
    ):
        with pytest.raises(ValueError, match=text):
            rank_heads(gpt2.host, data, gpt2.detector, **options)
    on = {"host": fake.fake, "data": fake.data, "detector": fake.detector, "scores": fake.scores}
    says = r"no gradients.* budget of 5 passes does not cover 6 heads. Give by='patching' \(6 .* by='ledger'"
    with pytest.raises(TypeError, match=says):
        rank_heads(**on, budget=5)
    monkeypatch.setattr(rank, "BUDGET", 3)
    with pytest.raises(TypeError, match="budget of 3 passes does not cover 6 heads"):
        rank_heads(**on)
    with pytest.raises(TypeError, match=r"FakeHost \(fake\) cannot edit activations"):
        rank_heads(**on | {"host": FakeHost()}, budget=5)
    with pytest.raises(ValueError, match="takes out one concept at a time"):
        total_effects(gpt2.base, gpt2.objective, [(0, 0)], "directional", gpt2.known)


def test_labels_that_cannot_be_permuted_are_refused():
    """Three train samples, two of them labelled alike: one order in three is the same."""
    words = [["cat", "ran", "house"]] * 2 + [["ran", "sat", "blue"]] + [["sat", "cat"], ["ran", "blue"]] * 6
    labels = [["animal" if w == "cat" else None for w in row] for row in words]
    splits = ["train"] * 3 + ["cal", "cal", "test", "test"] * 3
    data = ConceptData.from_words(words, labels, splits=splits, documents=list(map(str, range(15))))
    fake = EditableFake()
    detector = calibrate(fake, data, fit(fake, data, "prototype", layers=[1]), deltas=(0.3,))
    says = r"\d+% of the permutations of null 'across' leave the labels of 'animal' .* give permutations=0"
    for by in ("attribution", "ledger"):
        with pytest.raises(ValueError, match=says):
            rank_heads(fake, data, detector, by=by)
    none = rank_heads(fake, data, detector, permutations=0)
    assert none.permuted == ()
    assert "No order by permuted labels beside it: no control." in none.summary()


def test_a_permutation_without_a_tail_is_said(gpt2, data, draws, monkeypatch):
    """All tokens tie under a vector of zeros: every token is tail, and none is left beside it."""
    for zeros, expected in (
        ([1.0, 0.0], pytest.warns(NoTailWarning, match="under permutation 0 .* tail of 'food' has no other")),
        (
            [0.0, 0.0],
            pytest.raises(ValueError, match="under permutation 0 of the labels no concept has a tail"),
        ),
    ):
        one = replace(draws[0], vectors=draws[0].vectors * torch.tensor(zeros)[:, None])
        monkeypatch.setattr(rank, "permuted_vectors", lambda *a, one=one, **k: (one,))
        with expected:
            found = rank_heads(gpt2.host, data, gpt2.detector, budget=2, scores=gpt2.scores)
    assert set(found.permuted[0]) == set(gpt2.every)
