"""A trace as plain dictionaries, in the shape of the results file.

Results of the method as the blocks of `results.json` (`sa_plugin.report.schema`).

Versions and machine, as results carry them.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from sa_plugin.detection.detector import Detector
from sa_plugin.detection.evaluate import Evaluation
from sa_plugin.detection.localise import LocalisationMetrics
from sa_plugin.detection.sweep import SparsityCurve
from sa_plugin.heads.ledger_result import PRINTED_EFFECTS, HeadLedger
from sa_plugin.report.schema import (
    ChoiceRow,
    DetectionBlock,
    Fractions,
    Heads,
    LocalisationRow,
    RateRow,
    Sparsity,
    Trace,
)
from sa_plugin.show.result import clean
from sa_plugin.statistics.drawn import Drawn
from sa_plugin.tracing.tail_trace import TailTrace

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
    defined. `TailTrace.table()` has every measure.

    Returns:
        A dictionary with the keys of `sa_plugin.report.schema.Trace`.
    """
    return {
        "layers": list(trace.layers),
        "concepts": {c: _series(trace.measures, concept=c) for c in trace.concepts},
        "mean": _series(trace.means),
        "fpr": trace.settings.fpr,
        "delta": trace.settings.delta,
        "draws": trace.settings.resampling.draws,
        "fixed_on": trace.settings.fixed_on,
        "distributions": _distributions(trace),
    }


def _series(measures: Mapping[str, Drawn], **labels: str) -> dict[str, Any]:
    series: dict[str, Any] = {}
    for key, name in _MEASURES.items():
        drawn = measures[name].sel(**labels)
        series[key] = drawn.estimate.tolist()
        series[f"{key}_interval"] = np.stack(drawn.bounds, axis=1).tolist()
    return series


def _distributions(trace: TailTrace) -> dict[str, Any]:
    densities = trace.common
    mean, sd = trace["mean_out"].estimate, trace["sd_out"].estimate
    with np.errstate(divide="ignore", invalid="ignore"):
        threshold = (trace.fixed["threshold"] - mean) / sd
    return {
        "edges": densities.edges.tolist(),
        "layers": list(trace.layers),
        "out": {"negative": "tokens of negative samples", "all": "all unlabelled tokens"}[trace.settings.out],
        "concepts": {
            name: {
                "in_concept": densities.in_concept[:, k].tolist(),
                "out_of_concept": densities.out_of_concept[:, k].tolist(),
                "threshold": threshold[:, k].tolist(),
            }
            for k, name in enumerate(trace.concepts)
        },
    }


def number(value: Any) -> float | None:
    """A float, or None where it is not finite."""
    value = float(value)
    return value if math.isfinite(value) else None


def numbers(values: Any) -> list[float | None]:
    """Floats, None where not finite."""
    return [number(v) for v in np.asarray(values).ravel()]


def bounds(interval: Drawn | None) -> list[float | None] | None:
    """`[low, high]`."""
    return None if interval is None else [number(interval.low), number(interval.high)]


def detection(evaluation: Evaluation) -> DetectionBlock:
    """The detection table and test F1 by concept."""
    results = [evaluation.of(name) for name in evaluation.methods]
    methods = []
    for result in results:
        by = result.difference.get("f1")
        methods.append(
            {
                "method": result.method,
                "weighted_f1": number(result.weighted["f1"].estimate),
                "interval": bounds(result.weighted["f1"]),
                "precision": number(result.weighted["precision"].estimate),
                "recall": number(result.weighted["recall"].estimate),
                "auroc": number(result.weighted["auroc"].estimate),
                "macro_f1": number(result.macro["f1"].estimate),
                "macro_interval": bounds(result.macro["f1"]),
                "difference": None if by is None else number(by.estimate),
                "difference_interval": bounds(by),
                "candidates": result.chosen.candidates,
            }
        )
    f1 = {result.method: result.concept["f1"] for result in results}
    per_concept = [
        {
            "concept": concept,
            "n_positive": n,
            "f1": {name: number(each.sel(concept=concept).estimate) for name, each in f1.items()},
            "interval": {name: bounds(each.sel(concept=concept)) for name, each in f1.items()},
        }
        for concept, n in evaluation.n_positive.items()
    ]
    return {
        "n_samples": evaluation.ground.n_samples,
        "n_documents": evaluation.ground.n_documents,
        "methods": methods,  # type: ignore[typeddict-item]
        "per_concept": per_concept,  # type: ignore[typeddict-item]
    }


def choices(detector: Detector) -> list[ChoiceRow]:
    """What calibration chose for each concept."""
    rows: list[ChoiceRow] = []
    for concept in detector.concepts:
        one = detector.choice(concept)
        row: ChoiceRow = {
            "concept": concept,
            "layer": one.layer,
            "delta": one.delta,
            "threshold": number(one.threshold),
            "cal_f1": number(one.cal_f1),
            "candidates": one.candidates,
            "n_cal_tokens": one.n_cal_tokens,
        }
        if not detector.bank.supervised:
            row["unit"] = one.unit
        rows.append(row)
    return rows


