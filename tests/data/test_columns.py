"""Laws of what comes in: one mechanism reads every column of every constructor, or refuses it by name."""

import warnings

import numpy as np
import pandas as pd
import pytest

from sa_plugin.data import ConceptData, PixelLabels, SampleLabels, Splits

N = 12
TEXTS = [f"{k:02} the cat sat" for k in range(N)]
WORDS = [text.split() for text in TEXTS]
SPANS = [[(7, 10, "animal")] if k % 2 else [] for k in range(N)]
LABELS = [[None, None, "animal" if k % 2 else None, None] for k in range(N)]
MASKS = [{"animal": [False, False, True, False]} if k % 2 else {} for k in range(N)]
SAID = [["animal"] if k % 2 else [] for k in range(N)]
IMAGES = [np.full((8, 8, 3), k, np.uint8) for k in range(N)]
PIXELS = [{"animal": np.eye(8, dtype=bool)} if k % 2 else {} for k in range(N)]
HOMES = [f"d{k}" for k in range(N)]

# Each constructor with its columns.
MADE = {
    "spans": (ConceptData.from_spans, {"texts": TEXTS, "spans": SPANS}),
    "words": (ConceptData.from_words, {"words": WORDS, "labels": LABELS}),
    "masks": (ConceptData.from_token_masks, {"texts": TEXTS, "sample_labels": SAID, "masks": MASKS}),
    "texts": (ConceptData.from_texts, {"texts": TEXTS, "labels": SAID, "token_labels": "text"}),
    "images": (ConceptData.from_masks, {"images": IMAGES, "masks": PIXELS}),
}
COLUMNS = [
    (kind, name)
    for kind, (_, columns) in MADE.items()
    for name in (*columns, "documents", "ids", "sample_labels", "splits")
    if name != "token_labels" and not (kind == "texts" and name == "sample_labels")
]


def made(kind, **changed):
    make, columns = MADE[kind]
    return make(**{**columns, **changed})


def column_of(kind, name):
    others = {"documents": HOMES, "ids": HOMES, "sample_labels": SAID, "splits": ["train", "cal", "test"] * 4}
    return MADE[kind][1].get(name, others.get(name))


TABLE = pd.DataFrame({"a": [1]})


def boxed(column):
    """A Series whose entries are the column's, whatever they hold."""
    return pd.Series([*column, None], index=range(5, 6 + len(column)), dtype=object).iloc[:-1]


@pytest.mark.parametrize(("kind", "name"), COLUMNS)
@pytest.mark.parametrize("form", [iter, tuple, boxed, lambda column: (one for one in column)])
def test_a_column_in_any_form_gives_the_same_data(kind, name, form):
    column = column_of(kind, name)
    assert made(kind, **{name: form(column)}).hash == made(kind, **{name: column}).hash


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        (*column, wrong)
        for column in COLUMNS
        for wrong in ("animal", b"animal", 7, {"animal": 1}, {"a", "b"}, pd.DataFrame({"a": [1]}))
        # A mapping or a table of labels is read.
        if column != ("texts", "labels") or isinstance(wrong, str | bytes | int | set)
    ],
)
def test_what_is_no_column_is_refused_by_name(kind, name, wrong):
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        made(kind, **{name: wrong})


@pytest.mark.parametrize(("kind", "name"), COLUMNS)
@pytest.mark.parametrize("wrong", [float("nan"), 0.5, b"x", object(), "\ud800", "a\0b"])
def test_an_entry_of_no_use_is_refused_by_name_and_place(kind, name, wrong):
    whole = name == "sample_labels" or (kind, name) == ("texts", "labels")
    missing_is_none = whole and isinstance(wrong, float) and wrong != wrong and kind != "masks"
    column = [*column_of(kind, name)]
    column[3] = wrong
    if missing_is_none:
        assert made(kind, **{name: column}).samples[3].positive <= {"animal"}
        return
    with pytest.raises(
        (TypeError, ValueError, FileNotFoundError), match=r"\[3\]|'3'|of text 3|sample 3"
    ) as raised:
        made(kind, **{name: column})
    assert ":" in str(raised.value), "a refusal ends with the fix"


@pytest.mark.parametrize(("kind", "name"), COLUMNS)
def test_a_column_of_another_length_is_refused_with_both_lengths(kind, name):
    column = [*column_of(kind, name)][:-1]
    with pytest.raises(ValueError, match=rf"{N - 1}|{N}"):
        made(kind, **{name: column})


@pytest.mark.parametrize("where", ["documents", "ids"])
@pytest.mark.parametrize("wrong", [None, float("nan"), True, 1.5, "", "  "])
def test_names_of_samples_and_documents(where, wrong):
    with pytest.raises((TypeError, ValueError), match=rf"{where}\[3\] is .*: (give|fill)"):
        made("spans", **{where: [*HOMES[:3], wrong, *HOMES[4:]]})
    assert (
        made("spans", **{where: np.arange(N)}).hash == made("spans", **{where: list(map(str, range(N)))}).hash
    )


BAD_NAMES = ["", " ", " animal", "animal\n", "a\0b", "a\ud800", "a\u202eb", "a\u200bb", 7, True, 1.5]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize(
    "place",
    [
        lambda n: made("spans", spans=[[(7, 10, n)], *SPANS[1:]]),
        lambda n: made("spans", sample_labels=[[n], *SAID[1:]]),
        lambda n: made("spans", sample_labels=SampleLabels(SAID, unknown=[[n], *SAID[1:]])),
        lambda n: made("words", labels=[[None, None, n, None], *LABELS[1:]]),
        lambda n: made("masks", masks=[{n: [True] * 4}, *MASKS[1:]]),
        lambda n: made("images", masks=[{n: np.eye(8, dtype=bool)}, *PIXELS[1:]]),
        lambda n: made("images", masks=PixelLabels(PIXELS, [[(n, 0, 0, 4, 4)], *[[]] * (N - 1)])),
        lambda n: made("spans", concepts=["animal", n]),
    ],
)
def test_blank_and_invisible_names_of_concepts_are_refused(name, place):
    with pytest.raises((TypeError, ValueError), match=r"\[?0?\]?.*: (give|leave|for labels)"):
        place(name)


