"""The tables of docs/attribution.md, from the files that attribution_runs.py wrote."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import between_markers
import numpy as np

from sa_plugin.attribution import Contrast, SampleScores, Trial, contrasts_of, controls_of
from sa_plugin.stages import markdown

BEGIN = "<!-- tables: written by docs/experiments/attribution_runs.py tables -->"
END = "<!-- end of tables -->"
MODELS = {"smollm2": "SmolLM2", "minilm": "MiniLM", "vit": "ViT"}
METHODS = (
    "lime",
    "kernel_shap",
    "rise",
    "shap_iq",
    "integrated_gradients",
    "grad_cam",
    "full_grad",
    "mfaba",
    "direct_alignment",
    "saliency",
    "input_x_gradient",
    "smooth_grad",
    "occlusion",
)
LOCAL = ("f1", "f1_sample", "average_precision", "auroc", "pointing", "mass_inside")
YARDSTICKS = ("mean_alignment", "max_margin", "later_probe")
FAITHFUL = tuple(f"{kind}/{y}" for kind in ("insertion", "deletion") for y in YARDSTICKS)
PRIMARY = ("insertion/mean_alignment", "deletion/mean_alignment")
# arXiv 2512.05038, COCO, Llama-3.2-11B-Vision, linear separators: concept to SuperActivator.
PAPER = {
    "lime": ((0.29, 0.40), (0.333, 0.367), (0.010, 0.007)),
    "kernel_shap": ((0.35, 0.37), (0.334, 0.365), (0.010, 0.008)),
    "rise": ((0.35, 0.38), (0.328, 0.354), (0.012, 0.009)),
    "integrated_gradients": ((0.28, 0.35), (0.326, 0.359), (0.013, 0.010)),
    "mfaba": ((0.33, 0.39), (0.339, 0.374), (0.006, 0.004)),
}


def load(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The files of every run, by the run's name: model, kind and objectives."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        about = found["about"]
        name = f"{about['model']}_{about['kind']}" + "_kept" * (about.get("players") == "kept")
        if "_tokens_" in path.name:
            name += "_tokens"
        runs.setdefault(name, []).append(found)
    return runs


def measured(files: Sequence[dict[str, Any]]) -> list[Trial]:
    """Every sample's numbers; controls, which every file repeats, once."""
    found: dict[tuple[str, ...], Trial] = {}
    for file in files:
        for one in file["measured"]:
            key = (one["concept"], one["sample"], one["method"], one["objective"])
            found[key] = Trial(
                one["concept"],
                one["sample"],
                one["document"],
                one["method"],
                one["objective"],
                SampleScores(*(np.nan if v is None else v for v in one["scores"])),
                np.array(one["ranks"]),
                np.array(one["labels"]),
                one["areas"],
            )
    return list(found.values())


def overall(rows: Sequence[Contrast]) -> list[Contrast]:
    """Rows over all concepts; of one concept its own."""
    every = [row for row in rows if row.concept == "all"]
    return every or list(rows)


def report(name: str, files: Sequence[dict[str, Any]]) -> str:
    """One run as Markdown."""
    about = files[0]["about"]
    base, other = about["objectives"][0], about["objectives"][1]
    samples = measured(files)
    rows = overall(contrasts_of(samples, [base, other]))
    by = {(row.method, row.metric): row for row in rows}
    done = [m for m in METHODS if (m, "f1") in by]
    sinks = ", sinks never masked" * (about.get("players") == "kept")
    parts = [
        f"### {MODELS[about['model']]}, {about['kind']}s{sinks}, {other} against {base}\n",
        _about(files, samples),
        "Localisation, higher is better:\n",
        _metrics(by, done, LOCAL, base, other),
        "Areas: insertion, higher is better; deletion, lower is better; `mean_alignment` is the "
        "primary yardstick:\n",
        _metrics(by, done, FAITHFUL, base, other),
        _controls(samples),
        _ends(files),
        _completeness(by, base, other),
    ]
    return "\n".join(part for part in parts if part)


def _about(files: Sequence[dict[str, Any]], samples: Sequence[Trial]) -> str:
    about = files[0]["about"]
    cover = {c["concept"]: c for file in files for c in file["coverage"]}
    refused: dict[str, int] = {}
    for file in files:
        for one in file["coverage"]:
            for method, n in one["refused"].items():
                refused[method] = refused.get(method, 0) + n
    lines = [
        f"{name}: block {c['layer']} of {about['n_layers']}, {c['positive']} positive samples, "
        f"{c['covered']} with a SuperActivator, {c['compared']} compared, {c['cal']} for the level"
        for name, c in cover.items()
    ]
    documents = len({one.document for one in samples})
    pairs = len({(one.concept, one.sample) for one in samples})
    skipped = ", ".join(f"{m} {n}" for m, n in refused.items() if n)
    tail = f" Refused: {skipped}." if skipped else ""
    masked = about["model"] == "smollm2" and about.get("players") == "token"
    command = f"run {about['model']} --kind {about['kind']}" + " --players token" * masked
    command += " --concepts " + " ".join(f'"{name}"' for name in cover)
    return (
        f"`python docs/experiments/attribution_runs.py {command}`: "
        f"{about['data']} ({about['hash']}), {pairs} samples of {documents} documents, "
        f"{about['coalitions']} coalitions, {about['integration']} integration steps, "
        f'{about["curve"]} steps of insertion and deletion; else `preset="fast"`. '
        f"{'; '.join(lines)}.{tail}\n"
    )


