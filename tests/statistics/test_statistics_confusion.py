"""Counts and ratios against scikit-learn."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import config
from sklearn import metrics

import sa_plugin
from sa_plugin.statistics import (
    accuracy,
    confusion,
    exceeds,
    f1,
    false_positive_rate,
    mean_over_concepts,
    precision,
    reaches,
    recall,
)


@pytest.fixture
def as_shipped():
    """Users run without the shape checks of the tests: what they see are the library's errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def decisions(shape=(3, 4, 60), seed=0):
    rng = np.random.default_rng(seed)
    return rng.random(shape) < 0.4, rng.random(shape[1:]) < 0.3


def test_ratios_equal_scikit_learns_over_leading_axes():
    predicted, labels = decisions()
    counts = confusion(predicted, labels)
    assert counts.tp.shape == (3, 4)
    for d, c in np.ndindex(3, 4):
        truth, said = labels[c], predicted[d, c]
        tn, fp, fn, tp = metrics.confusion_matrix(truth, said).ravel()
        assert tuple(int(a[d, c]) for a in counts) == (tp, fp, fn, tn)
        assert precision(counts)[d, c] == pytest.approx(metrics.precision_score(truth, said))
        assert recall(counts)[d, c] == pytest.approx(metrics.recall_score(truth, said))
        assert f1(counts)[d, c] == pytest.approx(metrics.f1_score(truth, said))
        assert accuracy(counts)[d, c] == pytest.approx(metrics.accuracy_score(truth, said))
        assert false_positive_rate(counts)[d, c] == pytest.approx(fp / (fp + tn))


@pytest.mark.parametrize(("said", "truth"), [(False, False), (True, False), (False, True)])
def test_empty_denominators_are_zero(said, truth):
    counts = confusion(np.full(5, said), np.full(5, truth))
    assert precision(counts) == 0
    assert recall(counts) == 0
    assert f1(counts) == 0


def test_means_over_concepts_equal_scikit_learns():
    predicted, labels = decisions()
    counts = confusion(predicted[0], labels)
    for average in ("weighted", "macro"):
        expected = metrics.f1_score(labels.T, predicted[0].T, average=average)
        assert mean_over_concepts(f1(counts), labels.sum(axis=1), average) == pytest.approx(expected)


def test_undefined_concepts_are_left_out_of_means():
    values, positives = np.array([0.5, np.nan, 1.0]), np.array([3, 5, 1])
    assert mean_over_concepts(values, positives) == pytest.approx(2.5 / 4)
    assert mean_over_concepts(values, positives, "macro") == pytest.approx(0.75)
    assert np.isnan(mean_over_concepts(np.array([np.nan]), np.array([2])))


def test_bad_arguments_say_what_was_expected(as_shipped):
    predicted, labels = decisions()
    with pytest.raises(ValueError, match="differ in their last axis, the samples"):
        confusion(predicted, labels[:, :-1])
    with pytest.raises(ValueError, match="average is the text 'micro', not 'weighted' or 'macro'"):
        mean_over_concepts(np.ones(2), np.ones(2), "micro")


def test_scores_and_cuts_meet_in_float64():
    score = np.array([1 + 2**-23, np.inf, -np.inf], np.float32)
    # Between this score and the next float32: rounded to its format the cut would be the score.
    cut = 1 + 2**-23 + 2**-26
    assert reaches(score, cut).tolist() == exceeds(score, cut).tolist() == [False, True, False]
    assert reaches(score, score).all()
    assert not exceeds(score, score).any()
    assert reaches(score[:, None], np.array([1.0, cut])).tolist() == [
        [True, False],
        [True, True],
        [False, False],
    ]


def test_nothing_else_compares_scores_with_a_threshold():
    """NumPy's own `>=` beside a threshold or a cut; torch compares after `.double()`, charts colour bins."""
    cut = re.compile(r"(threshold|tau|cut|midpoint|background)s?\b")
    found = []
    for path in sorted(Path(sa_plugin.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            order = isinstance(node, ast.Compare) and isinstance(
                node.ops[0], (ast.Gt, ast.GtE, ast.Lt, ast.LtE)
            )
            if order and cut.search(ast.unparse(node)) and ".double()" not in ast.unparse(node):
                found.append((path.name, ast.unparse(node)))
    allowed = {"plots.py", "charts.py"}
    # float32 beside float32: `ExactTail` rounds its cuts down, so that whatever reaches one is kept.
    exact = {
        ("reducers.py", "found >= cuts.to(device)"),
        ("streaming.py", "given >= self.cuts"),
        ("streaming.py", "values < self.cuts[column]"),
    }
    assert [one for one in found if one[0] not in allowed and one not in exact] == []
