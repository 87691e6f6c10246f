"""Runs of alignment_runs.py into the tables of docs/findings/alignment.md: discriminants and separators.

    python docs/experiments/alignment_runs.py smollm2 --set A --kind lda --draws 2000 > run.txt
    python docs/experiments/alignment_page.py keep "SmolLM2, A" lda run.txt
    python docs/experiments/alignment_page.py show

`keep` reads what a run printed into docs/findings/data/alignment.json; `show` writes the tables from there. A
run's rate of held-out draws with a call has a deviation of sqrt(2 * .05 * .95 / n): the value that has to be
exceeded is estimated from as many draws as are held out.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from between_markers import put, short
from demo_table import write_data

FINDINGS = Path(__file__).parents[1] / "findings"
PAGE, DATA = FINDINGS / "alignment.md", FINDINGS / "data" / "alignment.json"
BEGIN = "<!-- {}: written by docs/experiments/alignment_page.py show -->"
END = "<!-- end of {} -->"
KINDS = ("lda", "separator")
RUNS = ("SmolLM2, A", "SmolLM2, B", "MiniLM, A", "MiniLM, B", "ViT, seed 2", "ViT, seed 3")
LEVEL = 0.05
CELL = re.compile(
    r"^(?P<head>L\d+H\d+) (?P<concept>.+?) +yes +\S+ +\S+ +(?P<p>[\d.]+) +(?P<share>[\d.]+) +"
    r"(?P<serves>this concept|any label|cannot tell)",
    re.M,
)
COSINE = r"(?:over )?([\d.]+)"
NUMBERS = {
    "cells": r"([\d,]+) cells,",
    "draws": r"cells, ([\d,]+) draws",
    "critical": r"has to exceed ([\d.]+)\.",
    "blocks": r"at least one in (\d+) of",
    "of_blocks": r"at least one in \d+ of (\d+)",
    "power_8": rf"in \d+% of heads x concepts from c = {COSINE} on",
    "power_5": rf"in half from {COSINE} on",
    "block_p": r"the largest p is ([\d.]+),",
}
WORDS = {"this concept": "**{}**", "any label": "*{}*", "cannot tell": "{}"}


def keep(run: str, kind: str, printed: str) -> None:
    """What the tables need of one run; the others stay as they are."""
    record = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    record.setdefault(kind, {})[run] = kept(printed)
    write_data(DATA, {k: {r: record[k][r] for r in RUNS if r in record[k]} for k in KINDS if k in record})


def kept(printed: str) -> dict[str, Any]:
    """Numbers and called cells of a run, as it printed them."""
    text = " ".join(printed.split())
    found: dict[str, Any] = {}
    for name, pattern in NUMBERS.items():
        (number,) = set(re.findall(pattern, text))
        found[name] = float(number.replace(",", ""))
    (held,) = re.findall(r"any call: (\{.*?\})", text)
    found["any_call"] = json.loads(held.replace("'", '"'))
    called = [
        [*one.group("head", "concept", "serves"), *map(float, one.group("p", "share"))]
        for one in CELL.finditer(printed)
    ]
    (stated,) = re.findall(r": (\d+) called concept-aligned", text)
    if len(called) != int(stated):
        raise ValueError(f"the run calls {stated} cells and prints {len(called)}: print more of them.")
    return found | {"called": called}


def table(kind: str) -> str:
    """The runs of one kind, and their held-out draws together."""
    runs = json.loads(DATA.read_text(encoding="utf-8"))[kind]
    lines = [
        "| run | cells | T to exceed | called (p, own false share) | power .8 (.5) from | any call, "
        "held out | write / read as found | blocks with one |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in runs.items():
        call = one["any_call"]
        lines.append(
            f"| {name} | {one['cells']:,.0f} | {one['critical']:.2f} | {_called(one)} | "
            f"{short(one['power_8'], 2)} ({short(one['power_5'], 2)}) | {short(call['held out'])} of "
            f"{one['draws'] / 2:,.0f} | {short(call['write as found'], 2)} / "
            f"{short(call['read as found'], 2)} | {one['blocks']:.0f} of {one['of_blocks']:.0f} |"
        )
    return "\n".join(lines) + "\n\n" + _together(runs)


def _called(one: dict[str, Any]) -> str:
    heads = defaultdict(list)
    for head, concept, serves, p, share in one["called"]:
        heads[head].append(f"{WORDS[serves].format(concept)} ({_p(p, one['draws'])}, {short(share, 2)})")
    count = f"{len(one['called'])}: " if len(one["called"]) > 1 else ""
    return count + "; ".join(f"{head} {', '.join(cells)}" for head, cells in heads.items()) or "none"


def _p(p: float, draws: float) -> str:
    # Printed with three decimals: the smallest possible p is below .0005 from 2,000 draws on.
    return short(max(p, 1 / (draws + 1))) if p >= 0.0005 else "<.001"


def _together(runs: dict[str, Any]) -> str:
    held = [(one["any_call"]["held out"], one["draws"] / 2) for one in runs.values()]
    total = sum(n for _, n in held)
    rate = sum(share * n for share, n in held) / total
    error = (2 * LEVEL * (1 - LEVEL) / total) ** 0.5
    return (
        f"Held-out draws of these {len(held)} runs together: {short(rate)} of {total:,.0f} hold any call, "
        f"with a standard error of {short(error)}, in which the null's own draws count: "
        f"{abs(rate - LEVEL) / error:.1f} of them {'below' if rate < LEVEL else 'above'} .05."
    )


def main() -> None:
    """Keep a run, or write the tables."""
    match sys.argv[1:]:
        case ["keep", run, kind, file] if run in RUNS and kind in KINDS:
            keep(run, kind, Path(file).read_text(encoding="utf-8"))
        case ["show"]:
            for kind in json.loads(DATA.read_text(encoding="utf-8")):
                put(PAGE, BEGIN.format(kind), END.format(kind), table(kind))
        case _:
            raise SystemExit(f"keep RUN KIND FILE or show, with RUN of {RUNS} and KIND of {KINDS}")


if __name__ == "__main__":
    main()
