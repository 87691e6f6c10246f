"""Laws of labelled data: alignment, splits, hashes, and what is refused."""

import importlib
import json
import warnings

import numpy as np
import pytest

from sa_plugin.data import (
    ConceptData,
    EmptySplitWarning,
    Image,
    RepeatedTextWarning,
    Sample,
    Span,
    Splits,
    split_documents,
)
from sa_plugin.loaders import load

TEXTS = ["the cat sat", "a dog and a cat", "rain fell", "we sang"] * 15
SPANS = [[(4, 7, "animal")], [(2, 5, "animal"), (12, 15, "animal")], [(0, 4, "weather")], []] * 15


def data(**options):
    return ConceptData.from_spans(TEXTS, SPANS, **options)


def test_words_and_spans_give_the_same_data():
    words = [text.split() for text in TEXTS]
    animals = {"cat", "dog"}
    labels = [
        ["animal" if w in animals else ["weather"] if w == "rain" else None for w in row] for row in words
    ]
    assert ConceptData.from_words(words, labels).hash == data().hash


@pytest.mark.parametrize("seed", range(5))
def test_token_labels_are_span_overlaps(seed):
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.choice(40, size=16, replace=False)).reshape(8, 2)
    spans = tuple(
        Span(int(a), int(a) + int(rng.integers(1, 9)), c)
        for a, c in zip(rng.integers(0, 30, 5), "xxyyx", strict=True)
    )
    sample = Sample("0", "." * 60, "0", spans)
    labels = sample.token_labels(edges, ("x", "y"))
    for t, (start, end) in enumerate(edges):
        for k, concept in enumerate("xy"):
            touched = any(
                set(range(start, end)) & set(range(s.start, s.end)) for s in spans if s.concept == concept
            )
            assert labels[t, k] == touched


def test_a_positive_sample_may_have_no_positive_token():
    made = ConceptData.from_spans(TEXTS, SPANS, sample_labels=[["mood"]] * len(TEXTS))
    assert made.train.sample_labels[:, made.concepts.index("mood")].all()


def test_splits_share_no_document_and_are_seeded():
    documents = [f"doc {k // 3}" for k in range(len(TEXTS))]
    made = data(documents=documents, splits=Splits(seed=3))
    homes = [{s.document for s in made.split(name).samples} for name in ("train", "cal", "test")]
    assert not homes[0] & homes[1]
    assert not homes[0] & homes[2]
    assert not homes[1] & homes[2]
    assert made.hash == data(documents=documents, splits=Splits(seed=3)).hash
    assert made.hash != data(documents=documents, splits=Splits(seed=4)).hash


def test_split_is_stratified_over_concepts():
    rng = np.random.default_rng(0)
    samples = [
        Sample(str(k), "x", f"d{k // 4}", (), frozenset(c for c in "abc" if rng.random() < 0.2))
        for k in range(2000)
    ]
    split = np.array(split_documents(samples, list("abc")))
    for concept in "abc":
        positive = np.array([concept in s.positive for s in samples])
        for name, share in (("train", 0.6), ("cal", 0.2), ("test", 0.2)):
            assert abs(positive[split == name].sum() / positive.sum() - share) < 0.02


def test_hash_sees_every_text_label_document_and_split():
    base = data().hash
    assert data(documents=["d"] + [str(k) for k in range(1, len(TEXTS))]).hash != base
    other = [list(row) for row in SPANS]
    other[0] = [(4, 6, "animal")]
    assert ConceptData.from_spans(TEXTS, other).hash != base


def test_subset_keeps_concepts_and_splits():
    made = data()
    part = made.subset(20, seed=1)
    assert len(part.samples) == 20
    assert {s.id: of for s, of in zip(part.samples, part.split_of, strict=True)}.items() <= {
        s.id: of for s, of in zip(made.samples, made.split_of, strict=True)
    }.items()
    assert part.train.sample_labels.any(0).all()
    assert made.subset(10_000) is made


def test_subset_too_small():
    with pytest.raises(ValueError, match="leave the cal split empty: ask for more"):
        data().subset(1)
    with pytest.raises(ValueError, match="n is -3, not a whole number from 1"):
        data().subset(-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"documents": ["d"] * 60, "splits": ["train"] * 59 + ["test"]}, "lies in train and in test"),
        ({"ids": ["same"] * 60}, "stands twice"),
        ({"concepts": ["animal"]}, "labelled 'weather', which is not among"),
        ({"concepts": ["animal", "weather", "food"]}, "'food' is empty"),
        ({"documents": ["d"]}, "documents has 1 entries for 60 samples"),
        ({"splits": ["held out"] * 60}, "split 'held out' of sample"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data(**options)


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.4, 0.2)])
def test_fractions_that_are_no_division_are_refused(fractions):
    with pytest.raises(ValueError, match="must be three positive numbers that add up to 1"):
        Splits(fractions=fractions)


@pytest.mark.parametrize(
    ("span", "message"),
    [((5, 90, "animal"), "does not lie in a text of 11"), ((3, 4, "animal"), "only white space")],
)
def test_misaligned_spans_are_refused(span, message):
    with pytest.raises(ValueError, match=message):
        ConceptData.from_spans(TEXTS, [[span], *SPANS[1:]])


def test_words_and_labels_must_match():
    with pytest.raises(ValueError, match="2 words and 1 labels"):
        ConceptData.from_words([["a", "b"]], [[None]])
    with pytest.raises(ValueError, match="is empty or has white space around it"):
        ConceptData.from_words([["a "]], [[None]])


