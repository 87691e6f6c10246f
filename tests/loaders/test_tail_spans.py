"""Laws of contexts by plan: exactly m tokens at the planned places, N tokens, nothing in two splits."""

import re
from collections import defaultdict

import numpy as np
import pytest

import sa_plugin as sa
from sa_plugin.loaders import TailPlan, read_supersense

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CONTEXTS = {"train": 60, "guard": 30, "cal": 30, "test": 40}
PLANS = {
    "one": TailPlan(tokens=32),
    "two apart": TailPlan(tokens=96, in_concept=2, runs=2, arrangement="spread"),
    "two together": TailPlan(tokens=96, in_concept=2, runs=2, present=2),
    "long": TailPlan(tokens=300),
}


@pytest.fixture(scope="module", params=PLANS)
def made(request):
    plan = PLANS[request.param]
    return plan, sa.load("tail_spans", plan=plan, contexts=CONTEXTS, seed=3)


def words(text):
    """Words and marks with their places, by a loop over characters."""
    found, start = [], None
    for k, character in enumerate(text + " "):
        if character.isalnum() or character == "_":
            start = k if start is None else start
            continue
        if start is not None:
            found.append((start, k))
            start = None
        if not character.isspace():
            found.append((k, k + 1))
    return found


def test_contexts_have_the_stated_length_and_span(made):
    plan, data = made
    for sample in data:
        tokens = words(sample.text)
        assert len(tokens) == plan.tokens
        count = defaultdict(int)
        for start, end in tokens:
            for concept in {c for a, b, c in sample.spans if a < end and start < b}:
                count[concept] += 1
        assert set(count.values()) <= {plan.in_concept}, sample.id
        assert set(count) == sample.positive
        assert len(count) <= plan.present


def test_labels_are_those_of_the_set_and_of_whole_words(made):
    """Each labelled word stands in a labelled passage of the embedded set, with the same concept."""
    known = {(p.text[a:b], c) for p in read_supersense()[1] for a, b, c in p.spans}
    for sample in made[1]:
        for a, b, concept in sample.spans:
            assert (sample.text[a:b], concept) in known
            assert not re.match(r"\w", sample.text[b : b + 1])
            assert not re.match(r"\w", sample.text[a - 1 : a])


def test_carriers_stand_where_the_plan_puts_them(made):
    plan, data = made
    gaps = []
    for sample in data:
        for concept in sample.positive:
            starts = [a for a, _, c in sample.spans if c == concept]
            gaps.append((max(starts) - min(starts)) / len(sample.text))
    if plan.runs == 2 and plan.arrangement == "spread":
        assert np.mean(gaps) > 0.3
    elif plan.runs == 2:
        assert np.mean(gaps) < 0.4


def test_nothing_crosses_splits(made):
    _, data = made
    passages = [(p.document, p.text) for p in read_supersense()[1]]
    home = {}
    of_split = defaultdict(set)
    for sample, split in zip(data.samples, data.split_of, strict=True):
        assert home.setdefault(sample.document, split) == split
        for a, _, concept in sample.spans:
            # The sentence around a labelled word, found in the passages it is cut from.
            around = sample.text[max(0, a - 12) : a + 12]
            of_split[split].update((document, around) for document, text in passages if around in text)
            assert concept in data.concepts
    documents = {split: {document for document, _ in own} for split, own in of_split.items()}
    found = {split: {a for _, a in own} for split, own in of_split.items()}
    for one in found:
        for other in found:
            assert one == other or not found[one] & found[other]
    assert all(documents.values())


def test_lemmas_of_train_are_in_no_other_split(made):
    lemma_of = {
        (p.text[a:b].lower(), c): lemma
        for p in read_supersense()[1]
        for (a, b, c), lemma in zip(p.spans, p.lemmas, strict=True)
    }
    lemmas = defaultdict(set)
    for sample, split in zip(made[1].samples, made[1].split_of, strict=True):
        lemmas[split == "train"] |= {(lemma_of[sample.text[a:b].lower(), c], c) for a, b, c in sample.spans}
    assert lemmas[True]
    assert lemmas[False]
    assert not lemmas[True] & lemmas[False]


def test_the_same_seed_gives_the_same_and_more_contexts_leave_the_first():
    first = sa.load("tail_spans", contexts={"train": 8, "test": 6}, seed=1)
    more = sa.load("tail_spans", contexts={"train": 8, "test": 12}, seed=1)
    assert [s.text for s in more.test][:6] == [s.text for s in first.test]
    assert first.hash == sa.load("tail_spans", contexts={"train": 8, "test": 6}, seed=1).hash
    assert first.hash != sa.load("tail_spans", contexts={"train": 8, "test": 6}, seed=2).hash


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"spans": "novels"}, "spans of tail_spans 'novels' is unknown"),
        ({"contexts": {"dev": 3}}, "split of contexts 'dev' is unknown"),
        ({"plan": TailPlan(64, 40, 20)}, r"no deck of split 'train' has 20 sentences with 40 tokens"),
        ({"plan": TailPlan(100_000)}, "and 100000 of filler"),
        ({"spans": "nouns", "root": "nowhere"}, "nowhere is no folder"),
    ],
)
def test_what_cannot_be_built_is_named(options, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        sa.load("tail_spans", **options)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"in_concept": 65}, "65 in-concept tokens in 1 runs of a context of 64"),
        ({"runs": 2}, "1 in-concept tokens in 2 runs"),
        ({"arrangement": "heap"}, "arrangement"),
        ({"present": 0}, "present is 0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(fields, said):
    with pytest.raises((ValueError, TypeError), match=said):
        TailPlan(**fields)
