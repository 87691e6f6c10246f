"""Detection metrics of one method on a split and on it without each of its documents.

Per concept: precision = TP / (TP + FP), recall = TP / (TP + FN), F1 = 2TP / (2TP + FP + FN), and
the AUROC of what the method thresholds. Beside them stands what a monitor is chosen by:

    TPR at f      highest share of positives that a threshold finds with at most a share f of negatives, f =
                  .05, .01, .001 (`statistics/ranking.py`). It rests on the f n negatives that may lie above:
                  with fewer than three of them (n < 60, 300, 3,000) it is not defined
    pAUROC        the partial AUROC up to f = .1, standardised
    false alarms  negative samples that fire, for 1,000 tokens of negative samples: a sample alarms once

The first two read the whole curve of the test split, as AUROC does, at no threshold; false alarms are of
the calibrated threshold. A concept without positive samples has none of them (NaN),
one without negative samples no AUROC; precision is 0 where nothing fires on a concept that has
positives. Averages over concepts leave out what is not defined, weighted and macro alike, so that
all metrics but AUROC average the same concepts:

    weighted = sum_c n_c m_c / sum_c n_c,  n_c = positive samples,      macro = mean_c m_c

Column 0 of every array is the split itself, the others leave one source document out each. All methods
share the columns, so differences are paired. A method with several draws (RandTok) is averaged over
them within each column.

Two tables beside them compare SuperActivators with a raw reading and with the concept's extent:

    false fire = share of negative samples that fire,   miss = share of positive ones that do not

Raw: a sample fires when any token lies above the midpoint between the calibration means of its
in-concept and its out-of-concept token scores, at the same layer and unit. It is one rule among
many, not the best raw one. And of a positive sample with |in| > 0 in-concept tokens (arXiv
2512.05038; the published axis counts all SuperActivators, its caption those inside):

    r_all = |SA| / |in|  (may exceed 1),      r_in = |SA and in| / |in|  (at most 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from sa_plugin.statistics.bootstrap import (
    Average,
    Resamples,
    document_sums,
    mean_over_concepts,
    resampled_confusion,
    resampled_sums,
)
from sa_plugin.statistics.confusion import Confusion, f1, precision, ratio, recall
from sa_plugin.statistics.drawn import Drawn, scarcer
from sa_plugin.statistics.interval import Kind
from sa_plugin.statistics.ranking import resampled_roc_start

COUNTED = ("precision", "recall", "f1")
RATES: dict[str, float] = {"tpr_at_5_percent": 0.05, "tpr_at_1_percent": 0.01, "tpr_at_0.1_percent": 0.001}
"""False-positive rates at which the true-positive rate is read."""
PARTIAL, UPTO = "partial_auroc", 0.1
ALARMS = "false_alarms"
RANKED = ("auroc", *RATES, PARTIAL)
METRICS = (*COUNTED, *RANKED, ALARMS)
# Negatives that may lie above a rate's threshold, below which the rate is not read.
LEAST_ABOVE = 3
GRID: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one method, or one draw of it, said of every sample.

    Attributes:
        fired: Whether it fires.
        values: What it thresholds.
    """

    fired: Bool[np.ndarray, "sample concept"]
    values: Float[np.ndarray, "sample concept"]


