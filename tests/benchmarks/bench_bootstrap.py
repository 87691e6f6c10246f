"""A detection sweep with 1,000 bootstrap draws on 2,000 samples, against a loop over draws.

12 deltas, 16 concepts, 300 documents. The loop resamples documents, gathers their samples and
counts with numpy over all deltas and concepts at once: only the draws are looped over. Both use the
same draws; every count of every draw is compared.
"""

from __future__ import annotations

import time

import numpy as np

from sa_plugin.statistics import (
    Confusion,
    Resamples,
    Resampling,
    confusion,
    f1,
    mean_over_concepts,
    percentile_bounds,
    resample_documents,
    resampled_confusion,
)

DELTAS, CONCEPTS, SAMPLES, DOCUMENTS, DRAWS, ROUNDS = 12, 16, 2000, 300, 1000, 5


def sweep(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decisions `[delta, concept, sample]`, labels and documents."""
    rng = np.random.default_rng(seed)
    labels = rng.random((CONCEPTS, SAMPLES)) < 0.2
    scores = rng.standard_normal((CONCEPTS, SAMPLES)) + labels
    cuts = np.quantile(scores[labels], np.linspace(0.98, 0.05, DELTAS))
    return scores > cuts[:, None, None], labels, rng.integers(DOCUMENTS, size=SAMPLES)


def ours(predicted: np.ndarray, labels: np.ndarray, resamples: Resamples) -> Confusion:
    """Counts of every draw by matrix products."""
    return resampled_confusion(predicted, labels, resamples)


def loop(predicted: np.ndarray, labels: np.ndarray, resamples: Resamples) -> Confusion:
    """Counts of every draw, one draw after another."""
    members = [np.flatnonzero(resamples.document == d) for d in range(resamples.n_documents)]
    drawn = []
    for weights in resamples.weights:
        taken = np.repeat(np.arange(resamples.n_documents), weights)
        rows = np.concatenate([members[d] for d in taken])
        drawn.append(confusion(predicted[..., rows], labels[..., rows]))
    return Confusion(*(np.stack(counts, axis=-1) for counts in zip(*drawn, strict=True)))


def intervals(counts: Confusion) -> np.ndarray:
    """Bounds of the weighted F1 at every delta; a concept that a draw lacks is left out of it."""
    positives, scores = (np.moveaxis(x, 1, -1) for x in (counts.tp + counts.fn, f1(counts)))
    return np.stack(percentile_bounds(mean_over_concepts(np.where(positives > 0, scores, np.nan), positives)))


def run() -> dict[str, object]:
    """Both sides on the same draws, interleaved."""
    predicted, labels, documents = sweep()
    resamples = resample_documents(documents, Resampling(draws=DRAWS))
    sides = {"ours": ours, "loop": loop}
    counts = {name: side(predicted, labels, resamples) for name, side in sides.items()}
    equal = all(np.array_equal(a, b) for a, b in zip(counts["ours"], counts["loop"], strict=True))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(ROUNDS):
        for name, side in sides.items():
            if name == "loop" and k >= 2:
                continue
            start = time.perf_counter()
            drawn = resample_documents(documents, Resampling(draws=DRAWS))
            intervals(side(predicted, labels, drawn))
            times[name].append(time.perf_counter() - start)
    ours_s, loop_s = min(times["ours"]), min(times["loop"])
    return {
        "name": "detection sweep, 1,000 draws of documents",
        "ours_s": ours_s,
        "opponent_s": loop_s,
        "ratio": loop_s / ours_s,
        "aim": ">= 20",
        "equal": equal,
        "note": "12 deltas, 16 concepts, 2,000 samples, 300 documents; the draws and the intervals "
        "of weighted F1 are timed on both sides",
    }
