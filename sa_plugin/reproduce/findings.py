"""What a cell shows of the paper's claims, each with the interval it rests on.

A claim *reproduces* where the interval says so, *does not* where it says the opposite, is *open*
where it holds zero (or one half) and *mixed* where explainers disagree. Each interval stands alone:
with ten claims a cell, some are wrong by chance. All are conditional on one train and calibration
split, and none says anything about the paper's own models and data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sa_plugin.report.words import interval as bounds
from sa_plugin.report.words import number

WEAKER = ("MeanTok", "LastTok", "RandTok", "pooled", "CLS", "MaxTok permuted", "always-positive")
REPRODUCES, DOES_NOT, OPEN = "reproduces", "does not", "open"
LARGE = 0.3
# Relative error of integrated gradients' sum beyond which its map is not read.
COMPLETE = 0.1
MIXED = "mixed"
OPPOSITE = {REPRODUCES: DOES_NOT, DOES_NOT: REPRODUCES, OPEN: OPEN}
ATTRIBUTION = {
    "f1": "Explaining the tail points better",
    "insertion/mean_alignment": "Explaining the tail is more faithful (insertion)",
    "deletion/mean_alignment": "Explaining the tail is more faithful (deletion)",
}


def findings(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Claim, verdict and text, for the primary kind.

    Args:
        record: `cell.json` without its findings.
    """
    kind = record["config"]["run"]["primary"]
    block = record["kinds"][kind]
    found = []
    if "separation" in block:
        found.append(_separation(block["separation"]))
    found += [_small_delta(block), *_gains(block), _maxtok(block), _density(block)]
    found.append(_large(block))
    if "rows" in record.get("attribution", {}):
        found += _attribution(record["attribution"])
    return found


def verdict(low: float | None, high: float | None, null: float = 0.0) -> str:
    """Whether an interval lies above, below or around a value.

    Example:
        >>> verdict(0.1, 0.3), verdict(-0.3, -0.1), verdict(-0.1, 0.1), verdict(None, None)
        ('reproduces', 'does not', 'open', 'open')
    """
    if low is None or high is None:
        return OPEN
    return REPRODUCES if low > null else DOES_NOT if high < null else OPEN


def _claim(claim: str, said: str, text: str) -> dict[str, str]:
    return {"claim": claim, "verdict": said, "text": text}


def _shown(one: Mapping[str, Any], *, signed: bool = False) -> str:
    edges = bounds([one["low"], one["high"]], signed=signed)
    return f"{number(one['estimate'], signed=signed)} {edges}"


def _separation(found: Mapping[str, Any]) -> dict[str, str]:
    gap = found["coverage_difference"]
    text = (
        f"At layer {found['layer']}, {_shown(found['in_mass_at_fpr'])} of in-concept tokens lie "
        "above the .995 quantile of out-of-concept calibration scores, "
        f"{_shown(found['realised_fpr'])} of out-of-concept test tokens do. Samples with such a "
        f"token: {_shown(found['coverage'])} of the positive, {_shown(found['negative_coverage'])} "
        f"of the negative; difference {_shown(gap, signed=True)}."
    )
    return _claim("The tail stands apart", verdict(gap["low"], gap["high"]), text)


def _small_delta(block: Mapping[str, Any]) -> dict[str, str]:
    peaks = block["peaks"]
    gain, m = peaks["gain"], block["tokens_per_positive"][0]
    text = (
        f"One delta for all concepts, chosen on calibration: F1 at {peaks['small']:g} (best up to "
        f".1) minus F1 at {peaks['large']:g} (best from .3): {_shown(gain, signed=True)}. "
        f"Concepts whose test F1 peaks at delta .1 or less: {_shown(peaks['small_share'])} (picked "
        f"on test). A positive calibration sample holds {number(m, 1)} in-concept tokens"
    )
    reach = m * peaks["small"]
    if reach < 1:
        text += (
            f", so at {peaks['small']:g} at most {number(reach, 2)} of these samples can be found "
            "through a token of the concept"
        )
    text += "."
    return _claim("The best delta is small", verdict(gain["low"], gain["high"]), text)


