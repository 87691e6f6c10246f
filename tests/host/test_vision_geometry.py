"""Laws of image processors: pixels equal those of transformers, and no label shifts.

One oracle of geometry knows nothing of it: a bright square is put into a black image, the processor
of transformers itself is run, and the patch that shines most is where the square went.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import transformers as hf

from sa_plugin.data import Image, Sample, coverage
from sa_plugin.host import Processor, read_processor

PATCH, SIDE = 14, 56
SQUARE = {"height": SIDE, "width": SIDE}
SIZES = [(56, 56), (112, 112), (100, 180), (181, 97), (60, 300), (57, 59), (333, 224), (30, 41)]


def llama(image):
    """Llama's processor with a single tile."""
    tile = hf.models.mllama.image_processing_pil_mllama.MllamaImageProcessorPil(
        size=SQUARE, max_image_tiles=1
    )
    return tile(images=image, return_tensors="np")["pixel_values"][0, 0, 0]


def caller(processor):
    return lambda image: processor(images=image, return_tensors="np")["pixel_values"][0]


def theirs():
    """Name to a processor of transformers, and ours that says the same."""
    crop = {"crop_size": SQUARE}
    dino = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    wide = {"height": 42, "width": 70}
    named = {
        "vit": hf.ViTImageProcessorPil(size=SQUARE),
        "vit wide": hf.ViTImageProcessorPil(size=wide),
        "deit": hf.DeiTImageProcessorPil(size={"height": 64, "width": 64}, **crop),
        "clip": hf.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, **crop),
        "dinov2": hf.BitImageProcessorPil(size={"shortest_edge": 64}, **crop, **dino),
        "odd crop": hf.CLIPImageProcessorPil(size={"shortest_edge": 61}, **crop),
        "small": hf.CLIPImageProcessorPil(size={"shortest_edge": 45}, **crop),
        "raw": hf.ViTImageProcessorPil(size=SQUARE, do_rescale=False, do_normalize=False),
    }
    found = {name: (caller(p), read_processor(p, PATCH)) for name, p in named.items()}
    half = (0.5, 0.5, 0.5)
    ours = Processor((SIDE, SIDE), PATCH, "letter_box", mean=half, std=half, resample=2)
    return found | {"llama": (llama, ours)}


PROCESSORS = theirs()


@pytest.fixture(params=PROCESSORS)
def pair(request):
    return PROCESSORS[request.param]


