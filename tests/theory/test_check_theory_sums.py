"""The sums of a theory check against plain loops, NumPy and the numpy estimators beside them."""

import math

import numpy as np
import pytest
import torch
from ideal_model.dynamics import attention, step
from ideal_model.gaps import check_gaps, check_prefix_gaps
from ideal_model.predictions import concentration, local_gain
from scipy import stats
from theory_cases import CAUSAL, TWO, skewed

from sa_plugin.statistics import l_skewness as numpy_l_skewness
from sa_plugin.statistics import skewness
from sa_plugin.theory import layer_slopes, orthogonal, predicted_pattern, tilted
from sa_plugin.theory import sums as at
from sa_plugin.theory import sums as gs

RNG = np.random.default_rng(0)


def t(values):
    return torch.from_numpy(np.asarray(values, dtype=np.float64))


def columns(n=30, k=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, k))


def random_pattern(n, heads=2, causal=False, seed=0):
    logits = np.random.default_rng(seed).normal(size=(heads, n, n))
    if causal:
        logits[:, np.triu(np.ones((n, n), dtype=bool), 1)] = -np.inf
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True)


# Gaps


def test_pair_counts_are_all_pairs():
    before, after = columns(), columns(seed=1) + columns()
    found = gs.pair_counts(t(before), t(after))
    for k in range(3):
        check = check_gaps(before[:, k], after[:, k], resolution=gs.RESOLUTION)
        assert found["pairs"][k] == check.pairs
        assert found["shrunk"][k] == round(check.shrunk * check.pairs)
        assert found["flipped"][k] == round(check.flipped * check.pairs)
        tau = 1 - 2 * float(found["flipped"][k] / found["pairs"][k])
        assert tau == pytest.approx(stats.kendalltau(before[:, k], after[:, k]).statistic)
        ratios = [
            (after[i, k] - after[j, k]) / (before[i, k] - before[j, k]) for i in range(30) for j in range(i)
        ]
        assert found["grown"][k] == sum(r > 1 + gs.RESOLUTION for r in ratios)


def test_ties_and_unchanged_gaps_count_as_neither():
    before = t([[1.0], [1.0], [2.0], [4.0]])
    found = gs.pair_counts(before, before + 7)
    assert {k: float(v) for k, v in found.items()} == {"pairs": 5, "grown": 0, "shrunk": 0, "flipped": 0}


def test_orthogonal_slope_is_layer_slopes_over_samples():
    x, y = columns(90), 1.3 * columns(90) + 0.5 * columns(90, seed=3)
    sample = np.repeat([0, 1, 2], 30)
    parts = [
        gs.gap_sums(gs.Steps(t(x[sample == n]), t(y[sample == n]), t(0 * x[:30]), None, None))
        for n in range(3)
    ]
    xx, xy, yy = (sum(p[name] for p in parts).numpy() for name in ("xx", "xy layer", "yy layer"))
    for k in range(3):
        slopes = layer_slopes(x[:, k], y[:, k], sample=sample)
        assert orthogonal(xx, xy, yy)[k] == pytest.approx(slopes.orthogonal, rel=1e-12)
    assert np.isnan(orthogonal(np.zeros(1), np.zeros(1), np.ones(1))).all()


def test_shares_of_the_change_are_covariances():
    before, heads, mlp = (columns(seed=k) for k in range(3))
    found = gs.gap_sums(gs.Steps(t(before), t(before + heads + mlp), t(heads), None, t(heads)))
    for k in range(3):
        change = heads[:, k] + mlp[:, k]
        covariance = np.cov(heads[:, k], change)
        share = float(found["change by heads"][k] / found["change"][k])
        assert share == pytest.approx(covariance[0, 1] / covariance[1, 1])


def test_integrating_the_local_gain_gives_the_next_layer():
    a = np.sort(skewed(n=400))
    grown = gs.integrated(t(a[:, None]), t(local_gain(a, TWO)[:, None])).numpy()[:, 0]
    after = step(a, TWO)
    np.testing.assert_allclose(grown - grown[0], after - after[0], rtol=2e-4)
    # Any order of tokens, every column by itself.
    order = RNG.permutation(400)
    both = t(np.stack([a[order], -a[order]], axis=1))
    gain = t(np.stack([local_gain(a, TWO)[order]] * 2, axis=1))
    np.testing.assert_allclose(gs.integrated(both, gain).numpy()[:, 0], grown[order], rtol=1e-12)


def test_l_skewness_and_skewness_are_those_of_statistics():
    x = columns(50) ** 3
    found = gs.shape_sums(gs.Steps(t(x), t(x + 1), t(0 * x), None, None))
    for k in range(3):
        assert found["l skew before"][k] == pytest.approx(numpy_l_skewness(x[:, k]))
        second, third = float(found["second before"][k]) / 50, float(found["third before"][k]) / 50
        assert third / second**1.5 == pytest.approx(skewness(x[:, k]))
    flat = gs.shape_sums(gs.Steps(t(0 * x), t(x), t(x), None, None))
    assert (flat["l skewed before"] == 0).all()


