"""The parts of alignment against slow oracles: rotary, tails, calls, null, logits, mass."""

import math

import numpy as np
import pytest
import tiny
import torch
from scipy import stats

from sa_plugin.heads import (
    LEVELS,
    adjusted,
    attention_mass,
    calibration,
    call,
    describe_blocks,
    logit_moments,
    mean_turn,
    offsets_seen,
    ov_form,
    p_values,
    place_terms,
    profile_offsets,
    qk_form,
    slopes,
    top_tokens,
    turned_product,
)
from sa_plugin.host import Rotary
from sa_plugin.passes import TokenTable


def table(positions):
    lengths = [len(p) for p in positions]
    n = sum(lengths)
    return TokenTable(
        tuple(tiny.samples()[: len(positions)]),
        ("train",) * len(positions),
        (),
        np.repeat(np.arange(len(positions)), lengths),
        np.concatenate(positions),
        np.zeros((n, 2), int),
        np.zeros((n, 0), bool),
        {},
    )


@pytest.mark.parametrize("causal", [True, False])
def test_offsets_are_counted_as_a_double_loop_does(causal):
    positions = [np.array([1, 2, 3, 7]), np.array([0, 5]), np.array([4])]
    counted = {}
    for p in positions:
        for i in p:
            for j in p:
                if j <= i or not causal:
                    counted[int(i - j)] = counted.get(int(i - j), 0) + 1
    assert offsets_seen(table(positions), causal=causal) == counted


def test_profile_offsets_are_seen_ones():
    assert profile_offsets({0: 5, 1: 4, 2: 3, 3: 3, 5: 1}) == [0, 1, 2, 5]


def test_averaged_rotation_is_the_average_of_rotated_products():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 5, 8, generator=generator).double()
    rotary = Rotary(torch.tensor([1.0, 0.3, 0.05]), 6, 1.2)
    offsets = {0: 3, 1: 2, 4: 5, -3: 1}

    def turned(x, position):
        out = x.clone()
        for j in range(3):
            angle = position * float(rotary.inverse_frequency[j])
            z = complex(float(x[j]), float(x[j + 3])) * complex(math.cos(angle), math.sin(angle))
            out[j], out[j + 3] = z.real * 1.2, z.imag * 1.2
        return out

    for row in range(5):
        slow = sum(n * float(turned(q[row], 10 + o) @ turned(k[row], 10)) for o, n in offsets.items())
        fast = turned_product(q[row].float(), k[row].float(), mean_turn(rotary, offsets))
        assert float(fast) == pytest.approx(slow / sum(offsets.values()), abs=1e-5)
    assert mean_turn(None, offsets) is None


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "llama", "gemma2", "bert"])
def test_forms_are_differences_of_the_hosts_own_numbers(architecture):
    """Along v, z and logits change as OV and QK forms say, by the norm frozen at scale one."""
    host = tiny.host(architecture)
    (block,) = describe_blocks(host, (0,), {0: 1})
    weights, norm = block.attention, block.attention.norm
    generator = torch.Generator().manual_seed(1)
    v, w = torch.randn(2, 1, tiny.D_MODEL, generator=generator)
    read = v if norm is None else (v - norm.centred * v.mean()) * norm.gain
    for h in range(tiny.N_HEADS):
        beta = (read @ weights.query.weight[h]) @ (read @ weights.key.weight[h]).T * weights.scale
        if weights.rotary is None or weights.rotary.scaling == 1:
            got = float(qk_form(block.maps, v, block.turn)[0, h])
            assert got == pytest.approx(float(beta), rel=1e-4)
        out = (read @ weights.value.weight[h]) @ host.output_projection(0).weight[h]
        if architecture in ("gpt2", "neox", "llama"):
            got = float(ov_form(block.maps, v, w)[0, h])
            assert got == pytest.approx(float(out @ w.T), rel=1e-3, abs=1e-5)


def test_keys_of_a_group_serve_each_of_its_heads():
    host = tiny.host("llama")
    (block,) = describe_blocks(host, (0,), {0: 1})
    assert torch.equal(block.maps.value[0], block.maps.value[1])
    assert not torch.equal(block.maps.query[0], block.maps.query[1])


