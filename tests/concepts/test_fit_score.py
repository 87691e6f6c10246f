"""Laws of the train pass, the fit and the score pass, on a model without a library."""

import itertools

import numpy as np
import pytest
import torch
from fake_host import FakeHost, in_batches
from word_data import WORDS, word_data

from sa_plugin.concepts import ConceptBank, RowLimits, collect, draw_rows, fit, permute_labels
from sa_plugin.data import ConceptData, Sample, Splits
from sa_plugin.host import Batch, Site, keep_tokens
from sa_plugin.passes import LostLabelWarning, allocate, compact
from sa_plugin.scores import OtherPrecisionWarning, score, score_samples


@pytest.fixture(scope="module")
def host():
    return FakeHost()


@pytest.fixture(scope="module")
def data():
    return word_data(90)


def residuals(host, samples, layer):
    """Oracle: one sample at a time, no padding."""
    rows = []
    for sample in samples:
        (batch,) = host.batches([sample])
        site = Site(layer, "resid_post")
        rows.append(host.read(batch, [site], lambda read: {"h": read[site]})["h"][0])  # noqa: B023
    return rows


def test_statistics_equal_a_loop_over_samples(host, data):
    found = collect(in_batches(host, 40), data, need=("means", "rows", "gram"))
    for k, layer in enumerate(found.layers):
        rows = residuals(host, data.train.samples, layer)
        h = torch.cat(rows).double()
        one = found.token[k]
        torch.testing.assert_close(one.mean, h.mean(0), atol=1e-6, rtol=1e-5)
        assert one.scale == pytest.approx(float(h.square().sum(-1).mean().sqrt()), rel=1e-6)
        torch.testing.assert_close(one.gram, h.T @ h / len(h), atol=1e-5, rtol=1e-5)
        y = torch.from_numpy(found.tokens.labels)
        for c in range(2):
            torch.testing.assert_close(one.positive_mean[c], h[y[:, c]].mean(0), atol=1e-6, rtol=1e-5)
        assert one.rows is not None
        assert len(one.rows) == len(h)
        np.testing.assert_allclose(one.rows.stored, h, atol=2e-3, rtol=1e-3)
        pooled = torch.stack([row.mean(0) for row in rows]).double()
        torch.testing.assert_close(found.pooled[k].mean, pooled.mean(0), atol=1e-6, rtol=1e-5)


def test_component_means_add_up_to_the_mean(host, data):
    found = collect(host, data, need=("means",))
    means = found.component_means
    assert means is not None
    for k, layer in enumerate(found.layers):
        total = means.embedding + means.mlp[: layer + 1].sum(0)
        for block in range(layer + 1):
            weight, bias = host.output_projection(block)
            total = total + torch.einsum("he,hed->d", means.z[block], weight.double()) + bias
        torch.testing.assert_close(total, found.token[k].mean, atol=1e-6, rtol=1e-5)


def test_one_pass_a_sample_whatever_is_fitted(data):
    host = FakeHost()
    statistics = collect(host, data)
    assert host.passes == len(data.train)
    banks = [fit(host, data, kind, statistics=statistics) for kind in ("prototype", "separator")]
    score(host, data, banks)
    assert host.passes == len(data.samples)


def test_scores_equal_a_loop_over_samples(host, data):
    bank = fit(host, data, "prototype", layers=[0, 2])
    table = score(in_batches(host, 30), data, bank)
    for k, layer in enumerate(bank.layers):
        rows = residuals(host, table.tokens.samples, layer)
        expected = np.concatenate([bank.token.score(k, h).numpy() for h in rows])
        np.testing.assert_allclose(table.scores[:, k], expected, atol=1e-5)
        null = np.stack([bank.permuted.score(k, h).amax(0).numpy() for h in rows])
        np.testing.assert_allclose(table.permuted_max[:, k], null, atol=1e-5)
        pooled = np.stack([bank.pooled.score(k, h.mean(0)).numpy() for h in rows])
        np.testing.assert_allclose(table.pooled[:, k], pooled, atol=1e-5)


def test_a_memory_map_gives_the_same_scores(host, data):
    bank = fit(host, data, "prototype")
    inside = score(host, data, bank)
    outside = score(host, data, bank, memory_budget=0)
    assert isinstance(outside.scores, np.memmap)
    np.testing.assert_array_equal(inside.scores, outside.scores)
    rows = collect(host, data, limits=RowLimits(memory=0)).token[0].rows
    assert rows is not None
    assert isinstance(rows.stored, np.memmap)


