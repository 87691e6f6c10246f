"""What steering a concept does and costs on SmolLM2: what docs/findings/steering.md quotes.

python docs/experiments/steering_runs.py food person --out FOLDER      tables, results and pictures
python docs/experiments/steering_runs.py food --passages 60 --strengths 1 2 4 8 16
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from between_markers import put

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


COLUMNS = ("highest token", "leak", "other concepts")
MARKERS = "<!-- steering -->", "<!-- /steering -->"
# What is shown of the model's own words, by both judges.
OWN = ("highest token", "mean token")


def cell(held: dict[str, Any], **labels: Any) -> str:
    """A number of a saved result with its interval."""
    at = tuple(held["axes"][axis].index(label) for axis, label in labels.items())
    estimate, low, high = (np.array(held[key], dtype=float)[at] for key in ("estimate", "low", "high"))
    return f"{estimate:+.2f} [{low:+.2f}, {high:+.2f}]" if np.isfinite(low) else f"{estimate:+.2f}"


def table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Lines of a table."""
    yield from (f"| {' | '.join(header)} |", "|---" * len(header) + "|")
    yield from (f"| {' | '.join(row)} |" for row in rows)


def section(name: str, held: dict[str, Any]) -> Iterator[str]:
    """What the page says of one concept."""
    given, own, (near, far) = held["given"], held["own"], held["judges"]
    strongest, arms = given["axes"]["strength"][-1], given["axes"]["arm"]
    positive, negative = held["passages"]
    yield f"## {name}"
    yield ""
    yield (
        f"Edited at block {held['layer']}; {positive} passages that have the concept, {negative} that do "
        f"not, of {held['documents']} documents; as the {far} scores them, in deviations, strength "
        f"{strongest:g}:"
    )
    yield ""
    columns = [f"{what}, {far}" for what in COLUMNS] + ["nats a token"]
    share = given["axes"]["measure"].index("steered tokens")
    rows = [
        [
            arm,
            *(cell(given, arm=arm, measure=one, strength=strongest) for one in columns),
            f"{given['estimate'][k][share][-1]:.3f}",
        ]
        for k, arm in enumerate(arms)
    ]
    yield from table(["arm", *COLUMNS, "nats a token", "steered tokens"], rows)
    yield ""
    yield f"![Effect of steering {name} by strength, and its cost and leak](../pictures/steering_{name}.png)"
    yield ""
    yield "Superactivators minus all, *at equal effect*:"
    yield ""
    yield from (f"- {effect}: {words}." for effect, words in held["verdicts"].items())
    yield ""
    yield "The model's own words, read by the *unsteered* model, and their cost to it, by strength:"
    yield ""
    rows = []
    for arm in own["axes"]["arm"]:
        for what in (*(f"{one}, {judge}" for one in OWN for judge in (near, far)), "nats a token"):
            strengths = own["axes"]["strength"]
            rows.append([arm, what, *(cell(own, arm=arm, measure=what, strength=s) for s in strengths)])
    yield from table(["arm", "measure", *(f"{s:g}" for s in own["axes"]["strength"])], rows)
    yield ""


def main() -> None:
    """Run some concepts and print their curves, or put what was found on a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("concepts", nargs="+")
    parser.add_argument("--passages", type=int, default=16, help="with the concept, and as many without")
    parser.add_argument("--fitted", type=int, default=240, help="passages that vectors and thresholds see")
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16, 24])
    parser.add_argument("--strengths", type=float, nargs="+", default=[2.0, 4.0, 8.0, 16.0])
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path, help="put the results of --out there, and run nothing")
    given = parser.parse_args()
    if given.page is not None:
        held = {
            name: json.loads((given.out / f"steering_{name}.json").read_text()) for name in given.concepts
        }
        put(given.page, *MARKERS, "\n".join(line for name in held for line in section(name, held[name])))
        return
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
        verdicts = {effect: found.verdict(effect) for effect in found.equal.axes["effect"]}
        said = {"documents": len({s.document for s in split.samples}), "verdicts": verdicts}
        print(json.dumps(said, indent=1), flush=True)
        if given.out is not None:
            given.out.mkdir(parents=True, exist_ok=True)
            results = json.dumps(found.to_dict() | said)
            (given.out / f"steering_{concept}.json").write_text(f"{results}\n")
            (given.out / f"{concept}.txt").write_text(f"{found}\n")
            found.plot().savefig(given.out / f"steering_{concept}.png", dpi=110)


if __name__ == "__main__":
    main()
