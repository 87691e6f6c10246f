"""What evaluation, sweep, localisation and search results say, against direct computation."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from detection_cases import make_case
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from sa_plugin.detection import calibrate

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def case():
    return make_case(n=400, documents=60, strength=3.0)


@pytest.fixture(scope="module")
def detector(case):
    return calibrate(None, case.data, case.bank, scores=case.table)


@pytest.fixture(scope="module")
def evaluation(case, detector):
    return detector.evaluate(case.data.test, scores=case.table)


@pytest.fixture(scope="module")
def test_table(case, detector):
    return detector.scores_of(case.data.test, case.table)


def test_find_lists_exactly_the_tokens_above_their_threshold(case, detector, test_table):
    found = detector.find(case.data.test, scores=case.table)
    expected = np.argwhere(detector.superactivators(test_table))
    assert {(s.row, s.concept) for s in found} == {
        (row, case.bank.concepts[c]) for row, c in expected.tolist()
    }
    for one in found[:50]:
        sample = next(s for s in case.data.samples if s.id == one.sample)
        assert sample.text[one.start : one.end] == one.text == f"w{one.sample}_{one.position}"
        assert one.margin == one.score - one.threshold >= 0
        assert one.layer == detector.layer[one.concept]
    only = detector.find(case.data.test, concepts=["food"], scores=case.table)
    assert list(only) == [s for s in found if s.concept == "food"]


def test_detect_agrees_with_find_and_with_evaluation(case, detector, test_table, evaluation):
    found = detector.detect(case.data.test, scores=case.table)
    marked = {(s.sample, s.concept) for s in detector.find(case.data.test, scores=case.table)}
    for n, k in np.ndindex(found.present.shape):
        assert found.present[n, k] == ((found.samples[n], found.concepts[k]) in marked)
        assert found.present[n, k] == (found.margin[n, k] >= 0)
    assert found.of(found.samples[0]) == tuple(c for c in found.concepts if (found.samples[0], c) in marked)
    labels = test_table.tokens.sample_labels
    for k, one in enumerate(evaluation.of("SuperActivators").concept["f1"].estimate):
        assert one == pytest.approx(f1_score(labels[:, k], found.present[:, k]))
    assert (found.table()["measure"] == "margin").sum() == found.present.size


def test_rates_are_counted_at_the_midpoint_and_at_the_threshold(case, detector, test_table, evaluation):
    cal = case.table.split("cal")
    labels = test_table.tokens.sample_labels
    for k in range(len(case.bank.concepts)):
        one = {name: rate.estimate[k] for name, rate in evaluation.rates.items()}
        at, unit = detector.tail.layer[k], detector.tail.chosen_unit[k]
        scores = cal.scores[:, at, unit].astype(np.float64)
        inside = cal.tokens.labels[:, k]
        middle = (scores[inside].mean() + scores[~inside].mean()) / 2
        assert detector.cuts.midpoint[k] == pytest.approx(middle)
        bounds = test_table.tokens.bounds
        best = [test_table.scores[a:b, at, unit].max() for a, b in pairwise(bounds)]
        raw = np.array(best) > middle
        tail = np.array(best, dtype=np.float64) >= detector.tail.chosen_threshold[k]
        y = labels[:, k]
        assert one["raw_false_fire"] == pytest.approx(raw[~y].mean())
        assert one["raw_miss"] == pytest.approx((~raw)[y].mean())
        assert one["tail_false_fire"] == pytest.approx(tail[~y].mean())
        assert one["tail_miss"] == pytest.approx((~tail)[y].mean())


def test_fractions_in_both_definitions(detector, test_table, evaluation):
    sa = detector.superactivators(test_table)
    tokens = test_table.tokens
    found = evaluation.fractions
    for c in range(3):
        r_all, r_in, skipped = [], [], 0
        for n in range(tokens.n_samples):
            if not tokens.sample_labels[n, c]:
                continue
            part = slice(tokens.bounds[n], tokens.bounds[n + 1])
            inside = tokens.labels[part, c]
            if not inside.any():
                skipped += 1
                continue
            r_all.append(sa[part, c].sum() / inside.sum())
            r_in.append((sa[part, c] & inside).sum() / inside.sum())
        assert skipped == found.skipped[c]
        assert len(r_all) == found.n[c]
        assert found.above_one[c] == pytest.approx(np.mean(np.array(r_all) > 1))
        for k, edge in enumerate(found.grid):
            assert found.all[c, k] == pytest.approx(np.mean(np.array(r_all) <= edge + 1e-12))
            assert found.inside[c, k] == pytest.approx(np.mean(np.array(r_in) <= edge + 1e-12))
        assert found.inside[c, -1] == 1
    assert found.skipped.sum() > 0


def test_the_table_holds_every_method_in_order(evaluation):
    # One that a contributor adds stands behind them.
    assert list(evaluation.methods)[:19] == [
        "SuperActivators",
        "MaxTok",
        "MeanTok",
        "LastTok",
        "RandTok",
        "pooled",
        "Top10%",
        "softmax pool",
        "log-sum-exp",
        "top-k mean",
        "trimmed top-k",
        "softplus pool",
        "max EMA",
        "max rolling mean",
        "k in a window",
        "max - median",
        "always-positive",
        "length-only",
        "MaxTok permuted",
    ]
    table, n = evaluation.table(), len(evaluation.methods)
    for measure, count in (("weighted f1", n), ("macro auroc", n), ("f1", 3 * n), ("raw miss", 3)):
        assert (table["measure"] == measure).sum() == count
    assert (table["measure"] == "weighted f1 minus SuperActivators").sum() == n - 1
    assert evaluation.of("RandTok").chosen.delta.shape == (20, 3)
    assert evaluation.of("always-positive").weighted["recall"].estimate == 1
    assert evaluation.of("always-positive").weighted["auroc"].estimate == 0.5


def test_the_verdict_follows_the_paired_intervals(evaluation):
    verdict = evaluation.verdict()
    beat, _, rest = verdict.partition("; tie with ")
    for name in evaluation.methods[1:]:
        by = evaluation.of(name).difference["f1"]
        where = beat if by.high < 0 else rest
        assert f"{name} ({by.estimate:+.3f} [{by.low:+.3f}, {by.high:+.3f}])" in where
    assert "no proof of equality" in verdict
    text = " ".join(str(evaluation).split())
    assert "conditional on the train and calibration splits" in text
    assert "Intervals: each of 12 documents left out in turn, Student's t." in text
    sure = [name for name, mark in evaluation.stars.items() if mark == "**"]
    assert f"differences read as one family {len(sure)} exclude zero" in verdict
    assert f"all {len(evaluation.methods) - 1} differences of the table read as one family (max-T)" in text


def test_what_a_monitor_is_chosen_by_equals_counting(case, detector, test_table, evaluation):
    """TPR by every threshold, false alarms by counting samples and tokens; few negatives give a dash."""
    labels, lengths = test_table.tokens.sample_labels, np.diff(test_table.tokens.bounds)
    for name, (one, *others) in outcomes_of(detector, test_table).items():
        found = evaluation.of(name)
        if others:
            continue
        for k in range(3):
            y, fired = labels[:, k], one.fired[:, k]
            alarms = 1000 * (fired & ~y).sum() / lengths[~y].sum()
            assert found.concept["false_alarms"].estimate[k] == pytest.approx(alarms)
            area = roc_auc_score(y, one.values[:, k], max_fpr=0.1)
            assert found.concept["partial_auroc"].estimate[k] == pytest.approx(area)
            assert np.isnan(found.concept["tpr_at_5_percent"].estimate[k])
        assert found.macro["false_alarms"].estimate == pytest.approx(
            found.concept["false_alarms"].estimate.mean()
        )
    text = " ".join(str(evaluation).split())
    assert "at 5 % no concept has the 60 negatives it takes" in text
    assert "at 0.1 % no concept has the 3,000 negatives it takes" in text


def test_true_positive_rates_stand_on_three_negatives_at_least():
    many = make_case(n=500, documents=200, strength=2.0)
    detector = calibrate(None, many.data, many.bank, scores=many.table)
    everything = replace(many.data.test, samples=many.data.cal.samples + many.data.test.samples)
    found = detector.evaluate(everything, scores=many.table)
    table = detector.scores_of(everything, many.table)
    labels = table.tokens.sample_labels
    negatives = (~labels).sum(0)
    assert (negatives >= 60).all()
    assert (negatives < 300).all()
    (one,) = outcomes_of(detector, table)["MaxTok"]
    for k, concept in enumerate(many.bank.concepts):
        values, y = one.values[:, k], labels[:, k]
        above = int(0.05 * negatives[k])
        cut = np.sort(values[~y])[::-1][above]
        rate = found.of("MaxTok").concept["tpr_at_5_percent"].sel(concept=concept)
        assert rate.estimate == pytest.approx((values[y] > cut).mean())
        assert rate.low <= rate.estimate <= rate.high
    assert np.isnan(found.weighted["tpr_at_1_percent"].estimate).all()
    text = " ".join(str(found).split())
    assert re.search(r"at 5 % \d to \d of a concept's negative samples lie above the threshold", text)
    by = found.of("MeanTok").difference
    assert by["tpr_at_5_percent"].estimate < 0
    alarms = [found.of(name).macro["false_alarms"].estimate for name in ("MeanTok", "SuperActivators")]
    assert by["false_alarms"].estimate == pytest.approx(alarms[0] - alarms[1])


def outcomes_of(detector, table):
    from sa_plugin.detection import outcomes

    return outcomes(detector, table)


def test_stars_of_the_table_are_read_alone_and_together(evaluation):
    by = evaluation.difference["f1"]
    adjusted = evaluation.table().set_index("measure").loc["p of weighted f1 in its family"]
    assert list(adjusted["value"]) == by.p_of_family.tolist()
    for name, p, alone in zip(by.axes["method"], by.p_of_family, by.excludes_zero, strict=True):
        assert evaluation.stars[name] == ("**" if p < 0.05 else "*" if alone else "")
        assert alone or p >= 0.05
    assert set(evaluation.stars.values()) >= {"", "**"}


def test_always_positive_has_no_interval_but_a_difference(evaluation):
    one = evaluation.of("always-positive")
    for part in (one.weighted, one.macro):
        part = {metric: drawn for metric, drawn in part.items() if not metric.startswith("tpr_at")}
        assert all(np.isnan(drawn.low) and np.isfinite(drawn.estimate) for drawn in part.values())
        assert all(drawn.caution == "no interval: biased" for drawn in part.values())
    assert np.isnan(one.concept["f1"].high).all()
    assert one.difference["f1"].low < one.difference["f1"].estimate < one.difference["f1"].high


def test_a_concept_without_positives_is_left_out_of_every_average(case, detector):
    """Macro precision and macro F1 average the same concepts."""
    samples = [s for s in case.data.test.samples if "food" not in s.positive]
    test = replace(case.data.test, samples=tuple(samples))
    found = detector.evaluate(test, scores=case.table)
    k = case.bank.concepts.index("food")
    assert found.n_positive["food"] == 0
    n_positive = list(found.n_positive.values())
    for one in map(found.of, found.methods):
        for metric in ("precision", "recall", "f1"):
            values = one.concept[metric].estimate
            assert np.isnan(values[k])
            kept = np.delete(values, k)
            assert one.macro[metric].estimate == pytest.approx(kept.mean())
            weighted = np.average(kept, weights=np.delete(n_positive, k))
            assert one.weighted[metric].estimate == pytest.approx(weighted)
    assert "both leave out concepts without any" in " ".join(str(found).split())


def test_peaks_of_the_curve_are_said_to_be_picked_on_test(case, detector):
    curve = detector.sweep(case.data.test, scores=case.table)
    assert "(picked on test)" in repr(curve)
    text = " ".join(str(curve).split())
    best = max(curve.f1.sel(method="MaxTok").estimate)
    assert "Layer: SuperActivators' best by calibration" in text
    assert f"MaxTok {best:.3f} at" in text.partition("Peaks (picked on test):")[2]


def test_every_interval_holds_its_estimate():
    """The reported case: a percentile interval that lay above the estimate of always-positive."""
    for documents in (16, 40, 80):
        case = make_case(seed=3, documents=documents)
        detector = calibrate(None, case.data, case.bank, scores=case.table)
        for measured in (detector.evaluate, detector.evaluate_tokens, detector.sweep):
            rows = measured(case.data.test, scores=case.table).table().dropna(subset=["low", "high"])
            assert len(rows)
            assert ((rows["low"] <= rows["value"]) & (rows["value"] <= rows["high"])).all()


def test_few_documents_are_called_few():
    case = make_case(documents=12)
    detector = calibrate(None, case.data, case.bank, scores=case.table)
    found = detector.evaluate(case.data.test, scores=case.table)
    text = " ".join(str(found).split())
    assert "have no interval: fewer than 3 documents carry them" in text
    assert "no interval: carried by 2 of 3 documents needed" in text
    assert "SuperActivators cannot be compared with" in text
    assert not any(found.stars.values())


def test_documents_are_counted_concept_by_concept(case, detector):
    """A concept in two of twelve documents has no interval, in four the words "few documents"."""
    samples = case.data.test.samples
    holding = sorted({s.document for s in samples if "food" in s.positive})
    for kept, said in ((2, "no interval: carried by 2 of 3 documents needed"), (4, "few documents")):
        gone = set(holding[kept:])
        some = tuple(s for s in samples if s.document not in gone or "food" not in s.positive)
        found = detector.evaluate(replace(case.data.test, samples=some), scores=case.table)
        one = found.concept["f1"].sel(method="SuperActivators", concept="food")
        assert (int(one.documents), one.caution) == (kept, said)
        assert np.isfinite(one.low) == (kept >= 3)
        assert found.weighted["f1"].sel(method="SuperActivators").caution == ""


def test_results_are_json(case, detector, evaluation):
    localisation = detector.evaluate_tokens(case.data.test, scores=case.table)
    curve = detector.sweep(case.data.test, scores=case.table)
    for found in (evaluation, localisation, curve):
        text = json.dumps(found.to_dict(), allow_nan=False)
        assert json.loads(text)
        assert "\n" not in repr(found)
    assert evaluation.to_dict()["ground"] == {
        "split": "test",
        "data_hash": case.data.hash,
        "n_samples": len(case.data.test),
        "n_documents": len({s.document for s in case.data.test.samples}),
        "resampling": {"draws": 1000, "seed": 0, "level": 0.95},
    }


def test_sweep_equals_a_loop_and_ends_at_the_floor(case, detector, test_table):
    curve = detector.sweep(case.data.test, scores=case.table)
    place = case.bank.layers.index(curve.layer)
    shared = detector.tail.f1.mean(-1).max(1)
    assert place == int(np.argmax(shared))
    labels = test_table.tokens.sample_labels
    bounds = test_table.tokens.bounds
    for d, tau in enumerate(detector.tail.thresholds[place]):
        fired = np.stack([(test_table.scores[a:b, place] >= tau).any(0) for a, b in pairwise(bounds)])
        each = [f1_score(labels[:, c], fired[:, c]) for c in range(3)]
        expected = np.average(each, weights=labels.sum(0))
        assert curve.f1.sel(method="SuperActivators").estimate[d] == pytest.approx(expected)
    floor = [f1_score(labels[:, c], np.ones(len(labels))) for c in range(3)]
    assert curve.always_positive.estimate == pytest.approx(np.average(floor, weights=labels.sum(0)))
    last = curve.f1.sel(method="SuperActivators").estimate[-1]
    assert last == pytest.approx(curve.always_positive.estimate, abs=0.1)
    assert curve.chosen["SuperActivators"].sum() == 3
    assert curve.chosen["RandTok"].sum() == 60
    assert detector.sweep(case.data.test, scores=case.table, layer=9).layer == 9
    assert len(curve.table()) == 12 * len(curve.f1.axes["method"]) + 1


def test_localisation_is_two_stage(case, detector, test_table):
    found = detector.localise(case.data.test, scores=case.table)
    tokens, tail, cuts = test_table.tokens, detector.tail, detector.cuts
    assert (cuts.located >= tail.delta).all()
    for c in range(3):
        tau = tail.thresholds[tail.layer[c], cuts.located[c], c]
        for n in range(test_table.tokens.n_samples):
            part = slice(test_table.tokens.bounds[n], test_table.tokens.bounds[n + 1])
            scores = test_table.scores[part, tail.layer[c], c].astype(np.float64)
            detected = scores.max() >= tail.chosen_threshold[c]
            np.testing.assert_array_equal(found.mask[part, c], detected & (scores >= tau))
            assert found.detected[n, c] == detected
    assert set(found.of("food")) == {
        (tokens.samples[tokens.sample_of[r]].id, *map(int, tokens.offsets[r]))
        for r in np.flatnonzero(found.mask[:, 1])
    }


def test_token_cuts_maximise_calibration_token_f1(case, detector):
    cal = case.table.split("cal")
    tail = detector.tail
    for c in range(3):
        scores = cal.scores[:, tail.layer[c], c].astype(np.float64)
        bounds = cal.tokens.bounds
        best = np.array([scores[a:b].max() for a, b in pairwise(bounds)])
        gate = (best >= tail.chosen_threshold[c])[cal.tokens.sample_of]
        free, gated = [], []
        for d, tau in enumerate(tail.thresholds[tail.layer[c], :, c]):
            free.append(f1_score(cal.tokens.labels[:, c], scores >= tau))
            allowed = d >= tail.delta[c]
            gated.append(f1_score(cal.tokens.labels[:, c], gate & (scores >= tau)) if allowed else -1)
        assert detector.cuts.raw[c] == int(np.argmax(free))
        assert detector.cuts.located[c] == int(np.argmax(gated))
        assert detector.cuts.n_tokens[c] == cal.tokens.labels[:, c].sum()


def test_localisation_metrics_equal_scikit_learn(case, detector, test_table):
    found = detector.localise(case.data.test, scores=case.table)
    metrics = detector.evaluate_tokens(case.data.test, scores=case.table)
    labels = test_table.tokens.labels
    masks = {
        "raw": (found.raw, np.ones_like(found.raw)),
        "SuperActivators": (found.superactivators, found.superactivators),
        "localised": (found.mask, found.detected[test_table.tokens.sample_of]),
        "all-positive": (np.ones_like(found.raw), np.zeros_like(found.raw)),
    }
    assert metrics.methods == tuple(masks)
    for name, (mask, standing) in masks.items():
        f1 = [f1_score(labels[:, c], mask[:, c]) for c in range(3)]
        value = np.where(standing, found.scores, -1e6)
        ap = [average_precision_score(labels[:, c], value[:, c]) for c in range(3)]
        area = [roc_auc_score(labels[:, c], value[:, c]) for c in range(3)]
        weights = labels.sum(0)
        mean = metrics.f1.sel(method=name)
        assert mean.estimate == pytest.approx(np.average(f1, weights=weights))
        assert metrics.weighted["average_precision"][name] == pytest.approx(np.average(ap, weights=weights))
        assert metrics.weighted["auroc"][name] == pytest.approx(np.average(area, weights=weights))
        if name == "all-positive":
            assert np.isnan(mean.low)
        else:
            assert mean.low <= mean.estimate <= mean.high
    assert metrics.difference.axes["method"] == ("SuperActivators", "localised", "all-positive")
    assert metrics.difference.sel(method="all-positive").high < 0


def test_choices_name_layer_unit_and_candidates(case, detector):
    one = detector.choice("food")
    assert one.layer == detector.layer["food"]
    assert (one.unit, one.candidates) == ("food", 36)
    assert "each the best of 36" in repr(detector)
    assert "each the best of 36 (layer, delta, unit)" in str(detector)
    table = detector.table()
    assert list(table[table["measure"] == "delta"]["concept"]) == list(case.bank.concepts)
    assert dict(zip(table["concept"], table["layer"], strict=True)) == detector.layer
    assert detector.data_hash == case.data.hash
