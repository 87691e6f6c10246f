"""Laws of what a picture is made of: outline, PNG, scaling, and which images are shown."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from detection_cases import make_case
from fake_host import FakeHost

from sa_plugin.data import ConceptData, Geometry, Image
from sa_plugin.detection import calibrate
from sa_plugin.host import Batch
from sa_plugin.report import render_report
from sa_plugin.show import data_uri, mask_outline, png, shrunk
from sa_plugin.stages import Plan, passages, pictures, study
from sa_plugin.statistics import Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def loops(path):
    """Corners (row, column) of every closed loop of a path of M, h, v and z."""
    assert re.fullmatch(r"(M\d+ \d+(h-?\d+v-?\d+)*h-?\d+z)*", path)
    found = []
    for loop in re.findall(r"M(\d+) (\d+)([^M]*)z", path):
        x, y = int(loop[0]), int(loop[1])
        corners = [(y, x)]
        for way, by in re.findall(r"([hv])(-?\d+)", loop[2]):
            x, y = (x + int(by), y) if way == "h" else (x, y + int(by))
            corners.append((y, x))
        found.append(corners)
    return found


def filled(path, size):
    """The even-odd filling of a path: pixels whose centre has an odd number of edges at its left.

    Closing a loop must be a straight upright edge, else the path is no outline of pixels.
    """
    crossings = np.zeros((size[0], size[1] + 1), dtype=int)
    for corners in loops(path):
        for (y, x), (to_y, to_x) in zip(corners, corners[1:] + corners[:1], strict=True):
            assert (y == to_y) != (x == to_x)
            if x == to_x:
                crossings[min(y, to_y) : max(y, to_y), x] += 1
    return crossings.cumsum(1)[:, :-1] % 2 == 1


def edge_length(mask):
    """Number of unit edges between the mask and the rest."""
    padded = np.pad(mask, 1).astype(int)
    return int(sum(np.abs(np.diff(padded, axis=k)).sum() for k in (0, 1)))


@pytest.mark.parametrize("density", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_filling_the_outline_gives_the_mask(seed, density):
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 40), rng.integers(1, 40))) < density
    np.testing.assert_array_equal(filled(mask_outline(mask), mask.shape), mask)


@pytest.mark.parametrize("seed", range(3))
def test_the_outline_walks_every_edge_once_and_no_other(seed):
    mask = np.random.default_rng(seed).random((17, 23)) < 0.5
    walked = 0
    for corners in loops(mask_outline(mask)):
        ends = zip(corners, corners[1:] + corners[:1], strict=True)
        walked += sum(abs(y - b) + abs(x - a) for (y, x), (b, a) in ends)
    assert walked == edge_length(mask)


def test_outlines_are_compact():
    mask = np.zeros((300, 400), dtype=bool)
    assert mask_outline(mask) == ""
    mask[20:200, 30:390] = True
    mask[50:60, 50:60] = False
    assert mask_outline(mask) == "M30 20h360v180h-360zM50 50h10v10h-10z"
    assert mask_outline(np.eye(2, dtype=bool)) == "M0 0h1v1h-1zM1 1h1v1h-1z"
    assert mask_outline(np.ones((3, 2), dtype=bool)) == "M0 0h2v3h-2z"


def test_a_disc_with_a_hole_keeps_both():
    y, x = np.mgrid[:60, :70]
    far = (y - 30) ** 2 + (x - 33) ** 2
    mask = (far < 25**2) & (far > 9**2)
    assert len(loops(mask_outline(mask))) == 2
    np.testing.assert_array_equal(filled(mask_outline(mask), mask.shape), mask)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (64, 48)])
def test_a_png_holds_the_same_pixels(size):
    reader = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    ramp = np.add.outer(np.arange(size[0]), np.arange(size[1]))[..., None] * np.array([1, 2, 5])
    for pixels in (noise, ramp.astype(np.uint8)):
        opened = reader.open(io.BytesIO(png(pixels)))
        opened.verify()
        read = reader.open(io.BytesIO(png(pixels)))
        assert (read.format, read.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(read), pixels)
        assert base64.b64decode(data_uri(pixels).split(",")[1]) == png(pixels)


def test_filters_make_smooth_images_small():
    ramp = np.add.outer(np.arange(200), np.arange(150))[..., None] * np.array([1, 2, 5])
    assert len(png(ramp.astype(np.uint8))) < 0.02 * ramp.size


def area_mean(pixels, rows, columns):
    """Every new pixel by a loop over the old ones it covers, weighted by the overlap."""
    height, width = pixels.shape[:2]
    out = np.zeros((rows, columns, 3))
    for r in range(rows):
        for c in range(columns):
            weight = 0.0
            for y in range(height):
                for x in range(width):
                    down = min((r + 1) * height / rows, y + 1) - max(r * height / rows, y)
                    right = min((c + 1) * width / columns, x + 1) - max(c * width / columns, x)
                    if down > 0 and right > 0:
                        out[r, c] += down * right * pixels[y, x]
                        weight += down * right
            out[r, c] /= weight
    return out


@pytest.mark.parametrize(("size", "longest", "expected"), [((13, 9), 6, (6, 4)), ((8, 12), 4, (3, 4))])
def test_scaling_down_is_the_mean_over_areas(size, longest, expected):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    small = shrunk(pixels, longest)
    assert small.shape == (*expected, 3)
    np.testing.assert_allclose(small, area_mean(pixels, *expected), atol=0.5 + 1e-9)


def test_images_that_fit_stay_as_they_are():
    pixels = np.random.default_rng(1).integers(0, 256, (320, 12, 3), dtype=np.uint8)
    assert shrunk(pixels) is pixels
    assert shrunk(np.tile(pixels, (2, 1, 1))).shape == (320, 6, 3)


def as_images(table):
    """The same table with an image a sample: its tokens are patches of 2 x 2 in one row."""
    rng = np.random.default_rng(0)
    tokens = table.tokens
    samples = []
    for sample, n in zip(tokens.samples, np.diff(tokens.bounds), strict=True):
        pixels = rng.integers(0, 256, (2, 2 * n, 3), dtype=np.uint8)
        masks = {c: rng.random((2, 2 * n)) < 0.5 for c in sample.positive}
        samples.append(replace(sample, text="", image=Image(pixels, masks)))
    at = 2.0 * tokens.position
    boxes = np.stack([0 * at, at, 0 * at + 2, at + 2], axis=1).astype(np.float32)
    return replace(table, tokens=replace(tokens, samples=tuple(samples), offsets=boxes))


@pytest.fixture(scope="module")
def shown():
    case = make_case(strength=1.0)
    detector = calibrate(None, case.data, case.bank, scores=case.table)
    texts = case.table.split("test")
    return detector, texts, as_images(texts)


def test_images_are_chosen_as_passages_are(shown):
    detector, texts, images = shown
    chosen = passages(detector, texts)
    drawn = pictures(detector, images)
    assert {p["role"] for p in drawn} >= {"true_positive", "raw_false_fire", "miss"}
    own = {"text", "offsets"}
    shared = [{k: v for k, v in p.items() if k not in own} for p in chosen]
    mine = {"png", "size", "boxes", "outline"}
    assert shared == [{k: v for k, v in p.items() if k not in mine} for p in drawn]
    assert len(pictures(detector, images, each=1)) == len({p["role"] for p in drawn})


def test_a_picture_is_that_of_its_sample(shown):
    detector, _, images = shown
    tokens = images.tokens
    by_id = {sample.id: n for n, sample in enumerate(tokens.samples)}
    for one in pictures(detector, images):
        n = by_id[one["id"]]
        image = tokens.samples[n].image
        rows = slice(tokens.bounds[n], tokens.bounds[n + 1])
        assert one["png"] == data_uri(image.pixels)
        assert one["size"] == list(image.pixels.shape[:2])
        np.testing.assert_array_equal(one["boxes"], tokens.offsets[rows])
        expected = image.masks.get(one["concept"], np.zeros(one["size"], dtype=bool))
        np.testing.assert_array_equal(filled(one["outline"], one["size"]), expected)


def test_texts_are_refused(shown):
    detector, texts, _ = shown
    with pytest.raises(ValueError, match=r"has no image: show texts with passages\(\)"):
        pictures(detector, texts)


class FakeEyes(FakeHost):
    """Patches of 4 x 4 as words: those of equal rounded mean colour are one word."""

    def batches(self, samples, *, batch_tokens=None):
        patches = [s.image.pixels.reshape(4, 4, 4, 4, 3).mean((1, 3)).reshape(16, 3) for s in samples]
        ids = torch.tensor(np.stack(patches).round() @ [1, 256, 65536], dtype=torch.long)
        boxes = torch.tensor(Geometry((1.0, 1.0), (0.0, 0.0), (16, 16), 4).boxes()).float()
        inputs = {"ids": ids, "attention_mask": torch.ones_like(ids)}
        return [
            Batch(
                torch.arange(len(ids)),
                inputs,
                torch.ones_like(ids, dtype=torch.bool),
                boxes.repeat(len(ids), 1, 1),
            )
        ]


def squares(n=60):
    """Images of 16 x 16 with up to two coloured squares of 4 x 4 on grey."""
    rng = np.random.default_rng(0)
    images, masks = [], []
    for _ in range(n):
        pixels = np.full((16, 16, 3), 128, dtype=np.uint8)
        found = {}
        for k, concept in enumerate(("red", "blue")):
            if rng.random() < 0.5:
                y, x = 4 * rng.integers(0, 4, 2)
                pixels[y : y + 4, x : x + 4] = 0
                pixels[y : y + 4, x : x + 4, 2 * k] = 220
                found[concept] = (pixels[..., 2 * k] == 220) & (pixels[..., 1] == 0)
        images.append(pixels)
        masks.append(found)
    return ConceptData.from_masks(images, masks, concepts=("red", "blue"))


def test_a_run_on_images_has_pictures_and_no_passages():
    found = study(FakeEyes(), squares(), Plan({"separator": (0, 2)}, resampling=Resampling(20)))
    assert "passages" not in found.record
    drawn = found.record["pictures"]
    assert {p["concept"] for p in drawn} == {"red", "blue"}
    for one in drawn:
        if one["role"] == "true_positive":
            assert one["superactivator"] == one["in_concept"]
    page = render_report(found.record)
    assert page.count("<article") == len(drawn)
    assert "assage" not in re.sub(r"<style>.*?</style>|class=\"[^\"]*\"", "", page, flags=re.S)
