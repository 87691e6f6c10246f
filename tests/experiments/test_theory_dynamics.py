"""The idealised model against explicit loops, its trial run, and what it refuses."""

import numpy as np
import pytest
from ideal_model.dynamics import IdealModel, attention, simulate, step
from ideal_model.gaps import check_gaps, check_prefix_gaps
from ideal_model.predictions import check_layers, concentration, gap_factors, skew_growth, tail_spread
from theory_cases import CAUSAL, ONE, TWO, skewed, step_by_loops

from sa_plugin.statistics import skewness
from sa_plugin.theory import layer_slopes


@pytest.fixture(scope="module")
def checks():
    """The trial of the notes: 400 tokens, beta .8, gamma .3, 14 layers."""
    return check_layers(simulate(skewed(), ONE, layers=14))


# The simulation


@pytest.mark.parametrize("model", [ONE, CAUSAL, TWO, IdealModel((0.8, 0.3), (0.3, 0.5), True)])
def test_a_step_is_its_definition(model):
    a = np.random.default_rng(1).normal(size=23)
    np.testing.assert_allclose(step(a, model), step_by_loops(a, model), rtol=1e-12)


def test_layers_are_steps():
    a = skewed(n=30)
    trajectory = simulate(a, TWO, layers=4)
    np.testing.assert_array_equal(trajectory.activations[0], a)
    for layer in range(4):
        a = step_by_loops(a, TWO)
        np.testing.assert_allclose(trajectory.activations[layer + 1], a, rtol=1e-11)


def test_token_order_changes_nothing_without_a_mask_and_something_with_one():
    a = skewed(n=60)
    order = np.random.default_rng(0).permutation(60)
    for model, same in [(ONE, True), (TWO, True), (CAUSAL, False)]:
        permuted = simulate(a[order], model, 5).activations
        assert np.allclose(permuted, simulate(a, model, 5).activations[:, order]) is same


def test_the_mirror_image_stays_one():
    a = skewed(n=60)
    np.testing.assert_allclose(simulate(-a, TWO, 6).activations, -simulate(a, TWO, 6).activations, rtol=1e-12)


def test_equal_heads_add_their_writes():
    a = skewed(n=40)
    two = IdealModel((0.8, 0.8), (0.1, 0.2))
    np.testing.assert_allclose(step(a, two), step(a, ONE), rtol=1e-12)


def test_errors_depend_on_the_seed_alone_and_stay_in_bounds():
    a = skewed(n=50)
    noisy = IdealModel((0.8,), (0.3,), write_error=0.01)
    one, other = simulate(a, noisy, 3, seed=1), simulate(a, noisy, 3, seed=2)
    np.testing.assert_array_equal(one.activations, simulate(a, noisy, 3, seed=1).activations)
    assert not np.array_equal(one.activations, other.activations)
    off = np.abs(one.activations[1] - step(a, ONE))
    assert 0 < off.max() <= 0.01


def test_large_activations_do_not_overflow():
    last = simulate(skewed(spread=50.0), ONE, 60).activations[-1]
    assert np.isfinite(last).all()


# The trial of the notes


def test_no_gap_shrinks(checks):
    assert min(c.smallest_gap_ratio for c in checks) >= 1 - 1e-6


def test_skew_rises_to_layer_7_and_then_falls(checks):
    skews = [c.skew for c in checks]
    assert int(np.argmax(skews)) == 7
    assert skews[0] == pytest.approx(0.62, abs=0.01)
    assert skews[7] == pytest.approx(1.38, abs=0.01)
    assert skews[13] == pytest.approx(-0.14, abs=0.01)
    assert all(c.skew_change > 0 for c in checks[:7])
    assert all(c.skew_change < 0 for c in checks[7:])


