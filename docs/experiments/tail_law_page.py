"""The tail law's frozen predictions, their judgement, and the tables and figures of its page.

    python docs/experiments/tail_law_page.py freeze DESIGN OUT   # writes DESIGN_prediction.json in data
    python docs/experiments/tail_law_page.py judge DESIGN OUT    # writes DESIGN.json there, tables, figure
    python docs/experiments/tail_law_page.py show                # what the page has of kept data, once more

DESIGN is `tail_law`, or `tail_law_blocks`: another seed, every block. OUT is a folder that `tail_law_runs.py`
or `sa-plugin reproduce DESIGN --out OUT` fills. `freeze` reads finished worlds and fit cells, and writes the
cells that are not frozen yet: a frozen prediction is never written over. `judge` reads the kept-back cells
that are finished; it refuses a prediction of another design. Of the finished cells it also writes what the
product's own tables measured: detection at thresholds calibrated there, at thresholds carried over from short
contexts, of every method at every block, and, where they were run, probes trained on short contexts.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from between_markers import put

from sa_plugin._files import write_text
from sa_plugin.show import plots
from sa_plugin.show.result import clean
from sa_plugin.stages import fit_constants, judge_prediction, predict, read_design
from sa_plugin.stages.tail_cells import MEASURED, OUTCOME, TRAIN, TRAINED, TailDesign, TailScores
from sa_plugin.stages.tail_predicted import design_hash
from sa_plugin.statistics import Drawn
from sa_plugin.theory import Constants

FINDINGS = Path(__file__).parents[1] / "findings"
FIRST, BLOCKS = "tail_law", "tail_law_blocks"
JUDGED = FINDINGS / "data" / f"{FIRST}.json"
PAGE, PICTURES = FINDINGS / "tail_law.md", FINDINGS.parent / "pictures"
OF_CELL = (
    ("predicted", "max"),
    ("auroc", "max"),
    ("predicted", "law"),
    ("auroc", "law"),
    ("regret", "law"),
    ("regret", "max"),
)
ROW = ("cell", "kind", "layer", "concept", "positive", "negative", "delta_off")
# A list of numbers that `json` spreads over lines.
NUMBERS = re.compile(r"\[[-+.\deE,\s]+\]")
BEGIN, END = "<!-- tail law: written by tail_law_page.py -->", "<!-- end of tail law -->"
MEASURED_BEGIN = "<!-- tail law, measured: written by tail_law_page.py -->"
MEASURED_END = "<!-- end of tail law, measured -->"
BLOCKS_BEGIN = "<!-- tail law, all blocks: written by tail_law_page.py -->"
BLOCKS_END = "<!-- end of tail law, all blocks -->"
BUDGET_BEGIN = "<!-- tail law, budget: written by tail_law_page.py -->"
BUDGET_END = "<!-- end of tail law, budget -->"
MODELS = {"smollm2": "SmolLM2", "minilm": "MiniLM", "vit": "ViT"}
PARTS = (
    "all",
    "max has something to lose (calibration)",
    "max has something to lose (test)",
    "named in advance",
)
QUARTERS = ("first", "second", "third", "last")
SHOWN = ("SuperActivators", "MaxTok", "softmax pool", "Top10%", "MeanTok")
"""Of nineteen rows; every outcome.json of OUT has all."""
CHOICES = {
    "law": "the law's",
    "max": "always the maximum",
    "short": "best on short contexts",
    "cal": "best on the cell's calibration contexts",
}


def frozen_of(name: str) -> Path:
    """Where the prediction of a design is kept."""
    return FINDINGS / "data" / f"{name}_prediction.json"


def freeze(name: str, out: Path) -> None:
    """Write the prediction of every kept-back cell whose world has run and that has none yet."""
    path, design = frozen_of(name), read_design(name)
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if held is not None and held["design_hash"] != design_hash(design):
        raise SystemExit(f"{path} is frozen, of another design than {name}.toml: it is not written over.")
    before = {one["cell"] for one in held["predictions"]} if held else set()
    cells = [
        cell.name
        for cell in design.cells
        if cell.role == "kept" and cell.name not in before and (out / "worlds" / cell.world / TRAIN).exists()
    ]
    if not cells:
        raise SystemExit(f"no world in {out} has a cell that is not frozen in {path}.")
    constants, fitted = design.constants, None
    if held is not None:
        constants, fitted = Constants(**held["constants"]), held["fitted"]
    elif constants is None:
        constants, fitted = fit_constants(design, out, say=print)
    found = predict(design, out, constants, fitted=fitted, cells=cells, say=print)
    if held is not None:
        found["train_hash"] |= held["train_hash"]
        found["predictions"] = held["predictions"] + found["predictions"]
    write_frozen(found, path)


def write_frozen(found: Mapping[str, Any], path: Path) -> None:
    """One line a prediction, so that a change shows."""
    head = json.dumps({k: v for k, v in found.items() if k != "predictions"}, indent=1)
    rows = ",\n".join(json.dumps(one, separators=(",", ":")) for one in found["predictions"])
    write_text(path, f'{head[:-2]},\n "predictions": [\n{rows}\n ]\n}}\n')


def judged(name: str, out: Path) -> None:
    """Judge what is finished of a design's kept-back cells."""
    frozen, design = json.loads(frozen_of(name).read_text(encoding="utf-8")), read_design(name)
    if frozen["design_hash"] != design_hash(design):
        raise SystemExit(f"the prediction is of another design than {name}.toml.")
    kept = {cell.name: out / "cells" / cell.name / OUTCOME for cell in design.cells if cell.role == "kept"}
    seen = {cell: TailScores.read(path) for cell, path in kept.items() if path.exists()}
    also = depth_of(design) if name == BLOCKS else lambda row: ()
    found = judge_prediction(frozen, seen, also=also)
    found["cells"] = {"run": sorted(seen), "not run": sorted(set(kept) - set(seen))}
    found["cells"]["count"] = [len(seen), len(kept), len(kept) - len(seen)]
    found["by cell"] = by_cell(found)
    found["measured"] = measured(out, design)
    found["methods"] = every_method(out, design)
    write_text(FINDINGS / "data" / f"{name}.json", compact(clean(found)))
    if name == BLOCKS:
        by_block(found, design, PICTURES / f"{name}.png")
    else:
        picture(found, PICTURES / f"{name}.png")
        put(PAGE, BEGIN, END, "\n\n".join(tables(found)))
    show()