def test_token_masks():
    masks = [{"x": [True, False]}, {"x": [False, False]}] * 10
    made = ConceptData.from_token_masks(["a b"] * 20, [["x"], []] * 10, masks)
    first = next(s for s in made.samples if s.id == "0")
    offsets = np.array([[0, 1], [2, 3]])
    assert first.token_labels(offsets, ("x",)).ravel().tolist() == [True, False]
    with pytest.raises(ValueError, match="has 2 entries, the tokenizer gives 1 tokens"):
        first.token_labels(offsets[:1], ("x",))
    with pytest.raises(ValueError, match="positive tokens for 'x' but not the sample label"):
        ConceptData.from_token_masks(["a b"] * 20, [[]] * 20, masks)


def test_a_concept_missing_from_a_split_is_a_named_warning():
    split = ["train"] * 40 + ["cal"] * 10 + ["test"] * 10
    spans = [[(4, 7, "animal")] if k == 0 else [] for k in range(60)]
    with pytest.warns(EmptySplitWarning, match="'animal' has no positive sample in the cal split"):
        ConceptData.from_spans(["the cat sat"] * 60, spans, splits=split)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = ConceptData.from_spans([f"{k:02} a cat" for k in range(60)], [[(3, 4, "x")]] * 60)
        assert made.train


def test_a_text_in_two_splits_is_a_named_warning():
    with pytest.warns(RepeatedTextWarning, match=r"text\(s\) stand in two splits"):
        data()


def test_a_span_without_its_sample_label_is_refused():
    bad = Sample("0", "a cat", "0", (Span(2, 5, "animal"),), frozenset())
    with pytest.raises(ValueError, match="has a span of 'animal' but is not positive"):
        ConceptData(("animal",), (bad,), ("train",))


def test_a_sample_with_some_concepts_only_has_their_labels_and_no_other():
    pixels, mask = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), bool)
    whole = Sample(
        "0", "a cat", "d", (Span(0, 1, "x"), Span(2, 5, "y")), frozenset("xy"), {"x": (True,), "y": (False,)}
    )
    picture = Sample("1", "", "d", (), frozenset("xy"), None, Image(pixels, {"x": mask, "y": ~mask}, 0.5))
    assert whole.only(["x"]) == Sample("0", "a cat", "d", (Span(0, 1, "x"),), frozenset("x"), {"x": (True,)})
    assert picture.only(["y"]).image == Image(pixels, {"y": ~mask}, 0.5)
    assert whole.only(["x", "y"]) == whole
    assert whole.only(()).positive == frozenset()


def test_token_masks_tell_samples_apart():
    one, other = (
        Sample("0", "a b", "0", (), frozenset("x"), {"x": mask}) for mask in ((True, False), (False, True))
    )
    assert one != other


def test_unknown_names():
    with pytest.raises(ValueError, match="data set 'browm' is unknown: did you mean 'brown'"):
        load("browm")
    with pytest.raises(ValueError, match=r"split 'random' is unknown\. Known: plain"):
        load("supersense", split="random")
    with pytest.raises(ValueError, match="Known: train, cal, test"):
        data().split("dev")


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_is_refused(text):
    with pytest.raises(ValueError, match=r"sample '2' has the text .*, which is empty: give it a"):
        ConceptData.from_spans(["a cat", "a dog", text] * 4, [[(2, 5, "x")], [], []] * 4)


@pytest.mark.parametrize("concept", ["animal", "cat"])
def test_concepts_given_as_a_string_are_refused(concept):
    rows = [[(2, 5, concept)], []] * 6
    with pytest.raises(TypeError, match=rf"concepts is the text '{concept}', not a list of .*\['{concept}"):
        ConceptData.from_spans(["a cat", "a dog"] * 6, rows, concepts=concept)
    letters = ConceptData.from_spans(
        [f"{k:02} ab" for k in range(12)], [[(3, 4, "a"), (4, 5, "b")]] * 12, concepts=["a", "b"]
    )
    assert letters.concepts == ("a", "b")


def test_no_labels_at_all_are_refused():
    with pytest.raises(ValueError, match="no sample has a label, so there is no concept: give"):
        ConceptData.from_spans(["a cat", "a dog"] * 6, [[]] * 12)


def test_data_show_their_counts_in_every_form():
    made = data(documents=[f"d{k // 4}" for k in range(60)], splits=Splits(seed=2), name="animals")
    assert "\n" not in repr(made)
    assert repr(made).startswith("ConceptData('animals', 2 concepts, train / cal / test = ")
    table = made.table()
    assert list(table.columns) == ["split", "concept", "measure", "value", "low", "high", "note"]
    assert len(table) == 3 * (1 + 2) * 2
    for split in ("train", "cal", "test"):
        for concept in made.concepts:
            homes = [s.document for s in made.split(split).samples if concept in s.positive]
            rows = table[(table.split == split) & (table.concept == concept)].set_index("measure")
            assert rows.value.to_dict() == {"samples": len(homes), "documents": len(set(homes))}
            assert f"{len(homes)} ({len(set(homes))})" in str(made)
    assert str(made).endswith("intervals shrink with documents, not with samples.")
    assert made._repr_html_().count("<table") == 1
    found = made.to_dict()
    assert (found["hash"], len(found["counts"])) == (made.hash, len(table))
    assert "the cat sat" not in json.dumps(found)


def test_data_draw_every_concept_and_split():
    matplotlib = importlib.import_module("matplotlib")
    figure = data().plot()
    assert isinstance(figure, matplotlib.figure.Figure)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["animal", "weather"]
    assert [label.get_text() for label in ax.get_legend().get_texts()] == ["train", "cal", "test"]
