"""Texts that are labelled as a whole: every common form of the labels, and what becomes of the tokens."""

import numpy as np
import pandas as pd
import pytest

from sa_plugin.data import AlikeNamesWarning, ConceptData, Sample

TEXTS = ["so tired today", "what a lovely day", "nothing here"] * 6
HOMES = [f"{k % 3}{k // 6}" for k in range(18)]
SPLITS = [("train", "cal", "test")[k // 6] for k in range(18)]
FLAGS = np.array([[1, 0], [0, 1], [0, 0]] * 6)
TABLE = pd.DataFrame(FLAGS, columns=["sad", "glad"])
NAMED = {"concepts": ["sad", "glad"]}
CLASSES = ["sad", "glad", None] * 6
pytestmark = pytest.mark.filterwarnings("ignore::sa_plugin.data.RepeatedTextWarning")


def data_of(labels, **options):
    return ConceptData.from_texts(TEXTS, labels, documents=HOMES, splits=SPLITS, **options)


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (CLASSES, {}),
        (pd.Series(CLASSES), {}),
        (pd.Series(CLASSES, dtype="string"), {}),
        (pd.Categorical(CLASSES), {}),
        (pd.DataFrame({"emotion": CLASSES}), {}),
        (np.array(["sad", "glad", ""] * 6), {}),
        ([*["sad", "glad", float("nan")] * 6], {}),
        ((one for one in CLASSES), {}),
        ([["sad"], ("glad",), []] * 6, {}),
        ([{"sad"}, frozenset({"glad"}), None] * 6, {}),
        (np.array([["sad"], ["glad"], []] * 6, dtype=object), {}),
        (TABLE, {}),
        (TABLE.astype(float), {}),
        (TABLE.astype(bool), {}),
        (dict(TABLE), {}),
        ({name: TABLE[name].tolist() for name in TABLE}, {}),
        (FLAGS, NAMED),
        (FLAGS.tolist(), NAMED),
        (FLAGS.astype(bool), NAMED),
    ],
)
def test_every_form_of_the_labels_gives_the_same_data(labels, options):
    found, plain = data_of(labels, **options), data_of(CLASSES)
    assert set(found.concepts) == {"sad", "glad"}
    assert [s.positive for s in found] == [s.positive for s in plain]
    assert [s.positive for s in found][:3] == [{"sad"}, {"glad"}, frozenset()]


def test_numbers_of_classes_and_one_column_of_flags_have_their_names_in_concepts():
    assert [s.positive for s in data_of([0, 1, 1] * 6, **NAMED)][:3] == [{"sad"}, {"glad"}, {"glad"}]
    assert [s.positive for s in data_of([1, 0, 0] * 6, concepts=["sad"])][:3] == [{"sad"}, set(), set()]
    assert data_of(TABLE, concepts=["glad"]).concepts == ("glad",)
    assert data_of(TABLE).concepts == ("sad", "glad")


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ([0, 1, 1] * 6, {}, r"label 0 of text 0 .* for class numbers concepts=.* for 0/1 a mapping"),
        (FLAGS, {}, r"array of 2 columns and concepts has no names: give concepts="),
        (FLAGS, {"concepts": ["sad"]}, r"array of 2 columns and concepts has 1 names"),
        (["sad"], {}, "labels has 1 entries for 18 texts"),
        ({"sad": [1, 0]}, {}, "labels has 2 entries in 'sad' for 18 texts"),
        ({"sad": [1, 2, 0] * 6}, {}, "label 2 of text 1 in 'sad' is not 0 or 1"),
        ({"sad": [1, float("nan"), 0] * 6}, {}, "label nan of text 1 in 'sad' is not 0 or 1"),
        ([b"sad", "glad", None] * 6, {}, "label b'sad' of text 0 is no name of a concept"),
        ([0.5, 1.0, 0.0] * 6, NAMED, "label 0.5 of text 0"),
        ([2, 1, 0] * 6, NAMED, "label 2 of text 0"),
        ([[""], ["glad"], []] * 6, {}, r"label \[''\] of text 0"),
        (TABLE, {"concepts": ["sda"]}, "concept 'sda' is unknown: did you mean 'sad'"),
        (CLASSES, {"token_labels": "words"}, "token_labels 'words' is unknown"),
        (CLASSES, {"token_labels": {"sda": ["x"]}}, "'sda' is unknown: did you mean 'sad'"),
        (CLASSES, {"token_labels": {"sad": []}}, "lists no word, or an empty one, for 'sad'"),
    ],
)
def test_other_labels_are_refused_by_row_and_with_the_fix(labels, options, said):
    with pytest.raises(ValueError, match=said):
        data_of(labels, **options)


def test_the_data_say_what_tokens_are_taken_for():
    unknown, whole = data_of(CLASSES), data_of(CLASSES, token_labels="text")
    listed = data_of(CLASSES, token_labels={"sad": ["tired", "sad face"]})
    assert "token labels unknown in 12 of 18 samples" in repr(unknown)
    assert "tokens are unknown, in neither class: glad 6, sad 6" in " ".join(str(unknown).split())
    assert "tokens: every token of a positive text (token_labels='text')" in repr(whole)
    assert "unknown" not in repr(whole)
    assert "listed words of positive texts (weak labels); token labels unknown in 6 of 18" in repr(listed)
    assert [tuple(s) for s in whole[0].spans] == [(0, len(TEXTS[0]), "sad")]
    assert whole[2].spans == ()
    assert len({unknown.hash, whole.hash, listed.hash}) == 3
    measures = unknown.table().query("measure == 'samples of unknown tokens' and split == 'cal'")
    assert dict(zip(measures["concept"], measures["value"], strict=True)) == {"glad": 2.0, "sad": 2.0}
    assert "samples of unknown tokens" not in set(whole.table()["measure"])


