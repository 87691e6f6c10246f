"""What became of the tail law's prediction: the cells kept back, judged by the rule written beforehand.

In every cell, for each kind, layer and concept, poolings are chosen in four ways:

    law      the predicted pooling with the predicted parameters
    max      the maximum, always
    short    what calibration on the world's short contexts takes
    cal      what calibration on the cell's own calibration contexts takes

and each is measured on the cell's test contexts. Its regret is the AUROC of the best pooling there minus
its own, 0 within .01; the best is picked on the same contexts, so that all regrets are a little too high.

Intervals over documents leave out each document (in at most 40 groups) in all cells at once, choices held
fixed, the best pooling too; over cells each cell in turn. The slope is that of observed on predicted
differences to the maximum, through zero, over all poolings of all cells.

What it does not show: worlds, spans and lengths that are not in the design.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from sa_plugin.host.protocol import Host
from sa_plugin.show.result import clean
from sa_plugin.stages.store import read_json, write_json
from sa_plugin.stages.study import UNTOLD
from sa_plugin.stages.tail_cells import OUTCOME, TailDesign, TailScores
from sa_plugin.stages.tail_predicted import (
    HEADER,
    Column,
    areas_among,
    best_of_areas,
    design_hash,
    fit_constants,
    pooled_samples,
    predict,
)
from sa_plugin.stages.tail_runs import run_design
from sa_plugin.statistics.bootstrap import Resamples
from sa_plugin.statistics.confusion import reaches
from sa_plugin.statistics.drawn import Drawn, Resampling
from sa_plugin.statistics.interval import LEAST
from sa_plugin.statistics.quantile import DELTAS
from sa_plugin.statistics.ranking import resampled_auroc
from sa_plugin.theory.tail_law import MAXIMUM, TIE

CHOICES = ("law", "max", "short", "cal")
REGRET, SHARE, FACTOR = 0.02, 1 / 3, 2.0
GROUPS = 40
# Against rounding where two deltas are compared.
_EDGE = 1e-9


Row = Mapping[str, Any]


def judge_prediction(
    frozen: Mapping[str, Any],
    outcomes: Mapping[str, TailScores],
    resampling: Resampling = Resampling(),
    also: Callable[[Row], Iterable[str]] = lambda row: (),
) -> dict[str, Any]:
    """Compare predictions with outcomes.

    Args:
        frozen: As `predict` made it.
        outcomes: By cell, of those that were run.
        resampling: Level, and seed of the groups.
        also: Of a row with its `cell`, `kind`, `layer` and `concept`, the further parts that it is in.

    Returns:
        `rows` of every cell, kind and concept, and of all of them `regret` by choice, over documents and over
        cells, `saved` by the law against each other choice, the same in cells where the maximum has something
        to lose, in those named in advance and in further parts, `delta`, `slope` and the `verdict`.

    Raises:
        ValueError: No cell of the prediction was run.
    """
    documents = sorted({name for seen in outcomes.values() for name in seen.documents})
    units = min(GROUPS, len(documents))
    order = np.random.default_rng(resampling.seed).permutation(len(documents)) % units
    home = dict(zip(documents, order.tolist(), strict=True))
    rows, regrets, points = [], [], []
    for (cell, kind), predictions in groupby(frozen["predictions"], itemgetter("cell", "kind")):
        seen = outcomes.get(cell)
        if seen is None:
            continue
        splits = {of: _Split(seen.split(of), kind) for of in ("cal", "test")}
        for said in predictions:
            if said["concept"] not in seen.concepts:
                continue
            cal, test = (one.column(said["layer"], said["concept"]) for one in splits.values())
            if min(len(set(one["positive"].tolist())) for one in (cal, test)) < 2:
                continue
            row, columns, differences = _one(said, cal, test, home, resampling)
            rows.append(row)
            regrets.append(columns)
            points.append(differences)
    if not rows:
        raise ValueError("no prediction meets an outcome with both classes: run the cells first.")
    further = {row: tuple(also(rows[row])) for row in range(len(rows))}
    return _judged(rows, np.stack(regrets), points, resampling, further)


class _Split:
    """One split of a cell and kind, all layers and concepts pooled at once."""

    def __init__(self, seen: TailScores, kind: str) -> None:
        self.seen, self.kind = seen, kind
        self.pooled = dict(pooled_samples(seen.scores[seen.kinds.index(kind)], seen.bounds))

    def column(self, layer: int, concept: str) -> dict[str, Any]:
        """As `TailScores.column`, with the contexts' pooled numbers."""
        at = self.seen.layers.index(layer), self.seen.concepts.index(concept)
        pooled = {key: each[:, *at] for key, each in self.pooled.items()}
        return {**self.seen.column(self.kind, layer, concept), "pooled": pooled}


