"""What ablations do on nnsight: its own traces see them, and they equal TransformerLens'."""

import nnsight
import pytest
import tiny
import torch

from sa_plugin.host import Site

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
