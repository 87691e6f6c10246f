import json
import warnings
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from concept_rows import cosines, make_rows, normalised, statistics_of
from sklearn.linear_model import LogisticRegression

from sa_plugin.concepts import ROUNDING, NotConvergedWarning, row_blocks, separator

module = import_module("sa_plugin.concepts.separator")
SHAPES = {
    "plain": {"orders": 0.0},
    "ill-conditioned": {"orders": 4.0, "d_model": 40},
    "imbalanced 1:200": {"shares": (0.005, 0.5), "n_rows": 4000},
    "separable": {"noise": 0.0},
    "more dimensions than rows": {"n_rows": 60, "d_model": 90, "shares": (0.5, 0.2)},
}


def _balance(labels: np.ndarray) -> np.ndarray:
    return np.where(labels, 0.5 / labels.sum(0), 0.5 / (~labels).sum(0))


def _oracle(x: np.ndarray, labels: np.ndarray, lam: float) -> np.ndarray:
    model = LogisticRegression(
        C=1 / lam, fit_intercept=False, tol=1e-9, max_iter=5000, solver="newton-cholesky"
    )
    columns = zip(labels.T, _balance(labels).T, strict=True)
    return np.concatenate([model.fit(x, y, sample_weight=a).coef_ for y, a in columns])


def _objective(x: np.ndarray, labels: np.ndarray, w: np.ndarray, lam: float) -> np.ndarray:
    margin = np.where(labels, 1, -1) * (x @ w.T)
    return (_balance(labels) * np.logaddexp(0, -margin)).sum(0) + lam / 2 * (w**2).sum(1)


def _gradient_norm(x: np.ndarray, labels: np.ndarray, w: np.ndarray, lam: float) -> np.ndarray:
    sign = np.where(labels, 1, -1)
    miss = 1 / (1 + np.exp(sign * (x @ w.T)))
    return np.linalg.norm(lam * w.T - x.T @ (_balance(labels) * sign * miss), axis=0)


@pytest.mark.parametrize("lam", [1e-4, 1e-2])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_scikit_learn_at_the_same_optimum(shape: str, lam: float) -> None:
    statistics = statistics_of(*make_rows(**SHAPES[shape]))
    x, labels = normalised(statistics), statistics.labels
    w, record = separator(statistics, lam=lam)
    ours, theirs = w.double().numpy(), _oracle(x, labels, lam)
    assert all(record["converged"])
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert (error <= record["error_bound"]).all()
    assert max(record["error_bound"]) <= record["tol"]
    assert (cosines(w, theirs) > 1 - 1e-6).all()
    best = _objective(x, labels, theirs, lam)
    np.testing.assert_allclose(_objective(x, labels, ours, lam), best, rtol=1e-6)
    np.testing.assert_allclose(record["objective"], best, rtol=1e-5)


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3])
def test_the_recorded_gradient_is_the_gradient_and_keeps_the_stated_bound(tol: float) -> None:
    statistics = statistics_of(*make_rows(orders=3.0))
    w, record = separator(statistics, tol=tol)
    true = _gradient_norm(normalised(statistics), statistics.labels, w.double().numpy(), 1e-4)
    np.testing.assert_allclose(record["gradient_norm"], true, atol=ROUNDING)
    assert (true <= tol * 1e-4 * w.norm(dim=1).numpy() + ROUNDING).all()


@pytest.mark.parametrize("memory", [0, 2 << 30])
def test_chunks_change_nothing(memory: int) -> None:
    h, labels = make_rows()
    whole = separator(statistics_of(h, labels))[0]
    chunked = separator(statistics_of(h, labels, chunk=64), memory=memory)[0]
    torch.testing.assert_close(chunked, whole, rtol=2e-3, atol=1e-3)
    assert (cosines(chunked, whole) > 1 - 1e-6).all()


def test_rows_above_the_memory_budget_are_read_anew() -> None:
    rows = statistics_of(*make_rows()).rows
    assert row_blocks(rows, "separator", 0)() is not row_blocks(rows, "separator", 0)()
    kept = row_blocks(rows, "separator", 4 * len(rows) * rows.d_model)
    assert kept() is kept()


def test_a_half_precision_memory_map_equals_memory(tmp_path) -> None:
    h, labels = make_rows()
    half = h.astype(np.float16)
    mapped = np.memmap(tmp_path / "rows", np.float16, "w+", shape=half.shape)
    mapped[:] = half
    in_memory = statistics_of(half, labels)
    on_disk = replace(in_memory, rows=replace(in_memory.rows, stored=mapped))
    for memory in (0, 2 << 30):
        assert torch.equal(separator(on_disk, memory=memory)[0], separator(in_memory)[0])


