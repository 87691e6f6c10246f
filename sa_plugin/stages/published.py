"""A cell of the paper's matrix in words: what it shows of the claims, beside what was published.

A claim *reproduces* where its interval says so, *does not* where that says the opposite, is *open*
where it holds zero (or one half) and *mixed* where explainers disagree. Each interval stands alone:
with ten claims a cell, some are wrong by chance. All are conditional on one train and calibration
split, and none says anything about the paper's own models and data.

`published.json` holds what the paper's sources publish, as published, with where each was read. It
is of the paper's own models and data (arXiv 2512.05038): a cell run on another model or other data
has no published counterpart, and no difference is ever taken. Baselines whose published numbers
contradict each other carry the contradiction with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

from sa_plugin._check import require_known
from sa_plugin.report.words import in_family, overall_rows
from sa_plugin.show.html import DASH, OWN, by_weighted_f1, kind_label, known, side_of_zero, tick, typeset
from sa_plugin.show.html import interval as bounds
from sa_plugin.show.result import star_words
from sa_plugin.statistics.interval import ENOUGH

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
    kind = record["meta"]["primary_kind"]
    block = record["kinds"][kind]
    found = []
    if "separation" in block:
        found.append(_separation(block["separation"]))
    found += [_small_delta(block), *_gains(block), _maxtok(block), _density(block)]
    found.append(_large(block))
    if "rows" in record.get("attribution", {}):
        found += _attribution(record["attribution"])
    return found


def interval_says(low: float | None, high: float | None, null: float = 0.0) -> str:
    """Whether an interval lies above, below or around a value.

    Example:
        >>> interval_says(0.1, 0.3), interval_says(-0.3, -0.1), interval_says(-0.1, 0.1)
        ('reproduces', 'does not', 'open')
    """
    if low is None or high is None:
        return OPEN
    return REPRODUCES if low > null else DOES_NOT if high < null else OPEN


def _claim(claim: str, said: str, text: str) -> dict[str, str]:
    return {"claim": claim, "verdict": said, "text": text}


def _shown(one: Mapping[str, Any], digits: int = 3, *, signed: bool = False) -> str:
    return _with_ends(one["estimate"], [one["low"], one["high"]], digits, signed=signed)


def _with_ends(
    value: float | None, ends: Sequence[float | None] | None, digits: int = 3, *, signed: bool = True
) -> str:
    return f"{typeset(value, digits, signed)} {bounds(ends, digits, signed)}"


def _separation(found: Mapping[str, Any]) -> dict[str, str]:
    gap = found["coverage_difference"]
    text = (
        f"At layer {found['layer']}, {_shown(found['in_mass_at_fpr'])} of in-concept tokens lie "
        "above the .995 quantile of out-of-concept calibration scores, "
        f"{_shown(found['realised_fpr'])} of out-of-concept test tokens do. Samples with such a "
        f"token: {_shown(found['coverage'])} of the positive, {_shown(found['negative_coverage'])} "
        f"of the negative; difference {_shown(gap, signed=True)}."
    )
    return _claim("The tail stands apart", interval_says(gap["low"], gap["high"]), text)


def _small_delta(block: Mapping[str, Any]) -> dict[str, str]:
    peaks = block["peaks"]
    gain, m = peaks["gain"], block["tokens_per_positive"][0]
    text = (
        f"One delta for all concepts, chosen on calibration: F1 at {peaks['small']:g} (best up to "
        f".1) minus F1 at {peaks['large']:g} (best from .3): {_shown(gain, signed=True)}. "
        f"Concepts whose test F1 peaks at delta .1 or less: {_shown(peaks['small_share'])} (picked "
        f"on test). A positive calibration sample holds {typeset(m, 1)} in-concept tokens"
    )
    reach = m * peaks["small"]
    if reach < 1:
        text += (
            f", so at {peaks['small']:g} at most {typeset(reach, 2)} of these samples can be found "
            "through a token of the concept"
        )
    text += "."
    return _claim("The best delta is small", interval_says(gain["low"], gain["high"]), text)


def _gains(block: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = {row["method"]: row for row in block["detection"]["methods"]}
    found = []
    for name in WEAKER:
        row = rows.get(name)
        if row is None or row["difference_interval"] is None:
            continue
        # The record has the method minus SuperActivators.
        low, high = (None if end is None else -end for end in reversed(row["difference_interval"]))
        gain = None if row["difference"] is None else -row["difference"]
        text = f"Weighted F1, SuperActivators minus {name}: {_with_ends(gain, [low, high])}."
        found.append(_claim(f"Better than {name}", interval_says(low, high), text))
    return found


def _maxtok(block: Mapping[str, Any]) -> dict[str, str]:
    row = next(r for r in block["detection"]["methods"] if r["method"] == "MaxTok")
    ends = row["difference_interval"] or (None, None)
    text = (
        f"MaxTok minus SuperActivators: {_with_ends(row['difference'], ends)}. Both threshold the "
        "same number, a sample's highest score; the paper's table leaves MaxTok out."
    )
    return _claim("Better than MaxTok", OPPOSITE[interval_says(*ends)], text)


def _density(block: Mapping[str, Any]) -> dict[str, str]:
    every, inside = (block["density"][part]["0.2"] for part in ("all", "inside"))
    text = (
        "Positive samples whose SuperActivators number at most .2 of their in-concept tokens: "
        f"{_shown(every)} counting all SuperActivators (as published), {_shown(inside)} counting "
        "those inside the concept; mean over concepts. No SuperActivator at all counts as 0."
    )
    return _claim("Most samples lie below .2", interval_says(every["low"], every["high"], 0.5), text)


def _large(block: Mapping[str, Any]) -> dict[str, str]:
    share = block["peaks"]["large_share"]
    large = [f"{r['concept']} ({r['delta']:g})" for r in block["choices"] if r["delta"] >= LARGE]
    said = interval_says(share["low"], share["high"], 0.5)
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
    for row in overall_rows(found, "completeness_error"):
        worst = max(row["global"] or 0.0, row["superactivator"] or 0.0)
        if worst > COMPLETE:
            errors[row["method"]] = worst
    return errors


def _attribution(found: Mapping[str, Any]) -> list[dict[str, str]]:
    missed, claims = incomplete(found), []
    for metric, claim in ATTRIBUTION.items():
        rows = overall_rows(found, metric)
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
    low, high = _ends(row)
    said = interval_says(low, high)
    return OPPOSITE[said] if row["better"] == "lower" else said


def _compared(row: Mapping[str, Any]) -> str:
    both = f"{typeset(row['global'])} to {typeset(row['superactivator'])}"
    gap = _with_ends(row["superactivator_difference"], _ends(row))
    return f"{row['method'].replace('_', ' ')} {both}, {gap}"


def _ends(row: Mapping[str, Any], objective: str = "superactivator") -> list[float | None]:
    return [row[f"{objective}_difference_{end}"] for end in ("low", "high")]


# Blocks by the models' public configurations; Llama's text stack runs 32 of 40 without an image.
BLOCKS = {"clip": (24,), "llama_vision": (40,), "llama_text": (32, 40), "gemma": (42,), "qwen": (36,)}
# Concepts evaluated and samples, of the authors' metadata.
SIZES = {
    "CLEVR": (6, 1000),
    "COCO": (29, 5500),
    "OpenSurfaces": (26, 3578),
    "Pascal": (83, 4503),
    "Sarcasm": (1, 1446),
    "iSarcasm": (1, 1734),
    "GoEmotions": (14, 5427),
}


def published() -> dict[str, Any]:
    """Every published figure, a fresh copy.

    Example:
        >>> published()["headline"]["f1"]["COCO"]["SuperActivators"]
        [0.83, 0.01]
    """
    text = files("sa_plugin.stages").joinpath("published.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def published_of(key: str) -> dict[str, Any] | None:
    """Published figures of one cell of the paper, or None for the key "".

    Args:
        key: `MODEL/DATA`, such as "clip/COCO".

    Returns:
        Method to F1 with its sources, the delta curve and densities where there are any.

    Raises:
        ValueError: The paper has no such cell; the text names the nearest.

    Example:
        >>> published_of("clip/COCO")["best_layer"]["MaxTok"]
        0.794
    """
    if not key:
        return None
    known = published()
    cells = [f"{model}/{data}" for model, of in known["best_layer"]["f1"].items() for data in of]
    require_known("published cell", key, cells)
    model, data = key.split("/")
    found: dict[str, Any] = {
        "key": key,
        "model": known["models"][model],
        "data": data,
        "marks": known["marks"],
        "best_layer": known["best_layer"]["f1"][model][data],
        "best_layer_what": known["best_layer"]["what"],
    }
    if model in known["headline"]["models"]:
        found["headline"] = known["headline"]["f1"][data]
        found["headline_what"] = known["headline"]["what"]
        found["headline_note"] = known["headline"]["note"]
        found["unreliable"] = known["headline"]["unreliable"]
    if model in known["deltas"]["models"] and data in known["deltas"]["data"]:
        curve = known["deltas"]["data"][data]
        found["deltas"] = {"deltas": known["deltas"]["deltas"], **curve}
    if model.startswith("llama") and data in known["density"]["percent"]:
        one = known["density"]
        found["density"] = {"at": one["at"], "percent": one["percent"][data]}
    if key == "llama_vision/COCO":
        found["attribution"] = known["attribution"]["values"]
    return found


LAYER_MEASURES = ("auroc", "in_mass_at_fpr", "coverage", "negative_coverage", "tail_gap")
YARDSTICKS = ("mean_alignment", "max_margin")
NO_COUNTERPART = (
    "No published counterpart: the paper's figures are of its own models and data (CLIP, "
    "Llama-3.2-Vision, Gemma-2, Qwen3-Embedding on CLEVR, COCO, OpenSurfaces, Pascal, Sarcasm, "
    "iSarcasm, GoEmotions). Compare the shape of the curves, not the numbers."
)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table.

    Example:
        >>> print(markdown(["a", "b"], [["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def cell_markdown(record: Mapping[str, Any], figures: Sequence[str] = (), level: int = 1) -> str:
    """The whole cell.

    Args:
        record: `cell.json`.
        figures: Paths of the figures, relative to the file; each stands in its section.
        level: Of the title's heading.
    """
    primary = record["meta"]["primary_kind"]
    sections = {
        "What it shows": (_claims(record), ()),
        "Detection by method": (f"{_methods(record, primary)}\n\n{_published_note(record)}", ("detection",)),
        "Every kind": (_kinds(record), ()),
        "Delta": (_deltas(record), ("deltas",)),
        "Concepts by the delta of their best F1": (_peaks(record), ("peaks",)),
        "Density of SuperActivators": (_densities(record), ("density",)),
    }
    if "trace" in record["kinds"][primary]:
        sections["Layers"] = (_layers(record["kinds"][primary]["trace"]), ("layers", "histograms"))
    if "attribution" in record:
        sections["Attribution"] = (_objectives(record["attribution"]), ("attribution",))
    if record["warnings"]:
        sections["Warnings of the run"] = ("\n".join(f"- {note}" for note in record["warnings"]), ())
    parts = [f"{'#' * level} {record['config']['title']}", facts(record)]
    for title, (text, names) in sections.items():
        parts += [f"{'#' * (level + 1)} {title}", text]
        for path in (path for name in names for path in figures if path.endswith(f"{name}.png")):
            parts.append(f"![{PurePosixPath(path).stem.replace('_', ' ')}]({path})")
    return "\n\n".join(parts) + "\n"


def facts(record: Mapping[str, Any]) -> str:
    """What was run, in one paragraph."""
    meta = record["meta"]
    splits = ", ".join(
        f"{meta['samples'][name]} {name} samples of {meta['documents'][name]} documents"
        for name in meta["samples"]
    )
    blocks = record["provenance"]["settings"]["kinds"]
    where = "; ".join(f"{kind} {', '.join(map(str, at))}" for kind, at in blocks.items())
    said = "; ".join(f"{reason}: {count}" for reason, count in meta["skipped"].items())
    left_out = f" The loader's counts of what it left out or changed: {said}." if said else ""
    few = ""
    if meta["documents"]["test"] < ENOUGH:
        few = " So few test documents make intervals wide."
    seconds = sum(record["provenance"]["timings"].values())
    return (
        f"`{meta['model']}` ({meta['architecture']}, {meta['n_blocks']} blocks) by {meta['host']}; "
        f"{meta['data']}: {len(meta['concepts'])} concepts, {splits}.{left_out} Blocks: {where}. "
        f"Seed {meta['seed']}; 95 % intervals, each source document left out in turn, "
        f"conditional on the train and calibration splits.{few} {seconds:.0f} s, "
        f"{record['provenance']['machine']}."
    )


def _claims(record: Mapping[str, Any]) -> str:
    """Findings as a table."""
    rows = [[one["claim"], f"**{one['verdict']}**", one["text"]] for one in record["findings"]]
    return markdown(["claim", "here it", "on what"], rows)


def _methods(record: Mapping[str, Any], kind: str) -> str:
    """Every method of one kind, best first, beside published figures where the cell has them."""
    block, known = record["kinds"][kind]["detection"], record.get("published")
    header = ["method", "F1", "interval", f"minus {OWN}", "precision", "recall", "AUROC"]
    if known:
        header += ["published, best layer on test"]
        header += ["published table"] if "headline" in known else []
    rows = []
    for row in by_weighted_f1(block["methods"]):
        name = f"**{row['method']}**" if row["method"] == OWN else row["method"]
        cells = [name, typeset(row["weighted_f1"]), bounds(row["interval"]), _to_own(row)]
        cells += [typeset(row[part]) for part in ("precision", "recall", "auroc")]
        rows.append([*cells, *_published_cells(known, row["method"])])
    ours = {row["method"] for row in block["methods"]}
    for name in _published_methods(known):
        if name not in ours:
            rows.append([name, *[DASH] * 6, *_published_cells(known, name)])
    title = (
        f"{kind_label(kind)}, test: {block['n_samples']} samples of {block['n_documents']} "
        "documents. Means over concepts weighted by positive samples; "
        f"{star_words(len(block['methods']) - 1)}"
    )
    return f"{title}\n\n{markdown(header, rows)}"


def difference(value: float | None, ends: Sequence[float | None] | None, sure: bool = False) -> str:
    """A paired difference with its interval and a star where that excludes zero, two if surely of many."""
    if not known(ends):
        return "" if value is None else typeset(value, signed=True)
    return f"{_with_ends(value, ends)}{' **' if sure else ' *' if side_of_zero(ends) else ''}"


def _to_own(row: Mapping[str, Any]) -> str:
    return difference(row["difference"], row["difference_interval"], in_family(row))


def _published_cells(known: Mapping[str, Any] | None, method: str) -> list[str]:
    if not known:
        return []
    cells = [typeset(known["best_layer"].get(method))]
    if "headline" in known:
        pair = known["headline"].get(method)
        mark = " (unreliable)" if method in known["unreliable"] else ""
        cells.append(DASH if pair is None else f"{pair[0]:.2f} ± {pair[1]:.2f}{mark}")
    return cells


def _published_methods(known: Mapping[str, Any] | None) -> list[str]:
    if not known:
        return []
    return list(dict.fromkeys([*known["best_layer"], *known.get("headline", {})]))


def _published_note(record: Mapping[str, Any]) -> str:
    """What the published figures beside ours are, or that there are none."""
    known = record.get("published")
    if not known:
        return NO_COUNTERPART
    lines = [
        f"Published figures: {known['model']} on {known['data']}, as published; no difference is "
        "taken, as splits, settings and random choices differ.",
        *_unlike(record, known["key"]),
        f"Best layer: {known['best_layer_what']} ({known['marks']['notebook']}).",
    ]
    if "headline" in known:
        lines.append(f"Table: {known['headline_what']} ({known['marks']['page']}).")
        lines += [f"{name} is unreliable: {why}." for name, why in known["unreliable"].items()]
        lines.append(f"{known['headline_note']}.")
    return " ".join(lines)


def _unlike(record: Mapping[str, Any], key: str) -> list[str]:
    """In what a run visibly differs from the paper's cell; none is no proof that it is that cell."""
    meta, (model, data) = record["meta"], key.split("/")
    concepts, samples = SIZES[data]
    counts = (
        (meta["n_blocks"], BLOCKS[model], "blocks"),
        (len(meta["concepts"]), (concepts,), "concepts"),
        (sum(meta["samples"].values()), (samples,), "samples"),
    )
    found = [
        f"{n} {what} (the paper: {' or '.join(map(str, theirs))})"
        for n, theirs, what in counts
        if n not in theirs
    ]
    return [f"**This run is not that cell: {', '.join(found)}.**"] if found else []