@pytest.mark.parametrize("n", [10, 23, 40])
def test_tenths_are_ranks(n):
    x, y = columns(n), columns(n, seed=1)
    found = gs.tenth_sums(gs.Steps(t(x), t(y), t(0 * x), None, None))
    for k in range(3):
        ranks = stats.rankdata(x[:, k]).astype(int) - 1
        for q in range(10):
            mine = ranks * 10 // n == q
            assert found["tenth tokens"][k, q] == mine.sum()
            centred = y[:, k] - y[:, k].mean()
            assert found["tenth layer"][k, q] == pytest.approx(centred[mine].sum(), abs=1e-12)


def test_tails_are_the_top_tokens_before_and_after():
    before, after, heads = (columns(60, seed=k) + 1 for k in range(3))
    found = gs.tail_sums(gs.Steps(t(before), t(after), t(heads), None, None), 0.1, 3)
    for k in range(3):
        top = np.argsort(-before[:, k])[:6]
        defined = after[top, k].max() > 0
        assert bool(found["tails"][k]) is bool(defined)
        if defined:
            for name, values in (("before", before[top, k]), ("after", after[top, k])):
                expected = np.mean(1 - values / values.max())
                assert found[f"spread {name}"][k] == pytest.approx(expected)
        for name, of in (("tail", heads[top, k]), ("all", heads[:, k])):
            gaps = [abs(a - b) for i, a in enumerate(of) for b in of[:i]]
            assert found[f"update gap {name}"][k] == pytest.approx(np.mean(gaps))


def test_a_tail_without_a_positive_value_is_not_counted():
    x = -np.abs(columns()) - 1
    found = gs.tail_sums(gs.Steps(t(x), t(x), t(x), None, None), 0.1, 3)
    assert (found["tails"] == 0).all()
    assert (found["spread before"] == 0).all()
    assert gs.tail_size(40, 0.05, 3) == 3
    assert gs.tail_size(200, 0.05, 3) == 10


# Attention


def view(pattern, keep=None, causal=False):
    keep = np.ones(pattern.shape[-1], dtype=bool) if keep is None else keep
    return at.attention_of(t(pattern), torch.from_numpy(keep), causal)


@pytest.mark.parametrize("causal", [False, True])
def test_mass_on_the_top_share_by_loops(causal):
    n, tail = 25, 0.15
    keep = np.ones(n, dtype=bool)
    keep[[0, 7]] = False
    pattern = random_pattern(n, causal=causal)
    a = columns(n)[keep]
    found = at.mass_sums(t(a), view(pattern, keep, causal), tail)
    place = np.flatnonzero(keep)
    for k in range(3):
        expected = dict.fromkeys(("mass plus", "mass minus", "chance plus", "full plus"), 0.0)
        for i, query in enumerate(place):
            seen = [j for j, key in enumerate(place) if not causal or key <= query]
            if len(seen) < at.LEAST_KEYS:
                continue
            top = sorted(seen, key=lambda j: -a[j, k])[: math.ceil(tail * len(seen))]
            raw = pattern[:, query, place]
            mass = (raw[:, top].sum(-1) / raw[:, seen].sum(-1)).mean()
            side = "plus" if a[i, k] > 0 else "minus"
            expected[f"mass {side}"] += mass
            if side == "plus":
                expected["chance plus"] += len(top) / len(seen)
                expected["full plus"] += raw[:, top].sum(-1).mean()
        for name, value in expected.items():
            kind, side = name.split()
            assert found[f"{kind} top {side}"][k] == pytest.approx(value), name


def test_bottom_is_the_top_of_the_mirror_image():
    pattern = random_pattern(20)
    a = columns(20)
    one, other = (at.mass_sums(t(sign * a), view(pattern), 0.1) for sign in (1, -1))
    for side, mirrored in (("plus", "minus"), ("minus", "plus")):
        torch.testing.assert_close(one[f"mass bottom {side}"], other[f"mass top {mirrored}"])


def test_one_token_of_top_is_the_concentration_of_predictions():
    a = skewed(n=25)
    pattern = attention(a, TWO)
    found = at.mass_sums(t(a[:, None]), view(pattern), 1 / 25)
    on_top = float(found["mass top plus"] / found["queries plus"])
    assert on_top == pytest.approx(concentration(pattern, a).on_top)


def test_entropy_with_and_without_sinks():
    n = 20
    keep = np.ones(n, dtype=bool)
    keep[0] = False
    pattern = random_pattern(n)
    found = at.spread_sums(view(pattern, keep))
    kept = pattern[:, 1:, 1:]
    renormalised = kept / kept.sum(-1, keepdims=True)
    inside = stats.entropy(renormalised, axis=-1).mean(0).sum()
    full = stats.entropy(pattern[:, 1:], axis=-1).mean(0).sum()
    assert float(found["entropy"]) == pytest.approx(inside)
    assert float(found["entropy full"]) == pytest.approx(full)
    assert float(found["log keys"]) == pytest.approx(19 * math.log(19))
    assert float(found["kept mass"]) == pytest.approx(kept.sum(-1).mean(0).sum())


