"""A detection sweep without each of 200 documents in turn on 2,000 samples, against a loop over documents.

12 deltas, 16 concepts. The loop gathers the samples that are left and counts with numpy over all deltas
and concepts at once: only the documents are looped over. Every count of every column is compared.
"""

from __future__ import annotations

import time

import numpy as np

from sa_plugin.statistics import (
    Confusion,
    Resamples,
    confusion,
    f1,
    mean_over_concepts,
    resample_documents,
    resampled_confusion,
)

DELTAS, CONCEPTS, SAMPLES, DOCUMENTS, ROUNDS = 12, 16, 2000, 200, 5


def sweep(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decisions `[delta, concept, sample]`, labels and documents."""
    rng = np.random.default_rng(seed)
    labels = rng.random((CONCEPTS, SAMPLES)) < 0.2
    scores = rng.standard_normal((CONCEPTS, SAMPLES)) + labels
    cuts = np.quantile(scores[labels], np.linspace(0.98, 0.05, DELTAS))
    return scores > cuts[:, None, None], labels, rng.integers(DOCUMENTS, size=SAMPLES)


def ours(predicted: np.ndarray, labels: np.ndarray, resamples: Resamples) -> Confusion:
    """Counts of every column by matrix products."""
    return resampled_confusion(predicted, labels, resamples)


def loop(predicted: np.ndarray, labels: np.ndarray, resamples: Resamples) -> Confusion:
    """Counts of every column, one document after another."""
    columns = []
    for left in (None, *range(resamples.units)):
        rows = resamples.document != left if left is not None else slice(None)
        columns.append(confusion(predicted[..., rows], labels[..., rows]))
    return Confusion(*(np.stack(counts, axis=-1) for counts in zip(*columns, strict=True)))


def intervals(counts: Confusion, resamples: Resamples) -> np.ndarray:
    """Bounds of the weighted F1 at every delta; a concept that a column lacks is left out of it."""
    positives, scores = (np.moveaxis(x, 1, -1) for x in (counts.tp + counts.fn, f1(counts)))
    mean = mean_over_concepts(np.where(positives > 0, scores, np.nan), positives)
    return np.stack(resamples.drawn(mean, "share", delta=range(DELTAS)).bounds)


def run() -> dict[str, object]:
    """Both sides on the same documents, interleaved."""
    predicted, labels, documents = sweep()
    resamples = resample_documents(documents)
    sides = {"ours": ours, "loop": loop}
    counts = {name: side(predicted, labels, resamples) for name, side in sides.items()}
    equal = all(np.array_equal(a, b) for a, b in zip(counts["ours"], counts["loop"], strict=True))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(ROUNDS):
        for name, side in sides.items():
            if name == "loop" and k >= 2:
                continue
            start = time.perf_counter()
            columns = resample_documents(documents)
            intervals(side(predicted, labels, columns), columns)
            times[name].append(time.perf_counter() - start)
    ours_s, loop_s = min(times["ours"]), min(times["loop"])
    return {
        "name": "detection sweep, each document left out",
        "ours_s": ours_s,
        "opponent_s": loop_s,
        "ratio": loop_s / ours_s,
        "aim": ">= 20",
        "equal": equal,
        "note": "12 deltas, 16 concepts, 2,000 samples, 200 documents; the columns and the intervals "
        "of weighted F1 are timed on both sides",
    }