def test_rows_follow_the_data_whatever_the_batches(host, data):
    bank = fit(host, data, "prototype")
    tables = [score(in_batches(host, n), data, bank) for n in (1, 37, 4096)]
    for table in tables[1:]:
        np.testing.assert_allclose(table.scores, tables[0].scores, atol=1e-5)
        np.testing.assert_array_equal(table.tokens.offsets, tables[0].tokens.offsets)
    words = [tables[0].tokens.text(t) for t in range(len(tables[0].tokens))]
    assert words == [w for s in tables[0].tokens.samples for w in s.text.split()]


def test_splits_of_a_table(host, data):
    table = score(host, data, fit(host, data, "prototype"))
    parts = [table.split("cal"), table.split("test")]
    np.testing.assert_array_equal(np.concatenate([p.scores for p in parts]), table.scores)
    assert [s.id for s in parts[1].tokens.samples] == [s.id for s in data.test.samples]
    with pytest.raises(ValueError, match="no sample of split 'train' was scored"):
        table.split("train")


def test_the_first_token_of_a_decoder_without_bos_is_dropped(data):
    host = FakeHost(causal=True)
    bank = fit(host, data, "prototype")
    table = score(host, data, bank)
    assert (table.tokens.position > 0).all()
    assert table.tokens.dropped == {
        "special": 0,
        "sink": table.tokens.n_samples,
        "labelled sink": table.tokens.dropped["labelled sink"],
    }
    kept = fit(host, data, "prototype", sinks="keep")
    assert score(host, data, kept).tokens.dropped["sink"] == 0


def test_sinks_are_tokens_ten_times_the_median():
    valid = torch.tensor([[True, True, True, True, False]])
    norms = torch.tensor([[[1.0, 2.0, 3.0, 11.0, 900.0]], [[1.0, 1.0, 10.5, 1.0, 900.0]]])
    keep = keep_tokens(valid, norms, "drop", False)
    assert keep.tolist() == [[True, True, False, True, False]]
    assert keep_tokens(valid, norms, "keep", True).equal(valid)


def test_permuted_labels_keep_count_and_clusters():
    rng = np.random.default_rng(0)
    labels = rng.random((40, 3)) < 0.3
    bounds = np.array([0, 5, 11, 20, 40])
    null = permute_labels(labels, bounds, np.random.default_rng(1))
    np.testing.assert_array_equal(null.sum(0), labels.sum(0))
    blocks = {tuple(map(tuple, labels[a:b])) for a, b in itertools.pairwise(bounds)}
    order = np.random.default_rng(1).permutation(4)
    start = 0
    for n in order:
        width = bounds[n + 1] - bounds[n]
        assert tuple(map(tuple, null[start : start + width])) in blocks
        start += width


def test_rows_are_drawn_by_class():
    labels = np.random.default_rng(0).random((1000, 4)) < [0.01, 0.1, 0.5, 0.9]
    rows = draw_rows(labels, 20, np.random.default_rng(1).permutation(1000))
    assert len(rows) < 200
    for k in range(4):
        assert labels[rows, k].sum() >= min(20, labels[:, k].sum())
        assert (~labels[rows, k]).sum() >= 20
    assert len(draw_rows(labels, 10_000, np.arange(1000))) == 1000


def test_compact_moves_rows_in_place():
    array = np.arange(20.0).reshape(10, 2)
    keep = np.random.default_rng(0).random(10) < 0.5
    expected = array[keep].copy()
    for chunk in (1, 3, 100):
        np.testing.assert_array_equal(compact(array.copy(), keep, chunk), expected)
    assert isinstance(allocate((4, 4), np.float32, 10), np.memmap)


def test_nan_activations_are_refused(data):
    host = FakeHost()
    host.poison = 1
    with pytest.raises(ValueError, match=r"activations at block 1 .* hold NaN or Inf"):
        fit(host, data, "prototype")


def test_a_sample_without_tokens_is_refused(data):
    host = FakeHost(causal=True)
    bank = fit(host, data, "prototype")
    with pytest.raises(ValueError, match=r"'one' has 1 token\(s\) and none is left"):
        score_samples(host, [Sample("one", "cat", "one")], bank)


def test_names_are_checked(host, data):
    with pytest.raises(ValueError, match="did you mean 'separator'"):
        fit(host, data, "seperator")
    with pytest.raises(ValueError, match=r"layer 7 does not exist: fake has blocks 0 to 2; .* is 2"):
        fit(host, data, "prototype", layers=[7])
    with pytest.raises(ValueError, match="hook_point 'resid' is unknown: did you mean 'resid_p"):
        fit(host, data, "prototype", hook_point="resid")
    with pytest.raises(ValueError, match="sinks 'remove' is unknown"):
        fit(host, data, "prototype", sinks="remove")


