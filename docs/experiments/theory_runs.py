"""Put the theorems to the test on a real model and print the findings as Markdown.

python docs/experiments/theory_runs.py smollm2        the embedded prose: 200 train, 80 cal, 100 test passages
python docs/experiments/theory_runs.py vit            230 emoji scenes, 60 of them test
python docs/experiments/theory_runs.py vit prototype  other vectors than separators
"""

import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
from trials import scenes, some_of

from sa_plugin.data import ConceptData, Sample
from sa_plugin.host import Host, attach
from sa_plugin.loaders import load
from sa_plugin.stages import Graph, Plan
from sa_plugin.theory import TheoryReport, check_theory
from sa_transformer_lens.host import load_bridge

PASSAGES = {"train": 200, "cal": 80, "test": 100}
WORDS = ("person", "time", "body")


def passages() -> ConceptData:
    """Passages that have one of three concepts."""
    full = load("supersense")
    picked: list[tuple[Sample, str]] = []
    for split, n in PASSAGES.items():
        mine = [s for s in full.split(split).samples if s.positive & set(WORDS)]
        order = np.random.default_rng(0).permutation(len(mine))[:n]
        picked += [(mine[k], split) for k in sorted(order)]
    return some_of(full, picked, WORDS)


def frequent_scenes() -> ConceptData:
    """Emoji scenes with three of their concepts, or the three most frequent ones."""
    full = scenes()
    counts = {c: sum(c in s.positive for s in full.test.samples) for c in full.concepts}
    frequent = sorted(counts, key=lambda c: -counts[c])[:3]
    return some_of(full, zip(full.samples, full.split_of, strict=True), frequent)


def run(host: Host, data: ConceptData, kinds: Sequence[str]) -> Iterator[tuple[str, TheoryReport]]:
    """A report a kind, the fixed vector that of each concept's calibrated layer."""
    made = Graph(host, data, Plan(kinds))
    for kind in kinds:
        detector = made.detector(kind)
        start = time.process_time()
        report = check_theory(host, data, detector)
        print(f"{kind}: {time.process_time() - start:.0f} s of one thread", file=sys.stderr)
        yield kind, report


def verdicts(report: TheoryReport) -> list[str]:
    """A line a verdict."""
    lines = ["| claim | concept | vectors | verdict | because |", "|---|---|---|---|---|"]
    for v in report.verdicts:
        lines.append(f"| {v.claim} | {v.concept} | {v.direction} | **{v.answer}** | {v.because} |")
    return lines


def numbers(report: TheoryReport) -> list[str]:
    """Medians over layers of the main quantities, with the controls."""
    names = (
        "gap_slope",
        "gap_deviation_ratio",
        "gap_deviation_per_norm",
        "gaps_grown",
        "heads_gap_deviation_ratio",
        "heads_gaps_grown",
        "prefix_gap_deviation_ratio",
        "prefix_gaps_grown",
        "prefix_gaps_shrunk",
        "path_gap_slope",
        "predicted_factor",
        "attention_by_sign",
        "attention_by_sign_with_sinks",
        "top_mass_plus",
        "kept_mass",
        "effective_keys",
        "spread",
        "equalisation",
        "update_gap_ratio",
        "skew",
        "l_skew",
        "skew_growth",
        "tail_gain",
        "heads_tail_gain",
        "mlp_share",
        "path_r2",
    )
    lines = [
        "| median over layers | concept | vectors | measured | predicted | permuted | random |",
        "|---|---|---|---|---|---|---|",
    ]
    for (concept, direction), found in report.quantities.items():
        for name in names:
            if name not in found:
                continue
            q = found[name]
            cells = [q.measured.estimate, q.predicted, q.controls.get("permuted"), q.controls.get("random")]
            text = " | ".join("–" if c is None else f"{np.nanmedian(c):.4f}" for c in cells)
            lines.append(f"| {name} | {concept} | {direction} | {text} |")
    return lines


def main(name: str, *kinds: str) -> None:
    """Print the findings on one model; by default with separators."""
    host = attach(load_bridge(name))
    data = frequent_scenes() if name == "vit" else passages()
    for kind, report in run(host, data, kinds or ("separator",)):
        print(f"\n### {name}, {kind}\n\n{report!r}\n", flush=True)
        print("\n".join(verdicts(report)))
        print("\n" + "\n".join(numbers(report)) + "\n")
        print("\n".join(f"- {one!r}" for one in (*report.regimes, *report.assumptions)))
        for concept, direction in report.quantities:
            for theorem in ("T1", "C1", "C2", "T2", "assumption"):
                print(f"\n{report.sheet(theorem, concept, direction).text()}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
