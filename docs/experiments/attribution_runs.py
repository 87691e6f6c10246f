"""Objectives side by side on three real models: the runs behind docs/attribution.md.

python docs/experiments/attribution_runs.py run minilm --kind separator --out runs --minutes 9
python docs/experiments/attribution_runs.py tables runs --into docs/attribution.md
python docs/experiments/attribution_pictures.py runs docs/pictures

A run is a file for each concept (and, with `--groups`, each group of methods), written when it is
done; what is there is not run again, so the command is repeated until it prints "nothing left".
Weights come from `make weights`; nothing is downloaded here. Everything is seeded.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import sa_plugin as sa
from sa_plugin._files import write_text
from sa_plugin.attribution import Attribution, Comparison, Design, superpatches
from sa_plugin.loaders import emoji_scenes
from sa_plugin.stages import Graph, Plan
from sa_transformer_lens.host import load_bridge

GROUPS: dict[str, tuple[str, ...]] = {
    "perturb": ("lime", "kernel_shap", "rise", "shap_iq", "occlusion"),
    "path": ("direct_alignment", "integrated_gradients", "mfaba"),
    "gradient": ("grad_cam", "full_grad", "saliency", "input_x_gradient", "smooth_grad"),
}
GROUPS["all"] = tuple(method for group in GROUPS.values() for method in group)


class Setting(NamedTuple):
    """How much is run on one model."""

    concepts: tuple[str, ...]
    layers: tuple[int, ...]
    n_test: int
    n_cal: int
    coalitions: int
    integration: int
    curve: int
    players: str = "token"
    objectives: tuple[str, ...] = ("global", "superactivator")


SETTINGS = {
    "minilm": Setting(("person", "time", "communication"), (2, 3, 4, 5), 25, 12, 128, 64, 8),
    "smollm2": Setting(("person", "time"), (5,), 16, 8, 128, 64, 5, "kept"),
    "vit": Setting(("land mammal", "prepared food"), (3,), 6, 3, 96, 64, 4),
}
WORDS = 20
BLOCK = 3
PASSAGES = {"train": 400, "cal": 160, "test": 250}


def passages(concepts: tuple[str, ...]) -> sa.ConceptData:
    """The first words of a seeded draw of passages, labelled with some concepts only."""
    full, rng = sa.load("supersense"), np.random.default_rng(0)
    texts, spans, of, documents, ids = [], [], [], [], []
    for split, n in PASSAGES.items():
        samples = full.split(split).samples
        for k in sorted(rng.permutation(len(samples))[:n].tolist()):
            text = " ".join(samples[k].text.split()[:WORDS])
            if not samples[k].text.startswith(text):
                continue
            texts.append(text)
            spans.append([s for s in samples[k].spans if s.concept in concepts and s.end <= len(text)])
            of.append(split)
            documents.append(samples[k].document)
            ids.append(samples[k].id)
    return sa.ConceptData.from_spans(
        texts,
        spans,
        concepts=concepts,
        documents=documents,
        ids=ids,
        splits=of,
        name=f"supersense, first {WORDS} words",
    )


def data_of(model: str) -> sa.ConceptData:
    """The data of a model's runs."""
    return emoji_scenes(200, seed=0) if model == "vit" else passages(SETTINGS[model].concepts)


