"""Chats and token ids: the template's tokens are no rows, and ids of a text are read as the text is."""

import importlib

import numpy as np
import pytest
import test_special_tokens as tokenizers
import tiny
import torch
from torch.testing import assert_close
from tqdm.auto import tqdm

from sa_plugin.concepts import fit
from sa_plugin.data import Chat, ConceptData, Sample, TokenIds, as_split
from sa_plugin.detection import calibrate
from sa_plugin.host import TextEncoder
from sa_plugin.scores import score

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CHATML = "{% for m in messages %}<|user|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "llama": LLAMA}
MESSAGES = [
    {"role": "user", "content": "The dog sat. user"},
    {"role": "assistant", "content": " A cat ran\nhome  "},
    {"role": "user", "content": "short"},
]


def encoder(tokenizer="byte level", template="chatml", **options):
    made = tokenizers.TOKENIZERS[tokenizer]()
    made.chat_template = TEMPLATES.get(template, template)
    return TextEncoder(made, **options)


def read(encode, given):
    (sample,) = as_split(given, ("x",), encode.named).samples
    (tokens,) = encode([sample])
    return sample, tokens


def covered(sample, tokens):
    at = {n for a, b in tokens.offsets[~tokens.special] for n in range(a, b)}
    return {n for n in at if not sample.text[n].isspace()}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("tokenizer", tokenizers.TOKENIZERS)
@pytest.mark.parametrize("roles", [None, ["assistant"], ["user"]])
def test_rows_are_the_words_of_the_turns_that_count_and_nothing_of_the_template(tokenizer, template, roles):
    encode = encoder(tokenizer, template)
    sample, tokens = read(encode, Chat(MESSAGES, roles))
    assert sample.text == "\n".join(one["content"] for one in MESSAGES)
    expected, start = set(), 0
    for one in MESSAGES:
        if roles is None or one["role"] in roles:
            expected |= {start + k for k, c in enumerate(one["content"]) if not c.isspace()}
        start += len(one["content"]) + 1
    assert covered(sample, tokens) == expected
    # The model is given what transformers itself makes of the messages.
    own = encode.tokenizer.apply_chat_template(MESSAGES, tokenize=True, return_dict=True)["input_ids"]
    assert tokens.ids.tolist() == list(own)


def test_a_bos_is_put_before_a_chat_where_it_is_asked_for_and_lacks():
    assert read(encoder(bos=True), MESSAGES)[1].ids[0] == 0
    assert read(encoder(), MESSAGES)[1].ids[0] != 0
    for choice in (None, True, False):
        tokens = read(encoder(template="llama", bos=choice), MESSAGES)[1]
        assert (tokens.ids == 0).sum() == 1


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (None, MESSAGES, "has no chat template"),
        (
            "{{ raise_exception('roles must alternate') }}",
            MESSAGES,
            "refuses sample 'text 0': roles must alternate",
        ),
        ("{{ messages[0].content }}", MESSAGES, "message 1 of sample 'text 0' as it stands"),
        ("{% for m in messages %}{{ m.content | upper }} {% endfor %}", MESSAGES, "message 0 of sample"),
        ("{% for m in messages[::-1] %}{{ m.content }} {% endfor %}", MESSAGES, "message"),
    ],
)
def test_what_a_template_cannot_say_is_refused_by_name(template, messages, reason):
    encode = encoder()
    encode.tokenizer.chat_template = template
    with pytest.raises(ValueError, match=reason):
        read(encode, messages)


@pytest.mark.parametrize(
    ("messages", "roles", "error", "reason"),
    [
        ([], None, ValueError, "has no messages"),
        ([{"role": "user"}], None, TypeError, "message 0 of a chat is"),
        ([{"role": "user", "content": None}], None, TypeError, "role and content are texts"),
        (
            [{"role": "user", "content": "a", "tool_calls": []}],
            None,
            ValueError,
            "'tool_calls', which is not read",
        ),
        ([{"role": "user", "content": [{"type": "image"}]}], None, ValueError, "which is no text"),
        (
            [{"role": "user", "content": "a"}],
            ["asistant"],
            ValueError,
            r"roles \['asistant'\]: it has \['user'\]",
        ),
    ],
)
def test_a_chat_that_is_none_is_refused(messages, roles, error, reason):
    with pytest.raises(error, match=reason):
        Chat(messages, roles)


@pytest.mark.parametrize("tokenizer", tokenizers.TOKENIZERS)
def test_ids_of_a_text_are_read_as_the_text_is(tokenizer):
    encode = encoder(tokenizer, add_special_tokens=False)
    for text in ("The cat sat on the mat.", "a <|user|> cat<|end|>", "naïve café 😀 ends here"):
        (plain,) = encode([Sample("a", text, "a")])
        for ids in (plain.ids.tolist(), plain.ids, torch.tensor(plain.ids)):
            sample, tokens = read(encode, ids)
            assert tokens.ids.tolist() == plain.ids.tolist()
            assert tokens.special.tolist() == plain.special.tolist()
            if "😀" not in text:
                assert [sample.text[a:b] for a, b in tokens.offsets] == [text[a:b] for a, b in plain.offsets]


