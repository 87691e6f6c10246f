"""How the tail forms: every measure against a slow oracle, laws, and messages."""

import json
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jaxtyping import config
from scipy import stats
from sklearn.metrics import precision_score, roc_auc_score

from sa_plugin.concepts import ConceptBank
from sa_plugin.data import Sample
from sa_plugin.passes import TokenTable
from sa_plugin.scores import ScoreTable
from sa_plugin.stages import trace_block
from sa_plugin.statistics import FewTokensWarning, Resampling, l_skewness, resample_documents
from sa_plugin.tracing import ScoreGroup, TraceOptions, UndefinedMeasureWarning, joint_edges, overlap, trace

NAMES, LAYERS, DELTA = ("a", "b", "c"), (2, 5), 0.1
FEW = {"resampling": Resampling(60), "options": TraceOptions(quantile_draws=20)}


@pytest.fixture
def as_shipped():
    """Users run without the shape checks of the tests: what they see are the library's errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def score_table(n=80, documents=15, splits=("cal", "test"), seed=0, units=NAMES, shift=2.0):
    """Samples of 5 to 29 tokens; in-concept tokens get a gamma tail that grows with the layer."""
    rng = np.random.default_rng(seed)
    positive = rng.random((n, len(NAMES))) < [0.3, 0.5, 0.7]
    lengths = rng.integers(5, 30, size=n)
    sample_of = np.repeat(np.arange(n), lengths)
    split_of = tuple(splits[i % len(splits)] for i in range(n))
    samples = tuple(
        Sample(
            f"s{i}",
            "x" * 60,
            f"{split_of[i]}{i % documents}",
            (),
            frozenset(name for name, y in zip(NAMES, positive[i], strict=True) if y),
        )
        for i in range(n)
    )
    labels = (rng.random((len(sample_of), len(NAMES))) < 0.3) & positive[sample_of]
    scores = rng.standard_normal((len(sample_of), len(LAYERS), len(units)))
    tail = rng.gamma(1, shift, size=(len(sample_of), len(LAYERS), len(NAMES)))
    scores[..., : len(NAMES)] += labels[:, None] * tail * np.array([0.3, 1])[:, None]
    position = np.concatenate([np.arange(k) for k in lengths])
    offsets = np.stack([position, position + 1], axis=1)
    tokens = TokenTable(samples, split_of, NAMES, sample_of, position, offsets, labels, {})
    vectors = {(u, layer): torch.ones(4) for u in units for layer in LAYERS}
    return ScoreTable(tokens, ConceptBank.from_vectors(vectors), scores.astype(np.float32))


@pytest.fixture(scope="module")
def table():
    return score_table()


@pytest.fixture(scope="module")
def traced(table):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewTokensWarning)
        return trace(scores=table, delta=DELTA, **FEW)


def groups(table, split, layer, k, out="negative"):
    """Scores of in- and out-of-concept tokens, and each sample's scores, by plain loops."""
    part = table.split(split)
    inside, outside, samples = [], [], []
    for n, sample in enumerate(part.tokens.samples):
        rows = np.flatnonzero(part.tokens.sample_of == n)
        values = part.scores[rows, layer, k].astype(np.float64)
        labelled = part.tokens.labels[rows, k]
        negative = NAMES[k] not in sample.positive
        inside += list(values[labelled])
        outside += list(values if out == "negative" and negative else [])
        outside += list(values[~labelled] if out == "all" else [])
        samples.append((values.max(), negative))
    return np.array(inside), np.array(outside), samples


def slow_overlap(a, b, bins=50):
    edges = np.linspace(min(*a, *b), max(*a, *b), bins + 1)
    total = 0.0
    for low, high, last in zip(edges, edges[1:], [False] * (bins - 1) + [True], strict=False):
        shares = [np.mean([low <= x < high or (last and x == high) for x in g]) for g in (a, b)]
        total += min(shares)
    return total


