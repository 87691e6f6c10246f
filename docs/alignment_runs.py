"""Concept-aligned heads of a real model: what docs/alignment.md quotes.

python docs/alignment_runs.py smollm2 --kind prototype     200 train, 66 calibration passages
"""

import argparse
from dataclasses import replace

import numpy as np

import sa_plugin as sa
from sa_plugin.weights import folder
from sa_transformer_lens.load import load_bridge

LEAST = 15


def passages(train: int) -> sa.ConceptData:
    """A seeded draw from each split of the embedded prose."""
    full = sa.ConceptData.load("supersense")
    rng = np.random.default_rng(0)
    keep: list[int] = []
    for name, most in (("train", train), ("cal", train // 3), ("test", train // 3)):
        rows = [k for k, of in enumerate(full.split_of) if of == name]
        keep += sorted(rng.permutation(rows)[:most].tolist())
    chosen = tuple(full.samples[k] for k in keep)
    return replace(full, samples=chosen, split_of=tuple(full.split_of[k] for k in keep))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["smollm2", "minilm"])
    parser.add_argument("--kind", default="prototype")
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--draws", type=int, default=400)
    given = parser.parse_args()
    host, data = sa.attach(load_bridge(folder(given.model))), passages(given.train)
    statistics = sa.collect(
        host, data, need=("means", "gram", "rows"), max_rows_per_class=10**9, progress=False
    )
    counts = statistics.token[0].positive_count.tolist()
    concepts = [c for c, n in zip(data.concepts, counts, strict=True) if n >= LEAST]
    print({c: n for c, n in zip(data.concepts, counts, strict=True)})
    bank = sa.fit(host, data, given.kind, statistics=statistics, controls=False, progress=False)
    found = sa.head_alignment(
        host, data, bank, statistics=statistics, concepts=concepts, draws=given.draws,
        progress=False,
    )  # fmt: skip
    print(found.summary(25))


if __name__ == "__main__":
    main()