def _kinds(record: Mapping[str, Any]) -> str:
    """Weighted F1 of every method for every kind, and paired differences."""
    found = {k: {m["method"]: m for m in b["detection"]["methods"]} for k, b in record["kinds"].items()}
    names = list(dict.fromkeys(name for rows in found.values() for name in rows))
    values = [
        [name, *(typeset(of[name]["weighted_f1"]) if name in of else DASH for of in found.values())]
        for name in names
    ]
    apart = [
        [name, *(_to_own(of[name]) if name in of else DASH for of in found.values())]
        for name in names
        if name != OWN
    ]
    labels = list(map(kind_label, found))
    return f"{markdown(['weighted F1', *labels], values)}\n\n{markdown([f'minus {OWN}', *labels], apart)}"


def _deltas(record: Mapping[str, Any]) -> str:
    """F1 of SuperActivators against delta for every kind, and the published curve."""
    blocks = {kind: block["sparsity"] for kind, block in record["kinds"].items()}
    grid = next(iter(blocks.values()))["deltas"]
    rows = []
    for kind, block in blocks.items():
        curve = next(c for c in block["curves"] if c["method"] == OWN)["weighted_f1"]
        best = max((f for f in curve if f is not None), default=None)
        cells = [f"**{typeset(f)}**" if f == best else typeset(f) for f in curve]
        rows.append([f"{kind_label(kind)}, layer {block['layer']}", *cells])
    floor = next(iter(blocks.values()))["always_positive"]
    rows.append(["always-positive", *[typeset(floor)] * len(grid)])
    known = (record.get("published") or {}).get("deltas")
    if known:
        for kind, curve in known["f1"].items():
            at = dict(zip(known["deltas"], curve, strict=True))
            rows.append([f"published, {kind_label(kind)}", *(typeset(at.get(d)) for d in grid)])
    text = (
        "Weighted test F1 of SuperActivators, one delta for all concepts, at the layer that "
        "calibration chose; bold: the peak, picked on test."
    )
    return f"{text}\n\n{markdown(['delta', *map(tick, grid)], rows)}"