def show() -> None:
    """The tables of the page that kept data make."""
    put(PAGE, MEASURED_BEGIN, MEASURED_END, measured_shown())
    put(PAGE, BLOCKS_BEGIN, BLOCKS_END, blocks_shown())
    put(PAGE, BUDGET_BEGIN, BUDGET_END, budget_shown())


def depth_of(design: TailDesign) -> Callable[[Mapping[str, Any]], list[str]]:
    """Model and quarter of its blocks that a row is of."""
    cells = {cell.name: design.world_of(cell) for cell in design.cells}

    def parts(row: Mapping[str, Any]) -> list[str]:
        world = cells[row["cell"]]
        quarter = 4 * world.layers.index(row["layer"]) // len(world.layers)
        return [MODELS[world.model], f"{QUARTERS[quarter]} quarter of the blocks"]

    return parts


def by_cell(found: Mapping[str, Any]) -> dict[str, list[float]]:
    """Means over a cell's rows in the order of the page's table, and how many deltas are off."""
    made = {}
    for name in found["cells"]["run"]:
        own = [row for row in found["rows"] if row["cell"] == name]
        means = [float(np.mean([row[a][b] for row in own])) for a, b in OF_CELL]
        made[name] = [len(own), *(round(one, 4) for one in means), sum(row["delta_off"] for row in own)]
    return made


def every_method(out: Path, design: TailDesign) -> dict[str, Any]:
    """Of every row of the detection table: means over the cells and blocks of a model, each block alone."""
    found: dict[str, Any] = {}
    for cell in design.cells:
        path, world = out / "cells" / cell.name / MEASURED, design.world_of(cell)
        if not path.exists():
            continue
        for kind, own in json.loads(path.read_text(encoding="utf-8"))["kinds"].items():
            for layer in world.layers:
                at = own["measured"].get(str(layer), own["measured"]["all layers"])["methods"]
                for method, metrics in at.items():
                    place = found.setdefault(MODELS[world.model], {}).setdefault(kind, {})
                    for metric in ("auroc", "f1", "tpr_at_1_percent", "false_alarms"):
                        value = metrics[metric]["estimate"]
                        place.setdefault(method, {}).setdefault(metric, []).append(value)
    return {
        model: {
            kind: {
                method: {metric: mean_of(values) for metric, values in metrics.items()}
                for method, metrics in methods.items()
            }
            for kind, methods in kinds.items()
        }
        for model, kinds in found.items()
    }


