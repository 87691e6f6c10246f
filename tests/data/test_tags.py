"""Tag schemes become the concepts they mean, or are refused by name; words keep their text's spacing."""

import itertools

import pytest

from sa_plugin.data import TAG_SCHEMES, ConceptData, tag_concepts

# One sentence of entities (length, type), tagged in every scheme.
ENTITIES = [(1, "PER"), (0, ""), (2, "LOC"), (0, ""), (3, "PER"), (1, "LOC"), (2, "LOC")]


def tagged(scheme):
    """The sentence's letters in one scheme, and its types."""
    found, before = [], ""
    for length, kind in ENTITIES:
        letters = {
            "IO": "I" * length,
            "IOB1": ("B" if before == kind else "I") + "I" * (length - 1),
            "IOE1": "I" * length,
            "IOE2": "I" * (length - 1) + "E",
            "BIOES": "S" if length == 1 else "B" + "I" * (length - 2) + "E",
            "BILOU": "U" if length == 1 else "B" + "I" * (length - 2) + "L",
            "BMES": "S" if length == 1 else "B" + "M" * (length - 2) + "E",
            "BMEWO": "W" if length == 1 else "B" + "M" * (length - 2) + "E",
        }
        aliases = {"IOB2": "BIO", "IOBES": "BIOES"}
        name = aliases.get(scheme, scheme)
        own = letters.get(name, "B" + "I" * (length - 1)) if length else "O"
        found += [(letter, kind) for letter in own]
        before = kind
    return found


@pytest.mark.parametrize("scheme", TAG_SCHEMES)
@pytest.mark.parametrize(
    ("mark", "last", "lower"), list(itertools.product("-_:/.", [False, True], [False, True]))
)
def test_every_scheme_means_its_types(scheme, mark, last, lower):
    pairs = tagged(scheme)
    tags = ["O" if not kind else f"{kind}{mark}{x}" if last else f"{x}{mark}{kind}" for x, kind in pairs]
    if lower:
        tags = [tag.lower() for tag in tags]
    expected = [(kind.lower() if lower else kind) or None for _, kind in pairs]
    named = tag_concepts(tags, f"{scheme}{' suffix' if last else ''}")
    assert [named[tag] for tag in tags] == expected
    letters = {x for x, kind in pairs if kind}
    if last and not ({"B", "I"} <= letters or {"B", "M", "E"} <= letters):
        # Too few letters stand last to tell a scheme from names.
        with pytest.raises(ValueError, match="tags='names'"):
            tag_concepts(tags)
    else:
        told = tag_concepts(tags)
        assert [told[tag] for tag in tags] == expected


@pytest.mark.parametrize(
    "tags",
    [
        ["B-cell", "T-cell"],
        ["B-cell"],
        ["B-PER", "PER", "O"],
        ["E-commerce", "S-curve", "O"],
        ["type-I", "type-II", "O"],
        ["vitamin-B", "vitamin-E", "O"],
        ["S-B", "S-I", "O"],
        ["BPER", "IPER", "O"],
        ["B", "I", "O"],
        ["B-", "I-", "B-PER", "O"],
    ],
)
def test_what_a_column_leaves_open_is_refused_with_the_fix(tags):
    with pytest.raises(ValueError, match=r"tag '.*tags='names'.*|tags=\{"):
        tag_concepts(tags)
    assert tag_concepts(tags, "names")[tags[0]] == tags[0]
    assert tag_concepts(tags, {tag: "x" for tag in tags})[tags[0]] == "x"


def test_names_without_letters_stay_names():
    found = tag_concepts(["PER", "LOC", "O", "o", "_", "-", ""])
    assert found == {"PER": "PER", "LOC": "LOC", "O": None, "o": None, "_": None, "-": None, "": None}
    assert tag_concepts(["B-PER-X", "I-PER-X", "O"])["I-PER-X"] == "PER-X"


@pytest.mark.parametrize(
    ("tags", "scheme", "message"),
    [
        (["B-PER", "O"], "IOB3", "tags 'IOB3' is unknown: did you mean 'IOB"),
        (["B-PER", "E-PER"], "IOB2", "tag 'E-PER' is none of IOB2, which has one of B, I before"),
        (["B-PER"], {"B-PRE": "x"}, "tag 'B-PER' is not in tags: did you mean 'B-PRE'"),
    ],
)
def test_tags_of_another_scheme_are_refused(tags, scheme, message):
    with pytest.raises(ValueError, match=message):
        tag_concepts(tags, scheme)


