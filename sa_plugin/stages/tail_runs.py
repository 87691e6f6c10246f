"""Runs the benchmark of the tail law: each world once, then its cells, whatever is finished left alone.

Everything is the product's own: `collect` and `fit` on train, `score`, `calibrate`, `evaluate`. A cell is
calibrated with all layers to choose from, as a user would, and at every layer by itself, since the law speaks
of one layer. Rivals are those of every detection table (`detection/methods.py`). Probes that are trained
through their pooling (`scores/trained.py`) are trained on the world's short contexts, at its middle layer.

A cell is finished when its `outcome.json` is there, with the settings that it was run with; other settings in
the same folder are refused. Files are written whole or not at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sa_plugin._check import require_known
from sa_plugin._face import face
from sa_plugin._files import writable_folder, written
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.concepts.collect import collect
from sa_plugin.concepts.fit import fit
from sa_plugin.concepts.saved import load_bank, save_bank
from sa_plugin.data.build import EmptySplitWarning
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.detection.calibrate import calibrate
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.evaluate import Evaluation
from sa_plugin.detection.guard import OtherDataWarning
from sa_plugin.host.folders import load_for_host
from sa_plugin.host.protocol import Host, attach
from sa_plugin.host.tokens import TextEncoder
from sa_plugin.loaders.tail_scenes import ScenePlan, load_tail_scenes
from sa_plugin.loaders.tail_spans import Tokenise, load_tail_spans
from sa_plugin.passes.layout import LostLabelWarning
from sa_plugin.scores.score import score
from sa_plugin.scores.table import ScoreTable
from sa_plugin.scores.trained import PROBES, train_poolings
from sa_plugin.show.result import clean
from sa_plugin.stages.store import read_json, write_json
from sa_plugin.stages.study import UNTOLD
from sa_plugin.stages.tail_cells import (
    COLUMNS,
    MEASURED,
    OUTCOME,
    TRAIN,
    TRAINED,
    TailCell,
    TailDesign,
    TailScores,
    TailWorld,
    context_plan,
)
from sa_plugin.statistics.quantile import FewTokensWarning

KINDS = ("prototype", "separator")
KEPT_METRICS = ("auroc", "f1", "tpr_at_1_percent", "false_alarms")
_BATCH_TOKENS = 4096
_EVERY = "all layers"


@face
def run_design(
    design: TailDesign,
    out: str | Path,
    *,
    cells: Sequence[str] | None = None,
    probes: Sequence[str] = (),
    hosts: Mapping[str, Host] | None = None,
    root: str | Path | None = None,
    say: Callable[[str], None] = UNTOLD,
) -> list[Path]:
    """Run cells of a design, or go on with them.

    Costs a forward pass for every context, up to the deepest layer of its world; with probes two more, one
    over the world's contexts, and their training.

    Args:
        design: From `read_design`.
        out: Folder for everything; run again with the same folder to continue.
        cells: Names; by default all. Their worlds are run as they are needed; with none, every world is.
        probes: Names in `scores.trained.PROBES`, also of cells that are finished.
        hosts: Attached models by name, in place of the folders of that name.
        root: The folder of Brown, where it does not lie where `load("brown")` looks.
        say: Called with one line a world and cell.

    Returns:
        The cells' folders.

    Raises:
        FileNotFoundError: A model or a source is not there.
        ValueError: There is no such cell, a context is longer than its model takes, or the folder holds a run
            of another design.
    """
    names = [cell.name for cell in design.cells]
    for name in cells or ():
        require_known("cell", name, names)
    for name in probes:
        require_known("probe", name, PROBES)
    folder, opened, done = writable_folder(out), dict(hosts or {}), []

    def host_of(world: TailWorld) -> Host:
        if world.model not in opened:
            opened[world.model] = open_model(world.model)
        return opened[world.model]

    for world in design.worlds if cells is not None and not cells else ():
        _world(world, host_of(world), folder / "worlds" / world.name, design.seed, root, say)
    for cell in design.cells:
        if cells is not None and cell.name not in cells:
            continue
        home, world = folder / "cells" / cell.name, design.world_of(cell)
        settings = clean({"seed": design.seed, "world": asdict(world), "cell": asdict(cell)})
        done.append(home)
        if (home / MEASURED).exists():
            _require_same(read_json(home / MEASURED)["settings"], settings, home)
            say(f"{cell.name}: kept")
        else:
            host = host_of(world)
            banks = _world(world, host, folder / "worlds" / world.name, design.seed, root, say)
            _cell(cell, world, host, banks, home, settings, root)
            say(f"{cell.name}: {cell.tokens} tokens, {cell.in_concept} of the concept, done")
        if probes and not (home / TRAINED).exists():
            bank = load_bank(folder / "worlds" / world.name / KINDS[-1])
            _probes(cell, world, host_of(world), bank, home, probes, design.seed, root)
            say(f"{cell.name}: {len(probes)} probes trained on {world.tokens} tokens")
    return done


def open_model(name: str) -> Host:
    """A model as the benchmark attaches it: by nnsight, whose passes end behind the deepest layer.

    Attention is fused: no pattern is read here, and an unfused one of 4,096 tokens takes most of the time.
    """
    model, options = load_for_host(name, "nnsight", dtype=torch.float32)
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "_attn_implementation"):
        config._attn_implementation = "sdpa"
    return attach(model, **{**options, "batch_tokens": _BATCH_TOKENS, "progress": False})


def tokens_of(host: Host) -> Tokenise:
    """The offsets of a host's own tokens, special ones left out.

    Raises:
        ValueError: It reads no texts.
    """
    encode = getattr(getattr(host, "reader", None), "encode", None)
    if not isinstance(encode, TextEncoder):
        raise ValueError(f"{host!r} has no tokenizer of its own: contexts of texts cannot be counted in it.")

    def tokenise(texts: Sequence[str]) -> list[np.ndarray]:
        found = encode([Sample(str(k), text, str(k)) for k, text in enumerate(texts)])
        return [one.offsets[~one.special] for one in found]

    return tokenise


def _data(
    row: TailWorld | TailCell,
    source: str,
    contexts: Mapping[str, int],
    host: Host,
    seed: int,
    root: str | Path | None,
) -> ConceptData:
    plan = context_plan(row)
    if isinstance(plan, ScenePlan):
        return load_tail_scenes(plan=plan, contexts=contexts, seed=seed)
    return load_tail_spans(
        spans=source, plan=plan, contexts=contexts, tokenise=tokens_of(host), root=root, seed=seed
    )


@contextmanager
def _quietly() -> Any:
    """Without warnings that a benchmark expects: vectors of the world's own data, few contexts on purpose."""
    with warnings.catch_warnings():
        for expected in (OtherDataWarning, EmptySplitWarning, LostLabelWarning, FewTokensWarning):
            warnings.simplefilter("ignore", expected)
        yield


