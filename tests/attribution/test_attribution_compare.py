"""Laws of `compare` beyond its parts: groups of players, controls, early stop, MFABA's rivals."""

import warnings
from dataclasses import replace
from functools import partial

import attribution_cases as cases
import numpy as np
import pytest
import torch
from attribution_toy import SAMPLE, Readout, ToyHost, draw

from sa_plugin.attribution import (
    ORDERS,
    Design,
    area_under,
    attribute,
    coalition_game,
    compare,
    cosine,
    curves,
    explain_game,
    explain_pairs,
    objective,
    superpatches,
    token_mean,
)
from sa_plugin.concepts import fit
from sa_plugin.detection import calibrate
from sa_plugin.statistics import Resampling

QUICK = Design(n_test=4, n_cal=3, n_steps=3, probe=False)
# With eight samples an interval over documents leaves one yardstick open.
N_CONTROLLED = 16
DRAWS = Resampling(20)


@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_occlusion_of_groups_is_the_fall_of_the_objective(name):
    game = cases.game(name)
    valid = game.player_of >= 0
    groups = np.where(valid, game.player_of // 3, -1)
    game = replace(game, player_of=groups, known={})
    expected = game(np.ones((1, game.n_players), bool)) - game(~np.eye(game.n_players, dtype=bool))
    np.testing.assert_allclose(explain_game(game, "occlusion").importance, expected, atol=2e-5)


def test_order_two_of_shap_iq_adds_up_with_its_pairs():
    """All coalitions of six words or fewer: main effects and pairs sum to the whole difference."""
    host, data, detector = cases.planted()
    sample = next(s for s in data.test.samples if detector.find(s) and len(s.text.split()) < 7)
    f = objective("superactivator", detector=detector, concept="animal", sample=sample)
    game = coalition_game(host, sample, [f])
    n = game.n_players
    main = attribute(host, f, sample, "shap_iq", order=2).importance
    pairs = explain_pairs(game)[:, :, 0]
    empty, full = game(np.stack([np.zeros(n, bool), np.ones(n, bool)]))[:, 0]
    assert main.sum() + pairs.sum() / 2 == pytest.approx(full - empty, abs=1e-6)
    alone = attribute(host, f, sample, "shap_iq").importance
    np.testing.assert_allclose(main, alone - pairs.sum(1) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="order is 3: give 1, or 2"):
        attribute(host, f, sample, "shap_iq", order=3)


def test_compare_takes_superpatches():
    host, data, detector = cases.case("vit")
    found = compare(
        host,
        data,
        detector,
        methods=["rise", "occlusion", "input_x_gradient"],
        design=replace(QUICK, players=partial(superpatches, block=2)),
        resampling=DRAWS,
    )
    by_token = compare(host, data, detector, methods=["input_x_gradient"], design=QUICK, resampling=DRAWS)
    sizes = {len(one.importance) for one in found.examples}
    assert sizes == {len(by_token.examples[0].importance) // 4}
    whole = np.nansum(by_token.examples[0].of_token)
    assert found.examples[-4].importance.sum() == pytest.approx(whole, rel=1e-4)


def test_compare_takes_words():
    host, data, detector = cases.case("gpt2")
    found = compare(
        host, data, detector, methods=["rise"], design=replace(QUICK, players="word"), resampling=DRAWS
    )
    assert found.settings["players"] == "word"
    one = found.examples[0]
    assert len(one.importance) < (one.player_of >= 0).sum()


def test_sinks_stay_when_only_counted_tokens_play():
    """The first token of a decoder without BOS is a sink: with "kept" nothing ever masks it."""
    host, _, sample, made = cases.chosen("gpt2")
    mask = made[0].mask[0].numpy()
    assert mask.sum() < (coalition_game(host, sample, made, players="token").player_of >= 0).sum()
    game = coalition_game(host, sample, made, players="kept")
    assert ((game.player_of >= 0) == mask).all()
    rest = replace(game, player_of=np.where(mask, 0, -1), known={})
    empty = np.zeros((1, game.n_players), bool)
    np.testing.assert_allclose(game(empty), rest(empty[:, :1]), atol=1e-6)
    found = attribute(host, made[1], sample, "kernel_shap", preset="fast", players="kept")
    assert (np.isnan(found.of_token) == ~mask).all()
    full = game(np.ones((1, game.n_players), bool))
    assert found.importance.sum() == pytest.approx((full - game(empty))[0, 1], abs=1e-5)
    for method in ("occlusion", "grad_cam", "integrated_gradients"):
        assert len(attribute(host, made[1], sample, method, players="kept").importance) == sum(mask)
    with pytest.raises(ValueError, match="players='kept' needs objectives"):
        coalition_game(ToyHost(), SAMPLE, [Readout(draw(0))], players="kept")


def test_maps_of_rise_have_both_signs():
    """A mean value has no zero point: the map shows what lies above and below the map's mean."""
    host, _, detector = cases.planted()
    sample = next(s for s in cases.make_data(120).test.samples if len(detector.find(s)))
    f = objective("global", detector=detector, concept="animal", sample=sample)
    found = attribute(host, f, sample, "rise", preset="fast")
    lifted = replace(found, importance=found.importance + 5)
    assert found._repr_html_().count("rgba(30,110,220") == lifted._repr_html_().count("rgba(30,110,220")
    assert "rgba(30,110,220" in lifted._repr_html_()


@pytest.fixture(scope="module")
def planted():
    host, data, detector = cases.planted(n=240)
    design = replace(QUICK, n_test=N_CONTROLLED, probe=True)
    return compare(host, data, detector, methods=["rise"], design=design, resampling=DRAWS)


def test_controls_test_the_yardsticks(planted):
    """On a planted concept every yardstick prefers the labelled tokens to a random order."""
    rows = {row.metric: row for row in planted.controls if row.stratum == "all"}
    assert set(rows) == {
        f"{kind}/{stick}"
        for kind in ("insertion", "deletion")
        for stick in ("mean_alignment", "max_margin", "later_probe")
    }
    for row in rows.values():
        assert row.verdicts == {"labelled first": "better"}
        assert row.n_samples == N_CONTROLLED
    assert "Do not judge by these" not in str(planted)
    swapped = [
        replace(m, objective=ORDERS[1 - ORDERS.index(m.objective)]) if m.method == "control" else m
        for m in planted.trials
    ]
    told = " ".join(str(replace(planted, trials=tuple(swapped))).split())
    assert "order here: insertion/mean_alignment, insertion/max_margin" in told


def test_controls_equal_a_loop(planted):
    host, data, detector = cases.planted(n=240)
    one = next(m for m in planted.trials if m.objective == "labelled first")
    sample = next(s for s in data.test.samples if s.id == one.sample)
    f = objective("global", detector=detector, concept="animal", sample=sample)
    game = coalition_game(host, sample, [f])
    # The objective "global" of a prototype is the yardstick "mean_alignment".
    found = curves(game, one.labels + 1e-9 * rank_of(planted, one), n_steps=3)
    expected = area_under(found.share, found.insertion)[0]
    assert one.areas["insertion/mean_alignment"] == pytest.approx(expected, abs=1e-5)


def rank_of(found, one):
    """The random order of the same sample, as shares."""
    other = next(m for m in found.trials if m.sample == one.sample and m.objective == ORDERS[0])
    return other.ranks


class Watched(cases.PlantedHost):
    """Keeps the rows and the deepest block of every masked pass."""

    def __init__(self):
        super().__init__()
        self.passes = []

    def _run(self, x, sites):
        self.passes.append((len(x), max(site.layer for site in sites)))
        return super()._run(x, sites)


def test_explainers_stop_at_the_objectives_layer():
    """Only insertion, deletion and the probe's fit go on to the probe's block."""
    host, data = Watched(), cases.make_data(120)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = fit(host, data, "prototype", layers=[0])
        detector = calibrate(host, data, bank, deltas=(0.5, 0.9))
    host.passes.clear()
    compare(host, data, detector, methods=["rise"], design=replace(QUICK, probe=True), resampling=DRAWS)
    deep = [n for n, layer in host.passes if layer > 0]
    shallow = [n for n, layer in host.passes if layer == 0]
    # RISE's 256 draws hold some 100 different coalitions of 7 words or so.
    assert max(shallow) > 50
    # Curves: 2 orders for each of 2 objectives and of 2 controls, at most 4 rows each.
    assert max(deep) <= 8


@pytest.mark.parametrize("name", ["global", "superactivator"])
def test_mfaba_is_as_blind_to_planted_tokens_as_saliency(name):
    """Steps along the sign make it a sum of absolute gradients, and a cosine is flat along its
    own token: planted tokens come last, not first."""
    host, data, detector = cases.planted()
    hits = []
    for sample in [s for s in data.test.samples if s.positive and detector.find(s)][:5]:
        f = objective(name, detector=detector, concept="animal", sample=sample)
        rivals = [replace(f, concept=f"rival {k}", measure=towards(k)) for k in range(40)]
        at = coalition_game(host, sample, [f, *rivals])
        own, *others = at(np.ones((1, at.n_players), bool))[0]
        rivals = [r for r, value in zip(rivals, others, strict=True) if value < own]
        if rivals:
            found = attribute(host, f, sample, "mfaba", preset="fast", rivals=rivals)
            words = sample.text.split()
            hits.append(words[int(found.importance.argmax())] in cases.ANIMALS)
            assert found.importance.min() >= 0
    assert len(hits) >= 4
    assert not any(hits)


def towards(seed):
    direction = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed))
    return lambda x, mask: token_mean(cosine(x, direction), mask)
