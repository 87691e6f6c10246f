"""Laws of baselines, masking and players, on texts and images."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from attribution_toy import SAMPLE, ToyHost

from sa_plugin.attribution import (
    blurred,
    make_baseline,
    masked,
    patch_grid,
    players_of,
    superpatches,
    to_tokens,
    token_embedding,
    train_mean,
)
from sa_plugin.data import Sample


def laid_out(host, sample):
    (batch,) = host.batches([sample])
    return batch, host.input_values(batch)


@pytest.fixture(scope="module")
def text():
    """BERT puts a special token before and behind."""
    host, sample = tiny.host("bert"), tiny.samples()[1]
    return host, sample, *laid_out(host, sample)


@pytest.fixture(scope="module", params=["vit", "deit", "dinov2"])
def image(request):
    host, sample = tiny.vision_host(request.param), tiny.images()[0]
    return host, sample, *laid_out(host, sample)


def test_text_baselines(text):
    host, _, batch, values = text
    valid = batch.valid[0]
    assert not valid[0]
    assert not valid[-1]
    expected = values[0][valid].mean(0)
    for how in (None, "mean"):
        found = make_baseline(host, batch, values, how)
        assert found.shape == values.shape
        torch.testing.assert_close(found[0, 3], expected)
    assert (make_baseline(host, batch, values, "zero") == 0).all()
    weight = tiny.hf_model("bert").get_input_embeddings().weight.detach()
    pad = tiny.tokenizer("bert").pad_token_id
    torch.testing.assert_close(make_baseline(host, batch, values, "pad")[0, 2], weight[pad])
    torch.testing.assert_close(token_embedding(host, batch, 5)[0, 0], weight[5])


def test_train_mean_is_the_mean_over_all_valid_tokens(text):
    host, _, batch, values = text
    rows = []
    for sample in tiny.samples():
        one, x = laid_out(host, sample)
        rows.append(x[0][one.valid[0]])
    mean = train_mean(replace(host, batch_tokens=40), tiny.samples())
    torch.testing.assert_close(mean, torch.cat(rows).mean(0))
    torch.testing.assert_close(make_baseline(host, batch, values, mean)[0, 4], mean)


def test_masked_text(text):
    _, _, _, values = text
    baseline = torch.full_like(values, 9.0)
    keep = torch.ones(2, values.shape[1], dtype=torch.bool)
    keep[1, 3] = False
    rows = masked(values, baseline, keep)
    torch.testing.assert_close(rows[:1], values)
    assert (rows[1, 3] == 9).all()
    torch.testing.assert_close(rows[1, :3], values[0, :3])
    torch.testing.assert_close(rows[1, 4:], values[0, 4:])


def test_image_baselines(image):
    host, _, batch, values = image
    for how in (None, "zero"):
        assert (make_baseline(host, batch, values, how) == 0).all()
    height, width = values.shape[2:]
    side = tiny.PATCH
    patches = [
        values[0, :, y : y + side, x : x + side]
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]
    expected = torch.stack(patches).mean(0)
    found = make_baseline(host, batch, values, "mean")
    torch.testing.assert_close(found[0, :, side : 2 * side, :side], expected)
    torch.testing.assert_close(found[0, :, -side:, -side:], expected)
    assert make_baseline(host, batch, values, "blur").std() < values.std() / 2
    patch = torch.arange(3.0 * side * side).reshape(3, side, side)
    torch.testing.assert_close(make_baseline(host, batch, values, patch)[0, :, :side, :side], patch)
    whole = torch.ones_like(values)
    torch.testing.assert_close(make_baseline(host, batch, values, whole[0]), whole)


def test_masked_image_changes_exactly_the_patches_of_its_player(image):
    _, _, batch, values = image
    grid = patch_grid(batch.valid[0].numpy(), *values.shape[2:])
    keep = torch.ones(1, batch.valid.shape[1], dtype=torch.bool)
    patch = grid.columns + 2
    keep[0, grid.n_special + patch] = False
    changed = masked(values, torch.full_like(values, 9.0), keep, grid)[0, 0] == 9
    expected = torch.zeros_like(changed)
    expected[7:14, 14:21] = True
    torch.testing.assert_close(changed, expected)


def test_blur_keeps_constants_and_equals_scipy():
    from scipy.ndimage import gaussian_filter

    pixels = torch.randn(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    ours = blurred(pixels, sigma=2.0)
    theirs = gaussian_filter(pixels.numpy(), (0, 0, 2, 2), mode="nearest", truncate=3.0)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    torch.testing.assert_close(blurred(torch.ones(1, 3, 9, 9), sigma=7.0), torch.ones(1, 3, 9, 9))
    with pytest.raises(ValueError, match="sigma is 0"):
        blurred(pixels, sigma=0.0)


def test_bad_baselines(text, image):
    host, _, batch, values = text
    with pytest.raises(ValueError, match="baseline 'blur' is unknown"):
        make_baseline(host, batch, values, "blur")
    with pytest.raises(ValueError, match=r"has shape \[5\]; give one of \[32\]"):
        make_baseline(host, batch, values, torch.zeros(5))
    with pytest.raises(ValueError, match="NaN or infinite"):
        make_baseline(host, batch, values, torch.full((32,), torch.nan))
    host, _, batch, values = image
    with pytest.raises(ValueError, match="baseline 'pad' is unknown"):
        make_baseline(host, batch, values, "pad")
    with pytest.raises(ValueError, match=r"give one of \[3, 7, 7\]"):
        make_baseline(host, batch, values, torch.zeros(5))
    with pytest.raises(ValueError, match="a mean embedding is for texts"):
        train_mean(host, tiny.images())
    with pytest.raises(ValueError, match="no input_ids: give a tensor"):
        token_embedding(host, batch, 3)
    gpt2 = tiny.host("gpt2")
    batch, values = laid_out(gpt2, tiny.samples()[0])
    with pytest.raises(ValueError, match="has no padding token: use 'mean' or 'zero'"):
        make_baseline(gpt2, batch, values, "pad")


def test_token_players_leave_special_tokens_out(text):
    _, sample, batch, _ = text
    found = players_of(sample, batch)
    valid = batch.valid[0].numpy()
    np.testing.assert_array_equal(found[valid], np.arange(valid.sum()))
    assert (found[~valid] == -1).all()


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_word_players_group_by_white_space(name):
    host = tiny.host(name)
    for sample in tiny.samples():
        (batch,) = host.batches([sample])
        found = players_of(sample, batch, "word")
        words = {}
        for token in np.flatnonzero(found >= 0):
            start, end = batch.offsets[0, token].tolist()
            words.setdefault(int(found[token]), []).append(sample.text[start:end])
        texts = [piece for piece in ("".join(parts).strip() for parts in words.values()) if piece]
        # Tokens of part of a character overlap, so pieces may repeat letters; never words.
        if sample.text.isascii():
            assert texts == sample.text.split()
        assert sorted(words) == list(range(len(words)))


def test_a_token_belongs_to_the_word_of_its_first_letter():
    """Whatever the tokenizer's offsets do with the space before a word."""
    sample = Sample("t", "one two  three", "d")
    (batch,) = ToyHost().batches([sample])
    offsets = torch.tensor([[[0, 3], [3, 5], [5, 7], [7, 8], [8, 14]]])
    valid = torch.ones(1, 5, dtype=torch.bool)
    batch = replace(batch, offsets=offsets, valid=valid)
    np.testing.assert_array_equal(players_of(sample, batch, "word"), [0, 1, 1, 2, 3])