def _world(
    world: TailWorld, host: Host, home: Path, seed: int, root: str | Path | None, say: Callable[[str], None]
) -> list[ConceptBank]:
    """The world's vectors, fitted or read, with its train scores written."""
    if (home / TRAIN).exists():
        return [load_bank(home / kind) for kind in KINDS]
    with _quietly():
        contexts = dict(zip(("train", "guard"), world.contexts, strict=True))
        data = _data(world, world.source, contexts, host, seed, root)
        statistics = collect(host, data, layers=world.layers, seed=seed)
        banks = [
            fit(host, data, kind, layers=world.layers, statistics=statistics, seed=seed) for kind in KINDS
        ]
        tables = score(host, data, banks, splits=("guard",))
    home.mkdir(parents=True, exist_ok=True)
    for bank, kind in zip(banks, KINDS, strict=True):
        save_bank(bank, home / kind)
    tail_scores(tables).write(home / TRAIN)
    say(f"{world.name}: vectors of {sum(world.contexts)} contexts of {world.tokens} tokens")
    return banks


def _cell(
    cell: TailCell,
    world: TailWorld,
    host: Host,
    banks: Sequence[ConceptBank],
    home: Path,
    settings: Mapping[str, Any],
    root: str | Path | None,
) -> None:
    with _quietly():
        contexts = dict(zip(("cal", "test"), cell.contexts, strict=True))
        data = _data(cell, world.source, contexts, host, settings["seed"], root)
        tables = score(host, data, banks)
        home.mkdir(parents=True, exist_ok=True)
        tail_scores(tables).write(home / OUTCOME)
        record: dict[str, Any] = {"settings": settings, "data": data.hash, "kinds": {}}
        columns: dict[str, Any] = {}
        for kind, table in zip(KINDS, tables, strict=True):
            found, chosen = {}, {}
            for layer in (None, *world.layers):
                # One layer to choose from is that layer.
                if layer is None or len(world.layers) > 1:
                    part = table if layer is None else at_layer(table, layer)
                    detector = calibrate(host, data, part.bank, scores=part, seed=settings["seed"])
                    evaluation = detector.evaluate(data.test, scores=part)
                name = _EVERY if layer is None else str(layer)
                found[name] = _summary(evaluation)
                chosen[name] = detector.delta
                columns |= {
                    f"{kind}/{name}/{metric}": np.asarray(evaluation.concept[metric].values)
                    for metric in KEPT_METRICS
                }
                if layer is None:
                    detector.save_pretrained(home / f"detector-{kind}")
                    tokens = detector.evaluate_tokens(data.test, scores=part)
                    found["localisation"] = clean(tokens.to_dict())
            if cell.shift_from:
                found["shifted"] = _shifted(home.parent / cell.shift_from, kind, data, table)
            record["kinds"][kind] = {"measured": found, "delta": chosen}
            methods = evaluation.methods
    with written(home / COLUMNS) as partial:
        np.savez(
            partial,
            methods=np.array(methods),
            concepts=np.array(data.concepts),
            layers=np.array(world.layers),
            **columns,
        )
    write_json(clean(record), home / MEASURED)


