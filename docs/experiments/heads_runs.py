"""The trials of docs/findings/heads.md: ablation of heads on three real models, one command a table.

python docs/experiments/heads_runs.py curve vit --ks 4 12 --out runs
python docs/experiments/heads_runs.py curve vit --ks 4 12 --keep --out runs
python docs/experiments/heads_runs.py curve vit --ks 4 12 --controls --permutations 19 --out runs
python docs/experiments/heads_runs.py curve smollm2 --mode pattern --ks 4 12 --out runs
python docs/experiments/heads_runs.py cross vit --k 4 --out runs
python docs/experiments/heads_runs.py total vit --out runs
python docs/experiments/heads_runs.py total smollm2 --parts blocks --out runs
python docs/experiments/heads_runs.py tables runs --into docs/findings/heads.md

Each writes one file of results into `--out`; `tables` prints them all as Markdown, or writes them
between the markers of a file. Weights come
from `make weights`; nothing is downloaded here. Everything is seeded.
"""

import argparse
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from between_markers import show
from trials import signed, some_of, three, unsigned, write

from sa_plugin.data import ConceptData
from sa_plugin.detection import Detector
from sa_plugin.heads import (
    CONTROL_FAMILIES,
    CROSS_EFFECTS,
    VERDICT_METRICS,
    AblationCurve,
    HeadSets,
    Intervention,
    Ranking,
    ablation_curve,
    compare_direct_total,
    cross_ablation,
    rank_heads,
)
from sa_plugin.host import Host, attach
from sa_plugin.loaders import emoji_scenes, load
from sa_plugin.scores import ScoreTable
from sa_plugin.stages import Graph, Plan
from sa_transformer_lens import logits
from sa_transformer_lens.host import load_bridge

BEGIN = "<!-- tables: written by docs/experiments/heads_runs.py tables -->"
END = "<!-- end of tables -->"
# The residual that enters block 8 of the ViT is written by 8 blocks of 6 heads.
LAYER = {"vit": 7, "minilm": 3, "smollm2": 10}
PASSAGES = {"train": 400, "cal": 80, "test": 200}
METRICS = (
    "tail_gap",
    "coverage",
    "negative_coverage",
    "auroc",
    "average_precision",
    "f1_frozen",
    "f1_recalibrated",
    "output_cosine",
    "output_kl",
)


@dataclass(frozen=True)
class Trial:
    """A model, its data, vectors, scores and detector."""

    name: str
    host: Host
    data: ConceptData
    scores: ScoreTable
    detector: Detector


def chosen(name: str, concepts: tuple[str, ...], cal: int) -> ConceptData:
    """Emoji scenes, or the first passages of the embedded data with all labels of the given concepts."""
    full = emoji_scenes(200) if name == "vit" else load("supersense")
    sizes = {split: len(full.split(split)) for split in PASSAGES} if name == "vit" else PASSAGES
    rows = [(s, k) for k, n in (sizes | {"cal": cal}).items() for s in full.split(k).samples[:n]]
    unit = "scenes" if name == "vit" else "passages"
    return some_of(full, rows, concepts, f"{'emoji' if name == 'vit' else 'supersense'}, {len(rows)} {unit}")


def prepare(arguments: argparse.Namespace) -> Trial:
    """Attach, fit separators at one layer, score and calibrate."""
    name, concepts = arguments.model, tuple(arguments.concepts or ())
    host = attach(load_bridge(name))
    data = chosen(name, concepts, arguments.cal)
    made = Graph(host, data, Plan({"separator": [LAYER[name]]}))
    return Trial(name, host, data, made.table("separator"), made.detector("separator"))


def ranked(trial: Trial, by: str, permutations: int | None = None, budget: int | None = None) -> Ranking:
    """Heads by calibration."""
    return rank_heads(
        trial.host,
        trial.data,
        trial.detector,
        by=by,
        budget=budget,
        permutations=permutations,
        scores=None if by == "ledger" else trial.scores,
    )


def settings(trial: Trial, arguments: argparse.Namespace, began: float) -> dict[str, Any]:
    """What a table is headed by."""
    d = trial.data
    return {
        "command": arguments.command_line,
        "data": d.name,
        "hash": d.hash[:12],
        "samples": {name: len(d.split(name)) for name in PASSAGES},
        "test documents": len({s.document for s in d.test.samples}),
        "concepts": list(d.concepts),
        "block": LAYER[trial.name],
        "kind": "separator",
        "seconds": round(time.time() - began),
    }


