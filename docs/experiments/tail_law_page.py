"""The tail law's frozen prediction, its judgement, and the tables and figure of its page.

    python docs/experiments/tail_law_page.py freeze OUT   # writes docs/findings/data/tail_law_prediction.json
    python docs/experiments/tail_law_page.py judge OUT    # its page's tables and figure

OUT is a folder that `tail_law_runs.py` or `sa-plugin reproduce tail_law --out OUT` fills. `freeze` needs the
worlds and what is finished of the fit cells, `judge` the kept-back cells that are finished; it refuses a
prediction of another design. A frozen prediction is never written over. Of the finished cells `judge` also
writes what the product's own tables measured: detection at thresholds calibrated there, at thresholds carried
over from short contexts, and, where they were run, probes trained on short contexts.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from between_markers import put

from sa_plugin._files import write_text
from sa_plugin.show import plots
from sa_plugin.show.result import clean
from sa_plugin.stages import fit_constants, judge_prediction, predict, read_design
from sa_plugin.stages.tail_cells import MEASURED, OUTCOME, TRAINED, TailDesign, TailScores
from sa_plugin.stages.tail_predicted import design_hash
from sa_plugin.statistics import Drawn

FINDINGS = Path(__file__).parents[1] / "findings"
FROZEN, JUDGED = FINDINGS / "data" / "tail_law_prediction.json", FINDINGS / "data" / "tail_law.json"
PAGE, PICTURE = FINDINGS / "tail_law.md", FINDINGS.parent / "pictures" / "tail_law.png"
ROW = ("cell", "kind", "layer", "concept", "positive", "negative", "delta_off")
# A list of numbers that `json` spreads over lines.
NUMBERS = re.compile(r"\[[-+.\deE,\s]+\]")
BEGIN, END = "<!-- tail law: written by tail_law_page.py -->", "<!-- end of tail law -->"
MEASURED_BEGIN = "<!-- tail law, measured: written by tail_law_page.py -->"
MEASURED_END = "<!-- end of tail law, measured -->"
SHOWN = ("SuperActivators", "MaxTok", "softmax pool", "Top10%", "MeanTok")
"""Of nineteen rows; every outcome.json of OUT has all."""
CHOICES = {
    "law": "the law's",
    "max": "always the maximum",
    "short": "best on short contexts",
    "cal": "best on the cell's calibration contexts",
}


def freeze(out: Path) -> None:
    """Write the prediction, once."""
    if FROZEN.exists():
        raise SystemExit(f"{FROZEN} is frozen: it is not written over.")
    design = read_design("tail_law")
    constants, fitted = fit_constants(design, out, say=print)
    found = predict(design, out, constants, fitted=fitted, say=print)
    write_frozen(found)


def write_frozen(found: Mapping[str, Any]) -> None:
    """One line a prediction, so that a change shows."""
    head = json.dumps({k: v for k, v in found.items() if k != "predictions"}, indent=1)
    rows = ",\n".join(json.dumps(one, separators=(",", ":")) for one in found["predictions"])
    write_text(FROZEN, f'{head[:-2]},\n "predictions": [\n{rows}\n ]\n}}\n')


def judged(out: Path) -> None:
    """Judge what is finished of the kept-back cells."""
    frozen, design = json.loads(FROZEN.read_text(encoding="utf-8")), read_design("tail_law")
    if frozen["design_hash"] != design_hash(design):
        raise SystemExit("the prediction is of another design than tail_law.toml.")
    kept = {cell.name: out / "cells" / cell.name / OUTCOME for cell in design.cells if cell.role == "kept"}
    seen = {name: TailScores.read(path) for name, path in kept.items() if path.exists()}
    found = judge_prediction(frozen, seen)
    found["cells"] = {"run": sorted(seen), "not run": sorted(set(kept) - set(seen))}
    found["cells"]["count"] = [len(seen), len(kept), len(kept) - len(seen)]
    found["measured"] = measured(out, design)
    write_text(JUDGED, compact(clean(found)))
    picture(found)
    put(PAGE, BEGIN, END, "\n\n".join(tables(found)))
    put(PAGE, MEASURED_BEGIN, MEASURED_END, measured_shown())


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
    if found["trained"]:
        names = list(next(iter(found["trained"].values())))
        trained = [
            [cell, *(number(own[name]["auroc"][0]) for name in names)]
            for cell, own in found["trained"].items()
        ]
        made += [
            "AUROC of probes trained on short contexts, at the middle layer:",
            grid(["cell", *names], trained),
        ]
    return made


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
    for name, part in found["parts"].items():
        if not part["rows"]:
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
    for name in found["cells"]["run"]:
        own = [row for row in found["rows"] if row["cell"] == name]
        means = [
            np.mean([row[a][b] for row in own])
            for a, b in (
                ("predicted", "max"),
                ("auroc", "max"),
                ("predicted", "law"),
                ("auroc", "law"),
                ("regret", "law"),
                ("regret", "max"),
            )
        ]
        off = sum(row["delta_off"] for row in own)
        cells.append(f"| {name} | {len(own)} | " + " | ".join(number(one) for one in means) + f" | {off} |")
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
    return [verdict_words, "\n".join(lines), "\n".join(cells)]


def picture(found: Mapping[str, Any]) -> None:
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
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    {"freeze": freeze, "judge": judged}[sys.argv[1]](Path(sys.argv[2]))
