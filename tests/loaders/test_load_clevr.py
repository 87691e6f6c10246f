"""CLEVR: masks by colour, scenes that colour cannot tell apart, the authors' format, refusals."""

import json

import numpy as np
import pytest
from load_cases import PLACES, clevr, disc, scene, write_csv, write_picture

from sa_plugin.loaders import foreground, load, regions_of

SCENES = [
    [("red", "cube"), ("blue", "sphere")],
    [("green", "cylinder")],
    [("red", "sphere"), ("green", "cube"), ("blue", "cylinder")],
    [("green", "sphere"), ("red", "cylinder")],
] * 5


@pytest.fixture
def root(tmp_path):
    clevr(tmp_path, SCENES)
    return tmp_path


def test_masks_are_the_painted_discs(root):
    data = load("clevr", root)
    assert data.concepts == ("blue", "green", "red", "cube", "cylinder", "sphere")
    assert len(data.samples) == 20
    for sample in data.samples:
        k = int(sample.id[-6:])
        pixels, masks = scene([colour for colour, _ in SCENES[k]], mark=k)
        np.testing.assert_array_equal(sample.image.pixels, pixels)
        for (colour, shape), mask in zip(SCENES[k], masks, strict=True):
            np.testing.assert_array_equal(sample.image.masks[colour], mask)
            np.testing.assert_array_equal(sample.image.masks[shape], mask)


def test_two_objects_of_one_shape_share_a_mask(tmp_path):
    clevr(tmp_path, [[("red", "cube"), ("blue", "cube")]] * 3 + SCENES[:9])
    (first, *_) = load("clevr", tmp_path).samples
    np.testing.assert_array_equal(first.image.masks["cube"], disc(PLACES[0]) | disc(PLACES[1]))


def test_scenes_that_colour_cannot_tell_apart_are_counted(tmp_path):
    grey = [("gray", "cube"), ("red", "sphere")]
    clevr(tmp_path, [*SCENES, grey, grey])
    data = load("clevr", tmp_path)
    assert data.skipped == {"scenes with a grey object": 2}
    assert "skipped: 2 scenes with a grey object" in repr(data)
    clevr(tmp_path, SCENES, part="train", places=((12, 14), (22, 14), (40, 40)))
    touching = load("clevr", tmp_path, parts=["val", "train"])
    assert touching.skipped == {
        "scenes with a grey object": 2,
        "scenes whose objects colour does not tell apart": 15,
    }


def test_the_difference_is_over_twenty():
    pixels = np.array([[[100, 120, 100], [100, 121, 100], [0, 10, 21]]], dtype=np.uint8)
    assert foreground(pixels).tolist() == [[False, True, True]]


def test_regions_need_one_each():
    coloured = disc((12, 14)) | disc((40, 16))
    found = regions_of(coloured, np.array([[12, 14], [40, 16]]))
    np.testing.assert_array_equal(found[1], disc((40, 16)))
    assert regions_of(coloured, np.array([[12, 14], [12, 18]])) is None
    assert regions_of(coloured, np.array([[12, 14], [2, 50]])) is None


def test_published_parts_draw_calibration_from_train(root):
    clevr(root, SCENES, part="train")
    data = load("clevr", root, split="published", parts=["train", "val"])
    assert {s.id.split("_")[1] for s in data.test.samples} == {"val"}
    assert {s.id.split("_")[1] for s in (*data.train.samples, *data.cal.samples)} == {"train"}
    assert len(data.cal) == 5
    with pytest.raises(ValueError, match="no published train part in what was read: use split="):
        load("clevr", root, split="published")


def test_limit_and_concepts(root):
    data = load("clevr", root, limit=12, seed=3, concepts=["red", "large"])
    assert data.concepts == ("red", "large")
    assert data.skipped == {"scenes beyond limit=12": 8}
    assert all(set(s.image.masks) <= {"red", "large"} for s in data.samples)
    other = load("clevr", root, limit=12, seed=4, concepts=["red", "large"])
    assert {s.id for s in data.samples} != {s.id for s in other.samples}
    with pytest.raises(ValueError, match="concept 'rde' is unknown: did you mean 'red'"):
        load("clevr", root, concepts=["rde"])
    with pytest.raises(ValueError, match="limit 0 must be 1 or more"):
        load("clevr", root, limit=0)
    with pytest.raises(ValueError, match=r"concepts is the string 'red': give a list"):
        load("clevr", root, concepts="red")


def test_refusals_name_the_file(root):
    path = root / "scenes" / "CLEVR_val_scenes.json"
    found = json.loads(path.read_text())
    del found["scenes"][3]["objects"][1]["pixel_coords"]
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"val_scenes.json scenes\[3\]: key 'pixel_coords' is mis"):
        load("clevr", root)
    path.write_text('{"info": {},\n "scenes": [}')
    with pytest.raises(ValueError, match=r"val_scenes.json line 2: no JSON"):
        load("clevr", root)
    path.write_text('{"info": {}}')
    with pytest.raises(ValueError, match=r"key 'scenes' is missing: expected an object with"):
        load("clevr", root)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"does not exist: unpack CLEVR_v1.0.zip"):
        load("clevr", root)
    with pytest.raises(ValueError, match="part 'test' is not one of"):
        load("clevr", root, parts=["test"])


def test_a_missing_and_a_broken_picture(root):
    picture = root / "images" / "val" / "CLEVR_val_000002.png"
    picture.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"CLEVR_val_000002.png: no picture that Pillow can read"):
        load("clevr", root)
    picture.unlink()
    with pytest.raises(FileNotFoundError, match=r"CLEVR_val_000002.png does not exist: unpack"):
        load("clevr", root)


def authors(root, n=12):
    """The authors' format: scenes of one object, `color::` and `shape::` columns."""
    header = ["image_path", "class", "color::red", "color::blue", "shape::cube", "split"]
    rows = []
    for k in range(n):
        colour = ("red", "blue", "green")[k % 3]
        write_picture(root / f"images/{k}.png", scene([colour], mark=k)[0])
        flags = [int(colour == "red"), int(colour == "blue"), k % 2]
        rows.append([f"images/{k}.png", f"{colour} cube", *flags, ("train", "cal", "test")[k // 4]])
    return write_csv(root / "metadata.csv", [header, *rows])


def test_the_authors_format(tmp_path):
    authors(tmp_path)
    data = load("clevr", tmp_path, split="published")
    assert data.concepts == ("blue", "red", "cube")
    assert data.split_of == ("train",) * 4 + ("cal",) * 4 + ("test",) * 4
    red = data.samples[0]
    assert red.positive == {"red"}
    np.testing.assert_array_equal(red.image.masks["red"], disc(PLACES[0]))
    green = data.samples[2]
    assert green.positive == frozenset()
    assert not green.image.masks


def test_the_authors_format_refuses(tmp_path):
    path = authors(tmp_path)
    text = path.read_text()
    path.write_text(text.replace("images/3.png,red cube,1,0,1", "images/3.png,red cube,2,0,1"))
    with pytest.raises(ValueError, match=r"metadata.csv line 5: 'color::red' is '2': expected 0"):
        load("clevr", tmp_path)
    path.write_text(text.replace("images/3.png,red cube,1,0,1", "images/3.png,two cubes,1,1,1"))
    with pytest.raises(ValueError, match=r"line 5: 'color::red' and 'color::blue' are 1, and"):
        load("clevr", tmp_path, concepts=["cube"])
    path.write_text(text.replace(",cal", ",dev"))
    with pytest.raises(ValueError, match=r"metadata.csv line 6: split 'dev' is not one of"):
        load("clevr", tmp_path)
