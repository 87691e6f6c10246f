"""Sarcasm and GoEmotions: published layouts, the authors' format, words that must be the text's."""

import pytest
from load_cases import write_csv

from sa_plugin.loaders import load, same_word

KINDS = ["sarcasm", "irony", "satire", "understatement", "overstatement", "rhetorical_question"]


def isarcasm(root, n=12):
    rows = [["", "tweet", "sarcastic", "rephrase", *KINDS]]
    for k in range(n):
        kinds = [k % 2, 1 - k % 2, 0, 0, 0, 0]
        rows.append([k, f"Great, {k} reports!\nLove it", 1, f"{k} reports are bad", *kinds])
    rows += [[n + k, f"It rained {k} times", 0, "", "", "", "", "", "", ""] for k in range(n)]
    write_csv(root / "train" / "train.En.csv", rows)
    test = [["text", "sarcastic"], *[[f"Test text {k}", k % 2] for k in range(n)]]
    write_csv(root / "test" / "task_A_En_test.csv", test)
    return root


def test_isarcasm_as_published(tmp_path):
    data = load("isarcasm", isarcasm(tmp_path), split="published")
    assert data.concepts == ("sarcastic",)
    assert len(data.samples) == 36
    assert [s.text for s in data.test.samples] == [f"Test text {k}" for k in range(12)]
    assert len(data.cal) == 6
    first = data.samples[0]
    assert first.text == "Great, 0 reports!\nLove it"
    assert first.positive == {"sarcastic"}
    assert first.spans == ()


def test_rephrases_share_the_document_of_their_tweet(tmp_path):
    isarcasm(tmp_path)
    data = load("isarcasm", tmp_path, parts=["train"], negatives="rephrases")
    assert len(data.samples) == 24
    assert data.skipped == {"tweets that are not sarcastic": 12}
    by_id = {s.id: s for s in data.samples}
    for sample in data.samples:
        if sample.id.endswith("-rephrase"):
            assert sample.positive == frozenset()
            assert by_id[sample.document].positive == {"sarcastic"}
    both = load("isarcasm", tmp_path, parts=["train"], negatives="both")
    assert len(both.samples) == 36


def test_kinds_of_irony_and_whole_text_labels(tmp_path):
    isarcasm(tmp_path)
    data = load("isarcasm", tmp_path, parts=["train"], concepts=["irony"], token_labels="text")
    sample = next(s for s in data.samples if s.positive)
    assert [tuple(s) for s in sample.spans] == [(0, len(sample.text), "irony")]
    with pytest.raises(ValueError, match=r"task_A_En_test.csv line 1: column 'irony' is missing"):
        load("isarcasm", tmp_path, concepts=["irony"])


def test_isarcasm_skips_and_refuses(tmp_path):
    isarcasm(tmp_path)
    path = tmp_path / "train" / "train.En.csv"
    text = path.read_text()
    path.write_text(text.replace("It rained 3 times", " "))
    assert load("isarcasm", tmp_path).skipped == {"tweets without text": 1}
    path.write_text(text.replace("It rained 3 times,0,", "It rained 3 times,no,"))
    with pytest.raises(ValueError, match=r"train.En.csv line 29: 'sarcastic' is 'no': expected 0"):
        load("isarcasm", tmp_path)
    with pytest.raises(ValueError, match="negatives 'all' is unknown"):
        load("isarcasm", tmp_path, negatives="all")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train.En.csv does not exist: give the folder of"):
        load("isarcasm", tmp_path)


EMOTIONS = ["admiration", "amusement", "anger", "joy", "neutral"]


def goemotions(root):
    (root / "emotions.txt").write_text("\n".join(EMOTIONS))
    for part, n in (("train", 20), ("dev", 10), ("test", 10)):
        rows = [[f'{part} "comment" {k}', ("0,1", "3", "4", "2,4")[k % 4], f"{part}{k}"] for k in range(n)]
        write_csv(root / f"{part}.tsv", rows, delimiter="\t")
    return root


