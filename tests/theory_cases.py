"""Starts and models shared by the tests of the theory, and a step by explicit loops."""

import math

import numpy as np
from ideal_model.dynamics import IdealModel

ONE = IdealModel((0.8,), (0.3,))
CAUSAL = IdealModel((0.8,), (0.3,), causal=True)
TWO = IdealModel((0.8, 0.3), (0.3, 0.5))


def skewed(seed=0, n=400, spread=0.5):
    """A centred gamma law of shape 9, skewness about .67."""
    x = np.random.default_rng(seed).gamma(9, size=n)
    return spread * (x - x.mean()) / x.std()


def step_by_loops(a, model):
    after = []
    for i in range(len(a)):
        seen = range(i + 1) if model.causal else range(len(a))
        total = a[i]
        for beta, gamma in zip(model.beta, model.gamma, strict=True):
            weights = [math.exp(beta * a[i] * a[j]) for j in seen]
            read = sum(w * a[j] for w, j in zip(weights, seen, strict=True))
            total += gamma * read / sum(weights)
        after.append(total)
    return np.array(after)


def tilted_variance(a, t):
    weights = np.exp(t * a) / np.exp(t * a).sum()
    return float(weights @ a**2 - (weights @ a) ** 2)


def measured(report, name, direction="fixed"):
    """What a report measured of concept "c", by layer."""
    return report.quantity(name, "c", direction).measured.estimate
