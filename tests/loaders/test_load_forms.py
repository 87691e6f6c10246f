"""Datasets in any format, pictures as people see them, void classes, COCO files as tools write them."""

import json
import sys

import numpy as np
import pytest
from load_cases import write_json, write_picture
from PIL import Image

from sa_plugin.data import ConceptData, FramesWarning, as_split
from sa_plugin.loaders import load


class Rows(list):
    """The least that a dataset has."""

    def __init__(self, rows, names=True):
        super().__init__(rows)
        self.column_names = list(self[0]) if names else None


WORDS = [{"tokens": ["Ann", f"met{k}", "Bob"], "tags": [1, 0, 1], "home": k // 2} for k in range(12)]
COLUMNS = {"tokens": "tokens", "tags": "tags", "document": "home"}
NAMES = {"tags": ["O", "B-PER"]}


def as_numpy(row):
    return {k: np.array(v) if isinstance(v, list) else np.int64(v) for k, v in row.items()}


def as_torch(row):
    import torch

    numbers = {k: torch.tensor(v) for k, v in row.items() if k != "tokens"}
    return {"tokens": row["tokens"], **numbers}


@pytest.mark.parametrize("form", [dict, as_numpy, as_torch])
@pytest.mark.parametrize("streamed", [False, True])
def test_rows_of_any_format_are_the_same_data(form, streamed):
    found = load(Rows([form(row) for row in WORDS], names=not streamed), columns=COLUMNS, names=NAMES)
    assert found.hash == load(Rows(WORDS), columns=COLUMNS, names=NAMES).hash
    assert found.concepts == ("PER",)


@pytest.mark.parametrize("form", [None, "numpy", "torch", "pandas", "arrow"])
def test_a_dataset_of_any_format_is_the_same(form):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.ClassLabel(names=NAMES["tags"])
    features = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "tags": datasets.Sequence(kinds),
            "home": datasets.Value("int64"),
        }
    )
    made = datasets.Dataset.from_list(WORDS, features=features)
    plain = load(Rows(WORDS), columns=COLUMNS, names=NAMES)
    assert load(made.with_format(form), columns=COLUMNS).hash == plain.hash
    if form in (None, "numpy", "torch"):
        assert load(made.to_iterable_dataset().with_format(form), columns=COLUMNS).hash == plain.hash
    stream = datasets.IterableDataset.from_generator(lambda: iter(WORDS))
    assert load(stream, columns=COLUMNS, names=NAMES).hash == plain.hash


@pytest.mark.parametrize("streamed", [False, True])
def test_a_column_that_is_not_there_is_answered_with_the_nearest(streamed):
    with pytest.raises(ValueError, match=r"column of tags 'tag' is unknown: did you mean 'tags'"):
        load(Rows(WORDS, names=not streamed), columns={"tokens": "tokens", "tags": "tag"}, names=NAMES)


def test_a_stream_is_read_once():
    class Stream:
        column_names = None
        times = 0

        def __iter__(self):
            self.times += 1
            return iter(WORDS)

    stream = Stream()
    load(stream, columns=COLUMNS, names=NAMES)
    assert stream.times == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": "Ann met Bob"}, r"row 3: tokens is the text 'Ann met Bob', not a list"),
        ({"tokens": None}, r"row 3: tokens is None"),
        ({"tokens": ["Ann", None, "Bob"]}, r"row 3: tokens\[1\] is None, where a text belongs"),
        ({"tags": "OOB"}, r"row 3: tags is the text 'OOB', not a list: give one tag a word"),
        ({"tags": [0.5, 0, 0]}, r"row 3: class 0.5 is no whole number"),
        ({"tags": [True, 0, 0]}, r"row 3: class True \(bool\) is no name and no number"),
        ({"tags": [7, 0, 0]}, r"row 3: class 7 is not below 2, the number of names"),
        ({"home": None}, r"row 3: document is None, not a name"),
        ({"home": float("nan")}, r"row 3: document is nan"),
    ],
)
def test_values_of_no_use_are_named_with_their_row(row, message):
    rows = [{**one, **(row if k == 3 else {})} for k, one in enumerate(WORDS)]
    with pytest.raises(ValueError, match=message):
        load(Rows(rows), columns=COLUMNS, names=NAMES)


