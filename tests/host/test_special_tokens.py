"""Special tokens are never rows, whoever writes them, and no text has two BOS."""

import warnings

import numpy as np
import pytest
import tiny
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import PreTrainedTokenizerFast

from sa_plugin.data import Sample, TokenIds
from sa_plugin.host import SecondBosWarning, TextEncoder, check
from sa_plugin.passes import lay_out

MARKS = ("<|user|>", "<|end|>")
CORPUS = [*tiny.TEXTS, "a cow and a dog walked over the blue river house <| |> user end"] * 3


def byte_level(*, bos=True, marks=MARKS):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<bos>", "<eos>", *marks]
    backend.train_from_iterator(
        CORPUS,
        BpeTrainer(vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")


def sentence_piece(*, bos=True):
    """As Llama 2 and T5 have it: words begin with a mark, unknown ones are one token."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<bos>", "<eos>", "<unk>", *MARKS]
    trainer = UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
        )
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


TOKENIZERS = {
    "byte level": byte_level,
    "byte level, no BOS": lambda: byte_level(bos=False),
    "sentence piece": sentence_piece,
    "sentence piece, no BOS": lambda: sentence_piece(bos=False),
}


def encoded(encoder, text):
    (tokens,) = encoder([Sample("a", text, "a")])
    return tokens


def rows_of(encoder, text):
    tokens = encoded(encoder, text)
    return [text[a:b] for a, b in tokens.offsets[~tokens.special]]


@pytest.mark.parametrize("own_rule", [True, False], ids=["own rule", "none put in"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_marks_in_a_text_are_no_rows_and_the_words_between_are(name, own_rule):
    encoder = TextEncoder(TOKENIZERS[name](), add_special_tokens=own_rule)
    for text in ("<|user|>the cat<|end|>", "a <|user|> sat<|end|><|end|>", "the do<|end|>g<eos>"):
        tokens, rows = encoded(encoder, text), rows_of(encoder, text)
        kept = text
        for mark in ("<bos>", "<eos>", *MARKS):
            kept = kept.replace(mark, " " * len(mark))
        covered = {at for a, b in tokens.offsets[~tokens.special] for at in range(a, b)}
        assert {at for at in covered if not text[at].isspace()} == {
            at for at, character in enumerate(kept) if not character.isspace()
        }
        assert len(rows) + tokens.special.sum() == len(tokens.ids)
        written = sum(text.count(mark) for mark in ("<eos>", *MARKS))
        assert (tokens.special & (tokens.offsets[:, 1] > 0)).sum() == written


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_without_marks_is_tokenised_as_the_tokenizer_does_it(name):
    tokenizer = TOKENIZERS[name]()
    for text in tiny.TEXTS:
        out = tokenizer(text, return_special_tokens_mask=True)
        tokens = encoded(TextEncoder(tokenizer), text)
        assert tokens.ids.tolist() == out["input_ids"]
        assert tokens.special.astype(int).tolist() == out["special_tokens_mask"]


def test_a_word_that_the_vocabulary_lacks_is_a_row_and_the_unknown_token_by_name_is_none():
    encoder = TextEncoder(sentence_piece(bos=False))
    assert encoder.tokenizer.unk_token_id in encoded(encoder, "the 猫 sat").ids
    assert "猫" in rows_of(encoder, "the 猫 sat")
    assert "<unk>" not in rows_of(encoder, "the <unk> sat")
    assert "[UNK]" not in rows_of(TextEncoder(tiny.tokenizer("bert")), "the [UNK] cat")


def test_an_added_word_is_a_row_and_an_added_mark_of_the_template_is_none():
    tokenizer = byte_level(marks=())
    tokenizer.add_tokens([AddedToken("cow"), AddedToken("<think>"), AddedToken("  "), AddedToken("<b>")])
    tokenizer.chat_template = "{% for m in messages %}<think>{{ m.content }}  cow{% endfor %}"
    rows = rows_of(TextEncoder(tokenizer), "a cowbell <think>  <b>")
    assert "cow" in rows
    assert "<think>" not in rows
    assert "<b>" in rows
    tokenizer.add_tokens([AddedToken("<b>")], special_tokens=True)
    assert "<b>" not in rows_of(TextEncoder(tokenizer), "a <b>")


@pytest.mark.parametrize("text", ["<bos>the cat", " \n<bos>the cat", "<bos><bos>the cat"])
@pytest.mark.parametrize("name", ["byte level", "sentence piece"])
def test_a_second_bos_is_left_out_with_a_word(name, text):
    encoder = TextEncoder(TOKENIZERS[name]())
    with pytest.warns(SecondBosWarning, match="'<bos>'.*'a' is one.*left out"):
        tokens = encoded(encoder, text)
    assert (tokens.ids == 0).sum() == 1
    assert tokens.ids[0] == 0
    assert text[tokens.offsets[~tokens.special].min() :].strip() == "the cat"


def test_a_bos_that_nobody_doubles_stays_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for encoder in (
            TextEncoder(byte_level(bos=False)),
            TextEncoder(byte_level(), add_special_tokens=False),
            TextEncoder(byte_level(), bos=False),
        ):
            tokens = encoded(encoder, "<bos>the cat")
            assert tokens.ids[0] == 0
            assert (tokens.ids == 0).sum() == 1
            assert tokens.special.tolist() == [True] + [False] * (len(tokens.ids) - 1)
        # Packed documents: a BOS inside a text is no row, and nobody takes it away.
        packed = encoded(TextEncoder(byte_level()), "the cat<eos><bos>the cat")
        assert (packed.ids == 0).sum() == 2


def test_bos_can_be_asked_for_and_left_out():
    text = "the cat"
    for make in (byte_level, sentence_piece):
        own, without = make(), make(bos=False)
        assert encoded(TextEncoder(own, bos=False), text).ids.tolist()[0] != 0
        assert encoded(TextEncoder(without, bos=True), text).ids.tolist()[0] == 0
        assert encoded(TextEncoder(own, bos=True), text).ids.tolist() == own(text).input_ids
        assert encoded(TextEncoder(without, bos=False), text).ids.tolist() == without(text).input_ids
        assert (
            TextEncoder(own, bos=True).digest == TextEncoder(own).digest != TextEncoder(own, bos=False).digest
        )
        assert TextEncoder(without, bos=False).digest == TextEncoder(without).digest
        assert (TextEncoder(own).words, TextEncoder(without).words) == ("BOS <bos>", "no BOS")
    assert TextEncoder(tiny.tokenizer("bert")).words == "BOS [CLS]"


def test_bos_that_cannot_be_is_refused():
    tokenizer = byte_level(bos=False)
    with pytest.raises(ValueError, match="bos=True puts a BOS in, add_special_tokens=False puts none"):
        TextEncoder(tokenizer, add_special_tokens=False, bos=True)
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match=r"bos=True: .* has no BOS token"):
        TextEncoder(tokenizer, bos=True)


@pytest.mark.parametrize("make", [tiny.host, tiny.nnsight_host], ids=["transformer_lens", "nnsight"])
def test_dropped_special_tokens_are_counted_and_the_choice_is_seen(make):
    host = make("gpt2", bos=True)
    assert host.info.bos
    assert repr(host).endswith(", BOS <bos>)")
    assert repr(make("gpt2", bos=False)).endswith(", no BOS)")
    assert repr(make("gpt2")).endswith(", no BOS)")
    text = "The cat<eos> sat"
    laid = lay_out(host, [Sample("a", text, "a")], ["x"])
    assert laid.special == 2
    assert [text[a:b] for a, b in laid.offsets][-1].strip() == "sat"
    assert not np.isin(np.arange(7, 12), laid.offsets[:, 0]).any()


def test_bos_agrees_on_both_hosts():
    found = []
    for make in (tiny.host, tiny.nnsight_host):
        for bos in (True, False):
            host = make("llama", bos=bos)
            (batch,) = host.batches(tiny.samples(tiny.TEXTS[:1]))
            found.append((host.info.tokenizer, host.info.bos, batch.inputs["input_ids"]))
    with_bos, without, other_with, other_without = found
    assert with_bos[:2] == other_with[:2]
    assert without[:2] == other_without[:2]
    assert torch.equal(with_bos[2], other_with[2])
    assert torch.equal(without[2], other_without[2])
    assert torch.equal(with_bos[2][:, 1:], without[2])


def test_a_model_passes_its_check_on_texts_with_marks():
    texts = ["<bos>The cat<eos> sat", "a<eos>", "short"]
    with pytest.warns(SecondBosWarning):
        report = check(tiny.host("llama"), texts)
    assert report.passed, report


def test_padding_of_token_ids_is_refused_and_one_end_of_text_is_none():
    tokenizer = byte_level()
    tokenizer.pad_token = "<eos>"
    encoder = TextEncoder(tokenizer)
    ids = tokenizer("the cat")["input_ids"]
    read = [encoder([Sample("a", "x", "a", source=TokenIds(own))])[0].ids for own in (ids, [*ids, 1])]
    assert [len(own) for own in read] == [len(ids), len(ids) + 1]
    for own in ([*ids, 1, 1], [1, 1, *ids]):
        with pytest.raises(ValueError, match=r"2 padding tokens \('<eos>'\) at one end.*attention_mask"):
            encoder([Sample("a", "x", "a", source=TokenIds(own))])
    tokenizer.pad_token = "<|user|>"
    with pytest.raises(ValueError, match="has 1 padding tokens"):
        TextEncoder(tokenizer)([Sample("a", "x", "a", source=TokenIds([*ids, tokenizer.pad_token_id]))])


def prefixed():
    """As Llama has it: a mark before the first word, and bytes for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", *(f"<0x{n:02X}>" for n in range(256)), *"\u2581thecas", "\u2581t", "\u2581c"]
    backend = Tokenizer(
        models.BPE(
            {piece: n for n, piece in enumerate(pieces)},
            [("\u2581", "t"), ("\u2581", "c")],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


@pytest.mark.parametrize("make", [byte_level, sentence_piece, prefixed])
def test_token_ids_of_a_text_stand_for_its_characters(make):
    tokenizer = make()
    encoder, text = (
        TextEncoder(tokenizer),
        "the cat \U0001f600 sat" if make is not sentence_piece else "the cat sat",
    )
    own = encoder([Sample("a", text, "a")])[0]
    named = encoder.named(tokenizer(text)["input_ids"])
    shown = [named.text[a:b] for (a, b), special in zip(named.spans, own.special, strict=True) if not special]
    assert shown == [text[a:b] for a, b in own.offsets[~own.special].tolist()]


def test_a_null_byte_among_token_ids_is_shown_as_no_character():
    encode = TextEncoder(tiny.tokenizer("gpt2"))
    null = encode.tokenizer.convert_tokens_to_ids("\u0100")
    ids = [*encode.tokenizer("a cat").input_ids, null, *encode.tokenizer(" sat").input_ids]
    assert "\0" in encode.tokenizer.decode(ids)
    named = encode.named(ids)
    assert named.text == "a cat\ufffd sat"
    assert named.text[slice(*named.spans[-1])] == "sat"
