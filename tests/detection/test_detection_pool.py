"""Per-sample statistics against plain loops."""

import math
from itertools import pairwise

import numpy as np
import pytest

from sa_plugin.detection import STATISTICS, random_rows, statistic_of

LENGTHS = (1, 2, 9, 10, 11, 20, 21, 30, 7)
BOUNDS = np.concatenate([[0], np.cumsum(LENGTHS)])

LOOPS = {
    "MaxTok": max,
    "MeanTok": lambda s: math.fsum(s) / len(s),
    "LastTok": lambda s: s[-1],
    "Top10%": lambda s: math.fsum(sorted(s)[-math.ceil(len(s) / 10) :]) / math.ceil(len(s) / 10),
}


@pytest.fixture(scope="module")
def scores():
    return np.random.default_rng(0).normal(size=(BOUNDS[-1], 3, 4)).astype(np.float32)


@pytest.mark.parametrize("name", LOOPS)
def test_statistics_equal_plain_loops(scores, name):
    fast = STATISTICS[name](scores, BOUNDS)
    assert fast.dtype == np.float32
    for n, layer, unit in np.ndindex(fast.shape):
        own = [float(v) for v in scores[BOUNDS[n] : BOUNDS[n + 1], layer, unit]]
        assert fast[n, layer, unit] == np.float32(LOOPS[name](own))


def test_length_counts_kept_tokens(scores):
    assert STATISTICS["length-only"](scores, BOUNDS).ravel().tolist() == list(LENGTHS)


@pytest.mark.parametrize("name", ["MaxTok", "MeanTok", "Top10%", "length-only"])
def test_token_order_changes_nothing(scores, name):
    rng = np.random.default_rng(1)
    pairs = pairwise(BOUNDS)
    order = np.concatenate([a + rng.permutation(b - a) for a, b in pairs])
    np.testing.assert_array_equal(STATISTICS[name](scores[order], BOUNDS), STATISTICS[name](scores, BOUNDS))


def test_random_rows_lie_in_their_sample_and_follow_the_seed():
    draws = np.stack([random_rows(BOUNDS, 3, k) for k in range(200)])
    assert (draws >= BOUNDS[:-1]).all()
    assert (draws < BOUNDS[1:]).all()
    np.testing.assert_array_equal(draws[5], random_rows(BOUNDS, 3, 5))
    assert (draws[0] != draws[1]).any()
    # Every token of a short sample is drawn.
    assert len(set(draws[:, 1].tolist())) == 2


def test_unknown_statistic_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'MeanTok'"):
        statistic_of("MeanTokens")
