"""`make bench` keeps its ratios, and a ratio that is a fifth worse than the kept one is named."""

import json
import runpy
from pathlib import Path

RUN = Path(__file__).parents[1] / "benchmarks" / "run.py"


def row(name, ours, opponent):
    return {"name": name, "ours_s": ours, "opponent_s": opponent, "ratio": opponent / ours}


def test_a_ratio_a_fifth_worse_is_named_whichever_way_the_row_shows_it():
    judged = runpy.run_path(str(RUN))["judged"]
    rows = [row("same", 1.0, 10.0), row("worse", 1.3, 10.0), row("better", 0.5, 10.0), row("new", 9.0, 1.0)]
    kept = {"same": 0.1, "worse": 0.1, "better": 0.1}
    assert judged(rows, kept) == ["worse: 0.13 of the opponent, kept is 0.1"]
    assert judged([row("edge", 1.19, 10.0)], {"edge": 0.1}) == []


def test_the_kept_ratios_are_costs():
    kept = json.loads(RUN.with_name("ratios.json").read_text())
    assert kept
    assert all(value > 0 for value in kept.values())
