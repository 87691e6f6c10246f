"""What a theory report says: rows, words, verdict rule, refusals, pictures."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from ideal_host import WIDTH, IdealHost, ideal_bank, ideal_data
from ideal_model.dynamics import IdealModel
from scipy import stats
from theory_cases import measured

from sa_plugin.concepts import ConceptBank
from sa_plugin.data import ConceptData, Sample
from sa_plugin.scores import score
from sa_plugin.statistics import Drawn, Resampling
from sa_plugin.theory import (
    TITLES,
    Assumption,
    Conditions,
    Measures,
    amplification_of,
    check_theory,
    judge,
    span,
    told,
    too_small,
)

DATA, LAYERS = ideal_data(n_words=40), 5
HOST = IdealHost(IdealModel((0.8, 0.3), (0.3, 0.2)), LAYERS)
BANK = ideal_bank(LAYERS)


def run(**options):
    return check_theory(HOST, DATA, BANK, **{"resampling": Resampling(50)} | options)


@pytest.fixture(scope="module")
def report():
    return run()


def test_rows_hold_every_number_once(report):
    table = report.table()
    labels = ["concept", "direction", "theorem", "null", "of", "layer"]
    assert list(table) == [*labels, "measure", "value", "low", "high", "note"]
    assert not table.duplicated(["concept", "direction", "of", "layer", "measure"]).any()
    measured = table[table["of"] == "measured"]
    assert measured["layer"].notna().sum() == sum(map(len, report.quantities.values())) * LAYERS
    mine = table.query("direction == 'fixed' and measure == 'gap_slope' and layer == 2").set_index("of")
    q = report.quantity("gap_slope", "c")
    assert mine.loc["measured", "value"] == q.measured.estimate[2]
    assert mine.loc["measured", "low"] == q.measured.low[2]
    assert mine.loc["predicted", "value"] == q.predicted[2]
    minus = mine.loc["minus random"]
    assert minus["value"] == pytest.approx(q.measured.estimate[2] - q.controls["random"][2])
    assert minus["low"] <= minus["value"] <= minus["high"]
    assert len(report.head_rows()) == LAYERS * 2 * len(report.directions.columns)
    assert len(report.heads_table()) == 4 * len(report.head_rows())
    unsaid = [v for v in report.verdicts if v.answer == "cannot be said"]
    whole = table[table["layer"].isna()]
    assert whole.query("measure == 'detectable'")["value"].tolist() == [v.detectable for v in unsaid]
    growth = whole.query("measure == 'log_growth' and direction == 'fixed'").set_index("of")["value"]
    ratio = report.quantity("gap_deviation_ratio", "c")
    for of, values in (("measured", ratio.measured.estimate), ("predicted", ratio.predicted)):
        assert growth[of] == pytest.approx(np.log(values).mean())


def test_the_dictionary_is_json(report):
    found = report.to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert len(found["rows"]) == len(report.table())
    assert [v["answer"] for v in found["verdicts"]] == [v.answer for v in report.verdicts]
    assert len(found["heads"]) == len(report.head_rows())


def test_words(report):
    assert "\n" not in repr(report)
    assert repr(report).startswith("TheoryReport(ideal, 2 directions, 5 layers, 12 samples: ")
    text = " ".join(str(report).split())
    assert "reconstruction from the verbal claims of arXiv 2512.05038" in text
    for title in ("Theorem 1", "Corollary 1", "Corollary 2", "Theorem 2"):
        assert title in text
    for result in (*report.verdicts, *report.regimes, *report.assumptions, report.quantity("spread", "c")):
        assert "\n" not in repr(result)
    for verdict in report.verdicts:
        alike = [v for v in report.verdicts if (v.claim, v.because) == (verdict.claim, verdict.because)]
        who = ", ".join(f"{v.concept} {v.direction}" for v in alike)
        assert f"{who} because {verdict.because}" in text
    sheet = report.sheet("T1", "c")
    assert [row[0] for row in sheet.rows] == [str(layer) for layer in report.layers]
    assert {"gap_slope", "predicted", "permuted", "random"} <= set(sheet.header)
    (verdicts, *_) = report.sheets()
    assert [row[3] for row in verdicts.rows] == [report.verdict(*row[:3]).answer for row in verdicts.rows]
    assert len(verdicts.rows) == len(report.verdicts) == 2 * len(TITLES)
    assert report._repr_html_().count("<table") == 1


def test_each_broken_assumption_is_one_sentence():
    causal = Assumption("same keys", "the model is causal", "Only prefixes.")
    on = [("'a' fixed", (0, 1), "mean 0.3"), ("'b' fixed", (4,), "mean 0.5")]
    mlps = [Assumption("no MLP", f"MLPs write along {of}; {m}", "Beware.", at, of, m) for of, at, m in on]
    heads = [Assumption("a head", f"no head reads {of} more", "Beware.", at, of) for of, at, _ in on]
    assert told([causal, *mlps, *heads]) == [
        repr(causal),
        "Assumption broken: no MLP: MLPs write along 'a' fixed (layers 0-1, mean 0.3); "
        "'b' fixed (layers 4, mean 0.5). Beware.",
        "Assumption broken: a head: no head reads 'a' fixed (layers 0-1); 'b' fixed (layers 4) more. Beware.",
    ]
    assert told(mlps[:1]) == [repr(mlps[0])]


def test_refitted_blocks_without_vectors_are_absent(report):
    assert np.isnan(measured(report, "gap_slope", "refitted")[0])
    assert report.absent["c refitted"] == ("blocks 0: the bank has no vector on both of their sides")
    assert 0 not in report.verdict("T1 layer", "c", "refitted").assessed


def test_ranges_of_layers():
    assert span((0, 1, 2, 5, 7, 8)) == "0-2, 5, 7-8"


# The rule of the verdicts


def drawn(slope, grown=0.9, control=1.0, n_controls=9, noise=0.01):
    """Four layers of made-up draws."""
    rng = np.random.default_rng(0)

    def around(value):
        layers = np.broadcast_to(value, 4)
        values = np.concatenate([layers[None], layers + noise * rng.normal(size=(200, 4))])
        return Drawn(values.T, {"layer": (3, 4, 5, 6)}, "quantile", np.ones(50))

    def flat(value):
        axes = {"layer": (3, 4, 5, 6), "control": range(n_controls)}
        return Drawn(np.full((4, n_controls, 201), value), axes, "quantile", np.ones(50))

    own = {
        "gap_slope": around(slope),
        "gap_deviation_ratio": around(slope),
        "gaps_grown": around(grown),
        "heads_gap_deviation_ratio": around(slope),
        "heads_gaps_grown": around(grown),
        "attention_by_sign": around(np.asarray(slope) - 1),
        "top_mass_plus": around(0.1),
        "equalisation": around(0.1),
        "skew": around(0.5),
        "tail_gain": around(0.2),
        "skew_growth": around(0.1),
    }
    each = {name: flat(control if "ratio" in name else control - 1.0) for name in own}
    return Measures(own, {}, {}, each, {})


def answer(claim, made):
    (one,) = (v for v in judge(made, "c", "fixed", (3, 4, 5, 6), causal=False) if v.claim == claim)
    return one


@pytest.mark.parametrize(
    ("made", "expected", "because"),
    [
        (drawn(1.2), "holds", "4 of 4 layers are for it, 0 against, beyond each of 9"),
        (drawn(0.8), "does not hold", "the mean gap_deviation_ratio is 0.8"),
        (drawn(1.2, grown=0.4), "does not hold", "the mean gaps_grown is 0.4"),
        (drawn([1.4, 1.1, 1.1, 0.9]), "cannot be said", "layers disagree: 3 of 4 layers"),
        (drawn([3.0, 0.9, 0.9, 0.9]), "does not hold", "1 of 4 layers are for it, 3 against"),
        (drawn(1.0), "cannot be said", "the mean gap_deviation_ratio is 1.0"),
        (drawn(1.2, control=1.3), "cannot be said", "9 of 9 control directions show it too"),
        (drawn(1.2, n_controls=3), "cannot be said", "there are 3 control directions, fewer than"),
    ],
)
def test_the_rule(made, expected, because):
    verdict = answer("T1 layer", made)
    assert verdict.answer == expected, verdict
    assert because in verdict.because
    assert verdict.assessed == (3, 4, 5, 6)


def near(drawn, value):
    return drawn.like(np.full_like(drawn.values, value))


def test_premises_leave_layers_out():
    assert answer("C2", drawn(1.2)).because.startswith("in no layer do queries give more than 0.5")
    assert answer("T2", drawn(1.2)).answer == "holds"
    made = drawn(1.2)
    close = dataclasses.replace(made, own={**made.own, "top_mass_plus": near(made.own["skew"], 0.8)})
    assert answer("C2", close).answer == "holds"
    assert "no layer has a skewness of sure sign" in answer("T2", close).because


def test_missing_weights_leave_the_heads_unsaid_in_causal_models():
    (one,) = (v for v in judge(drawn(1.2), "c", "fixed", (0, 1, 2, 3), causal=True) if v.claim == "T1 heads")
    assert one.because == (
        "prefix_gap_deviation_ratio needs the heads' weights; could have seen no change without them"
    )
    assert one.detectable == np.inf


def seen_at(made, name, claim):
    """A quantity that is its null but for the change that a verdict says it could have seen."""
    verdict = answer(claim, made)
    assert verdict.measure == name
    raised = made.own[name].like(made.own[name].values + verdict.detectable)
    return verdict, answer(claim, dataclasses.replace(made, own={**made.own, name: raised}))


def test_what_cannot_be_said_says_what_could_have_been_seen():
    verdict, raised = seen_at(drawn(1.0), "gap_deviation_ratio", "T1 layer")
    assert f"could have seen a change of {verdict.detectable:.3g} (80 % of the time)" in verdict.because
    assert not raised.because.startswith("the mean")
    # The mean's own interval: the t of 49 degrees of freedom, not the normal's 2.80.
    mean = drawn(1.0).mean("gap_deviation_ratio", np.ones(4, dtype=bool))
    eta = verdict.detectable / ((mean.high - mean.low) / 2) * stats.t.ppf(0.975, 49)
    assert stats.nct.sf(stats.t.ppf(0.975, 49), 49, eta) == pytest.approx(0.8, abs=1e-6)
    wide = answer("T1 layer", drawn(1.0, noise=0.1))
    assert wide.detectable == pytest.approx(10 * verdict.detectable)
    disagree = answer("T1 layer", drawn([1.4, 1.1, 1.1, 0.9]))
    assert "of gap_deviation_ratio in the median layer" in disagree.because
    assert disagree.detectable == pytest.approx(2 * verdict.detectable, rel=0.2)
    beaten = answer("T1 layer", drawn(1.2, control=1.3))
    assert "theirs is -0.1" in beaten.because
    assert f"which could have seen a change of {beaten.detectable:.3g}" in beaten.because
    few = answer("T1 layer", drawn(1.2, n_controls=3))
    assert "could have seen no change with them" in few.because
    assert few.detectable == answer("C2", drawn(1.2)).detectable == np.inf
    holds = answer("T1 layer", drawn(1.2))
    assert (holds.measure, np.isnan(holds.detectable)) == ("", True)


# Whether the mechanism is large enough at all


def grown(measured, predicted):
    """Four layers whose gaps grow by `measured`, where `predicted` is predicted."""
    made = drawn(measured)
    name = "gap_deviation_ratio"
    return dataclasses.replace(
        made, predicted={name: drawn(predicted, noise=1e-5).own[name]}, controls={"random": drawn(1.05).own}
    )


@pytest.mark.parametrize(
    ("measured", "predicted", "expected"),
    [
        (1.2, 1.001, "too small"),
        (1.2, 0.9, "too small"),
        (1.2, 1.05, "not too small"),
        (1.2, 1.2, "not too small"),
        # A tenth of the logarithm, less the width of both intervals, decides.
        (1.2, 1.2**0.099, "not too small"),
        (1.2, 1.2**0.08, "too small"),
        (1.0, 1.0, "cannot be said"),
        (0.9, 1.0, "cannot be said"),
    ],
)
def test_the_rule_of_size(measured, predicted, expected):
    found = amplification_of(grown(measured, predicted), "c", "fixed")
    assert found.answer == expected, found
    assert found.measured.estimate == pytest.approx(np.log(measured))
    assert found.random == pytest.approx(np.log(1.05))
    assert ("could have seen a change of" in repr(found)) == (expected == "cannot be said")
    assert bool(too_small([found])) == (expected == "too small")


def test_a_mechanism_that_is_too_small_is_the_first_line(report):
    assert {a.answer for a in report.amplifications} == {"not too small"}
    assert "cannot make the tail" not in str(report)
    small = amplification_of(grown(1.2, 1.001), "c", "fixed")
    said = dataclasses.replace(report, amplifications=(small, report.amplifications[1]))
    first = "As assumed, the mechanism cannot make the tail along 1 of 2 vectors: attention along the concept"
    assert " ".join(str(said).split()).startswith(first)
    words = " ".join(str(said).split())
    assert f"at most 1.0010 a block and {1.001**4:.4f} over all blocks, measured is at least 1.1" in words
    assert "(random directions, with the stream's norm: 1.0500 to 1.0500)" in words
    assert said._repr_html_().count(first) == 1
    assert (
        json.loads(json.dumps(said.to_dict(), allow_nan=False))["amplifications"][0]["answer"] == "too small"
    )
    with_none = dataclasses.replace(report, amplifications=())
    assert "cannot make the tail" not in str(with_none)
    assert amplification_of(drawn(1.2), "c", "fixed") is None


# Refusals


def partly():
    """The last four samples lack the concept."""
    made = [Sample(s.id, s.text, s.document) for s in DATA.samples[4:]]
    return ConceptData(("c",), (*DATA.samples[:4], *made), DATA.split_of)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Conditions(which="some"), "which 'some' is unknown"),
        (lambda: Conditions(tail=0.0), r"tail 0.0 must lie in \(0, 0.5\)"),
        (lambda: Conditions(n_random=-1), "n_random is -1"),
        (lambda: run(layers=9), "layer 9 does not exist"),
        (lambda: run(how=Conditions(fixed_at=9)), "the bank has no layer 9"),
        (lambda: run(concepts=["d"]), "concept 'd' is unknown"),
        (lambda: run(concepts=[]), "concepts is empty"),
        (lambda: run(split="train"), "no samples"),
        (lambda: run(split=DATA.samples[:1]), "come from 1 document"),
        (
            lambda: check_theory(HOST, partly(), BANK, split=partly().samples[4:], resampling=Resampling(5)),
            "no sample has 'c': leave the concept out",
        ),
        (
            lambda: check_theory(
                HOST, DATA, ConceptBank.from_vectors({("c", 0): torch.ones(WIDTH)}, hook_point="attn_out")
            ),
            "the bank is read at 'attn_out'",
        ),
    ],
)
def test_refusals_say_what_and_why(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_swapped_arguments_are_named():
    for arguments, scores, text in (
        ((DATA, HOST, BANK), None, "host is a ConceptData, not a Host: attach"),
        ((HOST, BANK, DATA), None, r"data is a ConceptBank, not a ConceptData: .*the order is check_theory"),
        ((HOST, DATA, DATA), None, "source is a ConceptData, not a Detector or a ConceptBank"),
        ((HOST, DATA, BANK), DATA, "scores is a ConceptData, not a ScoreTable"),
    ):
        with pytest.raises(TypeError, match=text):
            check_theory(*arguments, scores=scores)


def test_scores_of_other_samples_are_refused(report):
    table = score(HOST, DATA, BANK, splits=["test"])
    again = run(scores=table)
    np.testing.assert_array_equal(measured(again, "gap_slope"), measured(report, "gap_slope"))
    with pytest.raises(ValueError, match="7 of 12 samples were not scored, 's5' first"):
        run(scores=table.select(np.arange(5)))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda r: r.quantity("gap_slop", "c"), "did you mean 'gap_slope'"),
        (lambda r: r.quantity("gap_slope", "d"), "concept 'd' is unknown"),
        (lambda r: r.quantity("gap_slope", "c", "tracked"), "direction 'tracked' is unknown"),
        (lambda r: r.verdict("T3", "c"), "claim 'T3' is unknown"),
        (lambda r: r.sheet("T3", "c"), "theorem 'T3' is unknown"),
    ],
)
def test_names_that_are_not_there(report, make, text):
    with pytest.raises(ValueError, match=text):
        make(report)


def test_pictures(report):
    """A panel a theorem; each line is a row of the table."""
    panels = report.plot().axes
    assert [ax.get_title("left").split(":")[0] for ax in panels] == ["T1", "C1", "C2", "T2"]
    (ax,) = report.plot_quantity("tail_gain", "c").axes
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    q = report.quantity("tail_gain", "c")
    np.testing.assert_array_equal(drawn["measured"], q.measured.estimate)
    np.testing.assert_array_equal(drawn["predicted (ours)"], q.predicted)
    for control, values in q.controls.items():
        np.testing.assert_array_equal(drawn[control], values)
    (ax,) = report.plot_tenths("c", 1).axes
    assert len(ax.lines) == 3
    with pytest.raises(ValueError, match="layer 7 was not checked"):
        report.plot_tenths("c", 7)
    with pytest.raises(ValueError, match="concept 'd' is unknown"):
        report.plot("d")
