"""An evaluation as rows, as text with an honest verdict, and as JSON."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sa_plugin.detection.measure import METRICS
from sa_plugin.detection.methods import RANDOM, RANDOM_DRAWS, TAIL
from sa_plugin.detection.printing import aligned, number, plain, signed
from sa_plugin.statistics import Interval

if TYPE_CHECKING:
    from sa_plugin.detection.evaluate import Evaluation, MethodResult

FEW_DOCUMENTS = 20
WIDTH = 110
CONDITIONAL = (
    "Intervals resample source documents with vectors, thresholds, deltas and layers held fixed: "
    "they are conditional on the train and calibration splits, and not adjusted for the number of "
    "comparisons."
)


def rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row a method; methods that were not fitted say why in `note`."""
    found = [_row(result) for result in evaluation.methods]
    keys = found[0].keys()
    for method, reason in evaluation.missing.items():
        empty: dict[str, Any] = dict.fromkeys(keys, float("nan"))
        found.append({**empty, "method": method, "candidates": 0, "note": f"not fitted: {reason}"})
    return found


def concept_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row for each concept and method."""
    found = []
    for k, concept in enumerate(evaluation.concepts):
        for result in evaluation.methods:
            row: dict[str, Any] = {"concept": concept, "method": result.method}
            row["n_positive"] = int(evaluation.n_positive[k])
            for metric in METRICS:
                row[metric] = result.concept[metric][k].estimate
            f1 = result.concept["f1"][k]
            row |= {"f1_low": f1.low, "f1_high": f1.high}
            row["layer"] = result.layer[:, k].tolist() if result.layer.size else []
            row["delta"] = result.delta[:, k].tolist() if result.delta.size else []
            found.append(row)
    return found


def text(evaluation: Evaluation) -> str:
    """The table of methods, the verdict, and what the intervals are conditional on."""
    about = evaluation.resampling
    header = ["method", "F1", f"{100 * about.level:g} % interval", "precision", "recall", "AUROC"]
    header += ["macro F1", "F1 - SA", "interval", "", "candidates"]
    lines = [_line(result) for result in evaluation.methods]
    lines += [[m, "not fitted", *[""] * 9] for m in evaluation.missing]
    about_candidates = (
        "* the interval of the paired difference excludes zero. candidates: (layer, delta, unit) "
        "combinations each concept's choice was made from, on calibration."
    )
    if any(m.method == RANDOM for m in evaluation.methods):
        about_candidates += f" {RANDOM}: mean of {RANDOM_DRAWS} draws."
    reasons = [f"{m} is not fitted: {why}." for m, why in evaluation.missing.items()]
    title = (
        f"Detection on {about.split!r}: {about.n_samples} samples of {about.n_documents} "
        f"documents, {len(evaluation.concepts)} concepts; F1, precision, recall and AUROC "
        "weighted by positive samples, macro a plain mean; both leave out concepts without any."
    )
    condition = f"{CONDITIONAL} {about.draws} draws, seed {about.seed}.{_few(about.n_documents)}"
    notes = [about_candidates, *reasons, verdict(evaluation), condition]
    return "\n".join([title, aligned(header, lines), *(_wrapped(note) for note in notes)])


def _wrapped(note: str) -> str:
    return textwrap.fill(note, WIDTH, break_on_hyphens=False)


def verdict(evaluation: Evaluation) -> str:
    """Which baselines SuperActivators beat, tie with and lose to, by weighted F1."""
    beaten: list[str] = []
    tied: list[str] = []
    lost: list[str] = []
    unknown: list[str] = []
    for result in evaluation.methods:
        if result.method == TAIL:
            continue
        by = result.difference["f1"]
        words = f"{result.method} ({signed(by.estimate)} {_bounds(by, sign=True)})"
        if by.high < 0:
            beaten.append(words)
        elif by.low > 0:
            lost.append(words)
        else:
            (tied if by.low <= 0 <= by.high else unknown).append(words)
    parts = [("beat", beaten), ("tie with", tied), ("lose to", lost)]
    parts.append(("cannot be compared with", unknown))
    said = "; ".join(f"{verb} {', '.join(names)}" for verb, names in parts if names)
    level = 100 * evaluation.resampling.level
    return (
        f"By weighted F1 SuperActivators {said}. In brackets: method minus SuperActivators with "
        f"its {level:g} % interval; a tie is an interval that holds zero, no proof of equality."
    )


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Every number, seed and count."""
    parts = evaluation.fractions
    found = plain(
        {
            "resampling": asdict(evaluation.resampling),
            "concepts": evaluation.concepts,
            "n_positive": evaluation.n_positive,
            "methods": {m.method: _method_dict(m, evaluation) for m in evaluation.methods},
            "not_fitted": dict(evaluation.missing),
            "rates": [asdict(r) for r in evaluation.rates],
            "fractions": {
                name: getattr(parts, name)
                for name in ("grid", "all", "inside", "above_one", "n", "skipped")
            },
            "verdict": verdict(evaluation),
            "note": CONDITIONAL,
        }
    )
    return dict(found)


def _few(documents: int) -> str:
    if documents >= FEW_DOCUMENTS:
        return ""
    return (
        f" Only {documents} documents: percentile intervals over so few are too narrow, so read no "
        "difference off them."
    )


def _row(result: MethodResult) -> dict[str, Any]:
    row: dict[str, Any] = {"method": result.method}
    for metric in METRICS:
        row[f"weighted_{metric}"] = result.weighted[metric].estimate
    row |= {"f1_low": result.weighted["f1"].low, "f1_high": result.weighted["f1"].high}
    for metric in METRICS:
        row[f"macro_{metric}"] = result.macro[metric].estimate
    for metric in ("f1", "auroc"):
        by = result.difference.get(metric)
        row[f"{metric}_difference"] = by.estimate if by else float("nan")
        row[f"{metric}_difference_low"] = by.low if by else float("nan")
        row[f"{metric}_difference_high"] = by.high if by else float("nan")
        row[f"{metric}_difference_excludes_zero"] = bool(by and by.excludes_zero)
    return {**row, "candidates": result.candidates, "note": _note(result)}


def _line(result: MethodResult) -> list[str]:
    f1 = result.weighted["f1"]
    cells = [result.method, number(f1.estimate), _bounds(f1)]
    cells += [number(result.weighted[m].estimate) for m in ("precision", "recall", "auroc")]
    cells.append(number(result.macro["f1"].estimate))
    by = result.difference.get("f1")
    if by is None:
        cells += ["", "", ""]
    else:
        cells += [signed(by.estimate), _bounds(by, sign=True), "*" if by.excludes_zero else ""]
    return [*cells, str(result.candidates)]


def _note(result: MethodResult) -> str:
    if result.method == RANDOM:
        return f"mean of {len(result.delta)} draws"
    return "" if result.candidates else "no search"


def _method_dict(result: MethodResult, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "concepts": {
            c: {m: asdict(result.concept[m][k]) for m in METRICS}
            for k, c in enumerate(evaluation.concepts)
        },
        "weighted": {m: asdict(v) for m, v in result.weighted.items()},
        "macro": {m: asdict(v) for m, v in result.macro.items()},
        "difference": {
            m: {**asdict(v), "excludes_zero": v.excludes_zero} for m, v in result.difference.items()
        },
        "layer": result.layer,
        "delta": result.delta,
        "candidates": result.candidates,
    }


def _bounds(interval: Interval, *, sign: bool = False) -> str:
    show = signed if sign else number
    return f"[{show(interval.low)}, {show(interval.high)}]"
