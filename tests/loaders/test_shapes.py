"""Laws of the shape scenes: exact masks, and no concept given away by anything but its object."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sa_plugin.loaders import (
    LUMA,
    SHAPE_COLOURS,
    SHAPE_CONCEPTS,
    SHAPE_KINDS,
    SHAPE_MATERIALS,
    SHAPE_SIZES,
    draw_shapes,
    masks_by_concept,
    place_squares,
    render_shapes,
    shapes,
)

SCENES = 40
EACH = (SHAPE_COLOURS, SHAPE_KINDS, SHAPE_SIZES, SHAPE_MATERIALS)


def drawn(n, *, overlap=False):
    objects = (4, 4) if overlap else (1, 4)
    return [draw_shapes(np.random.default_rng([0, k]), objects, overlap) for k in range(n)]


@pytest.fixture(scope="module")
def many():
    return drawn(3000)


@pytest.fixture(scope="module")
def data():
    return shapes(150, size=64)


@pytest.mark.parametrize("overlap", [False, True])
def test_an_object_is_painted_in_its_mask_as_if_it_were_alone(overlap):
    for scene in drawn(SCENES, overlap=overlap):
        pixels, owner = render_shapes(scene, 64)
        for number, thing in enumerate(scene.things, start=1):
            alone, only = render_shapes(replace(scene, things=(thing,)), 64)
            visible = owner == number
            assert visible.any()
            assert not (visible & (only == 0)).any()
            assert np.array_equal(pixels[visible], alone[visible])


@pytest.mark.parametrize("overlap", [False, True])
def test_without_an_object_only_its_mask_and_shadow_change(overlap):
    for scene in drawn(SCENES, overlap=overlap):
        pixels, owner = render_shapes(scene, 64)
        for number in range(1, len(scene.things) + 1):
            rest = scene.things[: number - 1] + scene.things[number:]
            without, other = render_shapes(replace(scene, things=rest), 64)
            changed = (pixels != without).any(-1)
            gained = pixels.astype(int).sum(-1) > without.astype(int).sum(-1)
            floor = (owner == 0) & (other == 0)
            assert not (changed & (owner != number) & ~floor).any(), "another object changed"
            assert not (gained & floor).any(), "a shadow made the floor lighter"


def test_a_mask_pixel_differs_from_the_empty_floor():
    seen = differing = 0
    for scene in drawn(SCENES):
        pixels, owner = render_shapes(scene, 64)
        empty, _ = render_shapes(replace(scene, things=()), 64)
        seen += (owner > 0).sum()
        differing += ((owner > 0) & (pixels != empty).any(-1)).sum()
    assert differing / seen > 0.99


def test_objects_of_a_scene_are_disjoint_unless_they_may_overlap():
    hidden = {False: 0, True: 0}
    for overlap in hidden:
        for scene in drawn(SCENES, overlap=overlap):
            single = [render_shapes(replace(scene, things=(thing,)), 64)[1] for thing in scene.things]
            alone = sum((owner > 0).sum() for owner in single)
            hidden[overlap] += alone - (render_shapes(scene, 64)[1] > 0).sum()
    assert hidden[False] == 0
    assert hidden[True] > 100


def test_masks_and_labels_say_what_was_drawn(data):
    for k, sample in enumerate(data.samples):
        scene = draw_shapes(np.random.default_rng([0, k]))
        pixels, owner = render_shapes(scene, 64)
        assert np.array_equal(sample.image.pixels, pixels)
        assert sample.positive == {c for thing in scene.things for c in thing.concepts}
        assert {c for c, mask in sample.image.masks.items() if mask.any()} == sample.positive
        for concept, mask in sample.image.masks.items():
            expected = np.zeros_like(mask)
            for number, thing in enumerate(scene.things, start=1):
                if concept in thing.concepts:
                    expected |= owner == number
            assert np.array_equal(mask, expected)


def test_each_attribute_divides_the_objects(data):
    for sample in data.samples:
        masks = sample.image.masks
        covered = [sum(masks[c].astype(int) for c in names if c in masks) for names in EACH]
        for union in covered:
            assert union.max() == 1, "two values of one attribute on one pixel"
            assert np.array_equal(union, covered[0])


def test_data_have_every_concept_in_every_split_and_a_scene_a_document(data):
    assert data.concepts == SHAPE_CONCEPTS
    assert len({s.document for s in data.samples}) == len(data.samples)
    for split in (data.train, data.cal, data.test):
        assert split.sample_labels.any(0).all()
        assert not split.sample_labels.all(0).any()


def test_scene_k_depends_on_seed_and_k_alone():
    few, more, other = shapes(60, size=64), shapes(80, size=64), shapes(60, size=64, seed=1)
    assert few.hash == shapes(60, size=64).hash
    for a, b, c in zip(few.samples, more.samples, other.samples, strict=False):
        assert a.image.digest == b.image.digest
        assert a.image.digest != c.image.digest


def test_the_same_scene_at_every_size():
    for scene in drawn(SCENES):
        shares = [np.bincount(render_shapes(scene, s)[1].ravel(), minlength=5) / s**2 for s in (96, 192)]
        assert np.abs(shares[0] - shares[1]).max() < 0.004


def test_places_are_spread_evenly_and_tell_nothing(many):
    things = [thing for scene in many for thing in scene.things]
    at = np.array([thing.centre for thing in things])
    reach = SHAPE_SIZES["large"][1]
    single = np.array([s.things[0].centre for s in many if len(s.things) == 1])
    counts = np.histogramdd(single, bins=3, range=[(reach, 1 - reach)] * 2)[0]
    expected = len(single) / 9
    assert ((counts - expected) ** 2 / expected).sum() < 26.1, "chi-square, 8 df, p = .001"
    for concept in SHAPE_CONCEPTS:
        has = np.array([concept in thing.concepts for thing in things])
        for axis in range(2):
            assert abs(roc_auc_score(has, at[:, axis]) - 0.5) < 0.035, concept


def test_attributes_tell_nothing_of_each_other_or_of_the_number_of_objects(many):
    rows = [(thing.concepts, len(scene.things)) for scene in many for thing in scene.things]
    number = np.array([count for _, count in rows])
    for i, names in enumerate(EACH):
        for a in names:
            has = np.array([concepts[i] == a for concepts, _ in rows])
            assert abs(has.mean() - 1 / len(names)) < 0.02
            assert abs(roc_auc_score(has, number) - 0.5) < 0.03
            for j, others in enumerate(EACH[:i]):
                for b in others:
                    also = np.array([concepts[j] == b for concepts, _ in rows])
                    assert abs(np.corrcoef(has, also)[0, 1]) < 0.05


def test_brightness_alone_does_not_give_the_colour():
    luma, colour = [], []
    for scene in drawn(400):
        pixels, owner = render_shapes(scene, 64)
        for number, thing in enumerate(scene.things, start=1):
            luma.append((pixels[owner == number] @ LUMA).mean())
            colour.append(thing.colour)
    for name in SHAPE_COLOURS:
        score = roc_auc_score([c == name for c in colour], luma)
        assert 0.25 < score < 0.8, (name, score)


def test_light_and_floor_vary(data):
    corners = np.array([s.image.pixels[:6, :6].mean((0, 1)) for s in data.samples])
    assert corners.mean(1).std() > 15
    assert (corners - corners.mean(1, keepdims=True)).std() > 3


def test_places_are_disjoint_squares_inside_the_picture():
    rng = np.random.default_rng(0)
    for _ in range(200):
        half = rng.uniform(0.05, 0.19, int(rng.integers(1, 5)))
        centres = place_squares(rng, half)
        assert (centres >= half[:, None]).all()
        assert (centres <= 1 - half[:, None]).all()
        for i in range(len(half)):
            for j in range(i):
                assert np.abs(centres[i] - centres[j]).max() >= half[i] + half[j]


def test_a_hidden_object_has_no_mask():
    owner = np.zeros((4, 4), np.uint8)
    owner[0] = 2
    masks = masks_by_concept(owner, [["red"], ["blue", "cube"]])
    assert sorted(masks) == ["blue", "cube"]
    assert masks["blue"] is masks["cube"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"n": 0}, "n is 0, not a whole number from 1"),
        ({"n": 3, "size": 16}, "size 16 is under 32 pixels"),
        ({"n": 3, "objects": (2, 9)}, r"objects \(2, 9\) must be .* between 1 and 4"),
        ({"n": 3, "objects": (3, 2)}, r"objects \(3, 2\) must be"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(ValueError, match=text):
        shapes(**arguments)
