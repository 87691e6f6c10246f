"""Whether promised rates of false alarms are kept, where the truth is known, and what pooling samples does.

A document has an effect u, standard normal, and its tokens score .6 u + .8 z: documents differ. Its number of
samples, each of 20 tokens, is tied to the same effect, round(4 exp(tie u)) and at least one: with tie .7 long
documents score higher, with -.7 lower. Of a threshold tau the true rates are integrals over u of

    p(u) = 1 - Phi((tau - .6 u) / .8)           tokens
    1 - (1 - p)^20                              samples
    1 - (1 - p)^(20 m)                          documents of m samples
    (1 - (1 - p)^(20 m)) / (20 m)               one episode at most of a document, by token

Each calibration draws its own documents, sets the threshold by the product's functions and is asked for its
true rate. Beside them stands the threshold that pools samples of all documents as if each were drawn alone,
asked for what it would promise of samples, and of documents. A cell is the mean of the rate / the share of
calibrations in which it is above alpha.

    python docs/experiments/promise_simulation.py [calibrations] [documents ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from sa_plugin.statistics import Promise, document_threshold, episode_losses, risk_threshold, share_losses

TOKENS, BETWEEN, WITHIN = 20, 0.6, 0.8
SIZES = (20, 45, 60, 100, 300)
# Effects at which the true rates are integrated, and their weights.
GRID = np.linspace(-7, 7, 4001)
WEIGHT = np.exp(-(GRID**2) / 2) / np.exp(-(GRID**2) / 2).sum()


def samples_of(effect: np.ndarray, tie: float) -> np.ndarray:
    """Number of samples of documents."""
    return np.asarray(np.maximum(np.round(4 * np.exp(tie * effect)), 1).astype(int))


def true_rate(unit: str, tau: float, tie: float) -> float:
    """Rate of alarms above a threshold, of a new document."""
    if np.isinf(tau):
        return 0.0
    # In logs: of a long document the chance of no alarm is a high power.
    silent = np.log(ndtr((tau - BETWEEN * GRID) / WITHIN))
    length = TOKENS * samples_of(GRID, tie)
    rate = {
        "tokens": lambda: -np.expm1(silent),
        "sample": lambda: -np.expm1(TOKENS * silent),
        "document": lambda: -np.expm1(length * silent),
        "episodes": lambda: -np.expm1(length * silent) / length,
    }[unit]()
    return float(WEIGHT @ rate)


@dataclass(frozen=True)
class Drawn:
    """Documents of one calibration: the scores of their tokens, with samples and documents."""

    score: np.ndarray
    sample: np.ndarray
    document: np.ndarray

    @property
    def tops(self) -> np.ndarray:
        """Highest score of each sample."""
        return np.asarray(self.score.reshape(-1, TOKENS).max(1))

    @property
    def home(self) -> np.ndarray:
        """Document of each sample."""
        return self.document[::TOKENS]

    @property
    def maxima(self) -> np.ndarray:
        """Highest score of each document."""
        starts = np.flatnonzero(np.diff(self.home, prepend=-1))
        return np.asarray(np.maximum.reduceat(self.tops, starts))


def draw(n: int, tie: float, rng: np.random.Generator) -> Drawn:
    """Documents with their tokens."""
    effect = rng.standard_normal(n)
    count = samples_of(effect, tie) * TOKENS
    document = np.repeat(np.arange(n), count)
    score = BETWEEN * effect[document] + WITHIN * rng.standard_normal(len(document))
    return Drawn(score, np.arange(len(document)) // TOKENS, document)


def pooled(drawn: Drawn, alpha: float) -> float:
    """The order statistic over the samples of all documents, as if each were drawn alone."""
    return document_threshold(drawn.tops, alpha)


def of_samples(drawn: Drawn, alpha: float) -> float:
    """The promise `sample`."""
    return risk_threshold(share_losses(drawn.tops, drawn.home), drawn.document[-1] + 1, alpha)


def of_tokens(drawn: Drawn, alpha: float) -> float:
    """The promise `tokens`."""
    return risk_threshold(share_losses(drawn.score, drawn.document), drawn.document[-1] + 1, alpha)


def of_episodes(drawn: Drawn, alpha: float) -> float:
    """The promise `tokens` of one episode at most."""
    losses = episode_losses(drawn.score, drawn.sample, drawn.document, 1)
    most = Promise("tokens", alpha, lengths=(TOKENS, 10_000), episodes=1).most
    return risk_threshold(losses, drawn.document[-1] + 1, alpha, most)


Rule = Callable[[Drawn, float], float]
# By name: the unit asked for, the rate, with how much confidence of this threshold, and the rule.
RULES: dict[str, tuple[str, float, float | None, Rule]] = {
    "document": ("document", 0.05, None, lambda d, alpha: document_threshold(d.maxima, alpha)),
    "document, confidence .9": (
        "document",
        0.05,
        0.9,
        lambda d, alpha: document_threshold(d.maxima, alpha, 0.9),
    ),
    "document, confidence .95": (
        "document",
        0.05,
        0.95,
        lambda d, alpha: document_threshold(d.maxima, alpha, 0.95),
    ),
    "sample": ("sample", 0.05, None, of_samples),
    "tokens": ("tokens", 0.05, None, of_tokens),
    "tokens, one episode": ("episodes", 0.01, None, of_episodes),
    "pooled samples, asked of samples": ("sample", 0.05, None, pooled),
    "pooled samples, asked of documents": ("document", 0.05, None, pooled),
}


@dataclass(frozen=True)
class Row:
    """What became of one rule at one number of documents.

    Attributes:
        rates: True rate of each calibration; empty where the rule refuses.
        alpha: What was promised.
        confidence: Of this threshold, or None for the mean.
    """

    rates: np.ndarray
    alpha: float
    confidence: float | None

    @property
    def mean(self) -> float:
        """Over calibrations."""
        return float(self.rates.mean())

    @property
    def above(self) -> float:
        """Share of calibrations whose rate is above alpha."""
        return float((self.rates > self.alpha).mean())

    def kept(self, errors: float = 3.0) -> bool:
        """Whether the promise is kept, but for so many standard errors of the simulation."""
        n = len(self.rates)
        if self.confidence is None:
            return bool(self.mean <= self.alpha + errors * self.rates.std() / np.sqrt(n))
        left = 1 - self.confidence
        return bool(self.above <= left + errors * np.sqrt(left * (1 - left) / n))


def simulate(n: int, tie: float, calibrations: int, seed: int = 0) -> dict[str, Row]:
    """Every rule on the same documents, drawn anew for each calibration."""
    found: dict[str, list[float]] = {name: [] for name in RULES}
    for k in range(calibrations):
        drawn = draw(n, tie, np.random.default_rng([seed, n, k]))
        for name, (unit, alpha, _, rule) in RULES.items():
            tau = rule(drawn, alpha)
            if np.isfinite(tau):
                found[name].append(true_rate(unit, tau, tie))
    return {
        name: Row(np.array(found[name]), alpha, confidence)
        for name, (_, alpha, confidence, _) in RULES.items()
    }


def lines(calibrations: int, sizes: tuple[int, ...]) -> Iterator[str]:
    """The table of the page."""
    yield f"| promise | alpha | tie | {' | '.join(f'{n} documents' for n in sizes)} |"
    yield f"|---|---|---|{'---|' * len(sizes)}"
    for tie in (0.7, -0.7):
        rows = {n: simulate(n, tie, calibrations) for n in sizes}
        for name, (_, alpha, _, _) in RULES.items():
            cells = []
            for n in sizes:
                row = rows[n][name]
                said = (
                    f"{row.mean:.4f} / {row.above:.3f}{'' if row.kept() else ' **broken**'}"
                    if len(row.rates)
                    else "refused"
                )
                cells.append(said)
            yield f"| {name} | {alpha:g} | {tie:+g} | {' | '.join(cells)} |"


if __name__ == "__main__":
    given = [int(one) for one in sys.argv[1:]]
    for line in lines(given[0] if given else 2000, tuple(given[1:]) or SIZES):
        print(line, flush=True)