def test_a_concept_without_train_tokens_is_refused(host, data):
    with pytest.warns(UserWarning, match="no positive sample in the train split"):
        lame = ConceptData.from_spans(
            [s.text for s in data.samples],
            [[(0, 1, "late")] if of == "test" else [] for of in data.split_of],
            splits=data.split_of,
        )
    with pytest.raises(ValueError, match="'late' has no positive train rows"):
        fit(host, lame, "prototype")


def test_a_bank_is_refused_on_another_model(data):
    bank = fit(FakeHost(), data, "prototype")
    with pytest.raises(ValueError, match="do not carry over to other weights"):
        score(FakeHost(seed=1), data, bank)
    with pytest.raises(ValueError, match="fitted with weight processing 'none'"):
        score(FakeHost().with_info(processing="compatibility"), data, bank)
    other = fit(FakeHost().with_info(tokenizer="abc"), data, "prototype")
    with pytest.raises(ValueError, match="fitted with tokenizer abc, the attached model has xyz"):
        score(FakeHost().with_info(tokenizer="xyz"), data, other)
    with pytest.warns(OtherPrecisionWarning, match=r"fitted in float32, .* runs in bfloat16"):
        score(FakeHost().with_info(dtype="bfloat16"), data, bank)
    with pytest.raises(ValueError, match="have 12 dimensions"):
        score(FakeHost().with_info(d_model=64), data, bank)


def test_statistics_of_other_data_or_without_rows_are_refused(host, data):
    statistics = collect(host, data, need=("means",))
    with pytest.raises(ValueError, match="kind 'separator' needs 'rows'"):
        fit(host, data, "separator", statistics=statistics)
    with pytest.raises(ValueError, match="collect them again"):
        fit(host, data.subset(60), "prototype", statistics=statistics)


def test_vectors_of_the_user():
    vectors = {("a", 1): torch.ones(4), ("b", 1): -torch.ones(4)}
    bank = ConceptBank.from_vectors(vectors, normaliser={1: (torch.ones(4), 2.0)})
    h = torch.randn(5, 4)
    torch.testing.assert_close(bank.token.score(0, h)[:, 0], ((h - 1) / 2).sum(-1))
    with pytest.raises(ValueError, match=r"no vector for \('b', 2\)"):
        ConceptBank.from_vectors({**vectors, ("a", 2): torch.ones(4)})
    with pytest.raises(ValueError, match="holds NaN or Inf"):
        ConceptBank.from_vectors({("a", 0): torch.full((4,), torch.nan)})
    with pytest.raises(ValueError, match="vectors is empty"):
        ConceptBank.from_vectors({})
    with pytest.raises(ValueError, match="nearest is 1"):
        bank.vector("a", 3)
    with pytest.raises(ValueError, match="concept 'aa' is unknown: did you mean 'a'"):
        bank.vector("aa", 1)


def test_half_precision_is_scored_in_float32():
    bank = ConceptBank.from_vectors({("a", 0): torch.randn(64)}, scoring="cosine")
    h = torch.randn(10, 64)
    got = bank.token.score(0, h.bfloat16())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, bank.token.score(0, h.bfloat16().float()))


def test_a_batch_holds_what_a_host_needs():
    (batch,) = FakeHost().batches([Sample("0", "a b", "0")])
    assert isinstance(batch, Batch)
    assert batch.offsets[0].tolist() == [[0, 1], [2, 3]]


def test_a_bank_of_fewer_concepts_scores_the_data(host, data):
    vectors = {("animal", 1): torch.randn(12)}
    table = score(host, data, ConceptBank.from_vectors(vectors))
    assert table.tokens.labels.shape[1] == 1
    full = score(host, data, fit(host, data, "prototype"))
    np.testing.assert_array_equal(table.tokens.labels[:, 0], full.tokens.labels[:, 0])


def test_labels_lost_to_sinks_are_a_named_warning():
    rng = np.random.default_rng(0)
    words = [["cat", *rng.choice(WORDS[5:], 5)] for _ in range(40)]
    labels = (
        [["animal", None, None, None, None, None]] * 20 + [[None] * 5 + ["animal"]] * 10 + [[None] * 6] * 10
    )
    data = ConceptData.from_words(words, labels, splits=Splits(seed=1))
    with pytest.warns(LostLabelWarning, match=r"labelled tokens were dropped as attention sinks"):
        fit(FakeHost(causal=True), data, "prototype")
