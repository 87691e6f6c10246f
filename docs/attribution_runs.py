"""Objectives side by side on a real model: runs like those docs/attribution.md quotes.

python docs/attribution_runs.py minilm --layers 2 3 4 5 --concepts person time --test 40 \
    --methods direct_alignment integrated_gradients rise lime
"""

import argparse
from pathlib import Path

import sa_plugin as sa
from sa_plugin.datasets.emoji import emoji_scenes
from sa_plugin.weights import folder
from sa_transformer_lens.load import load_bridge

PERTURBING = ("lime", "rise", "kernel_shap", "shap_iq")


def short_passages(concepts: list[str], words: int) -> sa.ConceptData:
    """Passages of at most some words, labelled with some concepts only."""
    full = sa.ConceptData.load("supersense")
    kept = [
        (sample, of)
        for sample, of in zip(full.samples, full.split_of, strict=True)
        if len(sample.text.split()) <= words
    ]
    return sa.ConceptData.from_spans(
        [s.text for s, _ in kept],
        [[span for span in s.spans if span.concept in concepts] for s, _ in kept],
        concepts=concepts, documents=[s.document for s, _ in kept], ids=[s.id for s, _ in kept],
        split=[of for _, of in kept], name="short passages",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["smollm2", "minilm", "vit"])
    parser.add_argument("--layers", type=int, nargs="+", required=True)
    parser.add_argument("--concepts", nargs="+")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--test", type=int, default=40, help="samples a concept")
    parser.add_argument("--cal", type=int, default=8)
    parser.add_argument("--coalitions", type=int, default=96)
    parser.add_argument("--integration", type=int, default=16, help="steps")
    parser.add_argument("--curve", type=int, default=6, help="steps of insertion and deletion")
    parser.add_argument("--words", type=int, default=40)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    host = sa.attach(load_bridge(folder(given.model)))
    if given.model == "vit":
        data = emoji_scenes(160, seed=0)
    else:
        data = short_passages(given.concepts or ["person", "time"], given.words)
    bank = sa.fit(host, data, "prototype", layers=given.layers, progress=False)
    detector = sa.calibrate(host, data, bank)
    options: dict[str, dict[str, int]] = {
        name: {"n_coalitions": given.coalitions} for name in given.methods if name in PERTURBING
    }
    if "integrated_gradients" in given.methods:
        options["integrated_gradients"] = {"n_steps": given.integration}
    found = sa.compare(
        host, data, detector, methods=given.methods, concepts=given.concepts, n_test=given.test,
        n_cal=given.cal, preset="fast", options=options, n_steps=given.curve, progress=False,
    )  # fmt: skip
    print(found.text(sorted({row.metric for row in found.rows})))
    print(found.coverage)
    if given.out is not None:
        given.out.write_text(found.heat_map())


if __name__ == "__main__":
    main()
