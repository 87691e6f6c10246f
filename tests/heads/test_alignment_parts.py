"""The parts of alignment against slow oracles: rotary, max-T, power, logits, mass."""

import math

import numpy as np
import pytest
import tiny
import torch

from sa_plugin.concepts import unit
from sa_plugin.heads import (
    amplifying,
    attention_mass,
    by_the_others,
    critical_value,
    describe_blocks,
    false_share,
    head_sizes,
    is_near,
    logit_moments,
    mean_turn,
    meeting,
    nothing_near,
    offsets_seen,
    ov_form,
    place_terms,
    planted_sizes,
    planted_z,
    profile_offsets,
    qk_form,
    slopes,
    smallest_called,
    step_down,
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


def test_values_are_standardised_by_the_others():
    x = np.random.default_rng(0).standard_t(4, size=(9, 3, 2))
    fast = by_the_others(x.astype(np.float32))
    for i in range(9):
        others = np.delete(x, i, axis=0)
        np.testing.assert_allclose(fast[i], (x[i] - others.mean(0)) / others.std(0, ddof=1), rtol=1e-4)
    assert (by_the_others(np.ones((9, 2))) == 0).all()


def test_a_form_that_is_not_above_zero_does_not_stand_out():
    forms = np.array([[-0.004, 0.3, -0.5], [-0.4, -0.2, -0.1], [-0.5, -0.3, -0.2], [-0.6, -0.1, -0.3]])
    z = by_the_others(forms)
    assert z[0, 0] > 4  # High above a null that lies below zero, and yet no amplification.
    assert (amplifying(z, forms)[0] == [0, z[0, 1], z[0, 2]]).all()
    assert z[0, 1] > 0 > z[0, 2]


def stepped(found, draws):
    """Max-T by hand: one cell and one draw after the other."""
    order, p, before = sorted(range(len(found)), key=lambda c: -found[c]), {}, 0.0
    for k, cell in enumerate(order):
        reached = sum(max(draw[c] for c in order[k:]) >= found[cell] for draw in draws)
        before = p[cell] = max(before, (1 + reached) / (len(draws) + 1))
    return [p[c] for c in range(len(found))]


@pytest.mark.parametrize("seed", range(5))
def test_max_t_is_a_loop_over_draws_and_cells(seed):
    rng = np.random.default_rng(seed)
    # Rounded, so that cells and draws tie; a few cells stand out.
    draws, found = rng.normal(size=(60, 12)).round(1), rng.normal(size=12).round(1)
    found[:3] += 3
    np.testing.assert_allclose(step_down(found, draws), stepped(found, draws))
    untested = np.append(found, -np.inf), np.column_stack([draws, np.full(60, -np.inf)])
    p = step_down(*untested)
    np.testing.assert_allclose(p[:-1], stepped(found, draws))
    assert np.isnan(p[-1])


@pytest.mark.parametrize("level", [0.05, 0.1, 0.5])
def test_any_call_is_a_largest_value_beyond_the_critical_one(level):
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(99, 8)).round(2)
    critical = critical_value(draws.max(1), level)
    for found in rng.normal(1.5, 1, size=(200, 8)).round(2):
        assert (step_down(found, draws).min() <= level) == (found.max() > critical)


@pytest.mark.parametrize("draws", [19, 40, 99])
def test_without_meaning_any_call_keeps_the_level_for_every_number_of_draws(draws):
    """Cells that depend on one another, of unlike and heavy tails; found and drawn alike."""
    rng = np.random.default_rng(draws)
    made = rng.standard_t(3, size=(2500, draws + 1, 6)) * np.array([1, 5, 0.1, 1, 1, 1])
    made[..., 1:] += made[..., :1] ** 2
    # One form lies below zero whatever the labels, and never amplifies.
    made[..., 4] -= 40
    forms = [side.swapaxes(0, 1) for side in (made[..., :3], made[..., 3:])]
    both = [amplifying(by_the_others(side), side) for side in forms]
    t = np.minimum(*both)
    called = t[0].max(-1) > [critical_value(one, 0.05) for one in t[1:].max(-1).T]
    # Exact where (draws + 1) / 20 is whole; standard error .0035.
    assert called.mean() <= 0.05 + 0.01
    assert called.mean() >= np.floor(0.05 * (draws + 1)) / (draws + 1) - 0.01


