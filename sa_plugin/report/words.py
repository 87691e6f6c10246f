"""What the numbers allow to be said, composed from the record and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from sa_plugin.show.html import (
    ALWAYS,
    MAXTOK,
    OWN,
    by_weighted_f1,
    interval,
    kind_label,
    listed,
    method_of,
    side_of_zero,
    tick,
    typeset,
)
from sa_plugin.statistics.interval import ENOUGH, LEAST

SMALL = 0.05


def verdict(results: Mapping[str, Any]) -> str:
    """One paragraph on the primary kind, as plain text.

    It says where SuperActivators stand, against which methods the paired interval excludes zero
    and which way, how they compare with MaxTok (the same statistic) and with always-positive, how
    far into the tail the chosen deltas lie, and what the intervals do not cover.

    Args:
        results: The results dictionary, see `sa_plugin.report.schema`.

    Returns:
        The paragraph, or why there is none.

    Example:
        >>> verdict({})
        'No verdict: detection was not computed.'
    """
    kind = primary_kind(results)
    block = results.get("kinds", {}).get(kind, {})
    if not block.get("detection"):
        return "No verdict: detection was not computed."
    rows = by_weighted_f1(block["detection"]["methods"])
    own = method_of(rows, OWN)
    if own is None or own["weighted_f1"] is None:
        return "No verdict: SuperActivators were not evaluated."
    others = [row for row in rows if row is not own]
    sentences = [_standing(kind, own, rows), *_sides(others), _maxtok(rows), _floor(rows)]
    sentences += [_deltas(block.get("choices", [])), _tail_alone(block.get("sparsity"))]
    sentences.append(
        "Intervals leave out each document of the test split in turn, with vectors, thresholds and choices "
        "held fixed: they are conditional on the train and calibration splits."
    )
    return " ".join(sentence for sentence in sentences if sentence)


def primary_kind(results: Mapping[str, Any]) -> str:
    """The kind that is shown in full: the one the run names, else the first."""
    kinds = list(results.get("kinds", {}))
    named = str(results.get("meta", {}).get("primary_kind", ""))
    return named if named in kinds or not kinds else kinds[0]


def _standing(kind: str, own: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    place = [row["method"] for row in rows].index(OWN) + 1
    ordinal = "highest" if place == 1 else f"number {place}"
    return (
        f"With the {kind_label(kind)}, SuperActivators reach a weighted F1 of "
        f"{typeset(own['weighted_f1'])} {interval(own['interval'])} on held-out documents, "
        f"{ordinal} of {len(rows)} methods."
    )


def _sides(others: Sequence[Mapping[str, Any]]) -> list[str]:
    groups: dict[int, list[str]] = {-1: [], 0: [], 1: []}
    for row in others:
        if row["difference"] is not None:
            groups[side_of_zero(row["difference_interval"])].append(row["method"])
    said = []
    if groups[-1]:
        said.append(f"The paired interval shows them ahead of {listed(groups[-1])}.")
    if groups[0]:
        said.append(f"It does not tell them apart from {listed(groups[0])}.")
    if groups[1]:
        said.append(f"It shows them behind {listed(groups[1])}.")
    return said


def _maxtok(rows: Sequence[Mapping[str, Any]]) -> str:
    row = method_of(rows, MAXTOK)
    if row is None:
        return "MaxTok, which uses the same statistic, was not evaluated."
    gap = typeset(row["difference"], signed=True)
    return (
        "MaxTok thresholds the same statistic, the highest token score, at other quantiles; its "
        f"difference is {gap} {interval(row['difference_interval'], signed=True)}."
    )


def _floor(rows: Sequence[Mapping[str, Any]]) -> str:
    row = method_of(rows, ALWAYS)
    return "" if row is None else f"Calling every sample positive gives {typeset(row['weighted_f1'])}."


def _deltas(choices: Sequence[Mapping[str, Any]]) -> str:
    chosen = [choice["delta"] for choice in choices]
    if not chosen:
        return ""
    return (
        f"Calibration chose deltas from {tick(min(chosen))} to {tick(max(chosen))} (median "
        f"{tick(median(chosen))}): the share of a concept's calibration tokens that the rule keeps "
        "as its tail."
    )


def _tail_alone(block: Mapping[str, Any] | None) -> str:
    curve = method_of(block["curves"], OWN) if block else None
    if block is None or curve is None or SMALL not in block["deltas"]:
        return ""
    f1 = curve["weighted_f1"]
    known = [(v, -d) for v, d in zip(f1, block["deltas"], strict=True) if v is not None]
    if not known:
        return ""
    best, at = max(known)
    where = "" if block["layer"] is None else f", all at layer {block['layer']}"
    small = f1[block["deltas"].index(SMALL)]
    return (
        f"With one delta for all concepts{where}, the tail at delta {tick(SMALL)} alone reaches "
        f"{typeset(small)}, the best delta, {tick(-at)}, {typeset(best)} (picked on test)."
    )


def caution(results: Mapping[str, Any]) -> str:
    """What printed tables say where test documents are few; else nothing."""
    n = results.get("meta", {}).get("documents", {}).get("test")
    if n is None or n >= ENOUGH:
        return ""
    return (
        f"Only {n} test documents: intervals over so few hold, and are wide; a concept in fewer than {LEAST} "
        "documents has none."
    )


def in_family(row: Mapping[str, Any], level: float = 0.95) -> bool:
    """Whether a difference excludes zero with all differences of its table read as one family."""
    p = row.get("p_in_family")
    return p is not None and p < 1 - level


def standing(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Where SuperActivators do not win: a heading, if they do not, and the sentence."""
    rows = by_weighted_f1(rows)
    own = method_of(rows, OWN)
    if own is None or own["weighted_f1"] is None:
        return "", "SuperActivators were not evaluated, so nothing is compared with them."
    defined = [row for row in rows if row is not own and row["weighted_f1"] is not None]
    above = [row["method"] for row in defined if row["weighted_f1"] > own["weighted_f1"]]
    tied = [row["method"] for row in defined if side_of_zero(row["difference_interval"]) >= 0]
    parts = []
    if above:
        parts.append(f"{listed(above)} {'have' if len(above) > 1 else 'has'} the higher weighted F1.")
    if tied:
        parts.append(f"Not shown to be worse than SuperActivators: {listed(tied)}.")
    if not parts:
        return "", "SuperActivators are first, and every paired interval excludes zero."
    return "Where SuperActivators do not win.", " ".join(parts)


def overall_rows(block: Mapping[str, Any], *metrics: str) -> list[Mapping[str, Any]]:
    """Rows of some metrics of a comparison of objectives, of all concepts together; of one, its own."""
    # Records from before strata have rows of all samples alone.
    rows = [row for row in block["rows"] if row.get("stratum", "all") == "all"]
    every = {row["concept"] for row in rows}
    overall = "all" if "all" in every else min(every, default="")
    return [row for row in rows if row["concept"] == overall and row["metric"] in metrics]
