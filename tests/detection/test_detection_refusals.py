"""Every refusal and warning of the detection room, by its text."""

import inspect
import re
from dataclasses import replace

import numpy as np
import pytest
from detection_cases import make_bank, make_case, with_scores

from sa_plugin.data import Sample, Split, as_split
from sa_plugin.detection import OtherDataWarning, SelectionDataWarning, calibrate, check_unseen
from sa_plugin.statistics import EmptyConceptWarning, FewTokensWarning

quiet = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def case():
    return make_case()


@pytest.fixture(scope="module")
def detector(case):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return calibrate(None, case.data, case.bank, scores=case.table)


@pytest.mark.parametrize("call", ["evaluate", "sweep"])
def test_train_rows_are_refused(case, detector, call):
    with pytest.raises(ValueError, match=r"cannot evaluate on .*vectors fit.*Give data.test"):
        getattr(detector, call)(case.data.train, scores=case.table)
    disguised = replace(case.data.train, name="test")
    with pytest.raises(ValueError, match=r"70 sample\(s\) of 'test' that vectors were fitted on"):
        getattr(detector, call)(disguised, scores=case.table)
    elsewhere = replace(case.data.train, name="test", data_hash="another")
    with pytest.raises(ValueError, match="that vectors were fitted on"):
        getattr(detector, call)(elsewhere, scores=case.table)


def test_localisation_metrics_refuse_train_rows_and_plain_texts(case, detector):
    with pytest.raises(ValueError, match="cannot evaluate on"):
        detector.evaluate_tokens(case.data.train, scores=case.table)
    for plain in ("a text", ["a text", "another"]):
        with pytest.raises(ValueError, match="plain texts have no token labels"):
            detector.evaluate_tokens(plain)


@pytest.mark.parametrize("call", ["evaluate", "evaluate_tokens", "find", "detect"])
def test_an_empty_split_is_named(case, detector, call):
    with pytest.raises(ValueError, match="the test split is empty"):
        getattr(detector, call)(replace(case.data.test, samples=()), scores=case.table)


def test_a_split_is_asked_for(case, detector):
    with pytest.raises(TypeError, match=r"not a ConceptData: give data\.test"):
        # Past the type checks that only the tests have.
        inspect.unwrap(check_unseen)(case.data, detector.seen)


def test_calibration_samples_warn(case, detector):
    with pytest.warns(SelectionDataWarning, match="'cal' holds samples that thresholds"):
        detector.evaluate(case.data.cal, scores=case.table)


def test_other_data_warns(case, detector):
    other = replace(case.data.test, data_hash="f" * 64)
    with pytest.warns(OtherDataWarning, match="ffffffff is not the data this detector"):
        detector.evaluate(other, scores=case.table)


@quiet
def test_a_bank_fitted_elsewhere_warns(case):
    origin = replace(case.bank.origin, data_hash="e" * 64)
    bank = replace(case.bank, origin=origin)
    with pytest.warns(OtherDataWarning, match="fitted on data eeeeeeee, calibration runs on"):
        calibrate(None, case.data, bank, scores=replace(case.table, bank=bank))


def test_scores_of_another_bank_are_refused(case, detector):
    other = make_bank(seed=9, data=case.data)
    with pytest.raises(ValueError, match=r"scores are of another bank \(its vectors differ\)"):
        detector.find(case.data.test, scores=replace(case.table, bank=other))
    layers = make_bank(layers=(2, 5), data=case.data)
    with pytest.raises(ValueError, match=r"another bank \(layers \(2, 5\) instead of \(2, 5, 9\)\)"):
        detector.find(case.data.test, scores=replace(case.table, bank=layers))


def test_samples_that_were_not_scored_are_refused(case, detector):
    with pytest.raises(ValueError, match="20 of 20 samples were not scored"):
        detector.evaluate(case.data.test, scores=case.table.split("cal"))
    samples = [replace(s, text=s.text.replace("w", "v")) for s in case.data.test.samples]
    with pytest.raises(ValueError, match="are of another text or other labels"):
        detector.detect(samples, scores=case.table)


def test_nan_scores_name_layer_and_sample(case, detector):
    broken = case.table.scores.copy()
    row = int(case.table.tokens.bounds[case.table.tokens.split_of.index("cal")]) + 1
    broken[row, 1, 0] = np.nan
    table = with_scores(case.table, broken)
    first = case.table.tokens.samples[case.table.tokens.split_of.index("cal")].id
    with pytest.raises(ValueError, match=f"NaN or infinite scores at layer 5.*sample {first!r}"):
        calibrate(None, case.data, case.bank, scores=table)


def test_a_host_or_scores_are_needed(case, detector):
    with pytest.raises(ValueError, match="neither a host nor scores"):
        calibrate(None, case.data, case.bank)
    with pytest.raises(ValueError, match="no host to score samples with: give scores="):
        detector.find("a text")


