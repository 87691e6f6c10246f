"""A generation on a server is watched by numbers made beside the model, or refused by name."""

import nnsight
import pytest
import torch
from clients import remote_model

from sa_nnsight.trace_ops import seen
from sa_nnsight.trace_setup import watched
from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData, Splits
from sa_plugin.detection import calibrate
from sa_plugin.generation import steer, watch
from sa_plugin.host import attach

NEW = 5


@pytest.fixture(scope="module")
def case():
    """The model here and there, a detector that fires often, and two prompts of unlike length."""
    here = attach(remote_model("tiny-gpt2", load=True), progress=False)
    there = attach(remote_model("tiny-gpt2"), remote=True, traces=3, progress=False)
    words = [["the", "cat", "sat", "on", "a", "mat"], ["a", "dog", "walked", "home", "at", "night"]] * 10
    words += [["people", "walked", "on", "the", "mat"], ["a", "night", "at", "home"]] * 10
    labels = [["animal" if one in ("cat", "dog") else None for one in row] for row in words]
    data = ConceptData.from_words(words, labels, splits=Splits(seed=1))
    detector = calibrate(here, data, fit(here, data, "prototype"), deltas=(0.6,))
    return here, there, detector


def rows(here):
    """Padded on the left, with the mask."""
    made = [here.reader.encode.tokenizer(text).input_ids for text in ("the cat sat on a mat", "a dog")]
    width = max(map(len, made))
    ids = torch.tensor([[1] * (width - len(row)) + row for row in made])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in made])


def of_hits(hits):
    return [(one.sequence, one.step, one.position, one.token, one.concept) for one in hits]


def test_a_generation_there_is_fed_and_has_the_hits_of_one_here(case):
    here, there, detector = case
    ids, mask = rows(here)
    given = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    with watch(here, detector) as right:
        plain = here.model._module.generate(ids, attention_mask=mask, **given)
    assert right.hits
    nnsight.register("sa_nnsight.trace_ops")
    model, layers = there.model, watched(detector, there)
    with model.generate(input_ids=ids, attention_mask=mask, remote=True, **given) as tracer:
        steps = nnsight.save([])
        for _ in tracer.iter[:NEW]:
            steps.append([seen(model.get(one.path), one) for one in layers])
        out = tracer.result.save()
    assert torch.equal(out.cpu(), plain)
    whole = torch.cat([mask, torch.ones(len(mask), NEW, dtype=mask.dtype)], 1)
    with watch(there, detector) as monitor:
        past = 0
        for step in steps:
            stop = past + step[0].shape[1]
            numbers = {one.layer: value for one, value in zip(layers, step, strict=True)}
            monitor.feed(numbers, out[:, past:stop], past=past, mask=whole[:, past:stop], scored=True)
            past = stop
    assert of_hits(monitor.hits) == of_hits(right.hits)
    marks = [
        [(one.sample, one.position, one.concept) for one in m.superactivators()] for m in (monitor, right)
    ]
    assert marks[0] == marks[1]


def test_what_no_hook_can_see_there_is_refused_by_name(case):
    _, there, detector = case
    with (
        pytest.raises(RuntimeError, match=r"the model is on a server, where no hook is.*to monitor.feed"),
        watch(there, detector),
    ):
        pass
    with (
        pytest.raises(TypeError, match=r"runs on a server, where no hook of ours is.*local copy"),
        steer(there, detector, "animal", 2.0),
    ):
        pass
