"""How often intervals hold on the product's own path: `docs/experiments/interval_coverage.py`, small."""

import numpy as np
import pytest
from interval_coverage import families, simulate

REPLICATES = 40
# What is known to hold less: the overlap's bias is in no interval, so high a quantile is no smooth statistic,
# a rate of rare events is skewed.
LESS = {
    "false alarms": 0.93,
    "overlap": 0.92,
    "quantile 0.995 of tokens": 0.87,
    "quantile 0.5 of tokens": 0.92,
}


@pytest.mark.slow
@pytest.mark.parametrize("documents", [3, 5, 10, 20, 50])
def test_intervals_hold_and_true_zeros_are_seldom_starred(documents):
    for name, tallies in simulate(documents, REPLICATES, before=False, draws=100).items():
        one = tallies["after"]
        if name == "weighted F1, always-positive" or not one.there:
            continue
        expected = LESS.get(name, 0.95)
        # Three and a half standard errors: 24 statistics at five sizes.
        least = expected - 3.5 * np.sqrt(expected * (1 - expected) / one.there)
        assert one.held / one.there >= least, (name, one)
        if "truly 0" in name:
            assert one.starred == one.there - one.held


@pytest.mark.slow
def test_a_table_of_equal_methods_is_seldom_starred_as_a_family():
    cell, anywhere, jointly = families(10, REPLICATES)
    assert jointly <= 0.05 + 3.5 * np.sqrt(0.05 * 0.95 / REPLICATES)
    assert cell <= anywhere
    assert jointly <= anywhere
