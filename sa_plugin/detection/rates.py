"""False fires and misses, raw against SuperActivators; and how much of a concept the tail covers.

    false fire = share of negative samples that fire,   miss = share of positive ones that do not

Raw: a sample fires when any token lies above the midpoint between the calibration means of its
in-concept and its out-of-concept token scores, at the same layer and unit: what a reader of the
bulk of the distribution would use. It is one rule among many, not the best raw one.

SuperActivator fraction of a positive sample with |in| > 0 in-concept tokens (arXiv 2512.05038; the
published axis counts all SuperActivators, its caption those inside):

    r_all = |SA| / |in|  (may exceed 1),      r_in = |SA and in| / |in|  (at most 1)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from sa_plugin.detection.measure import counted, interval_of
from sa_plugin.statistics import Confusion, Interval, Resamples
from sa_plugin.statistics.confusion import ratio

GRID: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Rates:
    """False-fire and miss rate of one concept; NaN without negative or positive samples."""

    concept: str
    raw_false_fire: Interval
    raw_miss: Interval
    tail_false_fire: Interval
    tail_miss: Interval


@dataclass(frozen=True, eq=False)
class Fractions:
    """Distribution of the SuperActivator fraction over positive samples.

    Attributes:
        grid: Fractions.
        all: Share of samples with r_all at most each grid value; NaN for a concept without any.
        inside: The same of r_in.
        above_one: Share of samples with r_all > 1.
        n: Samples counted: positive with at least one in-concept token.
        skipped: Positive samples without in-concept token.
    """

    grid: tuple[float, ...]
    all: Float[np.ndarray, "concept grid"]
    inside: Float[np.ndarray, "concept grid"]
    above_one: Float[np.ndarray, " concept"]
    n: Int[np.ndarray, " concept"]
    skipped: Int[np.ndarray, " concept"]

    def __repr__(self) -> str:
        at = self.grid.index(0.2)
        with np.errstate(invalid="ignore"):
            share = [float(np.nanmean(a[:, at])) if self.n.any() else np.nan for a in self._both]
        return (
            f"Fractions(r <= .2 in {share[0]:.0%} of positive samples (all) and {share[1]:.0%} "
            f"(inside), mean over {len(self.n)} concepts)"
        )

    @property
    def _both(self) -> tuple[Float[np.ndarray, "concept grid"], Float[np.ndarray, "concept grid"]]:
        return self.all, self.inside


def rates(
    concepts: tuple[str, ...],
    raw: Bool[np.ndarray, "sample concept"],
    tail: Bool[np.ndarray, "sample concept"],
    labels: Bool[np.ndarray, "sample concept"],
    resamples: Resamples,
    level: float,
) -> tuple[Rates, ...]:
    """False-fire and miss rates of both rules, with intervals over documents."""
    raw_fire, raw_miss = _rates(counted(raw.T, labels.T, resamples))
    tail_fire, tail_miss = _rates(counted(tail.T, labels.T, resamples))
    return tuple(
        Rates(
            concept,
            *(
                interval_of(table[k], resamples, level)
                for table in (raw_fire, raw_miss, tail_fire, tail_miss)
            ),
        )
        for k, concept in enumerate(concepts)
    )


def fractions(
    superactivators: Bool[np.ndarray, "token concept"],
    inside: Bool[np.ndarray, "token concept"],
    sample_of: Int[np.ndarray, " token"],
    labels: Bool[np.ndarray, "sample concept"],
) -> Fractions:
    """The distribution of both fractions over positive samples."""
    n_samples, concepts = labels.shape

    def per_sample(mask: Bool[np.ndarray, "token concept"]) -> Int[np.ndarray, "sample concept"]:
        out = np.zeros((n_samples, concepts), dtype=np.int64)
        np.add.at(out, sample_of, mask)
        return out

    n_in, n_all = per_sample(inside), per_sample(superactivators)
    n_both = per_sample(superactivators & inside)
    counted_samples = labels & (n_in > 0)
    n = counted_samples.sum(0)
    # In tenths and integers, so that 3 of 10 is at most .3.
    tenths = np.arange(1, 11)[:, None, None]

    def cdf(part: Int[np.ndarray, "sample concept"]) -> Float[np.ndarray, "concept grid"]:
        below = (10 * part <= tenths * n_in) & counted_samples
        return ratio(below.sum(1), n, empty=np.nan).T

    above = ((n_all > n_in) & counted_samples).sum(0)
    return Fractions(
        GRID, cdf(n_all), cdf(n_both), ratio(above, n, empty=np.nan), n, labels.sum(0) - n
    )


def _rates(
    counts: Confusion,
) -> tuple[Float[np.ndarray, "concept column"], Float[np.ndarray, "concept column"]]:
    negative = np.asarray(counts.fp + counts.tn)
    positive = np.asarray(counts.tp + counts.fn)
    return ratio(counts.fp, negative, np.nan), ratio(counts.fn, positive, np.nan)
