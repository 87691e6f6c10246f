"""Laws of the embedded supersense data: the shipped file, its review and its documentation."""

import csv
import gzip
import importlib
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest

from sa_plugin.loaders import SUPERSENSES as CONCEPTS
from sa_plugin.loaders import SupersensePassage, read_supersense

ROOT = Path(__file__).parents[2]
PACKED = files("sa_plugin.loaders").joinpath("supersense.jsonl.gz")
BUILD = ROOT / "docs" / "experiments" / "supersense"
WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
SPLITS = ("train", "cal", "test")


@pytest.fixture(scope="module")
def passages() -> list[SupersensePassage]:
    return read_supersense()[1]


@pytest.fixture(scope="module")
def plain(passages) -> list[SupersensePassage]:
    return [passage for passage in passages if passage.plain]


@pytest.fixture(scope="module")
def splits(passages) -> dict[str, list[SupersensePassage]]:
    return {name: [p for p in passages if p.held_out_lemma == name] for name in SPLITS}


@pytest.fixture(scope="module")
def review() -> list[dict[str, str]]:
    with (BUILD / "supersense_review.csv").open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def having(passages, concept):
    return [p for p in passages if any(name == concept for _start, _end, name in p.spans)]


def lemmas(passages, concept):
    pairs = (pair for p in passages for pair in zip(p.spans, p.lemmas, strict=True))
    return {lemma for (_start, _end, name), lemma in pairs if name == concept}


def test_the_file_is_small_and_says_what_it_is():
    packed = PACKED.read_bytes()
    assert len(packed) < 2_000_000
    assert packed[4:8] == bytes(4), "a time stamp would make each build differ"
    header = gzip.decompress(packed).split(b"\n", 1)[0]
    assert b'"format": 1' in header
    assert b'"silver"' in header
    assert read_supersense()[0] == CONCEPTS == tuple(sorted(CONCEPTS))


def test_ids_are_unique_and_begin_with_their_document(passages):
    assert len({p.id for p in passages}) == len(passages) == len({p.text for p in passages})
    assert all(p.id.startswith(p.document + "-") for p in passages)
    assert all(p.plain or p.held_out_lemma in SPLITS for p in passages)


def test_spans_are_whole_words_in_order(passages):
    for passage in passages:
        ends = [0]
        assert len(passage.spans) == len(passage.lemmas)
        for start, end, concept in passage.spans:
            assert ends[-1] <= start < end <= len(passage.text)
            assert concept in CONCEPTS
            assert re.fullmatch(r"[A-Za-z]+(-[A-Za-z]+)*", passage.text[start:end])
            around = passage.text[max(start - 1, 0) : start] + passage.text[end : end + 1]
            assert not re.search(r"[\w-]", around), (passage.id, passage.text[start:end])
            ends.append(end)


def test_a_lemma_has_one_concept(passages):
    pairs = {(n, x) for p in passages for (_s, _e, n), x in zip(p.spans, p.lemmas, strict=True)}
    assert len({lemma for _name, lemma in pairs}) == len(pairs)


def test_texts_are_30_to_100_words_of_clean_prose(passages):
    for passage in passages:
        assert 30 <= len(WORD.findall(passage.text)) <= 100, passage.id
        assert passage.text == " ".join(passage.text.split())
        assert not re.search(r"[\[\]{}|*_\u201c\u201d]|CHAPTER|Gutenberg", passage.text), passage.id


def test_each_concept_is_in_5_to_30_percent_of_the_plain_set(plain):
    assert len(plain) >= 1500
    for concept in CONCEPTS:
        count = len(having(plain, concept))
        assert count >= 120, concept
        assert 0.05 <= count / len(plain) <= 0.30, concept


def test_both_sources_have_every_concept(plain):
    for concept in CONCEPTS:
        sources = Counter(p.document.split("-")[0] for p in having(plain, concept))
        assert min(sources["sotu"], sources["moby"]) >= 20, concept


