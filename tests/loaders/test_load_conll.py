"""CoNLL and CoNLL-U files: sentences, documents, tags as concepts, the text's own spacing."""

import pytest

from sa_plugin.data import ConceptData
from sa_plugin.loaders import load

SENTENCES = [["EU", "rejects", "German", f"call{k}"] for k in range(12)]
TAGS = ["B-ORG", "O", "B-MISC", "O"]


def conll(path, *, start="", between="\n", sep=" ", end="\n"):
    rows = []
    for k, words in enumerate(SENTENCES):
        if start and k % 3 == 0:
            rows.append(f"{start}{end}{end}")
        lines = [sep.join([word, "NN", "B-NP", tag]) for word, tag in zip(words, TAGS, strict=True)]
        rows.append(end.join(lines) + end + between.replace("\n", end))
    path.write_bytes("".join(rows).encode())
    return path


@pytest.mark.parametrize("sep", [" ", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", [".conll", ".iob", ".bio"])
def test_sentences_with_tags(tmp_path, sep, end, suffix):
    data = load(conll(tmp_path / f"a{suffix}", sep=sep, end=end))
    labels = [["ORG", None, "MISC", None]] * 12
    assert data.hash == ConceptData.from_words(SENTENCES, labels).hash
    assert load(tmp_path / f"a{suffix}", column=2, tags="IOB2").concepts == ("NP",)
    assert load(tmp_path / f"a{suffix}", concepts=["ORG"]).concepts == ("ORG",)
    glued = load(tmp_path / f"a{suffix}", spaces_after=False)
    assert glued.samples[0].text == "EUrejectsGermancall0"


def test_documents_begin_where_the_file_says(tmp_path):
    data = load(conll(tmp_path / "a.conll", start="-DOCSTART- -X- O O"))
    assert [s.document for s in data.samples] == [f"document {1 + k // 3}" for k in range(12)]
    assert [s.text for s in data.samples] == [" ".join(words) for words in SENTENCES]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rejects NN B-NP O", "rejects NN O", r"line 2: 'rejects NN O' has 3 columns, the first line 4"),
        ("EU NN B-NP B-ORG", "EU NN B-NP ORG", r"a.conll: tag 'B-\w+' may be .*since 'ORG' is not written"),
        ("EU NN B-NP B-ORG", "EU NN B-NP (ORG*", r"line 1: '\(ORG\*' is a bracket of CoNLL-2012"),
        ("EU NN B-NP B-ORG", "EU\x00 NN B-NP B-ORG", r"holds a null character"),
    ],
)
def test_lines_that_do_not_fit_are_named(tmp_path, old, new, message):
    path = conll(tmp_path / "a.conll")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        load(path)


def test_files_and_options_that_do_not_fit(tmp_path):
    path = conll(tmp_path / "a.conll")
    for options, message in (
        ({"column": 4}, "column 4 is none of the 4"),
        ({"tags": "IOB3"}, "tags 'IOB3' is unknown: did you mean 'IOB"),
        ({"tag": "IOB2"}, "'tag' is unknown: did you mean 'tags'"),
        ({"concepts": ["OGR"]}, "concept 'OGR' is unknown: did you mean 'ORG'"),
        ({"split": "published"}, "says no split of its samples"),
    ):
        with pytest.raises(ValueError, match=message):
            load(path, **options)
    (tmp_path / "b.conll").write_text("\n\n")
    with pytest.raises(ValueError, match=r"b.conll has no sentences: give a file of words with tags"):
        load(tmp_path / "b.conll")
    (tmp_path / "c.conll").write_text("EU\nrejects\n")
    with pytest.raises(ValueError, match=r"line 1: 'EU' has no tag"):
        load(tmp_path / "c.conll")
    (tmp_path / "d.conll").write_bytes("Zürich B-LOC\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 1: not UTF-8 .*save it as UTF-8"):
        load(tmp_path / "d.conll")


