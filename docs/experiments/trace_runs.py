"""The two traces of docs/method.md: does the probe grow, or the signal?

python docs/experiments/trace_runs.py vit              separators, 230 emoji scenes, no refits
python docs/experiments/trace_runs.py minilm           prototypes, 240 passages, five refits
python docs/experiments/trace_runs.py vit --out runs   the result and its picture beside

Weights come from `make weights`; nothing is downloaded here. Everything is seeded.
"""

import argparse
import time
import warnings
from pathlib import Path

import torch
from trials import scenes

import sa_plugin as sa
from sa_plugin.concepts import RowLimits
from sa_plugin.loaders import load
from sa_plugin.tracing import TraceOptions
from sa_transformer_lens.host import load_bridge

KINDS = {"vit": "separator", "minilm": "prototype"}


def main() -> None:
    """Trace one model and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=list(KINDS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    host = sa.attach(load_bridge(given.model))
    data = scenes() if given.model == "vit" else load("supersense").subset(240)
    limits = RowLimits(per_class=10**9)
    statistics = sa.collect(host, data, need=("means", "gram", "rows"), limits=limits)
    bank = sa.fit(host, data, KINDS[given.model], statistics=statistics, controls=False)
    scores = sa.score(host, data, bank)
    detector = sa.calibrate(host, data, bank, scores=scores)
    found = sa.trace(host, data, detector, scores=scores, options=TraceOptions(shared=statistics))
    print(f"{data.name} ({data.hash[:12]}), {time.process_time():.0f} s of one core")
    print(found)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        found.save(given.out / f"trace_{given.model}.json")
        found.plot().savefig(given.out / f"trace_{given.model}.png", dpi=110)


if __name__ == "__main__":
    main()
