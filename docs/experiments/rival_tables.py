"""Every rival in the detection tables of the demo's models: `study` with the stage "rivals".

The demo's data, layers and separators (600 passages, 400 emoji scenes, seed 0; with --size small 240, 200 and
every other layer), nothing but detection:

    python docs/experiments/rival_tables.py run smollm2 OUT                 # or minilm, vit; --split, --seed
    python docs/experiments/rival_tables.py keep "SmolLM2, plain=OUT/results.json" ...
    python docs/experiments/rival_tables.py keep --seeds "SmolLM2=OUT/seed*/results.json" ...
    python docs/experiments/rival_tables.py show

`keep` puts what the tables need into docs/findings/data (`sa-plugin demo` leaves the same results.json,
with more in it), `show` writes the tables of docs/findings/results.md from there alone. A seed
divides the documents into train, calibration and test, chooses the passages, and seeds fits and trainings.
"""

from __future__ import annotations

import argparse
import glob
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from between_markers import put
from demo_table import MONITOR, detection, kept, monitor, write_data

from sa_plugin.host import attach, find_folder, processor_of
from sa_plugin.loaders import emoji_scenes, load
from sa_plugin.report import read_results
from sa_plugin.show import typeset
from sa_plugin.stages import demo_plan, markdown, study

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "findings" / "results.md"
DATA = ROOT / "docs" / "findings" / "data"
BEGIN = "<!-- rivals: written by docs/experiments/rival_tables.py show -->"
END = "<!-- end of rivals -->"
SEEDS_BEGIN = "<!-- seeds: written by docs/experiments/rival_tables.py show -->"
SEEDS_END = "<!-- end of seeds -->"
PASSAGES, SCENES = {"small": 240, "default": 600}, {"small": 200, "default": 400}
HEADLINE = (
    "log-sum-exp",
    "MaxTok",
    "SuperActivators",
    "softmax probe, sample labels",
    "Top10%",
    "MeanTok",
    "pooled",
    "LastTok",
    "always-positive",
    "MaxTok permuted",
)
"""Rows of the table over seeds: the best pooling and probe, and what the paper compares."""


def run(
    name: str,
    folder: str,
    size: str = "default",
    split: str = "plain",
    seed: int = 0,
    untrained: bool = False,
) -> None:
    """One model's study, into `folder/results.json`."""
    from sa_transformer_lens.host import load_bridge

    warnings.simplefilter("ignore")
    host = attach(load_bridge(find_folder(name)), batch_tokens=2048, progress=False)
    images = processor_of(host) is not None
    if images:
        data = emoji_scenes(SCENES[size], seed=seed)
    else:
        data = load("supersense", split=split, seed=seed).subset(PASSAGES[size], seed=seed)
    plan = demo_plan(host.info.n_layers, size, seed, images=images).only(["separator"])
    found = study(
        host,
        data,
        replace(plan, stages=("detection",) if untrained else ("rivals",)),
        folder=folder,
        say=print,
    )
    found.save(folder)
    print(found.results()["evaluation"])


def keep(arguments: list[str], seeds: bool) -> None:
    """What tables need of results files, by title, into the data of findings; other titles stay."""
    file = DATA / ("seeds.json" if seeds else "detection.json")
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for argument in arguments:
        title, _, pattern = argument.partition("=")
        found = [kept(read_results(path)) for path in sorted(glob.glob(pattern))]
        if not found:
            raise SystemExit(f"{pattern} names no results.json")
        record[title] = over_seeds(found) if seeds else found[0]
    write_data(file, record)


