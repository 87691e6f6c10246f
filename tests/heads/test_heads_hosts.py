"""Ledger, waterfall, ablations and theorems are the same numbers through TransformerLens and nnsight."""

from functools import cache

import numpy as np
import pandas
import pytest
import tiny
from word_data import word_data

from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData, Splits
from sa_plugin.detection import calibrate
from sa_plugin.heads import Intervention, ablate_heads, explain_tokens, head_ledger, tail_waterfall
from sa_plugin.statistics import Resampling
from sa_plugin.theory import Conditions, check_theory

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
EVERY = ("gpt2", "llama", "gemma2", "bert", "vit", "dinov2")


def pictures():
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (40, 52, 3), dtype=np.uint8) for _ in range(24)]
    masks = [{"a": rng.random((40, 52)) < 0.02 * (k % 2)} for k in range(24)]
    return ConceptData.from_masks(pixels, masks)


@cache
def pair(name):
    """Both hosts, data, and one bank and detector for both."""
    if name in tiny.VISION:
        # TransformerLens reads DINOv2 as a ViT with its LayerScale folded.
        ours = tiny.nnsight_vision_host(name, folded=name == "dinov2")
        hosts, data = (tiny.vision_host(name), ours), pictures()
    else:
        hosts, data = (tiny.host(name), tiny.nnsight_host(name)), word_data(40, 5)
    bank = fit(hosts[0], data, "prototype")
    return hosts, data, bank, calibrate(hosts[0], data, bank, deltas=(0.3,))


def same(one, two, atol=1e-3):
    """Up to the rounding of two libraries, relative to the largest number."""
    np.testing.assert_array_equal(np.isnan(one), np.isnan(two))
    if np.isfinite(two).any():
        scale = np.nanmax(np.abs(two))
        np.testing.assert_allclose(one, two, rtol=0, atol=atol * max(scale, 1e-6))


@pytest.mark.parametrize("name", EVERY)
def test_ledger_and_waterfall(name):
    hosts, data, _, detector = pair(name)
    for run in (head_ledger, tail_waterfall):
        lens, ours = (run(host, data, detector, resampling=Resampling(20)) for host in hosts)
        assert max(lens.residue, ours.residue) < 1e-5
        assert lens.effects.keys() == ours.effects.keys()
        for effect in lens.effects:
            same(ours.effects[effect].terms.estimate, lens.effects[effect].terms.estimate)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bert"])
def test_ablations(name):
    rng = np.random.default_rng(0)
    words = ("cat", "dog", "sat", "mat", "people", "walk", "home", "night")
    texts = [list(rng.choice(words, 8)) for _ in range(40)]
    labels = [["animal" if w in ("cat", "dog") else None for w in row] for row in texts]
    data = ConceptData.from_words(texts, labels, splits=Splits(seed=1))
    lens, ours = tiny.host(name), tiny.nnsight_host(name)
    detector = calibrate(lens, data, fit(lens, data, "prototype", layers=[2]), deltas=(0.3,))
    modes = ("mean", "zero", "pattern", "directional")
    for mode in modes if ours.info.block == "pre_norm" else modes[:-1]:
        options = {"how": Intervention(mode), "resampling": Resampling(10)}
        found = [ablate_heads(host, data, detector, [(1, 2)], **options).table() for host in (ours, lens)]
        pandas.testing.assert_frame_equal(*found, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["prototype", "lda"])
@pytest.mark.parametrize("tower", tiny.VISION)
@pytest.mark.parametrize("attached", [tiny.vision_host, tiny.nnsight_vision_host])
def test_the_ledger_closes_on_every_tower(attached, tower, kind):
    """DINOv2 as itself through nnsight, its LayerScale a module; as a ViT through TransformerLens."""
    host, data = attached(tower), pictures()
    bank = fit(host, data, kind)
    assert bank.cls is not None
    assert head_ledger(host, data, bank, resampling=Resampling(20)).residue < 1e-6
    one = explain_tokens(host, bank, data.test.samples[0], "a", layer=2)
    np.testing.assert_allclose(one.terms.sum(1), one.score, atol=2e-5)
    assert one._repr_html_().count("<rect") >= len(one.score)
    upper, lower = one.plot().axes
    assert len(upper.patches) >= len(one.score)
    assert len(lower.patches) == min(12, len(one.components))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit"])
def test_theorems(name):
    hosts, data, bank, _ = pair(name)
    lens, ours = (
        check_theory(host, data, bank, how=Conditions(n_random=3), resampling=Resampling(20))
        for host in hosts
    )
    assert lens.quantities.keys() == ours.quantities.keys()
    for key, found in lens.quantities.items():
        assert found.keys() == ours.quantities[key].keys()
        for quantity in (
            "gap_deviation_ratio",
            "heads_gap_deviation_ratio",
            "attention_by_sign",
            "predicted_factor",
            "path_gap_slope",
            "skew",
        ):
            if quantity in found:
                same(ours.quantities[key][quantity].measured.estimate, found[quantity].measured.estimate)
    assert [v.answer for v in lens.verdicts] == [v.answer for v in ours.verdicts]