# What an annotator sees: a bright corner, upper left.
SHOWN = np.zeros((24, 32, 3), np.uint8)
SHOWN[:6, :8] = 255
BRIGHT = SHOWN[..., 0] > 0
# How the sensor stored it, by EXIF orientation.
STORED = {
    1: SHOWN,
    2: SHOWN[:, ::-1],
    3: SHOWN[::-1, ::-1],
    4: SHOWN[::-1],
    5: SHOWN.transpose(1, 0, 2),
    6: np.rot90(SHOWN, 1),
    7: SHOWN[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(SHOWN, -1),
}


def photo(path, orientation):
    picture = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    exif = picture.getexif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_read_as_people_see_them(tmp_path, orientation):
    path = photo(tmp_path / "a.png", orientation)
    rows = Rows({"i": Image.open(path), "m": {"light": BRIGHT}} for _ in range(10))
    data = load(rows, columns={"image": "i", "mask": "m"})
    np.testing.assert_array_equal(data.samples[0].image.pixels, SHOWN)
    instances = {
        "images": [{"id": k, "file_name": f"{k}.png", "height": 24, "width": 32} for k in range(8)],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]}
            for k in range(8)
        ],
        "categories": [{"id": 1, "name": "light"}],
    }
    write_json(tmp_path / "annotations" / "instances_val2017.json", instances)
    for k in range(8):
        photo(tmp_path / "val2017" / f"{k}.png", orientation)
    pytest.importorskip("pycocotools.mask")
    sample = load("coco", tmp_path, concepts="all").samples[0]
    mask = sample.image.masks["light"]
    assert sample.image.pixels[mask].min() == 255
    assert mask.sum() == BRIGHT.sum()


def planes(*values):
    plane = np.zeros((16, 16), np.uint8)
    plane[4:12, 4:12] = values[0]
    if len(values) > 1:
        plane[3, 3:13] = values[1]
    return plane


def masked(plane, names):
    rows = Rows({"i": np.full((16, 16, 3), k, np.uint8), "m": plane} for k in range(10))
    return load(rows, columns={"image": "i", "mask": "m"}, names={"mask": names})


@pytest.mark.parametrize("of", [np.asarray, Image.fromarray, lambda p: Image.fromarray(p).convert("P")])
def test_void_is_ignored_when_it_is_named_and_0_255_masks_are_read(of):
    plain = masked(planes(1), ["", "tool"])
    assert plain.concepts == ("tool",)
    assert all(sample.image.void is None for sample in plain)
    ignored = masked(of(planes(1, 255)), {0: "", 1: "tool", 255: ""})
    for sample, without in zip(ignored, plain, strict=True):
        np.testing.assert_array_equal(sample.image.masks["tool"], without.image.masks["tool"])
        np.testing.assert_array_equal(sample.image.void, planes(1, 255) == 255)
    assert ignored.hash != plain.hash
    assert masked(of(planes(1, 255)), {0: None, 1: "tool", 255: None}).hash == ignored.hash
    assert masked(of(planes(1)), {0: "", 1: "tool", 255: ""}).hash == plain.hash
    rim = masked(of(planes(1, 255)), {0: "", 1: "tool", 255: "rim"}).samples[0].image
    assert rim.void is None
    assert set(rim.masks) == {"tool", "rim"}
    drawn = masked(planes(255), ["tool", ""])
    assert all(sample.image.void is None for sample in drawn)
    assert masked(planes(255), ["", "tool"]).hash == plain.hash
    assert masked(Image.fromarray(planes(255) > 0), ["", "tool"]).hash == plain.hash
    with pytest.raises(ValueError, match=r"row 0: class 255 is none of the 2 names.*void.*255: \"\""):
        masked(of(planes(1, 255)), ["", "tool"])
    with pytest.raises(ValueError, match="class 7 is not below 2"):
        masked(planes(7), ["", "tool"])
    with pytest.raises(ValueError, match=r"a mask is uint8 \[16, 16, 3\], expected class numbers"):
        masked(np.zeros((16, 16, 3), np.uint8), ["", "tool"])


FLAT, POINTS = {"annotations without an area": 1}, {"polygons of fewer than three points": 1}
SQUARE = [4, 4, 12, 4, 12, 12, 4, 12]


def annotated(root, category, extra=(), n=8):
    """A COCO file of an annotation tool, with one instance on every second picture."""
    images = [{"id": k, "file_name": f"{k}.png", "height": 24, "width": 32} for k in range(n)]
    found = [
        {"id": k, "image_id": k, "category_id": 1, "segmentation": [SQUARE], "iscrowd": 0}
        for k in range(1, n, 2)
    ]
    found += [{"id": 90 + k, "image_id": 1, "category_id": 1, **one} for k, one in enumerate(extra)]
    content = {"images": images, "annotations": found, "categories": [{"id": 1, "name": "cat", **category}]}
    write_json(root / "annotations" / "instances_val2017.json", content)
    for k in range(n):
        write_picture(root / "val2017" / f"{k}.png", np.full((24, 32, 3), k))
    return root


