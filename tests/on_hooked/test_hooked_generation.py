"""A HookedTransformer generates from embeddings in a loop of its own, and is watched like the rest."""

import pytest
import tiny
import torch
from hooked_cases import hooked_model, needs_hooked
from word_data import word_data

from sa_plugin import attach, watch
from sa_plugin.concepts import fit
from sa_plugin.detection import calibrate

pytestmark = [needs_hooked, pytest.mark.filterwarnings("ignore::UserWarning")]
NEW = 5


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def case(request):
    model = hooked_model(request.param)
    host, data = attach(model, progress=False), word_data(30)
    return request.param, model, host, calibrate(host, data, fit(host, data, "separator"), deltas=(0.6,))


def marks(found):
    return {(int(one.sample.split()[-1]), one.position, one.concept) for one in found}


def test_flags_are_those_of_one_pass_over_the_finished_ids(case):
    name, model, host, detector = case
    ids = torch.tensor([tiny.tokenizer(name)(tiny.TEXTS[0]).input_ids])
    for cache in (True, False):
        given = {"max_new_tokens": NEW, "return_type": "tokens", "verbose": False, "stop_at_eos": False}
        given |= {"use_past_kv_cache": cache, "do_sample": True}
        torch.manual_seed(1)
        plain = model.generate(ids, **given)
        torch.manual_seed(1)
        with watch(host, detector) as monitor:
            out = model.generate(ids, **given)
        assert torch.equal(plain, out)
        right = {one for one in marks(detector.find(out.tolist())) if one[1] < out.shape[1] - 1}
        assert marks(monitor.superactivators()) == right
        assert right


def test_texts_of_unlike_length(case):
    _, model, host, detector = case
    with watch(host, detector) as monitor:
        model.generate(
            list(tiny.TEXTS[:3]),
            max_new_tokens=NEW,
            do_sample=False,
            verbose=False,
            stop_at_eos=False,
            prepend_bos=host.info.bos,
        )
    rows = monitor.superactivators().scored.tokens.samples
    assert [text in one.text for one, text in zip(rows, tiny.TEXTS, strict=False)] == [True] * 3
    right = detector.find([one.source.ids for one in rows])
    assert marks(monitor.superactivators()) == {
        one for one in marks(right) if one[1] < len(rows[one[0]].source.ids) - 1
    }


def test_a_stop_is_refused_where_the_library_has_no_criteria(case):
    _, model, host, detector = case
    with (
        pytest.raises(ValueError, match=r"HookedTransformer\.generate has not: leave stop out"),
        watch(host, detector, stop=True),
    ):
        model.generate("a cat", max_new_tokens=2, verbose=False)