def _one(
    said: Mapping[str, Any], cal: Column, test: Column, home: Mapping[str, int], resampling: Resampling
) -> tuple[dict[str, Any], Float64[np.ndarray, "choice column"], list[tuple[float, float]]]:
    """One cell, kind and concept: its record, the regret of each choice, and the points of the slope."""
    truth, values = test["positive"], test["pooled"]
    areas = areas_among(values, truth)
    best = max(areas, key=lambda key: areas[key])
    maximum, own = (MAXIMUM, 0), areas_among(cal["pooled"], cal["positive"])
    picked: dict[str, Sequence[Any]] = {
        "law": said["best"],
        "max": maximum,
        "short": said["short"],
        "cal": best_of_areas(own),
    }
    chosen = {one: (str(key[0]), int(key[1])) for one, key in picked.items()}
    group = np.array([home[one] for one in test["documents"].tolist()])
    units = max(home.values()) + 1
    weights = np.concatenate([np.ones((1, units), np.int64), 1 - np.eye(units, dtype=np.int64)])
    resamples = Resamples(group, weights, units, resampling)
    drawn = {key: resampled_auroc(values[key], truth, resamples) for key in {best, *chosen.values()}}
    regret = np.stack([drawn[best] - drawn[chosen[one]] for one in CHOICES])
    # Ties are ties on all the data; the columns then stay 0.
    regret[regret[:, 0] <= TIE] = 0.0
    predicted = dict(zip(HEADER["auroc"], said["auroc"], strict=True))
    place = dict(zip(HEADER["auroc"], said["candidate"], strict=True))
    points = [
        (area - predicted[MAXIMUM], areas[one, place[one]] - areas[maximum])
        for one, area in predicted.items()
        if one != MAXIMUM
    ]
    delta, tied = _deltas(cal, test)
    row = {
        "cell": said["cell"],
        "kind": said["kind"],
        "concept": said["concept"],
        "layer": said["layer"],
        "positive": int(truth.sum()),
        "negative": int((~truth).sum()),
        "chosen": {one: list(key) for one, key in chosen.items()},
        "best": list(best),
        "auroc": {one: areas[key] for one, key in chosen.items()} | {"best": areas[best]},
        "predicted": {"max": predicted[MAXIMUM], "law": predicted[said["best"][0]]},
        "regret": dict(zip(CHOICES, regret[:, 0].tolist(), strict=True)),
        "max_regret_on_cal": max(own.values()) - own[maximum],
        "maximum_loses": said["maximum_loses"],
        "delta": {"predicted": said["delta"], "best": delta, "tied": tied},
        "delta_off": not any(_near(said["delta"], one) for one in tied),
        "delta_off_strictly": not _near(said["delta"], delta),
    }
    return row, regret, points


def _near(one: float, other: float) -> bool:
    return 1 / FACTOR - _EDGE <= one / other <= FACTOR + _EDGE


