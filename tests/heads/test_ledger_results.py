"""What the ledger shows and refuses: tables, words, counts, warnings, errors."""

import html
import json
from dataclasses import fields

import numpy as np
import pytest
from fake_host import FakeHost
from ledger_cases import ledger

from sa_plugin.concepts import VectorSet, fit
from sa_plugin.heads import COMPONENT_KINDS, NoTailWarning, explain_tokens
from sa_plugin.report import Heads, problems
from sa_plugin.scores import score
from sa_plugin.stages import heads_block

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_results_are_readable(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector, scores=score(fake, data, fake_detector.bank))
    assert repr(found).startswith("HeadLedger(2 scores, ")
    assert "\n" not in repr(found)
    assert "; control of 20 permutations)" in repr(found)
    said = " ".join(found.summary().split())
    assert "strongest heads by excess" in said
    assert "Negative numbers work against the concept." in said
    assert "The control is the mean of 20 permutations per concept" in said
    single = ledger(fake, data, fake_detector, permutations=1)
    assert "; control of 1 permutation, no test)" in repr(single)
    one = single.summary()
    assert "one permutation per concept: a scale of what selection alone gives, not a test" in (
        " ".join(one.split())
    )
    assert f"ranked on the split shown (test), out of {found.candidates} candidates" in said
    rows = found.strongest(3)
    sizes = [abs(r["excess"]) / abs(found.lift.total.estimate[found.column(r["concept"])]) for r in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert all(r["kind"] == "heads" and r["excess_low"] <= r["excess_high"] for r in rows)
    share = found.share("heads")
    np.testing.assert_allclose(share.estimate, found.lift.shares.estimate[COMPONENT_KINDS.index("heads")])
    assert not problems(heads_block(found), Heads, "heads")


def test_the_long_table_holds_terms_blocks_totals_and_shares(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    table = found.table()
    assert list(table.columns)[-5:] == ["measure", "value", "low", "high", "note"]
    lift = table[table.measure == "lift"]
    terms = lift[~lift.kind.isin(["block", "total"])]
    assert len(terms) == sum(1 + 3 * depth for depth in found.depths)
    one = terms[(terms.component == "L0H1") & (terms.concept == "food")].iloc[0]
    drawn = found.lift.terms.sel(component="L0H1", score="food")
    assert (one.value, one.low, one.high) == (drawn.estimate, drawn.low, drawn.high)
    total = lift[lift.kind == "total"].set_index("concept").value
    assert total["food"] == found.lift.total.sel(score="food").estimate
    shares = table[table.measure.str.endswith(" share")]
    assert len(shares) == 10 * len(found.columns) * len(COMPONENT_KINDS)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    low = np.array(content["effects"]["lift"]["terms"]["low"], dtype=float)
    np.testing.assert_array_equal(low, found.lift.terms.low)


def test_pairs_of_effects_are_compared_column_by_column(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    gap = found.share("heads", "lift") - found.share("heads", "contrast")
    assert gap.estimate == pytest.approx(
        found.share("heads").estimate - found.share("heads", "contrast").estimate
    )
    excess = found.lift.terms - found.control.terms
    np.testing.assert_allclose(excess.values, found.effects["excess"].terms.values, atol=1e-12)


@pytest.mark.parametrize("concept", [None, "food"])
def test_its_picture_is_a_map_of_heads_and_the_shares(fake, fake_detector, data, concept):
    found = ledger(fake, data, fake_detector)
    figure = found.plot(concept)
    left, right, scale = figure.axes
    totals = np.abs(found.lift.total.estimate)
    maps = np.zeros((len(found.columns), max(found.depths), 2))
    for k, column in enumerate(found.columns):
        own = found.head_map(column.concept)
        maps[k, : len(own)] = 100 * own / totals[k]
    expected = maps.mean(0) if concept is None else maps[found.column(concept)][: found.depths[-1]]
    limit = np.abs(expected).max()
    shades = [patch.get_alpha() for patch in left.patches]
    np.testing.assert_allclose(shades, np.abs(expected).ravel() / limit, atol=1e-9)
    assert scale.get_ylabel() == "% of the lift"
    assert scale.get_ylim()[1] == pytest.approx(limit)
    assert (
        [label.get_text() for label in right.get_yticklabels()] == [concept]
        if concept
        else ["animal", "food"]
    )
    assert "no causal effects" in figure.get_supxlabel()


def test_one_text_is_shown_token_by_token(fake, fake_detector, data):
    one = explain_tokens(fake, fake_detector, data.test.samples[0], "animal")
    assert "SuperActivators" in repr(one)
    assert len(one.strongest(0, 3)) == 3
    (sheet,) = one.sheets()
    assert [row[0] for row in sheet.rows] == list(one.tokens)
    assert [row[1] == "*" for row in sheet.rows] == one.tail.tolist()
    table = one.table()
    scores = table[table.measure == "score"].value
    np.testing.assert_allclose(scores, one.score)
    terms = table[table.measure == "term"].groupby("position").value.sum()
    np.testing.assert_allclose(terms, one.score, atol=2e-5)
    assert json.loads(json.dumps(one.to_dict(), allow_nan=False))["tokens"] == list(one.tokens)
    upper, right = one.plot().axes
    np.testing.assert_allclose([bar.get_height() for bar in upper.patches], one.score, rtol=1e-6)
    shown = one._repr_html_()
    assert shown.count('class="lab"') + shown.count('class="neg lab"') == one.tail.sum()
    assert all(f">{html.escape(text)}</span>" in shown for text in one.tokens)
    best = int(one.score.argmax())
    np.testing.assert_allclose(
        [bar.get_width() for bar in right.patches], [v for _, v in one.strongest(best, 12)]
    )


def test_how_often_intervals_exclude_zero_is_counted(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    block = heads_block(found)
    for name in ("lift", "control", "excess", "contrast"):
        outside, n = 0, 0
        for k, depth in enumerate(found.depths):
            for i, component in enumerate(found.components):
                low, high = (end[i, k] for end in found.effects[name].terms.bounds)
                if component.kind == "heads" and component.block < depth and np.isfinite(low):
                    n += 1
                    outside += low > 0 or high < 0
        assert found.excluding_zero[name] == pytest.approx(outside / n)
        assert block["excludes_zero"][name] == pytest.approx(outside / n)
    assert block["candidates"] == found.candidates == len(found.strongest(10**6))


def test_a_meaningless_vector_has_lifts_whose_intervals_exclude_zero(fake, fake_detector, data):
    """Why intervals of a lift are no test: those of the control exclude zero."""
    assert ledger(fake, data, fake_detector).excluding_zero["control"] > 0.05


def test_shares_say_what_they_are_of(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    block = heads_block(found)
    assert block["shares_of"] == "contrast"
    for k, column in enumerate(found.columns):
        one = block["concepts"][column.concept]
        assert one["total"] == found.lift.total.estimate[k]
        for key, effect in (("shares", found.contrast), ("lift_shares", found.lift)):
            share = effect.shares.estimate[COMPONENT_KINDS.index("heads"), k]
            assert one[key]["head_share"] == share


def test_heads_that_raise_and_lower_are_listed_apart(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    signs = [row["excess"] > 0 for row in found.strongest(8)]
    text = "\n".join(sheet.text() for sheet in found.sheets(8))
    parts = text.partition("\nlower the score:\n")
    raising = parts[0].partition("raise the score:\n")[2]
    assert raising.count(" -> ") == sum(signs)
    assert parts[2].count(" -> ") == len(signs) - sum(signs)


def test_no_superactivator_is_a_named_warning(fake, fake_detector, data):
    class Never(type(fake_detector)):
        @property
        def threshold(self):
            return dict.fromkeys(self.concepts, float("inf"))

    never = Never(**{f.name: getattr(fake_detector, f.name) for f in fields(fake_detector)})
    with pytest.warns(NoTailWarning, match="no SuperActivator of 'animal', 'food' in"):
        found = ledger(fake, data, never)
    assert np.isnan(found.lift.terms.estimate).all()
    assert np.isfinite(found.contrast.terms.estimate).all()


def test_fewer_than_three_documents_have_no_interval(fake, data):
    bank = fit(fake, data, "lda", layers=[1])
    masks = [np.zeros((len(s.text.split()), 2), dtype=bool) for s in data.test.samples]
    at = {sample.document: k for k, sample in enumerate(data.test.samples)}
    first, *others = list(at.values())[:3]
    masks[first][1] = True
    for k in others:
        masks[k][2, 1] = True
    found = ledger(fake, data, bank, tail=masks)
    assert np.isfinite(found.lift.terms.estimate).all()
    assert np.isnan(found.lift.terms.low[:, 0]).all()
    assert np.isfinite(found.lift.terms.low[:, 1]).all()
    assert {row["concept"] for row in found.strongest(50)} == {"food"}


def test_bad_input(fake, fake_detector, data):
    bank = fake_detector.bank
    with pytest.raises(ValueError, match="'animl' is not among the concepts: did you mean"):
        ledger(fake, data, fake_detector, concepts=["animl"])
    with pytest.raises(ValueError, match="of the train split the vectors were fitted on"):
        ledger(fake, data, fake_detector, split="train")
    with pytest.raises(ValueError, match=r"layer 9 does not exist"):
        ledger(fake, data, bank, layers=[9])
    with pytest.raises(ValueError, match="a mask of `tail` has shape"):
        ledger(fake, data, bank, tail=[np.zeros((1, 1), dtype=bool)] * len(data.test))
    with pytest.raises(ValueError, match="the bank was fitted on"):
        ledger(FakeHost(seed=3), data, fake_detector)
    other = score(fake, data, bank, splits=["cal"])
    with pytest.raises(ValueError, match=r"the scores hold 0 of the ledger's"):
        ledger(fake, data, fake_detector, scores=other)
    with pytest.raises(ValueError, match=r"the bank has layers \(0, 1, 2\): name one"):
        explain_tokens(fake, bank, "cat sat", "animal")
    assert isinstance(bank.token, VectorSet)
