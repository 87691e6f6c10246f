"""Per-sample statistics against plain loops."""

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest

from sa_plugin.detection import GRIDS, STATISTICS, random_rows, statistic_of

LENGTHS = (1, 2, 9, 10, 11, 20, 21, 30, 7)
BOUNDS = np.concatenate([[0], np.cumsum(LENGTHS)])


def softmax_pool(s, t):
    weights = [math.exp((x - max(s)) / t) for x in s]
    return math.fsum(w * x for w, x in zip(weights, s, strict=True)) / math.fsum(weights)


def moving_average(s, share):
    found = [s[0]]
    for x in s[1:]:
        found.append(share * x + (1 - share) * found[-1])
    return max(found)


def windows(s, width):
    width = min(int(width), len(s))
    return [s[t : t + width] for t in range(len(s) - width + 1)]


def trimmed(s, k):
    rest = sorted(s, reverse=True)[1 : 1 + int(k)] or s
    return math.fsum(rest) / len(rest)


LOOPS = {
    "MaxTok": max,
    "MeanTok": lambda s: math.fsum(s) / len(s),
    "LastTok": lambda s: s[-1],
    "Top10%": lambda s: math.fsum(sorted(s)[-math.ceil(len(s) / 10) :]) / math.ceil(len(s) / 10),
    "softmax pool": softmax_pool,
    "log-sum-exp": lambda s, t: t * math.log(math.fsum(math.exp(x / t) for x in s) / len(s)),
    "top-k mean": lambda s, k: math.fsum(sorted(s)[-int(k) :]) / min(int(k), len(s)),
    "trimmed top-k": trimmed,
    "softplus pool": lambda s, place, t: math.fsum(math.log(1 + math.exp((x - place) / t)) for x in s),
    "max EMA": moving_average,
    "max rolling mean": lambda s, w: max(math.fsum(part) / len(part) for part in windows(s, w)),
    "k in a window": lambda s, k, w: max(
        sorted(part, reverse=True)[min(int(k), len(part)) - 1] for part in windows(s, w)
    ),
    "max - median": lambda s: max(s) - statistics.median(s),
}
ORDERED = {"LastTok", "max EMA", "max rolling mean", "k in a window"}
PARAMETERS = {name: grid.candidates for name, grid in GRIDS.items()}


@pytest.fixture(scope="module")
def scores():
    return np.random.default_rng(0).normal(size=(BOUNDS[-1], 3, 4)).astype(np.float32)


@pytest.mark.parametrize("name", LOOPS)
def test_statistics_equal_plain_loops(scores, name):
    for numbers in PARAMETERS.get(name, ((),)):
        fast = STATISTICS[name](scores, BOUNDS, *numbers)
        assert fast.dtype == np.float32
        for n, layer, unit in np.ndindex(fast.shape):
            own = [float(v) for v in scores[BOUNDS[n] : BOUNDS[n + 1], layer, unit]]
            # Sums in another order differ in the last bit of float64, rounding to float32 in its own.
            assert fast[n, layer, unit] == pytest.approx(LOOPS[name](own, *numbers), rel=1.2e-7, abs=1e-9)


def test_every_statistic_has_its_loop():
    assert {*LOOPS, "length-only"} == STATISTICS.keys()
    assert GRIDS.keys() <= STATISTICS.keys()


@pytest.mark.parametrize("name", GRIDS)
def test_columns_may_have_parameters_of_their_own(scores, name):
    """One number for each layer and unit gives what each number gives alone."""
    rng = np.random.default_rng(2)
    numbers = np.array(PARAMETERS[name])
    which = rng.integers(len(numbers), size=scores.shape[1:])
    mixed = STATISTICS[name](scores, BOUNDS, *np.moveaxis(numbers[which], -1, 0))
    for k, candidate in enumerate(numbers.tolist()):
        alone = STATISTICS[name](scores, BOUNDS, *candidate)
        np.testing.assert_array_equal(mixed[:, which == k], alone[:, which == k])


def test_soft_poolings_end_at_the_mean_and_the_maximum(scores):
    highest, mean = (STATISTICS[name](scores, BOUNDS) for name in ("MaxTok", "MeanTok"))
    for name in ("softmax pool", "log-sum-exp"):
        pool = STATISTICS[name]
        np.testing.assert_allclose(pool(scores, BOUNDS, 1e-4), highest, atol=1e-3)
        np.testing.assert_allclose(pool(scores, BOUNDS, 1e4), mean, atol=1e-3)
        assert np.isfinite(pool(1e4 * scores, BOUNDS, 1e-6)).all()
    for name in ("max EMA", "max rolling mean", "top-k mean"):
        np.testing.assert_array_equal(STATISTICS[name](scores, BOUNDS, 1.0), highest)


def test_length_counts_kept_tokens(scores):
    assert STATISTICS["length-only"](scores, BOUNDS).ravel().tolist() == list(LENGTHS)


@pytest.mark.parametrize("name", sorted(STATISTICS.keys() - ORDERED))
def test_token_order_changes_nothing(scores, name):
    rng = np.random.default_rng(1)
    pairs = pairwise(BOUNDS)
    order = np.concatenate([a + rng.permutation(b - a) for a, b in pairs])
    numbers = PARAMETERS.get(name, ((),))[0]
    before, after = (STATISTICS[name](one, BOUNDS, *numbers) for one in (scores, scores[order]))
    np.testing.assert_array_equal(after, before)


def test_random_rows_lie_in_their_sample_and_follow_the_seed():
    names = [f"d\n{k}" for k in range(len(BOUNDS) - 1)]
    draws = np.stack([random_rows(BOUNDS, names, 3, k) for k in range(200)])
    assert (draws >= BOUNDS[:-1]).all()
    assert (draws < BOUNDS[1:]).all()
    np.testing.assert_array_equal(draws[5], random_rows(BOUNDS, names, 3, 5))
    assert (draws[0] != draws[1]).any()
    assert (draws != np.stack([random_rows(BOUNDS, names, 4, k) for k in range(200)])).any()
    # Every token of a short sample is drawn.
    assert len(set(draws[:, 1].tolist())) == 2


def test_random_rows_do_not_know_the_other_samples():
    names = [f"d\n{k}" for k in range(len(BOUNDS) - 1)]
    lengths, order = np.diff(BOUNDS), np.random.default_rng(0).permutation(len(names))
    moved = np.concatenate([[0], np.cumsum(lengths[order])])
    place = random_rows(BOUNDS, names, 3, 7) - BOUNDS[:-1]
    found = random_rows(moved, [names[n] for n in order], 3, 7) - moved[:-1]
    np.testing.assert_array_equal(found, place[order])


def test_unknown_statistic_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'MeanTok'"):
        statistic_of("MeanTokens")
