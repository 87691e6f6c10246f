"""One pass equals the sort of all values to the bit above the cut, and encloses it below; shards add up."""

import tracemalloc
import warnings

import numpy as np
import pytest
from jaxtyping import config

from sa_plugin.statistics import (
    DELTAS,
    EmptyConceptWarning,
    ExactTail,
    FewTokensWarning,
    ScoreChunks,
    quantiles,
    streaming_thresholds,
    tail_thresholds,
    to_keys,
    to_values,
)

LEVELS = 1 - np.array(DELTAS)
ALL = -np.inf


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


def tail_of(values, cuts, memory=1 << 26, chunks=1, mask=None):
    tail = ExactTail(cuts, memory)
    for rows in np.array_split(np.arange(len(values)), chunks):
        tail.update(values[rows], None if mask is None else mask[rows])
    return tail


def oracle(values, q):
    """The sort of every column of all values."""
    return np.stack([np.quantile(column.astype(np.float64), q) for column in values.T], axis=1) + 0.0


def same_bytes(one, other):
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in other.iterdir()) == ["tail.json", "tail.keys", "tail.npz"]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in files)


@pytest.mark.parametrize("memory", [1 << 26, 1 << 14, 64])
def test_above_the_cut_exact_to_the_bit_and_below_enclosed(memory):
    scores, _ = table(n=500 if memory == 64 else 4000)
    flat = scores.reshape(len(scores), -1)
    shares = [0.9, 0, 0.5, 0.99, 1, 0.7]
    cuts = np.array([np.quantile(column, share) for column, share in zip(flat.T, shares, strict=True)])
    q = np.concatenate([np.linspace(0, 1, 41), LEVELS, 1 - 10.0 ** -np.arange(2, 6)])
    tail = tail_of(flat, cuts, memory, chunks=7)
    found, true = tail.quantiles(q), oracle(flat, q)
    # Memory of 64 bytes sorts eight keys at a time: the many equal zeros come as an array of no memory.
    assert np.array_equal(tail.kept, (flat >= cuts).sum(0))
    assert (
        found.low[found.exact].tobytes() == found.high[found.exact].tobytes() == true[found.exact].tobytes()
    )
    assert ((found.low <= true) & (true <= found.high)).all()
    assert (found.low < found.high)[~found.exact].all()
    assert found.exact[:, 1].all()
    for level, k in np.argwhere(~found.exact):
        inside = ((flat[:, k] >= found.low[level, k]) & (flat[:, k] <= found.high[level, k])).sum()
        assert found.rank_error[level, k] > 0
        # All values between the ends, but those between bins that neither rank lies in.
        assert found.rank_error[level, k] <= inside
    # What is exact is what both ranks of the sort reach.
    ordered = np.sort(flat, axis=0)
    for k, cut in enumerate(cuts):
        virtual = (len(flat) - 1) * q
        ends = ordered[np.floor(virtual).astype(int), k]
        assert np.array_equal(found.exact[:, k], ends >= np.float32(cut))