def curve(arguments: argparse.Namespace) -> dict[str, Any]:
    """Top k against controls."""
    began = time.time()
    trial = prepare(arguments)
    order = ranked(trial, arguments.by, arguments.permutations, arguments.budget)
    output: Any = {"none": None, "hidden": "hidden", "logits": logits}[arguments.output]
    controls = list(arguments.controls) + ["permuted"] * bool(order.permuted)
    found = ablation_curve(
        trial.host,
        trial.data,
        trial.detector,
        order,
        sets=HeadSets(arguments.ks, controls, arguments.repeats),
        how=Intervention(arguments.mode, arguments.keep, output),
        scores=trial.scores,
    )
    print(repr(order), found, sep="\n", flush=True)
    rows, margins = _rows(found), _margins(found)
    first = [
        f"L{layer}H{head} {value:+.3f}"
        for (layer, head), value in zip(order.heads[:12], order.values, strict=False)
    ]
    about = settings(trial, arguments, began)
    about |= {"ranked by": found.ranked_by, "heads": len(order.heads), "first": first}
    about |= {"verified": int(order.exact.sum()), "permutations": len(order.permuted)}
    about["shared"] = _shared(found)
    return {
        "kind": "curve",
        "mode": found.mode,
        "keep": found.keep,
        "settings": about,
        "rows": rows,
        "margins": margins,
        "answers": _answers(found),
    }


def _rows(found: AblationCurve) -> list[dict[str, Any]]:
    rows = []
    for run in found.runs:
        row: dict[str, Any] = {"k": run.k, "family": run.family, "change": run.change}
        row["heads"] = " ".join(f"L{layer}H{head}" for layer, head in sorted(run.heads))
        for metric in found.metrics:
            for when in ("before", "after", "difference"):
                row[f"{metric} {when}"] = three(run.result.mean(when).sel(metric=metric))
        rows.append(row)
    return rows


def _margins(found: AblationCurve) -> list[dict[str, Any]]:
    return [
        {
            "k": k,
            "family": family,
            "metric": metric,
            "clear": found.clear(metric, k, family),
            "margin": three(found.margin(k, family).sel(metric=metric)),
        }
        for k in found.ks
        for family in found.families
        for metric in found.metrics
    ]


def _shared(found: AblationCurve) -> dict[int, list[int]]:
    """How many heads each permuted set shares with the top, by k."""
    if "permuted" not in found.families:
        return {}
    tops = {k: set(found.of(k, "top")[0].heads) for k in found.ks}
    return {k: [len(tops[k] & set(run.heads)) for run in found.of(k, "permuted")] for k in found.ks}


def _answers(found: AblationCurve) -> list[dict[str, Any]]:
    """Whose tail the top carry."""
    if "permuted" not in found.families:
        return []
    answers = []
    for k in found.ks:
        for metric in VERDICT_METRICS:
            one = found.answer(k, metric)
            row = {"k": k, "metric": metric, "words": one.words, "could_tell": one.could_tell}
            answers.append(row | {"takes": three(one.takes), "beyond": three(one.beyond)})
    return answers


