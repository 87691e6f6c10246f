"""Slopes of one layer on another: definitions, dilution, offsets."""

import math

import numpy as np
import pytest

from sa_plugin.theory import layer_slopes


def test_slopes_are_their_definitions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = 0.7 * x + rng.normal(size=200) + 5
    found = layer_slopes(x, y)
    assert found.ols == pytest.approx(np.polyfit(x, y, 1)[0])
    axis = np.linalg.eigh(np.cov(x, y))[1][:, -1]
    assert found.orthogonal == pytest.approx(axis[1] / axis[0])
    assert found.deviation_ratio == pytest.approx(y.std() / x.std())
    assert layer_slopes(x, -y).orthogonal == pytest.approx(-found.orthogonal)
    # Deming's ratio is a change of unit.
    scaled = layer_slopes(x, y, noise_ratio=4.0).orthogonal
    assert scaled == pytest.approx(2 * layer_slopes(x, y / 2).orthogonal)


def test_ols_is_diluted_and_the_others_are_right_under_their_noise():
    rng = np.random.default_rng(1)
    signal = rng.normal(size=100_000)
    error, other = rng.normal(scale=0.6, size=(2, 100_000))
    equal = layer_slopes(signal + error, 1.2 * signal + other)
    assert equal.ols == pytest.approx(0.88, abs=0.01)
    assert equal.orthogonal == pytest.approx(1.2, abs=0.01)
    scaled = layer_slopes(signal + error, 1.2 * (signal + other))
    assert scaled.deviation_ratio == pytest.approx(1.2, abs=0.01)
    assert scaled.orthogonal > 1.22
    told = layer_slopes(signal + error, 1.2 * (signal + other), noise_ratio=1.44)
    assert told.orthogonal == pytest.approx(1.2, abs=0.01)


def test_without_noise_all_slopes_agree_whatever_the_offsets_of_samples():
    rng = np.random.default_rng(2)
    x, sample = rng.normal(size=90), np.repeat([7, 3, 5], 30)
    found = layer_slopes(x + sample, 1.3 * x - 20 * sample, sample=sample)
    for slope in (found.ols, found.orthogonal, found.deviation_ratio):
        assert slope == pytest.approx(1.3)
    assert (found.n_tokens, found.n_samples) == (90, 3)
    assert math.isnan(layer_slopes(np.ones(5), rng.normal(size=5)).orthogonal)
