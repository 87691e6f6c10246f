"""Streaming quantiles equal those in memory to the bit; shards add up to the whole."""

import warnings

import numpy as np
import pytest
import torch
from jaxtyping import config

from sa_plugin.statistics import (
    DELTAS,
    EmptyConceptWarning,
    FewTokensWarning,
    RadixHistogram,
    ScoreChunks,
    quantiles,
    streaming_thresholds,
    tail_thresholds,
    to_keys,
    to_values,
)

LEVELS = 1 - np.array(DELTAS)


@pytest.fixture
def as_shipped():
    """Users run without the shape checks of the tests: what they see are the library's errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def table(n=4000, layers=2, concepts=3, seed=0):
    rng = np.random.default_rng(seed)
    scores = (rng.standard_normal((n, layers, concepts)) * [1e-3, 1, 1e6]).astype(np.float32)
    scores[::5] = np.round(scores[::5], 1)
    scores[::11] = -0.0
    scores[::13] = 0.0
    return scores, rng.random((n, concepts)) < [0.05, 0.3, 0.8]


def bfloat16_bits(scores):
    return torch.from_numpy(scores).bfloat16().view(torch.uint16).numpy()


@pytest.mark.parametrize("size", [1, 97, 4000, 65_536])
def test_streaming_equals_in_memory_to_the_bit(size):
    scores, labels = table(n=300 if size == 1 else 4000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = tail_thresholds(scores, labels)
        streamed = streaming_thresholds(ScoreChunks(scores, labels, size))
    assert whole.tobytes() == streamed.tobytes()


def test_quantiles_of_a_stream_are_numpys():
    rng = np.random.default_rng(4)
    for _ in range(100):
        x = (rng.standard_normal((int(rng.integers(1, 300)), 1)) * 10).astype(np.float32)
        if rng.random() < 0.5:
            x = np.round(x)
        histogram = RadixHistogram(1)
        chunks = [(part, None) for part in np.array_split(x, 3)]
        for part, _none in chunks:
            histogram.update(part)
        expected = np.quantile(x[:, 0].astype(np.float64), LEVELS)
        assert np.array_equal(histogram.quantiles(LEVELS, chunks)[:, 0], expected)


def test_merged_shards_are_the_whole():
    scores, labels = table()
    flat = scores.reshape(len(scores), -1)
    whole, merged = RadixHistogram(6), RadixHistogram(6)
    whole.update(flat, labels)
    for part in np.array_split(np.arange(len(flat)), 7):
        shard = RadixHistogram(6)
        shard.update(flat[part], labels[part])
        merged.merge(shard)
    assert np.array_equal(merged.counts, whole.counts)
    assert merged.low_bits == whole.low_bits
    everything = [(flat, labels)]
    found = merged.quantiles(LEVELS, everything)
    assert found.tobytes() == whole.quantiles(LEVELS, everything).tobytes()
    assert found.tobytes() == tail_thresholds(scores, labels).tobytes()


def test_order_and_cut_of_the_second_pass_do_not_matter():
    scores, labels = table()
    flat = scores.reshape(len(scores), -1)
    histogram = RadixHistogram(6)
    histogram.update(flat, labels)
    order = np.random.default_rng(0).permutation(len(flat))
    shuffled = [(flat[p], labels[p]) for p in np.array_split(order, 5)]
    expected = histogram.quantiles(LEVELS, [(flat, labels)])
    assert histogram.quantiles(LEVELS, iter(shuffled)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("format", ["float16", "bfloat16", "bfloat16 in float32"])
def test_sixteen_bits_need_one_pass(format):
    scores, labels = table()
    scores = np.clip(scores, -6e4, 6e4)
    if format == "float16":
        stored = scores.astype(np.float16)
        exact = stored.astype(np.float32)
    else:
        bits = bfloat16_bits(scores)
        exact = (bits.astype(np.uint32) << 16).view(np.float32)
        stored = bits if format == "bfloat16" else exact
    histogram = RadixHistogram(6, format.split()[-1])
    histogram.update(stored.reshape(len(stored), -1), labels)
    assert not histogram.low_bits
    found = histogram.quantiles(LEVELS)
    assert found.tobytes() == tail_thresholds(exact, labels).tobytes()


def test_a_stream_of_bfloat16_bits():
    scores, labels = table()
    bits = bfloat16_bits(scores)
    exact = (bits.astype(np.uint32) << 16).view(np.float32)
    streamed = streaming_thresholds(ScoreChunks(bits, labels, 500), format="bfloat16")
    assert streamed.tobytes() == tail_thresholds(exact, labels).tobytes()


def test_a_memory_map_is_read_in_chunks(tmp_path):
    scores, labels = table()
    path = tmp_path / "scores.f32"
    scores.tofile(path)
    stored = np.memmap(path, dtype=np.float32, mode="r", shape=scores.shape)
    streamed = streaming_thresholds(ScoreChunks(stored, labels, 256))
    assert streamed.tobytes() == tail_thresholds(scores, labels).tobytes()


def test_many_equal_keys_stay_few_in_memory():
    x = np.full((600_000, 1), 0.1, dtype=np.float32)
    x[:3] = [[-1], [0.3], [7]]
    chunks = [(part, None) for part in np.array_split(x, 6)]
    histogram = RadixHistogram(1)
    for part, _none in chunks:
        histogram.update(part)
    q = [0.0, 1e-6, 0.5, 1.0]
    assert np.array_equal(histogram.quantiles(q, chunks)[:, 0], quantiles(x[:, 0], q))


@pytest.mark.parametrize("format", ["float32", "float16", "bfloat16"])
def test_keys_order_as_numbers_and_come_back(format):
    x = np.sort(np.random.default_rng(0).standard_normal(500).astype(np.float32))
    x[250] = -0.0
    x = np.sort(np.append(x, [0.0, -3e4, 3e4]).astype(np.float32))
    stored = {"float32": x, "float16": x.astype(np.float16)}.get(format)
    if stored is None:
        stored = bfloat16_bits(x)
    keys = to_keys(stored, format)
    assert (np.diff(keys.astype(np.int64)) >= 0).all()
    back = to_values(keys, format)
    exact = (stored.astype(np.uint32) << 16).view(np.float32) if format == "bfloat16" else stored
    assert np.array_equal(back, exact.astype(np.float64))
    assert not np.signbit(back[back == 0]).any()


def test_every_float16_has_its_own_key():
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = np.sort(bits[np.isfinite(bits)])
    keys = to_keys(finite, "float16").astype(np.int64)
    assert np.array_equal(np.diff(keys) > 0, np.diff(finite) > 0)


def test_named_warnings_and_infinite_thresholds():
    scores, labels = table()
    labels[:, 1], labels[30:, 0] = False, False
    labels[:30, 0] = True
    with pytest.warns(EmptyConceptWarning, match="'b'"), pytest.warns(FewTokensWarning, match="'a'"):
        found = streaming_thresholds(ScoreChunks(scores, labels), names=list("abc"))
    assert np.isposinf(found[..., 1]).all()
    assert np.isfinite(found[..., [0, 2]]).all()


def test_what_cannot_be_streamed_is_refused(as_shipped):
    scores, labels = table(n=50)
    chunks = ScoreChunks(scores, labels)
    with pytest.raises(ValueError, match="one-shot iterator"):
        streaming_thresholds(iter(chunks))
    with pytest.raises(ValueError, match="chunks is empty"):
        streaming_thresholds([])
    with pytest.raises(ValueError, match=r"float64: .*astype\(np.float32\)"):
        streaming_thresholds(ScoreChunks(scores.astype(np.float64), labels))
    with pytest.raises(ValueError, match="50 rows of scores for 49 labels"):
        streaming_thresholds(ScoreChunks(scores, labels[:-1]))
    scores[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 NaN and 0 Inf"):
        streaming_thresholds(chunks)


def test_a_histogram_checks_what_it_is_given(as_shipped):
    scores, labels = table(n=50)
    flat = scores.reshape(50, -1)
    histogram = RadixHistogram(6)
    histogram.update(flat, labels)
    with pytest.raises(ValueError, match="need a second pass"):
        histogram.quantiles([0.5])
    with pytest.raises(ValueError, match="the same chunks in both passes"):
        histogram.quantiles([0.5], [(flat[:20], labels[:20])])
    with pytest.raises(ValueError, match="columns and format differ"):
        histogram.merge(RadixHistogram(5))
    with pytest.raises(ValueError, match=r"must be \[row, 6\]"):
        histogram.update(flat[:, :5])
    with pytest.raises(ValueError, match="values are float16, the histogram holds float32"):
        histogram.update(np.zeros((3, 6), np.float16))
    assert repr(histogram).startswith("RadixHistogram(6 columns, float32, ")
