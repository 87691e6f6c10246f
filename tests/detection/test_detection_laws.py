"""What may and what may not change a detector's decisions."""

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from detection_cases import make_case, with_scores

from sa_plugin.detection import STATISTICS, calibrate, search_matched, search_own
from sa_plugin.passes import TokenTable
from sa_plugin.show import clean

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
# These read tokens in their order.
ORDERED = {"LastTok", "RandTok", "max EMA", "max rolling mean", "k in a window"}


@pytest.fixture(scope="module")
def case():
    return make_case()


def everything(case, table, skip=()):
    """All numbers that calibration and evaluation give, in long form."""
    detector = calibrate(None, case.data, table.bank, scores=table)
    given = {"scores": table}
    found = [
        getattr(detector, name)(case.data.test, **given) for name in ("evaluate", "evaluate_tokens", "sweep")
    ]
    rows = [clean(row) for one in found for row in one.rows() if row.get("method") not in skip]
    chosen = [{k: clean(v) for k, v in one.chosen.items() if k not in skip} for one in (found[0], found[2])]
    for one in chosen[0].values():
        # In the unit of the scores, which a factor changes; what they decide stands in the rows.
        one.pop("parameters", None)
    return rows, chosen


@pytest.mark.parametrize("factor", [2.0**-7, 2.0**9])
def test_scaling_by_a_power_of_two_changes_no_decision(case, factor):
    scaled = replace(
        case.table,
        bank=case.bank.scaled(factor),
        scores=case.table.scores * np.float32(factor),
        permuted_max=case.table.permuted_max * np.float32(factor),
        pooled=case.table.pooled * np.float32(factor),
    )
    assert everything(case, scaled) == everything(case, case.table)
    before = calibrate(None, case.data, case.bank, scores=case.table)
    after = calibrate(None, case.data, scaled.bank, scores=scaled)
    np.testing.assert_array_equal(after.tail.thresholds, before.tail.thresholds * factor)


@pytest.mark.parametrize("rounded", [False, True])
def test_thresholds_from_stored_scores_are_those_in_memory(rounded, monkeypatch):
    case = make_case(rounded=rounded)
    before = calibrate(None, case.data, case.bank, scores=case.table)
    # The module hides behind the function of its name.
    monkeypatch.setattr(sys.modules["sa_plugin.detection.calibrate"], "MEMORY_BUDGET", 0)
    after = calibrate(None, case.data, case.bank, scores=case.table)
    np.testing.assert_array_equal(after.tail.thresholds, before.tail.thresholds)


def shuffled_tokens(table, rng):
    bounds = table.tokens.bounds
    order = np.concatenate([a + rng.permutation(b - a) for a, b in pairwise(bounds)])
    t = table.tokens
    tokens = TokenTable(
        t.samples,
        t.split_of,
        t.concepts,
        t.sample_of,
        t.position[order],
        t.offsets[order],
        t.labels[order],
        t.dropped,
    )
    return replace(table, tokens=tokens, scores=table.scores[order])


def test_token_order_changes_nothing_but_what_reads_it(case):
    moved = shuffled_tokens(case.table, np.random.default_rng(0))
    assert everything(case, moved, ORDERED) == everything(case, case.table, ORDERED)
    assert everything(case, moved) != everything(case, case.table)


def test_sample_order_changes_nothing(case):
    order = np.random.default_rng(0).permutation(case.table.tokens.n_samples)
    moved = case.table.select(order)
    assert everything(case, moved) == everything(case, case.table)


def test_calibration_reads_the_calibration_split_alone(case):
    rows = np.array(case.table.tokens.split_of)[case.table.tokens.sample_of] == "test"
    noise = np.where(rows[:, None, None], 1e3, case.table.scores)
    other = with_scores(case.table, noise)
    one, two = (calibrate(None, case.data, case.bank, scores=t) for t in (case.table, other))
    for a, b in [(one.tail, two.tail), *zip(one.baselines["RandTok"], two.baselines["RandTok"], strict=True)]:
        np.testing.assert_array_equal(a.thresholds, b.thresholds)
        np.testing.assert_array_equal(a.f1, b.f1)
    np.testing.assert_array_equal(one.cuts.midpoint, two.cuts.midpoint)