def test_held_out_lemmas_are_only_in_test(splits):
    assert sum(len(chosen) for chosen in splits.values()) >= 900
    fitted = splits["train"] + splits["cal"]
    for concept in CONCEPTS:
        assert not lemmas(fitted, concept) & lemmas(splits["test"], concept), concept


def test_no_labelled_word_of_one_side_is_anywhere_on_the_other(splits):
    def labelled(chosen):
        return {p.text[start:end].lower() for p in chosen for start, end, _name in p.spans}

    def every(chosen):
        return {word.lower() for p in chosen for word in re.findall(r"[A-Za-z]+", p.text)}

    fitted = splits["train"] + splits["cal"]
    assert not labelled(fitted) & every(splits["test"])
    assert not labelled(splits["test"]) & every(fitted)


def test_held_out_splits_share_no_document(splits):
    documents = [{p.document for p in splits[name]} for name in SPLITS]
    assert sum(map(len, documents)) == len(set.union(*documents))


@pytest.mark.parametrize(("split", "least"), [("train", 40), ("cal", 15), ("test", 30)])
def test_held_out_splits_have_enough_positive_passages(splits, split, least):
    short = {c: len(having(splits[split], c)) for c in CONCEPTS}
    assert min(short.values()) >= least, short


def test_the_review_is_of_this_file_and_complete(passages, review):
    by_id = {p.id: p for p in passages}
    for row in review:
        start, passage = int(row["start"]), by_id[row["passage"]]
        assert (start, start + len(row["word"]), row["concept"]) in passage.spans
        assert passage.text[start : start + len(row["word"])] == row["word"]
        assert row["verdict"] in ("right", "wrong")
        assert bool(row["note"]) == (row["verdict"] == "wrong")
    counts = Counter(row["concept"] for row in review)
    assert len(review) >= 200
    assert min(counts[concept] for concept in CONCEPTS) >= 10


def test_the_review_is_the_sample_that_the_builder_draws(passages, review):
    build = importlib.import_module("supersense.review")
    drawn = {verdict.key for verdict in build.sample(passages, CONCEPTS)}
    assert drawn == {(row["passage"], int(row["start"]), row["concept"]) for row in review}


def test_the_documentation_has_the_counts_of_the_file(passages, plain, review):
    build = importlib.import_module("supersense.report")
    reader = importlib.import_module("supersense.review")
    verdicts = reader.read_review(BUILD / "supersense_review.csv")
    text = (ROOT / "docs" / "supersense.md").read_text(encoding="utf-8")
    assert build.concept_table(plain, CONCEPTS, verdicts) in text
    assert build.held_out_table(passages, CONCEPTS) in text
    assert build.source_table(passages) in text
    right = sum(row["verdict"] == "right" for row in review)
    assert build.precision(right, len(review)) in text


def test_the_wilson_interval_agrees_with_scipy():
    build = importlib.import_module("supersense.report")
    stats = importlib.import_module("scipy.stats")
    for right, read in ((15, 15), (12, 15), (208, 210), (0, 3)):
        interval = stats.binomtest(right, read).proportion_ci(method="wilson")
        assert build.wilson(right, read) == pytest.approx((interval.low, interval.high), abs=1e-4)


def test_no_excluded_word_is_labelled_and_each_exclusion_has_a_reason(passages):
    build = importlib.import_module("supersense.labels")
    excluded, added = build.read_list("exclusions.tsv"), build.read_list("additions.tsv")
    assert all(reason for reason in (*excluded.values(), *added.values()))
    assert {concept for _lemma, concept in (*excluded, *added)} <= set(CONCEPTS)
    for concept in CONCEPTS:
        assert not lemmas(passages, concept) & {x for x, name in excluded if name == concept}


def test_sentences_lose_and_repeat_nothing():
    build = importlib.import_module("supersense.passages")
    text = 'Mr. Starbuck saw it. "There she blows!" cried the U. S. consul. Was it No. 7? Aye.'
    found = build.sentences(text)
    assert " ".join(found) == text
    assert found[0] == "Mr. Starbuck saw it."
    assert found[-1] == "Aye."