def sparsity(curve: SparsityCurve) -> Sparsity:
    """The delta curve of every method that has one."""
    return {
        "layer": curve.layer,
        "deltas": list(curve.deltas),
        "curves": [
            {
                "method": method,
                "weighted_f1": numbers(row.estimate),
                "interval": [bounds(row.sel(delta=delta)) for delta in curve.deltas],
            }
            for method in curve.f1.axes["method"]
            for row in (curve.f1.sel(method=method),)
        ],
        "always_positive": number(curve.always_positive.estimate),
    }


def rates(evaluation: Evaluation) -> list[RateRow]:
    """False fires and misses, raw against SuperActivators."""
    rows = []
    for concept in evaluation.concepts:
        row: dict[str, Any] = {"concept": concept}
        for name, rate in evaluation.rates.items():
            row[name] = number(rate.sel(concept=concept).estimate)
            row[f"{name}_interval"] = bounds(rate.sel(concept=concept))
        rows.append(row)
    return rows  # type: ignore[return-value]


def fractions(evaluation: Evaluation) -> Fractions:
    """Distributions of both SuperActivator fractions."""
    found = evaluation.fractions

    def curve(table: np.ndarray) -> dict[str, Any]:
        rows = {c: numbers(row) for c, row in zip(evaluation.concepts, table, strict=True)}
        return {"mean": numbers(np.nanmean(table, axis=0)), "concepts": rows}

    return {
        "grid": list(found.grid),
        "all": curve(found.all),  # type: ignore[typeddict-item]
        "inside": curve(found.inside),  # type: ignore[typeddict-item]
    }


def localisation(metrics: LocalisationMetrics) -> list[LocalisationRow]:
    """The localisation table."""
    return [
        {
            "method": name,
            "f1": number(metrics.f1.sel(method=name).estimate),
            "f1_interval": bounds(metrics.f1.sel(method=name)),
            "average_precision": number(metrics.weighted["average_precision"][name]),
            "auroc": number(metrics.weighted["auroc"][name]),
        }
        for name in metrics.methods
    ]


def trace(found: TailTrace, detector: Detector) -> Trace:
    """Every layer, with the detector's own thresholds drawn: one delta a concept at all layers."""
    block: dict[str, Any] = record(found)
    tail, centre, spread = detector.tail, found["mean_out"].estimate, found["sd_out"].estimate
    for c, concept in enumerate(found.concepts):
        cut = (tail.thresholds[:, tail.delta[c], c] - centre[:, c]) / spread[:, c]
        block["distributions"]["concepts"][concept]["threshold"] = [number(t) for t in cut]
    return block  # type: ignore[return-value]


def heads_block(ledger: HeadLedger, n: int = 10) -> Heads:
    """Head maps and shares by concept, and the `n` strongest heads."""
    found = {
        "concepts": {name: _head_map(ledger, k) for k, name in enumerate(ledger.scores)},
        "strongest": [_strongest_row(row) for row in ledger.strongest(n)],
        "closes_to": ledger.closes_to,
        "unit": ledger.settings["unit"],
        "shares_of": "contrast",
        "candidates": ledger.candidates,
        "excludes_zero": {name: v for name, v in ledger.excluding_zero.items() if name in PRINTED_EFFECTS},
    }
    return clean(found)  # type: ignore[no-any-return]


def _head_map(ledger: HeadLedger, k: int) -> dict[str, Any]:
    column, score = ledger.columns[k], ledger.scores[k]
    maps = {
        name: ledger.head_map(column.concept, name, layer=column.layer)
        for name in ("lift", "control", "contrast")
        if name in ledger.effects
    }
    maps.setdefault("lift", np.full_like(maps["contrast"], np.nan))
    out: dict[str, Any] = {"layer": column.layer, **maps, "shares": _shares(ledger, "contrast", score)}
    if "lift" in ledger.effects:
        total = ledger.lift.total.sel(score=score)
        out |= {"total": total.estimate, "total_interval": bounds(total)}
        out["lift_shares"] = _shares(ledger, "lift", score)
    return out


def _shares(ledger: HeadLedger, effect: str, score: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    shares = ledger.effects[effect].shares.sel(score=score)
    for kind, name in (("heads", "head"), ("mlps", "mlp"), ("embedding", "embedding")):
        share = shares.sel(kind=kind)
        out[f"{name}_share"], out[f"{name}_share_interval"] = share.estimate, bounds(share)
    if any(component.kind == "constants" for component in ledger.components):
        out["bias_share"] = shares.sel(kind="constants").estimate
    return out


def _strongest_row(row: Mapping[str, Any]) -> dict[str, Any]:
    nan = float("nan")
    out = {
        "concept": row["concept"],
        "layer": row["block"],
        "head": row["head"],
        "lift": row.get("lift", nan),
        "control": row.get("control", nan),
        "interval": [row.get("lift_low", nan), row.get("lift_high", nan)],
    }
    for name in ("control", "excess", "contrast"):
        if name in row:
            out[name] = row[name]
            out[f"{name}_interval"] = [row[f"{name}_low"], row[f"{name}_high"]]
    return out


PACKAGES = (
    "sa_plugin",
    "torch",
    "transformers",
    "transformer-lens",
    "nnsight",
    "numpy",
    "scikit-learn",
    "captum",
)


def versions() -> dict[str, str]:
    """Versions of Python and of what computes, where installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Processor kind, cores and threads."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
