"""A user's own data: JSONL, CSV of texts or words, Hugging Face datasets by duck typing."""

import json

import numpy as np
import pytest
from load_cases import disc, write_csv
from PIL import Image

from sa_plugin.data import ConceptData
from sa_plugin.loaders import load


def write_lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def line_rows(n=12):
    return [
        {"text": f"{k:02} a cat sat", "labels": [[3, 4, "x"]] if k % 2 else [], "document": f"d{k}"}
        for k in range(n)
    ]


def test_a_jsonl_file_becomes_data(tmp_path):
    data = load(write_lines(tmp_path / "a.jsonl", line_rows()))
    assert [s.document for s in data.samples] == [f"d{k}" for k in range(12)]
    assert data.concepts == ("x",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"document": None}, r"line 3: 'document' is missing, other lines have it"),
        ({"lables": []}, r"line 3: key 'lables' is unknown; known: text"),
        ({"labels": None}, r"line 3: expected an object with 'text' and 'labels'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, change, message):
    changed = line_rows()
    changed[2] = {k: v for k, v in {**changed[2], **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        load(write_lines(tmp_path / "a.jsonl", changed))


LABEL = r"two integers and a string"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"x": [0, 1]}}, r"line 3: 'labels' is \{'x': .*expected \[\[start, end, concept"),
        ({"labels": "x"}, r"line 3: 'labels' is 'x': expected"),
        ({"labels": [0, 4, "x"]}, rf"line 3: label 0 is not .*{LABEL}"),
        ({"labels": [[0, 4]]}, rf"line 3: label \[0, 4\] is not .*{LABEL}"),
        ({"labels": [[0, 4, "x", 1]]}, rf"line 3: label \[0, 4, 'x', 1\] is not .*{LABEL}"),
        ({"labels": [None]}, rf"line 3: label None is not .*{LABEL}"),
        ({"labels": [["0", 4, "x"]]}, rf"line 3: label .* is not .*{LABEL}"),
        ({"labels": [[0.0, 4, "x"]]}, rf"line 3: label .* is not .*{LABEL}"),
        ({"labels": [[0, True, "x"]]}, rf"line 3: label .* is not .*{LABEL}"),
        ({"labels": [[0, 4, None]]}, rf"line 3: label .* is not .*{LABEL}"),
        ({"labels": [[0, 99, "x"]]}, "line 3: label .* does not lie in a text of 12 characters"),
        ({"labels": [[4, 3, "x"]]}, "line 3: label .* does not lie in a text"),
        ({"labels": [[2, 3, "x"]]}, "line 3: label .* covers only white space"),
        ({"text": 7}, "line 3: 'text' is 7: expected a string that is not empty"),
        ({"text": "  "}, "line 3: 'text' is '  ': expected a string that is not empty"),
        ({"document": ["d"]}, r"line 3: 'document' is \['d'\]: expected a string or an integer"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(tmp_path, change, message):
    changed = line_rows()
    changed[2] = {**changed[2], **change}
    with pytest.raises(ValueError, match=message):
        load(write_lines(tmp_path / "a.jsonl", changed))


@pytest.mark.parametrize("labels", ["null", '[[0, 4, "x"]'])
def test_null_and_broken_json_name_the_line(tmp_path, labels):
    path = write_lines(tmp_path / "a.jsonl", line_rows())
    path.write_text(path.read_text() + f'\n\n{{"text": "a cat", "labels": {labels}}}')
    with pytest.raises(ValueError, match=r"line 14: (no JSON in UTF-8 .*write one|'labels' is None)"):
        load(path)


def test_undecodable_bytes_name_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a cat", "labels": []}\n{"text": "caf\xe9", "labels": []}\n')
    with pytest.raises(ValueError, match="line 2: no JSON in UTF-8"):
        load(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="has no lines: write one object"):
        load(path)


def test_a_line_separator_in_a_text_ends_no_line(tmp_path):
    changed = line_rows()
    changed[0]["text"] = "00 a\u2028cat"
    path = tmp_path / "a.jsonl"
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in changed)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [s.text for s in load(path).samples] == [row["text"] for row in changed]


def texts(path, n=12):
    header = ["id", "text", "animal", "weather", "document"]
    rows = [[f"t{k}", f"{k} a cat, and\nrain", k % 2, int(k % 3 == 0), f"d{k}"] for k in range(n)]
    return write_csv(path, [header, *rows])


