"""Laws of masks and patches: what a box covers, and that no transform can shift a label."""

import numpy as np
import pytest
import torch

from sa_plugin.data import ConceptData, Geometry, Image, PixelLabels, Sample, coverage
from sa_plugin.host import Processor


def resize(image, size, patch):
    scale = (size[0] / image[0], size[1] / image[1])
    return Geometry(scale, (0.0, 0.0), size, patch)


def slow_coverage(mask, box):
    """One box, pixel by pixel."""
    rows = [r for r in range(mask.shape[0]) if box[0] <= r + 0.5 < box[2]]
    columns = [c for c in range(mask.shape[1]) if box[1] <= c + 0.5 < box[3]]
    if not rows:
        rows = [r for r in [int(np.floor((box[0] + box[2]) / 2))] if 0 <= r < mask.shape[0]]
    if not columns:
        columns = [c for c in [int(np.floor((box[1] + box[3]) / 2))] if 0 <= c < mask.shape[1]]
    inside = [mask[r, c] for r in rows for c in columns]
    return np.mean(inside) if inside else 0.0


@pytest.mark.parametrize("seed", range(8))
def test_coverage_equals_a_loop_over_pixels(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(5, 40), rng.integers(5, 40))) < 0.3
    low = rng.uniform(-5, 35, (30, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.2, 12, (30, 2))], axis=1)
    np.testing.assert_allclose(coverage(mask, boxes), [slow_coverage(mask, box) for box in boxes], atol=1e-12)


@pytest.mark.parametrize("image", [(224, 224), (100, 180), (321, 77), (30, 20)])
def test_one_pixel_lands_in_the_patch_of_its_centre(image):
    geometry = resize(image, (56, 56), 14)
    boxes = geometry.boxes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        row, column = int(rng.integers(image[0])), int(rng.integers(image[1]))
        mask = np.zeros(image, dtype=bool)
        mask[row, column] = True
        at = [(row + 0.5) * geometry.scale[0] // 14, (column + 0.5) * geometry.scale[1] // 14]
        assert np.flatnonzero(coverage(mask, boxes)).tolist() == [int(at[0] * 4 + at[1])]


def test_a_crop_drops_what_it_cuts_off_and_a_letter_box_pads():
    crop = Geometry((1.0, 1.0), (-10.0, 0.0), (28, 28), 14)
    assert crop.boxes()[0].tolist() == [10.0, 0.0, 24.0, 14.0]
    assert Processor((28, 28), 14, mode="centre_crop", resized=(48, 28)).shown((48, 28)).all()
    mask = np.zeros((48, 28), dtype=bool)
    mask[:10] = True
    assert not coverage(mask, crop.boxes()).any()
    shown = Processor((28, 42), 14, mode="letter_box").shown((28, 20))
    assert shown.reshape(2, 3).tolist() == [[True, True, False]] * 2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("least", [0.0, 0.25, 0.6])
def test_void_leaves_unknown_what_it_could_turn(seed, least):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(8, 40, 2))
    concepts, masks = (
        ("a", "none", "b"),
        {c: rng.random(size) < share for c, share in (("b", 0.6), ("a", 0.2))},
    )
    void = rng.random(size) < 0.2
    void[: size[0] // 2] = False
    low = rng.uniform(-5, 35, (60, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.2, 12, (60, 2))], axis=1)
    image = Image(np.zeros((*size, 3), np.uint8), masks, least, void)
    sample = Sample("0", "", "0", image=image, positive=frozenset("ab"))
    labels = sample.token_labels(boxes, concepts)
    known = sample.token_known(boxes, labels, concepts)
    found = set()
    for row, box in enumerate(boxes):
        for column, concept in enumerate(concepts):
            mask = masks.get(concept, np.zeros(size, dtype=bool))
            without = slow_coverage(np.logical_and(mask, np.logical_not(void)), box) > least
            within = slow_coverage(np.logical_or(mask, void), box) > least
            expected = 1 if without else -1 if within else 0
            assert (1 if labels[row, column] else 0 if known[row, column] else -1) == expected
            assert known[row, column] or not labels[row, column]
            found.add(expected)
    assert found == {-1, 0, 1}
    # Said to be complete or not: nobody knows what void shows. Other concepts' columns are not asked for.
    complete = Sample("0", "", "0", image=image, positive=frozenset("ab"), unknown=frozenset())
    assert (complete.token_known(boxes, labels, concepts) == known).all()
    assert (sample.only(["b"]).token_known(boxes, labels[:, 2:], ["b"]) == known[:, 2:]).all()


