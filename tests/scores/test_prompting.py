"""Laws of the prompting baseline: against one unpadded prompt at a time, without a cache."""

import numpy as np
import pytest
import tiny
import torch

from sa_plugin.data import Image, Sample
from sa_plugin.scores import (
    AnswerMassWarning,
    Wording,
    answer_tokens,
    probabilities,
    prompt,
    questions,
    shared_length,
)

CONCEPTS = ("cat", "a dog", "nobody at night")
YES, NO = ("a", "b"), ("o", "the cat")
CHAT = (
    "<bos>{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}me: {% endif %}"
)
WORDING = Wording(yes=YES, no=NO)
ASKED = {"wording": WORDING, "progress": False}
TEMPLATE = "{text} of {concepts}? {concept}!"

pytestmark = pytest.mark.filterwarnings("ignore::sa_plugin.scores.AnswerMassWarning")


def tokenizer(architecture):
    found = tiny.tokenizer(architecture)
    found.chat_template = CHAT
    return found


def one_by_one(model, tok, text, yes, no, reply_tokens):
    """Oracle: no batch, no padding, no cache."""
    ids = tok(text, add_special_tokens=False)["input_ids"]
    first, reply = None, []
    with torch.no_grad():
        for _ in range(reply_tokens):
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
            first = logits if first is None else first
            token = int(logits.argmax())
            reply.append(token)
            ids = [*ids, token]
            if token == tok.eos_token_id:
                break
    p = first.softmax(-1)
    both = [sum(float(p[i]) for i in of) for of in (yes, no)]
    return both[0] / sum(both), sum(both), tok.decode(reply, skip_special_tokens=True)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "neox"])
@pytest.mark.parametrize("reuse", [True, False])
def test_answers_equal_one_prompt_at_a_time(architecture, reuse):
    model, tok = tiny.hf_model(architecture), tokenizer(architecture)
    samples = tiny.samples()[:3]
    found = prompt(
        model,
        tok,
        samples,
        CONCEPTS,
        wording=WORDING._replace(template=TEMPLATE),
        reply_tokens=5,
        reuse=reuse,
        progress=False,
    )
    yes, no = answer_tokens(tok, YES, NO)
    for n, sample in enumerate(samples):
        for c, concept in enumerate(CONCEPTS):
            asked = TEMPLATE.format(text=sample.text, concept=concept, concepts=", ".join(CONCEPTS))
            text = f"<bos>user: {asked}\nme: "
            p, mass, reply = one_by_one(model, tok, text, yes, no, 5)
            assert found.p_yes[n, c] == pytest.approx(p, rel=1e-4)
            assert found.mass[n, c] == pytest.approx(mass, rel=1e-4)
            assert found.replies[n][c] == reply


def test_reuse_reads_fewer_tokens_and_says_the_same():
    model, tok = tiny.hf_model("llama"), tokenizer("llama")
    samples = tiny.samples()[:2]
    apart = prompt(model, tok, samples, CONCEPTS, reuse=False, reply_tokens=0, **ASKED)
    once = prompt(model, tok, samples, CONCEPTS, reuse=True, reply_tokens=0, **ASKED)
    np.testing.assert_allclose(once.p_yes, apart.p_yes, rtol=1e-4)
    assert once.tokens < 0.7 * apart.tokens
    assert once.replies == ()
    with pytest.raises(ValueError, match="no reply was written: ask with reply_tokens=8"):
        _ = once.said_yes


def test_a_bridge_is_asked_as_its_model_is():
    tok, samples = tokenizer("llama"), tiny.samples()[:2]
    plain = prompt(tiny.hf_model("llama"), tok, samples, CONCEPTS, reply_tokens=3, **ASKED)
    bridged = prompt(tiny.bridge("llama"), tok, samples, CONCEPTS, reply_tokens=3, **ASKED)
    np.testing.assert_allclose(bridged.p_yes, plain.p_yes, rtol=1e-4)
    assert bridged.replies == plain.replies