ROWS = [["Ann", "Lee", f"met{k}", "Bob"] for k in range(12)]


def test_words_take_tags_where_it_is_said_and_refuse_them_where_not():
    tags = [["B-PER", "I-PER", "O", "B-PER"]] * 12
    data = ConceptData.from_words(ROWS, tags, tags="auto")
    plain = ConceptData.from_words(ROWS, [["PER", "PER", None, "PER"]] * 12)
    assert data.hash == plain.hash
    with pytest.raises(ValueError, match=r"label 'O' is a tag, not the name of a concept: .*tags='auto'"):
        ConceptData.from_words(ROWS, tags)
    with pytest.raises((TypeError, ValueError), match=r"'tag' .*did you mean 'tags'"):
        ConceptData.from_words(ROWS, tags, tag="auto")


def spaced(data):
    return [(s.text, [s.text[a:b] for a, b, _ in s.spans]) for s in data.samples]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (list("我喜欢猫"), "我喜欢猫"),
        (["ねこ", "が", "好き"], "ねこが好き"),
        (["ผม", "ชอบ", "แมว"], "ผมชอบแมว"),
        (["나는", "고양이를"], "나는 고양이를"),
        (["我", "用", "Python", "写"], "我用 Python 写"),
        (["Il", "y", "a", "20 000", "chats"], "Il y a 20 000 chats"),
        (["a", "cat"], "a cat"),
    ],
)
def test_words_are_joined_as_their_script_is_written(words, text):
    rows = [[*words, f"x{k}"] for k in range(12)]
    labels = [[None] * (len(words) - 1) + ["animal", None]] * 12
    for found, label in spaced(ConceptData.from_words(rows, labels)):
        assert found.startswith(text)
        assert label == [words[-1]]


@pytest.mark.parametrize("seed", range(3))
def test_a_corpus_keeps_its_own_spacing(seed):
    import random

    rng = random.Random(seed)
    rows, texts, spaces, labels = [], [], [], []
    for k in range(12):
        words = [rng.choice(["do", "n't", "(", "20 000", "猫", "x"]) for _ in range(6)] + [str(k)]
        after = [rng.random() < 0.5 for _ in words]
        rows.append(words)
        spaces.append(after)
        texts.append("".join(w + " " * s for w, s in zip(words, after, strict=True)).rstrip())
        labels.append([None] * 3 + ["c"] + [None] * 3)
    by_text = ConceptData.from_words(rows, labels, text=texts)
    by_space = ConceptData.from_words(rows, labels, spaces_after=spaces)
    assert spaced(by_text) == spaced(by_space)
    assert spaced(by_text) == [(text, [row[3]]) for text, row in zip(texts, rows, strict=True)]
    none = ConceptData.from_words(rows, labels, spaces_after=False)
    assert [s.text for s in none.samples] == ["".join(row) for row in rows]


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        (
            {"text": ["Ann Lee met0 Bib"] * 12},
            r"sample 0: word 'Bob' does not follow .*'Bib' \(character 13\)",
        ),
        ({"text": ["x"]}, "text has 1 entries for 12 samples"),
        ({"text": "x"}, "text is the text 'x', not a list"),
        ({"spaces_after": [[True]] * 12}, r"spaces_after\[0\] has 1 entries for 4 words"),
        ({"spaces_after": [[0.5] * 4] * 12}, r"spaces_after\[0\]\[0\] is 0.5"),
        ({"spaces_after": "no"}, "spaces_after is the text 'no'"),
        ({"spaces_after": True, "text": ["x"] * 12}, "text and spaces_after both say"),
    ],
)
def test_a_spacing_that_does_not_fit_is_refused(spelling, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ConceptData.from_words(ROWS, [["a", None, None, None]] * 12, **spelling)


@pytest.mark.parametrize("tag", ["B-PER|B-ORG", "B-PER+I-ORG", "B-PER,I-LOC", "B_PER/B_ORG"])
def test_several_tags_in_one_are_refused(tag):
    mark = tag[1]
    with pytest.raises(ValueError, match="is several tags in one"):
        tag_concepts([f"B{mark}PER", f"I{mark}PER", "O", tag])


@pytest.mark.parametrize("nothing", ["0", "None", "null"])
def test_what_is_written_for_no_concept_becomes_none(nothing):
    with pytest.raises(ValueError, match="tags='names'"):
        tag_concepts(["PER", "LOC", nothing])
    assert tag_concepts(["PER", nothing], "names")[nothing] == nothing