DISTRIBUTIONS = {
    "normal": stats.norm(),
    "exponential": stats.expon(),
    "one squared normal": stats.chi2(1),
    "bounded": stats.beta(2, 6),
    "product of normals": None,
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_tail_p_values_hold_their_level(name):
    """P(p <= level), exactly integrated over the observed value, on average over null draws."""
    rng = np.random.default_rng(0)
    cells, draws = 1000, 400
    if name == "product of normals":
        sample = rng.normal(size=(draws, cells)) * rng.normal(size=(draws, cells))
        observed = rng.normal(size=(100, cells)) * rng.normal(size=(100, cells))
        p = np.stack([p_values(one, sample) for one in observed])
        for level, slack in ((0.05, 1.1), (1e-2, 1.2), (1e-3, 1.5)):
            assert (p <= level).mean() <= slack * level
        return
    law = DISTRIBUTIONS[name]
    sample = law.rvs(size=(draws, cells), random_state=rng)
    # Tails of squared normals fall off a little slower at first than the exponential they end as.
    slacks = (1.1, 1.4, 2.5) if name == "one squared normal" else (1.05, 1.25, 1.6)
    for level, slack in zip((1e-2, 1e-3, 1e-5), slacks, strict=True):
        low, high = np.full(cells, law.ppf(0.5)), np.full(cells, 100.0)
        for _ in range(35):
            middle = (low + high) / 2
            small = p_values(middle, sample) <= level
            low, high = np.where(small, low, middle), np.where(small, middle, high)
        realised = law.sf(high).mean()
        assert realised <= slack * level
        if name == "exponential":
            assert realised == pytest.approx(level, rel=0.25)


def test_up_to_the_tail_draws_are_counted():
    rng = np.random.default_rng(1)
    draws, observed = rng.normal(size=(100, 50)), rng.normal(size=50)
    counted = (1 + (draws >= observed).sum(0)) / 101
    fitted = p_values(observed, draws)
    inside = observed <= np.sort(draws, axis=0)[-26]
    np.testing.assert_allclose(fitted[inside], counted[inside])
    np.testing.assert_allclose(p_values(observed, draws, "empirical"), counted)
    assert (p_values(observed + 1, draws) <= fitted + 1e-12).all()


def test_draws_without_a_spread_are_counted():
    p = p_values(np.array([2.0, 1.0, 0.0]), np.ones((100, 3)))
    np.testing.assert_allclose(p, [1 / 101, 1.0, 1.0])


def test_calibration_sees_a_heavy_tail():
    rng = np.random.default_rng(2)
    fine = calibration(rng.exponential(size=(400, 500)), "exponential")
    heavy = calibration(rng.standard_t(2, size=(400, 500)), "exponential")
    assert list(fine) == [f"{level:g}" for level in LEVELS]
    assert fine["0.001"] == pytest.approx(1e-3, rel=0.3)
    assert heavy["0.0001"] > 5e-4
    assert calibration(np.ones((20, 2)), "exponential") == {}


@pytest.mark.parametrize(("correction", "method"), [("BH", "bh"), ("BY", "by")])
def test_calls_are_scipys(correction, method):
    p = np.random.default_rng(0).random((4, 5, 6)) ** 4
    oracle = stats.false_discovery_control(p.ravel(), method=method).reshape(p.shape)
    np.testing.assert_allclose(adjusted(p, correction), oracle)
    np.testing.assert_array_equal(call(p, 0.1, correction), oracle <= 0.1)
    with_nan = np.concatenate([p.ravel(), [np.nan]])
    np.testing.assert_allclose(adjusted(with_nan, correction)[:-1], oracle.ravel())
    assert not call(with_nan, 0.1, correction)[-1]


def attention_case(seed=0, batch=2, heads=2, n=7, columns=2):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(batch, n, columns, generator=generator)
    logits = torch.randn(batch, heads, n, n, generator=generator)
    seen = torch.ones(n, n).tril().bool().expand(batch, -1, -1)
    keep = torch.ones(batch, n, dtype=torch.bool)
    keep[:, 0], keep[1, 4] = False, False
    return a, logits, seen, keep


def fitted(pattern, a, allowed):
    distance = (torch.arange(a.shape[1])[:, None] - torch.arange(a.shape[1])).abs().float()
    places = place_terms(distance.expand(len(a), -1, -1))
    m = logit_moments(pattern, a, allowed, places)
    return slopes(*(part.sum(0).numpy() for part in m))


def test_slopes_are_least_squares_with_an_intercept_a_query():
    a, logits, seen, keep = attention_case()
    pattern = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    allowed = seen & keep[:, None] & keep[..., None]
    got = fitted(pattern, a, allowed)
    for h in range(2):
        for c in range(2):
            rows, y, query = [], [], []
            for b, i, j in allowed.nonzero().tolist():
                x = a[b, :, c].double().numpy()
                d = abs(i - j)
                rows.append([x[i] * x[j], x[j], d, math.log1p(d), float(i == j)])
                y.append(math.log(float(pattern[b, h, i, j])))
                query.append((b, i))
            names = sorted(set(query))
            dummies = np.array([[q == name for name in names] for q in query], float)
            design = np.concatenate([np.array(rows), dummies], axis=1)
            full, *_ = np.linalg.lstsq(design, np.array(y), rcond=None)
            assert got.slope[h, c] == pytest.approx(full[0], rel=1e-3, abs=1e-4)
            left = [
                t - design[:, 1:] @ np.linalg.lstsq(design[:, 1:], t, rcond=None)[0]
                for t in (np.array(y), design[:, 0])
            ]
            expected = np.corrcoef(*left)[0, 1]
            assert got.correlation[h, c] == pytest.approx(expected, abs=1e-3)


def test_slopes_do_not_see_a_shift_and_recover_the_planted_one():
    a, _, seen, keep = attention_case(n=12)
    logits = 0.7 * a[:, None, :, None, 0] * a[:, None, None, :, 0] + torch.randn(2, 2, 12, 1)
    pattern = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    allowed = seen & keep[:, None] & keep[..., None]
    got, moved = fitted(pattern, a, allowed), fitted(pattern, a + 3.0, allowed)
    np.testing.assert_allclose(got.slope[:, 0], 0.7, rtol=1e-3)
    np.testing.assert_allclose(got.correlation[:, 0], 1.0, rtol=1e-3)
    np.testing.assert_allclose(moved.slope, got.slope, rtol=2e-2, atol=1e-3)


def test_a_constant_activation_has_no_slope():
    a, logits, seen, keep = attention_case()
    a[..., 1] = 2.0
    pattern = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    got = fitted(pattern, a, seen & keep[:, None] & keep[..., None])
    assert np.isnan(got.slope[:, 1]).all()
    assert np.isfinite(got.slope[:, 0]).all()


def test_mass_is_what_a_loop_over_queries_finds():
    a, logits, seen, keep = attention_case(n=9)
    pattern = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    top = top_tokens(a, keep, torch.tensor([0.25, 0.5], dtype=torch.float64))
    got = attention_mass(pattern, a, top, keep, seen)
    for b in range(2):
        n = int(keep[b].sum())
        for c, delta in enumerate((0.25, 0.5)):
            best = sorted(np.flatnonzero(keep[b]), key=lambda t: -float(a[b, t, c]))
            best = set(best[: math.ceil(delta * n)])
            assert best == set(top[b, :, c].nonzero().flatten().tolist())
            for h in range(2):
                kept, whole, count = np.zeros(2), np.zeros(2), np.zeros(2)
                for i in np.flatnonzero(keep[b]):
                    keys = [j for j in range(i + 1) if keep[b, j]]
                    t = len(best & set(keys))
                    if not 0 < t < len(keys):
                        continue
                    s = int(a[b, i, c] <= 0)
                    row = pattern[b, h, i].double().numpy()
                    on = sum(row[j] for j in keys if j in best)
                    kept[s] += on / sum(row[j] for j in keys) - t / len(keys)
                    whole[s] += on - t / (i + 1)
                    count[s] += 1
                np.testing.assert_allclose(got.kept[b, h, c], kept, atol=1e-5)
                np.testing.assert_allclose(got.whole[b, h, c], whole, atol=1e-5)
                np.testing.assert_array_equal(got.queries[b, c], count)