def mean_of(values: Sequence[float | None]) -> float | None:
    """Of what can be said."""
    said = [one for one in values if one is not None and np.isfinite(one)]
    return round(float(np.mean(said)), 4) if said else None


def compact(found: Mapping[str, Any]) -> str:
    """What page and tests need, and a line a row; points are drawn and not kept."""
    rest = {name: part for name, part in found.items() if name not in ("rows", "points")}
    lines = ",\n".join(
        json.dumps(
            [
                *(row[name] for name in ROW),
                row["chosen"]["law"][0],
                row["best"][0],
                *(round(row["regret"][one], 4) for one in CHOICES),
                row["delta"]["predicted"],
                row["delta"]["best"],
            ]
        )
        for row in found["rows"]
    )
    header = [*ROW, "law", "best", *(f"regret of {one}" for one in CHOICES), "delta predicted", "delta best"]
    rest["header"] = header
    head = NUMBERS.sub(lambda found: " ".join(found[0].split()), json.dumps(rest, indent=1))
    return f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'


def measured(out: Path, design: TailDesign) -> dict[str, Any]:
    """Of every finished cell's separators: F1, AUROC and false alarms here, carried over, and of probes."""
    found: dict[str, Any] = {"here": {}, "carried": {}, "trained": {}}
    for cell in design.cells:
        home = out / "cells" / cell.name
        if not (home / MEASURED).exists():
            continue
        own = json.loads((home / MEASURED).read_text(encoding="utf-8"))["kinds"]["separator"]["measured"]
        found["here"][cell.name] = brief(own["all layers"]["methods"])
        tokens = own["localisation"]["f1"]
        at = tokens["axes"]["method"].index("SuperActivators")
        three = [rounded(tokens[of][at]) for of in ("estimate", "low", "high")]
        found["here"][cell.name]["tokens"] = {"f1": three}
        if "methods" in own.get("shifted", {}):
            found["carried"][cell.name] = brief(own["shifted"]["methods"]) | {"from": cell.shift_from}
        if (home / TRAINED).exists():
            probes = json.loads((home / TRAINED).read_text(encoding="utf-8"))
            same = own[str(probes["layer"])]["methods"]["MaxTok"]["auroc"]["concepts"]
            if probes["methods"]["MaxTok"]["auroc"]["concepts"] != same:
                raise SystemExit(f"{home / TRAINED} is of other contexts than {MEASURED} beside it.")
            found["trained"][cell.name] = brief(probes["methods"], probes["methods"])
    found["lost"] = {name: over_cells(found, name) for name in SHOWN if len(found["carried"]) > 2}
    return found


def brief(methods: Mapping[str, Any], names: Iterable[str] = SHOWN) -> dict[str, Any]:
    """Estimate, low and high of what the tables show."""
    return {
        name: {
            metric: [rounded(methods[name][metric][of]) for of in ("estimate", "low", "high")]
            for metric in ("f1", "auroc", "false_alarms")
        }
        for name in names
    }


def rounded(value: float | None) -> float | None:
    """As it is kept."""
    return None if value is None else round(value, 4)


def over_cells(found: Mapping[str, Any], name: str) -> list[float]:
    """F1 at carried thresholds minus F1 at the cell's own, mean over cells, each left out in turn."""
    lost = np.array(
        [
            found["carried"][cell][name]["f1"][0] - found["here"][cell][name]["f1"][0]
            for cell in found["carried"]
        ]
    )
    columns = np.array([lost.mean(), *((lost.sum() - one) / (len(lost) - 1) for one in lost)])
    drawn = Drawn(columns, {}, np.array("mean"), np.ones(len(lost)), 0.95)
    return [round(float(one), 4) for one in (drawn.estimate, drawn.low, drawn.high)]


