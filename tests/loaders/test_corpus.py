"""Corpora: every format gives the same documents whole, by blocks in any order, and in another process."""

import csv
import gzip
import json
import multiprocessing
import pickle

import numpy as np
import pytest

from sa_plugin.data import Sample
from sa_plugin.loaders import open_corpus

TEXTS = [f'text {k} with a \u2028 sign, a "quote" and\nsome é {"long " * (k % 5)}words' for k in range(23)]
ROWS = [{"id": f"n{k}", "text": text, "document": f"d{k // 3}"} for k, text in enumerate(TEXTS)]


def write_jsonl(folder, rows=ROWS):
    path = folder / "a.jsonl"
    # Blank lines are no rows.
    path.write_text("".join(json.dumps(row) + "\n" + "\n" * (k % 4 == 0) for k, row in enumerate(rows)))
    return path


def write_gzip(folder):
    path = folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    return path


def write_csv(folder, delimiter=","):
    path = folder / ("a.csv" if delimiter == "," else "a.tsv")
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, ["document", "text", "id"], delimiter=delimiter)
        table.writeheader()
        table.writerows(ROWS)
    return path


def write_parquet(folder):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet", row_group_size=4)
    return folder / "a.parquet"


def write_parts(folder):
    """Three files of unlike length: blocks lie across their ends."""
    for name, part in zip("cba", (ROWS[15:], ROWS[2:15], ROWS[:2]), strict=True):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def saved_data(folder):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def streamed(folder):
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_list(ROWS).to_iterable_dataset(num_shards=4)


MAKERS = {
    "jsonl": write_jsonl,
    "jsonl.gz": write_gzip,
    "csv": write_csv,
    "tsv": lambda folder: write_csv(folder, "\t"),
    "parquet": write_parquet,
    "files": write_parts,
    "data set": lambda folder: pytest.importorskip("datasets").Dataset.from_list(ROWS),
    "saved data set": saved_data,
    "stream": streamed,
    "rows": lambda folder: ROWS,
    "samples": lambda folder: [Sample(row["id"], row["text"], row["document"]) for row in ROWS],
}


def told(documents):
    return [(one.number, one.key, one.sample.text, one.sample.document, one.digest) for one in documents]


@pytest.mark.parametrize("form", MAKERS)
def test_every_format_gives_the_same_documents_by_blocks_in_any_order(form, tmp_path):
    source = MAKERS[form](tmp_path)
    expected = [(k, f"n{k}", text, f"d{k // 3}") for k, text in enumerate(TEXTS)]
    digests = {one.digest for one in open_corpus(source)}
    for size in (1, 4, 7, 100):
        corpus = open_corpus(source, block_size=size)
        assert [one[:-1] for one in told(corpus)] == expected
        assert (corpus.n_documents, corpus.n_blocks) == (23, -(-23 // size))
        blocks = np.random.default_rng(size).permutation(corpus.n_blocks).tolist()
        assert sorted(one for block in blocks for one in told(corpus.read(block))) == told(corpus)
        shards = [list(corpus.blocks((i, 3))) for i in range(3)]
        assert sorted(block for shard in shards for block in shard) == list(range(corpus.n_blocks))
        assert {one.digest for one in corpus} == digests


def _keys(corpus):
    return [one.key for one in corpus.read(1)]


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "csv", "parquet", "files", "saved data set"])
def test_a_corpus_of_files_goes_to_another_process(form, tmp_path):
    corpus = open_corpus(MAKERS[form](tmp_path), block_size=4)
    assert _keys(pickle.loads(pickle.dumps(corpus))) == ["n4", "n5", "n6", "n7"]
    if form == "jsonl":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(_keys, (corpus,)) == ["n4", "n5", "n6", "n7"]


def test_an_index_spares_the_reading_until_the_file_changes(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path)
    first = open_corpus(path, block_size=4)
    kept = json.loads(json.dumps(first.index))
    lines = type(first.parts[0])
    with monkeypatch.context() as patch:
        patch.setattr(lines, "indexed", None)
        again = open_corpus(path, block_size=4, index=kept)
    assert again.record == first.record
    assert told(again) == told(first)
    write_jsonl(tmp_path, ROWS[1:])
    assert open_corpus(path, block_size=4, index=kept).record != first.record


def test_one_bad_row_is_named_and_stops_nobody(tmp_path):
    path = tmp_path / "bad.jsonl"
    lines = [
        b'{"text": "good", "id": "g"}',
        b"not json",
        b'{"text": ""}',
        b'{"id": 3}',
        b"[1]",
        b'{"text": "\xff"}',
    ]
    path.write_bytes(b"\n".join([*lines, b'{"text": "also good"}']))
    found = list(open_corpus(path, block_size=2))
    assert [one.key for one in found] == ["g", *(f"bad.jsonl:{k}" for k in range(2, 8))]
    assert [one.fault is None for one in found] == [True, *[False] * 5, True]
    said = " | ".join(str(one.fault) for one in found)
    for words in ("no JSON", "nothing is seen", "none of the columns 'id'", "a list, expected", "UTF-8"):
        assert words in said


