"""What results on heads show: the same numbers as text, as HTML, in long form, as JSON and drawn."""

import html
import json
import re
from functools import cache

import numpy as np
import planted
import pytest
import tiny
from ablation_cases import make_data, standard, with_gradients
from matplotlib.figure import Figure

from sa_plugin.concepts import fit
from sa_plugin.detection import calibrate
from sa_plugin.heads import (
    HeadSets,
    Intervention,
    ablate_heads,
    ablation_curve,
    compare_direct_total,
    cross_ablation,
    rank_heads,
)
from sa_plugin.statistics import Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
FEW = {"resampling": Resampling(20)}
HEADS = {"animal": [(0, 0)], "food": [(0, 1), (1, 0)]}


@cache
def ranking():
    case = standard()
    return rank_heads(case.fake, case.data, case.detector, scores=case.scores)


def curve(**options):
    case = standard()
    sets = HeadSets((1, 2), ("random", "layer_matched", "permuted"), repeats=2)
    return ablation_curve(case.fake, case.data, case.detector, ranking(), sets=sets, **FEW, **options)


def direct_total():
    host, data = with_gradients(tiny.host("neox")), make_data()
    detector = calibrate(host, data, fit(host, data, "lda", layers=[0, 2]), deltas=(0.3,))
    return compare_direct_total(host, data, detector, **FEW)


def blocks():
    case = standard()
    options = {"parts": "blocks", "permutations": 2, **FEW}
    return compare_direct_total(case.fake, case.data, case.detector, **options)


def ablation():
    case = standard()
    how = Intervention(output="hidden")
    return ablate_heads(case.fake, case.data, case.detector, [(0, 0), (1, 1)], how=how, **FEW)


def cross():
    case = standard()
    return cross_ablation(case.fake, case.data, case.detector, HEADS, **FEW)


MADE = {
    "Ablation": ablation,
    "AblationCurve": curve,
    "AblationCurve kept": lambda: curve(how=Intervention("zero", keep=True)),
    "CrossAblation": cross,
    "Ranking": ranking,
    "DirectTotal": direct_total,
    "DirectTotal of blocks": blocks,
    "HeadAlignment": lambda: planted.align(planted.world(0), draws=60),
}


@pytest.fixture(scope="module", params=MADE)
def result(request):
    return MADE[request.param]()


def test_text_and_notebook_show_the_same_cells_and_what_they_do_not_show(result):
    # A cell's caution may break from its interval where the page is narrow: it is a span of its own.
    text, page = str(result), re.sub("</?span[^>]*>", "", result._repr_html_())
    assert repr(result).startswith(f"{type(result).__name__}(")
    assert "\n" not in repr(result)
    sheets = result.sheets()
    assert all(sheet.rows for sheet in sheets)
    for cell in (cell for sheet in sheets for row in sheet.rows for cell in row):
        assert cell in text
        assert html.escape(cell) in page
    assert page.count("<table") == len(sheets)
    assert result.about
    assert result.about in " ".join(text.split())


def test_the_table_is_in_long_form_and_the_dictionary_is_json(result):
    table = result.table()
    assert list(table.columns[-5:]) == ["measure", "value", "low", "high", "note"]
    assert not table.drop(columns=["value", "low", "high", "note"]).duplicated().any()
    known = table.dropna(subset=["value", "low", "high"])
    if type(result).__name__ != "Ranking":
        assert len(known)
    assert (known.low <= known.high).all()
    written = result.to_dict()
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert written["kind"] == type(result).__name__


def test_it_is_drawn_for_its_own_question(result):
    figure = result.plot()
    assert isinstance(figure, Figure)
    axes = figure.axes
    # A bar of shades has its unit beside it.
    assert all(ax.get_xlabel() or ax.get_title(loc="left") or ax.get_ylabel() for ax in axes)
    drawn = [len(ax.lines) + len(ax.collections) + len(ax.patches) for ax in axes]
    assert min(drawn) > 0
    assert figure.get_supxlabel()


def test_points_of_the_pictures_are_the_numbers():
    found = ablation()
    figure = found.plot()
    (right,) = (ax for ax in figure.axes[1::2] if len(ax.lines) == 2 * 6 + 1)
    shown = [line.get_xdata()[0] for line in right.lines if line.get_marker() == "o"]
    wanted = found.mean("difference").sel(metric=[m for m in found.metrics if "output" not in m][1:])
    np.testing.assert_allclose(shown, wanted.estimate)
    first = curve().plot().axes[0]
    (top,) = (line for line in first.lines if line.get_marker() == "o")
    gaps = [curve().after(k, "top").sel(set=0, metric="tail_gap").estimate for k in (1, 2)]
    np.testing.assert_allclose(top.get_ydata(), gaps)
