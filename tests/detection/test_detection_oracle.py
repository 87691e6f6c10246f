"""Calibration and evaluation against a slow implementation in plain Python loops."""

import math
import warnings

import numpy as np
import pytest
from detection_cases import make_case
from scipy import special, stats
from sklearn.metrics import roc_auc_score

from sa_plugin.detection import GRIDS, calibrate

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
DELTAS = (0.02, 0.1, 0.3, 0.5, 0.8, 0.95)


def quantile(values, q):
    if not values:
        return math.inf
    values = sorted(float(v) for v in values)
    at = (len(values) - 1) * q
    below = math.floor(at)
    above = min(below + 1, len(values) - 1)
    t = at - below
    step = values[above] - values[below]
    return values[above] - step * (1 - t) if t >= 0.5 else values[below] + step * t


def f1(fired, labels):
    tp = sum(a and b for a, b in zip(fired, labels, strict=True))
    wrong = sum(a != b for a, b in zip(fired, labels, strict=True))
    return 2 * tp / (2 * tp + wrong) if tp + wrong else 0.0


def statistic(method, table, n, layer, unit, numbers=()):
    a, b = table.tokens.bounds[n], table.tokens.bounds[n + 1]
    own = [float(v) for v in table.scores[a:b, layer, unit]]
    if method in ("SuperActivators", "MaxTok"):
        return max(own)
    if method == "MeanTok":
        return float(np.float32(math.fsum(own) / len(own)))
    if method == "LastTok":
        return own[-1]
    if method == "Top10%":
        k = math.ceil(len(own) / 10)
        return float(np.float32(math.fsum(sorted(own)[-k:]) / k))
    if method == "top-k mean":
        k = min(int(numbers[0]), len(own))
        return float(np.float32(math.fsum(sorted(own)[-k:]) / k))
    if method == "k in a window":
        width = min(int(numbers[1]), len(own))
        k = min(int(numbers[0]), width)
        return max(sorted(own[t : t + width])[-k] for t in range(len(own) - width + 1))
    if method == "length-only":
        return float(len(own))
    if method == "pooled":
        return float(table.pooled[n, layer, unit])
    assert method == "MaxTok permuted"
    return float(table.permuted_max[n, layer, unit])


def search(method, table, c, units):
    """(layer, unit, delta, threshold, F1, parameters): strictly better wins, so ties go to the first."""
    cal = [n for n, of in enumerate(table.tokens.split_of) if of == "cal"]
    labels = [bool(table.tokens.sample_labels[n, c]) for n in cal]
    by_layer = []
    for layer in range(1 if method == "length-only" else table.scores.shape[1]):
        best = None
        for numbers in GRIDS[method].candidates if method in GRIDS else ((),):
            by_unit = []
            for unit in units:
                values = [statistic(method, table, n, layer, unit, numbers) for n in cal]
                if method == "SuperActivators":
                    reference = [
                        table.scores[row, layer, unit]
                        for n in cal
                        for row in range(table.tokens.bounds[n], table.tokens.bounds[n + 1])
                        if table.tokens.labels[row, c]
                    ]
                else:
                    reference = [v for v, y in zip(values, labels, strict=True) if y]
                of_unit = None
                for delta in DELTAS:
                    threshold = quantile(reference, 1 - delta)
                    found = f1([v >= threshold for v in values], labels)
                    if of_unit is None or found > of_unit[4]:
                        of_unit = (layer, unit, delta, threshold, found, numbers)
                by_unit.append(of_unit)
            found = max(by_unit, key=lambda b: b[4])
            best = found if best is None or found[4] > best[4] else best
        by_layer.append(best)
    return max(by_layer, key=lambda b: b[4])


