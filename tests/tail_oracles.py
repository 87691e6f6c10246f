"""What the tail law must say where scores are normal: closed forms, and worlds to measure them on.

A sample has n tokens, m of them d higher; all its tokens share an effect of variance rho, in 1 altogether
(a = sqrt(1 - rho)); kappa is added to the others of positive samples.

    mean     Phi((d f + kappa (1 - f)) / sqrt(2 (rho + (1 - rho) / n))),  f = m / n
    max      E_D integral F_neg(t + D) dF_pos(t),  D ~ N(0, 2 rho), F_neg(t) = Phi(t / a)^n,
             F_pos(t) = Phi((t - kappa) / a)^(n - m) Phi((t - d) / a)^m
    top k    the threshold t_k solves (n - m) Q(t) + m Q(t - d) = k; the mean above it against the same of
             m = 0 over sqrt(2 (rho + (1 - rho) / k)); for k of 4 and more
    delta    F1's posterior at its best threshold is F1 / 2 (Lipton, Elkan and Narayanaswamy 2014)
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import norm


def world(samples, n, m, d, *, rho=0.0, kappa=0.0, rho_in=0.0, nu=None, share=0.5, seed=0):
    """Token scores, labels, bounds and one document a sample; the first samples are positive."""
    rng = np.random.default_rng([seed, samples, n, m])
    noise = rng.standard_normal((samples, n))
    if nu is not None:
        noise /= np.sqrt(rng.chisquare(nu, noise.shape) / nu) * np.sqrt(nu / (nu - 2))
    scores = np.sqrt(1 - rho) * noise + np.sqrt(rho) * rng.standard_normal((samples, 1))
    positive = int(share * samples)
    labels = np.zeros((samples, n), dtype=bool)
    for row in range(positive):
        labels[row, rng.choice(n, m, replace=False)] = True
    own = np.sqrt(rho_in) * rng.standard_normal((samples, 1)) + np.sqrt(1 - rho_in) * rng.standard_normal(
        (samples, n)
    )
    # Correlated in-concept scores carry no document effect besides.
    scores[:positive] += np.where(labels[:positive], d, kappa)
    if rho_in:
        scores = np.where(labels, d + own, scores)
    names = np.array([f"d{k}" for k in range(samples)])
    return scores.astype(np.float32).ravel(), labels.ravel(), n * np.arange(samples + 1), names


def mean_auroc(n, m, d, rho=0.0, kappa=0.0):
    f = m / n
    return float(ndtr((d * f + kappa * (1 - f)) / np.sqrt(2 * (rho + (1 - rho) / n))))


def max_auroc(n, m, d, rho=0.0, kappa=0.0):
    a = np.sqrt(1 - rho)
    t = np.linspace(-8, 16, 6001)
    positive = ndtr((t - kappa) / a) ** (n - m) * ndtr((t - d) / a) ** m
    negative, density = ndtr(t / a) ** n, np.gradient(positive, t)
    if not rho:
        return float(np.trapezoid(negative * density, t))
    x, w = np.polynomial.hermite_e.hermegauss(31)
    each = [np.trapezoid(np.interp(t + s, t, negative, 0, 1) * density, t) for s in x * np.sqrt(2 * rho)]
    return float(w @ each / w.sum())


def top_k_auroc(n, m, d, k, rho=0.0):
    a = np.sqrt(1 - rho)

    def mean_above(m, d):
        t = brentq(lambda t: (n - m) * norm.sf(t) + m * norm.sf(t - d) - k, -12, 40)
        return ((n - m) * norm.pdf(t) + m * (d * norm.sf(t - d) + norm.pdf(t - d))) / k

    return float(ndtr(a * (mean_above(m, d / a) - mean_above(0, 0.0)) / np.sqrt(2 * (rho + (1 - rho) / k))))


def best_delta(n, m, d, prevalence):
    """The fixed point of F1 and the threshold: delta and F1."""
    t = np.linspace(-1, 12, 5201)
    inside, outside = -m * np.log1p(-np.minimum(norm.sf(t - d), 1 - 1e-12)), n * norm.sf(t)
    f1, odds = 0.8, (1 - prevalence) / prevalence
    for _ in range(200):
        g = np.log(m) - inside + d * t - d**2 / 2 - (np.log(n) - outside + np.log(odds * f1 / (2 - f1)))
        at = t[np.flatnonzero((g[:-1] < 0) & (g[1:] >= 0))[-1]]
        missed, quiet = (1 - norm.sf(at - d)) ** m, np.exp(-n * norm.sf(at))
        found = 1 - missed * quiet
        new = 2 * prevalence * found / (prevalence * (1 + found) + (1 - prevalence) * (1 - quiet))
        if abs(new - f1) < 1e-6:
            break
        f1 = new
    return float(norm.sf(at - d)), float(f1)