def test_the_predicted_pattern_is_the_idealised_models():
    a = skewed(n=15)
    for model in (TWO, CAUSAL):
        beta = t([model.beta]).T.expand(-1, 2)
        visible = view(attention(a, model), causal=model.causal).visible
        found = predicted_pattern(t(np.stack([a, 2 * a], 1)), beta, visible)
        np.testing.assert_allclose(found[0].numpy(), attention(a, model), atol=1e-6)
        np.testing.assert_allclose(found[1].numpy(), attention(2 * a, model), atol=1e-6)


def test_tilted_moments_by_loops():
    pattern, a = random_pattern(12), columns(12) + 100
    mean, variance = tilted(t(pattern), t(a))
    for h in range(2):
        for i in range(12):
            for k in range(3):
                m = np.average(a[:, k], weights=pattern[h, i])
                v = np.average((a[:, k] - m) ** 2, weights=pattern[h, i])
                assert mean[h, i, k] == pytest.approx(m)
                assert variance[h, i, k] == pytest.approx(v)


# Common prefixes


def test_prefix_sums_are_check_prefix_gaps_and_loops():
    n = 14
    pattern = random_pattern(n, causal=True)
    a, writes = columns(n), np.random.default_rng(5).normal(size=(2, n, 3))
    inverse = np.random.default_rng(6).uniform(0.5, 2, n)
    growth = np.array([[0.3, 0.1, 0.2], [0.2, 0.4, 0.1]])
    found = at.prefix_sums(t(a), t(pattern), t(writes), t(growth), t(inverse), 1e-9)
    for k in range(3):
        check = check_prefix_gaps(a[:, k], pattern, writes[:, :, k], resolution=1e-9)
        assert found["pairs prefix"][k] == check.pairs == n * (n - 1) / 2
        assert found["flipped prefix"][k] == round(check.flipped * check.pairs)
        assert found["left out prefix"][k] == check.left_out == 0
        later2 = predicted = 0.0
        for i in range(n):
            for j in range(i):

                def upto(q, j=j, k=k):
                    u = v = 0.0
                    for h in range(2):
                        w = pattern[h, q, : j + 1]
                        u += np.average(writes[h, : j + 1, k], weights=w)
                        x = (a[:, k] * inverse)[: j + 1]
                        m = np.average(x, weights=w)
                        v += growth[h, k] * np.average((x - m) ** 2, weights=w) * inverse[q]
                    return u, v

                (ui, vi), (uj, vj) = upto(i), upto(j)
                gap = a[i, k] - a[j, k]
                later2 += (gap + ui - uj) ** 2
                predicted += (gap * (1 + (vi + vj) / 2)) * gap
        assert found["yy prefix"][k] == pytest.approx(later2)
        assert found["xy prefix predicted"][k] == pytest.approx(predicted)


def test_prefixes_without_resolvable_attention_are_left_out():
    a = np.array([[-40.0], [-30.0], [40.0]])
    pattern = attention(a[:, 0], CAUSAL)
    found = at.prefix_sums(t(a), t(pattern), t(0.3 * a[None]), t([[0.24]]), torch.ones(3).double(), 1e-6)
    assert float(found["left out prefix"]) >= 1
    assert float(found["pairs prefix"] + found["left out prefix"]) == 3
    assert np.isfinite([float(v) for v in found.values()]).all()


def test_the_idealised_layer_has_no_shrunken_prefix():
    a = skewed(n=60)
    pattern = attention(a, CAUSAL)
    writes = CAUSAL.gamma[0] * a[None, :, None]
    found = at.prefix_sums(t(a[:, None]), t(pattern), t(writes), t([[0.24]]), torch.ones(60).double(), 1e-6)
    assert float(found["shrunk prefix"]) == 0
    mirrored = at.prefix_sums(
        t(a[:, None]), t(pattern), t(-writes), t([[-0.24]]), torch.ones(60).double(), 1e-6
    )
    assert float(mirrored["shrunk prefix"] / mirrored["pairs prefix"]) > 0.9


def test_one_column_is_the_same_alone_and_beside_others():
    a, pattern = columns(20), random_pattern(20)
    both = at.mass_sums(t(a), view(pattern), 0.1) | gs.gap_sums(gs.Steps(t(a), t(2 * a), t(a), None, None))
    alone = at.mass_sums(t(a[:, 1:2]), view(pattern), 0.1) | gs.gap_sums(
        gs.Steps(t(a[:, 1:2]), t(2 * a[:, 1:2]), t(a[:, 1:2]), None, None)
    )
    for name, value in alone.items():
        torch.testing.assert_close(both[name][1:2], value)
