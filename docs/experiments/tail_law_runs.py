"""Cells of the tail law's benchmark: `python docs/experiments/tail_law_runs.py tail_law OUT [CELL ...]`.

A name may end in `*`; "worlds" runs the worlds alone, all that a prediction reads. With "probes" among the
names, probes are trained through their pooling on the world's short contexts and measured in the cells, in
finished ones too. What is finished in OUT is left alone, so a long design can be run in pieces. "cost" says
how many tokens the design has, and what they and ten million cost at the rate of a pass over some contexts,
timed here.
"""

from __future__ import annotations

import sys
import time
from fnmatch import fnmatch

import sa_plugin as sa
from sa_plugin.data import ConceptData
from sa_plugin.host import Site
from sa_plugin.loaders import TailPlan
from sa_plugin.scores import PROBES
from sa_plugin.stages import TailCell, TailDesign, TailWorld, read_design, run_design
from sa_plugin.stages.tail_cells import SCENES
from sa_plugin.stages.tail_runs import open_model, tokens_of


def main(name: str, out: str, *wanted: str) -> None:
    """Run the cells, and say what each took."""
    design, start = read_design(name), time.process_time()
    if wanted == ("cost",):
        print(*cost(design), sep="\n")
        return
    probes = tuple(PROBES) if "probes" in wanted else ()
    wanted = tuple(name for name in wanted if name != "probes")
    chosen = [one.name for one in design.cells if any(fnmatch(one.name, each) for each in wanted)]
    cells = None if not wanted else [] if wanted == ("worlds",) else chosen
    run_design(
        design,
        out,
        cells=cells,
        probes=probes,
        say=lambda line: print(f"{line} ({time.process_time() - start:.0f} s so far)", flush=True),
    )


def cost(design: TailDesign, tokens: int = 64, contexts: int = 32) -> list[str]:
    """Tokens of each model, and hours of one core for them and for ten million, scoring alone."""
    found = []
    for model in dict.fromkeys(world.model for world in design.worlds):
        worlds = {world.name: world for world in design.worlds if world.model == model}
        rows: list[TailWorld | TailCell] = [
            *worlds.values(),
            *(cell for cell in design.cells if cell.world in worlds),
        ]
        total = sum(sum(row.contexts) * row.tokens for row in rows)
        host, world = open_model(model), next(iter(worlds.values()))
        part = {"cal": contexts}
        if world.source == SCENES:
            data: ConceptData = sa.load("tail_scenes", contexts=part)
        else:
            plan = TailPlan(tokens)
            data = sa.load("tail_spans", plan=plan, contexts=part, tokenise=tokens_of(host))
        batches, start, read = host.batches(data.samples), time.process_time(), 0
        for batch in batches:
            host.read(batch, [Site(max(world.layers), "resid_post")], lambda sites: dict(sites))
            read += int(batch.valid.sum())
        rate = read / (time.process_time() - start)
        hours = [f"{one / rate / 3600:.1f}" for one in (total, 10_000_000)]
        found.append(
            f"{model}: {total:,} tokens, {rate:,.0f} a second of this core up to block {max(world.layers)}: "
            f"{hours[0]} h, ten million {hours[1]} h"
        )
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