@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("layer", range(2))
def test_measures_are_their_definitions(table, traced, layer, k):
    inside, outside, samples = groups(table, "test", layer, k)
    cal_in, cal_out, cal_samples = groups(table, "cal", layer, k)
    tau, q = np.quantile(cal_in, 1 - DELTA), np.quantile(cal_out, 0.995)
    q_max = np.quantile([top for top, negative in cal_samples if negative], 0.995)
    tops = {sign: np.array([t for t, neg in samples if neg is sign]) for sign in (True, False)}
    part = table.split("test")
    fired = part.scores[:, layer, k] >= tau
    expected = {
        "overlap": slow_overlap(inside, outside),
        "auroc": roc_auc_score([1] * len(inside) + [0] * len(outside), [*inside, *outside]),
        "in_mass_at_fpr": np.mean(inside > q),
        "realised_fpr": np.mean(outside > q),
        "coverage": np.mean(tops[False] > q),
        "negative_coverage": np.mean(tops[True] > q),
        "coverage_at_maxima": np.mean(tops[False] > q_max),
        "negative_coverage_at_maxima": np.mean(tops[True] > q_max),
        "tail_coverage": np.mean(tops[False] >= tau),
        "negative_tail_coverage": np.mean(tops[True] >= tau),
        "precision": precision_score(part.tokens.labels[:, k], fired),
        "tail_gap": (np.quantile(inside, 1 - DELTA) - np.quantile(outside, 0.995)) / outside.std(),
        "cohens_d": (inside.mean() - outside.mean()) / np.sqrt((inside.var() + outside.var()) / 2),
        "mean_in": inside.mean(),
        "sd_in": inside.std(),
        "skewness_in": stats.skew(inside),
        "l_skewness_in": l_skewness(inside),
        "mean_out": outside.mean(),
        "sd_out": outside.std(),
        "skewness_out": stats.skew(outside),
        "l_skewness_out": l_skewness(outside),
    }
    assert set(traced.measures) == set(expected)
    for name, value in expected.items():
        assert traced[name].estimate[layer, k] == pytest.approx(value, abs=1e-9), name
    cuts = {"threshold": tau, "background": q, "background_of_maxima": q_max}
    for name, value in cuts.items():
        assert traced.fixed[name][layer, k] == value


