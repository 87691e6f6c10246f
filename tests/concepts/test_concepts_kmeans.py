from dataclasses import replace

import numpy as np
import pytest
import torch
from concept_rows import cosines, make_rows, normalised, statistics_of

from sa_plugin.concepts import NotConvergedWarning, kmeans, kmeans_separator, separator


def _nearest(x: np.ndarray, centroids: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    squared = ((x[:, None] - centroids.double().numpy()) ** 2).sum(-1)
    return squared.argmin(1), squared.min(1)


def test_centroids_are_the_means_of_their_rows_and_inertia_is_theirs() -> None:
    statistics = statistics_of(*make_rows(n_rows=800))
    x = normalised(statistics)
    centroids, record = kmeans(statistics, k=6, max_iter=300)
    assigned, squared = _nearest(x, centroids)
    means = np.stack([x[assigned == unit].mean(0) for unit in range(6)])
    np.testing.assert_allclose(centroids.numpy(), means, atol=2e-2)
    np.testing.assert_allclose(record["inertia"], squared.sum(), rtol=1e-3)
    sizes = np.bincount(assigned)
    assert (record["smallest_cluster"], record["largest_cluster"]) == (sizes.min(), sizes.max())


def test_finds_planted_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = 10 * rng.normal(size=(4, 12))
    h = (centres[np.arange(400) % 4] + rng.normal(size=(400, 12))).astype(np.float32)
    statistics = statistics_of(h, np.ones((400, 1), dtype=bool))
    found = kmeans(statistics, k=4, n_init=5)[0]
    x = normalised(statistics)
    truth = np.stack([x[i::4].mean(0) for i in range(4)])
    assert sorted(_nearest(truth, found)[0].tolist()) == [0, 1, 2, 3]


def test_seeded() -> None:
    statistics = statistics_of(*make_rows())
    once, again, other = (kmeans(statistics, k=20, seed=s)[0] for s in (3, 3, 4))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_chunks_change_nothing() -> None:
    h, labels = make_rows()
    whole, chunked = (kmeans(statistics_of(h, labels, chunk=c), k=5)[0] for c in (99, 9999))
    assert torch.equal(whole, chunked)


def test_default_k_is_one_for_fifty_train_tokens_and_a_thousand_at_most() -> None:
    statistics = statistics_of(*make_rows())
    assert kmeans(statistics)[1]["k"] == 30
    many = replace(statistics, n=100_000_000)
    assert kmeans(many, max_iter=1)[1]["k"] == 1000


def test_kmeans_separator_equals_separator_on_cluster_labels() -> None:
    h, labels = make_rows()
    statistics = statistics_of(h, labels)
    vectors, record = kmeans_separator(statistics, k=7, seed=1, tol=1e-3)
    assigned = _nearest(normalised(statistics), kmeans(statistics, k=7, seed=1)[0])[0]
    of_clusters = separator(statistics_of(h, assigned[:, None] == np.arange(7)))[0]
    assert (cosines(vectors, of_clusters) > 1 - 1e-6).all()
    assert record["k"] == len(vectors) == len(record["objective"]) == 7
    assert all(record["converged"])


def test_kmeans_separator_separates_its_cluster() -> None:
    statistics = statistics_of(*make_rows())
    vectors, record = kmeans_separator(statistics, k=5)
    scores = normalised(statistics) @ vectors.double().numpy().T
    assigned = _nearest(normalised(statistics), kmeans(statistics, k=5)[0])[0]
    for unit in range(5):
        inside = assigned == unit
        assert np.median(scores[inside, unit]) > np.median(scores[~inside, unit])
    assert record["tol"] == 1e-2


def test_units_that_stop_early_are_named() -> None:
    statistics = statistics_of(*make_rows())
    with pytest.warns(NotConvergedWarning, match=r"kmeans_separator: columns \[0, 1, 2\] stopped"):
        kmeans_separator(statistics, k=3, max_iter=1)


@pytest.mark.parametrize("kind", [kmeans, kmeans_separator])
def test_errors(kind) -> None:
    name = kind.__name__
    h, labels = make_rows()
    statistics = statistics_of(h, labels)
    with pytest.raises(ValueError, match=f"{name} needs train rows: .* with need='rows'"):
        kind(replace(statistics, rows=None))
    for k in (1, 1501):
        with pytest.raises(ValueError, match=f"{name}: k is {k} for 1,500 .* between 2 and 1,500"):
            kind(statistics, k=k)
    with pytest.raises(ValueError, match=f"{name}: k is 1 for 90 stored rows"):
        kind(statistics_of(h[:90], labels[:90]))
    with pytest.raises(ValueError, match="take more than memory=1,000 bytes"):
        kind(statistics, k=3, memory=1000)
    statistics.rows.stored[7] = np.nan
    with pytest.raises(ValueError, match=f"{name}: stored row 7 of 1,500 holds NaN or Inf"):
        kind(statistics, k=3)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_an_empty_cluster_is_refused() -> None:
    h = np.repeat(np.eye(4, dtype=np.float32), 30, axis=0)
    with pytest.raises(ValueError, match=r"of k=9 clusters are empty.* give a smaller k"):
        kmeans(statistics_of(h, np.ones((120, 1), dtype=bool)), k=9)