def _peaks(record: Mapping[str, Any]) -> str:
    """How many concepts are best at each delta, and what a small delta gains, for every kind."""
    rows, gains = [], []
    grid: list[float] = []
    for kind, block in record["kinds"].items():
        found = block["peaks"]
        grid = found["deltas"]
        for part in ("on_test", "on_cal"):
            label = f"{kind_label(kind)}, {'test' if part == 'on_test' else 'calibration'}"
            rows.append([label, *(str(n) if n else "" for n in found[part])])
        gain, share = found["gain"], found["small_share"]
        gained = difference(gain["estimate"], [gain["low"], gain["high"]])
        both = f"{tick(found['small'])} and {tick(found['large'])}"
        gains.append([kind_label(kind), both, gained, _shown(share, 2)])
    header = [
        "kind",
        "best delta up to .1, and from .3",
        "F1 at the first minus the second",
        "concepts that peak up to .1",
    ]
    text = (
        "Deltas of the second table are chosen on calibration and shared by all concepts; its F1 "
        "is of test. Peaks on test are picked there."
    )
    counts = markdown(["concepts with best F1 at delta", *map(tick, grid)], rows)
    return f"{counts}\n\n{text}\n\n{markdown(header, gains)}"


def _densities(record: Mapping[str, Any]) -> str:
    """Shares of positive samples with few SuperActivators."""
    rows = []
    for kind, block in record["kinds"].items():
        for part, label in (("all", "all SuperActivators"), ("inside", "those inside")):
            shares = block["density"][part].values()
            rows.append([f"{kind_label(kind)}, {label}", *(_shown(one, 2) for one in shares)])
    header = ["share of positive samples with ratio at most", *block["density"]["all"]]
    known = (record.get("published") or {}).get("density")
    if known:
        at = dict(zip(known["at"], known["percent"], strict=True))
        cells = [typeset(at[float(x)] / 100, 2) if float(x) in at else DASH for x in header[1:]]
        rows.append(["published, linear separator, all", *cells])
    text = "Ratio: SuperActivators over in-concept tokens of a sample; mean over concepts."
    return f"{text}\n\n{markdown(header, rows)}"


