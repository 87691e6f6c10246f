"""Positions are those the model counts, on both hosts, and a text beyond them is named."""

import pytest
import tiny
import torch
from both_hosts import LAST, read_one
from torch.testing import assert_close

from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData, Sample
from sa_plugin.host import check
from sa_plugin.scores import score

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HOSTS = {"transformer_lens": tiny.host, "nnsight": tiny.nnsight_host}
on_each_host = pytest.mark.parametrize("make", HOSTS.values(), ids=HOSTS)


@on_each_host
@pytest.mark.parametrize("side", ["left", "right"])
def test_roberta_keeps_every_law(make, side):
    host = make(tiny.LATE_POSITIONS, padding_side=side)
    assert (host.reader.positions.start, host.reader.positions.limit) == (2, tiny.CONTEXT)
    report = check(host, tiny.TEXTS)
    assert report.passed, report


@on_each_host
def test_what_is_read_of_roberta_is_what_transformers_gives_for_the_text_alone(make):
    host, model = make(tiny.LATE_POSITIONS, padding_side="left"), tiny.hf_model(tiny.LATE_POSITIONS)
    (batch,) = host.batches(tiny.samples(), batch_tokens=10_000)
    found = read_one(host, batch, LAST)
    for k, row in enumerate(batch.rows.tolist()):
        ids = tiny.tokenizer(tiny.LATE_POSITIONS)(tiny.TEXTS[row], return_tensors="pt").input_ids
        with torch.no_grad():
            hidden = model.roberta(ids, output_hidden_states=True).hidden_states[-1][0]
        assert_close(found[k, batch.valid[k]], hidden[1:-1], rtol=1e-4, atol=1e-5)


def test_the_padding_token_in_a_text_is_counted_as_the_model_counts_it():
    text = "The cat<pad> sat on the mat."
    alone, padded = (
        HOSTS["transformer_lens"]("roberta"),
        HOSTS["transformer_lens"]("roberta", padding_side="left"),
    )
    (one,) = alone.batches([Sample("a", text, "a")])
    batches = padded.batches([Sample("a", text, "a"), *tiny.samples()], batch_tokens=10_000)
    expected = read_one(alone, one, LAST)[0, one.valid[0]]
    (k,) = (batches[0].rows == 0).nonzero()[0].tolist()
    assert_close(read_one(padded, batches[0], LAST)[k, batches[0].valid[k]], expected, rtol=1e-4, atol=1e-5)


@on_each_host
@pytest.mark.parametrize("name", [*tiny.ARCHITECTURES, tiny.LATE_POSITIONS])
def test_a_text_longer_than_the_positions_is_named(make, name):
    host = make(name)
    limit = host.reader.positions.limit
    assert limit == tiny.CONTEXT
    samples = [Sample("short", "a cat", "a"), Sample("long", "zq " * 40, "b"), Sample("too", "zq " * 50, "c")]
    with pytest.raises(
        ValueError, match=rf"'long' has \d+ tokens \(and 1 more are too long\).*takes {limit}"
    ):
        host.batches(samples)
    # What just fits is read.
    words = 1
    while len(host.reader.encode([Sample("a", "z" * words, "a")])[0].ids) < limit:
        words += 1
    (batch,) = host.batches([Sample("a", "z" * words, "a")])
    assert batch.inputs["input_ids"].shape[1] == limit
    assert torch.isfinite(read_one(host, batch, LAST)).all()


@on_each_host
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bert", "roberta"])
def test_a_float64_model_keeps_the_laws_and_its_scores_are_float32(make, name):
    host = make(name, dtype=torch.float64)
    report = check(host, tiny.TEXTS)
    assert host.info.dtype == "float64"
    assert report.passed, report
    data = ConceptData.from_spans(
        [f"a cat sat {k} times" if k % 2 else f"we went home {k} times" for k in range(20)],
        [[(2, 5, "animal")] if k % 2 else [] for k in range(20)],
    )
    bank = fit(host, data, "prototype", layers=[1])
    table = score(host, data, bank)
    single = make(name)
    other = score(single, data, fit(single, data, "prototype", layers=[1]))
    assert table.scores.dtype == other.scores.dtype
    assert_close(torch.tensor(table.scores), torch.tensor(other.scores), rtol=1e-3, atol=1e-4)


@on_each_host
def test_a_token_that_the_model_has_no_embedding_of_is_named(make):
    host = make("gpt2")
    host.reader.encode.tokenizer.add_tokens(["zebra"])
    with pytest.raises(ValueError, match=r"the token 'zebra' \(id \d+\).*has embeddings of.*resize_token"):
        host.batches([Sample("a", "a cat", "a"), Sample("b", "the zebra sat", "b")])
