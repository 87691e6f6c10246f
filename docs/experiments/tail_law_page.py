"""The tail law's frozen prediction, its judgement, and the tables and figure of its page.

    python docs/experiments/tail_law_page.py freeze OUT   # writes docs/findings/data/tail_law_prediction.json
    python docs/experiments/tail_law_page.py judge OUT    # its page's tables and figure

OUT is a folder that `tail_law_runs.py` or `sa-plugin reproduce tail_law --out OUT` fills. `freeze` needs the
worlds and what is finished of the fit cells, `judge` the kept-back cells that are finished; it refuses a
prediction of another design. A frozen prediction is never written over.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from between_markers import put

from sa_plugin._files import write_text
from sa_plugin.show import plots
from sa_plugin.show.result import clean
from sa_plugin.stages import fit_constants, judge_prediction, predict, read_design
from sa_plugin.stages.tail_cells import OUTCOME, TailScores
from sa_plugin.stages.tail_predicted import design_hash

FINDINGS = Path(__file__).parents[1] / "findings"
FROZEN, JUDGED = FINDINGS / "data" / "tail_law_prediction.json", FINDINGS / "data" / "tail_law.json"
PAGE, PICTURE = FINDINGS / "tail_law.md", FINDINGS.parent / "pictures" / "tail_law.png"
BEGIN, END = "<!-- tail law: written by tail_law_page.py -->", "<!-- end of tail law -->"
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
    write_text(JUDGED, json.dumps(clean(found), indent=1) + "\n")
    picture(found)
    put(PAGE, BEGIN, END, "\n\n".join(tables(found)))


def number(value: float | None) -> str:
    """A figure as the pages show it."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.3f}".replace("0.", ".", 1)


def interval(said: Sequence[float]) -> str:
    """With its ends."""
    return f"{number(said[0])} [{number(said[1])}, {number(said[2])}]"


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
