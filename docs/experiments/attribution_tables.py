"""The tables of docs/findings/attribution.md, from the files that attribution_runs.py wrote."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import between_markers
import numpy as np

from sa_plugin.attribution import STRATA, Comparison, Contrast, Coverage, SampleScores, Trial, contrasts_of
from sa_plugin.stages import markdown

BEGIN, END = (
    "<!-- tables: written by docs/experiments/attribution_runs.py tables -->",
    "<!-- end of tables -->",
)
SIZE_BEGIN, SIZE_END = (
    "<!-- size: written by docs/experiments/attribution_runs.py size -->",
    "<!-- end of size -->",
)
TITLES = {
    "minilm_words": "MiniLM, words",
    "minilm_names": "MiniLM, names of several words",
    "minilm_paragraphs": "MiniLM, sentences of paragraphs",
    "smollm2_words": "SmolLM2, words",
    "vit_patches": "ViT, patches",
}
YARDSTICKS = ("mean_alignment", "max_margin", "later_probe", "own_target")
AREAS = tuple(f"{kind}/{y}" for y in YARDSTICKS for kind in ("insertion", "deletion"))
GAPS = tuple(f"gap/{y}" for y in YARDSTICKS)
"""Insertion minus deletion: what one target being higher than another throughout takes no part in."""
F1 = "f1_sample"
"""Of each sample, so that documents differ in what the sample size is made of."""
WANTED = 0.05
PER_SD = 7.85
"""(1.96 + 0.84)^2: documents for power .8 are this times (deviation / difference)^2."""


def load(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The chunks of every run, in order."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        runs.setdefault(found["about"]["run"], []).append(found)
    return {run: runs[run] for run in TITLES if run in runs}


def measured(files: Iterable[Mapping[str, Any]]) -> list[Trial]:
    """Every sample's numbers."""
    return [
        Trial(
            one["concept"],
            one["sample"],
            one["document"],
            one["method"],
            one["objective"],
            SampleScores(*(np.nan if v is None else v for v in one["scores"])),
            np.array(one["ranks"]),
            np.array(one["labels"]),
            one["areas"] | _gaps(one["areas"]),
            one["n_tail"],
        )
        for file in files
        for one in file["measured"]
    ]


def _gaps(areas: Mapping[str, float]) -> dict[str, float]:
    return {
        f"gap/{y}": areas[f"insertion/{y}"] - areas[f"deletion/{y}"]
        for y in YARDSTICKS
        if f"insertion/{y}" in areas
    }


def comparison(files: Sequence[Mapping[str, Any]], objectives: Sequence[str] = ()) -> Comparison:
    """The chunks of a run as one comparison of all or some objectives, without curves and examples."""
    trials, about = measured(files), files[0]["about"]
    objectives = tuple(objectives or about["objectives"])
    methods = tuple(dict.fromkeys(one.method for one in trials if one.method != "control"))
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for file in files:
        for one in file["coverage"]:
            rows.setdefault(one["concept"], []).append(one)
    coverage = tuple(_together(parts, trials) for parts in rows.values())
    explained = [one for one in trials if one.method != "control"]
    contrasts = tuple(contrasts_of(explained, objectives))
    return Comparison(methods, objectives, contrasts, coverage, {}, (), about, tuple(trials))


def _together(parts: Sequence[Mapping[str, Any]], trials: Sequence[Trial]) -> Coverage:
    """One concept over chunks: test samples add up, calibration is the same in all."""
    first = parts[0]
    held = {one.sample: one.stratum for one in trials if one.concept == first["concept"]}
    return Coverage(
        first["concept"],
        first["layer"],
        **{name: sum(one[name] for one in parts) for name in ("positive", "covered", "compared")},
        cal=first["cal"],
        refused={method: sum(one["refused"].get(method, 0) for one in parts) for method in first["refused"]},
        probe=first["probe"],
        strata={label: list(held.values()).count(label) for label in STRATA},
    )


