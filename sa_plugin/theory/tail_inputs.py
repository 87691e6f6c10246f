"""What decides which pooling wins, measured from labelled token scores at one length and span.

A sample has N tokens, m of them in the concept, in some runs. Of a concept at one layer are measured

| | what | from |
|---|---|---|
| background | whole samples without the concept, tokens in their order | negative samples |
| inside | scores of in-concept tokens | positive samples |
| others | the rest of their samples, in their order: spill-over as it is | positive samples |
| d, sigma_in | mean of inside above the background's, its deviation; in background deviations | both |
| kappa | spill-over: mean of the other tokens of positive samples above the background's | both |
| rho | share of the background's variance that a sample's tokens share, by analysis of variance | negative |
| rho_in | the same of in-concept tokens, their sample's effect taken away | positive samples of 2 or more |
| xi | tail index: shape of the generalised Pareto law of the highest hundredth | background |
| theta | extremal index: P(maximum <= t) = P(token <= t)^(theta N) at the median maximum | negative |

    rho = (B - W) / (B + (n_0 - 1) W),   n_0 = (n - sum n_g^2 / n) / (groups - 1)
    effect of a sample of n tokens = rho n / (1 + (n - 1) rho) (mean of its tokens - mean of all)
    xi = 2 - a_0 / (a_0 - 2 a_1),   a_0 = mean y,   a_1 = mean y (1 - F)    (Hosking and Wallis 1987)

with B and W the mean squares between and within samples, y excesses over the .99 quantile. xi is 0 for
normal and exponential tails, below 0 for bounded ones, 1 / nu for Student's with nu degrees of freedom
(above 1/2 the estimate is biased towards it).

What they do not show: what a model does to scores in contexts longer than those it was measured on, and
whether the labels are right. Unlabelled positives lie in the background's tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped

from sa_plugin.statistics.interval import LEAST

# Tokens of the highest hundredth, or as many as there are where it holds fewer.
_TOP, _LEAST_TOP = 0.01, 20


@dataclass(frozen=True, eq=False)
class TailInputs:
    """One concept's scores at one layer, as the law needs them.

    Negative samples are those without the concept; positive ones those with an in-concept token.

    Attributes:
        concept: Name, for what is said of it.
        background: Tokens of negative samples, sample by sample.
        bounds: Where each starts; negative sample p owns `bounds[p]:bounds[p + 1]`.
        background_document: Source document of each.
        inside: In-concept tokens, sample by sample.
        inside_sample: Positive sample of each, from 0.
        others: The other tokens of positive samples, which spill-over reaches.
        others_bounds: Where those of each positive sample start; one may have none.
        document: Source document of each positive sample.
        highest: Highest score of each positive sample.
        runs: Runs of in-concept tokens, in all.
        prevalence: Share of positive samples.
        tokens: Mean number of tokens of all samples.
    """

    concept: str
    background: Float[np.ndarray, " token"]
    bounds: Int[np.ndarray, " negative_and_one"]
    background_document: Shaped[np.ndarray, " negative"]
    inside: Float[np.ndarray, " inside"]
    inside_sample: Int[np.ndarray, " inside"]
    others: Float[np.ndarray, " other"]
    others_bounds: Int[np.ndarray, " positive_and_one"]
    document: Shaped[np.ndarray, " positive"]
    highest: Float[np.ndarray, " positive"]
    runs: int
    prevalence: float
    tokens: float

    @cached_property
    def mean(self) -> float:
        """Of the background."""
        return float(self.background.mean(dtype=np.float64))

    @cached_property
    def sd(self) -> float:
        """Of the background."""
        return float(self.background.std(dtype=np.float64))

    @cached_property
    def counts(self) -> Int[np.ndarray, " positive"]:
        """In-concept tokens of each positive sample."""
        return np.bincount(self.inside_sample)

    @property
    def in_concept(self) -> float:
        """Their mean (m)."""
        return float(self.counts.mean())

    @property
    def runs_each(self) -> float:
        """Mean runs of them."""
        return self.runs / len(self.counts)

    @cached_property
    def kappa(self) -> float:
        """Spill-over, in the scores' unit; 0 where no positive sample has other tokens."""
        means, n = _means(self.others, self.others_bounds)
        return float(means[n > 0].mean()) - self.mean if n.any() else 0.0

    @cached_property
    def rho(self) -> float:
        """Document effect."""
        sample = np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))
        return max(intraclass(self.background, sample), 0.0)

    @cached_property
    def effect(self) -> Float64[np.ndarray, " negative"]:
        """Of every negative sample."""
        means, n = _means(self.background, self.bounds)
        return self._shrunk(means - self.mean, n)

    @cached_property
    def positive_effect(self) -> Float64[np.ndarray, " positive"]:
        """Of every positive sample, from its other tokens; 0 where it has none."""
        means, n = _means(self.others, self.others_bounds)
        return np.where(n > 0, self._shrunk(means - self.mean - self.kappa, n), 0.0)

    def _shrunk(
        self, excess: Float64[np.ndarray, " row"], tokens: Int[np.ndarray, " row"]
    ) -> Float64[np.ndarray, " row"]:
        return np.asarray(self.rho * tokens / (1 + (tokens - 1) * self.rho) * excess, dtype=np.float64)

    @cached_property
    def without_effect(self) -> Float64[np.ndarray, " inside"]:
        """Scores of in-concept tokens, the effect of their sample taken away."""
        return np.asarray(self.inside - self.positive_effect[self.inside_sample], dtype=np.float64)

    @cached_property
    def rho_in(self) -> float:
        """Correlation within the concept; 0 where no positive sample has two in-concept tokens."""
        return max(float(np.nan_to_num(intraclass(self.without_effect, self.inside_sample))), 0.0)

    def measured(self) -> dict[str, float]:
        """Every number of the table in this module's text; lengths are in background deviations."""
        inside = self.inside.astype(np.float64)
        return {
            "N": self.tokens,
            "m": self.in_concept,
            "runs": self.runs_each,
            "d": (float(inside.mean()) - self.mean) / self.sd,
            "sigma_in": float(inside.std()) / self.sd,
            "kappa": self.kappa / self.sd,
            "rho": self.rho,
            "rho_in": self.rho_in,
            "xi": tail_index(self.background),
            "theta": extremal_index(self.background, self.bounds),
        }


