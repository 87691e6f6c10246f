"""A model whose layers lie on two devices gives what it gives on one, to the bit."""

import numpy as np
import pytest
import tiny
import torch
from fake_host import FakeHost
from two_devices import FIRST, SECOND, place, put, spread, two_devices
from word_data import word_data

from sa_nnsight import accept as accept_traced
from sa_plugin.concepts import collect, fit
from sa_plugin.detection import calibrate
from sa_plugin.host import Site
from sa_plugin.scores import score, tail_histogram
from sa_transformer_lens import accept as accept_bridge


class Spread(FakeHost):
    """The last block on another device; what is kept comes back on the CPU, as hosts hand it over."""

    def read(self, batch, sites, reduce):
        def moved(read):
            with two_devices():
                there = {
                    site: put(value, SECOND if site.layer == self.info.n_layers - 1 else FIRST)
                    for site, value in read.items()
                }
                return {name: value.cpu() for name, value in reduce(there).items()}

        return super().read(batch, sites, moved)


@pytest.fixture(scope="module")
def data():
    return word_data(60)


@pytest.mark.parametrize("need", [("means", "gram"), ("means", "gram", "rows")])
def test_the_fit_pass(data, need):
    one, two = (collect(host, data, need=need) for host in (FakeHost(), Spread()))
    for a, b in zip(
        (*one.token, *one.permuted, *one.pooled), (*two.token, *two.permuted, *two.pooled), strict=True
    ):
        assert a.mean.equal(b.mean)
        assert a.gram.equal(b.gram)
        assert a.positive_mean.equal(b.positive_mean)
        assert a.rows is None or np.array_equal(a.rows.stored, b.rows.stored)
    assert one.component_means.z.equal(two.component_means.z)


@pytest.mark.filterwarnings("ignore::sa_plugin.statistics.FewTokensWarning")
def test_the_score_pass_and_push_down(data):
    bank = fit(FakeHost(), data, "prototype")
    one, two = (score(host, data, bank) for host in (FakeHost(), Spread()))
    for name in ("scores", "permuted_max", "pooled"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    detectors = [calibrate(host, data, bank, scores=one) for host in (FakeHost(), Spread())]
    found = [one.detect(data.test) for one in detectors]
    np.testing.assert_array_equal(found[0].margin, found[1].margin)
    histograms = [tail_histogram(host, data.test, bank) for host in (FakeHost(), Spread())]
    for key, counts in histograms[0].counts.items():
        np.testing.assert_array_equal(counts, histograms[1].counts[key])


def bridge(model):
    from transformer_lens.model_bridge import TransformerBridge

    options = {
        "hf_model": model,
        "tokenizer": tiny.tokenizer("llama"),
        "device": "cpu",
        "dtype": torch.float32,
    }
    return TransformerBridge.boot_transformers("tiny-llama", **options)


def traced(model):
    from nnsight import TransformersModel

    with tiny.quiet_names():
        return TransformersModel(model, tokenizer=tiny.tokenizer("llama"))


@pytest.mark.parametrize(("wrapped", "accept"), [(bridge, accept_bridge), (traced, accept_traced)])
def test_a_spread_model_is_attached_fitted_and_scored(wrapped, accept, data):
    """Attaching compares neighbours on two devices, finds what is where, and tells nothing apart."""
    whole = accept(wrapped(tiny.hf_model("llama")), progress=False)
    bank = fit(whole, data, "separator")
    expected = score(whole, data, bank)
    model = tiny.hf_model("llama")
    spread(model, model.model.layers, 2)
    with two_devices():
        host = accept(wrapped(model), progress=False)
        found = score(host, data, bank)
        again = fit(host, data, "separator")
        (batch,) = host.batches(data.samples[:1])
        sites = [Site(layer, "resid_post") for layer in range(3)]
        where = []
        host.read(batch, sites, lambda read: where.append([place(read[site]) for site in sites]) or {})
    assert where == [[FIRST, FIRST, SECOND]]
    assert host.info.block == "pre_norm"
    assert host.info.fingerprint == whole.info.fingerprint
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert again.token.vectors.equal(bank.token.vectors)


def test_two_devices_refuse_to_meet():
    """The stand-in is worth something only if it refuses what GPUs refuse."""
    with two_devices():
        a, b = put(torch.ones(3), FIRST), put(torch.ones(3), SECOND)
        with pytest.raises(RuntimeError, match="same device, but found"):
            a + b
        with pytest.raises(RuntimeError, match="same device"):
            torch.stack([a, b])
        with pytest.raises(RuntimeError, match="same device"):
            a[b > 0]
        with pytest.raises(TypeError, match="to numpy"):
            a.numpy()
        assert place(a + b.to(a.device)) == FIRST
        assert place((a @ a) * b) == SECOND
        assert (a.cpu() + 1).numpy().tolist() == [2.0] * 3
