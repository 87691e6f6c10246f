"""Unsupervised units: k-means clusters of the train rows, and a separator for each.

`kmeans`: centroids of Euclidean k-means on normalised rows, `K = min(1000, train tokens // 50)`
unless given; activation = cosine. `kmeans_separator`: for each cluster the separator of
`separator.py` with "assigned to this cluster" as label; activation = dot product
(arXiv 2512.05038).
The paper's code runs fast_pytorch_kmeans or FAISS from unseeded random rows; here it is
scikit-learn's Lloyd from seeded random rows.

A unit has no name. Which unit stands for which concept is matched on the calibration split, and a
match found among hundreds of units is a choice among hundreds of candidates. Where rows are a
sample capped by class, rare concepts weigh more in the clustering than in the text.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from torch import Tensor

from sa_plugin.concepts.separator import (
    LAM,
    MAX_ITER,
    check_options,
    describe,
    preconditioner,
    solve,
    warn_unless_converged,
)
from sa_plugin.concepts.train_statistics import MEMORY, LayerStatistics, row_blocks, stored_rows

MOST_CLUSTERS = 1000
TOKENS_A_CLUSTER = 50
SEPARATOR_TOL = 1e-2


def kmeans(
    statistics: LayerStatistics,
    *,
    seed: int = 0,
    k: int | None = None,
    init: Literal["random", "k-means++"] = "random",
    n_init: int = 1,
    max_iter: int = 100,
    memory: int = MEMORY,
) -> tuple[Float[Tensor, "unit d_model"], dict[str, Any]]:
    """Cluster centroids.

    Args:
        statistics: With `rows`; labels are not read.
        seed: Of the initial centroids.
        k: Clusters; by default min(1000, train tokens // 50).
        init: How the first centroids are drawn; "k-means++" takes three times as long.
        n_init: Restarts, of which the lowest inertia is kept.
        max_iter: Lloyd iterations at most.
        memory: Bytes the rows may take in float32.

    Returns:
        Centroids in float32, and a record with `k`, `inertia` (sum of squared distances),
        `iterations`, `smallest_cluster`, `largest_cluster` and the settings.

    Raises:
        ValueError: No rows, a row with NaN or Inf, `k` below 2 or above the number of rows, rows
            that do not fit `memory`, or a cluster left empty.
    """
    centroids, _, record = _cluster(
        statistics, "kmeans", seed=seed, k=k, init=init, n_init=n_init, max_iter=max_iter, memory=memory
    )
    return centroids, record


def kmeans_separator(
    statistics: LayerStatistics,
    *,
    seed: int = 0,
    k: int | None = None,
    lam: float = LAM,
    tol: float = SEPARATOR_TOL,
    max_iter: int = MAX_ITER,
    memory: int = MEMORY,
    init: Literal["random", "k-means++"] = "random",
    n_init: int = 1,
) -> tuple[Float[Tensor, "unit d_model"], dict[str, Any]]:
    """A separator for each cluster of `kmeans`, against all other rows.

    Args:
        statistics: With `rows`; labels are not read.
        seed: Of the initial centroids.
        k: Clusters; by default min(1000, train tokens // 50).
        lam: Weight of the separators' penalty.
        tol: Largest relative error of a separator; looser than for concepts.
        max_iter: Steps of the separators at most.
        memory: Bytes the rows may take in float32.
        init: As of `kmeans`.
        n_init: As of `kmeans`.

    Returns:
        Vectors in float32, and the record of `kmeans` with that of `separator`.

    Raises:
        ValueError: As `kmeans` and `separator`.

    Warns:
        NotConvergedWarning: Some separators used up `max_iter`.
    """
    check_options(lam, tol, max_iter)
    _, assigned, record = _cluster(
        statistics, "kmeans_separator", seed=seed, k=k, memory=memory, init=init, n_init=n_init
    )
    rows = stored_rows(statistics, "kmeans_separator")
    read = row_blocks(rows, "kmeans_separator", memory)
    start = preconditioner(read, len(rows), rows.d_model, lam)
    labels = assigned[:, None] == torch.arange(record["k"])
    solution = solve(read, labels, start, lam=lam, tol=tol, max_iter=max_iter)
    warn_unless_converged(solution, "kmeans_separator", lam)
    return solution.weights, {**record, "lam": lam, "tol": tol, **describe(solution, lam)}


def _cluster(
    statistics: LayerStatistics,
    kind: str,
    *,
    seed: int,
    k: int | None,
    memory: int,
    init: str = "random",
    n_init: int = 1,
    max_iter: int = 100,
) -> tuple[Float[Tensor, "unit d_model"], Int[Tensor, " row"], dict[str, Any]]:
    rows = stored_rows(statistics, kind)
    k = min(MOST_CLUSTERS, statistics.n // TOKENS_A_CLUSTER) if k is None else k
    if not 2 <= k <= len(rows):
        raise ValueError(
            f"{kind}: k is {k} for {len(rows):,} stored rows of {statistics.n:,} train tokens: "
            f"give k between 2 and {len(rows):,} (default: train tokens // {TOKENS_A_CLUSTER})."
        )
    if 4 * len(rows) * rows.d_model > memory:
        raise ValueError(
            f"{kind}: {len(rows):,} rows of {rows.d_model} take more than memory={memory:,} bytes "
            "in float32: raise memory or collect with limits=RowLimits(per_class=...) of fewer rows."
        )
    x = torch.cat([x for _, x in row_blocks(rows, kind, memory)()])
    fitted = KMeans(k, init=init, n_init=n_init, max_iter=max_iter, random_state=seed).fit(x.numpy())
    sizes = np.bincount(fitted.labels_, minlength=k)
    if not sizes.all():
        raise ValueError(
            f"{kind}: {int((sizes == 0).sum())} of k={k} clusters are empty, as the rows hold too "
            "few distinct points: give a smaller k."
        )
    record = {
        "k": k,
        "inertia": float(fitted.inertia_),
        "kmeans_iterations": int(fitted.n_iter_),
        "smallest_cluster": int(sizes.min()),
        "largest_cluster": int(sizes.max()),
        "rows": len(rows),
        "init": init,
        "n_init": n_init,
        "seed": seed,
    }
    return torch.from_numpy(fitted.cluster_centers_), torch.from_numpy(fitted.labels_), record