def measure_inputs(
    scores: Float[np.ndarray, " token"],
    labels: Bool[np.ndarray, " token"],
    bounds: Int[np.ndarray, " sample_and_one"],
    documents: Shaped[np.ndarray, " sample"] | Sequence[str],
    *,
    positive: Bool[np.ndarray, " sample"] | None = None,
    concept: str = "the concept",
) -> TailInputs:
    """Take labelled token scores of one concept at one layer apart.

    Args:
        scores: Of the tokens of all samples, sample by sample.
        labels: Which tokens are in the concept.
        bounds: Where samples start: sample n owns rows `bounds[n]:bounds[n + 1]`.
        documents: Source document of each sample.
        positive: Which samples have the concept, by default those with an in-concept token. One without such
            a token is neither background nor inside.
        concept: Name, for errors.

    Raises:
        ValueError: A score is not finite, a sample is empty, no sample is without the concept, no token is in
            it, either comes from fewer than three documents, or the background is constant.
    """
    bounds = np.asarray(bounds)
    lengths = np.diff(bounds)
    documents = np.asarray(documents)
    if not len(scores) == len(labels) == bounds[-1] or len(documents) != len(lengths):
        raise ValueError(
            f"{len(scores)} scores, {len(labels)} labels and {len(documents)} documents do not fit "
            f"bounds of {len(lengths)} samples and {int(bounds[-1])} tokens."
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"scores of {concept!r} hold NaN or Inf: drop those tokens first.")
    if (lengths < 1).any():
        raise ValueError(f"sample {int((lengths < 1).argmax())} has no token: leave empty samples out.")
    sample = np.repeat(np.arange(len(lengths)), lengths)
    n_in = np.bincount(sample, labels, minlength=len(lengths))
    positive = n_in > 0 if positive is None else np.asarray(positive) | (n_in > 0)
    _check_enough(concept, n_in > 0, ~positive, documents)
    back = ~positive[sample]
    if scores[back].max() == scores[back].min():
        raise ValueError(
            f"all {int(back.sum())} tokens without {concept!r} score alike: nothing to measure a tail on."
        )
    # A run starts where a labelled token follows none of its own sample.
    follows = np.append(False, labels[:-1] & (sample[1:] == sample[:-1]))
    holds = n_in > 0
    n_other = np.bincount(sample, ~labels, minlength=len(lengths))[holds].astype(int)
    return TailInputs(
        concept,
        scores[back],
        np.append(0, np.cumsum(lengths[~positive])),
        documents[~positive],
        scores[labels],
        np.unique(sample[labels], return_inverse=True)[1].reshape(-1),
        scores[holds[sample] & ~labels],
        np.append(0, np.cumsum(n_other)),
        documents[holds],
        np.maximum.reduceat(scores, bounds[:-1])[holds],
        int((labels & ~follows).sum()),
        float(positive.mean()),
        float(lengths.mean()),
    )