@pytest.mark.parametrize("other", ["cafe\u0301", "caf\u00e9 ".strip() + "\u2009x", "ｃａｆé"])
def test_names_that_look_alike_are_one_concept_or_refused(other):
    spans = [[(7, 10, "caf\u00e9" if k % 2 else other)] for k in range(N)]
    if other.endswith("x"):
        assert len(made("spans", spans=spans).concepts) == 2
        return
    with pytest.raises(ValueError, match="differ in spaces or Unicode form only: write one"):
        made("spans", spans=spans)


@pytest.mark.parametrize("bounds", [(True, 10), (7.0, 10), (7, "10"), (None, 10), (7, float("nan"))])
def test_bounds_are_whole_numbers(bounds):
    with pytest.raises(TypeError, match=r"spans\[0\]\[0\]\[[01]\] is .*not a whole number: give one"):
        made("spans", spans=[[(*bounds, "animal")], *SPANS[1:]])


@pytest.mark.parametrize("of", [np.int64, np.uint8, lambda x: np.array(x)])
def test_bounds_of_numpy_are_plain_ones(of):
    spans = [[(of(a), of(b), np.str_(c)) for a, b, c in row] for row in SPANS]
    found = made("spans", spans=spans)
    assert found.hash == made("spans").hash
    assert type(found.samples[1].spans[0].start) is int
    as_dicts = [[{"start": a, "end": b, "label": c} for a, b, c in row] for row in SPANS]
    assert made("spans", spans=as_dicts).hash == found.hash


@pytest.mark.parametrize("label", [0.1, 2, "1", "False", float("nan"), b"1", [True]])
def test_soft_and_other_token_labels_are_refused(label):
    with pytest.raises(ValueError, match=r"masks\[1\]\['animal'\]\[2\] is .*not a label: give True or False"):
        made("masks", masks=[{}, {"animal": [False, False, label, False]}, *MASKS[2:]])


@pytest.mark.parametrize("of", [np.bool_, int, float, np.uint8])
def test_token_labels_of_other_formats_are_the_same(of):
    masks = [{c: [of(v) for v in row] for c, row in one.items()} for one in MASKS]
    assert made("masks", masks=masks).hash == made("masks").hash
    unknown = [{c: [pd.NA, None, True, False] for c in one} for one in MASKS]
    assert made("masks", masks=unknown).samples[1].token_mask["animal"] == (None, None, True, False)


@pytest.mark.parametrize("missing", [None, float("nan"), np.float64("nan"), pd.NA, pd.NaT])
def test_what_a_table_holds_where_nothing_was_written_is_no_label(missing):
    labels = [[missing if one is None else one for one in row] for row in LABELS]
    assert made("words", labels=labels).hash == made("words").hash


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": None}, "seed"),
        ({"seed": True}, "seed"),
        ({"fractions": (float("nan"), 0.5, 0.5)}, "fractions"),
        ({"fractions": "abc"}, "fractions"),
        ({"fractions": (0.5, 0.5, "0")}, "fractions"),
        ({"fractions": 0.5}, "fractions"),
    ],
)
def test_splits_are_of_numbers(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Splits(**options)
    assert Splits(seed=np.int64(3)).seed == 3


@pytest.mark.parametrize(
    ("mask", "read"),
    [
        (np.eye(8, dtype=np.uint8), True),
        (np.eye(8, dtype=np.uint8) * 255, True),
        (np.eye(8, dtype=np.int64), True),
        (np.eye(8, dtype=bool).tolist(), True),
        (np.eye(8, dtype=np.uint8) * 7, False),
        (np.eye(8) * 0.5, False),
        (np.full((8, 8), np.nan), False),
        (np.arange(64, dtype=np.uint8).reshape(8, 8), False),
        (None, False),
        ([[1], [1, 2]], False),
    ],
)
def test_masks_of_0_and_1_or_0_and_255_are_read_and_others_refused_with_the_fix(mask, read):
    masks = [{"animal": mask} if k % 2 else {} for k in range(N)]
    if read:
        assert made("images", masks=masks).hash == made("images").hash
        return
    with pytest.raises(ValueError, match=r"sample '1': the mask of 'animal' is .*expected bool: .*mask > 0"):
        made("images", masks=masks)


def test_samples_are_samples():
    with pytest.raises(TypeError, match=r"samples\[0\] is .*not a Sample: make it one"):
        ConceptData.from_samples([{"text": "a"}])


def test_well_formed_data_are_made_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hashes = {kind: made(kind).hash for kind in MADE}
    assert hashes["spans"] == hashes["words"]


def test_a_span_that_begins_with_its_concept_is_told_the_order():
    with pytest.raises(
        TypeError, match=r"spans\[0\]\[0\] is \('animal', 7, 10\), in another order: give \(start"
    ):
        made("spans", spans=[[("animal", 7, 10)]] * N)


def test_a_long_value_in_an_error_ends_where_it_is_cut():
    with pytest.raises(TypeError, match=r"words\[0\] is the text 'a.*\.\.\.', not a list"):
        ConceptData.from_words(["a story that goes on " * 9] * 12, [["x"]] * 12)
