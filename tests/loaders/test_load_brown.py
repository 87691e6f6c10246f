"""Brown: tags become concepts, tokens become ordinary text."""

from collections import Counter

import pytest

from sa_plugin.loaders import BROWN_CONCEPTS as CONCEPTS
from sa_plugin.loaders import brown_concepts_of, brown_passages, load

SENTENCE = (
    "``/`` Did/dod you/ppss see/vb Bob's/np$ (/( two/cd )/) better/jjr houses/nns ?/. ?/. ''/'' "
    "said/vbd she/pps ;/. ;/. he/pps couldn't/md* --/-- the/at City/nn-tl was/bedz "
    "la/fw-at-tl best/jjt ./."
)


def brown(folder, files=12, sentences=4):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(files):
        lines = [f"\t{SENTENCE.replace('Bob', f'Bob{k}{n}')}" for n in range(sentences)]
        (folder / f"ca{k + 1:02d}").write_text("\n\n" + "\n\n\n".join(lines) + "\n")
    return folder


def test_tokens_become_ordinary_text(tmp_path):
    (text, places), *_ = brown_passages(brown(tmp_path) / "ca01", Counter())
    assert text.startswith(
        "\"Did you see Bob00's (two) better houses?\" said she; he couldn't -- the City was la best."
    )
    for start, end, _ in places:
        assert text[start:end] == text[start:end].strip() != ""


def test_marks_written_twice_stand_once(tmp_path):
    (tmp_path / "ca01").write_text("Allen/np Jr./np ./.\nWho/wps ?/. ?/.\n" + "and/cc " * 30)
    (text, _), *_ = brown_passages(tmp_path / "ca01", Counter())
    assert text.startswith("Allen Jr. Who? and and")


def test_each_word_has_the_concepts_of_its_tag(tmp_path):
    data = load("brown", brown(tmp_path))
    assert data.concepts == CONCEPTS
    sample = data.samples[0]
    found = {(sample.text[a:b], c) for a, b, c in sample.spans}
    assert {
        ("Did", "past tense"),
        ("said", "past tense"),
        ("was", "past tense"),
        ("you", "pronoun"),
        ("Bob00's", "proper noun"),
        ("two", "number"),
        ("couldn't", "modal"),
        ("she", "pronoun"),
        ("better", "comparative"),
        ("best", "superlative"),
        ("City", "title word"),
        ("la", "foreign word"),
        ("la", "title word"),
        ("he", "pronoun"),
        ("Bob01's", "proper noun"),
    } <= found
    assert not {("see", c) for c in CONCEPTS} & found


@pytest.mark.parametrize(
    ("tag", "concepts"),
    [
        ("np$-tl", ["proper noun", "title word"]),
        ("ppss+bez", ["pronoun"]),
        ("fw-np-tl", ["proper noun", "foreign word", "title word"]),
        ("cd-hl", ["number"]),
        ("pp$$", ["pronoun"]),
        ("vbd-tl-hl", ["past tense", "title word"]),
        ("np+hvz", ["proper noun"]),
        ("nn", []),
        ("*", []),
        ("md*", ["modal"]),
    ],
)
def test_compound_and_marked_tags(tag, concepts):
    assert brown_concepts_of(tag) == concepts


def test_documents_are_files_and_passages_have_30_to_100_words(tmp_path):
    brown(tmp_path, sentences=5)
    long = " ".join(["word/nn"] * 120)
    (tmp_path / "ca01").write_text(f"{SENTENCE}\n{SENTENCE}\n{long}\n{SENTENCE}\n")
    data = load("brown", tmp_path)
    assert {s.document for s in data.samples} == {f"ca{k:02d}" for k in range(1, 13)}
    assert data.skipped == {"passages longer than 100 words": 1, "short passages at the end of a file": 12}
    assert load("brown", tmp_path, limit=5, concepts=["modal"]).concepts == ("modal",)


def test_refusals(tmp_path):
    folder = brown(tmp_path / "brown")
    (folder / "ca03").write_text("The/at jury/nn\nsaid nothing/pn\n")
    with pytest.raises(ValueError, match=r"ca03 line 2: 'said' is no word/tag: is this a tagged"):
        load("brown", folder)
    with pytest.raises(FileNotFoundError, match=r"ca01 does not exist: give the folder with Brown"):
        load("brown", tmp_path)
    with pytest.raises(ValueError, match="concept 'verb' is unknown"):
        load("brown", folder, concepts=["verb"])
    with pytest.raises(ValueError, match="split 'published' is unknown"):
        load("brown", folder, split="published")