def _gains(block: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = {row["method"]: row for row in block["detection"]["methods"]}
    found = []
    for name in WEAKER:
        row = rows.get(name)
        if row is None or row["difference_interval"] is None:
            continue
        low, high = row["difference_interval"]
        said = verdict(None if high is None else -high, None if low is None else -low)
        gain = None if row["difference"] is None else -row["difference"]
        edges = [None if high is None else -high, None if low is None else -low]
        text = (
            f"Weighted F1, SuperActivators minus {name}: {number(gain, signed=True)} "
            f"{bounds(edges, signed=True)}."
        )
        found.append(_claim(f"Better than {name}", said, text))
    return found


def _maxtok(block: Mapping[str, Any]) -> dict[str, str]:
    row = next(r for r in block["detection"]["methods"] if r["method"] == "MaxTok")
    low, high = row["difference_interval"] or (None, None)
    said = OPPOSITE[verdict(low, high)]
    text = (
        f"MaxTok minus SuperActivators: {number(row['difference'], signed=True)} "
        f"{bounds([low, high], signed=True)}. Both threshold the same number, a sample's highest "
        "score; the paper's table leaves MaxTok out."
    )
    return _claim("Better than MaxTok", said, text)


def _density(block: Mapping[str, Any]) -> dict[str, str]:
    every, inside = (block["density"][part]["0.2"] for part in ("all", "inside"))
    text = (
        "Positive samples whose SuperActivators number at most .2 of their in-concept tokens: "
        f"{_shown(every)} counting all SuperActivators (as published), {_shown(inside)} counting "
        "those inside the concept; mean over concepts. No SuperActivator at all counts as 0."
    )
    return _claim("Most samples lie below .2", verdict(every["low"], every["high"], 0.5), text)


def _large(block: Mapping[str, Any]) -> dict[str, str]:
    share = block["peaks"]["large_share"]
    large = [f"{r['concept']} ({r['delta']:g})" for r in block["choices"] if r["delta"] >= LARGE]
    said = verdict(share["low"], share["high"], 0.5)
    text = (
        f"Concepts whose test F1 peaks at delta .3 or more: {_shown(share)} (picked on test). "
        f"On calibration, layer and delta by concept, {len(large)} of {len(block['choices'])} chose"
        f" .3 or more{': ' + ', '.join(large) if large else ''}."
    )
    return _claim("Few concepts need a large delta", OPPOSITE[said], text)


def incomplete(found: Mapping[str, Any]) -> dict[str, float]:
    """Methods whose sums miss what they should add up to, with the larger relative error.

    Args:
        found: `Comparison.to_dict()`.
    """
    errors = {}
    for row in found["rows"]:
        if (row["concept"], row["metric"]) == (_overall(found), "completeness_error"):
            worst = max(row["global"] or 0.0, row["superactivator"] or 0.0)
            if worst > COMPLETE:
                errors[row["method"]] = worst
    return errors


def _overall(found: Mapping[str, Any]) -> str:
    every = {row["concept"] for row in found["rows"]}
    return "all" if "all" in every else str(next(iter(every)))


def _attribution(found: Mapping[str, Any]) -> list[dict[str, str]]:
    missed, claims = incomplete(found), []
    for metric, claim in ATTRIBUTION.items():
        rows = [
            r for r in found["rows"] if (r["concept"], r["metric"]) == (_overall(found), metric)
        ]
        counted = [row for row in rows if row["method"] not in missed]
        said = {_side(row) for row in counted}
        notes = [
            f"{method.replace('_', ' ')} is not counted: its sums miss completeness by up to "
            f"{error:.0%}, more steps are needed"
            for method, error in missed.items()
        ]
        if rows:
            text = (
                f"{metric} ({rows[0]['better']} is better), global to SuperActivator objective, "
                f"{rows[0]['n_samples']} samples: {'; '.join([*map(_compared, counted), *notes])}."
            )
            one = said.pop() if len(said) == 1 else MIXED if said else OPEN
            claims.append(_claim(claim, one, text))
    return claims


def _side(row: Mapping[str, Any]) -> str:
    said = verdict(*(row[f"superactivator_difference_{end}"] for end in ("low", "high")))
    return OPPOSITE[said] if row["better"] == "lower" else said


def _compared(row: Mapping[str, Any]) -> str:
    edges = [row[f"superactivator_difference_{end}"] for end in ("low", "high")]
    return (
        f"{row['method'].replace('_', ' ')} {number(row['global'])} to "
        f"{number(row['superactivator'])}, {number(row['superactivator_difference'], signed=True)} "
        f"{bounds(edges, signed=True)}"
    )
