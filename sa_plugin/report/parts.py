"""What the page's template is filled with: the parts of the record, ordered, with their charts.

Each function takes a block of the record (`sa_plugin.report.schema`) and gives a dictionary for the
template, which holds all words but the few that depend on several numbers (`words`). A part that the
record lacks is None here and one line on the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from sa_plugin.attribution.comparison import HEADLINE
from sa_plugin.report import charts, words
from sa_plugin.report.words import in_family
from sa_plugin.show.html import (
    ALWAYS,
    MAXTOK,
    OWN,
    Markup,
    Real,
    by_weighted_f1,
    decimals,
    known,
    method_of,
    percent,
    side_of_zero,
    typeset,
)
from sa_plugin.show.patches import picture_sides
from sa_plugin.show.shaded import Item, limit_of, shade, text_sides, tokens, verdicts
from sa_plugin.statistics.interval import ENOUGH

Block = Mapping[str, Any]
_MOST_MAPS = 5
_ROLES: Mapping[str, str] = {
    "true_positive": "True positive",
    "raw_false_fire": "False fire of raw scores, rejected by the tail",
    "false_positive": "Failure: false positive",
    "miss": "Failure: miss",
}
_SIGNS = {1: ("▲", "better than"), -1: ("▼", "worse than"), 0: ("·", "not told apart from")}


def context(results: Block) -> dict[str, Any]:
    """Everything the template shows.

    Args:
        results: Cleaned and checked, see `sa_plugin.report.schema`.
    """
    kind = words.primary_kind(results)
    kinds = results.get("kinds", {})
    block = kinds.get(kind, {})
    return {
        "meta": results.get("meta"),
        "verdict": words.verdict(results),
        "caution": words.caution(results),
        "kind": kind,
        "block": block,
        "absent": block.get("absent", {}),
        **_primary(block),
        "passages": _samples(results.get("passages"), pictured=False),
        "pictures": _samples(results.get("pictures"), pictured=True),
        "explained": _explained(results.get("explained")),
        "attribution": _attribution(results.get("attribution")),
        "kinds": _other_kinds(kinds, kind) if len(kinds) > 1 else None,
        "provenance": _provenance(results.get("provenance")),
        "warnings": results.get("warnings"),
    }


def _primary(block: Block) -> dict[str, Any]:
    """The parts of one concept kind, in full."""
    detected, found = block.get("detection"), block.get("trace")
    choices_made, drawn = block.get("choices"), (found or {}).get("distributions")
    return {
        "detection": detected and _detection(detected, ""),
        "choices": choices_made and _choices(choices_made, (detected or {}).get("per_concept", [])),
        "sparsity": block.get("sparsity") and _sparsity(block["sparsity"], ""),
        "distributions": drawn and _distributions(drawn, choices_made or [], ""),
        "trace": found and _trace(found, ""),
        "heads": block.get("heads") and _heads(block["heads"]),
        "localisation": block.get("localisation"),
        "rates": block.get("rates")
        and {"rows": block["rates"], "charts": charts.rate_charts(block["rates"], "rate-")},
        "fractions": block.get("fractions") and charts.fraction_charts(block["fractions"], "fraction-"),
    }


def _detection(block: Block, prefix: str) -> dict[str, Any]:
    """Methods by weighted F1, and what is not won."""
    rows, n = by_weighted_f1(block["methods"]), block["n_documents"]
    floor = method_of(rows, ALWAYS)
    heading, said = words.standing(rows)
    return {
        "rows": [{**row, "own": row["method"] == OWN, "sign": _sign(row, len(rows) - 1)} for row in rows],
        "charts": charts.method_charts(rows, floor and floor["weighted_f1"], n, f"{prefix}method-"),
        "monitor": block.get("monitor") and _monitor(block["monitor"], [row["method"] for row in rows]),
        "n_samples": block["n_samples"],
        "n_documents": n,
        "few": n < ENOUGH,
        "heading": heading,
        "said": said,
    }


def _monitor(block: Block, order: Sequence[str]) -> dict[str, Any]:
    """What a monitor is chosen by, in the order of the detection table."""
    place = {name: k for k, name in enumerate(order)}
    rows = sorted(block["methods"], key=lambda row: place.get(row["method"], len(place)))
    rates = block["false_positive_rates"]
    return {
        "rates": ["–" if rate is None else f"{100 * rate:g}" for rate in rates],
        "read": [any(row["tpr"][k] is not None for row in rows) for k in range(len(rates))],
        "rests_on": block["rests_on"],
        "rows": rows,
    }


def _sign(row: Block, n: int) -> tuple[str, str] | None:
    """▲ or ▼ where a paired interval excludes zero, twice where n read as one family do; else a point."""
    bounds = row["difference_interval"]
    if not known(bounds):
        return None
    mark, words = _SIGNS[side_of_zero(bounds)]
    if in_family(row):
        return 2 * mark, f"with all {n} differences read as one family {words}"
    return mark, words


def _choices(chosen: Sequence[Block], scored: Sequence[Block]) -> dict[str, Any]:
    """What calibration chose for each concept, beside its test F1 by three methods."""
    by_concept = {row["concept"]: row for row in scored}
    rows = [{**choice, **_tested(by_concept.get(choice["concept"]))} for choice in chosen]
    rows.sort(key=lambda row: (-(row["own"] or 0.0), row["concept"]))
    return {"rows": rows, "chart": charts.concept_chart(rows, "choice-") if scored else None}


def _tested(row: Block | None) -> dict[str, Any]:
    f1 = {} if row is None else row["f1"]
    others = [(v, m) for m, v in f1.items() if m not in (OWN, MAXTOK) and v is not None]
    other, method = max(others, default=(None, ""))
    three = (f1.get(OWN), f1.get(MAXTOK), other)
    return {
        "own": three[0],
        "maxtok": three[1],
        "other": other,
        "other_method": method,
        "top": max((v for v in three if v is not None), default=None),
        "interval": ((row or {}).get("interval") or {}).get(OWN),
        "n_positive": row and row["n_positive"],
        "documents": (row or {}).get("documents"),
        "few": ((row or {}).get("documents") or ENOUGH) < ENOUGH,
    }


def _sparsity(block: Block, prefix: str) -> dict[str, Any]:
    """The delta curve, methods by the height of their peaks."""
    peaks = [{"method": curve["method"], **_peak(curve, block["deltas"])} for curve in block["curves"]]
    peaks.sort(key=lambda peak: (peak["f1"] is None, -(peak["f1"] or 0.0), peak["method"]))
    return {
        "layer": block["layer"],
        "always_positive": block["always_positive"],
        "peaks": peaks,
        "chart": charts.delta_chart(block, peaks, prefix),
    }


def _peak(curve: Block, deltas: Sequence[Real]) -> dict[str, Any]:
    """The highest F1 of a curve and the smallest delta that reaches it."""
    pairs = [(v, -d) for v, d in zip(curve["weighted_f1"], deltas, strict=True) if v is not None]
    f1, delta = max(pairs, default=(None, None))
    return {"f1": f1, "delta": None if delta is None else -delta}


def _distributions(block: Block, chosen: Sequence[Block], prefix: str) -> dict[str, Any]:
    """Densities by concept and layer."""
    names = charts.shown_concepts(list(block["concepts"]), chosen)
    layer = {choice["concept"]: choice["layer"] for choice in chosen}
    return {
        "chart": charts.density_chart(block, names, layer, prefix),
        "out": block.get("out", "as traced"),
        "more": len(block["concepts"]) - len(names),
    }


def _trace(block: Block, prefix: str) -> dict[str, Any]:
    """Separation by layer, and what share of test tokens out of concept lies above q."""
    series = [one.get("realised_fpr") or [] for one in block["concepts"].values()]
    rates = [rate for one in series for rate in one if rate is not None]
    return {
        "charts": charts.layer_charts(block, f"{prefix}trace-"),
        "draws": block.get("draws"),
        "mean": bool(block.get("mean")),
        "top": None if block.get("delta") is None else 1 - block["delta"],
        "fixed_on": block.get("fixed_on"),
        "along": list(block.get("along", {})),
        "growth": block.get("growth", []),
        "refit_groups": block.get("refit_groups", 0),
        "fpr": {"mean": sum(rates) / len(rates), "low": min(rates), "high": max(rates)} if rates else None,
    }


def _heads(block: Block) -> dict[str, Any]:
    """Head maps, shares and the strongest heads of a ledger."""
    concepts = block["concepts"]
    rows = [{**row, "gap": _gap(row)} for row in block["strongest"]]
    lowers = [row for row in rows if _ranked_by(row) < 0]
    return {
        "maps": _head_maps(concepts),
        "controlled": all(one.get("control") for one in concepts.values()),
        "closes_to": block["closes_to"],
        "unit": block.get("unit"),
        "lift_shares": _shares(concepts, "lift_shares", "lift"),
        "shares": _shares(concepts, "shares", "contrast"),
        "shares_of": block.get("shares_of"),
        "groups": [
            (name, group)
            for name, group in (
                ("Raise the score", [row for row in rows if row not in lowers]),
                ("Lower it", lowers),
            )
            if group
        ],
        "digits": decimals(row["lift"] for row in rows),
        "rank_control": any(row["control"] is not None for row in rows),
        "candidates": block.get("candidates"),
        "excludes_zero": [
            f"{percent(block['excludes_zero'][key])} for {name}"
            for key, name in (("lift", "lift"), ("control", "control"), ("excess", "lift − control"))
            if key in block.get("excludes_zero", {})
        ],
    }


def _gap(row: Block) -> Real | None:
    if row.get("excess") is not None:
        return float(row["excess"])
    if row["lift"] is None or row["control"] is None:
        return None
    return float(row["lift"] - row["control"])


def _ranked_by(row: Block) -> Real:
    """What the run ranked by: lift - control, else the lift, else the contrast."""
    values = (row["gap"], row["lift"], row.get("contrast"))
    return next((value for value in values if value is not None), 0.0)


def relative(head_map: Block) -> np.ndarray:
    """Lift minus control, [block, head], as a share of the |lift| of the concept's score, `total`.

    Dot scores of two concepts share no scale; their shares can be averaged and shaded alike. The lift
    alone where no control was computed, undivided where the record has no total.
    """
    lift = charts.floats(head_map["lift"])
    found = lift - charts.floats(head_map["control"]) if head_map.get("control") else lift
    if "total" not in head_map:
        return found
    total = abs(head_map["total"] or 0.0)
    return found / total if total else np.full_like(found, np.nan)


def mean_grid(grids: Sequence[np.ndarray]) -> np.ndarray:
    """Cell by cell mean; NaN where any is NaN.

    Blocks above the layer of a score write nothing into it: shallower grids count as zero there.
    """
    depth = max(len(grid) for grid in grids)
    return np.asarray(np.mean([np.pad(grid, ((0, depth - len(grid)), (0, 0))) for grid in grids], axis=0))


def _head_maps(concepts: Mapping[str, Block]) -> dict[str, Any]:
    """Heat maps: the mean over concepts, then the concepts with the strongest single head."""
    scaled = all("total" in one for one in concepts.values())
    of = relative if scaled else lambda one: relative({k: v for k, v in one.items() if k != "total"})
    grids = {name: of(one) for name, one in concepts.items()}
    size = {name: _largest(grid) for name, grid in grids.items()}
    ranked = sorted(grids, key=lambda name: (-size[name], name))
    shown = [
        (f"{name}, score at layer {concepts[name]['layer']}", grids[name]) for name in ranked[:_MOST_MAPS]
    ]
    if len(grids) > 1:
        # A concept without a lift has no shares; the mean is over those that have.
        some = [grid for name, grid in grids.items() if size[name]]
        shown.insert(0, (_mean_title(concepts, len(some)), mean_grid(some or list(grids.values()))))
    limit = max((_largest(grid) for _, grid in shown), default=0.0)
    drawn = [
        {"title": title, "chart": charts.head_map_chart(grid, limit, title, f"heads{n}")}
        for n, (title, grid) in enumerate(shown)
    ]
    return {"drawn": drawn, "limit": limit, "scaled": scaled}


def _mean_title(concepts: Mapping[str, Block], n: int) -> str:
    layers = [one["layer"] for one in concepts.values()]
    low, high = min(layers), max(layers)
    where = f"layers {low} to {high}" if low < high else f"layer {low}"
    return f"mean of {n} concepts, scores at {where}"


def _largest(grid: np.ndarray) -> float:
    return float(np.nanmax(np.abs(grid), initial=0.0)) if np.isfinite(grid).any() else 0.0


def _shares(concepts: Mapping[str, Block], key: str, of: str) -> dict[str, Any] | None:
    """Shares of heads, MLPs, embedding and, where there are any, biases."""
    rows = [{"concept": name, **one[key]} for name, one in sorted(concepts.items()) if one.get(key)]
    if not rows:
        return None
    parts = {"head": "Heads", "mlp": "MLPs", "embedding": "Embedding"}
    if any("bias_share" in row for row in rows):
        parts["bias"] = "Biases"
    chart = charts.share_chart(rows, parts, f"Shares of the {of}", f"shares-{of}")
    return {"rows": rows, "parts": parts, "chart": chart}


def _samples(items: Sequence[Item] | None, *, pictured: bool) -> list[dict[str, Any]] | None:
    """Every passage or image twice, with what each rule says of it."""
    if not items:
        return None
    found, drawn = [], set[str]()
    for item in items:
        limit = limit_of(item, items)
        sides = picture_sides(item, limit, drawn) if pictured else text_sides(item, limit)
        names = (item.get("document"), item["id"] if pictured else None)
        role = _ROLES.get(item["role"], item["role"].replace("_", " "))
        places = list(dict.fromkeys(word for word in names if word))
        found.append({**item, "role": role, "places": places, "sides": sides, "verdicts": verdicts(item)})
    return found


def _explained(block: Block | None) -> dict[str, Any] | None:
    """One passage under each objective: attribution by token and, where given, by head."""
    if not block:
        return None
    shown = [
        {**one, **_attributed(block, one, f"explained{n}")} for n, one in enumerate(block["explanations"])
    ]
    return {**block, "explanations": shown, "has_heads": any(one.get("heads") for one in shown)}


def _attributed(block: Block, one: Block, prefix: str) -> dict[str, Any]:
    values = [(v, k) for k, v in enumerate(one["tokens"]) if v is not None]
    most = max((abs(v) for v, _ in values), default=0.0)
    first = sorted(values, key=lambda pair: (-abs(pair[0]), pair[1]))[:5]
    total = sum(abs(v) for v, _ in values)
    on = sum(abs(v) for v, k in values if block["superactivator"][k])
    digits = decimals(v for v, _ in first)
    found: dict[str, Any] = {
        "reading": tokens(block["text"], block["offsets"], lambda n, text: _owed(block, one, n, text, most)),
        "largest": [
            f"“{_bare(block['text'][slice(*block['offsets'][k])])}” {typeset(v, digits, True)}"
            for v, k in first
        ],
        "on_tail": on / total if total else None,
    }
    if one.get("heads"):
        grid = charts.floats(one["heads"])
        limit = _largest(grid)
        found["limit"] = typeset(limit, decimals([limit]))
        found["map"] = charts.head_map_chart(grid, limit, f"objective {one['objective']}", prefix)
    return found


def _owed(block: Block, one: Block, n: int, text: str, most: Real) -> Markup:
    marks = (("tail", block["superactivator"][n]), ("labelled", block["in_concept"][n]))
    value = one["tokens"][n]
    tip = f"attribution {typeset(value, 4)}" + (", SuperActivator" if marks[0][1] else "")
    return shade(text, value, most, tip, " ".join(name for name, on in marks if on))


def _bare(text: str) -> str:
    """A token without the spaces round it, unless it is nothing else."""
    return text.strip() or text.replace("\n", "↵")


def _attribution(block: Block | None) -> dict[str, Any] | None:
    """Whether explaining the tail beats explaining the global vector, by explainer and metric."""
    if not block:
        return None
    every = {row["concept"] for row in block["rows"]}
    first, *others = _objectives(block["rows"])
    groups = [(metric, rows) for metric in HEADLINE if (rows := words.overall_rows(block, metric))]
    drawn = [
        charts.objective_chart(rows, others, metric, f"objective{n}")
        for n, (metric, rows) in enumerate(groups)
    ]
    return {
        "concepts": block.get("concepts", sorted(every - {"all"})),
        "first": first,
        "others": others,
        "groups": groups,
        "charts": drawn,
        "coverage": block.get("coverage", []),
    }


def _objectives(rows: Sequence[Block]) -> list[str]:
    """Names of the objectives, the one that the others are compared with first."""
    keys = list(rows[0]) if rows else []
    return [key for key in keys if f"{key}_low" in keys and not key.endswith("_difference")] or [""]


def _other_kinds(kinds: Mapping[str, Block], main: str) -> dict[str, Any]:
    """A line for every kind, then what was computed for each but the primary, folded."""
    return {
        "rows": [_kind_row(name, block, name == main) for name, block in kinds.items()],
        "folded": [
            _folded(name, block, f"kind{n}-") for n, (name, block) in enumerate(kinds.items()) if name != main
        ],
    }


def _kind_row(name: str, block: Block, main: bool) -> dict[str, Any]:
    rows = by_weighted_f1(block.get("detection", {}).get("methods", []))
    layers = [choice["layer"] for choice in block.get("choices", [])]
    deltas = [choice["delta"] for choice in block.get("choices", [])]
    located = method_of(block.get("localisation", []), OWN)
    return {
        "name": name,
        "main": main,
        "own": method_of(rows, OWN),
        "maxtok": method_of(rows, MAXTOK),
        "best": rows[0] if rows else None,
        "layers": (min(layers), max(layers)) if layers else None,
        "delta": median(deltas) if deltas else None,
        "located": located and located["f1"],
    }


def _folded(name: str, block: Block, prefix: str) -> dict[str, Any]:
    return {
        "name": name,
        "detection": block.get("detection") and _detection(block["detection"], prefix),
        "sparsity": block.get("sparsity") and _sparsity(block["sparsity"], prefix),
        "trace": block.get("trace") and _trace(block["trace"], prefix),
    }


def _provenance(block: Block | None) -> dict[str, Any] | None:
    """What the run recorded about itself, nested keys joined by dots; long lists stay in the record."""
    if not block:
        return None
    groups = [
        (key.capitalize(), sorted(_flat(block[key])))
        for key in ("versions", "hashes", "settings", "counts")
        if block.get(key)
    ]
    return {**block, "groups": groups}


def _flat(values: Block, prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value if len(str(value)) <= _LONGEST else "in results.json"))
    return rows


_LONGEST = 400
"""Characters of a recorded value that the page repeats: a fit says something of every unit and layer."""
