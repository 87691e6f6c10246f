"""Both hosts explain alike, and their input gradients are finite differences."""

from functools import cache

import attribution_cases as cases
import numpy as np
import pytest
import tiny
import torch

from sa_plugin.attribution import METHODS, ForwardFunc, coalition_game, explain_game, objective

pytest.importorskip("nnsight")
NAMES = ("gpt2", "bert", "vit")
# The nnsight host sees the original model's modules, TransformerLens its own split of them.
OTHERS = [m for m in METHODS if m not in ("mfaba", "full_grad")]


@cache
def games(name):
    """The same sample and objectives on both hosts."""
    bridge, detector, sample, made = cases.chosen(name)
    other = tiny.nnsight_vision_host(name) if name in tiny.VISION else tiny.nnsight_host(name)
    again = [objective(f.name, detector=detector, concept=f.concept, sample=sample, host=other) for f in made]
    return coalition_game(bridge, sample, made), coalition_game(other, sample, again)


@pytest.mark.parametrize("name", NAMES)
def test_explainers_agree_on_both_hosts(name):
    ours, theirs = games(name)
    for method in OTHERS:
        one, two = (explain_game(game, method, preset="fast").importance for game in (ours, theirs))
        scale = np.abs(one).max()
        assert np.abs(one - two).max() < 2e-3 * scale, method


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_full_grad_finds_the_same_biases_on_both_hosts(name):
    ours, theirs = (explain_game(game, "full_grad") for game in games(name))
    np.testing.assert_allclose(ours.importance, theirs.importance, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("host", [0, 1], ids=["transformer_lens", "nnsight"])
def test_gradients_of_objectives_equal_finite_differences(name, host):
    game = games(name)[host]
    for k in range(2):
        f = ForwardFunc(game, k)
        leaf = game.values.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(f(leaf).sum(), leaf)
        direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(k))
        direction = direction / direction.norm() * game.values.norm()
        step = 3e-3
        with torch.no_grad():
            at = {s: float(f(game.values + s * step * direction)) for s in (-2, -1, 1, 2)}
        slope = (at[-2] - at[2] + 8 * (at[1] - at[-1])) / (12 * step)
        expected = float((gradient * direction).sum())
        assert expected == pytest.approx(slope, rel=2e-2, abs=2e-4)