def size(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """From each run's first chunk: the deviation of F1 differences over documents, and what it asks."""
    rows = []
    for run, files in runs.items():
        about, deviations = (
            files[0]["about"],
            deviations_of(measured(files[:1]), files[0]["about"]["objectives"]),
        )
        middle, most = float(np.median(list(deviations.values()))), max(deviations.values())
        worst = max(deviations, key=lambda arm: deviations[arm])
        held = ", ".join(f"{label}: {about['cases'].get(label, 0)}" for label in STRATA)
        rows.append(
            [
                TITLES[run],
                held,
                str(about["documents"]),
                f"{middle:.2f}",
                str(needed(middle)),
                f"{most:.2f} ({worst[0]}, {worst[1]})",
                str(needed(most)),
            ]
        )
    header = [
        "run",
        "cases by SuperActivators",
        "documents with a case",
        "deviation, median arm",
        "documents needed",
    ]
    return markdown([*header, "deviation, largest", "documents needed"], rows)


def deviations_of(trials: Sequence[Trial], objectives: Sequence[str]) -> dict[tuple[str, str], float]:
    """By method and objective: deviation over documents of the paired difference in F1."""
    found = {}
    for method in dict.fromkeys(one.method for one in trials if one.method != "control"):
        by = {(o.document, o.objective): o.value(F1) for o in trials if o.method == method}
        documents = sorted({document for document, _ in by})
        for name in objectives[1:]:
            differences = [by[d, name] - by[d, objectives[0]] for d in documents]
            found[method, name] = float(np.std(differences, ddof=1))
    return found


def needed(deviation: float, difference: float = WANTED) -> int:
    """Documents for power .8 at level .95.

    Example:
        >>> needed(0.3)
        283
    """
    return math.ceil(PER_SD * (deviation / difference) ** 2)


def report(run: str, files: Sequence[Mapping[str, Any]], found: Comparison) -> str:
    """One run as Markdown: F1 by stratum, areas by yardstick."""
    strata = {label: n for label, n, _ in found.strata if n}
    parts = [
        f"### {TITLES[run]}\n",
        _about(run, files, found),
        f"F1 of a sample, minus `{found.objectives[0]}`, by number of SuperActivators:\n",
        _cells(
            found,
            {f"all (n={sum(strata.values())})": (F1, "all")}
            | {f"{label} (n={n})": (F1, label) for label, n in strata.items()},
            values=True,
        ),
        "Areas, all samples; insertion: higher is better, deletion: lower:\n",
        _cells(found, {name.replace("/", " / "): (name, "all") for name in AREAS}),
        _controls(found),
    ]
    return "\n".join(part for part in parts if part)


def _about(run: str, files: Sequence[Mapping[str, Any]], found: Comparison) -> str:
    about = files[0]["about"]
    documents = {one.document for one in found.trials}
    each = "; ".join(
        f"{c.concept}: block {c.layer} of {about['n_layers']}, {c.compared} cases, {c.cal} samples for the "
        f"level, probe's AUROC {c.probe:.2f}"
        for c in found.coverage
    )
    held = ", ".join(f"{label}: {n} of {about['cases'].get(label, 0)}" for label, n, _ in found.strata)
    seconds = sum(file["about"]["seconds"] for file in files)
    return (
        f"`python docs/experiments/attribution_runs.py run {run}`: {about['data']} ({about['hash']}), "
        f"a case in each of {len(documents)} of {about['documents']} documents, "
        f"{about['coalitions']} coalitions, at most {about['curve']} steps of insertion and deletion, "
        f"{seconds} s. {each}. By number of SuperActivators, of those there are: {held}.\n"
    )


def _cells(found: Comparison, columns: Mapping[str, tuple[str, str]], values: bool = False) -> str:
    """A row an arm, its differences: starred where zero is excluded, else with what could have been seen."""
    first, *others = found.objectives
    overall = "all" if len(found.coverage) > 1 else found.coverage[0].concept
    by = {(c.method, c.metric, c.stratum): c for c in found.contrasts if c.concept == overall}
    rows = []
    for method in found.methods:
        base = by[method, F1, "all"].values.sel(objective=first).estimate
        for name in others:
            cells = [
                "-" if _other_units(at[0], name) else brief(by.get((method, *at)), name)
                for at in columns.values()
            ]
            rows.append(
                [f"{_plain(method)} ({base:.2f})" if values else _plain(method), _plain(name), *cells]
            )
    header = [f"method (F1 of `{first}`)" if values else "method", "objective", *columns]
    return markdown(header, rows) + "\n"


def _other_units(metric: str, objective: str) -> bool:
    """The margin is in scores over the threshold; the other arms' own targets are cosines."""
    return metric.endswith("own_target") and objective == "superactivator_margin"


def brief(one: Contrast | None, name: str) -> str:
    """A difference: bold where better, italic where worse, else with what could have been seen."""
    if one is None:
        return "-"
    d, size = one.differences.sel(objective=name), one.detectable[name]
    if not d.values.any():
        return "same"
    digits = 2 if max(abs(d.estimate), size if np.isfinite(size) else 0) >= 0.1 else 3
    value, mark = f"{d.estimate:+.{digits}f}", {"better": "**", "worse": "*"}.get(one.verdicts[name], "")
    return f"{mark}{value}{mark}" if mark else f"{value} ({size:.{digits}f})" if np.isfinite(size) else value


def _controls(found: Comparison) -> str:
    rows = [
        one
        for one in found.controls
        if one.stratum == "all" and (one.concept == "all" or len(found.coverage) == 1)
    ]
    blind = [one.metric for one in rows if one.verdicts["labelled first"] != "better"]
    said = f"no better in {', '.join(blind)}" if blind else "better in all"
    return f"Yardsticks themselves, labelled tokens first against a random order: {said}.\n"


def by_stratum(found: Mapping[str, Comparison]) -> str:
    """F1 by number of SuperActivators over runs: methods better, open, worse, and what the open could see."""
    objectives = next(iter(found.values())).objectives[1:]
    rows = []
    for label in ("all", *STRATA):
        cells, samples = [], 0
        for one in found.values():
            samples += sum(n for held, n, _ in one.strata if label in (held, "all"))
        for name in objectives:
            chosen = [
                c
                for one in found.values()
                for c in one.contrasts
                if (c.metric, c.stratum) == (F1, label)
                and c.concept == ("all" if len(one.coverage) > 1 else one.coverage[0].concept)
                # Without an interval nothing is said.
                and np.isfinite(c.differences.sel(objective=name).low)
            ]
            said = [c.verdicts[name] for c in chosen]
            seen = [c.detectable[name] for c in chosen if c.verdicts[name] == "open"]
            middle = f", could see {np.median(seen):.2f}" if seen else ""
            cells.append("-".join(str(said.count(w)) for w in ("better", "open", "worse")) + middle)
        rows.append([label, str(samples), *cells])
    return markdown(["SuperActivators", "samples", *map(_plain, objectives)], rows) + "\n"


def summary(found: Mapping[str, Comparison]) -> str:
    """How many methods are better, open and worse by each measure, run by run."""
    objectives = next(iter(found.values())).objectives[1:]
    rows = []
    for metric in (F1, *AREAS, *GAPS):
        for name in objectives:
            cells: list[str] = []
            for one in () if _other_units(metric, name) else found.values():
                overall = "all" if len(one.coverage) > 1 else one.coverage[0].concept
                said = [
                    c.verdicts[name]
                    for c in one.contrasts
                    if (c.metric, c.stratum, c.concept) == (metric, "all", overall)
                ]
                cells.append("-".join(str(said.count(w)) for w in ("better", "open", "worse")))
            if cells:
                rows.append([metric.replace("/", " / "), _plain(name), *cells])
    return markdown(["measure", "objective", *(TITLES[run] for run in found)], rows) + "\n"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def show(folder: Path, into: Path | None) -> None:
    """Print the tables, or write them between the markers of a file."""
    runs = load(folder)
    found = {run: comparison(files) for run, files in runs.items()}
    text = [
        "F1 of a sample against `global` by number of SuperActivators, methods of all runs better, open and "
        "worse, and the median of what open ones could see:\n",
        by_stratum(found),
        "By measure, all samples of a run, methods better, open and worse (gap: insertion minus deletion):\n",
        summary(found),
        *(report(run, files, found[run]) for run, files in runs.items()),
    ]
    between_markers.show("\n".join(text), into, BEGIN, END)


def show_size(folder: Path, into: Path | None) -> None:
    """Print the sample sizes, or write them between the markers of a file."""
    between_markers.show(size(load(folder)) + "\n", into, SIZE_BEGIN, SIZE_END)
