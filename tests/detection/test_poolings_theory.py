"""Which pooling wins where: the theory's order on worlds whose scores are drawn.

A sample has n tokens, m of them in the concept and d higher; all tokens of a sample share an effect of
variance rho, noise is normal or Student's with 4 degrees of freedom, of variance 1 in all. The best any
test can do with independent normal noise is the likelihood ratio, the softplus pool at its own two
parameters.
"""

import numpy as np
import pytest

from sa_plugin.detection import STATISTICS
from sa_plugin.statistics import auroc

SAMPLES = 1000


def areas(n, m, d, *, rho=0.0, student=False, seed=0, k=None):
    """AUROC of some poolings, and of the likelihood ratio."""
    rng = np.random.default_rng([seed, n, m])
    labels = np.arange(2 * SAMPLES) < SAMPLES
    noise = rng.standard_normal((2 * SAMPLES, n))
    if student:
        # Variance of Student's with 4 degrees of freedom: 2.
        noise /= np.sqrt(rng.chisquare(4, noise.shape) / 4) * np.sqrt(2)
    scores = np.sqrt(1 - rho) * noise + np.sqrt(rho) * rng.standard_normal((2 * SAMPLES, 1))
    scores[:SAMPLES, :m] += d
    share = m / n
    place = d / 2 + np.log((1 - share) / share) / d
    numbers = {"softplus pool": (place, 1 / d), "top-k mean": (float(k or m),)}
    rows = scores.astype(np.float32).reshape(-1, 1, 1)
    bounds = n * np.arange(2 * SAMPLES + 1)
    names = ("MaxTok", "MeanTok", "softplus pool", "top-k mean", "max - median")
    pooled = (STATISTICS[name](rows, bounds, *numbers.get(name, ()))[:, 0, 0] for name in names)
    return {name: float(auroc(one, labels)) for name, one in zip(names, pooled, strict=True)}


@pytest.mark.parametrize(("n", "m", "d"), [(64, 1, 3.0), (64, 2, 3.0), (512, 1, 3.5), (512, 4, 3.5)])
def test_few_tokens_in_normal_noise_need_the_maximum(n, m, d):
    """m <= n^(1/4): the maximum is within .02 of the bound, and the mean far below."""
    assert m <= n**0.25
    found = areas(n, m, d)
    assert found["MaxTok"] > found["softplus pool"] - 0.02
    assert found["MeanTok"] < found["MaxTok"] - 0.1


@pytest.mark.parametrize(("n", "m", "d"), [(64, 16, 1.0), (512, 64, 1.0), (512, 100, 0.8)])
def test_many_tokens_without_a_document_effect_need_the_mean(n, m, d):
    """m > n^(1/2): the mean is near the bound and the maximum is not."""
    assert m > n**0.5
    found = areas(n, m, d)
    assert found["MeanTok"] > found["MaxTok"] + 0.02
    assert found["MeanTok"] > found["softplus pool"] - 0.03


@pytest.mark.parametrize(("n", "m", "d"), [(64, 8, 2.0), (512, 8, 2.5), (512, 32, 2.0), (512, 100, 1.5)])
def test_a_document_effect_of_a_tenth_of_the_variance_ends_the_mean(n, m, d):
    """m < n / 4: the same mean that wins without the effect loses with it, and max - median gains."""
    assert m < n / 4
    alone, shared = areas(n, m, d), areas(n, m, d, rho=0.1)
    assert shared["MeanTok"] < shared["MaxTok"]
    assert alone["MeanTok"] - shared["MeanTok"] > alone["MaxTok"] - shared["MaxTok"] + 0.05
    assert shared["max - median"] > shared["MaxTok"] - 0.02


def test_heavy_tails_need_several_tokens():
    """Student-4 noise, 512 tokens, 8 in the concept: the mean of the top k beats the maximum by .1."""
    found = areas(512, 8, 3.0, student=True)
    assert found["top-k mean"] > found["MaxTok"] + 0.1