def measured_shown() -> str:
    """The second tables, from what is kept."""
    return "\n\n".join(measured_tables(json.loads(JUDGED.read_text(encoding="utf-8"))["measured"]))


def measured_tables(found: Mapping[str, Any]) -> list[str]:
    """Detection in every finished cell; thresholds carried over; probes where they were trained."""
    head = ["cell", *(f"F1 of {name}" for name in SHOWN), "AUROC of MaxTok", "of MeanTok"]
    head += ["false alarms of SuperActivators", "of MeanTok", "token F1"]
    here = [
        [
            cell,
            interval(own["SuperActivators"]["f1"]),
            *(number(own[name]["f1"][0]) for name in SHOWN[1:]),
            *(number(own[name]["auroc"][0]) for name in ("MaxTok", "MeanTok")),
            *(number(own[name]["false_alarms"][0]) for name in ("SuperActivators", "MeanTok")),
            number(own["tokens"]["f1"][0]),
        ]
        for cell, own in found["here"].items()
    ]
    made = ["At thresholds calibrated in the cell:", grid(head, here)]
    if found["carried"]:
        head = ["cell, thresholds of", *(f"F1 of {name}" for name in SHOWN)]
        head += [f"false alarms of {name}" for name in ("SuperActivators", "MeanTok")]
        carried = [
            [
                f"{cell}, {own['from'].partition('-')[2]}",
                *(
                    f"{number(own[name]['f1'][0])} ({number(found['here'][cell][name]['f1'][0])})"
                    for name in SHOWN
                ),
                *(number(own[name]["false_alarms"][0]) for name in ("SuperActivators", "MeanTok")),
            ]
            for cell, own in found["carried"].items()
        ]
        lost = ["mean difference over cells", *(interval(found["lost"][one], True) for one in found["lost"])]
        carried += [[*lost, "", ""]] if found["lost"] else []
        made += ["At thresholds of short contexts, in brackets F1 at the cell's own:", grid(head, carried)]
    return made + (trained_tables(found["trained"]) if found["trained"] else [])


def trained_tables(found: Mapping[str, Any]) -> list[str]:
    """Probes that were trained through their pooling on the world's contexts, in longer ones."""
    names = list(next(iter(found.values())))
    lines = [[cell, *(number(own[name]["auroc"][0]) for name in names)] for cell, own in found.items()]
    words = "AUROC of probes trained on short contexts, at the middle block, beside the separator's there:"
    return [words, grid(["cell", *names], lines)]


def grid(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows])


def number(value: float | None) -> str:
    """A figure as the pages show it."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.3f}".replace("0.", ".", 1)


def interval(said: Sequence[float], signed: bool = False) -> str:
    """With its ends."""
    mean, low, high = (("+" if signed and one > 0 else "") + number(one) for one in said)
    return f"{mean} [{low}, {high}]"


def tables(found: Mapping[str, Any]) -> list[str]:
    """The verdict's numbers, then a row a cell."""
    lines = [
        "| choice | rows | mean regret, over documents | saved by the law | over cells |",
        "|---" * 5 + "|",
    ]
    further = []
    for name, part in found["parts"].items():
        if not part["rows"]:
            continue
        if name not in PARTS:
            of = part["over documents"]
            means = [interval(of["regret"][one]) for one in ("law", "max", "short")]
            saved = [interval(of["saved"][one]) for one in ("max", "short")]
            further.append([name, f"{part['rows']} of {part['cells']} cells", *means, *saved])
            continue
        lines.append(f"| **{name}** | {part['rows']} of {part['cells']} cells | | | |")
        for one, words in CHOICES.items():
            saved = [
                interval(part[over]["saved"][one]) if one != "law" else ""
                for over in ("over documents", "over cells")
            ]
            lines.append(
                f"| {words} | | {interval(part['over documents']['regret'][one])} | {saved[0]} | {saved[1]} |"
            )
    cells = [
        "| cell | rows | max: predicted | observed | law's: predicted | observed "
        "| regret of law | of max | delta off |",
        "|---" * 9 + "|",
    ]
    for name, (rows, *means, off) in found["by cell"].items():
        cells.append(f"| {name} | {rows} | " + " | ".join(number(one) for one in means) + f" | {off} |")
    missing = found["cells"]["not run"]
    rest = f"Not run: {', '.join(missing)}." if missing else "All kept-back cells were run."
    verdict = found["verdict"]
    delta, lost = found["delta"], found["maximum_lost"]
    verdict_words = (
        f"By the written rule, on {len(found['cells']['run'])} of {len(found['cells']['run'] + missing)} "
        f"kept-back cells: regret **{verdict['regret']}**, delta **{verdict['delta']}** "
        f"({delta['off']} of {delta['of']} rows off by more than a factor of two; {delta['off_strictly']} "
        f"where ties do not count). The maximum was named to lose in {lost['named']} rows and lost "
        f"over .01 in {lost['of_them']} of them, against {lost['of_the_others']} of the other "
        f"{lost['not_named']}. "
        f"Slope of observed on predicted differences to the maximum, over cells: {interval(found['slope'])}. "
        f"{rest}"
    )
    made = [verdict_words, "\n".join(lines)]
    if further:
        head = ["part", "rows", "regret of the law's", "of the maximum", "of best on short contexts"]
        made.append(grid([*head, "saved against the maximum", "against best on short"], further))
    return [*made, "\n".join(cells)]