def test_listed_words_are_whole_words_of_positive_texts():
    texts = ["Tired, so tired!", "retired people", "tired of it all", "a sad face"] * 3
    labels = ["sad", "sad", None, "sad"] * 3
    words = {"sad": ["tired", "sad face", "sad"]}
    data = ConceptData.from_texts(texts, labels, token_labels=words)
    assert [[(s.start, s.end) for s in sample.spans] for sample in data][:4] == [
        [(0, 5), (10, 15)],
        [],
        [],
        [(2, 10)],
    ]
    assert [bool(s.unlabelled) for s in data][:4] == [False, True, False, False]


def test_data_and_splits_are_sequences_of_samples():
    data = data_of(CLASSES)
    assert len(data) == 18
    assert list(data) == list(data.samples)
    assert data[3] is data.samples[3]
    assert data[1:3] == data.samples[1:3]
    assert [s.id for s in data.test] == [s.id for s in data.test.samples]
    assert isinstance(data.cal[0], Sample)
    assert data.cal[-1] is data.cal.samples[-1]
    assert data.cal[:2] == data.cal.samples[:2]


@pytest.mark.parametrize("kind", [int, float, np.int8, np.float32, "Int64", "float64"])
def test_class_numbers_of_any_type_are_classes(kind):
    numbers = [0, 1, None] * 6
    labels = (
        pd.Series(numbers, dtype=kind)
        if isinstance(kind, str)
        else [None if one is None else kind(one) for one in numbers]
    )
    assert data_of(labels, **NAMED).hash == data_of(CLASSES, **NAMED).hash


# What a column of labels holds that is no name, and how the refusal goes on.
NO_NAMES = [
    (["0", "1", "1"], "'0' is a number as text"),
    (["sad", "glad", "nan"], "'nan' is what programs write"),
    (["sad", "glad", "<NA>"], "'<NA>' is what programs write"),
    (["['sad']", "['glad', 'sad']", "[]"], "is a list as text"),
    (["sad", "sad, glad", None], "'sad, glad' is several names in one"),
    (["sad|glad", "glad|calm", "calm|sad"], "is several names in one"),
]


@pytest.mark.parametrize(("labels", "message"), NO_NAMES)
def test_what_a_column_holds_in_place_of_names_is_refused_unless_it_is_said(labels, message):
    every = sorted({one for one in labels if one})
    words = [text.split() for text in TEXTS]
    spans = [[(0, 2, one)] if one else [] for one in labels * 6]
    made = {
        "texts": lambda **said: data_of(labels * 6, **said),
        "spans": lambda **said: ConceptData.from_spans(TEXTS, spans, documents=HOMES, splits=SPLITS, **said),
        "words": lambda **said: ConceptData.from_words(
            words,
            [[one] * len(row) for row, one in zip(words, labels * 6, strict=True)],
            documents=HOMES,
            splits=SPLITS,
            **said,
        ),
    }
    for make in made.values():
        with pytest.raises(ValueError, match=f"(?s){message}.*concepts="):
            make()
        assert make(concepts=every).concepts == tuple(every)


def test_names_that_differ_in_case_are_two_with_a_warning():
    with pytest.warns(AlikeNamesWarning, match="'Sad' and 'sad' differ in case only"):
        assert data_of(["sad", "Sad", None] * 6).concepts == ("Sad", "sad")


def test_numbers_that_are_no_class_are_refused():
    for labels, message in (([-1, 0, 1], "-1 of text 0 is none of 0 to 1"), (["1", "0", "1"], "as text")):
        with pytest.raises(ValueError, match=message):
            data_of(labels * 6, **NAMED)


def test_columns_of_pandas_in_two_orders_are_refused():
    texts, labels = pd.Series(TEXTS), pd.Series(CLASSES)
    with pytest.raises(ValueError, match=r"labels and texts have one index in two orders.*labels\.loc"):
        ConceptData.from_texts(texts, labels[::-1])
    # Another index altogether is no order: entries go by position.
    found = ConceptData.from_texts(texts, labels.set_axis(range(50, 68)), documents=HOMES, splits=SPLITS)
    assert found.hash == data_of(CLASSES).hash


def test_listed_words_are_found_in_both_forms_of_accents_and_one_that_is_nowhere_is_refused():
    texts = [f"un cafe\u0301 {k}" if k % 2 else f"un caf\xe9 {k}" for k in range(12)]
    found = ConceptData.from_texts(texts, ["place"] * 12, token_labels={"place": ["caf\xe9"]})
    assert {one.text[a:b] for one in found for a, b, _ in one.spans} == {"cafe\u0301", "caf\xe9"}
    with pytest.raises(ValueError, match="no word of 'place' stands in a text"):
        ConceptData.from_texts(texts, ["place"] * 12, token_labels={"place": ["bar", "cafe"]})


@pytest.mark.parametrize("text", ["\u200b", "\ufeff \u2060", "\x1f"])
def test_a_text_of_which_nothing_is_seen_is_empty(text):
    with pytest.raises(ValueError, match="which is empty"):
        ConceptData.from_texts([*TEXTS[:-1], text], CLASSES)


@pytest.mark.parametrize("names", [("train", "validation", "test"), ("Training", "DEV", "testing")])
def test_parts_are_called_as_data_sets_call_them(names):
    found = ConceptData.from_texts(TEXTS, CLASSES, documents=HOMES, splits=[names[k // 6] for k in range(18)])
    assert found.hash == data_of(CLASSES).hash