def test_void_enters_the_hash_where_there_is_any():
    pixels, masks = images()
    none, some = np.zeros((28, 28), bool), np.eye(28, dtype=bool)
    plain = ConceptData.from_masks(pixels, masks)
    for void in (None, [None] * 20, [none] * 20, np.zeros((20, 28, 28), np.uint8)):
        assert ConceptData.from_masks(pixels, PixelLabels(masks, void=void)).hash == plain.hash
    data = ConceptData.from_masks(pixels, PixelLabels(masks, void=[some * 255] * 20))
    assert data.hash != plain.hash
    assert [s.positive for s in data] == [s.positive for s in plain]
    assert data.samples[0].image != plain.samples[0].image
    assert "28 void pixels" in repr(data.samples[0].image)
    assert "Samples with void pixels, whose patches may be in neither class: 20." in str(data)


@pytest.mark.parametrize(
    ("void", "message"),
    [
        (np.ones((28, 28)), "the void mask is float64, expected bool: .*mask > 0.5"),
        (np.ones((3, 3), bool), "the void mask is 3 x 3, the image 28 x 28"),
        ("void", "the void mask: void does not exist: give the path of a picture"),
    ],
)
def test_void_masks_of_another_type_are_refused(void, message):
    pixels, masks = images()
    with pytest.raises((ValueError, FileNotFoundError), match=f"sample '3': {message}"):
        ConceptData.from_masks(pixels, PixelLabels(masks, void=[None] * 3 + [void] + [None] * 16))
    with pytest.raises(ValueError, match="void has 19 entries for 20 samples"):
        ConceptData.from_masks(pixels, PixelLabels(masks, void=[None] * 19))


def test_minimum_coverage():
    mask = np.zeros((28, 28), dtype=bool)
    mask[:14, :14] = True
    mask[:14, 14:16] = True
    boxes = resize((28, 28), (28, 28), 14).boxes()
    for least, expected in ((0.0, [1, 1, 0, 0]), (0.2, [1, 0, 0, 0])):
        sample = Sample("0", "", "0", image=Image(np.zeros((28, 28, 3), np.uint8), {"a": mask}, least))
        assert sample.token_labels(boxes, ("a",)).ravel().tolist() == expected


def images(n=20, size=28):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(n)]
    masks = [{"a": rng.random((size, size)) < (0.5 if k % 2 else 0.0)} for k in range(n)]
    return pixels, masks


def test_masks_make_positives_and_enter_the_hash():
    pixels, masks = images()
    data = ConceptData.from_masks(pixels, masks)
    assert [s.positive == {"a"} for s in data.samples] == [bool(k % 2) for k in range(20)]
    changed = [dict(m) for m in masks]
    changed[1]["a"] = ~changed[1]["a"]
    assert ConceptData.from_masks(pixels, changed).hash != data.hash
    pixels[0] = pixels[0] ^ 1
    assert ConceptData.from_masks(pixels, masks).hash != data.hash


def test_boxes_are_masks_of_pixel_centres():
    pixels, masks = images()
    boxes = [[("b", 2.4, 3.0, 5.6, 9.0)]] * 20
    data = ConceptData.from_masks(pixels, PixelLabels(masks, boxes))
    mask = data.samples[0].image.masks["b"]
    assert np.argwhere(mask).min(0).tolist() == [2, 3]
    assert np.argwhere(mask).max(0).tolist() == [5, 8]


