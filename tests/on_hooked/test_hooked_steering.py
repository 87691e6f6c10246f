"""A HookedTransformer is steered by the unsteered model's gate, by the context and by plain hooks."""

import generation_cases as cases
import hooked_cases
import numpy as np
import pytest
import torch
from hooked_cases import needs_hooked
from word_data import word_data

from sa_plugin import calibrate, fit, score, steer
from sa_transformer_lens import steering_hooks

pytestmark = [needs_hooked, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")]


@pytest.fixture(params=["gpt2", "llama"])
def case(request):
    host, _ = hooked_cases.hosts(request.param)
    data = word_data(30)
    detector = calibrate(host, data, fit(host, data, "separator", layers=[1]), deltas=(0.6,))
    ids, mask = cases.prompts(request.param)
    row = ids[mask[:, 0].argmax()][None] if mask.all(1).any() else ids[:1, int(mask[0].argmax()) :]
    return host, detector, row


def test_gate_and_edit_are_those_of_the_finished_ids(case):
    host, detector, ids = case
    settings = {"max_new_tokens": 6, "do_sample": False, "verbose": False, "stop_at_eos": False}
    valid = ~torch.isin(ids, torch.tensor(sorted(host.reader.encode.special)))
    for options in ({}, {"where": "all"}):
        outs = []
        for cached in (True, False):
            with steer(host, detector, "animal", 5.0, **options) as steering:
                out = host.model.generate(ids, use_past_kv_cache=cached, **settings)
            hooks = steering_hooks(host, detector, "animal", 5.0, valid=valid, **options)
            with host.model.hooks(fwd_hooks=hooks):
                again = host.model.generate(ids, use_past_kv_cache=cached, **settings)
            assert torch.equal(out, again), (options, cached)
            outs.append(out)
        assert torch.equal(*outs)
        (texts,) = steering.texts
        found = score(host, [out[0, :-1].tolist()], detector.bank)
        right = detector.token_scores(found)[:, detector.concepts.index("animal")]
        # The first token of a decoder without BOS is a sink, and no row of a table.
        own = texts.scores[0][found.tokens.position]
        assert np.abs(own - right).max() < 2e-6 * max(1.0, np.abs(right).max())
        assert texts.steered.any()
    with steer(host, detector, "animal", 5.0) as steering:
        own = steering.generate(ids, max_new_tokens=6)
    with steer(host, detector, "animal", 5.0):
        assert torch.equal(host.model.generate(ids, **settings), own)
    with pytest.raises(ValueError, match=r"steering_hooks: HookedTransformer shows no token ids.*give valid"):
        steering_hooks(host, detector, "animal", 5.0)
