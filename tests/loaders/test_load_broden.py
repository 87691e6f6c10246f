"""Broden: R + 256 G, several planes, numbers for whole pictures, half-size planes, refusals."""

import numpy as np
import pytest
import torch
from load_cases import write_csv, write_picture

from sa_plugin.loaders import fit_mask, load

LABELS = [
    ["number", "name", "category", "frequency", "coverage", "syns"],
    [10, "red-c", "color(30)", 30, 1.5, ""],
    [12, "person", "object(900)", 900, 3.0, "individual;someone"],
    [21, "fabric", "material(36);part(3)", 39, 4.2, "cloth"],
    [300, "dog", "object(40)", 40, 2.0, ""],
    [301, "head", "part(50)", 50, 2.0, ""],
    [302, "wood", "material(70)", 70, 2.0, ""],
]
HEADER = ["image", "split", "ih", "iw", "sh", "sw", "color", "object", "part", "material", "scene", "texture"]


def plane(path, numbers):
    coded = np.stack([numbers % 256, numbers // 256, np.zeros_like(numbers)], axis=2)
    write_picture(path, coded)


def left(number, size=(8, 10)):
    found = np.zeros(size, dtype=int)
    found[:, : size[1] // 2] = number
    return found


def top(number, size=(8, 10)):
    found = np.zeros(size, dtype=int)
    found[: size[0] // 2] = number
    return found


@pytest.fixture
def root(tmp_path):
    rows = [HEADER]
    for k in range(12):
        part = "val" if k % 4 == 3 else "train"
        sources = {
            "pascal": ["", f"pascal/{k}_object.png", f"pascal/{k}_p0.png;pascal/{k}_p1.png", "", "", ""],
            "opensurfaces": ["", "", "", f"opensurfaces/{k}_material.png", "", ""],
            "dtd": ["", "", "", "", "", "314;194"],
        }
        for source, cells in sources.items():
            name = f"{source}/{k}.jpg"
            write_picture(tmp_path / "images" / name, np.full((16, 20, 3), k + 100))
            rows.append([name, part, 16, 20, 8, 10, *cells])
        images = tmp_path / "images"
        plane(images / f"pascal/{k}_object.png", left(300 if k % 2 else 12))
        plane(images / f"pascal/{k}_p0.png", left(301))
        plane(images / f"pascal/{k}_p1.png", top(301 if k % 3 else 21))
        plane(images / f"opensurfaces/{k}_material.png", left(21) + (left(21) == 0) * 302)
    write_csv(tmp_path / "index.csv", rows)
    write_csv(tmp_path / "label.csv", LABELS)
    return tmp_path


def doubled(mask):
    return np.repeat(np.repeat(mask > 0, 2, axis=0), 2, axis=1)


@pytest.mark.filterwarnings("ignore::sa_plugin.data.build.EmptySplitWarning")
def test_pascal_has_objects_and_parts(root):
    data = load("pascal", root)
    assert data.concepts == ("object::dog", "object::person", "part::fabric", "part::head")
    assert len(data.samples) == 12
    masks = data.samples[1].image.masks
    np.testing.assert_array_equal(masks["object::dog"], doubled(left(1)))
    np.testing.assert_array_equal(masks["part::head"], doubled(left(1)) | doubled(top(1)))
    np.testing.assert_array_equal(data.samples[0].image.masks["part::fabric"], doubled(top(1)))


def test_opensurfaces_has_materials(root):
    data = load("opensurfaces", root, split="published")
    assert data.concepts == ("material::fabric", "material::wood")
    assert [s.id for s in data.test.samples] == [f"opensurfaces/{k}.jpg" for k in (3, 7, 11)]
    np.testing.assert_array_equal(data.samples[5].image.masks["material::wood"], ~doubled(left(1)))


@pytest.mark.filterwarnings("ignore::sa_plugin.data.build.EmptySplitWarning")
def test_what_no_category_labels_is_void(root):
    """0 is unlabelled: neither the concept nor its absence."""
    pascal, materials = load("pascal", root), load("opensurfaces", root)
    np.testing.assert_array_equal(pascal.samples[1].image.void, ~doubled(left(1) | top(1)))
    assert all(sample.image.void is None for sample in materials)
    sample, boxes = pascal.samples[1], np.array([[8, 0, 16, 8], [0, 10, 8, 20], [8, 10, 16, 20]], dtype=float)
    labels = sample.token_labels(boxes, pascal.concepts)
    told = dict(
        zip(pascal.concepts, sample.token_known(boxes, labels, pascal.concepts).T.tolist(), strict=True)
    )
    # The last patch is unlabelled; in the others an object or a part denies the rest.
    assert all(known == [True, True, False] for known in told.values())


def edit(path, line, old, new):
    lines = path.read_text().splitlines()
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.filterwarnings("ignore::sa_plugin.data.build.EmptySplitWarning")
def test_a_number_holds_for_the_whole_picture_and_no_label_is_counted(root):
    edit(root / "index.csv", 3, "opensurfaces/0_material.png", "302")
    edit(root / "index.csv", 6, "opensurfaces/1_material.png", "")
    data = load("opensurfaces", root)
    assert data.samples[0].image.masks["material::wood"].all()
    assert data.skipped == {
        "pictures without material labels": 1,
        "concepts of the paper that the files lack": 24,
    }


def test_refusals_name_file_and_line(root):
    edit(root / "index.csv", 6, ",train,", ",dev,")
    with pytest.raises(ValueError, match=r"index.csv line 6: split 'dev' is not one of"):
        load("opensurfaces", root)
    edit(root / "index.csv", 6, ",dev,", ",train,")
    plane(root / "images/opensurfaces/1_material.png", left(300))
    with pytest.raises(ValueError, match=r"index.csv line 6: 'material' has label 300 in opensur"):
        load("opensurfaces", root)
    edit(root / "index.csv", 6, "1_material", "nowhere")
    with pytest.raises(ValueError, match=r"line 6: 'material' names .*nowhere.png, which does not"):
        load("opensurfaces", root)
    edit(root / "label.csv", 4, "21,", "x21,")
    with pytest.raises(ValueError, match=r"label.csv line 4: 'number' is 'x21': expected a whole"):
        load("opensurfaces", root)
    edit(root / "index.csv", 1, "material", "stuff")
    with pytest.raises(ValueError, match=r"index.csv line 1: column 'material' is missing"):
        load("opensurfaces", root)
    (root / "index.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"index.csv does not exist: unpack broden1_224"):
        load("pascal", root)


@pytest.mark.parametrize(("old", "new"), [((8, 10), (16, 20)), ((7, 5), (9, 13)), ((9, 9), (4, 6))])
def test_masks_are_read_at_pixel_centres(old, new):
    mask = np.random.default_rng(0).random(old) < 0.5
    found = fit_mask(mask, new)
    for i in range(new[0]):
        for j in range(new[1]):
            row, column = int((i + 0.5) * old[0] / new[0]), int((j + 0.5) * old[1] / new[1])
            assert found[i, j] == mask[row, column]


def authors(root, masks):
    header = ["image_path", "split", "material::fabric", "material::wood"]
    rows = [[f"images/{k}.png", ("train", "cal", "test")[k // 4], k % 2, 1] for k in range(12)]
    for k in range(12):
        write_picture(root / f"images/{k}.png", np.full((16, 20, 3), k))
    write_csv(root / "metadata.csv", [header, *rows])
    torch.save(masks, root / "segmentations.pt")


def test_the_authors_format(tmp_path):
    half = torch.as_tensor(left(1))
    authors(tmp_path, [{"material::fabric": half, "material::wood": half.bool()}] * 12)
    data = load("opensurfaces", tmp_path, split="published")
    np.testing.assert_array_equal(data.samples[1].image.masks["material::fabric"], doubled(left(1)))
    assert data.samples[0].positive == {"material::wood"}
    assert data.skipped == {
        "concepts of the paper that the files lack": 24,
        "masks of concepts that metadata.csv denies": 6,
    }


def test_a_folder_with_masks_needs_no_name(tmp_path):
    authors(tmp_path, [{"material::wood": torch.as_tensor(left(1))}] * 12)
    data = load(tmp_path, split="published")
    assert data.concepts == ("material::fabric", "material::wood")
    named = load("opensurfaces", tmp_path, split="published")
    assert data.hash == named.hash
    assert data.name == f"{tmp_path.name}/published"


def test_a_positive_row_without_a_mask_stays_positive(tmp_path):
    authors(tmp_path, [{"material::wood": torch.as_tensor(left(1))}] * 12)
    data = load("opensurfaces", tmp_path, split="published")
    assert "material::fabric" in data.samples[1].positive
    assert "material::fabric" not in data.samples[1].image.masks


class Code:
    """What a pickle could run on loading."""


def test_pickled_code_is_not_run(tmp_path):
    authors(tmp_path, [Code()] * 12)
    with pytest.raises(ValueError, match=r"segmentations.pt holds more than lists, dicts and tens"):
        load("opensurfaces", tmp_path)


WOOD = {"material::wood": torch.as_tensor(left(1))}


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([WOOD] * 11, r"segmentations.pt holds 11 entries, metadata.csv has 12 rows: give one"),
        ([WOOD] * 13, r"segmentations.pt holds 13 entries, metadata.csv has 12 rows"),
        ({"images/0.png": WOOD}, r"segmentations.pt holds no list, metadata.csv has 12 rows"),
        ([*[WOOD] * 3, None, *[WOOD] * 8], r"metadata.csv line 5: .*has no masks at position 3"),
        ([{"material::wood": torch.ones(1, 8, 10)}] * 12, r"line 2: the mask of .* \[1, 8, 10\]"),
        ([{"material::wood": torch.ones(20, 16)}] * 12, r"line 2: .* \[20, 16\], the pict"),
    ],
)
def test_masks_that_cannot_belong_to_their_rows_are_refused(tmp_path, masks, message):
    authors(tmp_path, masks)
    with pytest.raises(ValueError, match=message):
        load("opensurfaces", tmp_path)
    with pytest.raises(ValueError, match=message):
        # A draw of rows keeps each row's own place.
        load("opensurfaces", tmp_path, split="published", limit=12)