@pytest.mark.parametrize("n", [1, 2, 7, 200])
def test_shards_merged_in_any_order_are_one_pass_to_the_bit(n, tmp_path):
    scores, labels = table()
    flat, cuts = (
        scores.reshape(len(scores), -1),
        np.quantile(table()[0].reshape(len(scores), -1), 0.9, axis=0),
    )
    rng = np.random.default_rng(n)
    whole = tail_of(flat, cuts, mask=labels)
    whole.save(tmp_path / "whole")
    parts = np.array_split(rng.permutation(len(flat)), n)
    for k, rows in enumerate(parts):
        # Some spill, some do not; some take their rows in pieces.
        memory, chunks = (1 << 8, 3) if k % 3 else (1 << 26, 1)
        tail_of(flat[rows], cuts, memory, chunks, labels[rows]).save(tmp_path / str(k))
    for order in [np.arange(n), *(rng.permutation(n) for _ in range(200 if n == 7 else 3))]:
        merged = ExactTail.open(tmp_path / str(order[0]))
        for k in order[1:]:
            merged.merge(ExactTail.open(tmp_path / str(k)))
        found, expected = merged.quantiles(LEVELS), whole.quantiles(LEVELS)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True))
    merged.save(tmp_path / "merged")
    assert same_bytes(tmp_path / "merged", tmp_path / "whole")
    # A merge of merges, as clusters make them, is the same again.
    if n > 2:
        halves = []
        for name, part in (("low", range(n // 2)), ("high", range(n // 2, n))):
            half = ExactTail(cuts)
            for k in part:
                half.merge(ExactTail.open(tmp_path / str(k)))
            halves.append(half.save(tmp_path / name))
        both = ExactTail.open(halves[1])
        both.merge(ExactTail.open(halves[0]))
        both.save(tmp_path / "both")
        assert same_bytes(tmp_path / "both", tmp_path / "whole")


def test_a_cut_by_rank_would_be_wrong_where_shards_differ():
    """Each shard keeping its own highest share loses the tail of the shard that holds most of it."""
    rng = np.random.default_rng(0)
    shards = [rng.standard_normal((1000, 1)).astype(np.float32) + np.float32(shift) for shift in (0, 0, 4)]
    whole = np.concatenate(shards)
    level = [1 - 300 / len(whole)]
    true = oracle(whole, level)
    by_rank = np.concatenate([np.sort(one, axis=0)[-100:] for one in shards])
    assert abs(np.sort(by_rank, axis=0)[-300, 0] - true[0, 0]) > 1
    merged = ExactTail([3.0])
    for one in shards:
        merged.merge(tail_of(one, [3.0]))
    assert merged.quantiles(level).low.tobytes() == true.tobytes()


def test_values_that_reach_a_threshold_are_counted_exactly():
    flat = table()[0].reshape(4000, -1)
    cuts = np.quantile(flat, 0.8, axis=0)
    tail = tail_of(flat, cuts, 1 << 12, chunks=5)
    exact = np.stack(
        [cuts, np.quantile(flat, 0.95, axis=0), flat.max(0), flat.max(0) * 2 + 1, flat[20] * 0 + np.inf]
    )
    thresholds = np.maximum(
        np.concatenate([exact, np.nextafter(exact, np.inf), np.nextafter(exact, -np.inf)]), cuts
    )
    expected = (flat[None].astype(np.float64) >= thresholds[:, None]).sum(1)
    assert np.array_equal(tail.reaching(thresholds), expected)
    assert np.array_equal(tail.reaching(thresholds[0]), expected[0])
    with pytest.raises(ValueError, match=r"threshold -?[\d.e+-]+ of column 4 is below its cut .*lower cut"):
        tail.reaching(np.where(np.arange(6) == 4, cuts - 1, cuts))


def test_memory_is_flat_and_the_disk_holds_four_bytes_a_value(tmp_path):
    """A thousand columns; the keys of a tail four times as large as the memory for it."""
    rng = np.random.default_rng(0)
    tail = ExactTail(np.full(1000, -1.0), memory=4 << 20)
    rows = rng.standard_normal((1000, 1000), dtype=np.float32)
    tracemalloc.start()
    for _ in range(5):
        tail.update(rows)
    tail.save(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = int(tail.kept.sum())
    assert 4 * kept > 16 << 20
    assert (tmp_path / "tail.keys").stat().st_size == 4 * kept
    assert peak < 100 << 20, peak
    assert (tmp_path / "tail.npz").stat().st_size < 2 << 20


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
        found = tail_of(x, [ALL], 128, chunks=3).quantiles(LEVELS)
        assert np.array_equal(found.low[:, 0], np.quantile(x[:, 0].astype(np.float64), LEVELS))
        assert found.exact.all()


def test_half_precision_is_exact_too():
    scores, labels = table()
    stored = np.clip(scores, -6e4, 6e4).astype(np.float16)
    found = streaming_thresholds(ScoreChunks(stored, labels, 500))
    assert found.tobytes() == tail_thresholds(stored.astype(np.float32), labels).tobytes()


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
    q = [0.0, 1e-6, 0.5, 1.0]
    found = tail_of(x, [ALL], 1 << 16, chunks=6).quantiles(q)
    assert np.array_equal(found.low[:, 0], quantiles(x[:, 0], q))


def test_keys_order_as_numbers_and_come_back():
    x = np.sort(np.random.default_rng(0).standard_normal(500).astype(np.float32))
    x[250] = -0.0
    x = np.sort(np.append(x, [0.0, -3e4, 3e4, -1e-40, 1e-40]).astype(np.float32))
    keys = to_keys(x)
    assert (np.diff(keys.astype(np.int64)) >= 0).all()
    back = to_values(keys)
    assert np.array_equal(back, x.astype(np.float64))
    assert not np.signbit(back[back == 0]).any()


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
    with pytest.raises(ValueError, match="chunks is empty"):
        streaming_thresholds([])
    with pytest.raises(ValueError, match=r"float64: .*astype\(np.float32\)"):
        streaming_thresholds(ScoreChunks(scores.astype(np.float64), labels))
    with pytest.raises(ValueError, match="50 rows of scores for 49 labels"):
        streaming_thresholds(ScoreChunks(scores, labels[:-1]))
    scores[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 NaN and 0 Inf"):
        streaming_thresholds(ScoreChunks(scores, labels | True))


def test_a_tail_checks_what_it_is_given(as_shipped, tmp_path):
    flat = table(n=50)[0].reshape(50, -1)
    tail = tail_of(flat, np.zeros(6))
    with pytest.raises(ValueError, match=r"cuts are .*: give one number for each column"):
        ExactTail([0.0, np.nan])
    with pytest.raises(ValueError, match="a tail of 5 columns cannot be merged into one of 6"):
        tail.merge(ExactTail(np.zeros(5)))
    with pytest.raises(ValueError, match=r"other cuts .*column 2: 0 here, 1 there.*same cuts"):
        tail.merge(ExactTail([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match=r"must be \[row, 6\]"):
        tail.update(flat[:, :5])
    with pytest.raises(ValueError, match="does not fit values"):
        tail.update(flat, np.ones((49, 3), bool))
    with pytest.raises(ValueError, match=r"q\[0\] is 1.5, not a number from 0 to 1"):
        tail.quantiles([1.5])
    assert repr(tail) == f"ExactTail(6 columns, 300 values, {(flat >= 0).sum()} of them kept)"
    with pytest.raises(
        FileNotFoundError, match=r"holds no tail.json: give a folder that ExactTail.save wrote"
    ):
        ExactTail.open(tmp_path)
    tail.save(tmp_path)
    (tmp_path / "tail.keys").write_bytes((tmp_path / "tail.keys").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"tail.keys is damaged or missing .*scan that block again"):
        ExactTail.open(tmp_path)
    record = (tmp_path / "tail.json").read_text()
    (tmp_path / "tail.json").write_text(record.replace('"kept"', '"kepd"'))
    with pytest.raises(ValueError, match="not what its digest says"):
        ExactTail.open(tmp_path)


def test_what_was_counted_beside_a_model_is_what_is_counted_here(tmp_path, as_shipped):
    flat = table(n=300)[0].reshape(300, -1)[:, :6]
    cuts = np.quantile(flat, 0.9, axis=0)
    here, there = tail_of(flat, cuts), ExactTail(cuts)
    for part in (flat[:100], flat[100:]):
        place = (to_keys(part) >> 20).astype(np.int64) + 4096 * np.arange(6)
        row, column = np.nonzero(part >= there.cuts)
        there.add(*np.unique(place, return_counts=True), column, part[row, column])
    for one, name in ((here, "here"), (there, "there")):
        one.save(tmp_path / name)
    for name in ("tail.json", "tail.npz", "tail.keys"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    none = np.zeros(0, dtype=np.int64)
    for bins in ([5, 4], [4, 4], [-1, 3], [3, 6 * 4096]):
        with pytest.raises(
            ValueError, match=r"each once and ascending, among the 24576 bins of 6 columns: count"
        ):
            there.add(np.array(bins), np.ones(2, np.int64), none, np.zeros(0, np.float32))
    with pytest.raises(
        ValueError, match="1 counts of 2 bins, and 0 columns of 0 values: give a count for each"
    ):
        there.add(np.array([1, 2]), np.ones(1, np.int64), none, np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="a value is below the cut of its column"):
        there.add(none, none, np.array([0]), np.float32([cuts[0] - 1]))


def test_a_tail_of_nothing():
    tail = ExactTail([0.0, ALL])
    tail.update(np.zeros((0, 2), np.float32))
    found = tail.quantiles([0.5])
    assert np.isposinf(found.low).all()
    assert found.exact.all()
    assert tail.reaching([0.0, 0.0]).tolist() == [0, 0]
