"""Every rival in the detection tables of the demo's models: `study` with the stage "rivals".

The demo's data, layers and separators (600 passages, 400 emoji scenes, seed 0; with "small" 240, 200 and
every other layer), nothing but detection:

    python docs/experiments/rival_tables.py run smollm2 OUT [small]         # or minilm, vit
    python docs/experiments/rival_tables.py show docs/findings/results.md NAME=OUT/results.json ...
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path

from between_markers import put
from demo_table import MONITOR, detection, monitor

from sa_plugin.host import attach, find_folder, processor_of
from sa_plugin.loaders import emoji_scenes, load
from sa_plugin.report import read_results
from sa_plugin.stages import demo_plan, study

BEGIN = "<!-- rivals: written by docs/experiments/rival_tables.py -->"
END = "<!-- end of rivals -->"
PASSAGES, SCENES = {"small": 240, "default": 600}, {"small": 200, "default": 400}


def run(name: str, folder: str, size: str = "default") -> None:
    """One model's study, into `folder/results.json`."""
    from sa_transformer_lens.host import load_bridge

    warnings.simplefilter("ignore")
    host = attach(load_bridge(find_folder(name)), batch_tokens=2048, progress=False)
    images = processor_of(host) is not None
    if images:
        data = emoji_scenes(SCENES[size], seed=0)
    else:
        data = load("supersense", split="plain", seed=0).subset(PASSAGES[size], seed=0)
    plan = demo_plan(host.info.n_layers, size, 0, images=images).only(["separator"])
    found = study(host, data, replace(plan, stages=("rivals",)), folder=folder, say=print)
    found.save(folder)
    print(found.results()["evaluation"])


def show(page: str, arguments: list[str]) -> None:
    """The tables of every results file."""
    lines: list[str] = []
    for argument in arguments:
        title, _, path = argument.rpartition("=")
        results = read_results(path)
        lines += [f"#### {title}", "", *detection(results), "", f"{MONITOR}:", "", *monitor(results), ""]
    put(Path(page), BEGIN, END, "\n".join(lines))


if __name__ == "__main__":
    run(*sys.argv[2:5]) if sys.argv[1] == "run" else show(sys.argv[2], sys.argv[3:])