def _deltas(cal: Column, test: Column) -> tuple[float, list[float]]:
    """Best delta by test F1 at thresholds of calibration tokens, and all within a tie of it."""
    inside = cal["scores"][cal["labels"]].astype(np.float64)
    highest = np.maximum.reduceat(test["scores"], test["bounds"][:-1])
    truth = test["positive"]
    f1 = []
    for cut in np.quantile(inside, 1 - np.array(DELTAS)):
        fired = reaches(highest, cut)
        hits = int((fired & truth).sum())
        f1.append(2 * hits / max(int(fired.sum()) + int(truth.sum()), 1))
    best = int(np.argmax(f1))
    tied = [DELTAS[k] for k, one in enumerate(f1) if one >= f1[best] - TIE]
    return DELTAS[best], tied


def _judged(
    rows: list[dict[str, Any]],
    regret: Float64[np.ndarray, "row choice column"],
    points: list[list[tuple[float, float]]],
    resampling: Resampling,
    further: Mapping[int, Sequence[str]],
) -> dict[str, Any]:
    cells = np.array([row["cell"] for row in rows])
    stakes = np.array([row["max_regret_on_cal"] > REGRET for row in rows])
    on_test = np.array([row["regret"]["max"] > REGRET for row in rows])
    named = np.array([bool(row["maximum_loses"]) for row in rows])
    parts = {
        "all": np.ones(len(rows), dtype=bool),
        "max has something to lose (calibration)": stakes,
        "max has something to lose (test)": on_test,
        "named in advance": named,
    }
    for name in dict.fromkeys(one for each in further.values() for one in each):
        parts[name] = np.array([name in further[row] for row in range(len(rows))])
    found: dict[str, Any] = {"rows": rows, "parts": {}}
    for name, part in parts.items():
        own = _part(regret, cells, part, resampling.level) if part.any() else {"rows": 0, "cells": 0}
        found["parts"][name] = own
    off = np.array([row["delta_off"] for row in rows])
    x, y = (np.array([p[k] for each in points for p in each]) for k in (0, 1))
    owner = np.repeat(cells, [len(each) for each in points])
    names = np.unique(owner)
    columns = [np.ones(len(x), dtype=bool), *(owner != one for one in names)]
    slopes = np.array([(x[c] * y[c]).sum() / max((x[c] ** 2).sum(), 1e-12) for c in columns])
    slope = Drawn(slopes, {}, np.array("mean"), np.ones(len(names)), resampling.level)
    found["slope"] = _said(slope)
    found["points"] = {"predicted": x.round(4).tolist(), "observed": y.round(4).tolist()}
    found["delta"] = {
        "off": int(off.sum()),
        "off_strictly": int(sum(row["delta_off_strictly"] for row in rows)),
        "of": len(rows),
    }
    found["maximum_lost"] = {
        "named": int(named.sum()),
        "of_them": int(sum(row["regret"]["max"] > 0 for row, one in zip(rows, named, strict=True) if one)),
        "not_named": int((~named).sum()),
        "of_the_others": int(
            sum(row["regret"]["max"] > 0 for row, one in zip(rows, named, strict=True) if not one)
        ),
    }
    found["verdict"] = _verdict(found)
    return found


def _part(
    regret: Float64[np.ndarray, "row choice column"], cells: np.ndarray, part: np.ndarray, level: float
) -> dict[str, Any]:
    """Mean regrets of some rows, and what the law saves against every other choice, both with intervals."""
    own = regret[part]
    by_document = np.nanmean(own, axis=0)
    names = np.unique(cells[part])
    by_cell = np.stack(
        [
            own[:, :, 0].mean(0),
            *(own[cells[part] != one][:, :, 0].mean(0) for one in names if len(names) > 1),
        ],
        axis=-1,
    )
    found: dict[str, Any] = {"rows": int(part.sum()), "cells": len(names)}
    for over, columns in (("over documents", by_document), ("over cells", by_cell)):
        units = np.ones(columns.shape[-1] - 1)
        drawn = Drawn(columns, {"choice": CHOICES}, np.array("mean"), units, level)
        saved = {one: drawn.sel(choice=one) - drawn.sel(choice="law") for one in CHOICES if one != "law"}
        found[over] = {
            "regret": {one: _said(drawn.sel(choice=one)) for one in CHOICES},
            "saved": {one: _said(each) for one, each in saved.items()},
            "detectable": {one: round(float(each.detectable()), 4) for one, each in saved.items()},
        }
    return found


