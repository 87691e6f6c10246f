import inspect
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from concept_rows import cosines, make_rows, normalised, statistics_of

from sa_plugin.concepts import KINDS, separator, separator_adam

# The face has a function of this name.
adam = import_module("sa_plugin.concepts.separator")


def test_comes_near_the_optimum_on_separable_rows() -> None:
    statistics = statistics_of(*make_rows(n_rows=1500, d_model=16, shares=(0.5, 0.2), orders=0.3, noise=0.0))
    vectors, record = separator_adam(statistics, learning_rate=0.03, max_epochs=60)
    assert (cosines(vectors, separator(statistics)[0]) > 0.9).all()
    assert record["f1"][0] > 0.95


def test_its_loss_is_never_below_the_optimum_of_its_rows() -> None:
    statistics = statistics_of(*make_rows(shares=(0.5,)))
    vectors, record = separator_adam(statistics, learning_rate=0.02, max_epochs=60)
    best = separator(statistics)[1]["objective"][0]
    x, inside = normalised(statistics), statistics.labels[:, 0]
    margin = np.where(inside, 1, -1) * (x @ vectors[0].double().numpy())
    objective = np.logaddexp(0, -margin).mean() + 1e-4 / 2 * float(vectors.square().sum())
    assert best - 1e-6 <= objective < best + 0.02
    assert record["loss"][0] < np.log(2)


def test_the_papers_steps_bound_how_far_a_weight_moves() -> None:
    statistics = statistics_of(*make_rows(n_rows=3000, shares=(0.02,)))
    vectors, record = separator_adam(statistics, weight_decay=0.0, patience=1000, max_epochs=120)
    reach = 1e-3 * adam.STEP_EPOCHS / (1 - adam.STEP_FACTOR) * np.ceil(record["rows"][0] / 64)
    assert vectors.abs().max() < 2 * reach + 24**-0.5
    assert vectors.norm() < 0.2 * separator(statistics)[0].norm()


def test_seeded() -> None:
    statistics = statistics_of(*make_rows())
    once, again, other = (separator_adam(statistics, seed=s, max_epochs=2)[0] for s in (3, 3, 4))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_a_concept_does_not_depend_on_its_neighbours() -> None:
    h, labels = make_rows()
    two = separator_adam(statistics_of(h, labels[:, :2]), max_epochs=2)[0]
    three = separator_adam(statistics_of(h, labels), max_epochs=2)[0]
    assert torch.equal(two, three[:2])


def test_classes_are_balanced_without_replacement() -> None:
    inside = np.arange(1000) % 50 == 0
    drawn = adam._balanced(inside, ~inside, np.random.default_rng(0))
    assert len(set(drawn.tolist())) == len(drawn) == 40
    assert inside[drawn].sum() == 20
    record = separator_adam(statistics_of(*make_rows()), max_epochs=1)[1]
    assert record["rows"] == [1500, 600, 150]


def test_patience_ends_training() -> None:
    h, _ = make_rows()
    labels = np.random.default_rng(0).random((len(h), 1)) < 0.5
    record = separator_adam(statistics_of(h, labels), learning_rate=1e-9, patience=4)[1]
    assert record["epochs"] == [5]
    assert record["f1"][0] < 0.99


def test_is_a_named_kind_and_names_itself_in_errors() -> None:
    assert inspect.unwrap(KINDS["separator_adam"].fit) is inspect.unwrap(separator_adam)
    h, labels = make_rows()
    statistics = statistics_of(h, labels)
    with pytest.raises(ValueError, match="separator_adam needs train rows"):
        separator_adam(replace(statistics, rows=None))
    statistics.rows.stored[:] = np.nan
    with pytest.raises(ValueError, match="separator_adam: stored row 0 of 1,500 holds NaN"):
        separator_adam(statistics)
    with pytest.raises(ValueError, match="max_epochs is 0: it must be 1 or more"):
        separator_adam(statistics, max_epochs=0)
    labels[:] = False
    with pytest.raises(ValueError, match=r"separator_adam: concept columns \[0, 1, 2\] have no"):
        separator_adam(statistics_of(np.ones_like(h), labels))