def over_seeds(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and extremes over seeds of each headline row's F1 and its difference."""
    rows = {}
    for name in HEADLINE:
        of = [one["rows"][name] for one in found if name in one["rows"]]
        if not of:
            continue
        f1, minus = ([row[key][0] for row in of] for key in ("f1", "minus"))
        sides = [_side(row["minus"]) for row in of]
        rows[name] = {
            "f1": _spread(f1),
            "half_width": np.mean([_half(row["f1"]) for row in of]).item(),
            "minus": _spread(minus) if name != "SuperActivators" else None,
            "better": sides.count(1),
            "worse": sides.count(-1),
            "seeds": len(of),
        }
    about = {"seeds": [one["about"]["seed"] for one in found], "kind": found[0]["about"]["kind"]}
    about |= {"data": found[0]["about"]["data"], "layers": found[0]["about"]["layers"]}
    return {"about": about, "rows": rows}


def _half(three: list[float | None]) -> float:
    _, low, high = three
    return 0.0 if low is None or high is None else (high - low) / 2


def _side(three: list[float | None]) -> int:
    _, low, high = three
    return 0 if low is None or high is None else int(low > 0) - int(high < 0)


def _spread(values: list[float]) -> dict[str, float]:
    found: dict[str, float] = {"mean": np.mean(values).item(), "sd": np.std(values, ddof=1).item()}
    found |= {"low": min(values), "high": max(values)}
    return found


def shown() -> str:
    """The detection tables of every kept title."""
    record = json.loads((DATA / "detection.json").read_text(encoding="utf-8"))
    lines: list[str] = []
    for title, found in record.items():
        lines += [f"### {title}", "", *detection(found), "", f"{MONITOR}:", "", *monitor(found), ""]
    return "\n".join(lines)


def show() -> None:
    """Every table that rests on the kept results."""
    put(PAGE, BEGIN, END, shown())
    seeds = DATA / "seeds.json"
    if seeds.exists():
        put(PAGE, SEEDS_BEGIN, SEEDS_END, seeds_table(json.loads(seeds.read_text(encoding="utf-8"))))


def seeds_table(record: dict[str, Any]) -> str:
    """One table a model: F1 over seeds, beside the mean half-width of one seed's interval."""
    parts = [
        "## Over seeds",
        "Intervals above hold vectors, thresholds and the split fixed. Here all of it is made anew, "
        "by `rival_tables.py run minilm OUT/seed1 --seed 1 --untrained` and so on, then `keep --seeds`: a "
        "seed divides the documents into train, calibration and test, chooses passages and seeds fits. In "
        "brackets the standard deviation over seeds; documents return in several tests, so it is of refits, "
        "not of new documents. The last column counts seeds whose own interval lies above or below zero.",
    ]
    for title, found in record.items():
        about = found["about"]
        n = len(about["seeds"])
        layers, seeds = (", ".join(map(str, about[key])) for key in ("layers", "seeds"))
        parts.append(
            f"{title}, {about['data']}, {about['kind']}, layers {layers}; seeds {seeds}, each with documents "
            "of its own for train, calibration and test:"
        )
        rows = []
        for name, row in sorted(found["rows"].items(), key=lambda pair: -pair[1]["f1"]["mean"]):
            gap = row["minus"]
            cells = [f"**{name}**" if name == "SuperActivators" else name]
            cells += [f"{typeset(row['f1']['mean'])} ({typeset(row['f1']['sd'])})"]
            cells += [
                f"{typeset(row['f1']['low'])} to {typeset(row['f1']['high'])}",
                typeset(row["half_width"]),
            ]
            if gap is None:
                cells += ["", "", ""]
            else:
                cells += [f"{typeset(gap['mean'], signed=True)} ({typeset(gap['sd'])})"]
                cells += [f"{typeset(gap['low'], signed=True)} to {typeset(gap['high'], signed=True)}"]
                cells += [f"{row['better']}, {row['worse']} of {row['seeds']}"]
            rows.append(cells)
        header = ["method", "F1, mean (sd)", "F1 from to", "half-width of one interval"]
        header += ["minus SuperActivators, mean (sd)", "from to", f"above zero, below, of {n}"]
        parts.append(markdown(header, rows))
    return "\n\n".join(parts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("name", choices=("minilm", "smollm2", "vit"))
    one.add_argument("folder")
    one.add_argument("--size", choices=tuple(PASSAGES), default="default")
    one.add_argument("--split", choices=("plain", "held_out_lemma"), default="plain")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--untrained", action="store_true", help="no probes that are trained through a pooling")
    one.set_defaults(run=lambda a: run(a.name, a.folder, a.size, a.split, a.seed, a.untrained))
    two = commands.add_parser("keep")
    two.add_argument("results", nargs="+", metavar="TITLE=results.json")
    two.add_argument("--seeds", action="store_true")
    two.set_defaults(run=lambda a: keep(a.results, a.seeds))
    three = commands.add_parser("show")
    three.set_defaults(run=lambda a: show())
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