def test_superpatches(image):
    host, sample, batch, values = image
    rows, columns = (side // tiny.PATCH for side in values.shape[2:])
    found = superpatches(host, sample, block=2)[-rows * columns :].reshape(rows, columns)
    assert found.max() + 1 == -(-rows // 2) * -(-columns // 2)
    assert len(np.unique(found[:2, :2])) == 1
    assert found[0, 0] != found[0, 2]
    assert found[0, 0] != found[2, 0]
    checked = players_of(sample, batch, superpatches(host, sample, block=2))
    assert (checked[~batch.valid[0].numpy()] == -1).all()
    with pytest.raises(ValueError, match="block is 0"):
        superpatches(host, sample, block=0)
    with pytest.raises(ValueError, match="it has no words: use superpatches"):
        players_of(sample, batch, "word")
    with pytest.raises(ValueError, match="it has no patches"):
        superpatches(tiny.host("gpt2"), tiny.samples()[0], block=2)


def test_importance_of_players_on_their_tokens():
    shown = to_tokens(np.array([[1.0], [2.0]]), np.array([-1, 0, 1, 1, -1]))
    np.testing.assert_array_equal(shown[:, 0], [np.nan, 1, 2, 2, np.nan])


def test_bad_players(text):
    _, sample, batch, _ = text
    n = batch.valid.shape[1]
    with pytest.raises(ValueError, match="players 'sentence' is unknown"):
        players_of(sample, batch, "sentence")
    with pytest.raises(ValueError, match=f"3 tokens are given, the model sees {n}"):
        players_of(sample, batch, np.arange(3))
    with pytest.raises(ValueError, match="token 0 is padding or special, yet belongs to player 0"):
        players_of(sample, batch, np.zeros(n, dtype=np.int64))
    with pytest.raises(ValueError, match="there are none"):
        players_of(sample, batch, np.full(n, -1))
    gap = players_of(sample, batch).copy()
    gap[gap == 1] = -1
    with pytest.raises(ValueError, match="numbered 0 to n - 1 without a gap"):
        players_of(sample, batch, gap)
    with pytest.raises(ValueError, match="leave 1 special tokens in front, but some"):
        patch_grid(np.ones(5, dtype=bool), 14, 14)
    with pytest.raises(ValueError, match="are no grid of square patches"):
        patch_grid(np.ones(3, dtype=bool), 14, 21)


def test_a_sentence_is_a_game_of_its_words():
    (batch,) = ToyHost().batches([SAMPLE])
    np.testing.assert_array_equal(players_of(SAMPLE, batch, "word"), np.arange(8))
    spaced = Sample("t", "one two", "d")
    (batch,) = ToyHost().batches([spaced])
    np.testing.assert_array_equal(players_of(spaced, batch, "token"), [0, 1])
