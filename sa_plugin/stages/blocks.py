"""Results of the method as the blocks of `results.json`.

`sa_plugin.report.schema` says what every key means. A number stands beside its interval, `KEY` and
`KEY_interval`; what is not finite becomes None where a block is written (`clean`). Results keep more
than a report draws: `table()` and `to_dict()` of each have every number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from sa_plugin.detection.detector import Detector
from sa_plugin.detection.evaluate import Evaluation
from sa_plugin.detection.localise import LocalisationMetrics
from sa_plugin.detection.measures import ALARMS, PARTIAL, RATES
from sa_plugin.detection.sweep import SparsityCurve
from sa_plugin.heads.ledger_result import PRINTED_EFFECTS, HeadLedger
from sa_plugin.show.result import clean
from sa_plugin.statistics.drawn import Drawn
from sa_plugin.tracing.along import CHOSEN, PROTOTYPE
from sa_plugin.tracing.measures import TAILS
from sa_plugin.tracing.tail_trace import TailTrace

# Keys of a trace's series and the measures they hold: the skewnesses are those of the in-concept scores.
_SERIES = {
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
_OUT = {"negative": "tokens of negative samples", "all": "all unlabelled tokens"}


def _ends(drawn: Drawn | None) -> np.ndarray | None:
    """`[low, high]` at every place."""
    return None if drawn is None else np.stack(drawn.bounds, axis=-1)


def _with_interval(key: str, drawn: Drawn) -> dict[str, Any]:
    return {key: drawn.estimate, f"{key}_interval": _ends(drawn)}


def detection_block(evaluation: Evaluation) -> dict[str, Any]:
    """The detection table and test F1 by concept."""
    adjusted = evaluation.difference["f1"]
    p = dict(zip(adjusted.axes["method"], adjusted.p_of_family.tolist(), strict=True))
    results = [evaluation.of(name) for name in evaluation.methods]
    methods = []
    for result in results:
        f1, macro, by = result.weighted["f1"], result.macro["f1"], result.difference.get("f1")
        methods.append(
            {
                "method": result.method,
                "weighted_f1": f1.estimate,
                "interval": _ends(f1),
                **{name: result.weighted[name].estimate for name in ("precision", "recall", "auroc")},
                "macro_f1": macro.estimate,
                "macro_interval": _ends(macro),
                "difference": None if by is None else by.estimate,
                "difference_interval": _ends(by),
                "p_in_family": p.get(result.method),
                "candidates": result.chosen.candidates,
            }
        )
    per_concept = []
    for concept, n in evaluation.n_positive.items():
        each = {result.method: result.concept["f1"].sel(concept=concept) for result in results}
        per_concept.append(
            {
                "concept": concept,
                "n_positive": n,
                "documents": int(next(iter(each.values())).documents),
                "f1": {name: one.estimate for name, one in each.items()},
                "interval": {name: _ends(one) for name, one in each.items()},
            }
        )
    return {
        "n_samples": evaluation.ground.n_samples,
        "n_documents": evaluation.ground.n_documents,
        "methods": methods,
        "monitor": _monitor(evaluation),
        "per_concept": per_concept,
    }


def _monitor(evaluation: Evaluation) -> dict[str, Any]:
    """True positives where false ones are few, and false alarms."""
    rows = []
    for name in evaluation.methods:
        mean = {metric: evaluation.shown[metric].sel(method=name) for metric in (*RATES, PARTIAL, ALARMS)}
        by = evaluation.of(name).difference.get(PARTIAL)
        rows.append(
            {
                "method": name,
                "tpr": [mean[rate].estimate for rate in RATES],
                "tpr_interval": [_ends(mean[rate]) for rate in RATES],
                **_with_interval(PARTIAL, mean[PARTIAL]),
                f"{PARTIAL}_difference": None if by is None else by.estimate,
                f"{PARTIAL}_difference_interval": _ends(by),
                **_with_interval(ALARMS, mean[ALARMS]),
            }
        )
    rates = list(RATES.values())
    return {"false_positive_rates": rates, "rests_on": evaluation.rests_on(), "methods": rows}


def choice_rows(detector: Detector) -> list[dict[str, Any]]:
    """What calibration chose for each concept."""
    of_kind = () if detector.bank.supervised else ("unit",)
    kept = ("layer", "delta", "threshold", "cal_f1", "candidates", "n_cal_tokens", *of_kind)
    found = {concept: detector.choice(concept) for concept in detector.concepts}
    return [
        {"concept": concept, **{name: getattr(one, name) for name in kept}} for concept, one in found.items()
    ]


def sparsity_block(curve: SparsityCurve) -> dict[str, Any]:
    """The delta curve of every method that has one."""
    each = {method: curve.f1.sel(method=method) for method in curve.f1.axes["method"]}
    return {
        "layer": curve.layer,
        "deltas": curve.deltas,
        "curves": [
            {"method": method, "weighted_f1": f1.estimate, "interval": _ends(f1)}
            for method, f1 in each.items()
        ],
        "always_positive": curve.always_positive.estimate,
    }


def rate_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """False fires and misses, raw against SuperActivators."""
    rows = []
    for concept in evaluation.concepts:
        row: dict[str, Any] = {"concept": concept}
        for name, rate in evaluation.rates.items():
            row |= _with_interval(name, rate.sel(concept=concept))
        rows.append(row)
    return rows


def fraction_block(evaluation: Evaluation) -> dict[str, Any]:
    """Distributions of both SuperActivator fractions."""
    found = evaluation.fractions

    def curve(table: np.ndarray) -> dict[str, Any]:
        concepts = dict(zip(evaluation.concepts, table, strict=True))
        return {"mean": np.nanmean(table, axis=0), "concepts": concepts}

    return {"grid": found.grid, "all": curve(found.all), "inside": curve(found.inside)}


def localisation_rows(metrics: LocalisationMetrics) -> list[dict[str, Any]]:
    """The localisation table."""
    return [
        {
            "method": name,
            **_with_interval("f1", metrics.f1.sel(method=name)),
            **{of: metrics.weighted[of][name] for of in ("average_precision", "auroc")},
        }
        for name in metrics.methods
    ]


def trace_block(found: TailTrace, threshold: Float[np.ndarray, "layer concept"]) -> dict[str, Any]:
    """The measures a report draws, by concept and as weighted mean, and the densities.

    Args:
        found: A trace.
        threshold: What is drawn as the tail's edge; of a detector, with one delta a concept at all layers.
    """
    mean, sd = found["mean_out"].estimate, found["sd_out"].estimate
    with np.errstate(divide="ignore", invalid="ignore"):
        edge = (threshold - mean) / sd
    densities, settings = found.common, found.settings
    return {
        "layers": found.layers,
        "concepts": {concept: _series(found.measures, concept=concept) for concept in found.concepts},
        "mean": _series(found.means),
        "fpr": settings.fpr,
        "delta": settings.delta,
        "draws": settings.quantile_draws,
        "fixed_on": settings.fixed_on,
        **_along(found),
        "distributions": {
            "edges": densities.edges,
            "layers": found.layers,
            "out": _OUT[settings.out],
            "concepts": {
                concept: {
                    "in_concept": densities.in_concept[:, k],
                    "out_of_concept": densities.out_of_concept[:, k],
                    "threshold": edge[:, k],
                }
                for k, concept in enumerate(found.concepts)
            },
        },
    }


def _along(found: TailTrace) -> dict[str, Any]:
    """The tail along other vectors than each layer's own, and what grows, where that was asked."""
    if not found.growth:
        return {}
    names = [name for name in (CHOSEN, PROTOTYPE) if f"{TAILS[0]}_{name}" in found.means]
    return {
        "along": {
            name: {
                "concepts": {c: _tails(found.measures, name, concept=c) for c in found.concepts},
                "mean": _tails(found.means, name),
            }
            for name in names
        },
        "growth": [
            {"whose": one.concept, "answer": one.answer, "detectable": one.detectable, "said": one.sentence()}
            for one in found.growth
        ],
        "refit_groups": found.settings.refits,
    }


def _tails(measures: Mapping[str, Drawn], name: str, **labels: str) -> dict[str, Any]:
    series: dict[str, Any] = {}
    for key in TAILS:
        series |= _with_interval(key, measures[f"{key}_{name}"].sel(**labels))
    return series


def _series(measures: Mapping[str, Drawn], **labels: str) -> dict[str, Any]:
    series: dict[str, Any] = {}
    for key, name in _SERIES.items():
        series |= _with_interval(key, measures[name].sel(**labels))
    return series


def heads_block(ledger: HeadLedger, n: int = 10) -> dict[str, Any]:
    """Head maps and shares by concept, and the `n` strongest heads; JSON-ready."""
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
        out |= _with_interval("total", ledger.lift.total.sel(score=score))
        out["lift_shares"] = _shares(ledger, "lift", score)
    return out


def _shares(ledger: HeadLedger, effect: str, score: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    shares = ledger.effects[effect].shares.sel(score=score)
    for kind, name in (("heads", "head"), ("mlps", "mlp"), ("embedding", "embedding")):
        out |= _with_interval(f"{name}_share", shares.sel(kind=kind))
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