UD = """# newdoc id = doc{d}
# sent_id = s{k}
# text = Vous n'allez pas au no {k} 000.
1\tVous\tvous\tPRON\t_\tNumber=Plur|Person=2\t3\tnsubj\t_\t_
2\tn'\tne\tADV\t_\t_\t3\tadvmod\t_\tSpaceAfter=No
3\tallez\taller\tVERB\t_\t_\t0\troot\t_\tNER=O
4\tpas\tpas\tADV\t_\t_\t3\tadvmod\t_\t_
5-6\tau\t_\t_\t_\t_\t_\t_\t_\t_
5\tà\tà\tADP\t_\t_\t7\tcase\t_\t_
6\tle\tle\tDET\t_\t_\t7\tdet\t_\t_
6.1\tvide\tvide\tX\t_\t_\t_\t_\t_\t_
7\tno\tno\tNOUN\t_\tNumber=Sing\t3\tobl\t_\t_
8\t{k} 000\t{k} 000\tNUM\t_\t_\t7\tnmod\t_\tSpaceAfter=No|NER=B-QTY
9\t.\t.\tPUNCT\t_\t_\t3\tpunct\t_\t_

"""


def ud(path, change=lambda text: text, n=12):
    path.write_text(change("".join(UD.format(k=k, d=k // 2) for k in range(n))))
    return path


@pytest.mark.parametrize("with_text", [True, False])
def test_universal_dependencies(tmp_path, with_text):
    def change(text):
        return (
            text
            if with_text
            else "".join(line for line in text.splitlines(keepends=True) if not line.startswith("# text"))
        )

    data = load(ud(tmp_path / "a.conllu", change))
    first = data.samples[0]
    assert first.text == "Vous n'allez pas au no 0 000."
    assert (first.id, first.document) == ("s0", "doc0")
    of = {}
    for start, end, concept in first.spans:
        of.setdefault(first.text[start:end], set()).add(concept)
    assert of["au"] == {"ADP", "DET"}
    assert of["0 000"] == {"NUM"}
    assert of["n'"] == {"ADV"}
    assert "X" not in data.concepts
    assert load(tmp_path / "a.conllu", column="feats").concepts == ("Number=Plur", "Number=Sing", "Person=2")
    assert load(tmp_path / "a.conllu", column="misc.NER").concepts == ("QTY",)
    assert load(tmp_path / "a.conllu", column="deprel", concepts=["obl"]).concepts == ("obl",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("4\tpas\tpas", "4\tpsa\tpas", r"line 3: word 'psa' does not follow in its text.*'pas au"),
        ("4\tpas\tpas\tADV", "4\tpas\tpas ADV", r"line 7: 9 columns by tabs, CoNLL-U has 10"),
        ("4\tpas", "5\tpas", r"line 7: word '5' follows 3: words count from 1"),
    ],
)
def test_lines_that_are_not_of_conllu_are_named(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message):
        load(ud(tmp_path / "a.conllu", lambda text: text.replace(old, new, 1)))


def test_columns_are_known(tmp_path):
    path = ud(tmp_path / "a.conllu")
    with pytest.raises(ValueError, match=r"column 'pos' is unknown: did you mean '.pos'"):
        load(path, column="pos")


def test_returns_alone_end_lines_and_a_column_that_counts_is_no_word(tmp_path):
    plain = load(conll(tmp_path / "a.conll")).hash
    assert load(conll(tmp_path / "b.conll", end="\r")).hash == plain
    for start in (0, 1):
        lines = [
            "\n".join(
                f"{n}\t{word}\t{tag}" for n, (word, tag) in enumerate(zip(row, TAGS, strict=True), start)
            )
            for row in SENTENCES
        ]
        (tmp_path / "c.conll").write_text("\n\n".join(lines))
        assert load(tmp_path / "c.conll").hash == plain


def test_tags_in_the_place_of_words_are_refused(tmp_path):
    lines = ["\n".join(f"{tag} {word}" for word, tag in zip(row, TAGS, strict=True)) for row in SENTENCES]
    (tmp_path / "a.conll").write_text("\n\n".join(lines))
    with pytest.raises(
        ValueError, match="48 of 48 words are tags, 'B-ORG' first: the word stands in the first"
    ):
        load(tmp_path / "a.conll")