def _means(
    values: Float[np.ndarray, " row"], bounds: Int[np.ndarray, " group_and_one"]
) -> tuple[Float64[np.ndarray, " group"], Int[np.ndarray, " group"]]:
    """Mean of each group of rows, 0 where it is empty, and their number."""
    n = np.diff(bounds)
    group = np.repeat(np.arange(len(n)), n)
    sums = np.bincount(group, values.astype(np.float64), minlength=len(n))
    return np.asarray(sums / np.maximum(n, 1), dtype=np.float64), n


def _check_enough(
    concept: str,
    holds: Bool[np.ndarray, " sample"],
    without: Bool[np.ndarray, " sample"],
    documents: Shaped[np.ndarray, " sample"],
) -> None:
    if not holds.any():
        raise ValueError(
            f"{concept!r} has no labelled token here: the law needs scores of in-concept tokens; labels of "
            "whole samples do not say which they are."
        )
    if not without.any():
        raise ValueError(
            f"every sample has {concept!r}: the law needs samples without it, to know how high they reach."
        )
    for what, which in (("in-concept tokens", holds), ("samples without it", without)):
        n = len(np.unique(documents[which]))
        if n < LEAST:
            raise ValueError(
                f"{what} of {concept!r} come from {n} source document{'s' * (n > 1)}, at least {LEAST} are "
                "needed: give more data, or name the source of each sample in ConceptData(documents=...)."
            )


def intraclass(values: Float[np.ndarray, " row"], groups: Int[np.ndarray, " row"]) -> float:
    """Share of the variance that rows of a group share; NaN where no group has two rows, or all are one."""
    _, group = np.unique(groups, return_inverse=True)
    x = values.astype(np.float64) - values.mean(dtype=np.float64)
    size = np.bincount(group)
    n, k = len(x), len(size)
    if k < 2 or n == k:
        return float("nan")
    mean = np.bincount(group, x) / size
    between = float((size * mean**2).sum()) / (k - 1)
    within = float(((x - mean[group]) ** 2).sum()) / (n - k)
    each = (n - float((size.astype(np.float64) ** 2).sum()) / n) / (k - 1)
    total = between + (each - 1) * within
    return (between - within) / total if total > 0 else float("nan")


def tail_index(values: Float[np.ndarray, " row"], share: float = _TOP) -> float:
    """Shape of the generalised Pareto law of the highest values; NaN below 40 of them, or if they tie.

    Args:
        values: Finite values.
        share: How many are the highest; at least 20 are taken.
    """
    top = max(int(np.ceil(share * len(values))), _LEAST_TOP)
    if len(values) < 2 * _LEAST_TOP:
        return float("nan")
    highest = np.sort(np.partition(values, len(values) - top - 1)[len(values) - top - 1 :]).astype(np.float64)
    excess = highest[1:] - highest[0]
    a0 = float(excess.mean())
    a1 = float((excess * (1 - (np.arange(1, top + 1) - 0.35) / top)).mean())
    return 2 - a0 / (a0 - 2 * a1) if a0 - 2 * a1 > 0 else float("nan")


def extremal_index(values: Float[np.ndarray, " row"], bounds: Int[np.ndarray, " sample_and_one"]) -> float:
    """How many of a sample's tokens count for its maximum as if they were independent, as a share, at most 1.

    Args:
        values: Token scores, sample by sample.
        bounds: Where samples start.
    """
    highest = np.sort(np.maximum.reduceat(values, bounds[:-1]))
    # The middle one itself, so that no interpolated value lies between two tokens.
    middle = highest[len(highest) // 2]
    reached = float((highest <= middle).mean())
    below = float((values <= middle).mean())
    if not 0 < below < 1 or reached >= 1:
        return float("nan")
    return min(float(np.log(reached) / (np.diff(bounds).mean() * np.log(below))), 1.0)