def test_unknown_names_get_the_nearest(case, detector):
    with pytest.raises(ValueError, match="'animals' is not among the concepts: did you mean 'animal'"):
        detector.choice("animals")
    with pytest.raises(ValueError, match="did you mean 'weather'"):
        detector.find(case.data.test, concepts=["wether"], scores=case.table)
    evaluation = detector.evaluate(case.data.test, scores=case.table)
    with pytest.raises(ValueError, match="'MaxTock' is not among the methods: did you mean 'MaxTok'"):
        evaluation.of("MaxTock")
    with pytest.raises(ValueError, match="no layer 4: nearest is 5"):
        detector.sweep(case.data.test, scores=case.table, layer=4)


@quiet
def test_a_concept_the_scores_have_no_labels_for(case):
    concepts = ("animal", "food", "wether")
    bank = replace(make_bank(concepts=concepts, data=case.data))
    with pytest.raises(ValueError, match=r"'wether' is not among the concepts .*'weather'"):
        calibrate(None, case.data, bank, scores=replace(case.table, bank=bank))


@quiet
@pytest.mark.parametrize("deltas", [(), (0.0, 0.5), (0.1, 1.5)])
def test_deltas_are_checked(case, deltas):
    with pytest.raises(ValueError, match="delta"):
        calibrate(None, case.data, case.bank, scores=case.table, deltas=deltas)


def test_samples_are_checked(detector):
    with pytest.raises(TypeError, match="samples are of type int: give a text"):
        inspect.unwrap(as_split)(3, detector.concepts)
    with pytest.raises(ValueError, match="there are no samples"):
        detector.find([])
    with pytest.raises(ValueError, match="same id"):
        detector.detect([Sample("a", "x", "a"), Sample("a", "y", "a")])


def test_controls_that_are_missing_are_listed_with_the_reason():
    case = make_case(controls=False)
    with pytest.warns(FewTokensWarning):
        detector = calibrate(None, case.data, case.bank, scores=case.table)
    assert set(detector.missing) == {"pooled", "MaxTok permuted"}
    evaluation = detector.evaluate(case.data.test, scores=case.table)
    assert "pooled is not fitted: the bank has no pooled vectors." in str(evaluation)
    assert re.search(r"MaxTok permuted +not fitted", str(evaluation))
    assert "MaxTok permuted" not in evaluation.table()["method"].tolist()
    assert evaluation.to_dict()["missing"] == detector.missing
    with pytest.raises(ValueError, match="pooled was not fitted: the bank has no pooled vectors"):
        evaluation.of("pooled")


@quiet
def test_a_concept_without_calibration_tokens_never_fires():
    case = make_case()
    labels = case.table.tokens.labels.copy()
    cal = np.array(case.table.tokens.split_of)[case.table.tokens.sample_of] == "cal"
    labels[cal, 0] = False
    table = replace(case.table, tokens=replace(case.table.tokens, labels=labels))
    with pytest.warns(EmptyConceptWarning, match="'animal'"):
        detector = calibrate(None, case.data, case.bank, scores=table)
    assert detector.threshold["animal"] == np.inf
    assert not detector.detect(case.data.test, scores=table).present[:, 0].any()
    result = detector.evaluate(case.data.test, scores=table)
    assert result.of("SuperActivators").concept["f1"].estimate[0] == 0
    assert result.of("MaxTok").concept["f1"].estimate[0] > 0
    assert result.to_dict()["rates"]["tail_miss"]["estimate"][0] == 1


@quiet
def test_one_document_is_refused(case, detector):
    one = case.data.test.samples[0].document
    samples = tuple(s for s in case.data.test.samples if s.document == one)
    split = Split("test", samples, case.data.concepts, case.data.hash)
    with pytest.raises(ValueError, match="at least two"):
        detector.evaluate(split, scores=case.table)


@quiet
def test_a_concept_without_positive_test_samples_is_not_defined(case, detector):
    samples = tuple(s for s in case.data.test.samples if "animal" not in s.positive)
    split = Split("test", samples, case.data.concepts, case.data.hash)
    found = detector.evaluate(split, scores=case.table)
    assert np.isnan(found.of("MaxTok").concept["f1"].estimate[0])
    rest = found.of("MaxTok").concept["f1"].estimate[1:]
    assert found.of("MaxTok").macro["f1"].estimate == pytest.approx(np.mean(rest))
    assert found.to_dict()["concept"]["f1"]["estimate"][1][0] is None


def test_texts_are_their_own_samples():
    split = as_split(["one", "two"], ("a",))
    assert [s.id for s in split.samples] == ["text 0", "text 1"]
    assert len({s.document for s in split.samples}) == 2