def test_pictures_and_texts_that_are_a_file_each(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for k in range(5):
        image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    (tmp_path / "notes.rst").write_text("left out")
    corpus = open_corpus(tmp_path, block_size=2)
    found = list(corpus)
    assert [one.key for one in found] == [f"{k}.png" for k in range(5)]
    assert "no picture" in str(found[3].fault)
    assert corpus.left_out == {".rst": 1}
    assert found[0].sample.image.pixels.shape == (4, 5, 3)
    other = tmp_path / "texts"
    other.mkdir()
    (other / "a.txt").write_text("one\ntwo\n\nthree")
    assert [one.sample.text for one in open_corpus(other)] == ["one\ntwo\n\nthree"]
    by_line = list(open_corpus(other / "a.txt", lines=True, block_size=2))
    assert [(one.key, one.sample.text) for one in by_line] == [
        ("a.txt:1", "one"),
        ("a.txt:2", "two"),
        ("a.txt:4", "three"),
    ]


def test_chats_ids_and_labels_are_read_by_their_roles():
    chat = [{"role": "user", "content": "Hi"}]
    given = [chat, [5, 6], "text"]
    kinds = [type(one.sample.source).__name__ for one in open_corpus(given)]
    assert kinds == ["Chat", "TokenIds", "NoneType"]
    rows = [{"messages": chat, "id": "x"}]
    assert next(iter(open_corpus(rows))).sample.source.messages[0].content == "Hi"
    labelled = [{"body": "a cat", "marks": [[2, 5, "animal"]], "kind": "pet"}]
    columns = {"text": "body", "spans": "marks", "label": "kind"}
    (one,) = open_corpus(labelled, columns=columns)
    assert one.sample.positive == {"animal", "pet"}
    assert one.sample.spans[0] == (2, 5, "animal")


def test_an_iterator_is_read_once_and_in_order():
    corpus = open_corpus((text for text in TEXTS), block_size=5)
    assert corpus.n_blocks is None
    assert [len(list(corpus.read(block))) for block in corpus.blocks()] == [5, 5, 5, 5, 3]
    assert corpus.n_documents == 23
    with pytest.raises(ValueError, match="generator, which is read once, and row 0 is asked for"):
        next(corpus.read(0))


def test_a_damaged_part_is_named(tmp_path):
    path = write_parquet(tmp_path)
    corpus = open_corpus(path, block_size=8)
    held = bytearray(path.read_bytes())
    held[4 : len(held) // 2] = b"x" * (len(held) // 2 - 4)
    path.write_bytes(held)
    with pytest.raises(ValueError, match=r"a.parquet cannot be read in its row groups 0 to 1"):
        list(corpus.read(0))
    packed = write_gzip(tmp_path)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a.jsonl.gz cannot be read behind its row"):
        open_corpus(packed)


def test_refusals_say_what_is_wrong(tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("a.jsonl", "b.csv"):
        (folder / name).write_text("text\nx\n")
    (tmp_path / "twice.csv").write_text("text,text\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "other.csv").write_text("body,id\nx,1\n")
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "a.parquet").write_text("no parquet")
    (tmp_path / "none").mkdir()
    for source, words in {
        tmp_path / "nowhere": "does not exist: give a file, a folder, a pattern",
        tmp_path / "*.arrow": "nothing matches",
        folder: "1 of .jsonl, 1 of .csv",
        tmp_path / "twice.csv": "column 'text' stands twice: rename one",
        tmp_path / "empty.csv": "has no header",
        tmp_path / "other.csv": "none of the columns 'body', 'id' is 'text'",
        tmp_path / "a.json": "write one object a line",
        tmp_path / "a.parquet": "is no Parquet file that can be read",
        tmp_path / "none": "holds no files",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=words.replace("*", ".")):
            open_corpus(source)
    for source in (5, {"a": 1}, b"x", {"x"}, Sample("a", "b", "c")):
        with pytest.raises(TypeError, match="the corpus is of type"):
            open_corpus(source)
    with pytest.raises(ValueError, match="column of text 'bdy' is unknown: did you mean 'body'"):
        open_corpus(tmp_path / "other.csv", columns={"text": "bdy"})
    with pytest.raises(ValueError, match="shard 2 of 2 does not exist"):
        list(open_corpus(["a"]).blocks((2, 2)))