def test_thresholds_equal_numpy_on_float64_scores(case):
    detector = calibrate(None, case.data, case.bank, scores=case.table)
    cal = case.table.split("cal")
    for c in range(3):
        values = cal.scores[cal.tokens.labels[:, c], :, c].astype(np.float64)
        expected = np.quantile(values, 1 - np.array(detector.tail.deltas), axis=0).T
        np.testing.assert_array_equal(detector.tail.thresholds[:, :, c], expected)


def test_ties_go_to_the_smaller_delta_the_first_unit_and_the_earlier_layer():
    labels = np.array([[True], [True], [False], [False]])
    same = np.array([4.0, 3.0, 2.0, 1.0], dtype=np.float32)
    statistic = np.broadcast_to(same[:, None, None], (4, 3, 1))
    thresholds = np.array([9.0, 2.5, 2.4, 1.5])[None, :, None].repeat(3, 0)
    found = search_own("x", statistic, labels, thresholds, (0.1, 0.2, 0.3, 0.4))
    assert (found.layer[0], found.chosen_delta[0], found.chosen_f1[0]) == (0, 0.2, 1.0)
    assert found.candidates == 12

    units = np.broadcast_to(same[:, None, None], (4, 3, 5))
    cross = thresholds[..., None].repeat(5, -1)
    cross[0] = 9.0
    cross[1, :, 0, :2] = 9.0
    found = search_matched("x", units, labels, cross, (0.1, 0.2, 0.3, 0.4))
    assert (found.layer[0], found.chosen_unit[0], found.chosen_delta[0]) == (1, 2, 0.2)
    assert found.candidates == 60


def test_a_score_equal_to_the_threshold_fires():
    case = make_case(rounded=True)
    detector = calibrate(None, case.data, case.bank, scores=case.table)
    test = detector.scores_of(case.data.test, case.table)
    at, tau = detector.token_scores(test), detector.tail.chosen_threshold
    assert (at == tau).any()
    assert detector.superactivators(test)[at == tau].all()


def test_deltas_are_sorted_before_ties_are_broken(case):
    one = calibrate(None, case.data, case.bank, scores=case.table, deltas=(0.5, 0.1, 0.1, 0.3))
    two = calibrate(None, case.data, case.bank, scores=case.table, deltas=(0.1, 0.3, 0.5))
    assert one.tail.deltas == (0.1, 0.3, 0.5)
    assert (one.delta, one.layer, one.threshold) == (two.delta, two.layer, two.threshold)


def test_a_statistic_added_by_name_is_calibrated_and_evaluated(case, monkeypatch):
    def min_token(scores, bounds):
        return np.minimum.reduceat(scores, bounds[:-1], axis=0)

    monkeypatch.setitem(STATISTICS, "MinTok", min_token)
    detector = calibrate(None, case.data, case.bank, scores=case.table)
    found = detector.evaluate(case.data.test, scores=case.table)
    assert found.methods[-1] == "MinTok"
    monkeypatch.delitem(STATISTICS, "MinTok")
    with pytest.raises(ValueError, match=r"statistic 'MinTok' is unknown.*STATISTICS again"):
        detector.evaluate(case.data.test, scores=case.table)


def test_randtok_follows_its_seed(case):
    def f1(seed):
        detector = calibrate(None, case.data, case.bank, scores=case.table, seed=seed)
        assert len(detector.baselines["RandTok"]) == 20
        found = detector.evaluate(case.data.test, scores=case.table)
        return found.of("RandTok").weighted["f1"].values.tolist()

    assert f1(1) == f1(1)
    assert f1(1) != f1(2)


def test_unsupervised_permuted_control_matches_on_shuffled_labels_only():
    case = make_case(units=12, strength=4.0, n=200)
    detector = calibrate(None, case.data, case.bank, scores=case.table)
    (control,) = detector.baselines["MaxTok permuted"]
    assert control.candidates == 3 * 12
    assert (control.unit != detector.baselines["MaxTok"][0].unit).any()
    assert control.chosen_f1.mean() < detector.baselines["MaxTok"][0].chosen_f1.mean()