METHODS = (
    "SuperActivators",
    "MaxTok",
    "MeanTok",
    "LastTok",
    "Top10%",
    "pooled",
    "top-k mean",
    "k in a window",
)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("units", [None, 5])
def test_every_method_equals_the_slow_oracle(units, rounded):
    case = make_case(seed=3, n=80, units=units, rounded=rounded)
    detector = calibrate(None, case.data, case.bank, scores=case.table, deltas=DELTAS)
    evaluation = detector.evaluate(case.data.test, scores=case.table)
    table = case.table
    test = [n for n, of in enumerate(table.tokens.split_of) if of == "test"]
    for method in (*METHODS, "length-only", *(["MaxTok permuted"] if units is None else [])):
        fast = detector.tail if method == "SuperActivators" else detector.baselines[method][0]
        f1s, weights = [], []
        for c in range(len(case.bank.concepts)):
            own = [c] if units is None else range(units)
            allowed = [0] if method == "length-only" else own
            layer, unit, delta, threshold, cal_f1, numbers = search(method, table, c, allowed)
            assert fast.layer[c] == layer
            assert fast.chosen_unit[c] == unit
            assert fast.chosen_delta[c] == delta
            assert fast.chosen_threshold[c] == threshold
            assert fast.chosen_f1[c] == cal_f1
            if numbers:
                assert tuple(fast.parameters_at(fast.layer)[c]) == numbers
            values = [statistic(method, table, n, layer, unit, numbers) for n in test]
            labels = [bool(table.tokens.sample_labels[n, c]) for n in test]
            f1s.append(f1([v >= threshold for v in values], labels))
            weights.append(sum(labels))
            result = evaluation.of(method).concept
            assert result["f1"].estimate[c] == pytest.approx(f1s[-1])
            assert result["auroc"].estimate[c] == pytest.approx(roc_auc_score(labels, values))
        weighted = sum(f * w for f, w in zip(f1s, weights, strict=True)) / sum(weights)
        assert evaluation.of(method).weighted["f1"].estimate == pytest.approx(weighted)
        assert evaluation.of(method).macro["f1"].estimate == pytest.approx(np.mean(f1s))
        layers = 1 if method == "length-only" else table.scores.shape[1]
        candidates = len(GRIDS[method].candidates) if method in GRIDS else 1
        expected = layers * len(DELTAS) * len(list(allowed)) * candidates
        assert evaluation.of(method).chosen.candidates == expected


def test_every_number_equals_leaving_each_document_out_by_hand():
    case = make_case(seed=1, n=120)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = calibrate(None, case.data, case.bank, scores=case.table)
    evaluation = detector.evaluate(case.data.test, scores=case.table)
    from sa_plugin.detection import outcomes

    test = detector.scores_of(case.data.test, case.table)
    labels = test.tokens.sample_labels
    names = np.array([s.document for s in test.tokens.samples])
    documents = sorted(set(names))
    said = outcomes(detector, test)
    columns = {}
    for method in ("SuperActivators", "MeanTok", "RandTok", "always-positive"):
        columns[method] = []
        for left in (None, *documents):
            rows = names != left
            per_draw = []
            for one in said[method]:
                scores = [f1(one.fired[rows, c].tolist(), labels[rows, c].tolist()) for c in range(3)]
                per_draw.append(np.average(scores, weights=labels[rows].sum(0)))
            columns[method].append(np.mean(per_draw))
        found = evaluation.of(method).weighted["f1"]
        assert found.values == pytest.approx(columns[method])
        t, *without = columns[method]
        # Positive samples of all concepts carry a weighted mean.
        rows = np.array([labels[names == d].sum() for d in documents])
        m, s = len(documents), np.sqrt(np.sum((np.array(without) - t) ** 2) * (1 - 1 / len(documents)))
        g = rows / (rows.sum() - rows)
        nu = g.sum() ** 2 / ((g**2).sum() + (g**2).sum() ** 2 - (g**4).sum())
        reach = stats.t.ppf(0.975, min(nu, m - 1))
        if method == "always-positive":
            assert np.isnan([found.low, found.high]).all()
        else:
            ends = special.expit(special.logit(t) + np.array([-1, 1]) * reach * s / (t * (1 - t)))
            assert (found.low, found.high) == pytest.approx(tuple(ends))
        if method != "SuperActivators":
            paired = np.array(columns[method]) - np.array(columns["SuperActivators"])
            by = evaluation.of(method).difference["f1"]
            s = np.sqrt(np.sum((paired[1:] - paired[0]) ** 2) * (1 - 1 / m))
            assert (by.low, by.high) == pytest.approx((paired[0] - reach * s, paired[0] + reach * s))


@pytest.mark.parametrize("documents", [5, 60])
def test_mean_auroc_is_the_mean_over_draws(documents):
    from sa_plugin.detection import mean_auroc
    from sa_plugin.statistics import auroc, resample_documents, resampled_auroc

    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=(4, 60)), 1)
    labels = rng.random(60) < 0.3
    resamples = resample_documents(np.arange(60) % documents)
    found = mean_auroc(values, labels, resamples)
    drawn = [resampled_auroc(v, labels, resamples) for v in values]
    np.testing.assert_allclose(found, np.mean(drawn, axis=0))
    assert found[0] == pytest.approx(np.mean([auroc(v, labels) for v in values]))
    assert np.isnan(mean_auroc(values, np.zeros(60, dtype=bool), resamples)).all()