def test_goemotions_filtered(tmp_path):
    data = load("goemotions", goemotions(tmp_path), split="published")
    assert data.concepts == ("joy", "anger", "amusement", "admiration")
    assert (len(data.train), len(data.cal), len(data.test)) == (20, 10, 10)
    assert data.samples[0].text == 'train "comment" 0'
    assert data.samples[0].positive == {"admiration", "amusement"}
    assert data.samples[2].positive == frozenset()
    assert data.samples[3].positive == {"anger"}
    every = load("goemotions", tmp_path, concepts="all")
    assert every.concepts == tuple(EMOTIONS)


def test_repeated_comments_are_one_document(tmp_path):
    goemotions(tmp_path)
    with (tmp_path / "test.tsv").open("a") as opened:
        opened.write('"train ""comment"" 1"\t3\tagain\n')
    data = load("goemotions", tmp_path)
    assert next(s for s in data.samples if s.id == "again").document == "train1"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a text\t9\tid", r"test.tsv line 11: label '9' is not a number below 5, a line of emot"),
        ("a text\tjoy\tid", r"test.tsv line 11: label 'joy' is not a number"),
        ("a text, no tab", r"test.tsv line 11: 1 fields, expected 3"),
    ],
)
def test_goemotions_refuses(tmp_path, line, message):
    goemotions(tmp_path)
    with (tmp_path / "test.tsv").open("a") as opened:
        opened.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        load("goemotions", tmp_path)


def test_goemotions_raw_counts_raters(tmp_path):
    header = [
        "text",
        "id",
        "author",
        "subreddit",
        "link_id",
        "parent_id",
        "created_utc",
        "rater_id",
        "example_very_unclear",
        *EMOTIONS,
    ]
    ratings = []
    for k in range(12):
        for rater in range(3):
            votes = [int(rater < 2), int(rater == 0), 0, int(k % 2), 0]
            ratings.append(
                [f"comment {k}", f"c{k}", "a", "r", f"thread{k // 2}", "p", "1.0", rater, False, *votes]
            )
    unclear = ["what", "c99", "a", "r", "t", "p", "1.0", 0, True, 0, 0, 0, 0, 0]
    alone = ["alone", "c98", "a", "r", "t", "p", "1.0", 0, False, 0, 1, 0, 0, 0]
    write_csv(tmp_path / "full_dataset" / "goemotions_1.csv", [header, *ratings[:18], unclear])
    write_csv(tmp_path / "full_dataset" / "goemotions_2.csv", [header, *ratings[18:], alone])
    data = load("goemotions", tmp_path, raw=True)
    assert data.concepts == ("joy", "admiration")
    assert data.samples[0].positive == {"admiration"}
    assert data.samples[1].positive == {"admiration", "joy"}
    assert data.samples[1].document == data.samples[0].document == "thread0"
    assert data.skipped == {
        "ratings marked as very unclear": 1,
        "comments without a label of 2 raters": 1,
        "concepts of the paper that the files lack": 10,
        "concepts without a sample (anger, amusement)": 2,
    }
    one = load("goemotions", tmp_path, raw=True, min_raters=1)
    assert "amusement" in one.concepts
    with pytest.raises(ValueError, match="no published train part"):
        load("goemotions", tmp_path, raw=True, split="published")


def authors(root, name="sarcasm"):
    """The authors' format: every third paragraph positive, one of them without a positive word."""
    texts = [f"Oh great, paragraph {k} (of 12)  is here." for k in range(12)]
    meta, paragraphs = [["text_path", "split"]], [["paragraph_id", "text", name, "other"]]
    words = [["paragraph_id", "word", name]]
    for k, text in enumerate(texts):
        path = root / "texts" / f"{k}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        meta.append([f"texts/{k}.txt", ("train", "cal", "test")[k // 4]])
        paragraphs.append([k + 1, text, int(k % 3 == 0), 1])
        for word in text.split():
            bare = word.strip(",.()")
            words.append([k + 1, bare, int(k % 3 == 0 and k and bare == "great")])
    write_csv(root / "metadata.csv", meta)
    write_csv(root / "paragraph_level_sarcasm.csv", paragraphs)
    write_csv(root / "word_level_sarcasm.csv", words)
    return root