def test_joint_equals_one_concept_at_a_time() -> None:
    h, labels = make_rows(shares=(0.5, 0.3, 0.1, 0.05, 0.01))
    joint = separator(statistics_of(h, labels))[0]
    alone = [separator(statistics_of(h, labels[:, c : c + 1]))[0] for c in range(5)]
    torch.testing.assert_close(joint, torch.cat(alone), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    "sizes", [{"LABELS_AT_ONCE": 2}, {"MARGIN_VALUES": 1}, {"CACHED_VALUES": 64}, {"DONE_LABELS": 1}]
)
def test_how_labels_and_rows_are_parted_changes_nothing(monkeypatch, sizes: dict, known: bool) -> None:
    """Labels in other products, rows in other pieces, labels that leave once they are done."""
    h, labels = make_rows(shares=(0.5, 0.3, 0.1, 0.05, 0.01), orders=2.0)
    statistics = statistics_of(h, labels)
    if known:
        some = np.random.default_rng(3).random(labels.shape) < 0.8
        statistics = replace(statistics, known=some, labels=labels & some)
    whole, record = separator(statistics)
    for name, size in sizes.items():
        monkeypatch.setattr(module, name, size)
    parted, again = separator(statistics)
    assert len(set(record["iterations"])) > 1
    assert again["iterations"] == record["iterations"]
    torch.testing.assert_close(parted, whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(again["objective"], record["objective"], rtol=1e-6)
    assert all(again["converged"])


def test_repeats_to_the_bit_and_ignores_the_seed() -> None:
    statistics = statistics_of(*make_rows())
    assert torch.equal(separator(statistics)[0], separator(statistics, seed=7)[0])


def test_row_order_changes_nothing() -> None:
    h, labels = make_rows()
    order = np.random.default_rng(1).permutation(len(h))
    moved = separator(statistics_of(h[order], labels[order]))[0]
    assert (cosines(moved, separator(statistics_of(h, labels))[0]) > 1 - 1e-6).all()


def test_rows_given_twice_change_nothing() -> None:
    h, labels = make_rows()
    twice = separator(statistics_of(np.tile(h, (2, 1)), np.tile(labels, (2, 1))))[0]
    assert (cosines(twice, separator(statistics_of(h, labels))[0]) > 1 - 1e-6).all()


def test_swapping_the_classes_turns_the_vector_round() -> None:
    h, labels = make_rows()
    w = separator(statistics_of(h, labels))[0]
    assert torch.equal(separator(statistics_of(h, ~labels))[0], -w)


def test_a_scale_is_paid_back_by_the_penalty() -> None:
    h, labels = make_rows()
    half = separator(statistics_of(h, labels, scale=2.0), lam=1e-3)[0]
    full = separator(statistics_of(h, labels, scale=1.0), lam=4e-3)[0]
    torch.testing.assert_close(half, 2 * full, rtol=1e-3, atol=1e-3)


def test_moving_all_rows_changes_nothing() -> None:
    h, labels = make_rows(noise=1.0)
    scale = float(np.linalg.norm(h, axis=1).mean())
    moved = statistics_of(h + np.float32(4), labels, scale=scale)
    still = separator(statistics_of(h, labels, scale=scale))[0]
    assert (cosines(separator(moved)[0], still) > 1 - 1e-5).all()


def test_labels_without_signal_converge() -> None:
    h, _ = make_rows(n_rows=20_000, d_model=8, orders=0.0)
    labels = np.random.default_rng(5).random((len(h), 4)) < 0.5
    record = separator(statistics_of(np.tile(h, (2, 1)), np.concatenate([labels, ~labels])))[1]
    assert all(record["converged"])
    json.dumps(record, allow_nan=False)


def test_too_few_steps_warn_with_columns_and_gradient() -> None:
    statistics = statistics_of(*make_rows())
    text = r"separator: columns \[0, 1, 2\] stopped after 1 steps .* gradient norm of up to \d.*"
    with pytest.warns(NotConvergedWarning, match=text + "raise max_iter, lam or tol"):
        _, record = separator(statistics, max_iter=1)
    assert record["converged"] == [False] * 3
    assert record["iterations"] == [1] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        separator(statistics)


def test_missing_rows_or_labels() -> None:
    statistics = statistics_of(*make_rows())
    with pytest.raises(ValueError, match=r"separator needs train rows: .* with need='rows'"):
        separator(replace(statistics, rows=None))
    with pytest.raises(ValueError, match="needs a label for each of 1,500 rows, and got no labels"):
        separator(replace(statistics, labels=None))
    with pytest.raises(ValueError, match="each of 1,500 rows, and got 9 labels"):
        separator(replace(statistics, labels=statistics.labels[:9]))


def test_one_class_only() -> None:
    h, labels = make_rows()
    labels[:, 1] = False
    with pytest.raises(ValueError, match=r"columns \[1\] have no in-concept rows among 1,500"):
        separator(statistics_of(h, labels))
    labels[:, 1] = True
    with pytest.raises(ValueError, match=r"columns \[1\] have nothing but in-concept rows"):
        separator(statistics_of(h, labels))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named(value: float) -> None:
    statistics = statistics_of(*make_rows(), chunk=100)
    statistics.rows.stored[1234, 5] = value
    with pytest.raises(ValueError, match="stored row 1234 of 1,500 holds NaN or Inf"):
        separator(statistics)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lam": 0.0}, "lam is 0.0: it must be above 0"),
        ({"tol": 1.0}, "tol is 1.0: a relative error between 0 and 1"),
        ({"max_iter": 0}, "max_iter is 0: it must be 1 or more"),
    ],
)
def test_options_out_of_range(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        separator(statistics_of(*make_rows()), **options)