def test_a_csv_of_texts(tmp_path):
    data = load(texts(tmp_path / "a.csv"))
    assert data.concepts == ("animal", "weather")
    assert data.samples[3].text == "3 a cat, and\nrain"
    assert data.samples[3].positive == {"animal", "weather"}
    assert data.samples[3].document == "d3"
    assert data.name == "a.csv"


def words(path, n=12):
    rows = [["sample", "word", "label", "document", "split"]]
    for k in range(n):
        where = [f"d{k}", ("train", "cal", "test")[k // 4]]
        rows += [[k, "a", "", *where], [k, "cat", "animal;pet", *where], [k, f"sat{k}", "", *where]]
    return write_csv(path, rows)


def test_a_csv_of_words_is_from_words(tmp_path):
    data = load(words(tmp_path / "w.csv"))
    expected = ConceptData.from_words(
        [["a", "cat", f"sat{k}"] for k in range(12)],
        [[[], ["animal", "pet"], []]] * 12,
        documents=[f"d{k}" for k in range(12)],
        splits=["train"] * 4 + ["cal"] * 4 + ["test"] * 4,
    )
    assert data.hash == expected.hash


@pytest.mark.parametrize(
    ("make", "old", "new", "message"),
    [
        (texts, "3 a cat, and\nrain", " ", r"line 8: 'text' is empty: give a text or leave"),
        (texts, 'rain",1,1,d3', 'rain",1,2,d3', r"line 8: 'weather' is '2': expected 0 or 1"),
        (texts, 'rain",1,1,d3', 'rain",1,1', r"line 8: 4 fields, expected 5 \(id, text"),
        (texts, "id,text", "id,txt", r"line 1: neither 'text' nor 'word' is a column"),
        (texts, "animal,weather", "animal,animal", r"line 1: column 'animal' stands twice"),
        (words, "1,cat,", "1,a ,", r"line 6: word 'a ' is empty or has white space around it"),
        (words, "1,cat,", "0,cat,", r"line 6: sample '0' goes on after another one: sort"),
        (words, "sat1,,d1", "sat1,,d9", r"line 7: document 'd9', but line 5 of the same sample"),
        (words, "label,", "tag,", r"line 1: column 'label' is missing beside 'word'"),
        (texts, 'rain",1,1,d3', 'rain",1,1,', r"line 8: 'document' is empty: fill it in every row"),
        (words, "sat1,,d1,train", "sat1,,d1, ", r"line 7: 'split' is empty: fill it in every row"),
    ],
)
def test_a_csv_refuses_with_its_line(tmp_path, make, old, new, message):
    path = make(tmp_path / "x.csv")
    text = path.read_text().replace("\r\n", "\n")
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"x.csv {message}"):
        load(path)


def test_a_csv_that_is_no_csv(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no.csv does not exist: give a CSV file of label"):
        load(tmp_path / "no.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(FileNotFoundError, match=r"metadata.csv does not exist: a folder is read by its"):
        load(tmp_path / "folder.csv")
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,x\na cat,1\ncaf\xe9,0\n")
    with pytest.raises(ValueError, match=r"a.csv line 3: not UTF-8 .*save it as UTF-8"):
        load(path)
    path.write_text("text,x\n")
    with pytest.raises(ValueError, match=r"a.csv has no rows"):
        load(path)


class Names:
    def __init__(self, names, feature=None):
        self.names, self.feature = names, feature


class Rows(list):
    """The least that a dataset has."""

    def __init__(self, rows, features=None):
        super().__init__(rows)
        self.column_names = list(rows[0])
        self.features = features or {}


def test_tokens_and_tags_by_number():
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    rows = [{"tokens": ["Ann", "Lee", "left", f"Rome{k}"], "ner_tags": [1, 2, 0, 3]} for k in range(12)]
    features = {"ner_tags": Names(None, feature=Names(names))}
    columns = {"tokens": "tokens", "tags": "ner_tags"}
    data = load(Rows(rows, features), columns=columns)
    assert data.concepts == ("LOC", "PER")
    assert [tuple(s) for s in data.samples[0].spans] == [(0, 3, "PER"), (4, 7, "PER"), (13, 18, "LOC")]
    assert load(Rows(rows), columns=columns, names={"tags": names}).hash == data.hash
    with pytest.raises(ValueError, match=r"row 0: class 1 has no name: give names="):
        load(Rows(rows), columns=columns)


def test_text_with_spans_labels_and_parts():
    def rows(part, n=8):
        return Rows(
            [
                {
                    "sentence": f"{part} {k} a cat",
                    "book": f"{part}{k // 2}",
                    "kind": k % 2,
                    "marks": [{"start": len(part) + 5, "end": len(part) + 8, "label": "animal"}],
                }
                for k in range(n)
            ],
            {"kind": Names(["calm", "wild"])},
        )

    parts = {part: rows(part) for part in ("train", "validation", "test")}
    data = load(parts, columns={"text": "sentence", "spans": "marks", "label": "kind", "document": "book"})
    assert data.split_of == ("train",) * 8 + ("cal",) * 8 + ("test",) * 8
    sample = data.samples[1]
    assert sample.text[slice(*sample.spans[0][:2])] == "cat"
    assert sample.positive == {"animal", "wild"}
    assert data.samples[0].document == sample.document == "train0"
    with pytest.raises(ValueError, match="split 'trian' is unknown: did you mean 'train'"):
        load({"trian": rows("x")}, columns={"text": "sentence"})


@pytest.mark.parametrize("as_plane", [True, False])
def test_images_with_masks(as_plane):
    one, two = disc((12, 14)), disc((40, 16))
    plane = one * 1 + two * 2
    rows = [
        {
            "image": Image.new("RGB", (56, 52), (k, 0, 0)),
            "annotation": Image.fromarray(plane.astype(np.uint8)) if as_plane else {"cat": one, "dog": two},
        }
        for k in range(12)
    ]
    data = load(
        Rows(rows), columns={"image": "image", "mask": "annotation"}, names={"mask": ["", "cat", "dog"]}
    )
    assert data.concepts == ("cat", "dog")
    np.testing.assert_array_equal(data.samples[3].image.masks["dog"], two)
    assert data.samples[3].image.pixels[0, 0].tolist() == [3, 0, 0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"txt": "t"}, "role 'txt' is unknown: did you mean 'text'"),
        ({"spans": "t"}, "columns name none of text, tokens, image: name one"),
        ({"text": "t", "image": "t"}, r"columns name \['text', 'image'\] of text"),
        ({"text": "tt"}, "column of text 'tt' is unknown: did you mean 't'"),
        ({"text": "t", "spans": "s"}, r"row 1: spans\[0\] is \[2, 5\], of 2 parts: give \(start, end"),
        ({"text": "t", "label": "hot"}, r"row 0: label \[0, 0, 1\] is no list of diffe"),
        ({"text": "t", "label": "flags"}, r"row 0: label \[True, False\] is no list of"),
        ({"text": "t", "label": "share"}, "row 0: class 0.7 is no whole number: give"),
    ],
)
def test_a_dataset_refuses(columns, message):
    labels = {"hot": [0, 0, 1], "flags": [True, False], "share": 0.7}
    rows = Rows([{"t": "a cat", "s": [[2, 5, "x"]], **labels}, {"t": "a dog", "s": [[2, 5]], **labels}])
    with pytest.raises(ValueError, match=message):
        load(rows, columns=columns, names={"label": ["a", "b", "c"]})