@pytest.mark.parametrize("heavy", [False, True])
def test_draws_that_end_early_add_no_call(heavy):
    """Rounds of 40, four at most, against 160 at once in worlds where labels mean nothing."""
    rng = np.random.default_rng(heavy)
    worlds, draws, rounds, level = 1200, 40, 4, 0.05
    made = (
        rng.standard_t(3, (2, draws * rounds + 1, worlds, 3))
        if heavy
        else rng.normal(size=(2, draws * rounds + 1, worlds, 3))
    )
    made[:, :, :, 1] += made[:, :, :, 0]

    def found_and_drawn(n):
        """The largest T of the found forms and of n draws, standardised among these alone."""
        t = np.minimum(*(amplifying(by_the_others(side[: n + 1]), side[: n + 1]) for side in made)).max(-1)
        return t[0], t[1:].T

    found, drawn = found_and_drawn(draws * rounds)
    at_once = found > [critical_value(one, level) for one in drawn]
    going = np.ones(worlds, bool)
    ended = []
    for k in range(1, rounds):
        found, drawn = found_and_drawn(draws * k)
        going &= [not nothing_near(f, d, level) for f, d in zip(found, drawn, strict=True)]
        ended.append(1 - going.mean())
    sequential = going & at_once
    # No call is added, so the level of all draws at once is kept; few are lost, and most worlds end early.
    assert not (sequential & ~at_once).any()
    assert sequential.mean() <= level + 3 * np.sqrt(level * (1 - level) / worlds)
    assert sequential.sum() >= 0.9 * at_once.sum()
    assert ended[0] > 0.7


def test_near_is_two_standard_errors_of_a_p():
    p = np.array([0.001, 0.037, 0.038, 0.05, 0.065, 0.066, np.nan])
    assert is_near(p, 999, 0.05).tolist() == [False, False, True, True, True, False, False]
    largest = np.linspace(0, 1, 1000)
    for found, ends in ((0.95, False), (0.5, True), (0.999, False), (0.94, False), (0.93, True)):
        assert nothing_near(found, largest, 0.05) == ends


def test_the_false_share_is_counted():
    rng = np.random.default_rng(2)
    z_ov, z_qk = rng.normal(0.8, 2, size=(2, 40))
    drawn = rng.normal(size=(2, 300, 40))
    share = false_share(z_ov, z_qk, *(z[z >= 2] for z in drawn), 300 * 40)
    for cell, cut in enumerate(np.minimum(z_ov, z_qk)):
        expected = (z_ov >= cut).sum() * (drawn[1] >= cut).mean() + (z_qk >= cut).sum() * (
            drawn[0] >= cut
        ).mean()
        listed = (np.minimum(z_ov, z_qk) >= cut).sum()
        assert share[cell] == pytest.approx(min(1.0, expected / listed) if cut >= 2 else 1.0)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_planted_head_is_one_more_dimension_of_its_maps(architecture):
    """Closed form against the forms of maps that hold the planted dimension, rotary or not."""
    host = tiny.host(architecture)
    (block,) = describe_blocks(host, (0,), {0: 3, 1: 2, 4: 1})
    generator = torch.Generator().manual_seed(2)
    v_in, v_out, *drawn = unit(torch.randn(42, 1, tiny.D_MODEL, generator=generator))
    drawn_in, drawn_out = torch.stack(drawn[:20]), torch.stack(drawn[20:])
    at = head_sizes(block, v_in, v_out)

    def forms(maps, turn):
        by_draw = [
            (ov_form(maps, a, b), qk_form(maps, a, turn)) for a, b in zip(drawn_in, drawn_out, strict=True)
        ]
        return [torch.stack(side).mT.double().numpy() for side in zip(*by_draw, strict=True)]

    met = meeting(v_in, v_out, drawn_in, drawn_out)
    z = planted_z(at, tuple(forms(block.maps, block.turn)), met)
    for cosine in (0.1, 0.4):
        t, s = planted_sizes(at, cosine)
        for h in range(tiny.N_HEADS):
            maps, more = block.maps, {}
            for name, size in (("value", t[h, 0]), ("query", s[h, 0] / maps.scale), ("key", 1.0)):
                more[name] = torch.cat(
                    [getattr(maps, name), float(size) * v_in.T.expand(tiny.N_HEADS, -1, 1)], 2
                )
            written = v_out.expand(tiny.N_HEADS, 1, -1)
            again = maps._replace(**more, output=torch.cat([maps.output, written], 1))
            ov, qk = ov_form(again, v_in, v_out)[0, h], qk_form(again, v_in, block.turn)[0, h]
            # Its cosines, were the head's own forms along the direction nothing.
            assert t[h, 0] / np.hypot(at.across[h, 0], t[h, 0]) == pytest.approx(cosine)
            lengths = [np.sqrt(length[h, 0] + s[h, 0]) for length in (at.query, at.key)]
            assert s[h, 0] / np.prod(lengths) == pytest.approx(cosine)
            assert float(ov) == pytest.approx(at.ov[h, 0] + t[h, 0], abs=1e-4)
            assert float(qk) == pytest.approx(at.qk[h, 0] + s[h, 0], abs=1e-4)
            sides = zip((ov, qk), forms(again, block.turn), strict=True)
            slow = [
                min((float(x) - d[:, h, 0].mean()) / d[:, h, 0].std(ddof=1), np.inf if x > 0 else 0)
                for x, d in sides
            ]
            assert z[round(100 * cosine) - 1, h, 0] == pytest.approx(min(slow), rel=2e-3, abs=2e-3)
    assert smallest_called(np.array([[0.0, 1.0], [3.0, 1.0]]), 2.0) == pytest.approx(
        [0.02, np.nan], nan_ok=True
    )


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
