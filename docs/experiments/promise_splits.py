"""Promised rates of false alarms on real documents: over splits of one pool, and under shifts.

    python docs/experiments/weights.py --model minilm
    python docs/experiments/promise_splits.py score minilm --out scores.npz
    python docs/experiments/promise_splits.py tables scores.npz
    python docs/experiments/promise_splits.py tables scores.npz --page docs/findings/promises.md

`score` takes the first four passages of each document of the embedded data (225 speeches, 127 chapters of a
novel) and divides the documents: a quarter fits
separators, 15 % choose layers and deltas, 55 % are the pool, which chose nothing; the scores of its tokens
are written down. `tables` draws 200 guards from the pool's documents without a concept and looks in all that
are left. Whatever the scores, a random split makes documents exchangeable: what `document` promises is then
arithmetic, and should be what stands below it, from ranks alone (20,000 permutations). The shifts take the
guard from one source, or from short documents, and look in the other.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from between_markers import show

from sa_plugin import attach, calibrate, fit, load, score
from sa_plugin.data import ConceptData, Splits
from sa_plugin.statistics import document_threshold, risk_threshold, share_losses
from sa_transformer_lens.host import load_bridge

SPLITS, ALPHA, PASSAGES = 200, 0.05, 4
LAYERS = {"minilm": (3, 4, 5), "smollm2": (8, 12, 16)}


def write_scores(model: str, out: Path) -> None:
    """Token scores of the pool at each concept's own layer."""
    host = attach(load_bridge(model))
    full = load("supersense")
    seen = Counter[str]()
    some = []
    for sample in full.samples:
        seen[sample.document] += 1
        some += [sample] if seen[sample.document] <= PASSAGES else []
    parts = Splits(fractions=(0.25, 0.15, 0.05, 0.55), seed=0)
    data = ConceptData.from_samples(some, full.concepts, parts, name=full.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = fit(host, data, "separator", layers=LAYERS[model])
        scores = score(host, data, bank, splits=("cal", "guard"))
        detector = calibrate(host, data, bank, scores=scores)
    pool = detector.pick(scores, data.guard)
    np.savez_compressed(
        out,
        scores=detector.token_scores(pool).astype(np.float32),
        sample=pool.tokens.sample_of,
        document=np.array([s.document for s in pool.tokens.samples]),
        labels=np.array([[c in s.positive for c in data.concepts] for s in pool.tokens.samples]),
        concepts=np.array(data.concepts),
        about=np.array([model, str(detector.layer)]),
    )
    print(detector)


class Pool:
    """Documents without one concept: the scores of their tokens, and where they are from."""

    def __init__(self, held: np.lib.npyio.NpzFile, concept: int) -> None:
        names = np.unique(held["document"])
        home = np.searchsorted(names, held["document"])
        guilty = np.zeros(len(names), dtype=bool)
        np.logical_or.at(guilty, home, held["labels"][:, concept])
        kept = np.flatnonzero(~guilty)
        self.names = names[kept]
        sample, scores = held["sample"], held["scores"][:, concept]
        tops = np.full(len(home), -np.inf)
        np.maximum.at(tops, sample, scores)
        self.tokens = [scores[home[sample] == k] for k in kept]
        self.samples = [tops[home == k] for k in kept]
        self.maxima = np.array([one.max() for one in self.tokens])
        self.length = np.array([len(one) for one in self.tokens])
        self.speech = np.array([str(name).startswith("sotu") for name in self.names])

    def joined(self, parts: list[np.ndarray], chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values of some documents, with the document of each."""
        own = [parts[k] for k in chosen]
        return np.concatenate(own), np.repeat(np.arange(len(own)), [len(one) for one in own])

    def rate(self, unit: str, tau: float, chosen: np.ndarray) -> float:
        """Mean over some documents of what alarms."""
        if unit == "document":
            return float((self.maxima[chosen] > tau).mean())
        parts = self.samples if unit == "sample" else self.tokens
        return float(np.mean([(parts[k] > tau).mean() for k in chosen]))


Rule = Callable[[Pool, np.ndarray], float]
RULES: dict[str, tuple[str, Rule]] = {
    "document": ("document", lambda pool, at: document_threshold(pool.maxima[at], ALPHA)),
    "document, confidence .95": (
        "document",
        lambda pool, at: document_threshold(pool.maxima[at], ALPHA, 0.95),
    ),
    "sample": (
        "sample",
        lambda pool, at: risk_threshold(share_losses(*pool.joined(pool.samples, at)), len(at), ALPHA),
    ),
    "tokens": (
        "tokens",
        lambda pool, at: risk_threshold(share_losses(*pool.joined(pool.tokens, at)), len(at), ALPHA),
    ),
    "pooled samples, asked of samples": (
        "sample",
        lambda pool, at: document_threshold(pool.joined(pool.samples, at)[0], ALPHA),
    ),
    "pooled samples, asked of documents": (
        "document",
        lambda pool, at: document_threshold(pool.joined(pool.samples, at)[0], ALPHA),
    ),
}


def over_splits(pool: Pool, n: int, rule: str, seed: int) -> np.ndarray:
    """Rate in the rest of the pool, of 200 guards of n documents."""
    unit, make = RULES[rule]
    found = []
    for k in range(SPLITS):
        order = np.random.default_rng([seed, n, k]).permutation(len(pool.maxima))
        found.append(pool.rate(unit, make(pool, order[:n]), order[n:]))
    return np.array(found)


def of_exchangeable(sizes: list[int], n: int, confidence: float | None) -> tuple[float, float]:
    """What ranks alone give over pools of these sizes: mean rate in the rest, share of splits above alpha."""
    rng, means, above = np.random.default_rng(0), [], []
    for size in sizes:
        found = []
        for _ in range(20_000 // len(sizes)):
            order = rng.permutation(size).astype(float)
            found.append((order[n:] > document_threshold(order[:n], ALPHA, confidence)).mean())
        means.append(np.mean(found))
        above.append(np.mean(np.array(found) > ALPHA))
    return float(np.mean(means)), float(np.mean(above))


def splits_table(pools: dict[str, Pool], sizes: tuple[int, ...]) -> Iterator[str]:
    """Mean over concepts of the mean rate, and of the share of splits above alpha."""
    used = {n: {c: p for c, p in pools.items() if len(p.maxima) >= n + 20} for n in sizes}
    yield f"| promise at .05 | {' | '.join(f'{n} documents, {len(used[n])} concepts' for n in sizes)} |"
    yield f"|---|{'---|' * len(sizes)}"
    for rule in RULES:
        cells = []
        for n in sizes:
            every = [over_splits(pool, n, rule, k) for k, pool in enumerate(used[n].values())]
            if rule.endswith(".95") and n < 59:
                cells.append("refused")
                continue
            cells.append(f"{np.mean(every):.3f} / {np.mean(np.array(every) > ALPHA):.2f}")
        yield f"| {rule} | {' | '.join(cells)} |"
        if rule.startswith("document"):
            cells = []
            for n in sizes:
                if rule.endswith(".95") and n < 59:
                    cells.append("refused")
                    continue
                counts = [len(pool.maxima) for pool in used[n].values()]
                mean, above = of_exchangeable(counts, n, 0.95 if rule.endswith(".95") else None)
                cells.append(f"{mean:.3f} / {above:.2f}")
            yield f"| *of exchangeable documents* | {' | '.join(cells)} |"


def shifted(pool: Pool, home: np.ndarray, n: int, seed: int) -> tuple[float, float, float]:
    """Mean rate where the guard is from, and elsewhere; share of guards that are above alpha elsewhere."""
    here, there = np.flatnonzero(home), np.flatnonzero(~home)
    same, other = [], []
    for k in range(SPLITS):
        order = np.random.default_rng([seed, n, k]).permutation(here)
        tau = document_threshold(pool.maxima[order[:n]], ALPHA)
        same.append(pool.rate("document", tau, order[n:]))
        other.append(pool.rate("document", tau, there))
    return float(np.mean(same)), float(np.mean(other)), float(np.mean(np.array(other) > ALPHA))


def shifts_table(pools: dict[str, Pool], n: int) -> Iterator[str]:
    """The promise `document` where it was made, and where it was not."""
    cuts: dict[str, Callable[[Pool], np.ndarray]] = {
        "speeches to novel": lambda pool: pool.speech,
        "novel to speeches": lambda pool: ~pool.speech,
        "shorter half to longer half": lambda pool: pool.length <= np.median(pool.length),
        "longer half to shorter half": lambda pool: pool.length > np.median(pool.length),
    }
    header = ("concepts", "rate where the guard is from", "rate elsewhere", "guards above .05 elsewhere")
    yield f"| guard, and where it is looked for | {' | '.join(header)} | worst concept |"
    yield "|---|---|---|---|---|---|"
    for name, cut in cuts.items():
        rows = {
            concept: shifted(pool, cut(pool), n, k)
            for k, (concept, pool) in enumerate(pools.items())
            if cut(pool).sum() >= n + 10 and (~cut(pool)).sum() >= 20
        }
        if not rows:
            continue
        same, other, above = np.array(list(rows.values())).mean(0)
        worst = max(rows, key=lambda concept: rows[concept][1])
        numbers = f"{same:.3f} | {other:.3f} | {above:.2f}"
        yield f"| {name} | {len(rows)} | {numbers} | {worst} {rows[worst][1]:.3f} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["score", "tables"])
    parser.add_argument("what", help="minilm or smollm2; or the file of scores")
    parser.add_argument("--out", type=Path, default=Path("scores.npz"))
    parser.add_argument("--page", type=Path, help="put the tables between the model's markers there")
    asked = parser.parse_args()
    if asked.step == "score":
        write_scores(asked.what, asked.out)
    else:
        with np.load(asked.what) as held:
            every = {str(name): Pool(held, k) for k, name in enumerate(held["concepts"])}
            model, layers = held["about"]
        counts = [len(pool.maxima) for pool in every.values()]
        said = (
            f"Layers chosen: {layers}. The pool has {min(counts)} to {max(counts)} documents without each of "
            f"{len(counts)} concepts."
        )
        lines = [said, "", *splits_table(every, (20, 45, 60)), "", *shifts_table(every, 30)]
        show("\n".join(lines), asked.page, f"<!-- {model} -->", f"<!-- /{model} -->")