def run(given: argparse.Namespace) -> None:
    """Whatever chunks of one model and kind are missing, until the time is over."""
    began, setting = time.time(), SETTINGS[given.model]
    objectives = tuple(given.objectives or setting.objectives)
    concepts = given.concepts or setting.concepts
    chunks = [(concept, group) for concept in concepts for group in given.groups]
    players = given.players or setting.players
    name = f"{given.model}_{given.kind}" + f"_{players}" * (players != "token")
    name += "_tokens" * ("superactivator_tokens" in objectives)
    paths = {c: given.out / f"{name}_{c[0].replace(' ', '-')}_{c[1]}.json" for c in chunks}
    left = [chunk for chunk in chunks if not paths[chunk].exists()]
    if left:
        given.out.mkdir(parents=True, exist_ok=True)
        host, data = sa.attach(load_bridge(given.model)), data_of(given.model)
        detector = Graph(host, data, Plan({given.kind: setting.layers})).detector(given.kind)
    for chunk in left:
        if time.time() - began > 60 * given.minutes:
            break
        start = time.time()
        found = _compared(host, data, detector, setting, objectives, players, *chunk)
        about = {
            "model": given.model,
            "kind": given.kind,
            "group": chunk[1],
            "data": data.name,
            "hash": data.hash[:12],
            "seconds": round(time.time() - start),
            "n_layers": host.info.n_layers,
            **setting._asdict(),
            **found.settings,
        }
        write_text(paths[chunk], json.dumps(packed(found) | {"about": about}) + "\n")
        print(chunk, about["seconds"], "s", found.coverage, flush=True)
    if not any(not path.exists() for path in paths.values()):
        print("nothing left")


def _compared(
    host: Any,
    data: sa.ConceptData,
    detector: Any,
    setting: Setting,
    objectives: tuple[str, ...],
    players: str,
    concept: str,
    group: str,
) -> Comparison:
    drawing = dict.fromkeys(("lime", "kernel_shap", "rise", "shap_iq"))
    options: dict[str, dict[str, int]] = {m: {"n_coalitions": setting.coalitions} for m in drawing}
    options["integrated_gradients"] = {"n_steps": setting.integration}
    # Direct alignment reads tokens one by one, of which this objective has no value.
    alone = "superactivator_tokens" in objectives
    methods = [m for m in GROUPS[group] if not (alone and m == "direct_alignment")]
    image = data.samples[0].image is not None
    blocks: Callable[..., Any] = partial(superpatches, block=BLOCK)
    return sa.compare(
        host,
        data,
        detector,
        methods=methods,
        objectives=objectives,
        concepts=[concept],
        design=Design(
            setting.n_test,
            setting.n_cal,
            options={m: options[m] for m in methods if m in options},
            n_steps=setting.curve,
            players=blocks if image else players,
        ),
    )


def packed(found: Comparison) -> dict[str, Any]:
    """What tables and pictures need, JSON-ready."""
    measured = [
        asdict(one)
        | {
            "scores": list(one.scores),
            "ranks": one.ranks.tolist(),
            "labels": one.labels.tolist(),
            "areas": dict(one.areas),
        }
        for one in found.trials
    ]
    curves = [[*key, np.asarray(line.estimate).tolist()] for key, line in found.curves.items()]
    return {
        "coverage": [asdict(one) for one in found.coverage],
        "measured": measured,
        "curves": curves,
        "grid": list(found.shares),
        "examples": [_example(one) for one in found.examples],
    }


def _example(one: Attribution) -> dict[str, Any]:
    kept = ~np.isnan(one.of_token)
    offsets = one.offsets[kept]
    return {
        "method": one.method,
        "objective": one.objective,
        "concept": one.concept,
        "sample": one.sample.id,
        "importance": one.of_token[kept].tolist(),
        "offsets": offsets.tolist(),
        "text": one.sample.text if one.sample.image is None else None,
        "labels": one.sample.token_labels(offsets, [one.concept])[:, 0].tolist(),
    }


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("model", choices=sorted(SETTINGS))
    running.add_argument("--kind", default="separator")
    running.add_argument("--groups", nargs="+", choices=sorted(GROUPS), default=["all"])
    running.add_argument("--concepts", nargs="+")
    running.add_argument("--objectives", nargs="+")
    running.add_argument("--players", choices=["token", "word", "kept"])
    running.add_argument("--minutes", type=float, default=1e9, help="start no chunk after these")
    running.add_argument("--out", type=Path, required=True)
    shown = commands.add_parser("tables")
    shown.add_argument("out", type=Path)
    shown.add_argument("--into", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.command == "run":
        run(given)
    else:
        from attribution_tables import show

        show(given.out, given.into)


if __name__ == "__main__":
    main()
