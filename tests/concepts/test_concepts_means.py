from dataclasses import replace

import numpy as np
import pytest
import torch
from concept_rows import cosines, make_rows, normalised, statistics_of
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from sa_plugin.concepts import lda, prototype


def _without_rows(h: np.ndarray, labels: np.ndarray):
    return replace(statistics_of(h, labels), rows=None, labels=None)


def test_prototype_equals_a_loop_over_tokens() -> None:
    statistics = statistics_of(*make_rows())
    x, labels = normalised(statistics), statistics.labels
    expected = np.zeros((labels.shape[1], x.shape[1]))
    for token, row in zip(x, labels, strict=True):
        for c in np.flatnonzero(row):
            expected[c] += token / labels[:, c].sum()
    vectors, record = prototype(replace(statistics, rows=None, labels=None, gram=None))
    assert vectors.dtype == torch.float32
    np.testing.assert_allclose(vectors.numpy(), expected, atol=1e-6)
    assert record["tokens"] == labels.sum(0).tolist()


def test_prototypes_of_a_concept_and_the_rest_point_apart() -> None:
    h, labels = make_rows()
    inside, outside = (prototype(_without_rows(h, labels))[0], prototype(_without_rows(h, ~labels))[0])
    torch.testing.assert_close(cosines(inside, outside), -torch.ones(3, dtype=torch.float64))


def test_prototype_without_a_token() -> None:
    h, labels = make_rows()
    labels[:, 2] = False
    with pytest.raises(ValueError, match=r"prototype: concept columns \[2\] have no train token"):
        prototype(_without_rows(h, labels))


@pytest.mark.parametrize("orders", [0.0, 2.0, 3.0])
def test_lda_without_ridge_has_scikit_learns_direction(orders: float) -> None:
    statistics = statistics_of(*make_rows(orders=orders))
    x = normalised(statistics)
    vectors, _ = lda(replace(statistics, rows=None, labels=None), ridge=0.0)
    for vector, inside in zip(vectors, statistics.labels.T, strict=True):
        theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x, inside).coef_[0]
        assert cosines(vector, theirs) > 1 - 1e-9


def test_lda_equals_its_formula() -> None:
    statistics = statistics_of(*make_rows())
    x = normalised(statistics)
    covariance = x.T @ x / len(x)
    covariance += 0.3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    for vector, inside in zip(lda(statistics, ridge=0.3)[0], statistics.labels.T, strict=True):
        expected = np.linalg.solve(covariance, x[inside].mean(0) - x[~inside].mean(0))
        np.testing.assert_allclose(vector.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_wide_ridge_leaves_the_prototype() -> None:
    statistics = statistics_of(*make_rows())
    assert (cosines(lda(statistics, ridge=1e6)[0], prototype(statistics)[0]) > 1 - 1e-6).all()


def test_lda_direction_does_not_see_the_scale() -> None:
    h, labels = make_rows()
    a, b = (lda(statistics_of(h, labels, scale=s))[0] for s in (1.0, 8.0))
    assert (cosines(a, b) > 1 - 1e-9).all()


def test_lda_errors() -> None:
    h, labels = make_rows()
    statistics = statistics_of(h, labels)
    with pytest.raises(ValueError, match=r"lda needs the second moment: .* need='gram'"):
        lda(replace(statistics, gram=None))
    with pytest.raises(ValueError, match=r"ridge is -1\.0: it must be 0 or more"):
        lda(statistics, ridge=-1.0)
    labels[:, 0] = True
    with pytest.raises(ValueError, match=r"concept columns \[0\] hold all 1,500 train tokens"):
        lda(statistics_of(h, labels))
    labels[:, 0] = False
    with pytest.raises(ValueError, match=r"lda: concept columns \[0\] have no train token"):
        lda(statistics_of(h, labels))


def test_lda_of_fewer_tokens_than_dimensions_needs_a_ridge() -> None:
    h, labels = make_rows(n_rows=30, d_model=60, shares=(0.5,))
    statistics = statistics_of(h, labels)
    assert torch.isfinite(lda(statistics)[0]).all()
    with pytest.raises(ValueError, match=r"30 tokens in 60 dimensions is singular at ridge=0\.0"):
        lda(statistics, ridge=0.0)