@pytest.mark.filterwarnings("ignore::sa_plugin.statistics.FewTokensWarning")
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
def test_scores_meet_cuts_in_float64_wherever_they_lie(offset):
    """Far from zero a cut lies between two float32 numbers, and would be rounded to one of them."""
    for seed in range(10):
        table = score_table(n=40, seed=seed)
        far = (table.scores + np.float32(offset)).astype(np.float32)
        table = ScoreTable(table.tokens, table.bank, far)
        found = trace(
            scores=table, delta=0.05, resampling=Resampling(2), options=TraceOptions(quantile_draws=2)
        )
        for layer, k in np.ndindex(len(LAYERS), len(NAMES)):
            inside, outside, samples = groups(table, "test", layer, k)
            cal_in, cal_out, _ = groups(table, "cal", layer, k)
            tau, q = np.quantile(cal_in, 0.95), np.quantile(cal_out, 0.995)
            part = table.split("test")
            fired = part.scores[:, layer, k].astype(np.float64) >= tau
            tops = np.array([top for top, negative in samples if not negative])
            expected = {
                "precision": part.tokens.labels[fired, k].mean(),
                "in_mass_at_fpr": (inside > q).mean(),
                "realised_fpr": (outside > q).mean(),
                "coverage": (tops > q).mean(),
                "tail_coverage": (tops >= tau).mean(),
            }
            got = {name: float(found[name].estimate[layer, k]) for name in expected}
            assert got == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_every_column_equals_a_trace_of_copied_samples(table, traced):
    """Weighted means against traces without a document, of tail gaps against copies draw by draw."""
    part, cal = table.split("test"), np.flatnonzero(np.array(table.tokens.split_of) == "cal")
    names = np.array([sample.document for sample in part.tokens.samples])
    resamples = resample_documents(names, Resampling(draws=20, seed=0))
    tests = np.flatnonzero(np.array(table.tokens.split_of) == "test")
    smooth = set(traced.measures) - {"tail_gap", "overlap"}
    for b, (names, of) in enumerate([(smooth, resamples)] * 3 + [(["tail_gap"], resamples.bootstrapped)] * 3):
        copies = np.repeat(tests, of.sample_weights[1 + b])
        copied = table.select(np.concatenate([cal, copies]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = trace(scores=copied, delta=DELTA, resampling=Resampling(1))
        for name in names:
            found = traced.means[name].values[:, 1 + b]
            assert found == pytest.approx(again.means[name].estimate, abs=1e-9), name


def test_sample_order_changes_no_interval(table, traced):
    order = np.random.default_rng(7).permutation(table.tokens.n_samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = trace(scores=table.select(order), delta=DELTA, **FEW)
    for name, drawn in traced.measures.items():
        for end in ("estimate", "low", "high"):
            assert getattr(drawn, end) == pytest.approx(getattr(again[name], end), abs=1e-9), name


def test_intervals_hold_the_estimate_and_narrow_with_data(table, traced):
    for name, drawn in traced.measures.items():
        assert (drawn.low <= drawn.estimate + 1e-9).all(), name
        assert (drawn.estimate <= drawn.high + 1e-9).all(), name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        larger = trace(scores=score_table(n=640, documents=120), delta=DELTA, **FEW)
    widths = [np.mean(t["auroc"].high - t["auroc"].low) for t in (traced, larger)]
    assert widths[1] < 0.6 * widths[0]


def test_a_planted_tail_grows_with_the_layer(traced):
    for name in ("auroc", "in_mass_at_fpr", "tail_gap", "skewness_in"):
        assert (traced[name].estimate[1] > traced[name].estimate[0]).all(), name
    means = traced.means["tail_gap"]
    change = means.sel(layer=5) - means.sel(layer=2)
    assert change.excludes_zero
    # Bootstrap standard error, paired draw by draw.
    draws = means.values[1, 1:] - means.values[0, 1:]
    m = means.sel(layer=5).documents
    assert change.high - change.estimate > 1.9 * draws.std(ddof=1) * np.sqrt(m / (m - 1))
    assert change.high - change.estimate == pytest.approx(change.estimate - change.low)
    each = traced["tail_gap"].sel(layer=5) - traced["tail_gap"].sel(layer=2)
    assert np.array_equal(each.values, traced["tail_gap"].values[1] - traced["tail_gap"].values[0])


def test_no_concept_no_separation():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        null = trace(scores=score_table(n=600, documents=100, shift=1e-9), **FEW)
    assert null["auroc"].estimate == pytest.approx(0.5, abs=0.03)
    assert null["in_mass_at_fpr"].estimate == pytest.approx(0.005, abs=0.01)
    for one in ("coverage", "coverage_at_maxima"):
        assert null[one].estimate == pytest.approx(null[f"negative_{one}"].estimate, abs=0.1)


def test_the_mean_over_concepts_is_weighted_by_positive_samples(traced):
    weights = traced.counts["positive_samples"]
    expected = np.average(traced["auroc"].estimate, axis=1, weights=weights)
    assert traced.means["auroc"].estimate == pytest.approx(expected)


def test_out_of_concept_may_be_all_unlabelled_tokens(table):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = trace(scores=table, options=TraceOptions("all", quantile_draws=20), resampling=Resampling(60))
    inside, outside, _ = groups(table, "test", 1, 0, out="all")
    labels = [1] * len(inside) + [0] * len(outside)
    assert every["auroc"].estimate[1, 0] == pytest.approx(roc_auc_score(labels, [*inside, *outside]))
    _, negatives, _ = groups(table, "test", 1, 0)
    gap = (np.quantile(inside, 0.95) - np.quantile(negatives, 0.995)) / negatives.std()
    assert every["tail_gap"].estimate[1, 0] == pytest.approx(gap)


def test_scaling_a_vector_by_a_power_of_two_changes_only_what_has_its_unit(table, traced):
    louder = ScoreTable(table.tokens, table.bank, table.scores * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = trace(scores=louder, delta=DELTA, **FEW)
    for name, drawn in traced.measures.items():
        factor = 4 if name.startswith(("mean", "sd")) else 1
        assert again[name].estimate == pytest.approx(factor * drawn.estimate, abs=1e-9), name


def test_a_frozen_deviation_divides_the_gap(table, traced):
    frozen = np.full((2, 3), 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = trace(
            scores=table, delta=DELTA, options=TraceOptions(frozen_sd=frozen), resampling=Resampling(60)
        )
    own = traced["tail_gap"].estimate * traced["sd_out"].estimate
    assert found["tail_gap"].estimate == pytest.approx(own / 2)


def test_without_calibration_scores_cuts_are_fixed_on_the_split_itself():
    table = score_table(splits=("test",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = trace(scores=table, delta=DELTA, **FEW)
    assert found.settings.fixed_on == "test"
    inside, _, _ = groups(table, "test", 0, 1)
    assert found.fixed["threshold"][0, 1] == np.quantile(inside, 1 - DELTA)


def test_units_of_an_unsupervised_bank_need_columns(as_shipped):
    table = score_table(units=("0", "1", "2", "3"))
    with pytest.raises(ValueError, match=r"4 units .* are not the concepts .*give columns"):
        trace(scores=table, **FEW)
    own = score_table(units=NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        swapped = trace(scores=own, columns=np.array([[1, 0, 2], [0, 1, 2]]), **FEW)
        plain = trace(scores=own, **FEW)
    assert np.array_equal(swapped["auroc"].estimate[1], plain["auroc"].estimate[1])
    assert (swapped["auroc"].estimate[0, :2] != plain["auroc"].estimate[0, :2]).all()
    with pytest.raises(ValueError, match="units 0 to 2"):
        trace(scores=own, columns=np.array([0, 1, 3]), **FEW)


def test_densities_integrate_to_one_and_match_numpy(table, traced):
    inside, outside, _ = groups(table, "test", 1, 2)
    joint = traced.densities
    standard = [(x - outside.mean()) / outside.std() for x in (inside, outside)]
    edges = joint.edges[1, 2]
    assert (edges[0], edges[-1]) == pytest.approx((min(map(min, standard)), max(map(max, standard))))
    for values, density in zip(standard, (joint.in_concept, joint.out_of_concept), strict=True):
        expected, _ = np.histogram(values, bins=edges, density=True)
        assert np.abs(density[1, 2] - expected).sum() * np.diff(edges)[0] < 0.02
    for densities in (joint, traced.common):
        widths = np.diff(densities.edges, axis=-1)
        for density in (densities.in_concept, densities.out_of_concept):
            assert (density * widths).sum(axis=-1) == pytest.approx(np.ones((2, 3)))


def test_overlap_of_one_law_says_so_within_its_bias():
    rng = np.random.default_rng(0)
    resamples = resample_documents(np.arange(3000) % 50)
    a, b = (ScoreGroup(rng.standard_normal(3000).astype(np.float32), resamples) for _ in range(2))
    columns = overlap(a, b)
    assert columns[0] > 0.9
    kept = resamples.document != 7
    some = (ScoreGroup(one.values[kept], resample_documents(resamples.document[kept])) for one in (a, b))
    assert columns[8] == pytest.approx(overlap(*some)[0], abs=0.01)
    edges = joint_edges(a.values, b.values)
    assert edges[0] == min(a.values.min(), b.values.min())


def test_what_is_undefined_is_nan_and_a_named_warning(table):
    tokens = table.tokens
    labels = tokens.labels.copy()
    labels[:, 1] = False
    bare = TokenTable(
        tokens.samples, tokens.split_of, NAMES, tokens.sample_of, tokens.position, tokens.offsets, labels, {}
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = trace(scores=ScoreTable(bare, table.bank, table.scores), **FEW)
    texts = [str(w.message) for w in caught if w.category is UndefinedMeasureWarning]
    assert len(texts) == 1
    assert re.match("no in concept tokens for 'b' in the split: .*NaN", texts[0])
    for name in ("auroc", "overlap", "in_mass_at_fpr", "tail_gap", "skewness_in", "l_skewness_in"):
        assert np.isnan(found[name].estimate[:, 1]).all()
        assert np.isfinite(found[name].estimate[:, [0, 2]]).all()
        assert np.isfinite(found.means[name].estimate).all()
    assert np.isfinite(found["coverage"].estimate).all()


def test_it_prints_one_line_a_summary_and_rows(traced):
    assert repr(traced) == "TailTrace(3 concepts, layers [2, 5], test split, delta 0.1, 15 documents)"
    (sheet,) = traced.sheets()
    assert "Cuts fixed on cal: delta 0.1, false-positive rate 0.005; realised on test" in sheet.title
    assert "each of 15 documents left out in turn (tail gap: 20 bootstrap draws of them" in sheet.title
    rates = traced["realised_fpr"].estimate
    assert f"{rates.min():.4f} to {rates.max():.4f} by concept and layer" in sheet.title
    assert [row[0] for row in sheet.rows] == ["2", "5"]
    assert sheet.header[0] == "layer"
    assert str(traced) == traced.summary()
    assert "Coverage of positives alone means nothing" in str(traced)


def test_its_long_table_holds_every_number_once(traced):
    frame = traced.table()
    assert list(frame.columns) == ["layer", "concept", "measure", "value", "low", "high", "note"]
    assert len(frame) == 21 * 2 * (3 + 1) + 3 * 2 * 3
    assert not frame.duplicated(["layer", "concept", "measure"]).any()
    wide = frame[frame.measure == "auroc"].pivot(index="layer", columns="concept", values="low")
    assert wide["b"].tolist() == traced["auroc"].low[:, 1].tolist()
    assert wide["(weighted mean)"].tolist() == traced.means["auroc"].low.tolist()
    one = traced["auroc"].sel(layer=5, concept="a")
    assert (one.estimate, one.low) == (traced["auroc"].estimate[1, 0], traced["auroc"].low[1, 0])
    assert traced.settings.n_documents == 15
    # Seven of them hold a token of the concept, and are what its measures rest on.
    assert (one.documents, one.caution) == (7, "few documents")
    content = json.loads(json.dumps(traced.to_dict(), allow_nan=False))
    assert content["measures"]["auroc"]["estimate"] == traced["auroc"].estimate.tolist()
    assert content["settings"]["resampling"] == {"draws": 60, "seed": 0, "level": 0.95}


@pytest.mark.parametrize("concept", [None, "b"])
def test_its_picture_has_a_panel_a_question_and_says_what_it_leaves_open(traced, concept):
    figure = traced.plot(concept)
    assert len(figure.axes) == 6
    assert [ax.get_ylabel() for ax in figure.axes][4] == "gap, sd of negatives"
    shown = traced.means["auroc"] if concept is None else traced["auroc"].sel(concept=concept)
    assert figure.axes[0].get_lines()[0].get_ydata().tolist() == shown.estimate.tolist()
    assert "conditional on vectors and cuts" in figure.get_supxlabel()
    assert (concept or "mean of 3 concepts") in figure.get_supxlabel()
    with pytest.raises(ValueError, match="'bb' is not among concept: a, b, c: did you mean 'b'"):
        traced.plot("bb")


def test_the_record_keeps_the_results_schema(traced):
    from sa_plugin.report import Trace, clean, problems

    block = clean(trace_block(traced, traced.fixed["threshold"]))
    assert problems(block, Trace, "trace") == []
    assert block["mean"]["auroc"] == pytest.approx(traced.means["auroc"].estimate.tolist())
    assert [block[key] for key in ("delta", "draws", "fixed_on")] == [DELTA, 20, "cal"]
    for name in ("realised_fpr", "coverage_at_maxima", "negative_coverage_at_maxima"):
        assert block["concepts"]["c"][name] == traced[name].estimate[:, 2].tolist()
    threshold = block["distributions"]["concepts"]["b"]["threshold"][1]
    mean, sd = (traced[name].estimate[1, 1] for name in ("mean_out", "sd_out"))
    assert threshold == pytest.approx((traced.fixed["threshold"][1, 1] - mean) / sd)


def test_bad_arguments_say_what_was_expected(table, traced, as_shipped):
    with pytest.raises(ValueError, match=r"give scores=score\(host, data, bank\), or host"):
        trace()
    with pytest.raises(ValueError, match="no sample of split 'train' was scored"):
        trace(scores=table, split="train")
    with pytest.raises(ValueError, match="out is the text 'some', not 'negative' or 'all'"):
        TraceOptions("some")
    with pytest.raises(ValueError, match=r"delta is 2, not a number from 0 to 1"):
        trace(scores=table, delta=2)
    with pytest.raises(ValueError, match=r"frozen_sd \(3, 1\) must be \[layer, concept\] \(2, 3\)"):
        trace(scores=table, options=TraceOptions(frozen_sd=np.ones((3, 1))))
    with pytest.raises(KeyError, match="'aurok' is no measure of a trace: did you mean 'auroc'"):
        traced["aurok"]
    with pytest.raises(ValueError, match="3 is not among layer: 2, 5"):
        traced["auroc"].sel(layer=3)
    with pytest.raises(ValueError, match="'aa' is not among concept: a, b, c: did you mean 'a'"):
        traced["auroc"].sel(concept="aa")
    bad = table.scores.copy()
    bad[-1, 1, 0] = np.nan
    with pytest.raises(ValueError, match="scores at layer 5 hold 1 NaN and 0 Inf"):
        trace(scores=ScoreTable(table.tokens, table.bank, bad), **FEW)


def test_without_scores_the_host_is_asked_once_for_both_splits(table, monkeypatch, as_shipped):
    asked = []

    def score(host, data, bank, **options):
        asked.append((host, data, bank, options["splits"]))
        return table

    monkeypatch.setattr("sa_plugin.tracing.tail_trace.score", score)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = trace.__wrapped__(SimpleNamespace(progress=False), "data", "bank", **FEW)
        again = trace(scores=table, **FEW)
    assert [call[1:] for call in asked] == [("data", "bank", ["cal", "test"])]
    assert np.array_equal(found["tail_gap"].low, again["tail_gap"].low)


def test_one_document_is_refused():
    table = score_table(documents=1)
    with pytest.raises(ValueError, match=r"come from 1 document: an interval over documents needs"):
        trace(scores=table, **FEW)