def cross(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each concept's own heads, all concepts measured."""
    began = time.time()
    trial = prepare(arguments)
    order = ranked(trial, arguments.by)
    defined = [c for k, c in enumerate(order.concepts) if np.isfinite(order.shares[:, k]).all()]
    heads = {c: order.of(c)[: arguments.k] for c in defined[: arguments.most]}
    found = cross_ablation(
        trial.host, trial.data, trial.detector, heads, mode=arguments.mode, scores=trial.scores
    )
    print(found, flush=True)
    intervals = {
        metric: {side: three(found.effect(side).sel(metric=metric)) for side in CROSS_EFFECTS}
        for metric in METRICS[:7]
    }
    about = settings(trial, arguments, began) | {"ablated for": list(heads)}
    return {"kind": "cross", "mode": found.mode, "k": arguments.k, "intervals": intervals, "settings": about}


def total(arguments: argparse.Namespace) -> dict[str, Any]:
    """Direct against total effects of every head, or block."""
    began = time.time()
    trial = prepare(arguments)
    found = compare_direct_total(
        trial.host, trial.data, trial.detector, parts=arguments.parts, scores=trial.scores
    )
    print(found, flush=True)
    return {
        "kind": "total",
        "summary": found.summary(),
        "agreement": found.agreement(),
        "settings": settings(trial, arguments, began),
    }


def tables(paths: Path) -> str:
    """Every result of a folder as Markdown."""
    parts = []
    for path in sorted(paths.glob("*.json")):
        result = json.loads(path.read_text())
        about = result["settings"]
        parts.append(f"### {path.stem}\n")
        parts.append(
            f"`{about['command']}`: {about['data']}, {about['samples']} samples, "
            f"{about['test documents']} test documents, {len(about['concepts'])} concepts, block "
            f"{about['block']}, {about['kind']}; {about['seconds']} s.\n"
        )
        make = {"curve": _curve_table, "cross": _cross_table, "total": _total_table}
        parts.append(make[result["kind"]](result))
    return "\n".join(parts)


def _curve_table(result: dict[str, Any]) -> str:
    names = [m for m in METRICS if f"{m} after" in result["rows"][0]]
    lines = ["| heads | sets | change | " + " | ".join(names) + " |", "|---" * (len(names) + 3) + "|"]
    before = [_cell([result["rows"][0][f"{m} before"]]) for m in names]
    lines.append("| unablated | | 0 | " + " | ".join(before) + " |")
    for key in dict.fromkeys((row["k"], row["family"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["k"], row["family"]) == key]
        cells = [_cell([row[f"{m} after"] for row in rows]) for m in names]
        change = np.mean([row["change"] for row in rows])
        name = f"{key[0]} {key[1]}" if key[0] else "none kept"
        lines.append(f"| {name} | {len(rows)} | {change:.2f} | " + " | ".join(cells) + " |")
    lines += ["", "Margins of the top over each family, * clear:", ""]
    lines += [
        "| k, family | " + " | ".join(VERDICT_METRICS) + " |",
        "|---" * (len(VERDICT_METRICS) + 1) + "|",
    ]
    for key in dict.fromkeys((m["k"], m["family"]) for m in result["margins"]):
        found = {m["metric"]: m for m in result["margins"] if (m["k"], m["family"]) == key}
        cells = [signed(found[m]["margin"], 2) + " *" * found[m]["clear"] for m in VERDICT_METRICS]
        lines.append(f"| {key[0]} {key[1]} | " + " | ".join(cells) + " |")
    lines += _answer_lines(result.get("answers", ()))
    about = result["settings"]
    end = f"First heads, {about['verified']} of {about['heads']} verified: {', '.join(about['first'])}."
    for k, shared in about["shared"].items():
        end += f" Permuted sets share {', '.join(map(str, shared))} of {k} heads with the top."
    return "\n".join([*lines, "", end, ""])


def _answer_lines(answers: Any) -> list[str]:
    if not answers:
        return []
    lines = [
        "",
        "Whose tail the top carry:",
        "",
        "| k, metric | takes | beyond permuted sets | whose |",
        "|---" * 4 + "|",
    ]
    for one in answers:
        takes, beyond = (signed(one[name], 3) for name in ("takes", "beyond"))
        lines.append(f"| {one['k']} {one['metric']} | {takes} | {beyond} | {one['words']} |")
    return lines


def _cell(values: list[list[float]]) -> str:
    """An estimate with its interval over documents; of several sets the mean and their range."""
    if len(values) == 1:
        return unsigned(values[0], 2)
    estimates = [value[0] for value in values]
    return f"{np.mean(estimates):.2f} ({min(estimates):.2f} to {max(estimates):.2f})"


def _cross_table(result: dict[str, Any]) -> str:
    lines = ["| metric | own | others | own - others |", "|---|---|---|---|"]
    for metric, found in result["intervals"].items():
        lines.append(f"| {metric} | " + " | ".join(signed(v, 2) for v in found.values()) + " |")
    return "\n".join([*lines, ""])


def _total_table(result: dict[str, Any]) -> str:
    return f"```\n{result['summary']}\n```\n"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("curve", "cross", "total"):
        one = commands.add_parser(name)
        one.add_argument("model", choices=sorted(LAYER))
        one.add_argument("--mode", default="mean")
        one.add_argument("--by", default="attribution")
        one.add_argument("--concepts", nargs="*")
        one.add_argument("--cal", type=int, default=PASSAGES["cal"], help="samples to rank heads on")
        one.add_argument("--out", type=Path, required=True)
        if name == "curve":
            one.add_argument("--ks", type=int, nargs="+", default=[4, 12])
            one.add_argument("--controls", nargs="*", default=list(CONTROL_FAMILIES))
            one.add_argument("--repeats", type=int, default=5)
            one.add_argument("--permutations", type=int)
            one.add_argument("--budget", type=int)
            one.add_argument("--keep", action="store_true")
            one.add_argument("--output", choices=["none", "hidden", "logits"], default="hidden")
        if name == "total":
            one.add_argument("--parts", default="heads", choices=["heads", "blocks"])
        if name == "cross":
            one.add_argument("--k", type=int, default=4)
            one.add_argument("--most", type=int, default=100)
    shown = commands.add_parser("tables")
    shown.add_argument("out", type=Path)
    shown.add_argument("--into", type=Path)
    return parser.parse_args()


def main() -> None:
    """Run one command."""
    arguments = parse()
    if arguments.command == "tables":
        show(tables(arguments.out), arguments.into, BEGIN, END)
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    words = {k: v for k, v in vars(arguments).items() if k not in ("out", "command", "model")}
    flags = [
        f"--{k}" if v is True else f"--{k} {' '.join(map(str, v)) if isinstance(v, list) else v}"
        for k, v in words.items()
        if v not in (None, False)
    ]
    first = f"python docs/experiments/heads_runs.py {arguments.command} {arguments.model} "
    arguments.command_line = first + " ".join(flag.strip() for flag in flags)
    result = {"curve": curve, "cross": cross, "total": total}[arguments.command](arguments)
    ks = "-".join(map(str, words.get("ks") or [words.get("k", "")]))
    tags = ["keep"] * bool(words.get("keep")) + ["blocks"] * (words.get("parts") == "blocks")
    tags += [f"{n}-permutations" for n in (words.get("permutations"),) if n]
    name = "_".join([arguments.model, arguments.command, arguments.mode, *tags, ks])
    write(result, arguments.out / f"{name.strip('_')}.json")


if __name__ == "__main__":
    main()
