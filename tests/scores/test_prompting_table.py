"""Statistics from elsewhere in the detection table: calibrated, compared and kept as the others."""

from dataclasses import replace

import numpy as np
import pytest
from detection_cases import CONCEPTS, make_case
from sklearn.metrics import f1_score

from sa_plugin.detection import Detector, calibrate, max_token
from sa_plugin.scores import PROMPT, PROMPT_P, TEMPLATE, PromptAnswers, ScoreTable, with_answers
from sa_plugin.statistics import Resampling

DRAWS = {"resampling": Resampling(draws=60)}


@pytest.fixture(scope="module")
def one_layer():
    """A case of a single layer, so that MaxTok is one number a sample and concept."""
    case = make_case(3, n=150)
    bank = case.bank.only([1], [0, 1, 2])
    return replace(case, bank=bank, table=ScoreTable(case.table.tokens, bank, case.table.scores[:, 1:2]))


def calibrated(case, table):
    return calibrate(None, case.data, case.bank, scores=table)


def answers(samples, seed=0, concepts=CONCEPTS, replies=True, **change):
    rng = np.random.default_rng(seed)
    p = rng.random((len(samples), len(concepts)))
    said = tuple(tuple("Yes, it does" if x > 0.6 else "No" for x in row) for row in p)
    found = PromptAnswers(
        tuple(samples), tuple(concepts), p, np.ones_like(p), said if replies else (), TEMPLATE, "model", 9
    )
    return replace(found, **change)


