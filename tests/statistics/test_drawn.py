"""Laws of a number with its resamples: intervals, pairing, selection, means, freezing."""

import numpy as np
import pytest

from sa_plugin.statistics import Drawn, Resampling, stack

AXES = {"method": ("A", "B"), "delta": (0.1, 0.2, 0.5)}


@pytest.fixture
def drawn():
    return Drawn(np.random.default_rng(0).random((2, 3, 101)), AXES, documents=57)


def test_bounds_are_numpy_quantiles_of_the_resamples_that_are_defined(drawn):
    drawn.values[1, 2, 5:9] = np.nan
    for at in np.ndindex(2, 3):
        kept = drawn.values[at][1:]
        expected = np.quantile(kept[~np.isnan(kept)], [0.025, 0.975])
        assert (drawn.low[at], drawn.high[at]) == pytest.approx(tuple(expected), abs=1e-15)
    drawn.values[0, 0, 1:] = np.nan
    fresh = Drawn(drawn.values, AXES)
    assert np.isnan(fresh.low[0, 0])
    assert not fresh.excludes_zero[0, 0]


def test_a_difference_is_paired_by_column(drawn):
    gap = drawn.sel(method="A") - drawn.sel(method="B")
    assert np.array_equal(gap.values, drawn.values[0] - drawn.values[1])
    same = drawn.sel(method="A") - drawn.sel(method="A")
    assert not same.values.any()
    assert not same.excludes_zero.any()
    with pytest.raises(ValueError, match="a paired difference needs the same"):
        drawn - drawn.sel(method="A")


def test_sel_drops_an_axis_or_keeps_some_labels(drawn):
    one = drawn.sel(method="B", delta=0.2)
    assert one.axes == {}
    assert one.estimate == drawn.values[1, 1, 0]
    some = drawn.sel(delta=[0.5, 0.1])
    assert some.axes == {"method": ("A", "B"), "delta": (0.5, 0.1)}
    assert np.array_equal(some.values, drawn.values[:, [2, 0]])
    with pytest.raises(ValueError, match=r"'a' is not among method: A, B: did you mean"):
        drawn.sel(method="a")
    with pytest.raises(ValueError, match=r"'metod' is no axis of .*did you mean 'method'"):
        drawn.sel(metod="A")


def test_a_mean_leaves_out_what_a_column_does_not_define(drawn):
    drawn.values[0, 1, 7] = np.nan
    mean = drawn.mean("delta", np.array([1.0, 2.0, 3.0]))
    assert mean.axes == {"method": ("A", "B")}
    assert mean.values[0, 7] == pytest.approx((drawn.values[0, 0, 7] + 3 * drawn.values[0, 2, 7]) / 4)
    assert mean.values[1, 3] == pytest.approx(np.average(drawn.values[1, :, 3], weights=[1, 2, 3]))
    own = np.random.default_rng(1).random(drawn.values.shape)
    by_column = drawn.mean("delta", own)
    assert by_column.values[1, 3] == pytest.approx(np.average(drawn.values[1, :, 3], weights=own[1, :, 3]))


def test_a_frozen_number_keeps_its_interval_and_refuses_a_difference(drawn):
    frozen = drawn.freeze()
    assert frozen.values.shape[-1] == 1
    assert np.array_equal(frozen.low, drawn.low)
    assert frozen.sel(method="B", delta=0.5).high == drawn.high[1, 2]
    with pytest.raises(ValueError, match="subtract before freezing"):
        frozen - frozen
    both = stack({"x": frozen, "y": frozen}, "which")
    assert np.array_equal(both.sel(which="y").low, drawn.low)
    behind = stack({"x": frozen, "y": drawn}, "which", last=True)
    assert list(behind.axes) == ["method", "delta", "which"]
    assert np.array_equal(behind.estimate[..., 1], drawn.estimate)
    assert np.array_equal(behind.sel(which="y").high, drawn.high)
    assert frozen.to_dict()["draws"] is None
    with pytest.raises(ValueError, match="means come before freezing"):
        frozen.mean("delta")


def test_rows_are_long_and_complete(drawn):
    rows = drawn.rows("f1")
    assert len(rows) == 6
    assert list(rows[4]) == ["method", "delta", "measure", "value", "low", "high"]
    assert (rows[4]["method"], rows[4]["delta"]) == ("B", 0.2)
    assert rows[4]["value"] == drawn.values[1, 1, 0]


def test_any_rule_may_take_the_place_of_percentiles(drawn):
    def span(values, level):
        return values.min(-1), values.max(-1)

    other = Drawn(drawn.values, AXES, rule=span)
    assert np.array_equal(other.low, drawn.values.min(-1))
    assert np.array_equal(other.sel(method="A").high, drawn.values[0].max(-1))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"do not fit the axes \{'method': 2\}"):
        Drawn(np.zeros((3, 5)), {"method": ("A", "B")})
    with pytest.raises(ValueError, match=r"level is 95\.0, not a number between 0 and 1"):
        Resampling(level=95.0)
    with pytest.raises(ValueError, match="draws is 0, not a whole number from 1 to 1000000"):
        Resampling(draws=0)
    assert repr(Drawn(np.linspace(0, 1, 1001), {}, 30, 0.9)).endswith("(90 %, 1000 draws of 30 documents)")