def random_image(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_pixel_values_are_those_of_transformers_to_the_bit(pair, size):
    their, ours = pair
    image = random_image(size)
    np.testing.assert_array_equal(ours.pixel_values(image).numpy(), their(image))


@pytest.mark.parametrize("size", SIZES)
def test_a_square_is_labelled_where_the_processor_puts_it(pair, size):
    their, ours = pair
    boxes, shown = ours.geometry(size).boxes(), ours.shown(size)
    black, white = (their(np.full((*size, 3), value, np.uint8)) + 0.0 for value in (0, 255))
    rng = np.random.default_rng(1)
    side = max(1, min(size) // 20)
    new, _ = placed(ours, size)
    whole = np.abs(white - black).max() * side**2 * np.prod(np.divide(new, size))
    seen = 0
    for _ in range(40):
        starts = rng.integers(0, np.array(size) - side)
        square = tuple(slice(start, start + side) for start in starts)
        image, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, dtype=bool)
        image[square], mask[square] = 255, True
        light = by_patch(np.abs(their(image) - black).mean(0), np.sum)
        labelled = np.flatnonzero(coverage(mask, boxes) > 0)
        # What a crop cuts off still shines over its edge.
        if light.max() < 0.35 * whole or not len(labelled):
            assert len(labelled) or light.max() < 0.6 * whole
            continue
        seen += 1
        # At a tie, a pixel's centre on the edge of two patches, either is right.
        assert light[labelled].max() > 0.99 * light.max()
        assert shown[light.argmax()]
        assert (light[labelled] > 0).all()
    assert seen >= 8


def by_patch(plane, reduce):
    rows, columns = (n // PATCH for n in plane.shape)
    return reduce(plane.reshape(rows, PATCH, columns, PATCH), axis=(1, 3)).ravel()


@pytest.mark.parametrize("size", SIZES)
def test_one_pixel_lands_in_exactly_the_patch_of_its_centre(pair, size):
    """By the formulas of transformers, written out again."""
    _, ours = pair
    boxes, shown = ours.geometry(size).boxes(), ours.shown(size)
    new, corner = placed(ours, size)
    columns = ours.size[1] // PATCH
    rng = np.random.default_rng(0)
    for _ in range(60):
        at = [int(rng.integers(n)) for n in size]
        mask = np.zeros(size, dtype=bool)
        mask[tuple(at)] = True
        centre = [(a + 0.5) * n / s + c for a, n, s, c in zip(at, new, size, corner, strict=True)]
        on_plane = all(0 <= p < n for p, n in zip(centre, ours.size, strict=True))
        expected = [int(centre[0] // PATCH) * columns + int(centre[1] // PATCH)] if on_plane else []
        found = np.flatnonzero(coverage(mask, boxes) > 0).tolist()
        # A pixel wider than a patch is in several, its centre's among them.
        if max(n / s for n, s in zip(new, size, strict=True)) > PATCH:
            assert set(expected) <= set(found)
        else:
            assert found == expected
        assert all(shown[patch] for patch in expected)


def placed(ours, size):
    """Sides of the resized image and where its corner lies."""
    height, width = size
    if ours.mode == "resize":
        return ours.size, (0, 0)
    if ours.mode == "letter_box":
        long = max(size)
        new = tuple(ours.size[0] if n == long else math.floor(n * ours.size[0] / long) for n in size)
        return new, (0, 0)
    new = ours.resized
    if isinstance(new, int):
        short, long = min(size), max(size)
        sides = (new, int(new * long / short))
        new = sides[::-1] if width <= height else sides
    return new, tuple(-math.floor((n - s) / 2) for n, s in zip(new, ours.size, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_shown_patches_are_those_whose_pixels_the_image_changes(seed):
    rng = np.random.default_rng(seed)
    for their, ours in PROCESSORS.values():
        size = tuple(int(n) for n in rng.integers(20, 300, 2))
        black, white = (their(np.full((*size, 3), v, np.uint8)) for v in (0, 255))
        changed = np.abs(white - black).max(0)
        assert ours.shown(size).tolist() == (by_patch(changed, np.max) > 0).tolist()


def test_padding_of_a_letter_box_is_never_shown():
    """Where floats say 299.99999999999994 of 300, whole pixels decide."""
    ours = Processor((560, 560), PATCH, "letter_box")
    for height in range(14, 560, 7):
        rows = math.ceil(math.floor(height * 560 / 800) / PATCH)
        assert ours.shown((height, 800)).reshape(40, 40).sum(0).tolist() == [max(rows, 1)] * 40


def test_the_axes_have_scales_of_their_own():
    crop = PROCESSORS["clip"][1].geometry((100, 181))
    assert crop.scale == (56 / 100, 101 / 181)
    assert crop.shift == (0.0, -22.0)
    box = PROCESSORS["llama"][1].geometry((97, 181))
    assert box.scale == (30 / 97, 56 / 181)


def test_labels_follow_the_processor():
    """Through Sample.token_labels, as a host's rows are labelled."""
    pixels = np.zeros((100, 200, 3), np.uint8)
    left = np.zeros((100, 200), dtype=bool)
    left[:, :50] = True
    sample = Sample("s", "", "d", image=Image(pixels, {"left": left}))

    def columns(mode):
        boxes = Processor((56, 56), 14, mode).geometry((100, 200)).boxes()
        return sample.token_labels(boxes, ["left"]).reshape(4, 4).any(0).tolist()

    assert columns("resize") == [True, False, False, False]
    assert columns("centre_crop") == [False] * 4
    assert columns("letter_box") == [True, False, False, False]


class TestRefusals:
    def test_padding(self):
        padded = hf.ViTImageProcessorPil(size=SQUARE)
        padded.do_pad = True
        with pytest.raises(ValueError, match=r"ViT\w+ places images.*do_pad=True.*letter_box"):
            read_processor(padded, PATCH)

    def test_no_resizing(self):
        with pytest.raises(ValueError, match=r"do_resize=False.*could not be labelled: give att"):
            read_processor(hf.ViTImageProcessorPil(do_resize=False), PATCH)

    def test_a_longest_edge(self):
        odd = hf.ViTImageProcessorPil(size={"shortest_edge": 56, "longest_edge": 90})
        with pytest.raises(ValueError, match="places images in a way that is not known"):
            read_processor(odd, PATCH)

    def test_a_side_without_a_crop(self):
        with pytest.raises(ValueError, match="not known"):
            read_processor(hf.ViTImageProcessorPil(size={"shortest_edge": 56}), PATCH)

    def test_what_settings_do_not_say(self):
        class Flipped(hf.ViTImageProcessorPil):
            def resize(self, image, **options):
                return super().resize(image, **options)[..., ::-1]

        with pytest.raises(ValueError, match=r"Flipped gives other pixels.*by \d+ grey levels"):
            read_processor(Flipped(size=SQUARE), PATCH)

    def test_a_crop_that_is_off_by_one(self):
        class Shifted(hf.CLIPImageProcessorPil):
            def center_crop(self, image, size):
                return super().center_crop(np.roll(image, 1, axis=-1), size)

        with pytest.raises(ValueError, match="Shifted gives other pixels"):
            read_processor(Shifted(size={"shortest_edge": SIDE}, crop_size=SQUARE), PATCH)

    def test_something_else(self):
        with pytest.raises(ValueError, match="a int is no image processor: give one of transf"):
            read_processor(3, PATCH)

    def test_another_patch_or_mode(self):
        with pytest.raises(ValueError, match="patch is 14, the model's 16"):
            read_processor(Processor((56, 56), 14), 16)
        with pytest.raises(ValueError, match=r"\(56, 56\) is no multiple of the patch 16"):
            Processor((56, 56), 16)
        with pytest.raises(ValueError, match="mode 'crop' is unknown"):
            Processor((56, 56), 14, "crop")
        with pytest.raises(ValueError, match="resized is for mode 'centre_crop'"):
            Processor((56, 56), 14, resized=60)
        with pytest.raises(ValueError, match="holds no patch"):
            Processor((8, 8), 14)


def test_tiles_are_read_as_one():
    tiles = hf.models.mllama.image_processing_pil_mllama.MllamaImageProcessorPil(size=SQUARE)
    ours = Processor((SIDE, SIDE), PATCH, "letter_box", mean=(0.5,) * 3, std=(0.5,) * 3, resample=2)
    assert tiles.max_image_tiles == 4
    assert read_processor(tiles, PATCH) == ours
    assert read_processor(tiles.to_dict(), PATCH) == ours


def test_a_config_and_a_holder_say_the_same_as_the_object():
    processor = hf.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    ours = read_processor(processor, PATCH)
    assert read_processor(processor.to_dict(), PATCH) == ours

    class Holder:
        image_processor = processor

    assert read_processor(Holder(), PATCH) == ours
    assert replace(ours, resized=None).geometry((70, 80)) == ours.geometry((70, 80))
