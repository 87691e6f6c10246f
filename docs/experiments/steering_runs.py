"""What steering a concept does and costs on SmolLM2: what docs/findings/steering.md quotes.

python docs/experiments/steering_runs.py food person --out FOLDER      tables, results and pictures
python docs/experiments/steering_runs.py food --passages 60 --strengths 1 2 4 8 16
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

import sa_plugin as sa
from sa_plugin.data import Split
from sa_transformer_lens.host import load_bridge


def held_out(split: Split, concept: str, n: int) -> Split:
    """n test passages that have the concept and n that do not, from as many documents as there are."""
    has = split.sample_labels[:, split.concepts.index(concept)]
    chosen = []
    for wanted in (True, False):
        rows = np.random.default_rng(0).permutation(np.flatnonzero(has == wanted))
        documents = [split.samples[k].document for k in rows]
        first = [k for i, k in enumerate(rows) if documents[i] not in documents[:i]]
        chosen += [*first, *(k for k in rows if k not in set(first))][:n]
    return replace(split, samples=tuple(split.samples[k] for k in sorted(chosen)))


def main() -> None:
    """Run some concepts and print their curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("concepts", nargs="+")
    parser.add_argument("--passages", type=int, default=16, help="with the concept, and as many without")
    parser.add_argument("--fitted", type=int, default=240, help="passages that vectors and thresholds see")
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16, 24])
    parser.add_argument("--strengths", type=float, nargs="+", default=[2.0, 4.0, 8.0, 16.0])
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    host = sa.attach(load_bridge("smollm2"), progress=False)
    full = sa.load("supersense")
    data = full.subset(given.fitted)
    layers = list(given.layers)
    # Passages of a document that fitted vectors are not held out.
    seen = {s.document for s in (*data.train.samples, *data.cal.samples)}
    test = replace(full.test, samples=tuple(s for s in full.test.samples if s.document not in seen))
    statistics = sa.collect(host, data, layers=layers, need=("means", "rows"))
    kinds = ("separator", "prototype")
    made = {kind: sa.fit(host, data, kind, layers=layers, statistics=statistics) for kind in kinds}
    detectors = {kind: sa.calibrate(host, data, bank) for kind, bank in made.items()}
    for detector in detectors.values():
        print(detector, flush=True)
    for concept in given.concepts:
        split = held_out(test, concept, given.passages)
        found = sa.steering_curves(
            host,
            detectors["separator"],
            concept,
            detectors["prototype"],
            split,
            strengths=given.strengths,
            new_tokens=given.new_tokens,
        )
        print(found)
        print(len({s.document for s in split.samples}), "documents")
        for effect in found.equal.axes["effect"]:
            print(f"{effect}: {found.verdict(effect)}", flush=True)
        if given.out is not None:
            given.out.mkdir(parents=True, exist_ok=True)
            found.save(given.out / f"{concept}.json")
            (given.out / f"{concept}.txt").write_text(f"{found}\n")
            found.plot().savefig(given.out / f"steering_{concept}.png", dpi=110)


if __name__ == "__main__":
    main()