def test_spans_as_one_dict_of_lists_are_the_spans():
    spans = [(0, 1, "letter"), (2, 5, "animal")]
    start, end, label = map(list, zip(*spans, strict=True))
    columns = {"text": "t", "spans": "s"}
    one = Rows([{"t": f"a cat {k}", "s": spans} for k in range(12)])
    other = Rows([{"t": f"a cat {k}", "s": {"start": start, "end": end, "label": label}} for k in range(12)])
    assert load(other, columns=columns).hash == load(one, columns=columns).hash


def test_not_a_dataset():
    with pytest.raises(TypeError, match="dataset is a list, not rows with column_names"):
        load({"train": [{"text": "a"}]}, columns={"text": "text"})


def test_a_real_dataset_is_read():
    datasets = pytest.importorskip("datasets")
    tags = datasets.ClassLabel(names=["O", "B-animal"])
    column = {"words": datasets.Sequence(datasets.Value("string")), "tags": datasets.Sequence(tags)}
    made = datasets.Dataset.from_dict(
        {"words": [["a", f"cat{k}"] for k in range(12)], "tags": [[0, 1]] * 12},
        features=datasets.Features(column),
    )
    data = load(made, columns={"tokens": "words", "tags": "tags"})
    assert data.concepts == ("animal",)
    assert data.samples[2].text == "a cat2"


