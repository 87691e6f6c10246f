"""What the ledger shows and refuses: tables, words, counts, warnings, errors."""

import numpy as np
import pytest
from fake_host import FakeHost
from ledger_cases import detector_of, ledger, make_data

from sa_plugin.concepts import VectorSet, fit
from sa_plugin.heads import KINDS, NoTailWarning, explain_tokens
from sa_plugin.report import Heads, problems
from sa_plugin.scores import score
from sa_plugin.show.result import clean

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def fake():
    return FakeHost()


@pytest.fixture(scope="module", params=["prototype", "lda"])
def fake_detector(request, fake, data):
    return detector_of(fake, data, request.param)


def test_results_are_readable(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector, scores=score(fake, data, fake_detector.bank))
    assert repr(found).startswith("HeadLedger(2 scores, ")
    assert "\n" not in repr(found)
    assert "; control of 20 permutations)" in repr(found)
    said = " ".join(found.summary(3).split())
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
    sizes = [abs(r["excess"]) / abs(found.lift.total.value[found.column(r["concept"])]) for r in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert all(r["kind"] == "heads" and r["excess_low"] <= r["excess_high"] for r in rows)
    assert len(found.table()) == sum(1 + 3 * depth for depth in found.depths)
    assert len(found.shares_table()) == 10 * len(found.columns)
    share = found.share("heads")
    np.testing.assert_allclose(share.value, found.lift.shares.value[KINDS.index("heads")])
    assert not problems(clean(found.to_dict()), Heads, "heads")
    one = explain_tokens(fake, fake_detector, data.test.samples[0], "animal")
    assert len(one.table()) == len(one.score)
    assert len(one.strongest(0, 3)) == 3
    assert "SuperActivators" in repr(one)


def test_how_often_intervals_exclude_zero_is_counted(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    block = found.to_dict()
    for name in ("lift", "control", "excess", "contrast"):
        outside, n = 0, 0
        for k, depth in enumerate(found.depths):
            for i, component in enumerate(found.components):
                low, high = (end[i, k] for end in found.effects[name].terms[1:])
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
    block = found.to_dict()
    assert block["shares_of"] == "contrast"
    for k, column in enumerate(found.columns):
        one = block["concepts"][column.concept]
        assert one["total"] == found.lift.total.value[k]
        for key, effect in (("shares", found.contrast), ("lift_shares", found.lift)):
            share = effect.shares.value[KINDS.index("heads"), k]
            assert one[key]["head_share"] == share


def test_heads_that_raise_and_lower_are_listed_apart(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    signs = [row["excess"] > 0 for row in found.strongest(8)]
    text = found.summary(8)
    parts = text.partition("\n\nlower the score:\n")
    raising = parts[0].partition("raise the score:\n")[2]
    assert raising.count(" -> ") == sum(signs)
    assert parts[2].count(" -> ") == len(signs) - sum(signs)


def test_no_superactivator_is_a_named_warning(fake, fake_detector, data):
    class Never(type(fake_detector)):
        @property
        def threshold(self):
            return dict.fromkeys(self.concepts, float("inf"))

    never = Never(**{f: getattr(fake_detector, f) for f in fake_detector.__dataclass_fields__})
    with pytest.warns(NoTailWarning, match="no SuperActivator of 'animal', 'food' in"):
        found = ledger(fake, data, never)
    assert np.isnan(found.lift.terms.value).all()
    assert np.isfinite(found.contrast.terms.value).all()


def test_one_document_has_no_interval(fake, data):
    bank = fit(fake, data, "lda", layers=[1])
    masks = [np.zeros((len(s.text.split()), 2), dtype=bool) for s in data.test.samples]
    masks[0][1] = True
    masks[1][2, 1] = True
    assert data.test.samples[0].document != data.test.samples[1].document
    found = ledger(fake, data, bank, tail=masks)
    assert np.isfinite(found.lift.terms.value).all()
    assert np.isnan(found.lift.terms.low[:, 0]).all()
    assert np.isfinite(found.lift.terms.low[:, 1]).all()
    assert {row["concept"] for row in found.strongest(50)} == {"food"}


def test_bad_input(fake, fake_detector, data):
    bank = fake_detector.bank
    with pytest.raises(ValueError, match="a detector has chosen its layers and its tail"):
        ledger(fake, data, fake_detector, layers=[1])
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
