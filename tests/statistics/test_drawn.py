"""Laws of a number with its columns: pairing, selection, means, records."""

import numpy as np
import pytest

from sa_plugin.statistics import Drawn, Resampling, stack

AXES = {"method": ("A", "B"), "delta": (0.1, 0.2, 0.5)}


@pytest.fixture
def drawn():
    return Drawn(np.random.default_rng(0).random((2, 3, 58)), AXES, "share", np.ones(57))


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


def test_a_record_keeps_its_interval_and_refuses_a_difference(drawn):
    kept = Drawn(drawn.values[..., :1], AXES, "share", np.zeros(0), kept=drawn.bounds)
    assert np.array_equal(kept.low, drawn.low)
    assert kept.sel(method="B", delta=0.5).high == drawn.high[1, 2]
    with pytest.raises(ValueError, match="no columns: no difference"):
        kept - kept
    both = stack({"x": kept, "y": kept}, "which")
    assert np.array_equal(both.sel(which="y").low, drawn.low)
    behind = stack({"x": kept, "y": kept}, "which", last=True)
    assert list(behind.axes) == ["method", "delta", "which"]
    assert np.array_equal(behind.sel(which="y").high, drawn.high)
    with pytest.raises(ValueError, match="no columns: no mean"):
        kept.mean("delta")


def test_rows_are_long_and_complete(drawn):
    rows = drawn.rows("f1")
    assert len(rows) == 6
    assert list(rows[4]) == ["method", "delta", "measure", "value", "low", "high", "note"]
    assert (rows[4]["method"], rows[4]["delta"]) == ("B", 0.2)
    assert rows[4]["value"] == drawn.values[1, 1, 0]
    assert {row["note"] for row in rows} == {""}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"do not fit the axes \{'method': 2\}"):
        Drawn(np.zeros((3, 5)), {"method": ("A", "B")}, "share", np.ones(4))
    with pytest.raises(ValueError, match=r"level is 95\.0, not a number between 0 and 1"):
        Resampling(level=95.0)
    with pytest.raises(ValueError, match="draws is 0, not a whole number from 1 to 1000000"):
        Resampling(draws=0)
    one = Drawn(np.linspace(0.4, 0.6, 31), {}, "difference", np.ones(30), level=0.9)
    assert repr(one).endswith("(90 %, 30 documents)")
