"""Labelled corpora, by blocks: shards in any order are one pass to the bit, one pass that in memory."""

import json
import pickle
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from fake_host import FakeHost
from word_data import word_data

from sa_plugin._files import DamagedFileError
from sa_plugin.concepts import RowLimits, SortedCorpusWarning, collect, collect_blocks, fit
from sa_plugin.data import ConceptData, Splits
from sa_plugin.detection import calibrate
from sa_plugin.loaders import UnreadableWarning, labelled_corpus
from sa_plugin.scores import score, score_blocks
from sa_plugin.statistics import Resampling, mixed, name_keys
from sa_plugin.tracing import trace

NEED = ("means", "gram", "rows")
COLUMNS = {"text": "text", "spans": "spans", "id": "id", "document": "document"}
FEW = RowLimits(per_class=40)


def rows_of(data):
    return [
        {"id": s.id, "text": s.text, "document": s.document, "spans": [list(span) for span in s.spans]}
        for s in data.samples
    ]


@pytest.fixture(scope="module")
def host():
    return FakeHost()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "words.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(word_data(150, documents=60))))
    return path


@pytest.fixture(scope="module")
def data(path):
    return labelled_corpus(path, columns=COLUMNS, block_size=16)


@pytest.fixture(scope="module")
def in_memory(data):
    """The same samples and splits, one block."""
    samples = [sample.loaded for sample in data.samples]
    return ConceptData.from_samples(samples, data.concepts, list(data.split_of))


def bits(value):
    """All numbers of a result as bytes."""
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, float):
        return np.float64(value).tobytes()
    if isinstance(value, tuple | list):
        return [bits(one) for one in value]
    if hasattr(value, "stored"):
        return bits([value.stored, value.mean, value.scale])
    return value


def everything(statistics):
    layers = [
        [bits(getattr(one, name)) for name in one.__dataclass_fields__]
        for name in ("token", "permuted", "pooled", "cls")
        for one in getattr(statistics, name)
    ]
    means, tokens = statistics.component_means, statistics.tokens
    rest = [
        means.embedding,
        means.z,
        means.mlp,
        tokens.labels,
        tokens.offsets,
        tokens.position,
        tokens.sample_of,
    ]
    return layers, bits(rest), dict(statistics.settings), dict(tokens.dropped)


@pytest.mark.parametrize("limits", [RowLimits(), FEW], ids=["all rows", "few rows"])
def test_shards_in_any_order_collect_what_one_pass_does(host, data, tmp_path, limits):
    whole = everything(collect(host, data, need=NEED, limits=limits))
    rng = np.random.default_rng(0)
    for n in (1, 2, 7):
        folder = tmp_path / str(n)
        for i in rng.permutation(n).tolist():
            collect_blocks(host, data, folder, shard=(i, n), need=NEED, limits=limits)
        passes = host.passes
        merged = collect(host, data, need=NEED, limits=limits._replace(folder=folder))
        assert everything(merged) == whole
        # All blocks were there: nothing was run.
        assert host.passes == passes


def test_killed_and_started_again_collects_the_same(host, data, tmp_path):
    whole = everything(collect(host, data, need=NEED, limits=FEW))
    limits = FEW._replace(folder=tmp_path)
    collect_blocks(host, data, tmp_path, blocks=[3, 0, 5], need=NEED, limits=FEW)
    assert sorted(one.name for one in tmp_path.glob("*.npz")) == [f"train-0000000{k}.npz" for k in (0, 3, 5)]
    (tmp_path / ".partial-abc.npz").write_bytes(b"half of a block")
    assert everything(collect(host, data, need=NEED, limits=limits)) == whole
    # A worker that knows nothing of the others stores more rows of its block, and the same in the end.
    first = tmp_path / "train-00000007.npz"
    size = first.stat().st_size
    first.unlink()
    collect_blocks(host, data, tmp_path, blocks=[7], need=NEED, limits=FEW)
    assert first.stat().st_size > size
    assert everything(collect(host, data, need=NEED, limits=limits)) == whole


