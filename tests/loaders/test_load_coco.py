"""COCO 2017: masks of categories and supercategories, pycocotools behind one seam, refusals."""

import json
import sys

import numpy as np
import pytest
from load_cases import coco, disc, write_csv, write_picture

from sa_plugin.loaders import coco as module
from sa_plugin.loaders import load

ONE = disc((8, 9), 5, (30, 40))
TWO = disc((25, 14), 6, (30, 40))
PICTURES = [
    [("dog", ONE), ("cat", TWO)],
    [("person", ONE)],
    [],
    [("person", ONE), ("person", TWO), ("car", TWO)],
] * 4


def slow_decode(segmentation, height, width):
    """Unpacked run lengths, pixel by pixel."""
    flat, value = [], False
    for count in segmentation["counts"]:
        flat += [value] * count
        value = not value
    return np.array(flat, dtype=bool).reshape((height, width), order="F")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "decode_segmentation", slow_decode)
    coco(tmp_path, PICTURES)
    return tmp_path


def test_masks_are_unions_of_instances(root):
    data = load("coco", root)
    assert data.concepts == ("animal", "car", "person", "vehicle")
    assert data.skipped == {"concepts of the paper that the files lack": 25}
    first, second, third, fourth = data.samples[:4]
    np.testing.assert_array_equal(first.image.masks["animal"], ONE | TWO)
    np.testing.assert_array_equal(second.image.masks["person"], ONE)
    assert third.positive == frozenset()
    np.testing.assert_array_equal(fourth.image.masks["person"], ONE | TWO)
    np.testing.assert_array_equal(fourth.image.masks["vehicle"], TWO)
    assert first.document == first.id == "val2017/000000000500"


def test_concepts_asked_for(root):
    assert load("coco", root, concepts=["dog", "cat"]).concepts == ("dog", "cat")
    every = load("coco", root, concepts="all")
    assert every.concepts == ("animal", "car", "cat", "dog", "person", "vehicle")
    with pytest.raises(ValueError, match="concept 'dgo' is unknown: did you mean 'dog'"):
        load("coco", root, concepts=["dgo"])


def test_published_parts(root):
    coco(root, PICTURES, part="train2017")
    data = load("coco", root, split="published", parts=("train2017", "val2017"))
    assert {s.id.split("/")[0] for s in data.test.samples} == {"val2017"}
    assert (len(data.train), len(data.cal), len(data.test)) == (12, 4, 16)
    with pytest.raises(ValueError, match="part 'test2017' is not one of"):
        load("coco", root, parts=["test2017"])


def test_a_rare_concept_is_counted_with_a_limit(root):
    data = load("coco", root, limit=14, seed=1)
    assert data.skipped["pictures beyond limit=14"] == 2
    assert len(data.samples) == 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("categories"), r"instances_val2017.json: key 'categories' is missing"),
        (
            lambda f: f["annotations"][1].update(category_id=5),
            r"annotations\[1\] \(id 901\): category_id 5 is not in the file",
        ),
        (
            lambda f: f["annotations"][1].update(image_id=5),
            r"annotations\[1\] \(id 901\): image_id 5 is not in the file: is it cut off",
        ),
        (
            lambda f: f["annotations"][0].update(segmentation={"size": [30, 40]}),
            r"annotations\[0\] \(id 900\): its segmentation cannot be decoded .*expected polygons",
        ),
        (
            lambda f: f["images"][0].update(width=41),
            r"000000000500.jpg is 30 x 40, its annotations say 30 x 41: use the pictures as pub",
        ),
        (lambda f: f["images"][1].pop("height"), r"images\[1\]: key 'height' is missing"),
    ],
)
def test_refusals_name_file_and_entry(root, change, message):
    path = root / "annotations" / "instances_val2017.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=message):
        load("coco", root)


def test_files_that_are_not_there(root):
    (root / "val2017" / "000000000501.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"501.jpg does not exist: unpack annotations_tr"):
        load("coco", root)
    with pytest.raises(FileNotFoundError, match=r"instances_train2017.json does not exist"):
        load("coco", root, parts=["train2017"])


def test_without_pycocotools_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    coco(tmp_path, PICTURES)
    with pytest.raises(ImportError, match=r"pip install 'sa_plugin\[coco\]'"):
        load("coco", tmp_path)


def test_pycocotools_agrees_with_the_slow_decoder():
    coder = pytest.importorskip("pycocotools.mask")
    from load_cases import run_lengths

    for mask in (ONE, TWO, ONE | TWO, np.ones((30, 40), dtype=bool), ~ONE):
        unpacked = run_lengths(mask)
        np.testing.assert_array_equal(slow_decode(unpacked, 30, 40), mask)
        np.testing.assert_array_equal(module.decode_segmentation(unpacked, 30, 40), mask)
        packed = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
        np.testing.assert_array_equal(module.decode_segmentation(packed, 30, 40), mask)


def test_polygons_are_filled(tmp_path):
    pytest.importorskip("pycocotools.mask")
    square, other = [4, 5, 14, 5, 14, 15, 4, 15], [20, 5, 30, 5, 30, 15, 20, 15]
    coco(tmp_path, [[("dog", [square, other])], []] * 6)
    (first, *_) = load("coco", tmp_path).samples
    expected = np.zeros((30, 40), dtype=bool)
    expected[5:15, 4:14] = expected[5:15, 20:30] = True
    differs = first.image.masks["animal"] ^ expected
    assert differs.sum() <= 40, "the outline may go either way"


@pytest.mark.parametrize(
    "wrong", [[["x"]], [[1, 2, 3, 4, 5, 6, 7]], [None], {"counts": [1200], "size": [40, 30]}]
)
def test_malformed_segmentations_are_refused(tmp_path, wrong):
    pytest.importorskip("pycocotools.mask")
    coco(tmp_path, [[("dog", wrong)], []] * 6)
    with pytest.raises(ValueError, match=r"annotations\[0\] \(id 900\): .*cannot be decoded"):
        load("coco", tmp_path)


def test_the_authors_format(root):
    header = ["image_path", "split", "animal", "person", "car"]
    parts = ("train",) * 8 + ("cal",) * 4 + ("test",) * 4
    rows = [
        [f"val2017/{k + 500:012d}.jpg", parts[k], *[int(f) for f in flags]]
        for k, flags in enumerate([(1, 0, 0), (0, 1, 0), (0, 0, 0), (0, 1, 0)] * 4)
    ]
    (root / "instances_val2017.json").write_bytes(
        (root / "annotations" / "instances_val2017.json").read_bytes()
    )
    write_csv(root / "metadata.csv", [header, *rows])
    data = load("coco", root, split="published")
    assert data.split_of == parts
    assert data.concepts == ("animal", "person")
    assert data.skipped == {
        "masks of concepts that metadata.csv denies": 4,
        "concepts of the paper that the files lack": 26,
        "concepts without a sample (car)": 1,
    }
    np.testing.assert_array_equal(data.samples[3].image.masks["person"], ONE | TWO)
    write_picture(root / "val2017" / "other.jpg", np.zeros((30, 40, 3)))
    write_csv(root / "metadata.csv", [header, *rows, ["val2017/other.jpg", "train", 0, 0, 0]])
    with pytest.raises(ValueError, match=r"metadata.csv line 18: other.jpg is in none of"):
        load("coco", root)
