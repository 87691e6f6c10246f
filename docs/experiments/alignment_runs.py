"""Concept-aligned heads of a real model: what docs/findings/alignment.md quotes.

python docs/experiments/alignment_runs.py smollm2                     set A: train passages that no trial used
python docs/experiments/alignment_runs.py minilm --set B              the test passages as train rows
python docs/experiments/alignment_runs.py vit --set 2                 400 emoji scenes of seed 2
python docs/experiments/alignment_runs.py vit --set 2 --kind separator --most 3
"""

import argparse

import numpy as np
from trials import some_of

import sa_plugin as sa
from sa_plugin.concepts import RowLimits
from sa_plugin.data import Sample
from sa_plugin.heads import HeadAlignment, WeightTest
from sa_plugin.loaders import emoji_scenes
from sa_transformer_lens.host import load_bridge

LEAST = 15
# Passages of the trials that the rule was chosen on, in order and in the seeded permutation.
TRIAL = {"train": 600, "cal": 200}


def passages(which: str) -> sa.ConceptData:
    """Embedded prose that no trial used: the rest of train ("A"), or test ("B"), which then is train."""
    full = sa.load("supersense")
    rows: list[tuple[Sample, str]] = []
    for name, most in TRIAL.items():
        mine = full.split(name).samples
        used = {*range(most), *np.random.default_rng(0).permutation(len(mine))[:most].tolist()}
        rest = [mine[k] for k in range(len(mine)) if k not in used]
        if name == "cal" or which == "A":
            rows += [(sample, name) for sample in rest]
    test = [(sample, "test" if which == "A" else "train") for sample in full.test.samples]
    # In B no passage is left for test, which alignment never reads: one of train stands there.
    return some_of(full, [*rows, *test, *([] if which == "A" else [(full.train.samples[0], "test")])])


def scenes(seed: int) -> sa.ConceptData:
    """400 scenes of one seed."""
    return emoji_scenes(400, seed=seed, fractions=(0.52, 0.22, 0.26))


def main() -> None:
    """Run one model and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["smollm2", "minilm", "vit"])
    parser.add_argument("--set", default="", help="A or B of passages; the seed of scenes")
    parser.add_argument("--kind", default="prototype")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--refine", type=int, default=1, help="times the draws where a call is near")
    parser.add_argument("--nulls", nargs="+", default=["across", "exchanged"])
    parser.add_argument("--most", type=int, help="only the concepts with the most train tokens")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    given = parser.parse_args()
    host = sa.attach(load_bridge(given.model), progress=False)
    data = scenes(int(given.set or 2)) if given.model == "vit" else passages(given.set or "A")
    statistics = sa.collect(host, data, need=("means", "gram", "rows"), limits=RowLimits(per_class=10**9))
    tokens = statistics.token[0].positive_count.tolist()
    counts = dict(zip(data.concepts, tokens, strict=True))
    frequent = sorted(counts, key=lambda concept: -counts[concept])[: given.most]
    concepts = [c for c in data.concepts if c in frequent and counts[c] >= LEAST]
    print(counts, f"{len(data.train)} train samples, {len(statistics.tokens):,} tokens", flush=True)
    bank = sa.fit(host, data, given.kind, statistics=statistics, controls=False)
    found = sa.head_alignment(
        host,
        data,
        bank,
        statistics=statistics,
        concepts=concepts,
        test=WeightTest(nulls=given.nulls, draws=given.draws, refine=given.refine),
        resampling=sa.Resampling(seed=given.seed),
    )
    print("\n".join(sheet.text() for sheet in found.sheets(60)))
    print("\n".join(beside(found)))


def beside(found: HeadAlignment) -> list[str]:
    """What the summary leaves out: the longer list, blocks, power, chance agreement with the data."""
    tested, on_data = found.tested, found.on_data
    lines = [
        f"cells down to an expected false share of {share:g}: {int((tested.false_share <= share).sum())}"
        for share in (0.01, 0.05, 0.1, 0.2)
    ]
    for name, z in (("write", tested.z_ov), ("read", tested.z_qk), ("both", tested.z)):
        high = z > tested.critical
        lines.append(
            f"{name}: largest z {z.max():.2f}, {int(high.sum())} beyond the critical value, "
            f"{int((high & on_data).sum())} of them on data too, {high.mean() * on_data.sum():.1f} if "
            "independent"
        )
    by_block = zip(found.blocks, tested.block_p, tested.block_p_adjusted, strict=True)
    power = {c: float((tested.planted <= c).mean().round(3)) for c in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)}
    share = np.nanmedian(found.data.write_share.estimate.sum(1), 1)
    by_concept = dict(zip(found.concepts, on_data.sum((0, 1)).tolist(), strict=True))
    return [
        *lines,
        "block p (family-wise): " + ", ".join(f"{b} {p:.3f} ({a:.3f})" for b, p, a in by_block),
        f"power by planted cosine: {power}",
        f"any call: {tested.any_call}",
        f"on data, heads by concept: {by_concept}",
        f"median partial R2: {np.nanmedian(found.data.correlation**2):.4f}",
        f"median share of the update, all heads of a block: {share.round(2).tolist()}",
    ]


if __name__ == "__main__":
    main()
