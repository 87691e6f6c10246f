"""Concept-aligned heads of a real model: what docs/alignment.md quotes.

python docs/experiments/alignment_runs.py smollm2 --kind prototype     200 train, 66 calibration passages
python docs/experiments/alignment_runs.py vit                         230 emoji scenes, 50 of them calibration
python docs/experiments/alignment_runs.py vit --kind separator --most 3 --nulls across
"""

import argparse

import numpy as np
from trials import scenes, some_of

import sa_plugin as sa
from sa_plugin.concepts import RowLimits
from sa_plugin.data import Sample
from sa_plugin.heads import HeadAlignment, WeightTest, call
from sa_transformer_lens.host import load_bridge

LEAST = 15


def passages(train: int) -> sa.ConceptData:
    """A seeded draw from each split of the embedded prose."""
    full = sa.load("supersense")
    rng = np.random.default_rng(0)
    rows: list[tuple[Sample, str]] = []
    for name, most in (("train", train), ("cal", train // 3), ("test", train // 3)):
        mine = full.split(name).samples
        rows += [(mine[k], name) for k in sorted(rng.permutation(len(mine))[:most])]
    return some_of(full, rows)


def main() -> None:
    """Run one model and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["smollm2", "minilm", "vit"])
    parser.add_argument("--kind", default="prototype")
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--refits", type=int, help="by default 400, and 100 for separators")
    parser.add_argument("--nulls", nargs="+", default=["across", "within"])
    parser.add_argument("--most", type=int, help="only the concepts with the most train tokens")
    given = parser.parse_args()
    host = sa.attach(load_bridge(given.model))
    data = scenes() if given.model == "vit" else passages(given.train)
    statistics = sa.collect(host, data, need=("means", "gram", "rows"), limits=RowLimits(per_class=10**9))
    tokens = statistics.token[0].positive_count.tolist()
    counts = dict(zip(data.concepts, tokens, strict=True))
    frequent = sorted(counts, key=lambda concept: -counts[concept])[: given.most]
    concepts = [c for c in data.concepts if c in frequent and counts[c] >= LEAST]
    print(counts, f"{len(statistics.tokens):,} train tokens", flush=True)
    bank = sa.fit(host, data, given.kind, statistics=statistics, controls=False)
    found = sa.head_alignment(
        host,
        data,
        bank,
        statistics=statistics,
        concepts=concepts,
        test=WeightTest(nulls=given.nulls, refits=given.refits),
    )
    print("\n".join(sheet.text() for sheet in found.sheets(25)))
    print("\n".join(beside(found)))


def beside(found: HeadAlignment) -> list[str]:
    """What the summary leaves out: each side alone, chance agreement with the data, sizes."""
    tested, on_data = found.tested, found.on_data
    lines = [f"smallest adjusted p: {np.nanmin(found.p_adjusted):.3f}"]
    for side, p in (("write", tested.p_ov), ("read", tested.p_qk), ("both", tested.p)):
        low = p <= 0.05
        lines.append(
            f"{side}: {int(call(p, 0.05).sum())} calls; {int(low.sum())} of {p.size} p below .05, "
            f"{int((low & on_data).sum())} of them on data too, {low.mean() * on_data.sum():.1f} "
            "if independent"
        )
    share = np.nanmedian(found.data.write_share.estimate.sum(1), 1)
    by_concept = dict(zip(found.concepts, on_data.sum((0, 1)).tolist(), strict=True))
    return [
        *lines,
        f"on data, heads by concept: {by_concept}",
        f"median partial R2: {np.nanmedian(found.data.correlation**2):.4f}",
        f"median share of the update, all heads of a block: {share.round(2).tolist()}",
    ]


if __name__ == "__main__":
    main()