@pytest.mark.parametrize("seed", range(1, 6))
def test_skew_rises_and_falls_whatever_the_start(seed):
    skews = [skewness(a) for a in simulate(skewed(seed), ONE, 14).activations]
    peak = int(np.argmax(skews))
    assert 5 <= peak <= 8
    assert skews[peak] > 1.3 * skews[0]
    assert skews[13] < skews[0] - 0.4


def test_attention_goes_to_the_top_token(checks):
    on_top, entropy = [c.on_top for c in checks], [c.entropy for c in checks]
    assert (np.diff(on_top) > 0).all()
    assert (np.diff(entropy) < 0).all()
    assert on_top[0] == pytest.approx(0.005, abs=0.001)
    assert on_top[13] == pytest.approx(0.78, abs=0.01)
    assert entropy[0] == pytest.approx(5.97, abs=0.01)
    assert entropy[13] == pytest.approx(1.70, abs=0.01)


def test_the_tail_equalises_at_its_rate_late_and_not_early(checks):
    assert all(c.equalisation_predicted == pytest.approx(1 / 1.3) for c in checks)
    for check in checks[9:]:
        assert check.equalisation == pytest.approx(1 / 1.3, abs=2e-3)
    assert all(c.equalisation > 0.98 for c in checks[:6])


def test_predicted_skew_growth_is_good_early_and_void_late(checks):
    for check in checks[:5]:
        assert check.skew_change == pytest.approx(check.skew_predicted, rel=0.3)
    assert checks[8].skew_predicted > 0 > checks[8].skew_change


# Boundary


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: IdealModel((0.8,), (0.3, 0.1)), "1 beta and 2 gamma"),
        (lambda: IdealModel((), ()), "give one of each a head"),
        (lambda: IdealModel((0.8, -1.0), (0.3, 0.1)), r"beta\[1\] is -1.0: an aligned head"),
        (lambda: IdealModel((0.8,), (float("nan"),)), r"gamma\[0\] is nan"),
        (lambda: IdealModel((0.8,), (0.3,), False, -0.1), "logit_error is -0.1"),
        (lambda: simulate(skewed(), ONE, 0), "layers is 0: give at least 1"),
        (lambda: step(np.array([1.0]), ONE), "1 activations, 0 of them not finite"),
        (lambda: step(np.array([1.0, np.nan]), ONE), "2 activations, 1 of them not finite"),
        (lambda: step(skewed(), IdealModel((0.8,), (0.3,), False, 0.1)), "give a generator"),
        (lambda: gap_factors(skewed(), CAUSAL), "check_prefix_gaps"),
        (lambda: skew_growth(skewed(), CAUSAL), "the model is causal"),
        (lambda: check_layers(simulate(skewed(n=9), CAUSAL, 2)), "the model is causal"),
        (lambda: tail_spread(skewed(), 0.0), r"tail 0.0 must lie in \(0, 1\]"),
        (
            lambda: check_prefix_gaps(skewed(n=4), attention(skewed(n=4), ONE), np.ones((1, 4))),
            "attends to later tokens",
        ),
        (lambda: layer_slopes(np.ones(2), np.ones(2), noise_ratio=0.0), "noise_ratio is 0.0"),
        (lambda: layer_slopes(np.ones(2), np.array([1, np.inf])), "must be finite"),
    ],
)
def test_refusals_say_what_and_why(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_results_print_one_line(checks):
    trajectory = simulate(skewed(n=20), IdealModel((0.8, 0.3), (0.3, 0.5), True, 0.1, 0.2), 2)
    assert repr(trajectory) == (
        "Trajectory: 20 tokens through 2 layers of IdealModel: 2 heads, beta 0.8, 0.3, "
        "gamma 0.3, 0.5, causal, errors 0.1, 0.2"
    )
    a = skewed(n=20)
    results = [
        checks[0],
        check_gaps(a, step(a, ONE)),
        concentration(attention(a, ONE), a),
        layer_slopes(a, step(a, ONE)),
    ]
    for result in results:
        assert "\n" not in repr(result)
        assert repr(result).startswith(type(result).__name__)