def blocks_shown() -> str:
    """What the second design came to, from what is kept."""
    path = FINDINGS / "data" / f"{BLOCKS}.json"
    if not path.exists():
        return "Not judged yet."
    found = json.loads(path.read_text(encoding="utf-8"))
    made = [*tables(found), *method_tables(found["methods"])]
    if found["measured"]["trained"]:
        made += trained_tables(found["measured"]["trained"])
    return "\n\n".join(made)


def budget_shown() -> str:
    """Tokens of every run that the page rests on, by model, of ten million."""
    lines, whole = [], 0
    for name, words in ((FIRST, "three blocks a world, seed 0"), (BLOCKS, "every block, seed 1")):
        path = FINDINGS / "data" / f"{name}.json"
        if not path.exists():
            continue
        design, found = read_design(name), json.loads(path.read_text(encoding="utf-8"))["measured"]
        cells = [cell for cell in design.cells if cell.name in found["here"]]
        frozen = json.loads(frozen_of(name).read_text(encoding="utf-8"))
        run = {*frozen["train_hash"], *(cell.world for cell in cells)}
        worlds = {world.name: world for world in design.worlds if world.name in run}
        trained = [cell for cell in cells if cell.name in found["trained"]]
        rows = {
            "worlds": [(world.model, sum(world.contexts) * world.tokens) for world in worlds.values()],
            "cells": [(design.world_of(cell).model, sum(cell.contexts) * cell.tokens) for cell in cells],
            # Their world's contexts and the cell's are read twice: scores of the separator, then probes.
            "probes": [
                (
                    design.world_of(cell).model,
                    2 * sum(sum(of.contexts) * of.tokens for of in (cell, design.world_of(cell))),
                )
                for cell in trained
            ],
        }
        for part, each in rows.items():
            if not each:
                continue
            of = [sum(tokens for model, tokens in each if model == one) for one in MODELS]
            whole += sum(of)
            lines.append([f"{words}: {part}", *(f"{one:,}" for one in of), f"{sum(of):,}"])
    lines.append(["of 10,000,000", *[""] * len(MODELS), f"{whole:,}"])
    return grid(["run", *MODELS.values(), "tokens"], lines)


def method_tables(found: Mapping[str, Any]) -> list[str]:
    """Every row of the detection table, at one block at a time."""
    names = list(dict.fromkeys(name for kinds in found.values() for name in kinds["separator"]))
    columns = [
        (f"{words}, {model}, {kind}s", model, kind, metric)
        for metric, words, kinds in (
            ("auroc", "AUROC", ("separator", "prototype")),
            ("f1", "F1", ("separator",)),
            ("false_alarms", "alarms", ("separator",)),
        )
        for kind in kinds
        for model in found
    ]
    lines = [
        [name, *(number(found[model][kind].get(name, {}).get(metric)) for _, model, kind, metric in columns)]
        for name in names
    ]
    words = (
        "Every row of the detection table, at each block alone, means over the cells and blocks of a model"
    )
    return [
        f"{words} (alarms: false ones for 1,000 tokens):",
        grid(["row", *(one[0] for one in columns)], lines),
    ]


