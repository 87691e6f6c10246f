"""Promised rates: thresholds from a guard that chose nothing, p-values, what is realised, refusals."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
from detection_cases import CONCEPTS, LAYERS, make_bank, token_table, words_and_labels
from word_data import word_data

import sa_plugin as sa
from sa_plugin.data import ConceptData, Sample, Split, Splits
from sa_plugin.detection import SelectionDataWarning, calibrate
from sa_plugin.scores import ScoreTable
from sa_plugin.statistics import (
    Promise,
    document_threshold,
    episode_losses,
    p_of_documents,
    risk_threshold,
    share_losses,
)

FOUR = Splits(fractions=(0.1, 0.1, 0.2, 0.6), seed=3)


def case_of(n=240, per_document=2, splits=FOUR, seed=0):
    """Data with a guard, and scores that are higher on tokens in concept."""
    rng = np.random.default_rng(seed)
    words, labels, extra = words_and_labels(rng, n, CONCEPTS, 0.0)
    # Half of the documents have no concept at all, as those of a monitor's guard.
    labels = [[None] * len(row) if k // per_document % 2 else row for k, row in enumerate(labels)]
    data = ConceptData.from_words(
        words,
        labels,
        concepts=CONCEPTS,
        sample_labels=extra,
        splits=splits,
        documents=[f"doc {k // per_document}" for k in range(n)],
    )
    bank = make_bank(data=data, controls=False)
    tokens = token_table(data, ("cal", "guard", "test"))
    scores = rng.normal(size=(len(tokens), len(LAYERS), len(CONCEPTS)))
    scores += (
        3 * tokens.labels[:, None] + 0.5 * rng.normal(size=tokens.n_samples)[tokens.sample_of][:, None, None]
    )
    return data, bank, ScoreTable(tokens, bank, scores.astype(np.float32))


@pytest.fixture(scope="module")
def case():
    return case_of()


KEPT = {}


def made(case, promise=None, **options):
    data, bank, table = case
    key = id(case), promise
    if key in KEPT and not options:
        return KEPT[key][0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = calibrate(None, data, bank, scores=table, promise=promise, **options)
    if not options:
        # Beside its case, whose place in memory is its name.
        KEPT[key] = found, case
    return found


def guard_tokens(case, detector, concept):
    """Score, sample and document of every guard token of documents without a concept, one by one."""
    data, _, table = case
    k = CONCEPTS.index(concept)
    at = detector.token_scores(table)[:, k]
    guilty = {s.document for s in data.guard.samples if concept in s.positive}
    rows = [
        (at[t], n, table.tokens.samples[n].document)
        for t, n in enumerate(table.tokens.sample_of)
        if table.tokens.split_of[n] == "guard" and table.tokens.samples[n].document not in guilty
    ]
    score, sample, home = zip(*rows, strict=True)
    return np.array(score), np.array(sample), np.unique(home, return_inverse=True)[1]


PROMISES = [
    Promise("document", 0.05),
    Promise("document", 0.1, confidence=0.9),
    Promise("sample", 0.05),
    Promise("tokens", 0.03),
    Promise("tokens", 0.01, lengths=(10, 60), episodes=1),
]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda p: f"{p.kind} {p.alpha}")
def test_thresholds_are_those_of_the_guard_alone(case, promise):
    detector = made(case, promise)
    plain = made(case)
    assert detector.layer == plain.layer
    assert detector.unit == plain.unit
    assert detector.promise is promise
    for k, concept in enumerate(CONCEPTS):
        score, sample, home = guard_tokens(case, detector, concept)
        if promise.lengths is not None:
            size = np.bincount(home)[home]
            inside = (size >= 10) & (size <= 60)
            score, sample = score[inside], sample[inside]
            home = np.unique(home[inside], return_inverse=True)[1]
        n = home.max() + 1
        top = np.array([score[home == d].max() for d in range(n)])
        tops = np.array([score[sample == s].max() for s in np.unique(sample)])
        of = np.array([home[sample == s][0] for s in np.unique(sample)])
        if promise.kind == "document":
            tau = document_threshold(top, promise.alpha, promise.confidence)
        elif promise.kind == "sample":
            tau = risk_threshold(share_losses(tops, of), n, promise.alpha)
        elif promise.episodes is None:
            tau = risk_threshold(share_losses(score, home), n, promise.alpha)
        else:
            tau = risk_threshold(episode_losses(score, sample, home, 1), n, promise.alpha, promise.most)
        # The next number above: reaching it is lying strictly above tau.
        assert detector.threshold[concept] == np.nextafter(tau, np.inf)
        assert detector.guard.n_documents[k] == n
        shown = np.array([score.max() + 1, np.median(score), score.min()])
        assert np.array_equal(detector.p_values(concept, shown), p_of_documents(shown, top))


def test_an_alarm_is_a_p_of_at_most_alpha(case):
    detector = made(case, Promise("document", 0.05))
    data, _, table = case
    found = detector.detect(data.test, scores=table)
    assert np.array_equal(found.present, found.p <= 0.05 + 1e-12)
    hits = detector.find(data.test, scores=table)
    assert hits
    assert all(hit.p <= 0.05 + 1e-12 for hit in hits)
    assert "p 0.0" in repr(hits[0])
    floor = 1 / (detector.guard.n_documents.max() + 1)
    assert found.p.min() >= floor
    tokens = detector.p_values("food", np.array([[9.0, 0.0], [-9.0, 1.0]]), of="token")
    assert tokens.shape == (2, 2)
    assert tokens[1, 0] == pytest.approx(1)


def test_the_p_of_a_token_is_thinned_upwards(case):
    detector = made(case, Promise("document", 0.05))
    for concept in CONCEPTS:
        score, _, home = guard_tokens(case, detector, concept)
        n = home.max() + 1
        weight = 1 / np.bincount(home)[home]
        slow = np.array([(1 + weight[score >= s].sum()) / (n + 1) for s in score])
        found = detector.p_values(concept, score, of="token")
        assert len(score) > 512
        assert (found >= slow - 1e-12).all()
        assert (found <= 1.1 * slow).all()
        top = np.argsort(-score)[:200]
        assert np.allclose(found[top], slow[top])


def test_bands_keep_the_promise_in_each(case):
    data, _, table = case
    edges = (1, 30, 60)
    detector = made(case, Promise("document", 0.1, lengths=edges))
    for concept in CONCEPTS:
        score, _, home = guard_tokens(case, detector, concept)
        size = np.bincount(home)
        tops = np.array([score[home == d].max() for d in range(len(size))])
        own = [document_threshold(tops[size <= 30], 0.1), document_threshold(tops[size > 30], 0.1)]
        assert detector.threshold[concept] == np.nextafter(max(own), np.inf)
        p = [
            p_of_documents(np.array([2.0]), tops[size <= 30])[0],
            p_of_documents(np.array([2.0]), tops[size > 30])[0],
        ]
        assert detector.p_values(concept, [2.0])[0] == max(p)
    with pytest.raises(ValueError, match=r"not controlled over 2 bands of lengths.*calibrate with one range"):
        detector.detect(data.test, scores=table).discoveries()


def test_a_promise_of_some_concepts_leaves_the_others(case):
    detector, plain = made(case, Promise("document", 0.05, concepts=("food",))), made(case)
    assert detector.threshold["animal"] == plain.threshold["animal"]
    assert detector.threshold["food"] != plain.threshold["food"]
    found = detector.evaluate(case[0].test, scores=case[2]).kept
    assert found.realised.axes["concept"] == ["food"]
    assert "but for animal, weather" in " ".join(str(detector).split())


def test_evaluation_shows_promised_beside_realised_and_compares_as_before(case):
    data, _, table = case
    plain = made(case).evaluate(data.test, scores=table)
    for promise in (PROMISES[2], PROMISES[4]):
        detector = made(case, promise)
        found = detector.evaluate(data.test, scores=table)
        assert np.array_equal(found.weighted["f1"].estimate, plain.weighted["f1"].estimate)
        kept = found.kept
        tokens = table.tokens
        for k, concept in enumerate(CONCEPTS):
            alarms = detector.token_scores(table)[:, k] >= detector.threshold[concept]
            losses, caught = [], []
            for document in dict.fromkeys(s.document for s in data.test.samples):
                own = [n for n, s in enumerate(tokens.samples) if s.document == document]
                rows = [alarms[tokens.bounds[n] : tokens.bounds[n + 1]] for n in own]
                size = sum(map(len, rows))
                if promise.lengths is not None and not 10 <= size <= 60:
                    continue
                if promise.kind == "sample":
                    rows = [row for row in rows if len(row) <= detector.guard.lengths[1]]
                elif size > detector.guard.lengths[1]:
                    continue
                fired = [row.any() for row in rows]
                if any(concept in tokens.samples[n].positive for n in own):
                    caught.append(any(fired))
                elif promise.kind == "document":
                    losses.append(any(fired))
                elif promise.kind == "sample":
                    losses.append(np.mean(fired))
                elif promise.episodes is None:
                    losses.append(sum(row.sum() for row in rows) / size)
                else:
                    losses.append(min(1, sum(fired)) / size)
            assert kept.documents[concept] == len(losses)
            assert kept.realised.sel(concept=concept).estimate == pytest.approx(np.mean(losses))
            assert kept.found.sel(concept=concept).estimate == pytest.approx(np.mean(caught))
        assert promise.words in " ".join(str(found).split())
        assert {"realised false alarms", "promised false alarms"} <= set(found.table()["measure"])
        assert found.to_dict()["kept"]["promise"]["alpha"] == promise.alpha
    assert "kept" not in plain.to_dict()


def test_saved_and_read_again(case, tmp_path):
    data, _, table = case
    banded = Promise("document", 0.1, lengths=(1, 30, 60), concepts=("food",))
    for k, promise in enumerate([PROMISES[1], PROMISES[4], banded]):
        detector = made(case, promise)
        again = sa.Detector.from_pretrained(detector.save_pretrained(tmp_path / str(k)))
        assert again.promise == promise
        assert again.threshold == detector.threshold
        assert again.guard.lengths == detector.guard.lengths
        for concept in CONCEPTS:
            for of in ("document", "token"):
                values = np.linspace(-4, 6, 50)
                old, new = (one.p_values(concept, values, of=of) for one in (detector, again))
                assert np.array_equal(old, new)
        assert str(again) == str(detector)
    with pytest.warns(SelectionDataWarning, match="holds samples that the promised thresholds were made"):
        again.evaluate(data.guard, scores=table)
    record = (tmp_path / "0" / "artefact.json").read_text()
    assert '"format": 3' in record
    plain = made(case).save_pretrained(tmp_path / "plain")
    assert '"format": 2' in (plain / "artefact.json").read_text()


def test_false_discoveries_over_documents_and_concepts(case):
    data, _, table = case
    found = made(case, Promise("document", 0.05)).detect(data.test, scores=table)
    called = found.discoveries(0.3)
    assert set(called) == set(CONCEPTS)
    homes = np.array([s.document for s in data.test.samples])
    for k, concept in enumerate(CONCEPTS):
        p = {home: found.p[homes == home, k].min() for home in homes}
        low = sorted(p.values())
        cut = max((v for n, v in enumerate(low, 1) if v <= 0.3 * n / len(low) + 1e-12), default=-1)
        assert set(called[concept]) == {home for home, v in p.items() if v <= cut}
    assert called["food"]
    alone = found.discoveries(0.3, concepts=["food"])
    assert alone == {"food": called["food"]}
    every = found.discoveries(0.5, over="concepts")
    assert set(every) == {s.document for s in data.test.samples}
    with pytest.raises(ValueError, match=r"'doc \d+': at q 0.01 with .* Calibrate with \d+ guard documents"):
        found.discoveries(0.01, over="concepts")
    with pytest.raises(ValueError, match="no p-values: they come from documents that chose nothing"):
        made(case).detect(data.test, scores=table).discoveries()


def test_plain_texts_are_negatives_of_every_concept(case):
    data, *_ = case
    calm = [s for s in data.guard.samples if not s.positive]
    split = Split("calm", tuple(calm), CONCEPTS, "elsewhere")
    detector = made(case, Promise("document", 0.05), guard=split)
    assert (detector.guard.n_documents == len({s.document for s in calm})).all()


def test_what_cannot_be_promised_is_refused(case):
    data, bank, table = case
    promise = Promise("document", 0.05)
    few = case_of(n=60)
    with pytest.raises(ValueError, match=r"the guard has 18 documents, and it takes 99 to promise that a"):
        made(few, Promise("document", 0.01))
    with pytest.raises(
        ValueError, match=r"has \d+ guard documents of 1 to 30 tokens.*it takes 59 to promise"
    ):
        made(case, Promise("document", 0.05, 0.95, lengths=(1, 30, 60)))
    with pytest.raises(
        ValueError, match=r"it takes 999 to promise that a new document .* at most 0.001 alarms"
    ):
        made(case, Promise("tokens", 0.001))
    with pytest.raises(
        ValueError, match=r"needs documents that chose nothing, and data 'data' has no guard split"
    ):
        made(case_of(n=60, splits=Splits()), promise)
    for used in (data.cal, data.train):
        with pytest.raises(
            ValueError, match=rf"guard samples are of the {used.name} split.*may not carry a promise"
        ):
            made(case, promise, guard=used)
    renamed = [replace(s, id=f"new {k}", document=f"new {k}") for k, s in enumerate(data.cal.samples)]
    with pytest.raises(ValueError, match=r"20 of 20 guard samples are of the cal split, 'new 0' first"):
        made(case, promise, guard=renamed[:20])
    with pytest.raises(ValueError, match="no guard document has 500 to 600 tokens, theirs are"):
        made(case, Promise("document", 0.05, lengths=(500, 600)))
    with pytest.raises(ValueError, match="guard is given and no promise to make from it"):
        made(case, guard=data.guard)
    with pytest.raises(
        ValueError, match=r"the scores hold \d+ samples, not the 30 of the guard, and there is no host"
    ):
        made(case, promise, guard=[f"text {k} of its own" for k in range(30)])
    with pytest.raises(ValueError, match="'foood' is not among the detector's concepts: did you mean 'food'"):
        made(case, Promise("document", 0.05, concepts=("foood",)))
    other = Split("other", data.guard.samples, ("food",), "")
    with pytest.raises(ValueError, match="'animal' is not among the labelled concepts of the guard"):
        made(case, promise, guard=other)
    broken = replace(table, scores=np.full_like(table.scores, np.nan))
    with pytest.raises(ValueError, match="NaN or infinite scores"):
        made((data, bank, broken), promise)


def test_texts_outside_the_lengths_are_refused(case):
    data, _, table = case
    detector = made(case, Promise("document", 0.05, lengths=(20, 40)))
    for call in ("find", "detect"):
        with pytest.raises(
            ValueError, match=r"documents lie outside the 20 to 40 tokens that the promise is made"
        ):
            getattr(detector, call)(data.test, scores=table)
    inside = detector.guard.covers([19, 20, 40, 41])
    assert inside.tolist() == [False, True, True, False]
    assert detector.evaluate(data.test, scores=table).kept.outside > 0


def test_p_values_refuse_what_has_none(case):
    detector = made(case, Promise("document", 0.05))
    with pytest.raises(ValueError, match="1 of 2 scores of 'food' are NaN: a p-value is of a number"):
        detector.p_values("food", np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="did you mean 'food'"):
        detector.p_values("foood", [1.0])
    with pytest.raises(ValueError, match=r"no p-values of 'food'.*promise=Promise\('document', 0.05\)"):
        made(case).p_values("food", [1.0])


def test_the_guard_is_drawn_whatever_is_in_it():
    data, _, _ = case_of(n=200)
    sizes = {name: len({s.document for s in data.split(name)}) for name in ("train", "cal", "guard", "test")}
    assert sizes["guard"] == 60
    assert "train / cal / test / guard" in repr(data)
    same = [s.document for s in data.guard]
    relabelled = ConceptData.from_samples(
        [replace(s, spans=(), positive=frozenset({"food"})) for s in data.samples], ["food"], FOUR
    )
    assert [s.document for s in relabelled.guard] == same
    with pytest.raises(ValueError, match="three positive numbers that add up to 1, or four with a guard"):
        Splits(fractions=(0.2, 0.2, 0.2, 0.2, 0.2))
    assert isinstance(data.guard[0], Sample)


def test_a_host_scores_the_guard_where_the_search_has_chosen():
    host = sa.attach(tiny.bridge("gpt2"), progress=False)
    found = word_data(90)
    data = ConceptData.from_samples(
        found.samples, found.concepts, Splits(fractions=(0.2, 0.2, 0.1, 0.5), seed=1)
    )
    bank = sa.fit(host, data, "lda", layers=[0, 1])
    promise = Promise("document", 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = sa.score(host, data, bank, splits=("cal", "guard", "test"))
        given = calibrate(None, data, bank, scores=scores, promise=promise)
        scored = calibrate(host, data, bank, promise=promise)
    for concept in data.concepts:
        assert scored.threshold[concept] == pytest.approx(given.threshold[concept], abs=1e-4)
    # Of a detector that is there already the same is made, and of plain texts.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = calibrate(host, data, bank, scores=scores)
    later = bare.with_promise(promise, data.guard)
    assert later.threshold == scored.threshold
    assert later.promise == promise
    assert later.seen == scored.seen
    assert np.array_equal(later.guard.maxima, scored.guard.maxima, equal_nan=True)
    assert bare.promise is None
    stricter = later.with_promise(Promise("document", 0.1), [f"a calm text {k}" for k in range(12)])
    assert stricter.promise.alpha == 0.1
    assert (stricter.guard.n_documents == 12).all()
    with pytest.raises(ValueError, match=r"the guard has 1 document, and it takes 4 to promise that a new"):
        bare.with_promise(promise, "one text")
    with pytest.raises(ValueError, match=r"guard samples\[1\] holds a null character"):
        bare.with_promise(promise, ["calm", "\0"])
    with pytest.raises(TypeError, match="guard samples are of type int: give a text"):
        bare.with_promise(promise, 7)
    with pytest.raises(ValueError, match=r"guard samples are of the cal split.*may not carry a promise"):
        bare.with_promise(promise, data.cal)
    with pytest.raises(ValueError, match="'foood' is not among the detector's concepts: did you mean 'food'"):
        bare.with_promise(replace(promise, concepts=("foood",)), data.guard)
    # Many samples: only the highest scores leave the model.
    many, few = scored.detect(data.guard), scored.detect(data.guard, scores=scores)
    assert many.scored is None
    assert np.array_equal(many.p, few.p)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        short = calibrate(host, data, bank, scores=scores, promise=Promise("document", 0.4, lengths=(1, 25)))
    with pytest.raises(ValueError, match=r"of 45 documents lie outside the 1 to 25 tokens"):
        short.detect(data.guard)