@pytest.mark.parametrize(
    ("category", "concepts"),
    [
        ({}, ("cat",)),
        ({"supercategory": ""}, ("cat",)),
        ({"supercategory": None}, ("cat",)),
        ({"supercategory": "none"}, ("cat",)),
        ({"supercategory": "cat"}, ("cat",)),
        ({"supercategory": "animal"}, ("animal", "cat")),
    ],
)
def test_supercategories_are_optional(tmp_path, category, concepts):
    pytest.importorskip("pycocotools.mask")
    assert load("coco", annotated(tmp_path, category), concepts="all").concepts == concepts


@pytest.mark.parametrize(
    ("extra", "skipped"),
    [
        ({"segmentation": []}, FLAT),
        ({"segmentation": [[]]}, FLAT | POINTS),
        ({"segmentation": [[1, 2]]}, FLAT | POINTS),
        ({"segmentation": [[26, 3, 30, 3]]}, FLAT | POINTS),
        ({"segmentation": [[26, 3, 30, 3], SQUARE]}, POINTS),
        ({"segmentation": [[3, 3, 3, 3, 3, 3]]}, FLAT | POINTS),
        ({"segmentation": None}, {"annotations without a segmentation": 1}),
        ({}, {"annotations without a segmentation": 1}),
        ({"segmentation": {"counts": [10, 5, 24 * 32 - 15], "size": [24, 32]}}, {}),
    ],
)
def test_regions_without_an_area_are_skipped_and_counted(tmp_path, extra, skipped):
    pytest.importorskip("pycocotools.mask")
    data = load("coco", annotated(tmp_path, {}, [extra]), concepts="all")
    assert dict(data.skipped) == skipped
    assert len(data) == 8


BOX = "annotations with a box alone, patches unknown"


@pytest.mark.parametrize(
    ("extra", "skipped"),
    [
        ({"segmentation": [], "bbox": [1, 1, 9, 9]}, {BOX: 1}),
        ({"bbox": [1, 1, 9, 9], "area": 81.0}, {BOX: 1}),
        ({"segmentation": [[26, 3, 30, 3]], "bbox": [26, 3, 4, 2]}, {BOX: 1}),
        (
            {"segmentation": [[40, 40, 50, 40, 50, 50]]},
            {"annotations that cover no pixel's centre, patches unknown": 1},
        ),
        ({"segmentation": [], "bbox": [1, 1, 9, 9], "area": 0}, FLAT),
        ({"segmentation": [], "bbox": [1, 1, 9, 0]}, FLAT),
    ],
)
def test_what_is_there_without_a_region_is_positive_with_unknown_patches(tmp_path, extra, skipped):
    pytest.importorskip("pycocotools.mask")
    root = annotated(tmp_path, {}, [extra | {"image_id": 0}])
    data = load("coco", root, concepts="all")
    assert dict(data.skipped) == skipped
    first = data[0]
    assert first.id == "val2017/0"
    there = skipped != FLAT
    assert first.positive == (frozenset({"cat"}) if there else frozenset())
    assert first.vague == first.positive
    # Beside a region of the same concept other patches are unknown, too.
    beside = load("coco", annotated(tmp_path, {}, [extra]), concepts="all")[1]
    assert beside.vague == (frozenset({"cat"}) if there else frozenset())
    assert beside.image.masks["cat"].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["images"][3].update(id=2), "the id 2 is of two images"),
        (lambda f: f["categories"].append({"id": 1, "name": "dog"}), "the id 1 is another category's too"),
        (
            lambda f: f["annotations"][0].update(segmentation=[[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]),
            "in shares of the sides, not in pixels",
        ),
        (lambda f: f.update(images={}), "'images' is .*not a list"),
        (lambda f: f["categories"][0].update(name=""), r"categories\[0\] name is '', a blank name"),
        (lambda f: f["categories"][0].update(name=None), r"categories\[0\] name is None"),
        (lambda f: f["categories"][0].update(id=[1]), r"categories\[0\]: the id \[1\]"),
        (lambda f: f["images"][0].update(id={}), r"images\[0\]: the id \{\}"),
        (lambda f: f["images"][0].update(height="24"), r"images\[0\] height is '24'"),
        (lambda f: f["images"][0].update(file_name=None), r"images\[0\] file_name is None"),
        (lambda f: f["annotations"][0].update(image_id=None), r"annotations\[0\]: the id None is no number"),
    ],
)
def test_entries_of_no_use_are_named(tmp_path, change, message):
    path = annotated(tmp_path, {}) / "annotations" / "instances_val2017.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises((TypeError, ValueError), match=message):
        load("coco", tmp_path, concepts="all")


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "a cat", "labels": [], "labels": [[0, 1, "x"]]}',
        '{"text": "a \\ud800", "labels": []}',
        '{"text": "a \\u0000 cat", "labels": []}',
        '{"text": "a cat", "labels": [""]}',
        '{"text": "a cat", "labels": [[2, ' + "9" * 5000 + ', "x"]]}',
        '{"text": "a cat", "labels": ' + "[" * sys.getrecursionlimit() * 100 + "}",
        '{"txet": "a cat", "labels": []}',
        "[1]",
        "null",
    ],
)
def test_lines_of_no_use_are_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a cat", "labels": [[2, 5, "x"]]}\n' + line)
    with pytest.raises(ValueError, match=r"a.jsonl line 2: "):
        load(path)