def picture(found: Mapping[str, Any], path: Path) -> None:
    """Predicted against observed differences, and regrets by choice."""
    figure, (left, right) = plots.new_figure(9.0, 3.6, columns=2)
    x, y = found["points"]["predicted"], found["points"]["observed"]
    left.plot(x, y, ".", color=plots.IN_COLOUR, ms=3, alpha=0.35)
    ends = [min(*x, *y), max(*x, *y)]
    left.plot(ends, ends, color=plots.OUT_COLOUR, lw=1, ls="--")
    plots.words(
        left, title="every pooling against the maximum", x="predicted difference in AUROC", y="observed"
    )
    at = 0
    ticks = []
    for name, part in found["parts"].items():
        if not part["rows"]:
            continue
        for one, words in CHOICES.items():
            mean, low, high = (np.nan if v is None else v for v in part["over documents"]["regret"][one])
            colour = {"law": plots.IN_COLOUR, "max": plots.TAIL_COLOUR}.get(one, plots.OUT_COLOUR)
            right.plot([low, high], [at, at], color=colour, lw=1.5)
            right.plot([mean], [at], "o", color=colour, ms=4.5)
            ticks.append((at, f"{words}" if one != "law" else f"{name}: {words}"))
            at += 1
        at += 1
    right.set_yticks([k for k, _ in ticks], [w for _, w in ticks], fontsize=6.5)
    right.invert_yaxis()
    plots.zero(right)
    plots.words(right, title="regret of four choices", x="AUROC below the best pooling")
    words = "Left: dashed where prediction and observation agree. Right: 95 % over documents."
    plots.note(figure, words)
    figure.savefig(path, dpi=120)


def by_block(found: Mapping[str, Any], design: TailDesign, path: Path) -> None:
    """Along the blocks of each model: AUROC of the maximum, predicted and observed, and regrets."""
    model_of = {cell.name: design.world_of(cell).model for cell in design.cells}
    models = [one for one in MODELS if one in {model_of[row["cell"]] for row in found["rows"]}]
    figure, axes = plots.new_figure(3.4 * len(models), 5.4, rows=2, columns=len(models))
    for k, model in enumerate(models):
        own = [row for row in found["rows"] if model_of[row["cell"]] == model]
        blocks = sorted({row["layer"] for row in own})
        at = [[row for row in own if row["layer"] == block] for block in blocks]
        areas = {
            "predicted": [row_mean(rows, "predicted", "max") for rows in at],
            "observed": [row_mean(rows, "auroc", "max") for rows in at],
        }
        colours = {"predicted": plots.OUT_COLOUR, "observed": plots.TAIL_COLOUR}
        upper, lower = (np.reshape(axes, (2, -1))[line, k] for line in (0, 1))
        for one, values in areas.items():
            upper.plot(blocks, values, ".-", color=colours[one], ms=4, lw=1, label=f"maximum, {one}")
        for one, colour in (
            ("law", plots.IN_COLOUR),
            ("max", plots.TAIL_COLOUR),
            ("short", plots.OUT_COLOUR),
        ):
            values = [row_mean(rows, "regret", one) for rows in at]
            lower.plot(blocks, values, ".-", color=colour, ms=4, lw=1, label=CHOICES[one])
        first = not k
        plots.words(upper, title=f"{MODELS[model]}, {len(own)} rows", y="AUROC" if first else "")
        plots.words(lower, x="block", y="AUROC below the best pooling" if first else "")
        lower.set_ylim(bottom=0)
        for ax in (upper, lower):
            ax.xaxis.get_major_locator().set_params(integer=True)
            if k == len(models) - 1:
                plots.legend(ax)
    plots.note(figure, "Means over cells, kinds and concepts; every cell of a model at every block.")
    figure.savefig(path, dpi=120)


def row_mean(rows: Sequence[Mapping[str, Any]], *steps: str) -> float:
    """Mean of one number of rows."""
    return float(np.mean([row[steps[0]][steps[1]] for row in rows]))


if __name__ == "__main__":
    if sys.argv[1:] == ["show"]:
        show()
    else:
        {"freeze": freeze, "judge": judged}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
