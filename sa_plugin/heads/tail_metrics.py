"""What ablation is measured by: a concept's tail, and detection with it, on every resample.

With `in` the scores of in-concept tokens, `neg` those of tokens of negative samples, top_n the
highest score of sample n, and q, tau, sd fixed as the table says:

| metric | is | fixed |
|---|---|---|
| tail_gap | (Q_{1-delta}(in) - Q_.995(neg)) / sd(neg) | delta; sd of the unablated run |
| coverage | P(top > q given positive) | q = Q_.995(neg) of the same run's calibration split |
| negative_coverage | P(top > q given negative) | the same |
| auroc, average_precision | of top, over samples | nothing |
| f1_frozen | F1 of top >= tau | tau of the detector |
| f1_recalibrated | F1 of top >= tau' | tau' of the same run's calibration split |

tau' is what the detector's own search over its deltas finds at the layer it has chosen; without an
ablation it is tau.

F1 at a frozen threshold falls under any shift of the mean, which is no loss of evidence; that is
why the other rows are there. Every array is `[concept, 1 + draw]`; column 0 is the split itself,
the others resample its documents, with everything that is fixed held fixed. NaN: not defined.

What they do not show: a change in the tail may be a change of all scores; compare with controls.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin.detection.measure import counted, f1_of, mean_auroc
from sa_plugin.detection.pool import max_token
from sa_plugin.detection.search import search_own
from sa_plugin.statistics import Resamples, recall, resampled_average_precision
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.resampled_quantile import resampled_quantiles
from sa_plugin.tail import quantiles, tail_thresholds
from sa_plugin.tokens import TokenTable
from sa_plugin.tracing.measures import TAIL_LEVEL

METRICS = (
    "tail_gap", "coverage", "negative_coverage", "auroc", "average_precision", "f1_frozen",
    "f1_recalibrated",
)  # fmt: skip
Measured = Mapping[str, Float[np.ndarray, "concept column"]]


@dataclass(frozen=True, eq=False)
class Frozen:
    """What the unablated run and the detector fix.

    Attributes:
        concepts: Names; columns of scores are in this order.
        cal, test: Rows of the calibration split and of the split that is measured.
        threshold, delta: Of the detector, by concept.
        deltas: Its grid.
        sd: Deviation of unablated scores of negative samples' tokens, on the measured split.
        resamples: Draws over the documents of the measured split.
    """

    concepts: tuple[str, ...]
    cal: TokenTable
    test: TokenTable
    threshold: Float[np.ndarray, " concept"]
    delta: Float[np.ndarray, " concept"]
    deltas: tuple[float, ...]
    sd: Float[np.ndarray, " concept"]
    resamples: Resamples


def labels_of(
    tokens: TokenTable, concepts: tuple[str, ...]
) -> tuple[Bool[np.ndarray, "token concept"], Bool[np.ndarray, "sample concept"]]:
    """Token and sample labels, columns in the order of `concepts`."""
    columns = [tokens.concepts.index(concept) for concept in concepts]
    return tokens.labels[:, columns], tokens.sample_labels[:, columns]


def deviations(
    tokens: TokenTable, concepts: tuple[str, ...], scores: Float[np.ndarray, "token concept"]
) -> Float[np.ndarray, " concept"]:
    """Standard deviation of the scores of negative samples' tokens; NaN without any."""
    negative = ~labels_of(tokens, concepts)[1][tokens.sample_of]
    return np.array(
        [s[n].std(dtype=np.float64) if n.any() else np.nan
         for s, n in zip(scores.T, negative.T, strict=True)]
    )  # fmt: skip


def measured(
    frozen: Frozen,
    cal: Float[np.ndarray, "cal_token concept"],
    test: Float[np.ndarray, "test_token concept"],
) -> dict[str, Float[np.ndarray, "concept column"]]:
    """Every metric of one run.

    Args:
        frozen: What is fixed.
        cal: The run's scores of the calibration split.
        test: The run's scores of the measured split.
    """
    tops = _tops(test, frozen.test)
    token_labels, labels = labels_of(frozen.test, frozen.concepts)
    both = frozen.resamples.with_data()
    found: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
    background = _background(frozen, cal)
    recalibrated = _recalibrated(frozen, cal)
    for k in range(len(frozen.concepts)):
        negative = ~labels[frozen.test.sample_of, k]
        found["tail_gap"].append(_gap(frozen, test[:, k], token_labels[:, k], negative, k))
        top, truth = tops[:, k], labels[:, k]
        above = top > background[k]
        for name, of in (("coverage", truth), ("negative_coverage", ~truth)):
            counts = counted(above, of, frozen.resamples)
            some = np.asarray(counts.tp + counts.fn) > 0
            found[name].append(np.where(some, recall(counts), np.nan))
        found["auroc"].append(mean_auroc(top[None], truth, frozen.resamples))
        found["average_precision"].append(resampled_average_precision(top, truth, both))
        for name, cut in (("f1_frozen", frozen.threshold), ("f1_recalibrated", recalibrated)):
            found[name].append(f1_of(counted(top >= cut[k], truth, frozen.resamples)))
    return {name: np.stack(rows) for name, rows in found.items()}


def _tops(
    scores: Float[np.ndarray, "token concept"], tokens: TokenTable
) -> Float[np.ndarray, "sample concept"]:
    return max_token(scores[:, None].astype(np.float32), tokens.bounds)[:, 0].astype(np.float64)


def _gap(
    frozen: Frozen,
    scores: Float[np.ndarray, " token"],
    inside: Bool[np.ndarray, " token"],
    negative: Bool[np.ndarray, " token"],
    k: int,
) -> Float[np.ndarray, " column"]:
    draws = frozen.resamples.with_data().of(frozen.test.sample_of)
    high, low = (
        resampled_quantiles(scores[rows], [level], draws.of(np.flatnonzero(rows)))[0]
        for rows, level in ((inside, 1 - frozen.delta[k]), (negative, TAIL_LEVEL))
    )
    return ratio(high - low, frozen.sd[k], empty=np.nan)


def _background(
    frozen: Frozen, cal: Float[np.ndarray, "token concept"]
) -> Float[np.ndarray, " concept"]:
    negative = ~labels_of(frozen.cal, frozen.concepts)[1][frozen.cal.sample_of]
    return np.array(
        [quantiles(np.ascontiguousarray(s[n]), [TAIL_LEVEL])[0] if n.any() else np.inf
         for s, n in zip(cal.T, negative.T, strict=True)]
    )  # fmt: skip


def _recalibrated(
    frozen: Frozen, cal: Float[np.ndarray, "token concept"]
) -> Float[np.ndarray, " concept"]:
    """The threshold that the detector's own search finds at the layer it has."""
    token_labels, labels = labels_of(frozen.cal, frozen.concepts)
    with warnings.catch_warnings():
        # Calibration has given the same warning for the same tokens.
        warnings.simplefilter("ignore")
        grid = tail_thresholds(cal.astype(np.float32), token_labels, frozen.deltas)
    tops = _tops(cal, frozen.cal)[:, None]
    return search_own("recalibrated", tops, labels, grid[None], frozen.deltas).chosen_threshold


def mean_over_concepts(
    values: Float[np.ndarray, "concept column"],
) -> Float[np.ndarray, " column"]:
    """Plain mean over the concepts for which a column is defined."""
    n = np.isfinite(values).sum(0)
    return ratio(np.nansum(values, axis=0), n, empty=np.nan)