def test_blocks_collect_what_memory_does(host, data, in_memory):
    """To rounding: batches are others. Rows are drawn alike, and permuted labels are not: within blocks."""
    for limits in (RowLimits(), FEW):
        found = collect(host, data, need=NEED, limits=limits)
        expected = collect(host, in_memory, need=NEED, limits=limits)
        for name in ("token", "pooled"):
            for a, b in zip(getattr(found, name), getattr(expected, name), strict=True):
                for part in ("mean", "positive_mean", "gram"):
                    torch.testing.assert_close(getattr(a, part), getattr(b, part), atol=1e-6, rtol=1e-5)
                assert a.scale == pytest.approx(b.scale, rel=1e-6)
                assert a.positive_count.equal(b.positive_count)
        for a, b in zip(found.pooled, expected.pooled, strict=True):
            np.testing.assert_allclose(a.rows.stored, b.rows.stored, atol=1e-5)
            np.testing.assert_array_equal(a.labels, b.labels)
        assert [s.id for s in found.tokens.samples] == [s.id for s in expected.tokens.samples]
        np.testing.assert_array_equal(found.tokens.offsets, expected.tokens.offsets)
    for name in ("prototype", "lda", "separator"):
        one, other = fit(host, data, name, controls=False), fit(host, in_memory, name, controls=False)
        torch.testing.assert_close(one.token.vectors, other.token.vectors, atol=1e-4, rtol=1e-3)


def test_permuted_labels_are_the_true_ones_of_other_samples_of_the_block(host, data):
    found = collect(host, data, need=("means",))
    assert all(
        a.positive_count.equal(b.positive_count) for a, b in zip(found.token, found.permuted, strict=True)
    )
    assert not torch.allclose(found.token[0].positive_mean, found.permuted[0].positive_mean)


def test_rows_are_the_smallest_hashes_of_each_class(host, data):
    """The oracle reads nothing but names, places and labels of a pass that stores all."""
    every, few = collect(host, data, need=NEED), collect(host, data, need=NEED, limits=FEW)
    tokens = every.tokens
    names = [f"{s.document}\n{s.id}" for s in tokens.samples]
    keys = [
        int(mixed(name_keys([names[n]], 0), int(p))[0])
        for n, p in zip(tokens.sample_of, tokens.position, strict=True)
    ]
    labels = np.concatenate([every.token[0].labels, every.permuted[0].labels], axis=1)
    wanted = set()
    for column in labels.T:
        for side in (column, ~column):
            wanted |= set(sorted(np.flatnonzero(side), key=keys.__getitem__)[:40])
    rows = sorted(wanted)
    assert len(rows) < len(tokens) / 2
    for a, b in zip(every.token, few.token, strict=True):
        np.testing.assert_array_equal(a.rows.stored[rows], b.rows.stored)
        np.testing.assert_array_equal(a.labels[rows], b.labels)


