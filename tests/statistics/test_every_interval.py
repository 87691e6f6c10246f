"""Laws of every result's intervals: its public function without each document, by a plain loop."""

from dataclasses import replace
from functools import cache

import numpy as np
import planted
import pytest
from ablation_cases import standard
from attribution_cases import BOTH
from detection_cases import make_case
from ideal_host import IdealHost, ideal_bank, ideal_data
from ideal_model.dynamics import IdealModel
from interval_oracle import numbers_in, slow_interval

from sa_plugin.attribution import Trial, contrasts_of, rank_share, sample_scores
from sa_plugin.concepts import collect, fit
from sa_plugin.data import Split
from sa_plugin.detection import calibrate
from sa_plugin.heads import WeightTest, ablate_heads, head_alignment, head_ledger, tail_waterfall
from sa_plugin.show import Result
from sa_plugin.stages import delta_peaks, density
from sa_plugin.statistics import Resampling
from sa_plugin.theory import Conditions, check_theory
from sa_plugin.tracing import trace

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
FEW = Resampling(20)


def of_five(samples):
    """Those of the first five documents: a pass a document is what the law costs."""
    first = sorted({one.document for one in samples})[:5]
    return tuple(one for one in samples if one.document in first)


@cache
def scored():
    """A detector with the scores of its test samples, of five documents."""
    case = make_case(n=90, documents=24)
    return case, calibrate(None, case.data, case.bank, scores=case.table, deltas=(0.05, 0.1, 0.3, 0.5))


def on_scores(ask):
    def asked(samples):
        case, detector = scored()
        tokens, names = case.table.tokens, {sample.id for sample in samples}
        cal = np.array(tokens.split_of) == "cal"
        rows = np.flatnonzero(cal | [s.id in names for s in tokens.samples])
        split = Split("test", tuple(samples), case.data.concepts, case.data.hash)
        return ask(detector, split, case.table.select(rows))

    return lambda: scored()[0].data.test.samples, asked


def on_heads(ask):
    def asked(samples):
        case = standard()
        return ask(case.fake, case.data, case.detector, samples)

    return lambda: of_five(standard().data.test.samples), asked


def without(data, samples):
    """The data with these samples alone as their test split."""
    kept = [
        (s, of) for s, of in zip(data.samples, data.split_of, strict=True) if of != "test" or s in samples
    ]
    return replace(data, samples=tuple(s for s, _ in kept), split_of=tuple(of for _, of in kept))


@cache
def aligned():
    """A planted model, its samples of 12 documents, and what was collected of them."""
    one = planted.world(0, n_samples=40)
    documents = [f"d{k % 12}" for k in range(40)]
    samples = [replace(s, document=d) for s, d in zip(one.data.samples, documents, strict=True)]
    rule = dict(zip(dict.fromkeys(documents), ["train"] * 5 + ["cal"] * 2 + ["test"] * 5, strict=True))
    data = replace(one.data, samples=tuple(samples), split_of=tuple(rule[d] for d in documents))
    statistics = collect(one.host, data, need=("means", "gram", "rows"))
    return one.host, data, statistics, fit(one.host, data, "prototype", statistics=statistics, controls=False)


def align(samples):
    host, data, statistics, bank = aligned()
    fewer = without(data, samples)
    same = replace(statistics, data_hash=fewer.hash)
    bank = replace(bank, origin=replace(bank.origin, data_hash=fewer.hash))
    test = WeightTest(("across",), draws=100)
    found = head_alignment(host, fewer, bank, split="test", statistics=same, test=test, resampling=FEW).data
    # Slopes are for one deviation of the split's activations at both ends, which is held fixed.
    raw = found.slope.like(found.slope.values / found.deviation[:, None, :, None] ** 2)
    return {"slope": raw, "lift": found.lift, "share": found.write_share}


def theory(samples):
    host = IdealHost(IdealModel((0.8, 0.3), (0.3, 0.2)), 3, noise=0.1)
    how = Conditions(n_random=2)
    return check_theory(host, ideal_data(), ideal_bank(3), split=samples, how=how, resampling=FEW)


@cache
def trials():
    """Two objectives, two concepts, seven documents."""
    found = []
    for k in range(30):
        rng = np.random.default_rng(k)
        a = rng.normal(size=rng.integers(6, 20))
        y = rng.random(len(a)) < 0.3
        y[:2] = [True, False]
        for name in BOTH:
            arm = a + 2 * y if name == BOTH[-1] else a
            scores, area = sample_scores(arm, y, 0.3), {"deletion/mean_alignment": float(arm.mean())}
            of = ("c" if k % 2 else "d", str(k), f"d{k % 7}")
            found.append(Trial(*of, "rise", name, scores, rank_share(arm), y, area, 1 + k % 2))
    return found


def contrasts(some):
    return {f"{one.concept} {one.stratum} {one.metric}": one for one in contrasts_of(some, BOTH, FEW)}