def test_bad_masks_are_refused():
    pixels, masks = images()
    small = [{"a": np.ones((3, 3), dtype=bool)}, *masks[1:]]
    with pytest.raises(ValueError, match="the mask of 'a' is 3 x 3, the image 28 x 28"):
        ConceptData.from_masks(pixels, small)
    with pytest.raises(ValueError, match=r"min_coverage 1.5 must lie in \[0, 1\)"):
        ConceptData.from_masks(pixels, PixelLabels(masks, min_coverage=1.5))
    with pytest.raises(ValueError, match="holds no pixel of an image"):
        ConceptData.from_masks(pixels, PixelLabels(masks, [[("a", 9.0, 9.0, 3.0, 3.0)]] * 20))
    with pytest.raises(ValueError, match="masks has 19 entries for 20 samples"):
        ConceptData.from_masks(pixels, masks[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x / 255, r"image is float64 \[28, 28, 3\], expected uint8 .*convert\('RGB'\)"),
        (lambda x: x[..., 0], r"image is uint8 \[28, 28\], expected uint8"),
        (lambda x: np.concatenate([x, x[..., :1]], 2), r"image is uint8 \[28, 28, 4\], expected"),
        (lambda x: x.transpose(2, 0, 1), r"image is uint8 \[3, 28, 28\], expected"),
        (lambda x: x[:0], r"image is uint8 \[0, 28, 3\], expected"),
        (torch.from_numpy, r"image is a torch.Tensor, not an image: give a path, a picture of Pillow"),
    ],
)
def test_images_of_another_type_or_shape_are_refused(change, message):
    pixels, masks = images()
    pixels[3] = change(pixels[3])
    with pytest.raises(ValueError, match=f"sample '3': its {message}"):
        ConceptData.from_masks(pixels, masks)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "its masks are a NoneType, not a mapping: give {concept: mask}"),
        (np.ones((28, 28), bool), "its masks are a ndarray, not a mapping"),
        ({"a": np.ones((28, 28))}, "the mask of 'a' is float64, expected bool: .*mask > 0.5"),
        ({"a": np.full((28, 28), 7, np.uint8)}, "the mask of 'a' is uint8 and holds 7, expected bool"),
        ({"a": np.ones((28, 28, 1), bool)}, "the mask of 'a' is 28 x 28 x 1, the image 28 x 28"),
        ({0: np.ones((28, 28), bool)}, "the key 0 of its masks is no string"),
    ],
)
def test_masks_of_another_type_are_refused(mask, message):
    pixels, masks = images()
    masks[3] = mask
    with pytest.raises(ValueError, match=f"sample '3': {message}"):
        ConceptData.from_masks(pixels, masks)


@pytest.mark.parametrize(
    "box", [(2, 3, 5, 9, "a"), ("a", 2, 3, 5), "a", ("a", 2, 3, 5, "9"), ("a", 2, 3, 5, np.nan), 1]
)
def test_malformed_boxes_are_refused(box):
    pixels, masks = images()
    with pytest.raises(ValueError, match=r"sample '0': the box .* is not \(concept, top, left"):
        ConceptData.from_masks(pixels, PixelLabels(masks, [[box]] * 20))


def test_a_box_partly_outside_is_cut_and_one_wholly_outside_refused():
    pixels, masks = images()
    data = ConceptData.from_masks(pixels, PixelLabels(masks, [[("b", -4, 20, 5, 40)]] * 20))
    assert data.samples[0].image.masks["b"].sum() == 5 * 8
    with pytest.raises(ValueError, match="holds no pixel of an image of 28 x 28"):
        ConceptData.from_masks(pixels, PixelLabels(masks, [[("b", 30, 30, 40, 40)]] * 20))
