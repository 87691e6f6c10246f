"""The tail law's prediction for every cell of its benchmark, made before a cell is looked at.

From a world's train scores alone (short contexts of documents that chose nothing), each concept of each kind
is predicted at each layer in each cell: the AUROC of every pooling, which is best, the best delta. What is
written, `docs/findings/data/tail_law_prediction.json`, also holds what would refute the law (`REFUTED`) and
where the maximum must lose; it is committed before results of the cells that are kept back.

The two constants of the law are fitted on cells whose role is "fit" (`fit_constants`): the pair of a grid
with the least squared error of the AUROCs of the maximum and the mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from sa_plugin.detection.methods import GRIDS, STATISTICS
from sa_plugin.stages.store import read_json, write_json
from sa_plugin.stages.study import UNTOLD
from sa_plugin.stages.tail_cells import OUTCOME, TRAIN, TailCell, TailDesign, TailScores, TailWorld
from sa_plugin.statistics.ranking import auroc_of
from sa_plugin.theory.tail_inputs import TailInputs, measure_inputs
from sa_plugin.theory.tail_law import MAXIMUM, TIE, Constants, Context, TailLaw, pooled

MARGIN = 0.03
"""Predicted gain over the maximum from which it must lose: a tie and two errors of the simulation."""
HEAVY, LONG = 0.15, 512
"""Tail index and length from which it must lose."""
REFUTED = (
    "Kept-back cells in which the maximum's regret exceeds .02 on the calibration contexts: the law is "
    "refuted if there, on the test contexts, the mean regret of the predicted pooling is not below the "
    "maximum's by an interval that excludes 0, over documents and over cells. Regret is the AUROC of the "
    "best pooling on the test contexts minus that of the chosen one, 0 within .01.",
    "Best delta: the law is refuted if in over a third of the kept-back cells no delta within a factor of "
    "two of the predicted one has an F1 within .01 of the best.",
)
SHARES = (0.0, 0.5, 1.0)
"""Candidates of either constant."""
_ENTRIES, _LEAST, _MOST = 800_000, 300, 1000
# Contexts of either class where constants are fitted, over many concepts and cells.
_TO_FIT = 300


FORMAT = 1
HEADER: dict[str, tuple[str, ...]] = {
    "auroc": tuple(name for name in STATISTICS if name != "length-only"),
    "measured": ("N", "m", "runs", "d", "sigma_in", "kappa", "rho", "rho_in", "xi", "theta"),
}
"""Order of what a prediction holds as lists."""
Column = Mapping[str, Any]


def inputs_of_cell(
    train: TailScores, world: TailWorld, cell: TailCell
) -> Iterator[tuple[str, int, Column, TailInputs]]:
    """Kind, block index, scores and inputs of every concept, the inputs with the cell's prevalence.

    What cannot be measured, of too few documents, is left out.
    """
    for kind, layer, concept in product(train.kinds, train.layers, train.concepts):
        column = train.column(kind, layer, concept)
        try:
            found = measure_inputs(**column)
        except ValueError:
            continue
        share = min(found.prevalence * cell.present / world.present, 0.9)
        yield kind, layer, column, replace(found, prevalence=share)


def law_of(inputs: TailInputs, cell: TailCell, constants: Constants, samples: int | None = None) -> TailLaw:
    """The law in a cell, by default with as many contexts as its length allows."""
    if samples is None:
        samples = int(np.clip(_ENTRIES // cell.tokens, _LEAST, _MOST))
    context = Context(cell.tokens, float(cell.in_concept), cell.runs)
    return TailLaw(inputs, context, samples=samples, constants=constants)


def predict_cell(
    cell: TailCell, world: TailWorld, train: TailScores, constants: Constants, samples: int | None = None
) -> list[dict[str, Any]]:
    """One record a kind, layer and concept; AUROCs, candidates and inputs in the order of `HEADER`."""
    found = []
    for kind, layer, column, inputs in inputs_of_cell(train, world, cell):
        law = law_of(inputs, cell, constants, samples)
        said, measured = law.prediction(), inputs.measured()
        gain = max(said.auroc.values()) - said.auroc[MAXIMUM]
        heavy = measured["xi"] > HEAVY and cell.tokens >= LONG
        place = {n: GRIDS[n].candidates.index(one) if n in GRIDS else 0 for n, one in said.parameters.items()}
        found.append(
            {
                "cell": cell.name,
                "kind": kind,
                "layer": layer,
                "concept": inputs.concept,
                "best": [said.best, place[said.best]],
                "short": best_pooling(column),
                "auroc": [round(said.auroc[name], 4) for name in HEADER["auroc"]],
                "candidate": [place[name] for name in HEADER["auroc"]],
                "delta": said.delta,
                "f1": round(said.f1, 4),
                "maximum_loses": "heavy tail" if heavy else "by prediction" if gain > MARGIN else "",
                "measured": [round(measured[name], 4) for name in HEADER["measured"]],
            }
        )
    return found


def best_pooling(column: Column) -> list[Any]:
    """What calibration on these contexts takes: the pooling of the best AUROC, the maximum at a tie."""
    return best_of_areas(areas_of(column))


def best_of_areas(areas: Mapping[tuple[str, int], float]) -> list[Any]:
    """The pooling and candidate of the best, the maximum at a tie."""
    best = max(areas, key=lambda key: areas[key])
    return list(best) if areas[best] > areas[MAXIMUM, 0] + TIE else [MAXIMUM, 0]


def areas_of(column: Column) -> dict[tuple[str, int], float]:
    """AUROC of every pooling at every candidate."""
    return areas_among(dict(pooled_samples(column["scores"], column["bounds"])), column["positive"])


def areas_among(
    values: Mapping[tuple[str, int], np.ndarray], truth: np.ndarray
) -> dict[tuple[str, int], float]:
    """AUROC of every pooled number of samples."""
    return {key: auroc_of(one[truth], one[~truth]) for key, one in values.items()}


def pooled_samples(
    scores: np.ndarray, bounds: np.ndarray, only: Iterable[str] | None = None
) -> Iterator[tuple[tuple[str, int], np.ndarray]]:
    """Every pooling of token scores `[token, *columns]` at every candidate, by name and place in its grid.

    Yields `[sample, *columns]`. Poolings treat columns one by one, so that many together cost little more
    than one.
    """
    columns = scores.shape[1:]
    scores = np.ascontiguousarray(scores).reshape(len(scores), 1, -1)
    mean, sd = scores.mean(0, dtype=np.float64), scores.std(0, dtype=np.float64)
    sd = np.where(sd > 0, sd, 1.0)
    for name in HEADER["auroc"] if only is None else only:
        grid = GRIDS.get(name)
        for k, candidate in enumerate(((),) if grid is None else grid.candidates):
            numbers = () if grid is None else grid.parameters(candidate, mean, sd)
            found = STATISTICS[name](scores, bounds, *numbers).astype(np.float64)
            yield (name, k), found.reshape(len(found), *columns)


def predict(
    design: TailDesign,
    out: Path,
    constants: Constants,
    *,
    fitted: Mapping[str, Any] | None = None,
    cells: Sequence[str] | None = None,
    say: Callable[[str], None] = UNTOLD,
) -> dict[str, Any]:
    """The record of cells, ready to be frozen.

    Args:
        design: Of the benchmark.
        out: Folder of a run whose worlds are finished.
        constants: Fitted on cells of role "fit".
        fitted: How they were.
        cells: Names, by default all that are kept back.
        say: Called with one line a cell.

    Raises:
        FileNotFoundError: A world has no train scores yet.
    """
    trains = {world.name: out / "worlds" / world.name / TRAIN for world in design.worlds}
    found: list[dict[str, Any]] = []
    (out / "predicted").mkdir(exist_ok=True)
    wanted = [one for one in design.cells if (one.role == "kept" if cells is None else one.name in cells)]
    for cell in wanted:
        world = design.world_of(cell)
        path, train = out / "predicted" / f"{cell.name}.json", trains[world.name]
        made_of = {
            "design": design_hash(design),
            "train": file_hash(train),
            "constants": asdict(constants),
            "format": FORMAT,
        }
        held = read_json(path) if path.exists() else {}
        if held.get("made_of") == made_of:
            own = held["predictions"]
        else:
            own = predict_cell(cell, world, TailScores.read(train), constants, design.samples)
            write_json({"made_of": made_of, "predictions": own}, path)
        found += own
        losing = sum(bool(one["maximum_loses"]) for one in own)
        say(f"{cell.name}: {len(own)} predictions, the maximum must lose in {losing}")
    used = sorted({cell.world for cell in wanted})
    return {
        "design": design.name,
        "design_hash": design_hash(design),
        "refuted": list(REFUTED),
        "constants": asdict(constants),
        "fitted": dict(fitted or {}),
        "train_hash": {name: file_hash(trains[name]) for name in used},
        "header": {name: list(names) for name, names in HEADER.items()},
        "predictions": found,
    }


def design_hash(design: TailDesign) -> str:
    """Digest of every world and cell, and of what else is given."""
    said = {name: value for name, value in asdict(design).items() if value is not None}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Digest of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def fit_constants(
    design: TailDesign, out: Path, *, say: Callable[[str], None] = UNTOLD
) -> tuple[Constants, dict[str, Any]]:
    """The pair with the least squared error of the maximum's and the mean's AUROC on cells that may fit it.

    Cells no longer than their world's own contexts say nothing of it and are left out, as are those not run.

    Args:
        design: Of the benchmark.
        out: Folder of a run.
        say: Called with one line a cell.

    Returns:
        The constants, and how they were found: cells, and the root mean squared error of every pair.
    """
    only = {MAXIMUM: (), "MeanTok": ()}
    errors: dict[tuple[float, float], list[float]] = {}
    used: list[str] = []
    for cell in design.cells:
        path, world = out / "cells" / cell.name / OUTCOME, design.world_of(cell)
        if cell.role != "fit" or cell.tokens <= world.tokens or not path.exists():
            continue
        used.append(cell.name)
        seen, train = TailScores.read(path), TailScores.read(out / "worlds" / world.name / TRAIN)
        for kind, layer, _, inputs in inputs_of_cell(train, world, cell):
            column = seen.column(kind, layer, inputs.concept)
            truth = column["positive"]
            each = pooled_samples(column["scores"], column["bounds"], only)
            observed = {name: auroc_of(values[truth], values[~truth]) for (name, _), values in each}
            for pair in product(SHARES, SHARES):
                drawn = law_of(inputs, cell, Constants(*pair), _TO_FIT).contexts()
                for name, _, values in pooled(drawn, inputs.prevalence, only):
                    area = auroc_of(values[: drawn.half], values[drawn.half :])
                    errors.setdefault(pair, []).append((area - observed[name]) ** 2)
        say(f"{cell.name}: {len(next(iter(errors.values()), []))} errors so far")
    if not errors:
        return Constants(), {"cells": [], "error": {}}
    scores = {pair: float(np.nanmean(each)) for pair, each in errors.items()}
    best = min(scores, key=lambda pair: scores[pair])
    error = {f"shared {a:g}, reach {b:g}": round(float(np.sqrt(v)), 4) for (a, b), v in scores.items()}
    return Constants(*best), {"cells": used, "error": error}
