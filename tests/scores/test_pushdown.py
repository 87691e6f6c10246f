"""What travels instead of token scores says the same as they do."""

import numpy as np
import pytest
import torch
from fake_host import Elsewhere, FakeHost, in_batches
from word_data import word_data

from sa_plugin.concepts import ConceptBank, fit
from sa_plugin.detection import calibrate
from sa_plugin.host import Host, reducers
from sa_plugin.scores import sample_maxima, score, tail_histogram
from sa_plugin.statistics import to_keys


@pytest.fixture(scope="module")
def host():
    return FakeHost()


@pytest.fixture(scope="module")
def data():
    return word_data(120)


@pytest.fixture(scope="module")
def bank(host, data):
    return fit(host, data, "prototype")


def test_maxima_and_places_are_those_of_the_scores(host, data, bank):
    table = score(host, data, bank, splits=("test",))
    found = sample_maxima(in_batches(host, 40), data.test.samples, bank, top=3, positions=True)
    assert found.position is not None
    for n in range(table.tokens.n_samples):
        rows = slice(table.tokens.bounds[n], table.tokens.bounds[n + 1])
        scores, place = table.scores[rows], table.tokens.position[rows]
        assert found.kept[n] == len(scores)
        top = min(3, len(scores))
        np.testing.assert_allclose(found.scores[n, :top], -np.sort(-scores, axis=0)[:top], atol=1e-5)
        # The same word twice has the same score, so the place is checked by its score.
        at = np.searchsorted(place, found.position[n, 0])
        np.testing.assert_allclose(np.take_along_axis(scores, at[None], 0)[0], scores.max(0), atol=1e-5)
        assert np.isneginf(found.scores[n, top:]).all()


def test_more_places_than_tokens_may_be_asked_for(host, data, bank):
    found = sample_maxima(in_batches(host, 1), data.test.samples, bank, top=60, positions=True)
    assert np.isneginf(found.scores[:, -1]).all()
    table = score(host, data, bank, splits=("test",))
    lengths = np.diff(table.tokens.bounds)
    for n, length in enumerate(lengths):
        places = np.sort(found.position[n, :length], axis=0)
        assert (places == table.tokens.position[table.tokens.rows_of(np.array([n]))][:, None, None]).all()


def test_a_detector_decides_the_same_without_token_scores(host, data, bank):
    detector = calibrate(host, data, bank)
    table = score(host, data, bank, splits=("test",))
    fast, slow = detector.detect(data.test), detector.detect(data.test, scores=table)
    assert fast.samples == slow.samples
    np.testing.assert_allclose(fast.margin, slow.margin, atol=1e-5)
    far = np.abs(slow.margin) > 1e-5
    np.testing.assert_array_equal(fast.present[far], slow.present[far])


def test_a_narrow_bank_keeps_its_sink_rule(bank):
    one = bank.only([2], [1])
    assert (one.layers, one.units, one.sink_layers) == ((2,), ("food",), bank.sink_layers)


def test_bins_are_the_high_bits_of_the_keys():
    values = np.array([-3e38, -1.5, -1e-40, -0.0, 0.0, 1e-40, 0.3, 1.0, 1.0039, 2e38], np.float32)
    every = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16) | np.uint32(0x1234)).view(np.float32)
    for some in (values, every[np.isfinite(every)]):
        ours = reducers.bins(torch.from_numpy(some)).numpy()
        np.testing.assert_array_equal(ours, to_keys(some) >> np.uint32(16))


def test_a_histogram_encloses_thresholds_and_shares(host, data, bank):
    table = score(host, data, bank, splits=("cal",))
    found = tail_histogram(in_batches(host, 40), data.cal, bank)
    for k, layer in enumerate(bank.layers):
        for c, unit in enumerate(bank.units):
            inside = table.tokens.labels[:, c]
            scores = table.scores[:, k, c].astype(np.float64)
            assert found.total(True, layer, unit) == inside.sum()
            assert found.total(False, layer, unit) == (~inside).sum()
            for delta in (0.02, 0.1, 0.5, 1.0):
                low, high = found.thresholds(delta, layer, unit)
                exact = np.quantile(scores[inside], 1 - delta)
                assert low <= exact <= high
                for where, mask in ((True, inside), (False, ~inside)):
                    share = (scores[mask] >= exact).mean()
                    least, most = found.above(exact, layer, unit, inside=where)
                    assert least <= share <= most


@pytest.mark.parametrize("kind", ["prototype", "lda", "separator"])
def test_sums_of_several_batches_fit_the_same_vectors(data, kind):
    here = fit(in_batches(FakeHost(), 40), data, kind)
    there = fit(in_batches(Elsewhere(), 40), data, kind)
    for name in ("token", "permuted", "pooled"):
        torch.testing.assert_close(
            getattr(there, name).vectors, getattr(here, name).vectors, atol=1e-5, rtol=1e-4
        )
    assert there.origin.counts == here.origin.counts


def test_pooled_sums_equal_pooled_rows(host, data):
    from sa_plugin.concepts import collect

    sums = collect(host, data, need=("means", "gram"))
    rows = collect(host, data, need=("means", "gram", "rows"))
    for one, other in zip(sums.pooled, rows.pooled, strict=True):
        assert one.scale == pytest.approx(other.scale, rel=1e-6)
        torch.testing.assert_close(one.positive_mean, other.positive_mean, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(one.gram, other.gram, atol=1e-6, rtol=1e-5)
        assert one.rows is None


def test_scores_and_histograms_of_a_host_elsewhere(host, data, bank):
    host, there = in_batches(host, 40), in_batches(Elsewhere(), 40)
    assert isinstance(there, Host)
    a = score(host, data, bank)
    b = score(there, data, bank)
    np.testing.assert_array_equal(a.scores, b.scores)
    one, other = (tail_histogram(h, data.cal, bank) for h in (host, there))
    for key in one.bins:
        np.testing.assert_array_equal(one.bins[key], other.bins[key])
        np.testing.assert_array_equal(one.counts[key], other.counts[key])


def test_refusals(host, data, bank):
    with pytest.raises(ValueError, match=r"top is 0: give 1 or more"):
        sample_maxima(host, data.test.samples, bank, top=0)
    clusters = fit(host, data, "kmeans", options={"k": 4})
    with pytest.raises(ValueError, match="units are no concepts"):
        tail_histogram(host, data.cal, clusters)
    found = tail_histogram(host, data.cal, bank)
    with pytest.raises(ValueError, match=r"delta is 0.0: give a share above 0"):
        found.thresholds(0.0, 2, "food")
    vectors = {("animal", 1): torch.ones(12), ("none", 1): torch.ones(12)}
    other = tail_histogram(
        host, data.cal, ConceptBank.from_vectors({k: v for k, v in vectors.items() if k[0] == "animal"})
    )
    assert other.total(True, 1, "animal") > 0