def _probes(
    cell: TailCell,
    world: TailWorld,
    host: Host,
    bank: ConceptBank,
    home: Path,
    probes: Sequence[str],
    seed: int,
    root: str | Path | None,
) -> None:
    """What probes of the world's short contexts measure here, beside the separator at their layer."""
    layer = world.layers[len(world.layers) // 2]
    with _quietly():
        short, data = (
            _data(row, world.source, dict(zip(names, row.contexts, strict=True)), host, seed, root)
            for row, names in ((world, ("train", "guard")), (cell, ("cal", "test")))
        )
        table = at_layer(score(host, data, bank), layer)
        table = train_poolings(host, short, table, layers=layer, probes=probes, seed=seed)
        detector = calibrate(host, data, table.bank, scores=table, seed=seed)
        found = _summary(detector.evaluate(data.test, scores=table))
    wanted = ("SuperActivators", "MaxTok", *table.given)
    found["methods"] = {name: found["methods"][name] for name in wanted}
    write_json(clean({"layer": layer, "trained_on": world.tokens, **found}), home / TRAINED)


def _shifted(home: Path, kind: str, data: ConceptData, table: ScoreTable) -> Any:
    """What another cell's detector measures here: its thresholds, at this length."""
    folder = home / f"detector-{kind}"
    if not (home / MEASURED).exists():
        return {"missing": f"{home.name} was not run before"}
    detector = Detector.from_pretrained(folder)
    return _summary(detector.evaluate(data.test, scores=replace(table, bank=detector.bank)))


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    """Weighted metrics of every method with their intervals, and each concept's estimates."""
    found: dict[str, Any] = {"positive": dict(evaluation.n_positive), "methods": {}}
    for method in evaluation.methods:
        one = evaluation.of(method)
        found["methods"][method] = {
            metric: {
                "estimate": float(drawn.estimate),
                "low": float(drawn.low),
                "high": float(drawn.high),
                "concepts": np.asarray(one.concept[metric].estimate).tolist(),
            }
            for metric, drawn in ((name, evaluation.shown[name].sel(method=method)) for name in KEPT_METRICS)
        }
        found["methods"][method]["parameters"] = {
            name: np.asarray(value).tolist() for name, value in one.chosen.parameters.items()
        }
    return found


def at_layer(table: ScoreTable, layer: int) -> ScoreTable:
    """The scores of one layer alone, their controls with them."""
    bank, k = table.bank, table.bank.index(layer)

    def only(part: Any) -> Any:
        return None if part is None else part.only([k], range(part.vectors.shape[1]))

    own = bank.only([k], range(len(bank.units)))
    own = replace(own, permuted=only(bank.permuted), pooled=only(bank.pooled), cls=only(bank.cls))

    def of_layer(part: np.ndarray | None) -> np.ndarray | None:
        return None if part is None else part[:, k : k + 1]

    return replace(
        table,
        bank=own,
        scores=np.asarray(table.scores[:, k : k + 1]),
        permuted_max=of_layer(table.permuted_max),
        pooled=of_layer(table.pooled),
        cls=of_layer(table.cls),
    )


def tail_scores(tables: Sequence[ScoreTable]) -> TailScores:
    """Scores of all kinds of the same rows, without texts."""
    one = tables[0]
    return TailScores(
        tuple(table.bank.kind for table in tables),
        one.bank.layers,
        one.bank.concepts,
        np.stack([np.asarray(table.scores, dtype=np.float32) for table in tables]),
        one.tokens.labels,
        one.tokens.sample_labels,
        np.asarray(one.tokens.bounds),
        tuple(sample.document for sample in one.tokens.samples),
        tuple(one.tokens.split_of),
    )


def _require_same(held: Mapping[str, Any], settings: Mapping[str, Any], home: Path) -> None:
    if held != settings:
        changed = [key for key in settings if held.get(key) != settings[key]]
        raise ValueError(
            f"{home} was run with other settings ({', '.join(changed)} differ): give another folder, or "
            "delete this cell's."
        )