# Texts that are labelled as a whole.


@pytest.mark.parametrize("form", ["flags", "label", "jsonl", "dataset", "numbers", "named"])
def test_texts_labelled_as_a_whole_are_those_of_from_texts(tmp_path, form):
    texts = [f"{word} {k}" for k in range(6) for word in ("so tired", "a lovely day", "nothing")]
    labels = [["sad"], ["glad", "calm"], []] * 6
    parts = [("train", "cal", "test")[k // 6] for k in range(18)]
    rows = list(zip(texts, labels, parts, strict=True))
    options = {}
    if form == "flags":
        lines = [f"{t},{int('calm' in c)},{int('glad' in c)},{int('sad' in c)},{s}" for t, c, s in rows]
        source, head = tmp_path / "mine.csv", "text,calm,glad,sad,split"
        source.write_text("\n".join([head, *lines]))
    elif form == "label":
        source = tmp_path / "mine.csv"
        source.write_text("\n".join(["text,label,split", *(f"{t},{';'.join(c)},{s}" for t, c, s in rows)]))
    elif form == "jsonl":
        source = tmp_path / "mine.jsonl"
        source.write_text("\n".join(json.dumps({"text": t, "labels": c, "split": s}) for t, c, s in rows))
    else:
        names = ["calm", "glad", "sad"]
        said = [[names.index(c) for c in own] for own in labels] if form == "numbers" else labels
        found = [{"sentence": t, "y": c} for t, c in zip(texts, said, strict=True)]
        source = {part: Rows(found[k : k + 6]) for part, k in (("train", 0), ("validation", 6), ("test", 12))}
        options = {"columns": {"text": "sentence", "label": "y"}}
        options |= {"names": {"label": names}} if form == "numbers" else {}
        if form == "named":
            # A dataset that calls its columns so needs no roles.
            source = {part: Rows([{"text": r["sentence"], "label": r["y"]} for r in one])
                      for part, one in source.items()}  # fmt: skip
            options = {}
    for token_labels in (None, "text", {"sad": ["tired"]}):
        data = load(source, token_labels=token_labels, **options)
        plain = ConceptData.from_texts(texts, labels, splits=parts, token_labels=token_labels)
        assert data.hash == plain.hash
        assert data.token_labels == plain.token_labels


def test_a_line_may_be_labelled_by_words_or_as_a_whole(tmp_path):
    path = tmp_path / "mine.jsonl"
    lines = [{"text": "a cat sat", "labels": [[2, 5, "animal"]]}, {"text": "it purrs", "labels": ["animal"]}]
    path.write_text("\n".join(json.dumps(one | {"document": f"d{k}"}) for k in range(6) for one in lines))
    data = load(path)
    assert [sorted(s.unlabelled) for s in data][:2] == [[], ["animal"]]
    assert "token labels unknown in 6 of 12 samples" in repr(data)
    whole = load(path, token_labels="text")
    assert [[(s.start, s.end) for s in one.spans] for one in whole][:2] == [[(2, 5)], [(0, 8)]]


def test_a_column_of_names_is_called_label(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("text,emotion\n" + "".join(f"a day {k},sad\n" for k in range(6)))
    with pytest.raises(ValueError, match=r"line 2: 'emotion' is 'sad': expected 0 or 1; call a column of n"):
        load(path)


def test_token_labels_are_for_texts(tmp_path):
    path = tmp_path / "words.csv"
    path.write_text("sample,word,label\n" + "".join(f"{k},cat,animal\n{k},sat,\n" for k in range(6)))
    with pytest.raises(ValueError, match="one word a row, which labels its tokens: leave token_labels out"):
        load(path, token_labels="text")
    rows = Rows([{"w": ["a", "cat"], "t": ["O", "B-animal"]}] * 6)
    with pytest.raises(ValueError, match="token_labels is for texts labelled as a whole, not for tokens"):
        load(rows, columns={"tokens": "w", "tags": "t"}, token_labels="text")


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("text;label", "a {k};b", "has ';' between columns"),
        ("text\tlabel", "a {k}\tb", "between columns"),
        (",text,label", "{k},a {k},b", "column 1 has no name. Is it the index"),
        ("text,label", "a {k},{k}", "'label' is '2', the number of a class"),
    ],
)
def test_tables_of_other_programs_are_refused_with_their_fix(tmp_path, header, row, message):
    path = tmp_path / "a.csv"
    path.write_text("\n".join([header, *(row.format(k=k) for k in range(12))]))
    with pytest.raises(ValueError, match=message):
        load(path)


def test_a_csv_calls_its_parts_as_data_sets_do(tmp_path):
    rows = [f"text {k},ab{k % 2},{('train', 'validation', 'test')[k // 6]}" for k in range(18)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label,split", *rows]))
    found = load(tmp_path / "a.csv")
    assert [len(found.split(name)) for name in ("train", "cal", "test")] == [6, 6, 6]


def reviews(n=12):
    moods = ["praise;thanks", "complaint", ""]
    return [(f"{k:02} it came, as I said", moods[k % 3], f"customer {k // 2}", 1 + k % 5) for k in range(n)]


def write_reviews(path):
    if path.suffix == ".csv":
        rows = [f'"{text}",{mood},{of},{stars}' for text, mood, of, stars in reviews()]
        path.write_text("\n".join(["review,mood,customer,stars", *rows]))
    else:
        names = ("review", "mood", "customer", "stars")
        rows = [
            dict(zip(names, (t, m.split(";") if m else [], *more), strict=True)) for t, m, *more in reviews()
        ]
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_file_with_names_of_its_own_is_the_data_of_its_lists(tmp_path, suffix):
    path = write_reviews(tmp_path / f"mine{suffix}")
    columns = {"text": "review", "label": "mood", "document": "customer"}
    texts, moods, documents, _ = zip(*reviews(), strict=True)
    same = ConceptData.from_texts(
        list(texts),
        [m.split(";") if m else [] for m in moods],
        documents=list(documents),
        token_labels="text",
    )
    found = load(path, columns=columns, token_labels="text")
    assert found.hash == same.hash
    assert found.name == path.name
    with pytest.raises(ValueError, match=r"column of text 'reviews' is unknown: did you mean 'review'"):
        load(path, columns={**columns, "text": "reviews"})
    with pytest.raises(ValueError, match="role 'txt' is unknown: did you mean 'text'"):
        load(path, columns={"txt": "review"})


def test_a_file_without_the_usual_names_is_told_of_columns(tmp_path):
    with pytest.raises(
        ValueError, match=r"columns=\{'text': 'review', 'label': \.\.\.\}. Found: 'review', 'mood'"
    ):
        load(write_reviews(tmp_path / "mine.csv"))
    with pytest.raises(ValueError, match=r"line 1: expected an object .* Other names: columns="):
        load(write_reviews(tmp_path / "mine.jsonl"))


def test_class_numbers_of_a_file_have_the_names_they_are_given(tmp_path):
    path = write_reviews(tmp_path / "mine.csv")
    names = {"label": {1: "bad", 2: "bad", 3: "", 4: "good", 5: "good"}}
    found = load(path, columns={"text": "review", "label": "stars"}, names=names)
    assert [sorted(s.positive) for s in found.samples[:5]] == [["bad"], ["bad"], [], ["good"], ["good"]]
    with pytest.raises(ValueError, match=r"mine\.csv:2: "):
        load(path, columns={"text": "review", "label": "stars"}, names={"label": {2: "bad"}})


def test_pictures_of_a_file_lie_beside_it(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    lines = ["file,shape"]
    for k in range(9):
        pixels, mask = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), np.zeros((6, 8), np.uint8)
        mask[:3] = 255 * (k % 2)
        pillow.fromarray(pixels).save(tmp_path / f"{k}.png")
        pillow.fromarray(mask).save(tmp_path / f"{k}_mask.png")
        lines.append(f"{k}.png,{k}_mask.png")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    found = load(
        tmp_path / "mine.csv", columns={"image": "file", "mask": "shape"}, names={"mask": ["", "square"]}
    )
    paths = [tmp_path / f"{k}.png" for k in range(9)]
    masks = [{"square": tmp_path / f"{k}_mask.png"} if k % 2 else {} for k in range(9)]
    assert found.hash == ConceptData.from_masks(paths, masks).hash
    assert found.hash == ConceptData.from_masks(list(map(pillow.open, map(str, paths))), masks).hash
    with pytest.raises(
        FileNotFoundError, match=r"name its pictures and their masks in a table, load\('mine.csv'"
    ):
        load(tmp_path)
