"""Documents longer than the model: every token counts once, in the window that the rule says."""

import numpy as np
import pandas
import pytest
import tiny
import torch

from sa_plugin.concepts import ConceptBank
from sa_plugin.data import Chat, ConceptData, Sample, Splits, TokenIds
from sa_plugin.detection import calibrate
from sa_plugin.loaders import open_corpus
from sa_plugin.scanning import Windows, pieces_of, scan

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WORDS = ("cat", "dog", "sat", "walked", "home", "night", "people", "mat")


def long_text(n, seed=0):
    return " ".join(np.random.default_rng(seed).choice(WORDS, n))


@pytest.fixture(scope="module", params=["gpt2", "llama", "bert"])
def model(request):
    """A causal model without BOS, one with, one that looks both ways; a detector that fires often."""
    host = tiny.host(request.param, progress=False)
    vectors = {("cat", 1): torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(0))}
    bank = ConceptBank.from_vectors(vectors)
    texts = [long_text(8, seed) for seed in range(60)]
    data = ConceptData.from_texts(
        texts, ["cat" if "cat" in one else None for one in texts], token_labels="text", splits=Splits(seed=1)
    )
    return host, calibrate(host, data, bank, deltas=(0.2, 0.5))


def owners(n, size, overlap, causal):
    """Oracle: of each place, the start of the window that it counts in."""
    starts = [*range(0, n - size, size - overlap), n - size]
    found = []
    for place in range(n):
        holding = [start for start in starts if start <= place < start + size]
        # How far from the end before it (causal), or from the nearer end.
        room = {s: place - s if causal else min(place - s, s + size - 1 - place) for s in holding}
        found.append(max(holding, key=lambda start: (room[start], -start)))
    return found


@pytest.mark.parametrize("windows", [Windows(), Windows(24, 9)])
def test_every_token_counts_once_in_the_window_that_the_rule_says(model, windows):
    host = model[0]
    sample = Sample("long", long_text(120), "long")
    (tokens,) = host.reader.encode([sample])
    (pieces,) = pieces_of(host, [sample], windows.on(host))
    on = windows.on(host)
    lead = int(host.info.bos)
    trail = int("bert" in host.info.model)
    n, size = len(tokens.ids) - lead - trail, on.tokens - lead - trail
    assert (on.tokens, on.overlap) == ((64, 16) if windows.tokens is None else (24, 9))
    expected = owners(n, size, on.overlap, host.info.causal)
    counted = np.zeros(len(tokens.ids), dtype=int)
    for piece in pieces:
        assert len(piece.sample.source.ids) == on.tokens
        mine = np.flatnonzero(piece.owns(np.arange(on.tokens))) + piece.shift
        counted[mine] += 1
        assert {expected[place - lead] for place in mine} <= {piece.shift}
        np.testing.assert_array_equal(np.array(piece.sample.source.ids)[mine - piece.shift], tokens.ids[mine])
    np.testing.assert_array_equal(counted, ~tokens.special)


def loop(host, detector, text, windows):
    """Oracle: hits of one text by plain passes over its windows, window by window, token by token."""
    sample = Sample("x", text, "x")
    (tokens,) = host.reader.encode([sample])
    lead, trail = int(host.info.bos), int("bert" in host.info.model)
    ids, spans = tokens.ids.tolist(), tokens.offsets.tolist()
    n, size = len(ids) - lead - trail, windows.tokens - lead - trail
    owner = owners(n, size, windows.overlap, host.info.causal)
    found = {}
    for start in sorted(set(owner)):
        inside = slice(lead + start, lead + start + size)
        end = slice(len(ids) - trail, None)
        own, where = ([*of[:lead], *of[inside], *of[end]] for of in (ids, spans))
        source = TokenIds(own, text, where)
        marks = detector.find(Sample("w", text, "w", source=source))
        for one in marks:
            place = one.position + start
            if owner[place - lead] == start:
                found[place] = (one.start, one.end, one.text, one.score)
    return found


def test_hits_are_those_of_plain_passes_over_windows(model, tmp_path):
    host, detector = model
    texts = [long_text(100, 3), "A cat sat on the mat.", long_text(40, 4), long_text(33, 5)]
    windows = Windows(24, 8)
    result = scan(host, detector, open_corpus(texts, block_size=3), tmp_path, windows=windows)
    hits = pandas.read_parquet(tmp_path / "hits.parquet")
    samples = pandas.read_parquet(tmp_path / "samples.parquet")
    assert result.totals["cut_into_windows"] == int((samples.windows > 1).sum()) > 0
    assert len(hits) > 10
    for k, text in enumerate(texts):
        if samples.windows[k] > 1:
            expected = loop(host, detector, text, windows)
        else:
            expected = {m.position: (m.start, m.end, m.text, m.score) for m in detector.find(text)}
        own = hits[hits.number == k]
        assert own.token.tolist() == sorted(expected)
        assert [tuple(row) for row in own[["start", "end", "text"]].to_numpy()] == [
            expected[place][:3] for place in own.token
        ]
        np.testing.assert_allclose(own.score, [expected[place][3] for place in own.token], atol=1e-4)
        assert samples.hits[k] == len(own)
        if len(own):
            assert samples["max"][k] == own.score.max()


def test_of_a_long_chat_only_the_turns_count(model, tmp_path):
    host, detector = model
    if "llama" not in host.info.model:
        pytest.skip("one template is enough")
    host.reader.encode.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    )
    chat = Chat(
        [{"role": "user", "content": long_text(20)}, {"role": "assistant", "content": long_text(30, 1)}],
        roles=["assistant"],
    )
    scan(host, detector, open_corpus([chat]), tmp_path, windows=Windows(32))
    hits = pandas.read_parquet(tmp_path / "hits.parquet")
    assert len(hits)
    assert (hits.start >= len(chat.messages[0].content) + 1).all()
    assert hits.token.is_unique


def test_a_model_of_pictures_gives_boxes(tmp_path):
    host = tiny.vision_host("vit", progress=False)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (30, 40, 3), dtype=np.uint8) for _ in range(40)]
    masks = [{"red": one[..., 0] > 128} for one in images]
    data = ConceptData.from_masks(images, masks, splits=Splits(seed=0))
    vectors = {("red", 1): torch.randn(host.info.d_model, generator=torch.Generator().manual_seed(1))}
    detector = calibrate(host, data, ConceptBank.from_vectors(vectors), deltas=(0.1, 0.3))
    scan(host, detector, open_corpus(images[:7], block_size=4), tmp_path)
    hits = pandas.read_parquet(tmp_path / "hits.parquet")
    expected = [mark for image in images[:7] for mark in detector.find(image)]
    assert len(hits) == len(expected) > 0
    np.testing.assert_allclose(hits[["top", "left", "bottom", "right"]], [mark.edges for mark in expected])
    np.testing.assert_allclose(hits.score, [mark.score for mark in expected], atol=1e-4)
    assert "text" not in hits
