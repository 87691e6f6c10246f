"""Statistics of one sample: what each detector thresholds.

SuperActivators and MaxTok threshold the same number, the sample's highest token score
`max_t s[t]` (arXiv 2512.05038, section 4); they differ only in the calibration quantiles that
make up the threshold grid. The other statistics are the paper's baselines and controls.

A statistic is a function `(scores, bounds) -> [sample, layer, unit]`, where sample n owns the
token rows `bounds[n]:bounds[n + 1]`. It must treat samples one by one. `STATISTICS` holds them by
name; a line added there is calibrated and evaluated beside the others. Results are float32, as
scores are (sums run in float64); every comparison with a threshold is in float64.

What a statistic does not show: whether the tokens it takes lie inside the concept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from sa_plugin._names import did_you_mean

Statistic = Callable[
    [Float[np.ndarray, "token layer unit"], Int[np.ndarray, " sample_and_one"]],
    Float[np.ndarray, "sample _layer _unit"],
]
_OfSample = Callable[[Float[np.ndarray, "token layer unit"]], Float[np.ndarray, "layer unit"]]


def max_token(
    scores: Float[np.ndarray, "token layer unit"], bounds: Int[np.ndarray, " sample_and_one"]
) -> Float[np.ndarray, "sample layer unit"]:
    """The highest token score of each sample."""
    return _by_sample(lambda rows: rows.max(0), scores, bounds)


def mean_token(
    scores: Float[np.ndarray, "token layer unit"], bounds: Int[np.ndarray, " sample_and_one"]
) -> Float[np.ndarray, "sample layer unit"]:
    """The mean token score of each sample."""
    return _by_sample(lambda rows: rows.mean(0, dtype=np.float64), scores, bounds)


def last_token(
    scores: Float[np.ndarray, "token layer unit"], bounds: Int[np.ndarray, " sample_and_one"]
) -> Float[np.ndarray, "sample layer unit"]:
    """The score of each sample's last kept token."""
    return _by_sample(lambda rows: rows[-1], scores, bounds)


def top_tenth_mean(
    scores: Float[np.ndarray, "token layer unit"], bounds: Int[np.ndarray, " sample_and_one"]
) -> Float[np.ndarray, "sample layer unit"]:
    """The mean of each sample's highest `ceil(tokens / 10)` scores."""
    return _by_sample(_top_tenth, scores, bounds)


def length(
    scores: Float[np.ndarray, "token layer unit"], bounds: Int[np.ndarray, " sample_and_one"]
) -> Float[np.ndarray, "sample 1 1"]:
    """The number of kept tokens: what a detector achieves that never looks at the model."""
    return np.diff(bounds).astype(np.float32)[:, None, None]


STATISTICS: dict[str, Statistic] = {
    "MaxTok": max_token,
    "MeanTok": mean_token,
    "LastTok": last_token,
    "Top10%": top_tenth_mean,
    "length-only": length,
}


def statistic_of(name: str, statistics: Mapping[str, Statistic] = STATISTICS) -> Statistic:
    """The statistic of that name.

    Raises:
        ValueError: Unknown; the text names the nearest.
    """
    if name in statistics:
        return statistics[name]
    hint = did_you_mean(name, statistics)
    raise ValueError(
        f"statistic {name!r} is unknown{hint} A detector calibrated with a "
        "statistic of your own needs it in sa_plugin.detection.pool.STATISTICS again."
    )


def random_rows(
    bounds: Int[np.ndarray, " sample_and_one"], seed: int, draw: int
) -> Int[np.ndarray, " sample"]:
    """One uniformly drawn token row of every sample (RandTok).

    Args:
        bounds: Where samples start.
        seed: Seed of the run.
        draw: Number of the draw; each is a stream of its own.
    """
    tokens = np.diff(bounds)
    place = np.random.default_rng([seed, draw]).random(len(tokens))
    return np.asarray(bounds[:-1] + np.minimum((place * tokens).astype(np.int64), tokens - 1))


def _top_tenth(rows: Float[np.ndarray, "token layer unit"]) -> Float[np.ndarray, "layer unit"]:
    n = len(rows)
    k = -(-n // 10)
    top: Float[np.ndarray, "top layer unit"] = np.partition(rows, n - k, axis=0)[n - k :]
    return np.asarray(np.sort(top, axis=0).mean(0, dtype=np.float64))


def _by_sample(
    of_sample: _OfSample,
    scores: Float[np.ndarray, "token layer unit"],
    bounds: Int[np.ndarray, " sample_and_one"],
) -> Float[np.ndarray, "sample layer unit"]:
    # A loop: `np.maximum.reduceat` along the first axis is five to fifteen times slower.
    out = np.empty((len(bounds) - 1, *scores.shape[1:]), dtype=np.float32)
    for n, (start, end) in enumerate(pairwise(bounds)):
        out[n] = of_sample(scores[start:end])
    return out