def _layers(found: Mapping[str, Any]) -> str:
    """Separation by layer, means over concepts."""
    rows = [
        [str(layer), *(typeset(found["mean"][name][at]) for name in LAYER_MEASURES)]
        for at, layer in enumerate(found["layers"])
    ]
    return markdown(["layer", *(name.replace("_", " ") for name in LAYER_MEASURES)], rows)


def _objectives(found: Mapping[str, Any]) -> str:
    """Every objective beside the global one for every method and headline metric, or why there are none."""
    if "absent" in found:
        return f"Not computed: {found['absent']}"
    yardsticks = [f"{k}/{y}" for y in YARDSTICKS for k in ("insertion", "deletion")]
    wanted = ("f1", "average_precision", *yardsticks, "completeness_error")
    rows = []
    for row in overall_rows(found, *wanted):
        for arm in (name.removesuffix("_difference") for name in row if name.endswith("_difference")):
            cells = [row["method"], f"{row['metric']} ({row['better']} is better)", arm]
            cells += [typeset(row["global"]), typeset(row[arm])]
            rows.append(
                [*cells, difference(row[f"{arm}_difference"], _ends(row, arm)), str(row["n_samples"])]
            )
    header = ["method", "metric", "objective", "global", "its own", "difference", "samples"]
    text = (
        f"Concepts: {', '.join(found['concepts'])}. All objectives explain the same samples and "
        "are read by the same yardstick: mean alignment with the concept's global vector (the "
        "paper's), or the largest margin over the threshold. A small setting: a sign, no verdict."
    )
    for method, error in incomplete(found).items():
        text += f" Do not read {method}: its sums miss completeness by up to {error:.0%}."
    return f"{text}\n\n{markdown(header, rows)}"
