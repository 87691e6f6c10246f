"""An attribution shows itself: its table, dictionary, map and picture hold the same numbers."""

import json
from dataclasses import replace

import attribution_cases as cases
import numpy as np
import pytest
import torch

from sa_plugin.attribution import attribute, coalition_game, heat_maps


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
    # A caption tells several apart; one has its headline.
    assert heat_maps([found]).split("</figcaption>")[1] in found._repr_html_()
    assert found._repr_html_().count("230,110,0") == (shares >= 0).sum()


@pytest.mark.parametrize("method", ["occlusion", "rise", "integrated_gradients", "lime"])
def test_no_map_is_drawn_over_sinks_unless_it_is_asked_for(method):
    """The first token of a decoder without BOS is dropped as a sink: it plays only with players="token"."""
    host, _, sample, made = cases.chosen("gpt2")
    (batch,) = host.batches([sample])
    dropped = batch.valid[0].numpy() & ~made[0].mask[0].numpy()
    assert dropped.sum() == 1
    found = attribute(host, made[0], sample, method, preset="fast")
    kept = attribute(host, made[0], sample, method, preset="fast", players="kept")
    np.testing.assert_array_equal(found.importance, kept.importance)
    np.testing.assert_array_equal(found.dropped, dropped)
    assert np.isnan(found.of_token[dropped]).all()
    assert found.on_dropped == 0.0
    said = "1 token dropped as a sink is never masked"
    assert said in found.headline()
    asked = attribute(host, made[0], sample, method, preset="fast", players="token")
    values = asked.of_token[batch.valid[0].numpy()]
    sizes = np.abs(values - values.mean()) if method == "rise" else np.abs(values)
    share = sizes[dropped[batch.valid[0].numpy()]].sum() / sizes.sum()
    assert asked.on_dropped == pytest.approx(share)
    for one, words in ((found, said), (asked, f"{share:.0%} of |importance| on 1 token dropped as a sink")):
        assert words.lower() in str(one).lower()
        assert words in one._repr_html_()
        assert words in heat_maps([one])
        assert any(words.lower() in text.get_text().lower() for text in one.plot().texts)
        assert one.to_dict()["dropped"] == np.flatnonzero(dropped).tolist()
        assert one.to_dict()["on_dropped"] == one.on_dropped


def test_where_nothing_is_dropped_every_valid_token_plays():
    host, _, sample, made = cases.chosen("vit")
    (batch,) = host.batches([sample])
    assert made[0].mask[0].equal(batch.valid[0])
    found = attribute(host, made[0], sample, "rise", preset="fast")
    assert ((found.player_of >= 0) == batch.valid[0].numpy()).all()
    assert not found.dropped.any()
    assert "dropped" not in str(found) + heat_maps([found])


def test_objectives_that_count_different_tokens_play_with_all_of_them():
    host, _, sample, made = cases.chosen("gpt2")
    none = replace(made[0], mask=torch.zeros_like(made[0].mask))
    game = coalition_game(host, sample, [none, made[1]])
    assert ((game.player_of >= 0) == made[1].mask[0].numpy()).all()