def _metrics(
    by: dict[tuple[str, str], Contrast], done: Sequence[str], metrics: Sequence[str], base: str, other: str
) -> str:
    rows = [[_plain(m), *(_cell(by.get((m, one)), base, other) for one in metrics)] for m in done]
    return markdown(["method", *metrics], rows) + "\n"


def _controls(samples: Sequence[Trial]) -> str:
    rows = {row.metric: row for row in overall(controls_of(samples))}
    if not rows:
        return ""
    cells = [f"{m} {_cell(rows[m], 'random', 'labelled first')}" for m in FAITHFUL if m in rows]
    return "Yardsticks themselves, random order to labelled tokens first: " + "; ".join(cells) + "\n"


def curves(files: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], np.ndarray]:
    """Mean curves over concepts, each weighted by its samples; what files repeat counts once."""
    held: dict[tuple[str, ...], dict[tuple[str, ...], tuple[int, np.ndarray]]] = {}
    for file in files:
        n = sum(one["compared"] for one in file["coverage"])
        concepts = tuple(one["concept"] for one in file["coverage"])
        for *key, line in file["curves"]:
            held.setdefault(tuple(key), {})[concepts] = (n, np.array(line))
    return {
        key: np.average([line for _, line in parts.values()], axis=0, weights=[n for n, _ in parts.values()])
        for key, parts in held.items()
    }


def _ends(files: Sequence[dict[str, Any]]) -> str:
    """Each yardstick of the empty and of the full input, mean over samples."""
    cells = [
        f"{yardstick} {_n(float(line[0]))} and {_n(float(line[-1]))}"
        for (method, name, kind, yardstick), line in curves(files).items()
        if (method, name, kind) == ("control", "random", "insertion")
    ]
    return f"Everything masked, and nothing: {'; '.join(cells)}.\n"


def _completeness(by: dict[tuple[str, str], Contrast], base: str, other: str) -> str:
    row = by.get(("integrated_gradients", "completeness_error"))
    if row is None:
        return ""
    return (
        "Integrated gradients miss completeness by "
        f"{_at(row, base):.1%} ({base}) and {_at(row, other):.1%} ({other}) "
        "of the difference, mean over samples.\n"
    )


def _cell(row: Contrast | None, base: str, other: str) -> str:
    """Both values, the paired difference with its interval, and the verdict."""
    if row is None:
        return "-"
    d, verdict = row.differences.sel(objective=other), {"better": " **better**", "worse": " *worse*"}
    return (
        f"{_n(_at(row, base))} to {_n(_at(row, other))} "
        f"[{_n(d.low, '+')}, {_n(d.high, '+')}]{verdict.get(row.verdicts[other], '')}"
    )


def _at(row: Contrast, objective: str) -> float:
    return float(row.values.sel(objective=objective).estimate)


def _n(value: float, sign: str = "") -> str:
    small = abs(value) < 0.1 and not sign
    return f"{value:{sign}.3f}" if small or sign else f"{value:.2f}"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def summary(runs: dict[str, list[dict[str, Any]]]) -> str:
    """By method and run: localisation F1 and the primary areas, beside the paper's."""
    names = [name for name in runs if not name.endswith("_tokens")]
    head = ["method", *(_title(n) for n in names)]
    lines = ["| " + " | ".join([*head, "paper: COCO, Llama 11B"]) + " |"]
    lines.append("|---" * (len(head) + 1) + "|")
    found = {}
    for name in names:
        rows = overall(contrasts_of(measured(runs[name]), ["global", "superactivator"]))
        found[name] = {(row.method, row.metric): row for row in rows}
    for method in METHODS:
        cells = [
            " / ".join(_verdict(found[name].get((method, m))) for m in ("f1", *PRIMARY)) for name in names
        ]
        paper = PAPER.get(method)
        cells.append(" / ".join(f"{b - a:+.3f}" for a, b in paper) if paper else "-")
        lines.append(f"| {_plain(method)} | " + " | ".join(cells) + " |")
    lines.append(_count("better / open / worse, of all methods", names, found))
    return (
        "F1 / insertion / deletion (mean alignment), superactivator minus global; **bold** better "
        "and *italic* worse where the 95 % interval excludes zero:\n\n" + "\n".join(lines) + "\n"
    )


def _title(name: str) -> str:
    model, kind, *rest = name.split("_")
    return f"{MODELS[model]}, {kind}s" + ", sinks kept" * (rest == ["kept"])


def _verdict(row: Contrast | None) -> str:
    if row is None:
        return "-"
    mark = {"better": "**", "worse": "*"}.get(row.verdicts["superactivator"], "")
    return f"{mark}{row.differences.sel(objective='superactivator').estimate:+.3f}{mark}"


def _count(title: str, names: Sequence[str], found: dict[str, dict[tuple[str, str], Contrast]]) -> str:
    cells = []
    for name in names:
        parts = []
        for metric in ("f1", *PRIMARY):
            wins = [row.verdicts["superactivator"] for (_, m), row in found[name].items() if m == metric]
            parts.append("-".join(str(wins.count(w)) for w in ("better", "open", "worse")))
        cells.append(" / ".join(parts))
    return f"| {title} | " + " | ".join(cells) + " | all five better |"


def show(folder: Path, into: Path | None) -> None:
    """Print the tables, or write them between the markers of a file."""
    runs = load(folder)
    text = "\n".join([summary(runs), *(report(name, files) for name, files in runs.items())])
    between_markers.show(text, into, BEGIN, END)