def method_metrics(
    outcomes: Sequence[Outcome],
    labels: Bool[np.ndarray, "sample concept"],
    concepts: Sequence[str],
    resamples: Resamples,
    kind: Kind = "share",
    tokens: Int[np.ndarray, " sample"] | None = None,
) -> dict[str, Drawn]:
    """Every metric of a method over concepts, averaged over its draws.

    Args:
        outcomes: One a draw.
        labels: Sample labels.
        concepts: Their names.
        resamples: Columns of document weights.
        kind: "none" for a method whose averages are biased.
        tokens: Of each sample, for false alarms; by default one each, which makes them the share of
            negative samples that fire, in thousandths.
    """
    each = []
    for outcome in outcomes:
        counts = resampled_confusion(outcome.fired.T, labels.T, resamples)
        each.append(tuple(_defined(m(counts), counts) for m in (precision, recall, f1)))
    found = dict(zip(COUNTED, np.mean(each, axis=0), strict=True))
    values = np.stack([outcome.values for outcome in outcomes])
    columns = [_ranked(values[..., c], labels[:, c], resamples) for c in range(labels.shape[1])]
    found |= dict(zip(RANKED, np.stack(columns, axis=1), strict=True))
    positive, negative = resamples.rows(labels.T), resamples.rows(~labels.T)
    fired = resamples.rows(np.sum([outcome.fired.T for outcome in outcomes], axis=0))
    found[ALARMS] = _false_alarms(outcomes, labels, tokens, resamples)
    # What a metric is over: positive samples, for precision those that fire, for a ranking the scarcer class.
    carried = dict.fromkeys(COUNTED, positive) | {"precision": scarcer(positive, fired)}
    carried |= dict.fromkeys(RANKED, scarcer(positive, negative)) | {ALARMS: negative}
    kinds = dict.fromkeys(METRICS, kind) | {ALARMS: "rate" if kind == "share" else kind}
    return {
        metric: resamples.drawn(measured, kinds[metric], carried[metric], concept=concepts)
        for metric, measured in found.items()
    }


def _ranked(
    values: Float[np.ndarray, "draw sample"], labels: Bool[np.ndarray, " sample"], resamples: Resamples
) -> Float[np.ndarray, "metric column"]:
    """Of one concept what `RANKED` names, averaged over a method's draws."""
    starts = [resampled_roc_start(value, labels, resamples, [*RATES.values()], UPTO) for value in values]
    tpr = np.mean([start.tpr for start in starts], axis=0)
    n = int((~labels).sum())
    few = [not rests_on(rate, n) for rate in RATES.values()]
    tpr[few] = np.nan
    area = np.mean([start.area for start in starts], axis=0)
    return np.stack([mean_auroc(values, labels, resamples), *tpr, area])


def rests_on(rate: float, negatives: int) -> int:
    """How many negatives may lie above the threshold of a false-positive rate; 0 for too few to read it."""
    above = int(rate * negatives + 1e-9)
    return above if above >= LEAST_ABOVE else 0


def _false_alarms(
    outcomes: Sequence[Outcome],
    labels: Bool[np.ndarray, "sample concept"],
    tokens: Int[np.ndarray, " sample"] | None,
    resamples: Resamples,
) -> Float[np.ndarray, "concept column"]:
    """Negative samples that fire for 1,000 tokens of negative samples, averaged over draws."""
    alarms = [resampled_sums(outcome.fired.T & ~labels.T, resamples) for outcome in outcomes]
    read = ~labels.T * (np.ones(len(labels), dtype=np.int64) if tokens is None else tokens)
    return ratio(1000 * np.mean(alarms, axis=0), resampled_sums(read, resamples), empty=np.nan)


def f1_of(counts: Confusion) -> Float[np.ndarray, "*shape"]:
    """F1, not defined where there is no positive sample."""
    return _defined(f1(counts), counts)


def _defined(metric: Float[np.ndarray, "*shape"], counts: Confusion) -> Float[np.ndarray, "*shape"]:
    return np.where(np.asarray(counts.tp + counts.fn) > 0, metric, np.nan)


def positives_of(
    labels: Bool[np.ndarray, "sample concept"], resamples: Resamples
) -> Float[np.ndarray, "concept column"]:
    """Positive samples of each concept."""
    return resampled_sums(labels.T, resamples)


def averaged(
    metric: Float[np.ndarray, "*shape concept column"],
    positives: Float[np.ndarray, "concept column"],
    average: Average,
) -> Float[np.ndarray, "*shape column"]:
    """Mean over concepts of every column."""
    return mean_over_concepts(np.moveaxis(metric, -2, -1), positives.T, average)


