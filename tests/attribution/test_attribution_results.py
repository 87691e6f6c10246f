"""An attribution shows itself: its table, dictionary, map and picture hold the same numbers."""

import json

import attribution_cases as cases
import numpy as np
import pytest

from sa_plugin.attribution import attribute, heat_maps


@pytest.fixture(scope="module", params=["gpt2", "vit"])
def found(request):
    host, _, sample, made = cases.chosen(request.param)
    return attribute(host, made[0], sample, "rise", preset="fast")


def kept(found):
    return np.flatnonzero(~np.isnan(found.of_token))


def test_table_and_dictionary_hold_every_token_that_plays(found):
    table, content = found.table(), found.to_dict()
    assert table["position"].tolist() == kept(found).tolist() == content["position"]
    expected = found.of_token[kept(found)]
    np.testing.assert_array_equal(table["value"], expected)
    np.testing.assert_array_equal(content["importance"], expected)
    words = [found.sample.token_text(found.offsets[at]) for at in kept(found)]
    assert table["token"].tolist() == words == content["tokens"]
    assert table["labelled"].any()
    assert content["sample"] == found.sample.id
    assert json.loads(json.dumps(content)) == content


def test_the_printed_sheet_is_the_top(found):
    (sheet,) = found.sheets()
    assert [row[1] for row in sheet.rows] == [f"{value:.4g}" for _, value in found.top(len(sheet.rows))]
    assert "importance is relative to the baseline" in str(found)
    assert repr(found).startswith("Attribution('rise', 'global' of ")


def test_pictures_hold_the_shares_of_the_map(found):
    """Bars along a text are importances; patches are shaded by their share, which has both signs."""
    (ax,) = found.plot().axes
    values = found.of_token[kept(found)]
    shares = (values - values.mean()) / np.abs(values - values.mean()).max()
    if found.sample.image is None:
        np.testing.assert_array_equal([bar.get_height() for bar in ax.patches], values)
    else:
        filled = [patch for patch in ax.patches if patch.get_fill()]
        np.testing.assert_allclose([patch.get_alpha() for patch in filled], 0.75 * abs(shares))
        assert len(ax.patches) - len(filled) == found.table()["labelled"].sum()
    assert heat_maps([found]) in found._repr_html_()
    assert found._repr_html_().count("230,110,0") == (shares >= 0).sum()
