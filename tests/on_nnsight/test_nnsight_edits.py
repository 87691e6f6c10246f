"""What ablations do on nnsight: its own traces see them, and they equal TransformerLens'."""

import nnsight
import numpy as np
import pytest
import tiny
import torch

from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData, Splits
from sa_plugin.detection import calibrate
from sa_plugin.heads import Intervention, ablate_heads
from sa_plugin.host import Site
from sa_plugin.statistics import Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
EVERY = (*tiny.ARCHITECTURES, "vit", "dinov2", "clip_vision", "clip_text")
LAST = Site(2, "resid_post")


def make(name):
    if name in (*tiny.VISION, "clip_text"):
        return tiny.nnsight_vision_host(name)
    return tiny.nnsight_host(name)


@pytest.fixture(scope="module")
def gpt2():
    return make("gpt2")


def batch_of(host):
    samples = tiny.images() if hasattr(host.reader, "processor") else tiny.samples(tiny.TEXTS[:3])
    return host.batches(samples)[0]


def read(host, batch, site=LAST):
    return host.read(batch, [site], lambda found: {"x": found[site]})["x"]


def without_head(z):
    z[:, :, 1] = 0
    return z


def test_a_trace_of_the_users_own_sees_it(gpt2):
    batch = batch_of(gpt2)
    with gpt2.edited({Site(1, "z"): without_head}):
        expected = read(gpt2, batch)
        with torch.no_grad(), gpt2.model.trace(**batch.inputs) as tracer:
            found = nnsight.save(gpt2.model.transformer.h[2].output)
            tracer.stop()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bert"])
def test_ablations_equal_those_of_transformer_lens(name):
    rng = np.random.default_rng(0)
    words = ("cat", "dog", "sat", "mat", "people", "walk", "home", "night")
    texts = [list(rng.choice(words, 8)) for _ in range(40)]
    labels = [["animal" if w in ("cat", "dog") else None for w in row] for row in texts]
    data = ConceptData.from_words(texts, labels, splits=Splits(seed=1))
    lens, ours = tiny.host(name), make(name)
    bank = fit(lens, data, "prototype", layers=[2])
    detector = calibrate(lens, data, bank, deltas=(0.3,))
    modes = ("mean", "zero", "pattern", "directional")
    for mode in modes if ours.info.block == "pre_norm" else modes[:-1]:
        found = [
            ablate_heads(host, data, detector, [(1, 2)], how=Intervention(mode), resampling=Resampling(10))
            for host in (ours, lens)
        ]
        assert_frames_close(*(one.table() for one in found))


def assert_frames_close(ours, theirs):
    import pandas

    pandas.testing.assert_frame_equal(ours, theirs, rtol=1e-2, atol=1e-3)