def quietly(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def test_shards_score_calibrate_evaluate_and_trace_as_one_pass_does(host, data, in_memory, tmp_path):
    bank = fit(host, data, "prototype")

    few = Resampling(draws=50)

    def results(table):
        detector = calibrate(None, data, bank, scores=table)
        found = detector.evaluate(data.test, scores=table, resampling=few)
        return found.to_dict(), detector.to_dict(), trace(scores=table, resampling=few).to_dict()

    whole = score(host, data, bank)
    expected = quietly(lambda: results(whole))
    for n in (1, 2, 7):
        for i in np.random.default_rng(n).permutation(n).tolist():
            score_blocks(host, data, bank, tmp_path / str(n), shard=(i, n))
        passes = host.passes
        merged = score(host, data, bank, folder=tmp_path / str(n), memory_budget=0 if n == 7 else 1 << 30)
        assert host.passes == passes
        for name in ("scores", "permuted_max", "pooled"):
            assert getattr(merged, name).tobytes() == getattr(whole, name).tobytes()
        for name in ("labels", "offsets", "position", "sample_of"):
            assert getattr(merged.tokens, name).tobytes() == getattr(whole.tokens, name).tobytes()
        assert isinstance(merged.scores, np.memmap) == (n == 7)
    assert quietly(lambda: results(merged)) == expected
    # Doors that score by themselves, too.
    detector = quietly(lambda: calibrate(host, data, bank))
    assert quietly(lambda: detector.evaluate(data.test, resampling=few)).to_dict() == expected[0]
    # Data in memory are one block: other batches, the same to rounding.
    memory = quietly(lambda: score(host, in_memory, bank))
    np.testing.assert_allclose(whole.scores, memory.scores, atol=1e-5)
    np.testing.assert_array_equal(whole.tokens.labels, memory.tokens.labels)
    same = quietly(lambda: calibrate(None, in_memory, bank, scores=memory))
    np.testing.assert_allclose(detector.tail.thresholds, same.tail.thresholds, atol=1e-5)
    assert bits(detector.cuts.n_tokens) == bits(same.cuts.n_tokens)
    for one, other in zip(detector.baselines["RandTok"], same.baselines["RandTok"], strict=True):
        np.testing.assert_allclose(one.thresholds, other.thresholds, atol=1e-5)


def test_a_store_of_scores_knows_its_documents(host, data, path, tmp_path):
    bank = fit(host, data, "prototype")
    table = score(host, data, bank, folder=tmp_path)
    # Another seed of the splits: other documents in the blocks of the same numbers.
    other = labelled_corpus(path, columns=COLUMNS, block_size=16, splits=Splits(seed=5))
    again = quietly(lambda: score(host, other, bank, folder=tmp_path))
    assert again.scores.tobytes() == quietly(lambda: score(host, other, bank)).scores.tobytes()
    assert again.scores.shape != table.scores.shape or again.scores.tobytes() != table.scores.tobytes()


def test_splits_follow_from_the_name_of_the_document(data, path, tmp_path):
    lines = path.read_text().splitlines(keepends=True)
    order = np.random.default_rng(0).permutation(len(lines))
    (tmp_path / "moved.jsonl").write_text("".join(lines[k] for k in order[:100]))
    part = labelled_corpus(tmp_path / "moved.jsonl", columns=COLUMNS, block_size=7)
    split_of = dict(zip((s.id for s in data.samples), data.split_of, strict=True))
    assert list(part.split_of) == [split_of[s.id] for s in part.samples]
    home = {}
    for sample, of in zip(data.samples, data.split_of, strict=True):
        assert home.setdefault(sample.document, of) == of
    many = labelled_corpus(
        [{"text": f"{k} cats", "label": "animal"} for k in range(2000)],
        columns={"text": "text", "label": "label"},
    )
    shares = [many.split_of.count(name) / 2000 for name in ("train", "cal", "test")]
    np.testing.assert_allclose(shares, (0.6, 0.2, 0.2), atol=0.03)


def test_repeated_texts_are_one_document():
    rows = [{"text": f"{k % 50} cats", "label": "animal"} for k in range(100)]
    data = quietly(lambda: labelled_corpus(rows, columns={"text": "text", "label": "label"}))
    assert data.split_of[:50] == data.split_of[50:]
    assert [s.document for s in data.samples[50:]] == [s.document for s in data.samples[:50]]
    assert data.samples[60].loaded.document == data.samples[10].id


def test_lazy_samples_are_those_of_the_corpus(data, in_memory):
    assert list(data.samples) == list(in_memory.samples)
    assert data.samples[5].text == in_memory.samples[5].text
    assert data.samples[5] != in_memory.samples[6]
    again = pickle.loads(pickle.dumps(data))
    assert again.hash == data.hash
    assert again.samples[-1].text == data.samples[-1].text
    # What is in memory of a sample is its name, its labels and a digest.
    known = {"id", "document", "positive", "block", "number", "_digest", "_reader", "vague", "unlabelled"}
    assert set(data.samples[7].__dict__) <= known


def test_images_are_loaded_a_block_at_a_time(tmp_path):
    from PIL import Image as Picture

    rng = np.random.default_rng(0)
    rows = []
    for k in range(12):
        Picture.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
        rows.append({"image": str(tmp_path / f"{k}.png"), "label": "bird" if k % 2 else None})
    data = quietly(lambda: labelled_corpus(rows, columns={"image": "image", "label": "label"}, block_size=4))
    assert data.samples[9].image.pixels.shape == (8, 8, 3)
    held = data.samples[9]._reader._block
    assert held[0] == 2
    assert sorted(held[1]) == [8, 9, 10, 11]
    Picture.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "3.png")
    with pytest.raises(
        ValueError, match=r"document '3' of .* has changed since the corpus was opened: open it again"
    ):
        _ = data.samples[3].image