def test_ids_that_no_text_gives_and_ids_without_a_tokenizer():
    encode = encoder()
    one, two = (encode.tokenizer.convert_tokens_to_ids(piece) for piece in ("t", "h"))
    sample, tokens = read(encode, [one, two, one])
    assert (sample.text, tokens.offsets.tolist()) == ("tht", [[0, 1], [1, 2], [2, 3]])
    (bare,) = as_split([one, two], ("x",)).samples
    assert (bare.text, bare.source.spans) == (
        f"{one} {two}",
        ((0, len(str(one))), (len(str(one)) + 1, len(bare.text))),
    )
    with pytest.raises(ValueError, match="sample 'text 0' has the token id 99999"):
        read(encode, [1, 99999])
    with pytest.raises(ValueError, match=r"token ids are \[-1\]"):
        TokenIds([-1])


def chat_of(k):
    return [
        {"role": "user", "content": f"what did you see {k}"},
        {"role": "assistant", "content": f"a cat sat {k}" if k % 2 else f"we went home {k}"},
    ]


@pytest.mark.parametrize("make", [tiny.host, tiny.nnsight_host], ids=["transformer_lens", "nnsight"])
def test_data_of_chats_ids_and_generators_go_all_the_way(make):
    host = make("gpt2")
    host.reader.encode.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
    )
    chats = [Chat(chat_of(k), ["assistant"]) for k in range(24)]
    spans = [
        [(chat.text.index("cat"), chat.text.index("cat") + 3, "animal")] if k % 2 else []
        for k, chat in enumerate(chats)
    ]
    data = ConceptData.from_spans((chat for chat in chats), spans)
    assert data.hash != ConceptData.from_spans([chat_of(k) for k in range(24)], spans).hash
    bank = fit(host, data, "prototype", layers=[1, 2])
    table = score(host, data, bank)
    words = {table.tokens.text(row).strip() for row in range(len(table.tokens))}
    assert not words & {"assistant", "what", "did", ":", "<eos>"}
    detector = calibrate(host, data, bank, scores=table)
    texts = ["a cat sat", "we went home to the cat"]
    ids = [host.reader.encode.tokenizer(text).input_ids for text in texts]
    by_text, by_ids = score(host, texts, bank), score(host, (one for one in ids), bank)
    assert_close(torch.tensor(by_text.scores), torch.tensor(by_ids.scores))
    assert (
        list(detector.find(texts))
        == list(detector.find(text for text in texts))
        == list(detector.find(np.array(texts)))
    )
    found = detector.find(chats[:3])
    assert all(
        chats[int(one.sample[-1])].text[one.start : one.end].strip() == one.text.strip() for one in found
    )
    assert len(detector.detect(ids).samples) == 2
    labelled = ConceptData.from_texts(
        (chat_of(k) for k in range(24)), ["animal", "other"] * 12, token_labels="text"
    )
    assert labelled.samples[0].source is not None
    masks = [{"animal": [k % 2 == 0] * len(ids[0])} for k in range(12)]
    by_mask = ConceptData.from_token_masks(
        [ids[0]] * 12, [["animal"] if k % 2 == 0 else [] for k in range(12)], masks
    )
    assert score(host, by_mask, fit(host, by_mask, "prototype", layers=[1])).tokens.labels.any()


def test_a_generator_is_walked_under_the_hosts_bar(monkeypatch):
    run = importlib.import_module("sa_plugin.passes.run")
    data = ConceptData.from_spans(["a cat sat", "we went home"] * 8, [[(2, 5, "animal")], []] * 8)
    for progress in (True, False):
        host = tiny.host("gpt2", progress=progress)
        bank = fit(host, data, "prototype", layers=[1])
        bars = []

        def shown(bars=bars, **look):
            bars.append(look)
            return tqdm(**look)

        with monkeypatch.context() as patch:
            patch.setattr(run, "tqdm", shown)
            score(host, (text for text in tiny.TEXTS), bank)
        assert [(look["desc"], look["disable"]) for look in bars] == [("scores", not progress)]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"role": "user", "content": "a"}, "a chat is a list of messages"),
        ({"a", "b"}, "samples are of type set"),
        (b"bytes", "samples are of type bytes"),
        ([3.5], "samples are of type float: give a text"),
        (["a", None], "samples are of type NoneType"),
    ],
)
def test_what_is_no_sample_is_refused(given, reason):
    with pytest.raises(TypeError, match=reason):
        as_split(given, ("x",))


def test_a_message_is_no_text_of_a_data_set():
    with pytest.raises(TypeError, match=r"texts\[0\] is one message of a chat"):
        ConceptData.from_texts(chat_of(0), ["a", "b"])