@pytest.mark.parametrize("path", ["a\0b.jsonl", "", " "])
def test_paths_that_name_nothing(path):
    with pytest.raises((ValueError, FileNotFoundError)):
        load(path)


def test_words_in_a_csv_hold_spaces_and_keep_their_own(tmp_path):
    lines = ["sample,word,label,space_after"]
    for k in range(12):
        lines += [f"{k},20 000,number,1", f"{k},don,,0", f"{k},'t{k},,1"]
    (tmp_path / "w.csv").write_text("\n".join(lines))
    data = load(tmp_path / "w.csv")
    assert data.samples[3].text == "20 000 don't3"
    assert [tuple(s) for s in data.samples[3].spans] == [(0, 6, "number")]


def test_a_picture_is_the_same_whatever_holds_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    held = (tmp_path / "a.png").read_bytes()
    path = str(tmp_path / "a.png")
    mask = np.eye(8, dtype=bool)
    for form in (
        pixels,
        Image.fromarray(pixels),
        path,
        {"bytes": held, "path": None},
        {"bytes": None, "path": path},
    ):
        rows = Rows([{"i": form, "l": ["a"] if k % 2 else [], "m": {"b": mask}} for k in range(6)])
        found = load(rows, columns={"image": "i", "label": "l", "mask": "m"})
        assert all((one.image.pixels == pixels).all() for one in found)


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path, mode):
    deep = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    picture = Image.fromarray(deep if mode == "I;16" else deep.astype(np.int32))
    assert picture.mode == mode
    found = as_split([picture], ("x",))[0].image.pixels
    assert np.abs(found[..., 0] - deep / 257).max() <= 0.5


def test_pictures_without_a_range_and_with_frames_say_so(tmp_path):
    with pytest.raises(ValueError, match="mode F holds 0 to 1: say what is white"):
        as_split([Image.fromarray(np.linspace(0, 1, 64).reshape(8, 8).astype(np.float32))], ("x",))
    frames = [Image.fromarray(np.full((8, 8, 3), k * 80, np.uint8)) for k in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(FramesWarning, match="holds 3 frames, number 0 is read"):
        as_split([tmp_path / "a.gif"], ("x",))
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"b\.png: no picture that Pillow can read"):
        as_split([tmp_path / "b.png"], ("x",))
    with pytest.raises(FileNotFoundError, match=r"c\.png does not exist: give the path"):
        as_split([tmp_path / "c.png"], ("x",))


def test_ids_that_tables_wrote_as_floats_are_whole(tmp_path):
    pytest.importorskip("pycocotools.mask")
    root = annotated(tmp_path, {})
    plain = load("coco", root, concepts="all").hash
    path = root / "annotations" / "instances_val2017.json"
    found = json.loads(path.read_text())
    for one in found["annotations"]:
        one.update(image_id=float(one["image_id"]), category_id=1.0)
    path.write_text(json.dumps(found))
    assert load("coco", root, concepts="all").hash == plain


def test_tables_and_rows_of_token_ids():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"text": ["a"], "label": ["b"]})
    with pytest.raises(TypeError, match=r"source is a table \(DataFrame\): give its columns"):
        load(table)
    ids = np.array([[3, 4], [5, 6]])
    assert [one.source.ids for one in as_split(ids, ("x",))] == [(3, 4), (5, 6)]
    with pytest.raises(TypeError, match="token ids are whole numbers"):
        as_split(np.array([3.0, 4.0]), ("x",))
    with pytest.raises(TypeError, match="of type Rows: give a list of texts"):
        as_split(Rows([{"text": "a"}]), ("x",))


def test_a_column_of_chats_is_read_as_from_texts_reads_it():
    chats = [
        [{"role": "user", "content": f"a cat {k}"}, {"role": "assistant", "content": "yes"}]
        for k in range(12)
    ]
    labels = ["animal" if k % 2 else None for k in range(12)]
    rows = Rows([{"messages": chat, "label": label} for chat, label in zip(chats, labels, strict=True)])
    for how in ({}, {"token_labels": "text"}):
        found = load(rows, columns={"text": "messages", "label": "label"}, **how)
        assert found.hash == ConceptData.from_texts(chats, labels, **how).hash