def test_the_authors_text_format(tmp_path):
    data = load("sarcasm", authors(tmp_path), split="published")
    assert data.concepts == ("sarcasm",)
    assert data.split_of == ("train",) * 4 + ("cal",) * 4 + ("test",) * 4
    first, fourth = data.samples[0], data.samples[3]
    assert first.positive == {"sarcasm"}
    assert first.spans == ()
    assert [fourth.text[a:b] for a, b, _ in fourth.spans] == ["great,"]
    assert data.samples[1].positive == frozenset()
    assert len(data.samples) == 12


def test_a_folder_of_the_authors_layout_needs_no_name(tmp_path):
    folder = authors(tmp_path / "mine")
    data = load(folder, split="published")
    assert (data.name, data.concepts) == ("mine/published", ("sarcasm",))
    assert data.samples == load("sarcasm", folder, split="published").samples
    limited = load(folder, split="published", concepts=["sarcasm"], limit=11)
    assert limited.skipped == {"paragraphs beyond limit=11": 1}


def change(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def test_a_shifted_word_is_refused(tmp_path):
    words = authors(tmp_path) / "word_level_sarcasm.csv"
    change(words, "\n2,great,", "\n2,grand,")
    message = (
        r"word_level_sarcasm.csv line 11: word 'grand' stands where the text of paragraph 2 has "
        r"'great,' \(character 3\): labels and text are misaligned"
    )
    with pytest.raises(ValueError, match=message):
        load("sarcasm", tmp_path)


def test_a_lost_word_is_refused(tmp_path):
    words = authors(tmp_path) / "word_level_sarcasm.csv"
    lines = words.read_text().splitlines()
    words.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"paragraph 12 has 7 labelled words, its text 8: labels"):
        load("sarcasm", tmp_path)


def test_a_paragraph_without_words_is_kept_and_counted(tmp_path):
    words = authors(tmp_path) / "word_level_sarcasm.csv"
    kept = [line for line in words.read_text().splitlines() if not line.startswith("4,")]
    words.write_text("\n".join(kept) + "\n")
    data = load("sarcasm", tmp_path, split="published")
    assert data.skipped == {"paragraphs without word labels (kept)": 1}
    assert data.samples[3].positive == {"sarcasm"}
    assert data.samples[3].spans == ()


def test_a_labelled_word_in_a_negative_paragraph_is_left_out_and_counted(tmp_path):
    words = authors(tmp_path) / "word_level_sarcasm.csv"
    change(words, "\n2,great,0", "\n2,great,1")
    data = load("sarcasm", tmp_path, split="published")
    assert data.samples[1].spans == ()
    assert data.skipped == {"labelled words of concepts that their paragraph lacks": 1}


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("paragraph_level_sarcasm.csv", "\n3,", "\n4,", r"line 4: paragraph_id '4', expected 3"),
        ("word_level_sarcasm.csv", "\n1,Oh,", "\n0,Oh,", r"line 2: paragraph_id 0, expected 1 to"),
        ("metadata.csv", "texts/2.txt", "texts/x.txt", r"x.txt does not exist: .*line 4 names it"),
        ("metadata.csv", "split", "part", r"metadata.csv line 1: column 'split' is missing"),
        ("metadata.csv", "texts/2.txt,train\n", "", r"has 12 rows, metadata.csv 11: one row each"),
        ("word_level_sarcasm.csv", ",sarcasm", ",x", r"line 1: column 'sarcasm' is missing"),
    ],
)
def test_the_authors_text_format_refuses(tmp_path, file, old, new, message):
    change(authors(tmp_path) / file, old, new)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load("sarcasm", tmp_path)


def test_sarcasm_has_no_other_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'sarcasm' exists only in the format of the auth"):
        load("sarcasm", tmp_path)
    authors(tmp_path)
    write_csv(tmp_path / "word_level_other.csv", [["paragraph_id", "word"], [1, "a"]])
    with pytest.raises(ValueError, match=r"word_level_other.csv, word_level_sarcasm.csv: keep one"):
        load("sarcasm", tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("great", "great,", True),
        ("“Oh", "Oh", True),
        ("Great", "great", False),
        ("-", "—", False),
        ("...", "...", True),
        ("don't", "dont", False),
    ],
)
def test_words_may_differ_in_punctuation_around_them_only(one, other, same):
    assert same_word(one, other) is same