def test_a_statistic_equal_to_maxtok_gets_maxtoks_numbers(one_layer):
    bounds = one_layer.table.tokens.bounds
    same = max_token(one_layer.table.scores, bounds)[:, 0]
    table = one_layer.table.with_statistic("mine", same)
    detector = calibrated(one_layer, table)
    (mine,), (theirs,) = detector.baselines["mine"], detector.baselines["MaxTok"]
    for name in ("thresholds", "f1", "layer", "delta"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    found = detector.evaluate(one_layer.data.test, scores=table, **DRAWS)
    a, b = found.of("mine"), found.of("MaxTok")
    for part in ("weighted", "concept", "difference"):
        for metric, drawn in getattr(a, part).items():
            np.testing.assert_array_equal(drawn.values, getattr(b, part)[metric].values)
    assert a.chosen.layer.size == 0
    assert a.chosen.candidates == len(detector.tail.deltas)
    curve = detector.sweep(one_layer.data.test, scores=table, **DRAWS)
    assert curve.f1.sel(method="mine").values.tolist() == curve.f1.sel(method="MaxTok").values.tolist()


def test_a_settled_threshold_is_not_searched_and_differences_are_paired(one_layer):
    plain = calibrated(one_layer, one_layer.table)
    tokens = one_layer.table.tokens
    detection = plain.detect(tokens.samples, scores=one_layer.table)
    table = one_layer.table.with_statistic("same", detection.margin, threshold=0.0)
    detector = calibrated(one_layer, table)
    assert "same" not in detector.baselines
    found = detector.evaluate(one_layer.data.test, scores=table, **DRAWS)
    by = found.of("same").difference["f1"]
    assert (by.values == 0).all()
    assert not by.excludes_zero
    assert found.of("same").chosen.candidates == 0
    assert found.of("always-positive").chosen.candidates == 0
    assert "same" in found.summary()


def test_a_statistic_that_was_not_calibrated_is_listed_with_the_reason(one_layer):
    plain = calibrated(one_layer, one_layer.table)
    tokens = one_layer.table.tokens
    table = one_layer.table.with_statistic("late", np.full((tokens.n_samples, 3), 0.5))
    found = plain.evaluate(one_layer.data.test, scores=table, **DRAWS)
    assert found.missing["late"] == "the detector was calibrated on scores without it"
    with pytest.raises(ValueError, match="late was not fitted: the detector was calibrated on"):
        found.of("late")


def test_answers_reach_the_table_whatever_their_order(one_layer):
    data, table = one_layer.data, one_layer.table
    cal = answers(data.cal.samples[::-1], 1, replies=False)
    turned = CONCEPTS[::-1]
    test = answers(data.test.samples, 2, concepts=turned)
    both = with_answers(table, cal, test)
    detector = calibrated(one_layer, both)
    found = detector.evaluate(data.test, scores=both, **DRAWS)
    for k, concept in enumerate(CONCEPTS):
        truth = [concept in s.positive for s in data.test.samples]
        column = turned.index(concept)
        said = test.said_yes[:, column]
        assert found.of(PROMPT).concept["f1"].estimate[k] == pytest.approx(f1_score(truth, said))
        (one,) = detector.baselines[PROMPT_P]
        fired = test.p_yes[:, column] >= one.chosen_threshold[k]
        assert found.of(PROMPT_P).concept["f1"].estimate[k] == pytest.approx(f1_score(truth, fired))
        inside = [concept in s.positive for s in cal.samples]
        expected = np.quantile(cal.p_yes[inside, k], 1 - one.chosen_delta[k])
        assert one.chosen_threshold[k] == pytest.approx(expected)
    names = list(found.methods)
    assert names.index("SuperActivators") == 0
    assert {PROMPT, PROMPT_P} <= set(names)


def test_a_detector_with_a_statistic_is_saved_and_asks_for_it_again(tmp_path, one_layer):
    data = one_layer.data
    table = with_answers(one_layer.table, answers([*data.cal.samples, *data.test.samples]))
    calibrated(one_layer, table).save_pretrained(tmp_path / "saved")
    loaded = Detector.from_pretrained(tmp_path / "saved")
    found = loaded.evaluate(data.test, scores=table, **DRAWS)
    assert PROMPT_P in list(found.methods)
    with pytest.raises(ValueError, match=r"'Prompt p\(yes\)' is unknown to these scores: give them"):
        loaded.evaluate(data.test, scores=one_layer.table, **DRAWS)


def test_rows_travel_with_their_samples(one_layer):
    values = np.arange(one_layer.table.tokens.n_samples * 3.0).reshape(-1, 3)
    table = one_layer.table.with_statistic("mine", values)
    chosen = np.array([5, 2, 9])
    np.testing.assert_array_equal(table.select(chosen).given["mine"].values, values[chosen])
    assert len(table.split("test").given["mine"].values) == len(one_layer.data.test)


def test_what_is_missing_or_malformed_is_refused(one_layer):
    data, table = one_layer.data, one_layer.table
    with pytest.raises(ValueError, match=r"have shape \(2, 3\), expected \[sample, concept\]"):
        table.with_statistic("mine", np.zeros((2, 3)))
    endless = np.full((table.tokens.n_samples, 3), np.inf)
    with pytest.raises(ValueError, match="infinite values: give finite numbers"):
        table.with_statistic("mine", endless)
    clash = table.with_statistic("MaxTok", 0 * np.nan_to_num(endless, posinf=0))
    with pytest.raises(ValueError, match="'MaxTok' has the name of a method: name it otherwise"):
        calibrated(one_layer, clash)
    only_test = with_answers(table, answers(data.test.samples))
    with pytest.raises(ValueError, match=r"'Prompt p\(yes\)' is not known for \d+ of \d+ samples"):
        calibrated(one_layer, only_test)
    only_cal = with_answers(table, answers(data.cal.samples))
    with pytest.raises(ValueError, match="give it for every sample of this split"):
        calibrated(one_layer, only_cal).evaluate(data.test, scores=only_cal, **DRAWS)


def test_answers_of_other_samples_or_questions_are_refused(one_layer):
    data, table = one_layer.data, one_layer.table
    with pytest.raises(ValueError, match="no answers: give the PromptAnswers"):
        with_answers(table)
    other = [replace(s, text="something else") for s in data.test.samples]
    with pytest.raises(ValueError, match="was asked about and has another text in the scores"):
        with_answers(table, answers(other))
    with pytest.raises(ValueError, match="was asked about and was not scored: score the same data"):
        with_answers(table, answers(data.train.samples))
    with pytest.raises(ValueError, match="'weather' is not among the concepts asked about"):
        with_answers(table, answers(data.test.samples, concepts=CONCEPTS[:2]))
    with pytest.raises(ValueError, match="of several models or templates: give those of one"):
        with_answers(table, answers(data.cal.samples), answers(data.test.samples, template="x"))


def test_answers_print_and_tabulate(one_layer):
    found = answers(one_layer.data.test.samples[:2])
    assert repr(found).startswith("PromptAnswers(model, 2 samples x 3 concepts, mean p(yes) 0.")
    assert (found.table()["measure"] == "p_yes").sum() == 6
    assert "no text" in repr(answers(one_layer.data.test.samples[:2], replies=False))