def test_what_cannot_be_a_labelled_corpus_is_refused(path, tmp_path):
    with pytest.raises(ValueError, match=r"no document of .* has a label: name the column"):
        labelled_corpus(["a cat", "a dog"])
    with pytest.raises(ValueError, match=r"splits.of names a split for each sample: .* give Splits"):
        labelled_corpus(path, splits=Splits(["train"]))
    with pytest.raises(ValueError, match="concept 'animl' is empty"):
        labelled_corpus(path, ["animl"], columns=COLUMNS)
    twice = [{"id": "a", "text": "one cat", "label": "animal"}] * 2
    with pytest.raises(ValueError, match="the id 'a' stands twice in list: ids must be unique"):
        labelled_corpus(twice, columns={"id": "id", "text": "text", "label": "label"})
    bad = [{"text": "a cat", "spans": [[2, 99, "animal"]]}]
    with pytest.raises(ValueError, match="does not lie in a text of 5 characters"):
        labelled_corpus(bad, columns={"text": "text", "spans": "spans"})
    holes = [{"text": f"{k} cats" if k % 7 else "", "label": "animal"} for k in range(70)]
    with pytest.warns(UnreadableWarning, match="10 of 70 documents of list cannot be read .* '0' first"):
        found = labelled_corpus(holes, columns={"text": "text", "label": "label"})
    assert (len(found), found.skipped) == (60, {"documents that cannot be read": 10})
    with pytest.raises(ValueError, match="has no document that can be read: 0: the text is ''"):
        labelled_corpus([{"text": "", "label": "x"}], columns={"text": "text", "label": "label"})


def test_blocks_of_another_run_are_refused(host, data, tmp_path):
    collect_blocks(host, data, tmp_path, blocks=[0])
    with pytest.raises(
        ValueError, match=r"holds blocks of another run: need was \['means', 'rows'\], now .*'gram'"
    ):
        collect_blocks(host, data, tmp_path, blocks=[0], need=NEED)
    with pytest.raises(ValueError, match="blocks of another run: model was 'fake-3-0', now 'fake-3-1'"):
        collect(FakeHost(seed=1), data, limits=RowLimits(folder=tmp_path))
    with pytest.raises(ValueError, match=r"shard 2 of 2 does not exist: give shard=\(i, n\)"):
        collect_blocks(host, data, tmp_path, shard=(2, 2))
    bank = fit(host, data, "prototype")
    with pytest.raises(ValueError, match="blocks of another run: what was 'train pass', now 'score pass'"):
        score_blocks(host, data, bank, tmp_path)
    block = tmp_path / "train-00000000.npz"
    content = bytearray(block.read_bytes())
    with np.load(block) as stored:
        rows = stored["('row', 1)"].tobytes()
    content[content.index(rows) + len(rows) // 2] ^= 0xFF
    block.write_bytes(bytes(content))
    with pytest.raises(DamagedFileError, match=r"train-00000000.npz is damaged .* run its block again"):
        collect(host, data, limits=RowLimits(folder=tmp_path))


def test_samples_of_a_block_stay_together(host, data):
    bank = fit(host, data, "prototype")
    mixed = [data.samples[k] for k in (0, 40, 1)]
    with pytest.raises(ValueError, match="samples of one block of a corpus do not follow one another"):
        score(host, mixed, bank)


def test_a_corpus_in_runs_of_one_class_is_said(host):
    rows = [
        {
            "text": f"cat {k} cat",
            "spans": [[0, 3, "animal"], [len(f"cat {k} "), len(f"cat {k} cat"), "animal"]],
        }
        if k < 60
        else {"text": f"we sat {k}", "spans": []}
        for k in range(120)
    ]
    data = labelled_corpus(rows, columns={"text": "text", "spans": "spans"}, block_size=20)
    with pytest.warns(SortedCorpusWarning, match="for most tokens of 'animal': blocks hold one class"):
        collect(host, data, need=("means",))


def test_blocks_are_slices_of_the_corpus(data):
    numbers = [sample.block for sample in data.samples]
    assert all(a <= b for a, b in pairwise(numbers))
    assert numbers == [k // 16 for k in range(len(data))]