CASES = {
    "Evaluation": on_scores(lambda d, split, t: d.evaluate(split, scores=t.split("test"), resampling=FEW)),
    "SparsityCurve": on_scores(lambda d, split, t: d.sweep(split, scores=t.split("test"), resampling=FEW)),
    "LocalisationMetrics": on_scores(
        lambda d, split, t: d.evaluate_tokens(split, scores=t.split("test"), resampling=FEW)
    ),
    "DeltaPeaks": on_scores(lambda d, split, t: delta_peaks(d, t.split("test"), FEW)),
    "density": on_scores(lambda d, split, t: density(d, t.split("test"), FEW)),
    "TailTrace": on_scores(lambda d, split, t: trace(scores=t, resampling=FEW)),
    "HeadLedger": on_heads(lambda h, data, d, s: head_ledger(h, data, d, split=s, resampling=FEW)),
    "Waterfall": on_heads(lambda h, data, d, s: tail_waterfall(h, data, d, split=s, resampling=FEW)),
    "Ablation": on_heads(
        lambda h, data, d, s: ablate_heads(h, without(data, s), d, [(0, 0)], resampling=FEW)
    ),
    "HeadAlignment": (lambda: aligned()[1].test.samples, align),
    "TheoryReport": (lambda: ideal_data().samples[:5], theory),
    "Comparison": (trials, contrasts),
}


# What a left-out document does not move: these hold fixed what they fixed on the whole split.
FIXED = {
    "overlap": "edges of its bins",
    "control": "which tokens a permuted vector selects",
    "excess": "the same",
    "RandTok": "which tokens were drawn",
}


def fixed(path, drawn):
    """Cells whose columns another call would make of other tokens, or by bootstrap draws."""
    held = np.broadcast_to(drawn.kind, drawn.values.shape[:-1]) == "quantile"
    if any(word in path for word in FIXED):
        held = held | True
    for at, labels in enumerate(drawn.axes.values()):
        named = np.array([str(label) in FIXED for label in labels])
        held = held | np.expand_dims(named, tuple(k for k in range(held.ndim) if k != at))
    return held


@pytest.fixture(scope="module", params=CASES)
def case(request):
    samples, ask = CASES[request.param]
    samples = samples()
    return samples, ask, ask(samples)


def test_every_column_is_the_result_without_a_document(case):
    samples, ask, whole = case
    documents, checked = sorted({one.document for one in samples}), 0
    assert 5 <= len(documents) <= 8
    for d, left in enumerate(documents):
        part = numbers_in(ask([one for one in samples if one.document != left]))
        for path, drawn in numbers_in(whole).items():
            free = ~fixed(path, drawn)
            expected = np.asarray(part[path].estimate)[free]
            np.testing.assert_allclose(
                drawn.values[..., 1 + d][free],
                expected,
                rtol=1e-5,
                atol=1e-6,
                err_msg=f"{path} without {left}",
            )
            checked += free.sum()
    assert checked


def test_every_interval_is_the_formula_holds_its_estimate_and_is_refused_where_few_carry_it(case):
    """At most 40 cells of every number; what carries a cell is counted in `tests` of each result."""
    for path, drawn in numbers_in(case[2]).items():
        low, high, notes, t = (
            np.broadcast_to(x, drawn.values.shape[:-1])
            for x in (drawn.low, drawn.high, drawn.notes, drawn.estimate)
        )
        kind = np.broadcast_to(drawn.kind, t.shape)
        carried = np.broadcast_to(drawn.carried, (*t.shape, drawn.units))
        known = np.isfinite(low)
        always = [
            drawn.sel(method=k)
            for k in ("always-positive", "all-positive")
            if k in drawn.axes.get("method", ())
        ]
        if "difference" not in path:
            assert all(np.isnan(one.low).all() for one in always), path
        assert (np.isfinite(high) == known).all(), path
        assert (low[known] <= t[known]).all(), path
        assert (t[known] <= high[known]).all(), path
        for at in list(np.ndindex(t.shape))[:40]:
            m = int((carried[at] > 0).sum())
            expected = slow_interval(drawn.values[at].tolist(), carried[at].tolist(), str(kind[at]))
            assert (low[at], high[at]) == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True), path
            if kind[at] == "none" or m < 3:
                assert not known[at]
                assert notes[at].startswith("no interval: "), path
            else:
                assert notes[at] == ("few documents" if m < 10 else "")


def test_two_documents_have_no_interval_and_the_text_says_why(case):
    samples, ask, _ = case
    documents = sorted({one.document for one in samples})[:2]
    found = ask([one for one in samples if one.document in documents])
    for path, drawn in numbers_in(found).items():
        assert np.isnan(drawn.low).all(), path
        assert np.isnan(drawn.high).all(), path
    if isinstance(found, Result):
        assert "fewer than 3 documents carry them" in str(found)


def test_few_documents_stand_in_every_form(case):
    """Print, notebook, long form and picture."""
    result = case[2]
    if not isinstance(result, Result):
        pytest.skip("no result of its own")
    words = "Few documents, 3 to 9, carry "
    assert words in str(result)
    assert words in result._repr_html_()
    assert (result.table()["note"] == "few documents").any()
    shown = result.plot()
    if any("%" in text for text in _texts(shown)):
        assert any(words in text for text in _texts(shown))


def _texts(figure):
    return [figure._supxlabel.get_text()] if figure._supxlabel is not None else []