def mean_auroc(
    values: Float[np.ndarray, "draw sample"], labels: Bool[np.ndarray, " sample"], resamples: Resamples
) -> Float[np.ndarray, " column"]:
    """AUROC of one concept, averaged over a method's draws; NaN where a class is empty.

    The number of pairs does not depend on the draw, so the mean is one quadratic form in the
    document weights: draws add up in `wins` before anything is resampled.
    """
    weights = resamples.weights
    positive, negative = np.flatnonzero(labels), np.flatnonzero(~labels)
    wins = np.zeros((len(positive), len(negative)))
    for value in values:
        up, down = value[positive][:, None], value[negative]
        wins += (up > down) + 0.5 * (up == down)
    # Wins by document of the positive and of the negative: a matrix of documents, far smaller
    # than that of samples, and the same for every column of weights.
    of_negative = document_sums(wins, resamples.of(negative))
    by_document = document_sums(of_negative.T, resamples.of(positive)).T
    # Documents without a positive have empty rows, those without a negative empty columns.
    rows, columns = np.unique(resamples.document[labels]), np.unique(resamples.document[~labels])
    left, right = weights[:, rows], weights[:, columns]
    total = ((left @ by_document[np.ix_(rows, columns)]) * right).sum(1)
    counts = document_sums(np.stack([labels, ~labels]), resamples) @ weights.T
    return ratio(total, len(values) * counts[0] * counts[1], empty=np.nan)


def firing_rates(
    raw: Bool[np.ndarray, "sample concept"],
    tail: Bool[np.ndarray, "sample concept"],
    labels: Bool[np.ndarray, "sample concept"],
    concepts: Sequence[str],
    resamples: Resamples,
) -> dict[str, Drawn]:
    """False-fire and miss rates of both rules over concepts; NaN without negative or positive samples."""
    positive, negative = resamples.rows(labels.T), resamples.rows(~labels.T)
    found = {}
    for name, fired in (("raw", raw), ("tail", tail)):
        counts = resampled_confusion(fired.T, labels.T, resamples)
        false = ratio(counts.fp, np.asarray(counts.fp + counts.tn), np.nan)
        missed = ratio(counts.fn, np.asarray(counts.tp + counts.fn), np.nan)
        found[f"{name}_false_fire"] = resamples.drawn(false, "share", negative, concept=concepts)
        found[f"{name}_miss"] = resamples.drawn(missed, "share", positive, concept=concepts)
    return found


@dataclass(frozen=True, eq=False)
class TailFractions:
    """Distribution of the SuperActivator fraction over positive samples.

    Attributes:
        grid: TailFractions.
        all: Share of samples with r_all at most each grid value; NaN for a concept without any.
        inside: The same of r_in.
        above_one: Share of samples with r_all > 1.
        n: Samples counted: positive with at least one in-concept token, and none that is unknown.
        skipped: Positive samples that are not counted.
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
            share = [float(np.nanmean(a[:, at])) if self.n.any() else np.nan for a in (self.all, self.inside)]
        return (
            f"TailFractions(r <= .2 in {share[0]:.0%} of positive samples (all) and {share[1]:.0%} "
            f"(inside), mean over {len(self.n)} concepts)"
        )


def superactivator_fractions(
    superactivators: Bool[np.ndarray, "token concept"],
    inside: Bool[np.ndarray, "token concept"],
    sample_of: Int[np.ndarray, " token"],
    labels: Bool[np.ndarray, "sample concept"],
    known: Bool[np.ndarray, "token concept"] | None = None,
) -> TailFractions:
    """The distribution of both fractions over positive samples whose token labels are all known."""
    n_samples, concepts = labels.shape

    def per_sample(mask: Bool[np.ndarray, "token concept"]) -> Int[np.ndarray, "sample concept"]:
        out = np.zeros((n_samples, concepts), dtype=np.int64)
        np.add.at(out, sample_of, mask)
        return out

    n_in, n_all = per_sample(inside), per_sample(superactivators)
    n_both = per_sample(superactivators & inside)
    counted_samples = labels & (n_in > 0)
    if known is not None:
        # Where some tokens are unknown, so is the extent of the concept.
        counted_samples &= per_sample(~known) == 0
    n = counted_samples.sum(0)
    # In tenths and integers, so that 3 of 10 is at most .3.
    tenths = np.arange(1, 11)[:, None, None]

    def cdf(part: Int[np.ndarray, "sample concept"]) -> Float[np.ndarray, "concept grid"]:
        below = (10 * part <= tenths * n_in) & counted_samples
        return ratio(below.sum(1), n, empty=np.nan).T

    above = ((n_all > n_in) & counted_samples).sum(0)
    return TailFractions(GRID, cdf(n_all), cdf(n_both), ratio(above, n, empty=np.nan), n, labels.sum(0) - n)