def test_plain_text_needs_no_chat_template():
    model, tok = tiny.hf_model("llama"), tiny.tokenizer("llama")
    tok.chat_template = None
    with pytest.raises(ValueError, match="no chat template, so the model is no instruct model"):
        prompt(model, tok, tiny.samples()[:1], CONCEPTS, **ASKED)
    found = prompt(
        model,
        tok,
        tiny.samples()[:1],
        CONCEPTS,
        wording=WORDING._replace(chat=False),
        reply_tokens=0,
        progress=False,
    )
    assert found.p_yes.shape == (1, 3)
    rows = questions(tok, tiny.samples()[0], CONCEPTS, TEMPLATE, False)
    assert all(row[0] == tok.bos_token_id for row in rows)


def test_probabilities_are_those_of_a_softmax():
    logits = torch.randn(4, 9) * 30
    p = logits.double().softmax(-1)
    yes, mass = probabilities(logits, [1, 4], [0])
    np.testing.assert_allclose(mass, (p[:, [1, 4, 0]]).sum(-1), rtol=1e-9)
    np.testing.assert_allclose(yes * mass, p[:, [1, 4]].sum(-1), rtol=1e-9)
    faint = torch.tensor([[-300.0, -301.0, 400.0]])
    assert probabilities(faint, [0], [1])[0][0] == pytest.approx(1 / (1 + np.exp(-1)))


@pytest.mark.parametrize(
    ("rows", "length"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2]], 1), ([[1], [2]], 0), ([[1, 2, 3]], 2)],
)
def test_shared_beginnings_leave_a_token(rows, length):
    assert shared_length(rows) == length


def test_an_end_of_text_ends_a_reply():
    model, tok = tiny.hf_model("llama"), tokenizer("llama")
    first = prompt(model, tok, tiny.samples()[:1], CONCEPTS[:1], reply_tokens=4, **ASKED)
    ids = questions(tok, tiny.samples()[0], CONCEPTS[:1], first.template, True)[0]
    with torch.no_grad():
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    model.generation_config.eos_token_id = [tok.eos_token_id, token]
    ended = prompt(model, tok, tiny.samples()[:1], CONCEPTS[:1], reply_tokens=4, **ASKED)
    assert ended.tokens == first.tokens - 3
    assert ended.replies[0][0] == tok.decode([token])


def test_rare_answers_are_said():
    with pytest.warns(AnswerMassWarning, match="yes and no have 0.0.* conditional on a rare event"):
        prompt(
            tiny.hf_model("llama"), tokenizer("llama"), tiny.samples()[:1], CONCEPTS, reply_tokens=0, **ASKED
        )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"wording": Wording("{text}")}, r"lacks \{concept\}"),
        ({"wording": Wording("{text} {concept} {label}")}, r"field that is not known \('label'\)"),
        ({"wording": Wording("{text} {concept} {")}, "field that is not known"),
        ({"wording": WORDING._replace(yes=["zebra crossing"])}, "none of the words for yes"),
        ({"wording": WORDING._replace(no=["a"])}, "stand for yes and for no"),
        ({"concepts": ()}, "0 concepts and reply_tokens=0"),
        ({"reply_tokens": -1}, "reply_tokens=-1: give at least"),
    ],
)
def test_wrong_arguments_are_refused(change, match):
    given = {"concepts": CONCEPTS, "reply_tokens": 0, **ASKED, **change}
    with pytest.raises(ValueError, match=match):
        prompt(tiny.hf_model("llama"), tokenizer("llama"), tiny.samples()[:1], given.pop("concepts"), **given)


def test_what_cannot_be_asked_is_refused():
    tok = tokenizer("llama")
    picture = Sample("p", "", "d", image=Image(np.zeros((4, 4, 3), dtype=np.uint8)))
    with pytest.raises(ValueError, match="'p' is an image, and questions are about texts"):
        prompt(tiny.hf_model("llama"), tok, [picture], CONCEPTS, **ASKED)
    with pytest.raises(TypeError, match="without logits: give a causal language model"):
        prompt(tiny.hf_model("llama").model, tok, tiny.samples()[:1], CONCEPTS, **ASKED)
    gemma = tiny.hf_model("gemma2")
    with pytest.raises(ValueError, match="this model's sliding window is 16"):
        prompt(gemma, tokenizer("gemma2"), tiny.samples()[:1], CONCEPTS, **ASKED)
