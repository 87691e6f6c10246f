"""The one door to data: names, roots, paths, options, splits, and what was skipped."""

import numpy as np
import pytest

from sa_plugin.data import ConceptData, Sample
from sa_plugin.loaders import (
    LOADERS,
    PAPER_CONCEPTS,
    emoji_folder,
    emoji_scenes,
    load,
    published_split,
    shapes,
)


def test_the_papers_concepts_are_as_many_as_it_says():
    found = {name: len(concepts) for name, concepts in PAPER_CONCEPTS.items()}
    assert found == {
        "clevr": 6,
        "coco": 29,
        "opensurfaces": 26,
        "pascal": 83,
        "sarcasm": 1,
        "isarcasm": 1,
        "goemotions": 14,
    }
    assert sum(found.values()) == 160


def test_a_root_is_asked_for_or_refused(tmp_path):
    for name, loader in LOADERS.items():
        if loader.has_root and loader.default_root is None:
            with pytest.raises(FileNotFoundError, match="is no folder: give the folder of your"):
                load(name, tmp_path / "nowhere")
        if loader.has_root and loader.default_root is None and not loader.finds_root:
            with pytest.raises(ValueError, match=rf"data set '{name}' needs root=.*docs/datasets.md"):
                load(name)
        if not loader.has_root:
            with pytest.raises(ValueError, match=f"'{name}' is embedded or rendered: leave root"):
                load(name, tmp_path)


def test_unknown_options_and_splits(tmp_path):
    with pytest.raises(ValueError, match="option of shapes 'sizes' is unknown: did you mean 'size'"):
        load("shapes", sizes=64)
    (tmp_path / "metadata.csv").write_text("split\ntrain\n")
    with pytest.raises(ValueError, match="option of sarcasm 'default' is unknown"):
        load("sarcasm", tmp_path, default=("x",))
    with pytest.raises(ValueError, match="split 'published' is unknown"):
        load("shapes", split="published")


def test_rendered_scenes_by_name():
    assert load("shapes", n=24, size=48, seed=3).hash == shapes(24, size=48, seed=3).hash


def test_emoji_by_name():
    data = load("emoji", n=200, size=48, seed=2)
    assert data.hash == emoji_scenes(200, size=48, seed=2).hash
    assert data.hash == load("emoji", emoji_folder(), n=200, size=48, seed=2).hash


def test_skipped_is_shown_and_not_hashed():
    samples = [Sample(str(k), f"text {k}", str(k), (), frozenset("x")) for k in range(12)]
    plain = ConceptData.from_samples(samples)
    noted = ConceptData.from_samples(samples, skipped={"empty rows": 3, "long rows": 1})
    assert noted == plain
    assert noted.hash == plain.hash
    assert repr(noted) == repr(plain)[:-1] + "; skipped: 3 empty rows, 1 long rows)"
    assert noted.subset(6).skipped == {"empty rows": 3, "long rows": 1}


def test_calibration_is_a_quarter_of_the_train_documents():
    samples = [Sample(str(k), f"t{k}", f"d{k // 2}", (), frozenset("x")) for k in range(60)]
    parts = ["train"] * 40 + ["test"] * 20
    split = np.array(published_split(samples, parts, 5, "x"))
    assert (split[40:] == "test").all()
    assert (split[:40] == "cal").sum() == 10
    of = {}
    for sample, name in zip(samples, split, strict=True):
        assert of.setdefault(sample.document, name) == name
    assert published_split(samples, parts, 6, "x") != split.tolist()
    given = ["train"] * 30 + ["cal"] * 10 + ["test"] * 20
    assert published_split(samples, given, 5, "x") == given


def test_nothing_positive_is_refused_with_what_was_skipped(tmp_path):
    (tmp_path / "emotions.txt").write_text("joy\nneutral\n")
    for part in ("train", "dev", "test"):
        (tmp_path / f"{part}.tsv").write_text(f"a {part}\t1\t{part}\n")
    with pytest.raises(ValueError, match=r"nothing to learn from in 1 samples .*skipped: .*wan"):
        load("goemotions", tmp_path, parts=["train"])


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("browm", ValueError, "data set 'browm' is unknown: did you mean 'brown'.*; or a path: a .jso"),
        ("mine.jsnl", ValueError, "mine.jsnl: suffix '.jsnl' is unknown: did you mean '.jsonl'. Known: "),
        ("data.parquet", ValueError, "suffix '.parquet' is unknown.*a Hugging Face dataset is given as"),
        ("./nowhere/data", FileNotFoundError, "nowhere/data does not exist: give one of supersense, "),
        (7, TypeError, "source is a int, not a name, a path or rows with column_names: give one of"),
        ([{"text": "a"}], TypeError, "source is a list, not a name, a path or rows with column_names"),
        ({"train": []}, ValueError, r"a dataset needs columns=, role to column, such as"),
    ],
)
def test_what_is_no_source_is_refused(source, error, message):
    with pytest.raises(error, match=message):
        load(source)


def test_a_root_or_an_option_that_a_file_does_not_take(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("text,animal\n" + "".join(f"a cat {k},1\na car {k},0\n" for k in range(6)))
    assert load(path).hash == load(str(path), seed=0).hash
    with pytest.raises(ValueError, match=r"root is for data sets by name .*: leave it out"):
        load(path, tmp_path)
    with pytest.raises(ValueError, match=r"option of mine.csv 'limit' is unknown\. Known: columns, token_"):
        load(path, limit=3)
    with pytest.raises(ValueError, match=r"option of mine.csv 'column' is unknown: did you mean 'columns'"):
        load(path, column={"text": "text"})
    with pytest.raises(ValueError, match=r"option of a dataset 'column' is unknown: did you mean 'colum"):
        load({"train": []}, columns={"text": "text"}, column="x")


def test_own_splits_are_taken_divided_anew_or_asked_for(tmp_path):
    path, parts = tmp_path / "mine.csv", ("train", "cal", "test") * 4
    path.write_text("text,animal,split\n" + "".join(f"a {k},1,{part}\n" for k, part in enumerate(parts)))
    assert load(path).split_of == load(path, split="published").split_of == parts
    assert load(path, split="plain", seed=3).split_of != parts
    with pytest.raises(ValueError, match="split 'publish' is unknown: did you mean 'published'"):
        load(path, split="publish")
    path.write_text("text,animal\n" + "".join(f"a {k},1\n" for k in range(12)))
    with pytest.raises(ValueError, match=r"mine.csv says no split of its samples: give each its 'spli"):
        load(path, split="published")


def test_a_folder_that_cannot_be_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a folder is read by its metadata.csv, or by a name, "):
        load(tmp_path)
    (tmp_path / "metadata.csv").write_text("image_path,split,cat\na.png,train,1\n")
    with pytest.raises(FileNotFoundError, match=r"neither segmentations.pt nor instances_\*.json, so th"):
        load(tmp_path)
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is a saved Hugging Face dataset: give load the object, load\("):
        load(tmp_path)
