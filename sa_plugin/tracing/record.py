"""A trace as plain dictionaries, in the shape of the results file."""

from __future__ import annotations

from typing import Any

import numpy as np

from sa_plugin.statistics.interval import percentile_bounds
from sa_plugin.tracing.result import TailTrace

_MEASURES = {
    "auroc": "auroc",
    "in_mass_at_fpr": "in_mass_at_fpr",
    "realised_fpr": "realised_fpr",
    "coverage": "coverage",
    "negative_coverage": "negative_coverage",
    "coverage_at_maxima": "coverage_at_maxima",
    "negative_coverage_at_maxima": "negative_coverage_at_maxima",
    "tail_gap": "tail_gap",
    "overlap": "overlap",
    "skewness": "skewness_in",
    "l_skewness": "l_skewness_in",
}


def record(trace: TailTrace) -> dict[str, Any]:
    """The measures a report draws, by concept and as weighted mean, and the densities.

    `skewness` and `l_skewness` are those of the in-concept scores; NaN stands for what is not
    defined. `TailTrace.rows()` has every measure.

    Returns:
        A dictionary with the keys of `sa_plugin.results.schema.Trace`.
    """
    return {
        "layers": list(trace.layers),
        "concepts": {name: _series(trace, k) for k, name in enumerate(trace.concepts)},
        "mean": _mean(trace),
        "fpr": trace.settings.fpr,
        "delta": trace.settings.delta,
        "draws": trace.settings.draws,
        "fixed_on": trace.settings.fixed_on,
        "distributions": _distributions(trace),
    }


def _series(trace: TailTrace, concept: int) -> dict[str, Any]:
    series: dict[str, Any] = {}
    for key, name in _MEASURES.items():
        value, low, high = (array[:, concept] for array in trace[name])
        series[key] = value.tolist()
        series[f"{key}_interval"] = np.stack([low, high], axis=1).tolist()
    return series


def _mean(trace: TailTrace) -> dict[str, Any]:
    series: dict[str, Any] = {}
    for key, name in _MEASURES.items():
        drawn = trace.layer_means[name]
        bounds = percentile_bounds(drawn[:, 1:], trace.settings.level)
        series[key] = drawn[:, 0].tolist()
        series[f"{key}_interval"] = np.stack(bounds, axis=1).tolist()
    return series


def _distributions(trace: TailTrace) -> dict[str, Any]:
    densities = trace.common
    mean, sd = trace["mean_out"].value, trace["sd_out"].value
    with np.errstate(divide="ignore", invalid="ignore"):
        threshold = (trace.fixed["threshold"] - mean) / sd
    return {
        "edges": densities.edges.tolist(),
        "layers": list(trace.layers),
        "out": {"negative": "tokens of negative samples", "all": "all unlabelled tokens"}[
            trace.settings.out
        ],
        "concepts": {
            name: {
                "in_concept": densities.in_concept[:, k].tolist(),
                "out_of_concept": densities.out_of_concept[:, k].tolist(),
                "threshold": threshold[:, k].tolist(),
            }
            for k, name in enumerate(trace.concepts)
        },
    }