def _said(drawn: Drawn) -> list[float]:
    """Estimate and both ends."""
    return [round(float(one), 4) for one in (drawn.estimate, drawn.low, drawn.high)]


def _verdict(found: Mapping[str, Any]) -> dict[str, Any]:
    """By `tail_predicted.REFUTED`."""
    part = found["parts"]["max has something to lose (calibration)"]
    delta = found["delta"]
    delta_refuted = delta["off"] > SHARE * delta["of"]
    if not part["rows"]:
        regret, refuted = "cannot be said: the maximum has nothing to lose in any cell", False
    elif part["cells"] < LEAST:
        regret, refuted = f"cannot be said: fewer than {LEAST} cells, no interval over them", False
    else:
        saved = [part[over]["saved"]["max"] for over in ("over documents", "over cells")]
        refuted = not all(one[1] > 0 for one in saved)
        regret = "refuted" if refuted else "not refuted"
    return {
        "regret": regret,
        "delta": "refuted" if delta_refuted else "not refuted",
        "law": "refuted" if refuted or delta_refuted else regret,
    }


def tried(
    design: TailDesign,
    out: str | Path,
    *,
    root: str | Path | None = None,
    hosts: Mapping[str, Host] | None = None,
    say: Callable[[str], None] = UNTOLD,
) -> dict[str, Any]:
    """The whole trial, or what is left of it: worlds and fit cells, the prediction, the cells kept back.

    Costs what `run_design` costs, and some seconds of one core for every prediction.

    Args:
        design: From `read_design`.
        out: Folder for everything, `prediction.json` and `judged.json` among it; run again to continue.
        root: The folder of Brown, where it does not lie where `load("brown")` looks.
        hosts: Attached models by name, in place of the folders of that name.
        say: Called with one line a step.

    Raises:
        ValueError: As `run_design`; or the folder's prediction is of another design.
    """
    out = Path(out)
    by_role = {role: [cell.name for cell in design.cells if cell.role == role] for role in ("fit", "kept")}
    path = out / "prediction.json"
    # With no cells the worlds alone are run.
    for cells in ([], by_role["fit"]):
        run_design(design, out, cells=cells, hosts=hosts, root=root, say=say)
    if not path.exists():
        given = design.constants
        constants, fitted = fit_constants(design, out, say=say) if given is None else (given, {})
        write_json(predict(design, out, constants, fitted=fitted, say=say), path)
    frozen = read_json(path)
    if frozen["design_hash"] != design_hash(design):
        raise ValueError(f"{path} is of another design: give another folder.")
    run_design(design, out, cells=by_role["kept"], hosts=hosts, root=root, say=say)
    outcomes = {name: TailScores.read(out / "cells" / name / OUTCOME) for name in by_role["kept"]}
    found = judge_prediction(frozen, outcomes)
    write_json(clean(found), out / "judged.json")
    for name, part in found["parts"].items():
        if part["rows"]:
            own = part["over documents"]
            regret = ", ".join(f"{one} {own['regret'][one][0]:.3f}" for one in CHOICES)
            mean, low, high = own["saved"]["max"]
            seen = f"could have seen {own['detectable']['max']:.3f}"
            say(f"{name}, {part['rows']} rows of {part['cells']} cells: mean regret {regret}")
            say(f"    law saves {mean:+.3f} [{low:+.3f}, {high:+.3f}] against max over documents; {seen}")
    verdict = ", ".join(f"{part} {said}" for part, said in found["verdict"].items())
    say(f"{len(found['rows'])} predictions judged: {verdict}")
    return found
