"""Promised rates are kept where the truth is known, and pooled samples break theirs."""

import importlib

import numpy as np
import pytest


@pytest.fixture(scope="module")
def simulation():
    return importlib.import_module("promise_simulation")


@pytest.mark.parametrize("tie", [0.7, -0.7])
@pytest.mark.parametrize("n", [20, 60])
def test_promises_are_kept_and_pooled_samples_are_not(simulation, n, tie):
    rows = simulation.simulate(n, tie, 150)
    assert all(row.kept() for name, row in rows.items() if len(row.rates) and not name.startswith("pooled"))
    # Refused, or not, as the promise says.
    assert bool(len(rows["document, confidence .9"].rates)) == (n >= 45)
    assert bool(len(rows["document, confidence .95"].rates)) == (n >= 59)
    assert not rows["pooled samples, asked of documents"].kept()
    assert rows["pooled samples, asked of samples"].kept() == (tie > 0)
    # On average it is kept, and by about half of the thresholds it is not.
    assert 0.2 < rows["document"].above < 0.6


def test_the_truth_is_that_of_drawn_documents(simulation):
    tau, tie, rng = 2.0, 0.7, np.random.default_rng(0)
    drawn = simulation.draw(20_000, tie, rng)
    _, length = np.unique(drawn.document, return_counts=True)
    above = drawn.score > tau
    by_document = np.bincount(drawn.document, above) / length
    fired = np.bincount(drawn.home, drawn.tops > tau) / np.bincount(drawn.home)
    any_alarm = drawn.maxima > tau
    for unit, slow in (
        ("tokens", by_document),
        ("sample", fired),
        ("document", any_alarm),
        ("episodes", any_alarm / length),
    ):
        error = slow.std() / np.sqrt(len(slow))
        assert abs(simulation.true_rate(unit, tau, tie) - slow.mean()) < 4 * error
